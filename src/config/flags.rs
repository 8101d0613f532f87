//! The command line: A1111's 126 flags from `cmd-flags.json`, ours beside them.
//!
//! Every flag of A1111 is accepted and echoed by `GET /sdapi/v1/cmd-flags`; those with a note instead
//! of a help text in the table have no effect here. `docs/FLAGS.md` is that table for people.

use std::path::Path;
use std::sync::LazyLock;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::own_flags::OWN_FLAGS;
use super::start_config::ConfigError;

/// One flag of A1111.
#[derive(Debug, Deserialize)]
struct FlagEntry {
    /// The key of the echo, argparse's `dest`.
    dest: String,
    /// `--name`, or `-f`.
    flag: String,
    /// `<root>` and `<cwd>` stand for the data folder and the working directory.
    default: Value,
    /// The type of the echo: `bool`, `str`, `int`, `list` or `dict`.
    response_type: String,
    takes_value: bool,
    /// argparse's action: `store`, `store_true`, `store_false` or `append`.
    action: String,
    #[serde(default)]
    choices: Vec<String>,
    help: Option<String>,
    /// Why a flag has no effect here.
    note: Option<String>,
}

static FLAGS: LazyLock<Vec<FlagEntry>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("cmd-flags.json")).expect("the embedded table is well formed")
});

/// Why a command line was refused, or `--help` and `--version`, which clap treats alike.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct FlagError(#[from] clap::Error);

impl FlagError {
    /// Prints the message and ends the process, with status 0 for `--help` and `--version`.
    pub fn exit(&self) -> ! {
        self.0.exit()
    }
}

/// A parsed command line.
#[derive(Debug, Clone)]
pub struct Flags {
    matches: ArgMatches,
}

impl Flags {
    /// Parses `arguments` (the first is the program's name).
    ///
    /// # Errors
    /// When a flag is unknown or its value is missing or out of its choices; `--help` too.
    pub fn parse(arguments: &[String], ignore_errors: bool) -> Result<Self, FlagError> {
        let matches = command()
            .ignore_errors(ignore_errors)
            .try_get_matches_from(arguments)?;
        Ok(Self { matches })
    }

    /// Adds flags that stand elsewhere to `arguments`, unless the command line has them: from
    /// `ANCESTRAL_` variables, then from the file of `--flags-file`. Of both, the former wins.
    ///
    /// # Errors
    /// When the file cannot be read, or names a flag that does not exist.
    pub(super) fn complete(
        arguments: &[String],
        variables: &[(String, String)],
    ) -> Result<Vec<String>, ConfigError> {
        let command = command();
        // Only which flags are there matters here; the whole is checked when it is complete.
        let Ok(matches) = command
            .clone()
            .ignore_errors(true)
            .try_get_matches_from(arguments)
        else {
            return Ok(arguments.to_vec());
        };
        let mut known: Vec<String> = Vec::new();
        let mut complete = arguments.to_vec();
        let file = matches
            .get_one::<String>("flags-file")
            .cloned()
            .or_else(|| {
                let variable = variables.iter().find(|(name, _)| name == "flags-file");
                variable.map(|(_, value)| value.clone())
            });
        let of_variables = variables
            .iter()
            .map(|(name, value)| (name.clone(), toml::Value::String(value.clone())));
        let of_file = match &file {
            Some(path) => read_file(path)?,
            None => Vec::new(),
        };
        for (name, value) in of_variables
            .chain(of_file)
            .filter(|(name, _)| name != "flags-file")
        {
            let argument = command
                .get_arguments()
                .find(|argument| argument.get_long() == Some(&name));
            let Some(argument) = argument else {
                return Err(ConfigError::UnknownSetting { name });
            };
            let id = argument.get_id().as_str();
            let given = matches.value_source(id) == Some(ValueSource::CommandLine);
            if !given && !known.contains(&name) {
                complete.extend(words(&name, &value, argument.get_action().takes_values()));
            }
            known.push(name);
        }
        Ok(complete)
    }

    /// The value of a flag that takes one.
    #[must_use]
    pub fn value(&self, dest: &str) -> Option<&str> {
        self.matches.get_one::<String>(dest).map(String::as_str)
    }

    /// All values of a flag that may be repeated.
    #[must_use]
    pub fn values(&self, dest: &str) -> Vec<&str> {
        self.matches
            .get_many::<String>(dest)
            .map(|values| values.map(String::as_str).collect())
            .unwrap_or_default()
    }

    /// Whether a switch was given.
    #[must_use]
    pub fn given(&self, dest: &str) -> bool {
        self.matches.get_flag(dest)
    }

    /// The flags given that have no effect here, each with the reason, for the log.
    #[must_use]
    pub fn without_effect(&self) -> Vec<String> {
        FLAGS
            .iter()
            .filter_map(|entry| {
                let given = if entry.takes_value {
                    !self.values(&entry.dest).is_empty()
                } else {
                    self.given(&entry.dest)
                };
                let note = entry.note.as_ref().filter(|_| given)?;
                Some(format!("{} has no effect here: {note}", entry.flag))
            })
            .collect()
    }

    /// The subcommand and its two possible arguments.
    #[must_use]
    pub fn subcommand(&self) -> Option<(&str, &ArgMatches)> {
        self.matches.subcommand()
    }

    /// The body of `GET /sdapi/v1/cmd-flags`: every flag of A1111 with its value here. Logins are
    /// blanked, since whoever may ask would otherwise read everybody's password.
    #[must_use]
    pub fn echo(&self, root: &Path, working_directory: &Path) -> Map<String, Value> {
        FLAGS
            .iter()
            .map(|entry| {
                let value = self.echo_one(entry, root, working_directory);
                (entry.dest.clone(), value)
            })
            .collect()
    }

    fn echo_one(&self, entry: &FlagEntry, root: &Path, working_directory: &Path) -> Value {
        const SECRETS: [&str; 4] = ["api_auth", "gradio_auth", "gradio_auth_path", "ngrok"];
        let dest = entry.dest.as_str();
        if !entry.takes_value {
            let given = self.given(dest);
            return match entry.action.as_str() {
                "store_false" if given => Value::String("False".to_owned()),
                "store_true" if given => Value::Bool(true),
                _ => entry.default.clone(),
            };
        }
        let given = self.values(dest);
        if dest == "data_dir" {
            return Value::String(root.display().to_string());
        }
        if given.is_empty() {
            return replace_places(&entry.default, root, working_directory);
        }
        if SECRETS.contains(&dest) {
            return Value::String(String::new());
        }
        match entry.response_type.as_str() {
            "list" => given.into_iter().map(Value::from).collect(),
            "int" => given[0].parse::<i64>().map_or(Value::Null, Value::from),
            "dict" => serde_json::from_str(given[0]).unwrap_or(Value::Null),
            _ => Value::from(given[0]),
        }
    }
}

/// The flags of a TOML file: `port = 7860`, `listen = true`, `styles-file = ["a.csv", "b.csv"]`.
fn read_file(path: &str) -> Result<Vec<(String, toml::Value)>, ConfigError> {
    let refused = |problem: String| ConfigError::File {
        path: path.into(),
        problem,
    };
    let text = fs_err::read_to_string(path).map_err(|error| refused(error.kind().to_string()))?;
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| refused(error.message().to_owned()))?;
    Ok(table.into_iter().collect())
}

/// A setting as words of a command line.
fn words(name: &str, value: &toml::Value, takes_value: bool) -> Vec<String> {
    let flag = format!("--{name}");
    let text = |value: &toml::Value| match value {
        toml::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if !takes_value {
        let off = ["", "0", "false", "no"].contains(&text(value).to_lowercase().as_str());
        return if off { Vec::new() } else { vec![flag] };
    }
    match value {
        toml::Value::Array(items) => {
            let pair = |item| [flag.clone(), text(item)];
            items.iter().flat_map(pair).collect()
        }
        value => vec![flag, text(value)],
    }
}

/// Puts real folders where a default of the table names `<root>` or `<cwd>`.
fn replace_places(default: &Value, root: &Path, working_directory: &Path) -> Value {
    match default {
        Value::String(text) => {
            let text = text.split(" (").next().unwrap_or_default();
            Value::String(
                text.replace("<root>", &root.display().to_string())
                    .replace("<cwd>", &working_directory.display().to_string()),
            )
        }
        Value::Array(items) => items
            .iter()
            .map(|item| replace_places(item, root, working_directory))
            .collect(),
        other => other.clone(),
    }
}

fn command() -> clap::Command {
    let mut command = clap::Command::new("ancestral")
        .version(env!("CARGO_PKG_VERSION"))
        .about(env!("CARGO_PKG_DESCRIPTION"))
        .infer_long_args(true)
        .args_conflicts_with_subcommands(true)
        .subcommand(
            clap::Command::new("export")
                .about("Write a checkpoint as a folder of ONNX graphs in the diffusers layout")
                .arg(
                    Arg::new("checkpoint")
                        .required(true)
                        .value_name("CHECKPOINT"),
                )
                .arg(Arg::new("folder").required(true).value_name("DIR")),
        )
        .subcommand(
            clap::Command::new("inspect")
                .about("Say what a model file is, which family, and what it lacks")
                .arg(Arg::new("file").required(true).value_name("FILE")),
        );
    for entry in FLAGS.iter() {
        command = command.arg(argument(entry));
    }
    for own in OWN_FLAGS {
        let mut argument = Arg::new(own.name).long(own.name).help(own.help);
        argument = match own.value {
            Some(name) => argument.value_name(name),
            None => argument.action(ArgAction::SetTrue),
        };
        command = command.arg(argument);
    }
    command
}

fn argument(entry: &'static FlagEntry) -> Arg {
    let mut argument = Arg::new(entry.dest.as_str());
    argument = match entry.flag.strip_prefix("--") {
        Some(name) => argument.long(name),
        None => argument.short(entry.flag.chars().nth(1)),
    };
    argument = match &entry.help {
        Some(help) => argument.help(help.as_str()),
        None => argument
            .help(format!(
                "Accepted as A1111 does, without effect here: {}",
                entry.note.as_deref().unwrap_or_default()
            ))
            .hide_short_help(true),
    };
    argument = match (entry.action.as_str(), entry.takes_value) {
        ("append", _) => argument.action(ArgAction::Append),
        ("store", true) if entry.response_type == "list" => argument.num_args(1..),
        (_, true) => argument.action(ArgAction::Set),
        (_, false) => argument.action(ArgAction::SetTrue),
    };
    if entry.takes_value {
        argument = argument.value_name("VALUE");
        if entry.response_type == "int" {
            argument = argument.value_parser(whole_number);
        }
        if !entry.choices.is_empty() {
            argument =
                argument.value_parser(entry.choices.iter().map(String::as_str).collect::<Vec<_>>());
        }
    }
    argument
}

fn whole_number(text: &str) -> Result<String, String> {
    match text.trim().parse::<i64>() {
        Ok(_) => Ok(text.trim().to_owned()),
        Err(_) => Err(format!("{text} is no whole number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Flags {
        let mut all = vec!["ancestral".to_owned()];
        all.extend(arguments.iter().map(ToString::to_string));
        Flags::parse(&all, false).expect("accepted")
    }

    #[test]
    fn echo_has_every_flag_of_a1111_in_order() {
        let echo = parse(&["--port", "7860"]).echo(Path::new("/data"), Path::new("/here"));
        assert_eq!(echo.len(), 126);
        assert_eq!(echo.keys().next().map(String::as_str), Some("f"));
        assert_eq!(echo["port"], "7860");
        assert_eq!(echo["embeddings_dir"], "/data/embeddings");
        assert_eq!(echo["timeout_keep_alive"], 30);
    }

    #[test]
    fn echo_blanks_logins() {
        let echo = parse(&["--api-auth", "user:secret"]).echo(Path::new("/d"), Path::new("/c"));
        assert_eq!(echo["api_auth"], "");
    }

    #[test]
    fn unknown_flags_stop_the_start() {
        let arguments = ["ancestral".to_owned(), "--no-such-flag".to_owned()];
        assert!(Flags::parse(&arguments, false).is_err());
    }

    /// The words that follow the program's own arguments.
    fn completed(arguments: &[&str], variables: &[(&str, &str)]) -> Vec<String> {
        let mut all = vec!["ancestral".to_owned()];
        all.extend(arguments.iter().map(ToString::to_string));
        let variables: Vec<(String, String)> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Flags::complete(&all, &variables)
            .expect("complete")
            .split_off(all.len())
    }

    #[test]
    fn the_command_line_wins_over_variables_and_those_over_the_file() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let text = "port = 1\nlisten = true\nnowebui = false\nqueue-size = 3\nstyles-file = [\"a\", \"b\"]\n";
        fs_err::write(file.path(), text).expect("written");
        let path = file.path().display().to_string();
        let variables = [("queue-size", "4"), ("threads", "2")];
        let words = completed(&["--flags-file", &path, "--port", "9"], &variables);
        let expected = [
            "--queue-size",
            "4",
            "--threads",
            "2",
            "--listen",
            "--styles-file",
            "a",
            "--styles-file",
            "b",
        ];
        assert_eq!(words, expected);
        assert_eq!(completed(&[], &[("listen", "0")]), [""; 0]);
    }

    #[test]
    fn a_setting_that_does_not_exist_stops_the_start() {
        let variables = [("no-such-flag".to_owned(), "1".to_owned())];
        let error = Flags::complete(&["ancestral".to_owned()], &variables).unwrap_err();
        assert!(error.to_string().contains("no-such-flag"));
    }

    #[test]
    fn the_document_has_every_flag_and_what_it_does() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/FLAGS.md");
        let document = fs_err::read_to_string(path).expect("the document is there");
        let rows: Vec<&str> = document
            .lines()
            .filter(|line| line.starts_with("| `-"))
            .collect();
        let wanted: Vec<String> = FLAGS
            .iter()
            .map(|entry| {
                let effect = match (&entry.help, &entry.note) {
                    (Some(help), None) => help.clone(),
                    (None, Some(note)) => format!("none: {note}"),
                    _ => panic!("{} needs either a help text or a note", entry.flag),
                };
                format!("| `{}` | {effect} |", entry.flag)
            })
            .collect();
        assert_eq!(rows, wanted);
    }

    #[test]
    fn flags_without_effect_are_told() {
        let flags = parse(&["--xformers", "--gradio-auth", "a:b", "--listen"]);
        let told = flags.without_effect();
        assert_eq!(told.len(), 2);
        assert!(told[0].starts_with("--xformers has no effect here: "));
        assert!(told[1].contains("--api-auth"), "{told:?}");
        assert!(!told[1].contains("a:b"));
    }

    #[test]
    fn use_cpu_takes_several_names() {
        let flags = parse(&["--use-cpu", "all", "interrogate", "--no-half"]);
        assert_eq!(flags.values("use_cpu"), ["all", "interrogate"]);
        assert!(flags.given("no_half"));
    }
}
