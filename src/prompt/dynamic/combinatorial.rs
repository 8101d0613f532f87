//! Every prompt that a template stands for.

use std::collections::HashSet;
use std::rc::Rc;

use super::DynamicPromptError;
use super::random::{
    Context, Environment, Generator, Method, arrange, join, missing, repetitions, sample_once,
    variant_of_wildcard, wrap,
};
use super::template::{Command, Variant, Wildcard, parse};
use super::wildcards::look_up;

type Emit<'e> = dyn FnMut(&mut Environment<'_>, String) -> Result<bool, DynamicPromptError> + 'e;
type EmitAll<'e> =
    dyn FnMut(&mut Environment<'_>, &[String]) -> Result<bool, DynamicPromptError> + 'e;

/// The prompts of `command`, up to `limit`.
pub(super) fn list(
    command: &Rc<Command>,
    limit: usize,
    environment: &mut Environment<'_>,
) -> Result<Vec<String>, DynamicPromptError> {
    let mut prompts = Vec::new();
    if limit > 0 {
        let context = Context::new(Method::Combinatorial);
        each(command, &context, environment, &mut |_, prompt| {
            prompts.push(prompt);
            Ok(prompts.len() < limit)
        })?;
    }
    Ok(prompts)
}

/// Hands every text of `command` to `emit` until that answers false; answers whether to go on.
fn each(
    command: &Command,
    context: &Context,
    environment: &mut Environment<'_>,
    emit: &mut Emit<'_>,
) -> Result<bool, DynamicPromptError> {
    environment.step(|environment| each_of(command, context, environment, emit))
}

fn each_of(
    command: &Command,
    context: &Context,
    environment: &mut Environment<'_>,
    emit: &mut Emit<'_>,
) -> Result<bool, DynamicPromptError> {
    match command {
        Command::Literal(text) => emit(environment, text.clone()),
        Command::Assignment { .. } => emit(environment, String::new()),
        Command::Sequence(commands) => each_sequence(commands, context, environment, emit),
        Command::Variable { name, default } => {
            let value = context.variable(name, default.as_deref())?;
            each(&value, &context.deeper()?, environment, emit)
        }
        Command::Wrap { wrapper, inner } => each(
            wrapper,
            context,
            environment,
            &mut |environment, wrapper| {
                each(inner, context, environment, &mut |environment, inner| {
                    emit(environment, wrap(&wrapper, &inner))
                })
            },
        ),
        Command::Variant(_) | Command::Wildcard(_)
            if context.method_of(command) != Method::Combinatorial =>
        {
            let text = sample_once(&Rc::new(command.clone()), context, environment)?;
            emit(environment, text)
        }
        Command::Variant(variant) => each_variant(variant, context, environment, emit),
        Command::Wildcard(wildcard) => each_wildcard(wildcard, context, environment, emit),
    }
}

/// One piece of a sequence.
enum Piece<'c> {
    /// All its texts.
    Listed(&'c Command),
    /// Its next text for every prompt.
    Drawn(usize),
}

fn each_sequence(
    commands: &[Command],
    context: &Context,
    environment: &mut Environment<'_>,
    emit: &mut Emit<'_>,
) -> Result<bool, DynamicPromptError> {
    let (commands, context) = context.take_assignments(commands, environment)?;
    let mut generators = Vec::new();
    let mut pieces = Vec::with_capacity(commands.len());
    for command in &commands {
        if context.method_of(command) == Method::Combinatorial {
            pieces.push(Piece::Listed(command));
        } else {
            pieces.push(Piece::Drawn(generators.len()));
            generators.push(Generator::new(Rc::new(command.clone()), &context)?);
        }
    }
    each_tail(
        &pieces,
        &mut generators,
        &context,
        environment,
        &mut |environment, texts| {
            let texts: Vec<String> = texts.iter().rev().cloned().collect();
            emit(environment, join(&texts, ""))
        },
    )
}

/// The texts of `pieces`, last first.
fn each_tail(
    pieces: &[Piece<'_>],
    generators: &mut [Generator],
    context: &Context,
    environment: &mut Environment<'_>,
    emit: &mut EmitAll<'_>,
) -> Result<bool, DynamicPromptError> {
    let Some((first, rest)) = pieces.split_first() else {
        return emit(environment, &[]);
    };
    match first {
        Piece::Listed(command) => {
            let generators = &mut *generators;
            each(command, context, environment, &mut |environment, text| {
                each_tail(
                    rest,
                    generators,
                    context,
                    environment,
                    &mut |environment, tail| {
                        let mut texts = tail.to_vec();
                        texts.push(text.clone());
                        emit(environment, &texts)
                    },
                )
            })
        }
        Piece::Drawn(index) => {
            // The rest is drawn before this, as in the library.
            let (before, after) = generators.split_at_mut(index + 1);
            let Some(own) = before.last_mut() else {
                return Ok(true);
            };
            each_after(
                rest,
                after,
                index + 1,
                context,
                environment,
                &mut |environment, tail| {
                    let mut texts = tail.to_vec();
                    texts.push(own.next(environment)?.unwrap_or_default());
                    emit(environment, &texts)
                },
            )
        }
    }
}

/// [`each_tail`] with generators counted from `offset`.
fn each_after(
    pieces: &[Piece<'_>],
    generators: &mut [Generator],
    offset: usize,
    context: &Context,
    environment: &mut Environment<'_>,
    emit: &mut EmitAll<'_>,
) -> Result<bool, DynamicPromptError> {
    let pieces: Vec<Piece<'_>> = pieces
        .iter()
        .map(|piece| match piece {
            Piece::Listed(command) => Piece::Listed(command),
            Piece::Drawn(index) => Piece::Drawn(index - offset),
        })
        .collect();
    each_tail(&pieces, generators, context, environment, emit)
}

fn each_variant(
    variant: &Variant,
    context: &Context,
    environment: &mut Environment<'_>,
    emit: &mut Emit<'_>,
) -> Result<bool, DynamicPromptError> {
    if let [(_, Command::Wildcard(wildcard))] = &variant.options[..] {
        let context = context.deeper()?;
        let (path, options) = variant_of_wildcard(wildcard, variant, &context, environment)?;
        if options.options.is_empty() {
            return emit(environment, missing(&path));
        }
        return each_variant(&options, &context, environment, emit);
    }
    let values: Vec<&Command> = variant.options.iter().map(|(_, value)| value).collect();
    let mut seen: HashSet<Vec<String>> = HashSet::new();
    let (low, high) = (
        variant.bounds.0.min(values.len()),
        variant.bounds.1.min(values.len()),
    );
    for bound in low..=high {
        let mut outcome = Ok(true);
        arrange(&values, bound, &mut |arrangement| {
            outcome = each_combination(
                arrangement,
                context,
                environment,
                &mut |environment, texts| {
                    let texts: Vec<String> = texts.iter().rev().cloned().collect();
                    let distinct: HashSet<&String> = texts.iter().collect();
                    if distinct.len() != bound || !seen.insert(texts.clone()) {
                        return Ok(true);
                    }
                    emit(environment, join(&texts, &variant.separator))
                },
            );
            matches!(outcome, Ok(true))
        });
        if !outcome? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The texts of every combination of the commands' texts, last first.
fn each_combination(
    commands: &[&Command],
    context: &Context,
    environment: &mut Environment<'_>,
    emit: &mut EmitAll<'_>,
) -> Result<bool, DynamicPromptError> {
    let Some((first, rest)) = commands.split_first() else {
        return emit(environment, &[]);
    };
    each(first, context, environment, &mut |environment, text| {
        each_combination(rest, context, environment, &mut |environment, tail| {
            let mut texts = tail.to_vec();
            texts.push(text.clone());
            emit(environment, &texts)
        })
    })
}

fn each_wildcard(
    wildcard: &Wildcard,
    context: &Context,
    environment: &mut Environment<'_>,
    emit: &mut Emit<'_>,
) -> Result<bool, DynamicPromptError> {
    let path = Rc::new(Command::clone(&wildcard.path));
    let path = sample_once(&path, context, environment)?;
    let values = look_up(environment.wildcards, &path);
    if values.is_empty() {
        return emit(environment, missing(&path));
    }
    let context = context.of_wildcard(wildcard)?;
    for value in &values {
        if value.text.is_empty() {
            continue;
        }
        let command = parse(&value.text)?;
        for _ in 0..repetitions(value) {
            if !each(&command, &context, environment, emit)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}
