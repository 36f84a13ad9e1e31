//! What a mount tells of itself and of a file that is being written, by attributes that no listing shows.

use serde::{Deserialize, Serialize};

/// The extended attribute by which a mount tells who is writing a file. It is in no namespace of
/// xattr(7), so that no file of BACKING can have one of that name, and no program copies it.
pub const ATTRIBUTE: &str = "latchfs.in_flight";

/// Who is writing a file: the attribute's value, as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InFlight {
    /// The process that opened the file to write it (0 if it can't be told).
    pub pid: u32,
    /// Its name.
    pub program: String,
    /// For how long, in seconds.
    pub seconds: f64,
}

/// The extended attribute that tells whether a mount answers: asking for it fails with `ENODATA`, which
/// the daemon finds out from its memory alone. For attributes of this namespace the kernel asks
/// for no rights before, which would take further requests.
pub const ALIVE: &str = "system.latchfs.alive";
