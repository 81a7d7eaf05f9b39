//! Running out of memory, as an error that says so.
//!
//! What runs out is a GPU's memory, which Burn tells by a panic, or that of the process, where Rust ends the program at
//! the allocation that fails. A system that kills the process instead leaves nobody to say anything.

use std::alloc::{GlobalAlloc, Layout, System};
use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;
#[cfg(unix)]
use std::{sync::atomic::AtomicBool, thread};

#[cfg(unix)]
use crate::process;

/// There was not enough memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OutOfMemory(String);

/// What is said and done where memory runs out, while [`guard`] runs something.
static LAST_WORDS: AtomicPtr<LastWords> = AtomicPtr::new(null_mut());

/// What a process says and does where its own memory runs out. Nothing of it may need more.
#[derive(Clone, Debug)]
pub struct LastWords {
    /// What it says, with the line's end.
    pub line: String,
    /// How long it leaves others to say it first.
    pub after: Duration,
    /// What ends the process, and those that it computes with.
    pub end: fn() -> !,
}

impl LastWords {
    /// A process alone says its error, and ends with exit code 1.
    pub fn of_one_alone(error: &str) -> Self {
        Self { line: format!("error: {error}\n"), after: Duration::ZERO, end: exit }
    }
}

/// Ends the process at once, with exit code 1.
pub fn exit() -> ! {
    #[cfg(unix)]
    {
        // SAFETY: it runs no code of this program.
        unsafe { libc::_exit(1) }
    }
    #[cfg(not(unix))]
    std::process::exit(1)
}

/// What a panic said of memory.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Runs something that may need more memory than there is. If a GPU's runs out, that is an error, and no panic is
/// printed. If the process's own does, and its allocator is [`Reporting`], it ends with its last words.
///
/// One call at a time: a second one takes the first one's place.
///
/// # Errors
///
/// If a GPU has no memory left.
pub fn guard<R>(last_words: LastWords, run: impl FnOnce() -> R) -> Result<R, OutOfMemory> {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(install_hook);
    // Never freed: another thread may have come to read it by the time that this one is done.
    LAST_WORDS.store(Box::leak(Box::new(last_words)), Ordering::Release);
    let ended = panic::catch_unwind(AssertUnwindSafe(run));
    LAST_WORDS.store(null_mut(), Ordering::Release);
    match (ended, PANIC.lock().unwrap_or_else(PoisonError::into_inner).take()) {
        (Ok(result), _) => Ok(result),
        (Err(payload), Some(reason)) => {
            // It may follow from the first, and may have nothing to do with it, where somebody caught that.
            let then = text(&*payload).filter(|text| about_memory(text).is_none());
            Err(OutOfMemory(match then {
                Some(then) => format!("{reason}; and then: {then}"),
                None => reason,
            }))
        }
        (Err(payload), None) => panic::resume_unwind(payload),
    }
}

/// Keeps panics about memory, and what follows from them on other threads, from being printed while [`guard`] runs.
fn install_hook() {
    let others = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !LAST_WORDS.load(Ordering::Acquire).is_null() {
            let mut found = PANIC.lock().unwrap_or_else(PoisonError::into_inner);
            if found.is_none() {
                *found = text(info.payload()).and_then(about_memory);
            }
            if found.is_some() {
                return;
            }
        }
        others(info);
    }));
}

fn text(payload: &dyn Any) -> Option<&str> {
    payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
}

/// The line of a message that says that there is no memory: CubeCL's, or libtorch's.
fn about_memory(text: &str) -> Option<String> {
    const SIGNS: [&str; 6] = [
        "out of memory",
        "out-of-memory",
        "out of device memory",
        "allocate memory",
        // CubeCL's `IoError`.
        "allocate buffer of size",
        "every page size the memory tracks",
    ];
    let tells = |line: &&str| {
        let line = line.to_lowercase();
        SIGNS.iter().any(|sign| line.contains(sign))
    };
    text.lines().find(tells).map(|line| line.trim().to_owned())
}

/// The system's allocator, for programs: while [`guard`] runs something, an allocation that fails ends the process with
/// the last words that it was given.
#[derive(Clone, Copy, Debug)]
pub struct Reporting;

impl Reporting {
    fn check(&self, place: *mut u8) -> *mut u8 {
        if place.is_null() {
            end_with_message();
        }
        place
    }
}

// SAFETY: the system's allocator does all of it.
unsafe impl GlobalAlloc for Reporting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of this trait, which is the same.
        self.check(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        self.check(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        self.check(unsafe { System.realloc(place, layout, size) })
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }
}

/// Ends the process, if there is something to say. Nothing is allocated here.
#[cfg(unix)]
#[cold]
fn end_with_message() {
    static IS_SAID: AtomicBool = AtomicBool::new(false);
    let last_words = LAST_WORDS.load(Ordering::Acquire);
    // SAFETY: what `guard` puts there is never freed.
    let Some(LastWords { line, after, end }) = (unsafe { last_words.as_ref() }) else { return };
    while IS_SAID.swap(true, Ordering::AcqRel) {
        // Another thread says it, and ends the process.
        thread::sleep(Duration::from_secs(1));
    }
    process::end_at_sigterm();
    thread::sleep(*after);
    // SAFETY: the line is in memory as long as it says.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
    end()
}

#[cfg(not(unix))]
fn end_with_message() {}

#[cfg(test)]
mod tests {
    use super::*;

    /// CubeCL's words, also where the thread that computes has them and the caller only sees that it is gone; and
    /// libtorch's.
    #[test]
    fn a_panic_about_memory_is_an_error() {
        let words = || LastWords::of_one_alone("none");
        let fails = |text: &'static str| guard(words(), || -> u8 { panic!("{text}") });
        let error = fails("the loss: out of device memory allocating 123 bytes\nbacktrace");
        let expected = "the loss: out of device memory allocating 123 bytes";
        assert_eq!(error.unwrap_err().to_string(), expected);
        let error = fails("\n can't allocate memory: you tried to allocate 5 bytes.");
        assert!(error.unwrap_err().to_string().starts_with("can't allocate"));
        for error in [
            "can't allocate buffer of size: 5",
            "Can't allocate 5 bytes: every page size the memory tracks still holds live allocations",
        ] {
            assert_eq!(fails(error).unwrap_err().to_string(), error);
        }
        let elsewhere = guard(words(), || {
            let thread = std::thread::spawn(|| panic!("An out-of-memory error happened"));
            thread.join().expect("the device's thread")
        });
        let error = elsewhere.unwrap_err().to_string();
        let begin = "An out-of-memory error happened; and then: the device's thread: ";
        assert!(error.starts_with(begin), "{error}");
        assert_eq!(guard(words(), || 7), Ok(7));
        let other = panic::catch_unwind(|| guard(words(), || panic!("something else")));
        assert_eq!(other.unwrap_err().downcast_ref::<&str>(), Some(&"something else"));
        let allocated = panic::catch_unwind(|| guard(words(), || panic!("can't allocate a name")));
        assert!(allocated.is_err());
        // Somebody tried whether it fits, and went on.
        let tried = || -> u8 {
            let _ = panic::catch_unwind(|| panic!("out of memory"));
            panic!("something else")
        };
        let error = guard(words(), tried).unwrap_err().to_string();
        assert_eq!(error, "out of memory; and then: something else");
    }
}
