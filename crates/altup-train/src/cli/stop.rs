//! Signals that end a run so that it can be resumed.

use anyhow::Context;
use std::convert::Infallible;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The exit code of a run that was told to stop and can be resumed: `EX_TEMPFAIL` of sysexits.h. It is a
/// failure, so that `altup train … && altup evaluate …` doesn't go on with half a run.
pub(super) const STOPPED: u8 = 75;

/// Signals that come so soon behind the first ask for the same: a terminal that is closed sends SIGHUP twice, by its
/// shell and by the system, and `timeout` and other wrappers signal a process and then its group.
const SAME_REQUEST: Duration = Duration::from_secs(2);

/// Listens for the signals that stop a run: SIGINT (Ctrl-C), SIGTERM, SIGHUP, and SIGUSR1, which mpirun and
/// batch systems send ahead of time. One that the process was started to ignore, as by `nohup`, stays
/// ignored.
#[derive(Clone)]
pub(super) struct Stop {
    /// Set by the first signal once the run is training.
    flag: Arc<AtomicBool>,
    /// Whether a signal ends the process at once: there is nothing to save.
    at_once: Arc<AtomicBool>,
    /// What is said then.
    message: Arc<Mutex<String>>,
}

/// What a signal asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// That the run saves itself and ends.
    ToStop,
    /// What the signal before it has asked for.
    TheSame,
    /// That the process ends now.
    ToEnd,
}

/// The signals so far.
#[derive(Default)]
struct Signals {
    first: Option<Instant>,
}

impl Signals {
    /// What a signal asks for that comes `now`. `at_once` is whether there is nothing to save.
    fn heed(&mut self, now: Instant, at_once: bool) -> Asked {
        match self.first {
            Some(first) if now.saturating_duration_since(first) < SAME_REQUEST => Asked::TheSame,
            None if !at_once => {
                self.first = Some(now);
                Asked::ToStop
            }
            _ => Asked::ToEnd,
        }
    }
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
        let Ok(()) = self.around(message, || Ok::<_, Infallible>(()));
    }

    /// Makes a change, after which a signal that ends the process at once says `message`. One that comes meanwhile waits,
    /// so that what is said of the change is true.
    pub(super) fn around<T, E>(
        &self,
        message: String,
        change: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let mut said = self.message.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change()?;
        if !said.is_empty() {
            *said = message;
        }
        Ok(changed)
    }

    /// From now on, the first signal sets the flag that is returned, and a later one ends the process at
    /// once.
    pub(super) fn flag(&self) -> &AtomicBool {
        self.at_once.store(false, Ordering::SeqCst);
        &self.flag
    }

    /// From now on, a signal ends the process at once again, with `message`. Whether one has come before.
    pub(super) fn end_at_once(&self, message: String) -> bool {
        self.say(message);
        self.at_once.store(true, Ordering::SeqCst);
        self.flag.load(Ordering::SeqCst)
    }

    /// Does what a signal asks for that comes now.
    fn heed(&self, signals: &mut Signals) {
        match signals.heed(Instant::now(), self.at_once.load(Ordering::SeqCst)) {
            Asked::ToStop => self.flag.store(true, Ordering::SeqCst),
            Asked::TheSame => {}
            Asked::ToEnd => {
                let message = self.message.lock().unwrap_or_else(PoisonError::into_inner);
                if !self.flag.load(Ordering::SeqCst) && !message.is_empty() {
                    super::output::note(&message);
                }
                std::process::exit(STOPPED.into());
            }
        }
    }

    #[cfg(unix)]
    fn start(&self) -> std::io::Result<()> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
        let wanted = [SIGINT, SIGTERM, SIGHUP, SIGUSR1];
        let heeded = wanted.into_iter().filter(|&signal| !altup_train::process::ignores(signal));
        let mut caught = signal_hook::iterator::Signals::new(heeded)?;
        let stop = self.clone();
        let wait = move || {
            let mut signals = Signals::default();
            caught.forever().for_each(|_| stop.heed(&mut signals));
        };
        std::thread::Builder::new().name("signals".into()).spawn(wait).map(drop)
    }

    /// Here nothing waits for signals: they are looked for.
    #[cfg(not(unix))]
    fn start(&self) -> std::io::Result<()> {
        use signal_hook::consts::{SIGINT, SIGTERM};
        const EVERY: Duration = Duration::from_millis(20);
        let came = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&came))?;
        }
        let stop = self.clone();
        let wait = move || {
            let mut signals = Signals::default();
            loop {
                if came.swap(false, Ordering::SeqCst) {
                    stop.heed(&mut signals);
                }
                std::thread::sleep(EVERY);
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(wait).map(drop)
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

    #[test]
    fn what_is_said_of_a_change_that_failed_stays() {
        let message = Arc::new(Mutex::new("as it was".to_owned()));
        let stop = Stop { flag: Arc::default(), at_once: Arc::default(), message };
        assert_eq!(stop.around("changed".into(), || Err::<(), _>("disk full")), Err("disk full"));
        assert_eq!(*stop.message.lock().unwrap(), "as it was");
        let changed = stop.around("changed".into(), || {
            // Whoever would say something now waits.
            Ok::<_, Infallible>(stop.message.try_lock().is_err())
        });
        assert_eq!(changed, Ok(true));
        assert_eq!(*stop.message.lock().unwrap(), "changed");
    }

    #[test]
    fn signals_within_two_seconds_are_one_request() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut signals = Signals::default();
        assert_eq!(signals.heed(at(0), false), Asked::ToStop);
        for soon in [0, 10, 1999] {
            assert_eq!(signals.heed(at(soon), false), Asked::TheSame, "{soon} ms");
        }
        assert_eq!(signals.heed(at(2000), false), Asked::ToEnd);
        // Also where there is nothing left to save by then.
        let mut signals = Signals::default();
        assert_eq!(signals.heed(at(0), false), Asked::ToStop);
        assert_eq!(signals.heed(at(10), true), Asked::TheSame);
        // Before there is anything to save.
        assert_eq!(Signals::default().heed(at(0), true), Asked::ToEnd);
    }
}
