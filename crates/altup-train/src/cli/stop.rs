//! Signals that end a run so that it can be resumed.

use anyhow::Context;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The exit code of a run that was told to stop and can be resumed: `EX_TEMPFAIL` of sysexits.h. It is a
/// failure, so that `altup train … && altup evaluate …` doesn't go on with half a run.
pub(super) const STOPPED: u8 = 75;

/// Listens for the signals that stop a run: SIGINT (Ctrl-C), SIGTERM, SIGHUP, and SIGUSR1, which mpirun and
/// batch systems send ahead of time. One that the process was started to ignore, as by `nohup`, stays
/// ignored.
pub(super) struct Stop {
    /// Set by the first signal once the run is training.
    flag: Arc<AtomicBool>,
    /// Whether a signal ends the process at once: there is nothing to save.
    at_once: Arc<AtomicBool>,
    /// What is said then.
    message: Arc<Mutex<String>>,
}

impl Stop {
    /// From now on, a signal ends the process at once, with `message` on standard error.
    pub(super) fn listen(message: String) -> anyhow::Result<Self> {
        let at_once = Arc::new(AtomicBool::new(true));
        let stop = Self { flag: Arc::default(), at_once, message: Arc::new(Mutex::new(message)) };
        stop.start().context("cannot listen for signals")?;
        Ok(stop)
    }

    /// From now on, a signal that ends the process at once says `message`, unless it was to say nothing.
    pub(super) fn say(&self, message: String) {
        let mut said = self.message.lock().unwrap_or_else(PoisonError::into_inner);
        if !said.is_empty() {
            *said = message;
        }
    }

    /// From now on, the first signal sets the flag that is returned, and a second one ends the process at
    /// once.
    pub(super) fn flag(&self) -> &AtomicBool {
        self.at_once.store(false, Ordering::SeqCst);
        &self.flag
    }

    #[cfg(unix)]
    fn start(&self) -> std::io::Result<()> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
        let wanted = [SIGINT, SIGTERM, SIGHUP, SIGUSR1];
        let heeded = wanted.into_iter().filter(|&signal| !altup_train::process::ignores(signal));
        let mut signals = signal_hook::iterator::Signals::new(heeded)?;
        let (flag, at_once) = (Arc::clone(&self.flag), Arc::clone(&self.at_once));
        let message = Arc::clone(&self.message);
        let wait = move || {
            for _ in signals.forever() {
                if at_once.swap(true, Ordering::SeqCst) {
                    let message = message.lock().unwrap_or_else(PoisonError::into_inner);
                    if !flag.load(Ordering::SeqCst) && !message.is_empty() {
                        super::output::note(&message);
                    }
                    std::process::exit(STOPPED.into());
                }
                flag.store(true, Ordering::SeqCst);
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(wait).map(drop)
    }

    #[cfg(not(unix))]
    fn start(&self) -> std::io::Result<()> {
        use signal_hook::consts::{SIGINT, SIGTERM};
        use signal_hook::flag::{register, register_conditional_shutdown};
        for signal in [SIGINT, SIGTERM] {
            register_conditional_shutdown(signal, STOPPED.into(), Arc::clone(&self.at_once))?;
            register(signal, Arc::clone(&self.flag))?;
            register(signal, Arc::clone(&self.at_once))?;
        }
        Ok(())
    }
}

/// What a stopped run ends the program with.
pub(super) fn exit_code() -> ExitCode {
    ExitCode::from(STOPPED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_changes_unless_it_is_nothing() {
        for (message, expected) in [("as it was", "go on"), ("", "")] {
            let message = Arc::new(Mutex::new(message.to_owned()));
            let stop = Stop { flag: Arc::default(), at_once: Arc::default(), message };
            stop.say("go on".into());
            assert_eq!(*stop.message.lock().unwrap(), expected);
        }
    }
}
