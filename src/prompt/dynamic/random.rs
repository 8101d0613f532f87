//! Random and cyclic drawing: every command is a generator of texts that may never end.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use super::DynamicPromptError;
use super::template::{Command, Variant, Wildcard, parse};
use super::wildcards::{WildcardSource, WildcardValue, look_up};
use crate::prompt::python_random::PythonRandom;

/// Wildcards and variables within each other.
const MAX_DEPTH: usize = 40;
/// Texts drawn for one template, all pictures together: variables that double each other would go on
/// for hours.
const MAX_STEPS: usize = 1_000_000;
/// Texts that are being drawn within each other at one time; the stack holds no more for certain.
const MAX_NESTING: usize = 200;
/// Arrangements that a cyclic choice of several options goes through.
const MAX_ARRANGEMENTS: usize = 4096;
/// Empty values of a wildcard in a row before it is taken for one without values.
const MAX_EMPTY_VALUES: usize = 1000;

/// How options are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Random,
    Cyclic,
    Combinatorial,
}

/// What drawing needs besides the template.
pub(super) struct Environment<'a> {
    pub(super) random: PythonRandom,
    pub(super) wildcards: &'a dyn WildcardSource,
    steps_left: usize,
    nesting: usize,
}

impl<'a> Environment<'a> {
    pub(super) fn new(seed: i64, wildcards: &'a dyn WildcardSource) -> Self {
        Self {
            random: PythonRandom::new(seed),
            wildcards,
            steps_left: MAX_STEPS,
            nesting: 0,
        }
    }

    /// Does one piece of work, which may consist of others.
    pub(super) fn step<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, DynamicPromptError>,
    ) -> Result<T, DynamicPromptError> {
        if self.steps_left == 0 || self.nesting == MAX_NESTING {
            return Err(DynamicPromptError::TooLarge);
        }
        self.steps_left -= 1;
        self.nesting += 1;
        let outcome = work(self);
        self.nesting -= 1;
        outcome
    }
}

/// What is in force where a command stands.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) method: Method,
    variables: Rc<HashMap<String, Rc<Command>>>,
    depth: usize,
}

impl Context {
    pub(super) fn new(method: Method) -> Self {
        Self {
            method,
            variables: Rc::default(),
            depth: 0,
        }
    }

    pub(super) fn with_method(&self, method: Method) -> Self {
        Self {
            method,
            ..self.clone()
        }
    }

    /// One level deeper in wildcards or variables.
    pub(super) fn deeper(&self) -> Result<Self, DynamicPromptError> {
        if self.depth >= MAX_DEPTH {
            return Err(DynamicPromptError::TooDeep);
        }
        Ok(Self {
            depth: self.depth + 1,
            ..self.clone()
        })
    }

    pub(super) fn with_variables(
        &self,
        added: impl IntoIterator<Item = (String, Rc<Command>)>,
    ) -> Self {
        let mut variables = HashMap::clone(&self.variables);
        variables.extend(added);
        Self {
            variables: Rc::new(variables),
            ..self.clone()
        }
    }

    /// The context of a wildcard's values.
    pub(super) fn of_wildcard(&self, wildcard: &Wildcard) -> Result<Self, DynamicPromptError> {
        let variables = wildcard
            .variables
            .iter()
            .map(|(name, value)| (name.clone(), Rc::new(value.clone())));
        Ok(self.deeper()?.with_variables(variables))
    }

    /// What a variable stands for.
    pub(super) fn variable(
        &self,
        name: &str,
        default: Option<&Command>,
    ) -> Result<Rc<Command>, DynamicPromptError> {
        self.variables
            .get(name)
            .cloned()
            .or_else(|| default.map(|default| Rc::new(default.clone())))
            .ok_or_else(|| DynamicPromptError::UnknownVariable {
                name: name.to_owned(),
            })
    }

    /// The method that a command is drawn by here: within a draw that never ends nothing can be
    /// listed.
    pub(super) fn method_of(&self, command: &Command) -> Method {
        let own = match command {
            Command::Variant(variant) => variant.method,
            Command::Wildcard(wildcard) => wildcard.method,
            _ => None,
        };
        match own {
            Some(Method::Combinatorial) | None => self.method,
            Some(method) => method,
        }
    }

    /// Splits assignments off a sequence and puts them in force.
    pub(super) fn take_assignments(
        &self,
        commands: &[Command],
        environment: &mut Environment<'_>,
    ) -> Result<(Vec<Command>, Self), DynamicPromptError> {
        let mut rest = Vec::with_capacity(commands.len());
        let mut assigned = Vec::new();
        for command in commands {
            let Command::Assignment {
                name,
                value,
                immediate,
                overwrite,
            } = command
            else {
                rest.push(command.clone());
                continue;
            };
            let value = match self.variables.get(name) {
                Some(known) if !overwrite => Rc::clone(known),
                _ if *immediate => {
                    let drawn = sample_once(&Rc::new(Command::clone(value)), self, environment)?;
                    Rc::new(Command::Literal(drawn))
                }
                _ => Rc::new(Command::clone(value)),
            };
            assigned.push((name.clone(), value));
        }
        let context = if assigned.is_empty() {
            self.clone()
        } else {
            self.with_variables(assigned)
        };
        Ok((rest, context))
    }
}

/// The first text that a command gives.
pub(super) fn sample_once(
    command: &Rc<Command>,
    context: &Context,
    environment: &mut Environment<'_>,
) -> Result<String, DynamicPromptError> {
    let context = match context.method {
        Method::Combinatorial => context.with_method(Method::Random),
        _ => context.clone(),
    };
    let mut generator = Generator::new(Rc::clone(command), &context)?;
    Ok(generator.next(environment)?.unwrap_or_default())
}

/// The values of a wildcard as options; each stands as often as its weight says, cut to a whole
/// number.
pub(super) fn variant_of_wildcard(
    wildcard: &Wildcard,
    outer: &Variant,
    context: &Context,
    environment: &mut Environment<'_>,
) -> Result<(String, Variant), DynamicPromptError> {
    let path = sample_once(
        &Rc::new(Command::clone(&wildcard.path)),
        context,
        environment,
    )?;
    let values = look_up(environment.wildcards, &path);
    let bounds = (
        outer.bounds.0.min(values.len()),
        outer.bounds.1.min(values.len()),
    );
    let mut options = Vec::new();
    for value in &values {
        let command = parse(&value.text)?;
        options.extend(std::iter::repeat_n((1.0, command), repetitions(value)));
    }
    let variant = Variant {
        options,
        bounds,
        separator: outer.separator.clone(),
        method: wildcard.method,
    };
    Ok((path, variant))
}

pub(super) fn repetitions(value: &WildcardValue) -> usize {
    value.weight.clamp(0.0, 1000.0) as usize
}

/// The text of a wildcard that has no values.
pub(super) fn missing(path: &str) -> String {
    let start = if path.starts_with("__") { "" } else { "__" };
    let end = if path.ends_with("__") { "" } else { "__" };
    format!("{start}{path}{end}")
}

/// Joins drawn texts; an empty first or last one leaves no separator behind.
pub(super) fn join(texts: &[String], separator: &str) -> String {
    if let [only] = texts {
        return only.clone();
    }
    let joined = texts.join(separator);
    if separator.is_empty() {
        return joined;
    }
    let joined = joined.strip_prefix(separator).unwrap_or(&joined);
    joined.strip_suffix(separator).unwrap_or(joined).to_owned()
}

/// Puts `inner` in the place of the wrapper's dots.
pub(super) fn wrap(wrapper: &str, inner: &str) -> String {
    static MARK: std::sync::LazyLock<regex::Regex> = std::sync::LazyLock::new(|| {
        regex::Regex::new("[\u{1801}\u{2026}\u{22ee}-\u{22f1}\u{fe19}]+|\\.{3,}")
            .expect("the pattern is constant")
    });
    match MARK.find(wrapper) {
        Some(mark) => format!(
            "{}{inner}{}",
            &wrapper[..mark.start()],
            &wrapper[mark.end()..]
        ),
        None => format!("{wrapper}{inner}"),
    }
}

/// A command that is being drawn from. Its state outlives a draw.
pub(super) struct Generator {
    command: Rc<Command>,
    context: Context,
    state: State,
}

enum State {
    /// Nothing was drawn yet; some commands look things up at their first draw.
    Fresh,
    /// One text of each, joined.
    All(Vec<Generator>),
    /// Whatever the other gives.
    Other(Box<Generator>),
    /// Options drawn anew every time.
    Options(Variant),
    /// Values drawn anew every time; `drawn` holds those drawn ahead.
    Values {
        values: Vec<WildcardValue>,
        cumulative: Option<Vec<f64>>,
        drawn: VecDeque<usize>,
        context: Context,
    },
    /// Arrangements in turn, one text of each in turn.
    Turns {
        arrangements: Vec<Vec<Generator>>,
        separator: String,
        next: usize,
    },
    /// Always the same.
    Constant(String),
    /// `(wrapper, inner)`
    Wrap(Box<(Generator, Generator)>),
}

impl Generator {
    /// A generator of `command`. Variables are resolved at once.
    pub(super) fn new(command: Rc<Command>, context: &Context) -> Result<Self, DynamicPromptError> {
        let method = context.method_of(&command);
        let context = context.with_method(method);
        if let Command::Variable { name, default } = &*command {
            let value = context.variable(name, default.as_deref())?;
            return Self::new(value, &context.deeper()?);
        }
        Ok(Self {
            command,
            context,
            state: State::Fresh,
        })
    }

    /// The next text; `None` when there is none.
    pub(super) fn next(
        &mut self,
        environment: &mut Environment<'_>,
    ) -> Result<Option<String>, DynamicPromptError> {
        environment.step(|environment| self.next_text(environment))
    }

    fn next_text(
        &mut self,
        environment: &mut Environment<'_>,
    ) -> Result<Option<String>, DynamicPromptError> {
        if matches!(self.state, State::Fresh) {
            self.state = self.start(environment)?;
        }
        match &mut self.state {
            State::Fresh => Ok(None),
            State::Constant(text) => Ok(Some(text.clone())),
            State::All(parts) => next_of_all(parts, "", environment).map(Some),
            State::Other(other) => other.next(environment),
            State::Options(variant) => draw_options(variant, &self.context, environment).map(Some),
            State::Values {
                values,
                cumulative,
                drawn,
                context,
            } => draw_value(values, cumulative.as_deref(), drawn, context, environment),
            State::Turns {
                arrangements,
                separator,
                next,
            } => {
                let index = *next;
                *next = (index + 1) % arrangements.len().max(1);
                match arrangements.get_mut(index) {
                    Some(parts) => next_of_all(parts, separator, environment).map(Some),
                    None => Ok(None),
                }
            }
            State::Wrap(pair) => {
                let (wrapper, inner) = &mut **pair;
                let wrapper = wrapper.next(environment)?.unwrap_or_default();
                let inner = inner.next(environment)?.unwrap_or_default();
                Ok(Some(wrap(&wrapper, &inner)))
            }
        }
    }

    fn start(&self, environment: &mut Environment<'_>) -> Result<State, DynamicPromptError> {
        match &*self.command {
            Command::Literal(text) => Ok(State::Constant(text.clone())),
            // An assignment with nothing to assign for.
            Command::Assignment { .. } => Ok(State::Constant(String::new())),
            Command::Sequence(commands) => {
                let (commands, context) = self.context.take_assignments(commands, environment)?;
                Ok(State::All(generators(commands, &context)?))
            }
            Command::Variable { .. } => {
                let other = Self::new(Rc::clone(&self.command), &self.context)?;
                Ok(State::Other(Box::new(other)))
            }
            Command::Wrap { wrapper, inner } => {
                let generator =
                    |command: &Command| Self::new(Rc::new(command.clone()), &self.context);
                Ok(State::Wrap(Box::new((
                    generator(wrapper)?,
                    generator(inner)?,
                ))))
            }
            Command::Variant(variant) => self.start_variant(variant, environment),
            Command::Wildcard(wildcard) => self.start_wildcard(wildcard, environment),
        }
    }

    fn start_variant(
        &self,
        variant: &Variant,
        environment: &mut Environment<'_>,
    ) -> Result<State, DynamicPromptError> {
        if let [(_, Command::Wildcard(wildcard))] = &variant.options[..] {
            let context = self.context.deeper()?;
            let (path, options) = variant_of_wildcard(wildcard, variant, &context, environment)?;
            if options.options.is_empty() {
                return Ok(State::Constant(missing(&path)));
            }
            let inner = Self {
                command: Rc::new(Command::Literal(String::new())),
                context,
                state: State::Fresh,
            };
            return inner.start_variant(&options, environment);
        }
        if self.context.method == Method::Cyclic {
            return self.start_turns(variant);
        }
        if let [(_, only)] = &variant.options[..] {
            let other = Self::new(Rc::new(only.clone()), &self.context)?;
            return Ok(State::Other(Box::new(other)));
        }
        Ok(State::Options(variant.clone()))
    }

    fn start_turns(&self, variant: &Variant) -> Result<State, DynamicPromptError> {
        let values: Vec<&Command> = variant.options.iter().map(|(_, value)| value).collect();
        let count = values.len();
        let mut arrangements = Vec::new();
        for bound in variant.bounds.0.min(count)..=variant.bounds.1.min(count) {
            arrange(&values, bound, &mut |arrangement| {
                arrangements.push(arrangement.iter().copied().cloned().collect::<Vec<_>>());
                arrangements.len() < MAX_ARRANGEMENTS
            });
        }
        let arrangements = arrangements
            .into_iter()
            .map(|commands| generators(commands, &self.context))
            .collect::<Result<_, _>>()?;
        Ok(State::Turns {
            arrangements,
            separator: variant.separator.clone(),
            next: 0,
        })
    }

    fn start_wildcard(
        &self,
        wildcard: &Wildcard,
        environment: &mut Environment<'_>,
    ) -> Result<State, DynamicPromptError> {
        let path = Rc::new(Command::clone(&wildcard.path));
        let path = sample_once(&path, &self.context, environment)?;
        let values = look_up(environment.wildcards, &path);
        if values.is_empty() {
            return Ok(State::Constant(missing(&path)));
        }
        if self.context.method == Method::Cyclic {
            let context = self.context.of_wildcard(wildcard)?;
            let mut arrangements = Vec::new();
            for value in &values {
                let command = Rc::new(parse(&value.text)?);
                for _ in 0..repetitions(value) {
                    let generator = Self::new(Rc::clone(&command), &context)?;
                    arrangements.push(vec![generator]);
                }
            }
            return Ok(State::Turns {
                arrangements,
                separator: String::new(),
                next: 0,
            });
        }
        let varied = values
            .windows(2)
            .any(|pair| pair[0].weight.to_bits() != pair[1].weight.to_bits());
        let cumulative = varied.then(|| cumulate(values.iter().map(|value| value.weight)));
        Ok(State::Values {
            values,
            cumulative,
            drawn: VecDeque::new(),
            context: self.context.of_wildcard(wildcard)?,
        })
    }
}

fn generators(
    commands: Vec<Command>,
    context: &Context,
) -> Result<Vec<Generator>, DynamicPromptError> {
    commands
        .into_iter()
        .map(|command| Generator::new(Rc::new(command), context))
        .collect()
}

fn next_of_all(
    parts: &mut [Generator],
    separator: &str,
    environment: &mut Environment<'_>,
) -> Result<String, DynamicPromptError> {
    let mut texts = Vec::with_capacity(parts.len());
    for part in parts {
        texts.push(part.next(environment)?.unwrap_or_default());
    }
    Ok(join(&texts, separator))
}

fn cumulate(weights: impl Iterator<Item = f64>) -> Vec<f64> {
    weights
        .scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        })
        .collect()
}

/// Draws the number of options, then the options, then a text of each.
fn draw_options(
    variant: &Variant,
    context: &Context,
    environment: &mut Environment<'_>,
) -> Result<String, DynamicPromptError> {
    let mut values: Vec<&Command> = variant.options.iter().map(|(_, value)| value).collect();
    let mut weights: Vec<f64> = variant.options.iter().map(|(weight, _)| *weight).collect();
    let low = variant.bounds.0.min(values.len());
    let high = variant.bounds.1.min(values.len());
    let count = environment.random.between(low, high);
    let mut chosen = Vec::with_capacity(count);
    for _ in 0..count {
        let drawn = environment
            .random
            .weighted(&cumulate(weights.iter().copied()))
            .ok_or(DynamicPromptError::NoWeight)?;
        let value = values[drawn];
        // Python removes the first equal option, and the first equal weight wherever that stands.
        let option = values
            .iter()
            .position(|other| *other == value)
            .unwrap_or(drawn);
        let weight = weights
            .iter()
            .position(|weight| weight.to_bits() == weights[option].to_bits())
            .unwrap_or(option);
        weights.remove(weight);
        values.remove(option);
        chosen.push(value.clone());
    }
    next_of_all(
        &mut generators(chosen, context)?,
        &variant.separator,
        environment,
    )
}

/// Draws a value; with weights, ten ahead.
fn draw_value(
    values: &[WildcardValue],
    cumulative: Option<&[f64]>,
    drawn: &mut VecDeque<usize>,
    context: &Context,
    environment: &mut Environment<'_>,
) -> Result<Option<String>, DynamicPromptError> {
    for _ in 0..MAX_EMPTY_VALUES {
        let index = if let Some(cumulative) = cumulative {
            if drawn.is_empty() {
                for _ in 0..10 {
                    let index = environment.random.weighted(cumulative);
                    drawn.push_back(index.ok_or(DynamicPromptError::NoWeight)?);
                }
            }
            drawn.pop_front().unwrap_or(0)
        } else {
            environment.random.below(values.len())
        };
        let text = &values[index].text;
        if !text.is_empty() {
            let command = Rc::new(parse(text)?);
            return sample_once(&command, context, environment).map(Some);
        }
    }
    Ok(None)
}

/// All ordered selections of `count` of the values, equal ones never together; stops when `emit`
/// answers false.
pub(super) fn arrange<'a>(
    values: &[&'a Command],
    count: usize,
    emit: &mut dyn FnMut(&[&'a Command]) -> bool,
) -> bool {
    fn go<'a>(
        values: &[&'a Command],
        count: usize,
        chosen: &mut Vec<&'a Command>,
        emit: &mut dyn FnMut(&[&'a Command]) -> bool,
    ) -> bool {
        if count == 0 {
            return emit(chosen);
        }
        // A value that leaves too few others can begin no selection.
        for &value in values {
            let others: Vec<&Command> = values
                .iter()
                .copied()
                .filter(|other| *other != value)
                .collect();
            if others.len() + 1 < count {
                continue;
            }
            chosen.push(value);
            let go_on = go(&others, count - 1, chosen, emit);
            chosen.pop();
            if !go_on {
                return false;
            }
        }
        true
    }
    go(values, count, &mut Vec::new(), emit)
}
