//! What commands print on their standard output.

use std::fmt::Display;
use std::io::Write as _;

use serde::Serialize;

use super::exit::{Exit, Failure};

/// Prints a line. A reader that has seen enough of it is no failure.
pub(super) fn say(line: impl Display) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Prints a value as JSON.
///
/// # Errors
/// [`Exit::Internal`] for what can't be JSON: a path that is not UTF-8.
pub(super) fn say_json(value: &impl Serialize) -> Result<(), Failure> {
    match serde_json::to_string_pretty(value) {
        Ok(text) => say(text),
        Err(error) => return Err(Failure::new(Exit::Internal, error.to_string())),
    }
    Ok(())
}
