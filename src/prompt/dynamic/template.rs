//! The grammar of dynamic prompts.
//!
//! The library's parser is a grammar of ordered choices without memory of white space, read here by
//! recursive descent with the same order. Literal text keeps its white space; that at the beginning
//! of an option does not count.

use std::sync::LazyLock;

use regex::Regex;

use super::DynamicPromptError;
use super::random::Method;

/// Braces within braces that are still read.
const MAX_DEPTH: usize = 60;

static COMMENT: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^[ \t\r\n]*(?:#[^\n]*|//[^\n]*|/\*(?s:.*?)\*/)").expect("the pattern is constant")
});
static BOUND: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^(?:([0-9]+)-([0-9]+)|-([0-9]+)|([0-9]+)-|([0-9]+))\$\$(?:([!-#%-z|~ ]+)\$\$)?")
        .expect("the pattern is constant")
});
static WEIGHT: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^([+-]?(?:[0-9]+\.[0-9]*|\.[0-9]+)|[0-9]+)::").expect("the pattern is constant")
});
static NAME: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^[A-Za-z_-][A-Za-z0-9_-]*").expect("the pattern is constant"));
static WILDCARD_VARIABLES: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^[ \t\r\n]*\(([^)]+)\)").expect("the pattern is constant"));

/// One piece of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Command {
    Literal(String),
    Sequence(Vec<Command>),
    Variant(Variant),
    Wildcard(Wildcard),
    /// `${name=value}`
    Assignment {
        name: String,
        value: Box<Command>,
        /// `=!`: drawn once, here.
        immediate: bool,
        /// Not `?=`.
        overwrite: bool,
    },
    /// `${name}` or `${name:default}`
    Variable {
        name: String,
        default: Option<Box<Command>>,
    },
    /// `%{prefix ... suffix$$inner}`
    Wrap {
        wrapper: Box<Command>,
        inner: Box<Command>,
    },
}

/// `{a|b}`
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Variant {
    pub(super) options: Vec<(f64, Command)>,
    /// How many options are taken; the smaller first.
    pub(super) bounds: (usize, usize),
    pub(super) separator: String,
    pub(super) method: Option<Method>,
}

/// `__name__`
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wildcard {
    pub(super) path: Box<Command>,
    pub(super) method: Option<Method>,
    pub(super) variables: Vec<(String, Command)>,
}

/// Reads a template.
pub(super) fn parse(text: &str) -> Result<Command, DynamicPromptError> {
    let mut parser = Parser {
        text,
        position: 0,
        depth: 0,
    };
    let command = parser.prompt(Place::Top);
    parser.skip_comments();
    if parser.position < text.len() {
        return Err(DynamicPromptError::Syntax {
            position: text[..parser.position].chars().count(),
        });
    }
    Ok(command)
}

/// Where a prompt stands, which decides what is literal and which constructs there are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Top,
    Option,
    WildcardPath,
}

impl Place {
    fn is_literal(self, character: char) -> bool {
        match character {
            '#' | '{' | '$' | '%' => false,
            '|' | '}' => self != Self::Option,
            '(' | ')' => self != Self::WildcardPath,
            _ => true,
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    position: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.position..]
    }

    fn eat(&mut self, wanted: &str) -> Option<()> {
        self.rest()
            .starts_with(wanted)
            .then(|| self.position += wanted.len())
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        let trimmed = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        self.position += rest.len() - trimmed.len();
    }

    fn skip_comments(&mut self) {
        while let Some(found) = COMMENT.find(self.rest()) {
            self.position += found.end();
        }
    }

    /// As many pieces as there are.
    fn prompt(&mut self, place: Place) -> Command {
        let mut pieces = Vec::new();
        loop {
            let start = self.position;
            self.skip_comments();
            let Some(piece) = self.piece(place) else {
                self.position = start;
                break;
            };
            pieces.push(piece);
        }
        if pieces.len() == 1 {
            pieces.remove(0)
        } else {
            Command::Sequence(pieces)
        }
    }

    fn piece(&mut self, place: Place) -> Option<Command> {
        let start = self.position;
        self.depth += 1;
        let construct = if self.depth > MAX_DEPTH {
            None
        } else {
            self.construct(place)
        };
        self.depth -= 1;
        if construct.is_some() {
            return construct;
        }
        self.position = start;
        self.literals(place)
    }

    fn construct(&mut self, place: Place) -> Option<Command> {
        let start = self.position;
        let rest = self.rest();
        if rest.starts_with("${") {
            if place == Place::Top
                && let Some(assignment) = self.assignment()
            {
                return Some(assignment);
            }
            self.position = start;
            return self.variable(place);
        }
        if rest.starts_with("%{") && place != Place::WildcardPath {
            return self.wrap();
        }
        if rest.starts_with('{') {
            return self.variant();
        }
        if rest.starts_with("__") && place != Place::WildcardPath {
            return self.wildcard();
        }
        None
    }

    /// Text, and text after comments joined to it by a blank.
    fn literals(&mut self, place: Place) -> Option<Command> {
        let mut text = self.literal(place)?.to_owned();
        loop {
            let start = self.position;
            self.skip_comments();
            let Some(more) = self.literal(place) else {
                self.position = start;
                return Some(Command::Literal(text));
            };
            text.push(' ');
            text.push_str(more);
        }
    }

    fn literal(&mut self, place: Place) -> Option<&'a str> {
        let rest = self.rest();
        let length_in = |place: Place| {
            rest.char_indices()
                .find(|&(index, character)| {
                    !place.is_literal(character) || rest[index..].starts_with("__")
                })
                .map_or(rest.len(), |(index, _)| index)
        };
        let mut length = length_in(place);
        // A closing parenthesis in a wildcard's name is read as an option's text would be.
        if length == 0 && place == Place::WildcardPath && rest.starts_with(')') {
            length = length_in(Place::Option);
        }
        self.position += length;
        (length > 0).then(|| &rest[..length])
    }

    fn method(&mut self) -> Option<Method> {
        let method = match self.rest().chars().next()? {
            '~' => Method::Random,
            '!' => Method::Combinatorial,
            '@' => Method::Cyclic,
            _ => return None,
        };
        self.position += 1;
        Some(method)
    }

    fn variant(&mut self) -> Option<Command> {
        self.eat("{")?;
        self.skip_space();
        let method = self.method();
        let bound = BOUND.captures(self.rest());
        if let Some(bound) = &bound {
            self.position += bound[0].len();
        }
        let mut options = vec![self.option()];
        self.skip_comments();
        while self.eat("|").is_some() {
            options.push(self.option());
            self.skip_comments();
        }
        self.eat("}")?;
        let number = |index: usize| -> Option<usize> {
            let digits = bound.as_ref()?.get(index)?;
            Some(digits.as_str().parse().unwrap_or(usize::MAX))
        };
        let (low, high) = if let Some(exact) = number(5) {
            (exact, exact)
        } else if bound.is_some() {
            (
                number(1).or_else(|| number(4)).unwrap_or(1),
                number(2).or_else(|| number(3)).unwrap_or(options.len()),
            )
        } else {
            (1, 1)
        };
        let separator = bound
            .as_ref()
            .and_then(|bound| bound.get(6))
            .map_or(",", |separator| separator.as_str());
        Some(Command::Variant(Variant {
            options,
            bounds: (low.min(high), low.max(high)),
            separator: separator.to_owned(),
            method,
        }))
    }

    fn option(&mut self) -> (f64, Command) {
        self.skip_space();
        let mut weight = 1.0;
        if let Some(found) = WEIGHT.captures(self.rest()) {
            weight = found[1].parse().unwrap_or(1.0);
            self.position += found[0].len();
        }
        let value = self.prompt(Place::Option);
        self.skip_space();
        (weight, value)
    }

    fn wildcard(&mut self) -> Option<Command> {
        self.eat("__")?;
        let method = self.method();
        let path = self.prompt(Place::WildcardPath);
        if path == Command::Sequence(Vec::new()) {
            return None;
        }
        let mut variables = Vec::new();
        if let Some(found) = WILDCARD_VARIABLES.captures(self.rest()) {
            self.position += found[0].len();
            for pair in found[1].split(',') {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                variables.push((name.trim().to_owned(), parse(value.trim()).ok()?));
            }
        }
        self.eat("__")?;
        Some(Command::Wildcard(Wildcard {
            path: Box::new(path),
            method,
            variables,
        }))
    }

    fn name(&mut self) -> Option<String> {
        let found = NAME.find(self.rest())?;
        self.position += found.end();
        Some(found.as_str().to_owned())
    }

    fn assignment(&mut self) -> Option<Command> {
        self.eat("${")?;
        self.skip_space();
        let name = self.name()?;
        self.skip_space();
        let overwrite = self.eat("?").is_none();
        self.eat("=")?;
        let immediate = self.eat("!").is_some();
        self.skip_space();
        let value = Box::new(self.prompt(Place::Option));
        self.skip_space();
        self.eat("}")?;
        Some(Command::Assignment {
            name,
            value,
            immediate,
            overwrite,
        })
    }

    fn variable(&mut self, place: Place) -> Option<Command> {
        self.eat("${")?;
        self.skip_space();
        let name = self.name()?;
        self.skip_space();
        let mut default = None;
        if self.eat(":").is_some() {
            self.skip_space();
            default = Some(Box::new(self.prompt(Place::Option)));
        }
        self.skip_space();
        self.eat("}")?;
        if place == Place::WildcardPath && default.is_none() {
            default = Some(Box::new(Command::Literal(name.clone())));
        }
        Some(Command::Variable { name, default })
    }

    fn wrap(&mut self) -> Option<Command> {
        self.eat("%{")?;
        self.skip_space();
        let wrapper = Box::new(self.prompt(Place::Option));
        self.skip_space();
        self.eat("$$")?;
        self.skip_space();
        let inner = Box::new(self.prompt(Place::Option));
        self.eat("}")?;
        Some(Command::Wrap { wrapper, inner })
    }
}
