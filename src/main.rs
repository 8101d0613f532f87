//! The command line: parses it and hands over to [`ancestral::app`].

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use ancestral::app;
use ancestral::config::{Command, Config, ConfigError, Environment};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let environment = Environment::of_process();
    let command = match Command::parse(std::env::args_os(), &environment) {
        Ok(command) => command,
        // `--help`, `--version` and flags that clap refuses, in its own form and with its status.
        Err(ConfigError::Flags(error)) => error.exit(),
        Err(error) => return fail(&error),
    };
    let outcome = match command {
        Command::Serve(config) => {
            log_to_standard_error(&config);
            app::serve(*config).map_err(anyhow::Error::from)
        }
        Command::Export {
            checkpoint,
            folder,
            config,
        } => {
            log_to_standard_error(&config);
            app::export(&checkpoint, &folder, &config)
        }
        Command::Inspect { file, config } => app::inspect(&file, &config),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(error.as_ref()),
    }
}

/// One sentence on standard error and a status that is not 0.
fn fail(error: &dyn std::error::Error) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "ancestral: {error}");
    ExitCode::FAILURE
}

fn log_to_standard_error(config: &Config) {
    let filter = EnvFilter::try_new(&config.log_filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if config.log_json {
        lines.json().init();
    } else {
        lines.init();
    }
}
