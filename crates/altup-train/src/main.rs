//! `altup`: pre-trains AltUp T5 models and works with them.

mod cli;

use altup_train::out_of_memory::Reporting;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: Reporting = Reporting;

fn main() -> ExitCode {
    keep_burn_off_the_gpu();
    match cli::run() {
        Ok(code) => code,
        Err(error) => {
            cli::output::error(&error);
            ExitCode::FAILURE
        }
    }
}

/// Burn makes a few small tensors, such as an optimizer's numbers while they are read, on a default device of
/// its own: the first GPU backend that is compiled in, whether or not its driver runs. A run on the CPU
/// needs no driver.
fn keep_burn_off_the_gpu() {
    const VARIABLE: &str = "BURN_DEVICE";
    let cpu = match (cfg!(feature = "flex"), cfg!(feature = "ndarray")) {
        (true, _) => "flex",
        (false, true) => "ndarray",
        (false, false) => return,
    };
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var(VARIABLE, cpu) };
    }
}
