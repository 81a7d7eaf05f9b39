//! `altup`: pre-trains AltUp T5 models and works with them.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::output::error(&error);
            ExitCode::FAILURE
        }
    }
}
