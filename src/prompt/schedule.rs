//! Prompt editing `[before:after:when]` and alternation `[a|b]`, laid out over the steps of a pass.
//!
//! A1111 reads this grammar with an Earley parser whose choice on ambiguous texts depends on the
//! process's hash seed; here the structured reading is taken always, by recursive descent. A
//! bracket nested deeper than [`MAX_DEPTH`] is ordinary text.

use std::sync::LazyLock;

use regex::Regex;

/// Brackets inside brackets that are still read as constructs.
const MAX_DEPTH: usize = 128;

/// The number that closes `[…:when]`, with the blanks around it and the bracket.
static WHEN: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"^[\s\x1c-\x1f]*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)[\s\x1c-\x1f]*\]",
    )
    .expect("the pattern is constant")
});

/// The steps that a schedule is laid out over, in denoiser calls: twice the sampler's steps for
/// second-order samplers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PassSteps {
    /// Calls planned for the first pass (or for img2img).
    pub base: usize,
    /// Calls planned for the hires pass, when the schedule is for that pass.
    pub hires: Option<usize>,
    /// The option `use_old_scheduling`.
    pub old_scheduling: bool,
}

impl PassSteps {
    /// The first pass with today's scheduling.
    #[must_use]
    pub fn first_pass(base: usize) -> Self {
        Self {
            base,
            hires: None,
            old_scheduling: false,
        }
    }

    /// The hires pass that follows a first pass of `base` calls.
    #[must_use]
    pub fn hires_pass(base: usize, hires: usize) -> Self {
        Self {
            base,
            hires: Some(hires),
            old_scheduling: false,
        }
    }

    fn total(self) -> i64 {
        match self.hires {
            Some(hires) if !self.old_scheduling => hires as i64,
            _ => self.base as i64,
        }
    }

    /// The call at which a `when` written as `text` falls; below 1 it is before the first.
    fn when(self, text: &str) -> i64 {
        let number: f64 = text.parse().unwrap_or(0.0);
        let total = self.total() as f64;
        let fraction = text.contains('.');
        let value = if self.old_scheduling {
            if number < 1.0 { number * total } else { number }
        } else if self.hires.is_some() {
            if fraction {
                (number - 1.0) * total
            } else {
                number - self.base as f64
            }
        } else if fraction {
            number * total
        } else {
            number
        };
        self.total().min(value.trunc() as i64)
    }
}

/// The text in force up to a step.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ScheduledText {
    /// The last call, counted from 0 by A1111's denoiser, at which the text is in force; the last
    /// entry's is the number of calls.
    pub end_at_step: usize,
    pub text: String,
}

/// The texts of `prompt` over one pass, in rising order of `end_at_step`; at least one.
#[must_use]
pub fn expand_schedule(prompt: &str, steps: PassSteps) -> Vec<ScheduledText> {
    let total = steps.total();
    let at = |step: i64, text: String| ScheduledText {
        end_at_step: step.max(0) as usize,
        text,
    };
    let Some(nodes) = Parser::new(prompt).parse() else {
        return vec![at(total, prompt.to_owned())];
    };
    let mut boundaries = vec![total];
    collect_boundaries(&nodes, steps, &mut boundaries);
    boundaries.sort_unstable();
    boundaries.dedup();
    boundaries
        .into_iter()
        .map(|step| {
            let mut text = String::new();
            write_at(&nodes, step, steps, &mut text);
            at(step, text)
        })
        .collect()
}

#[derive(Debug, PartialEq)]
enum Node<'a> {
    /// Text as it stands: plain runs, and the brackets and colons around emphasis.
    Text(&'a str),
    Scheduled {
        before: Vec<Node<'a>>,
        after: Vec<Node<'a>>,
        when: &'a str,
    },
    Alternate(Vec<Vec<Node<'a>>>),
}

fn collect_boundaries(nodes: &[Node<'_>], steps: PassSteps, boundaries: &mut Vec<i64>) {
    for node in nodes {
        match node {
            Node::Text(_) => {}
            Node::Scheduled {
                before,
                after,
                when,
            } => {
                let step = steps.when(when);
                if step >= 1 {
                    boundaries.push(step);
                }
                collect_boundaries(before, steps, boundaries);
                collect_boundaries(after, steps, boundaries);
            }
            Node::Alternate(options) => {
                boundaries.extend(1..=steps.total());
                for option in options {
                    collect_boundaries(option, steps, boundaries);
                }
            }
        }
    }
}

fn write_at(nodes: &[Node<'_>], step: i64, steps: PassSteps, out: &mut String) {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Scheduled {
                before,
                after,
                when,
            } => {
                let side = if step <= steps.when(when) {
                    before
                } else {
                    after
                };
                write_at(side, step, steps, out);
            }
            Node::Alternate(options) => {
                let index = (step - 1).rem_euclid(options.len() as i64);
                write_at(&options[index as usize], step, steps, out);
            }
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    position: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            text,
            position: 0,
            depth: 0,
        }
    }

    /// The whole text; `None` where it is outside the grammar and stays as it is.
    fn parse(mut self) -> Option<Vec<Node<'a>>> {
        let mut nodes = Vec::new();
        while self.position < self.text.len() {
            let items = self.strict_prompt();
            nodes.extend(items);
            match self.peek() {
                None => break,
                Some(b'(' | b')' | b'[' | b']' | b':') => {
                    nodes.push(self.take(1));
                }
                // A stray bar or a lone backslash.
                Some(_) => return None,
            }
        }
        Some(nodes)
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.position).copied()
    }

    fn take(&mut self, length: usize) -> Node<'a> {
        let start = self.position;
        self.position += length;
        Node::Text(&self.text[start..self.position])
    }

    fn eat(&mut self, wanted: u8) -> Option<()> {
        (self.peek()? == wanted).then(|| self.position += 1)
    }

    /// Items up to the first character that no item can begin with.
    fn strict_prompt(&mut self) -> Vec<Node<'a>> {
        let mut nodes = Vec::new();
        while let Some(next) = self.peek() {
            match next {
                b'(' | b'[' => {
                    let start = self.position;
                    self.depth += 1;
                    let construct = match (self.depth > MAX_DEPTH, next) {
                        (true, _) => None,
                        (false, b'(') => self.round(),
                        (false, _) => self.square(),
                    };
                    self.depth -= 1;
                    let Some(construct) = construct else {
                        self.position = start;
                        return nodes;
                    };
                    nodes.extend(construct);
                }
                b')' | b']' | b':' | b'|' => return nodes,
                _ => {
                    let length = self.plain_length();
                    if length == 0 {
                        return nodes;
                    }
                    nodes.push(self.take(length));
                }
            }
        }
        nodes
    }

    /// Bytes of the plain run at the position: anything but the grammar's own characters, and
    /// escaped ones.
    fn plain_length(&self) -> usize {
        let rest = &self.text[self.position..];
        let mut characters = rest.char_indices().peekable();
        while let Some((index, character)) = characters.next() {
            match character {
                '[' | ']' | '(' | ')' | ':' | '|' => return index,
                '\\' => match characters.next() {
                    Some((_, escaped)) if escaped != '\n' => {}
                    _ => return index,
                },
                _ => {}
            }
        }
        rest.len()
    }

    /// `( prompt )` or `( prompt : prompt )`, kept as text around its own constructs.
    fn round(&mut self) -> Option<Vec<Node<'a>>> {
        let mut nodes = vec![self.take(1)];
        nodes.extend(self.strict_prompt());
        if self.peek()? == b':' {
            nodes.push(self.take(1));
            nodes.extend(self.strict_prompt());
        }
        if self.peek()? != b')' {
            return None;
        }
        nodes.push(self.take(1));
        Some(nodes)
    }

    /// `[ prompt ]`, `[ a | b … ]`, `[ after : when ]` or `[ before : after : when ]`.
    fn square(&mut self) -> Option<Vec<Node<'a>>> {
        let open = self.take(1);
        let first = self.strict_prompt();
        match self.peek()? {
            b']' => {
                let mut nodes = vec![open];
                nodes.extend(first);
                nodes.push(self.take(1));
                Some(nodes)
            }
            b'|' => {
                let mut options = vec![first];
                while self.eat(b'|').is_some() {
                    options.push(self.strict_prompt());
                }
                self.eat(b']')?;
                Some(vec![Node::Alternate(options)])
            }
            b':' => {
                self.eat(b':')?;
                let (before, after) = if self.when_ahead().is_some() {
                    (Vec::new(), first)
                } else {
                    let after = self.strict_prompt();
                    self.eat(b':')?;
                    (first, after)
                };
                let (when, length) = self.when_ahead()?;
                self.position += length;
                Some(vec![Node::Scheduled {
                    before,
                    after,
                    when,
                }])
            }
            _ => None,
        }
    }

    /// The number before a closing bracket right here, and the bytes up to past that bracket.
    fn when_ahead(&self) -> Option<(&'a str, usize)> {
        let found = WHEN.captures(&self.text[self.position..])?;
        Some((found.get(1)?.as_str(), found.get(0)?.len()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::prompt::vectors;

    type Cases = Vec<(String, Vec<(usize, String)>)>;

    fn expand(prompt: &str, steps: PassSteps) -> Vec<(usize, String)> {
        expand_schedule(prompt, steps)
            .into_iter()
            .map(|entry| (entry.end_at_step, entry.text))
            .collect()
    }

    #[test]
    fn schedules_are_a1111s() {
        let old = PassSteps {
            old_scheduling: true,
            ..PassSteps::first_pass(10)
        };
        for (name, steps) in [
            ("schedule_steps10", PassSteps::first_pass(10)),
            ("schedule_base10_hires10", PassSteps::hires_pass(10, 10)),
            ("schedule_base20_hires8", PassSteps::hires_pass(20, 8)),
            ("schedule_old_steps10", old),
        ] {
            for (prompt, want) in vectors::read::<Cases>(name) {
                assert_eq!(expand(&prompt, steps), want, "{name}: {prompt:?}");
            }
        }
    }

    #[test]
    fn recorded_prompts_give_the_recorded_schedules() {
        for (name, case) in vectors::recorded_prompts("tiny-sd1") {
            let prompt = case["prompt"].as_str().expect("a text");
            for (key, want) in case["schedules"].as_object().expect("an object") {
                let want: Vec<(usize, String)> =
                    serde_json::from_value(want.clone()).expect("a schedule");
                assert_eq!(expand(prompt, steps_of(key)), want, "{name}, {key}");
            }
        }
    }

    /// `steps=20,hires=None,old=False`
    fn steps_of(key: &str) -> PassSteps {
        let value = |name: &str| {
            key.split(',')
                .find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
                .expect("the key names it")
        };
        PassSteps {
            base: value("steps").parse().expect("a number"),
            hires: value("hires").parse().ok(),
            old_scheduling: value("old") == "True",
        }
    }

    #[test]
    fn a_stray_bar_leaves_the_whole_prompt_alone() {
        assert_eq!(
            expand("a | b [c:d:2]", PassSteps::first_pass(4)),
            [(4, "a | b [c:d:2]".to_owned())]
        );
    }

    #[test]
    fn brackets_without_end_are_read_in_reasonable_time() {
        let prompt = "([".repeat(20_000);
        assert_eq!(expand(&prompt, PassSteps::first_pass(4)), [(4, prompt)]);
    }

    #[test]
    fn a_number_beyond_every_range_ends_with_the_pass() {
        assert_eq!(
            expand("[a:b:1e999]", PassSteps::first_pass(4)),
            [(4, "a".to_owned())]
        );
    }

    proptest! {
        #[test]
        fn any_text_has_a_schedule_that_ends_with_the_pass(prompt in r"[()\[\]:|.0-9ab\\ \n]{0,40}") {
            let schedule = expand_schedule(&prompt, PassSteps::first_pass(7));
            prop_assert_eq!(schedule.last().map(|entry| entry.end_at_step), Some(7));
            prop_assert!(schedule.windows(2).all(|pair| pair[0].end_at_step < pair[1].end_at_step));
        }
    }
}
