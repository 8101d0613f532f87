//! What the server takes from environment variables, read once at start.

use std::path::PathBuf;

/// The variables that matter, with A1111's names where A1111 has them.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// `COMMANDLINE_ARGS`: further flags, split as a shell splits words.
    pub commandline_args: String,
    /// `IGNORE_CMD_ARGS_ERRORS` is set: unknown flags are ignored.
    pub ignore_flag_errors: bool,
    /// `SD_WEBUI_RESTART` is set: a launcher starts the server again after it ends.
    pub restartable: bool,
    /// `ORT_DYLIB_PATH`: the ONNX Runtime library.
    pub ort_library: Option<PathBuf>,
    /// `ANCESTRAL_LOG` or `RUST_LOG`: a filter for log lines.
    pub log_filter: Option<String>,
    /// `ANCESTRAL_PORT` for `--port` and so on: the flag's name and its value.
    pub flags: Vec<(String, String)>,
    /// `ANCESTRAL_WEBHOOK_SECRET`: the key that signs messages to webhooks.
    pub webhook_secret: String,
}

impl Environment {
    /// The variables of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            commandline_args: text("COMMANDLINE_ARGS").unwrap_or_default(),
            ignore_flag_errors: text("IGNORE_CMD_ARGS_ERRORS").is_some(),
            restartable: text("SD_WEBUI_RESTART").is_some(),
            ort_library: text("ORT_DYLIB_PATH").map(PathBuf::from),
            log_filter: text("ANCESTRAL_LOG").or_else(|| text("RUST_LOG")),
            flags: flags_of(std::env::vars()),
            webhook_secret: text("ANCESTRAL_WEBHOOK_SECRET").unwrap_or_default(),
        }
    }
}

/// What begins with `ANCESTRAL_`, but for the variables that are no flags.
fn flags_of(variables: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    const NO_FLAGS: [&str; 2] = ["LOG", "WEBHOOK_SECRET"];
    let mut flags: Vec<(String, String)> = variables
        .filter_map(|(name, value)| {
            let name = name.strip_prefix("ANCESTRAL_")?;
            let is_flag = !NO_FLAGS.contains(&name);
            is_flag.then(|| (name.to_lowercase().replace('_', "-"), value))
        })
        .collect();
    flags.sort();
    flags
}
