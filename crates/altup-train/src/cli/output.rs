//! What the command line prints: results on standard output, errors on standard error.

use serde::Serialize;
use std::io::{self, Write};

/// Prints a line of a result.
///
/// # Errors
///
/// If standard output can't be written to.
pub(crate) fn line(text: &str) -> io::Result<()> {
    unless_closed(writeln!(io::stdout(), "{text}"))
}

/// A reader that has seen enough, such as `head`, is no failure.
fn unless_closed(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => written,
    }
}

/// Prints a part of a line at once.
///
/// # Errors
///
/// As [`line()`].
pub(crate) fn piece(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout();
    unless_closed(write!(stdout, "{text}").and_then(|()| stdout.flush()))
}

/// Prints a result as one line of JSON.
///
/// # Errors
///
/// As [`line()`].
pub(crate) fn json(result: &impl Serialize) -> io::Result<()> {
    line(&serde_json::to_string(result)?)
}

/// Tells on standard error what is going on.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Prints an error with its causes, as one line where they are.
pub(crate) fn error(error: &anyhow::Error) {
    // Nothing is left to do where even this can't be written.
    let _ = writeln!(io::stderr(), "error: {error:#}");
}
