//! A command that all replicas of a run do together.

use altup_train::process::{self, Cores};
use altup_train::replicas::{Agreement, Launch, Place, Replicas};
use altup_train::run_record::{BURN_VERSION, NUMERICS};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use super::output;

/// Joins the processes that were started with this one, if any, and lets all of them do `command`. What goes wrong on one
/// ends all: an error that one kept to itself would leave the others waiting.
pub(super) fn together(
    command: impl FnOnce(&Replicas) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    let Some(launch) = Launch::here() else {
        process::set_up();
        return command(&Replicas::lone());
    };
    let replicas = Replicas::join(launch.clone());
    let replicas = replicas.unwrap_or_else(|error| launch.refuse(&error.to_string()));
    std::panic::set_hook(Box::new(|panic| {
        // It is said with the replica's name, once it has reached the end of the stack.
        let mut first = PANIC.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| panic.to_string().replace('\n', " "));
    }));
    // Here, and not inside: when the engine is dropped, it waits for the others.
    let command = || {
        replicas.agree(&same_program())?;
        share_cores(&replicas);
        command(&replicas)
    };
    match catch_unwind(AssertUnwindSafe(command)) {
        Ok(Ok(code)) => {
            replicas.meet("the end of the run");
            Ok(code)
        }
        Ok(Err(error)) => replicas.end_all(&format!("{error:#}")),
        Err(panic) => replicas.end_all(&panicked(&*panic)),
    }
}

/// What all replicas must have alike before they tell each other anything else.
fn same_program() -> Agreement {
    let version = env!("CARGO_PKG_VERSION");
    Agreement::default()
        .and("version", format!("altup {version}, Burn {BURN_VERSION}, arithmetic {NUMERICS}"))
}

/// Starts as many threads as this replica has cores for.
fn share_cores(replicas: &Replicas) {
    let Place { rank, machine, .. } = replicas.place();
    let cores = replicas.gather(Cores::here(machine), "the cores that they have");
    let idle = process::set_up_among(rank, &cores);
    if let Some(warning) = idle.filter(|_| replicas.is_first()) {
        output::note(&warning);
    }
}

/// Refuses to be one of several processes that were started together: `what` starts its own.
pub(super) fn refuse_several(what: &str) {
    if let Some(launch) = Launch::here() {
        let Launch { size, variable, .. } = launch;
        launch.refuse(&format!(
            "{size} processes of this program were started together ({variable}), and {what} starts its own: start it \
             alone"
        ));
    }
}

/// The first panic of this process.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

fn panicked(panic: &(dyn Any + Send)) -> String {
    let first = PANIC.lock().unwrap_or_else(PoisonError::into_inner).take();
    let text = || panic.downcast_ref::<&str>().copied().unwrap_or("a panic").to_owned();
    first.unwrap_or_else(text)
}

/// What all replicas must have alike before they look at anything else.
pub(super) fn agreement_on(command: &str) -> Agreement {
    Agreement::default().and("command", command)
}
