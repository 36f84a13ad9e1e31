//! What commands print on their standard output.

use std::fmt::Display;
use std::io::Write as _;

use serde::Serialize;

use super::exit::{Exit, Failure};

/// Prints text as it is.
///
/// # Errors
/// As [`flushed`].
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    flushed(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Prints a value as JSON.
///
/// # Errors
/// [`Exit::Internal`] for what can't be JSON (a path that is not UTF-8); as [`flushed`].
pub(super) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new(Exit::Internal, format!("cannot write JSON: {error}")))?;
    print(&(text + "\n"))
}

/// Prints a line, of which nobody needs to know whether it could be read.
pub(super) fn say(line: impl Display) {
    let _ = print(&format!("{line}\n"));
}

/// What came of writing. A reader that has seen enough is no failure.
///
/// # Errors
/// [`Exit::Internal`] if standard output can't be written.
pub(super) fn flushed(result: std::io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            let message = format!("cannot write to standard output: {error}");
            Err(Failure::new(Exit::Internal, message))
        }
        _ => Ok(()),
    }
}
