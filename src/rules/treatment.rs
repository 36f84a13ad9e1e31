//! How one file is treated, all told: what the rules say of it, and the mount's own settings for
//! the rest.

use super::{Policy, Settings, Validation};
use crate::config::{DEFAULT_LOCK_TIMEOUT, Durability, OnConflict, Readers};
use std::time::Duration;

/// What a mount does where no rule says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// The longest an open waits.
    pub lock_timeout: Duration,
    /// What an open for reading does while a version is being written.
    pub readers: Readers,
    /// How much a commit waits for the disk.
    pub durability: Durability,
    /// What a commit does that meets a change made behind the mount's back.
    pub on_conflict: OnConflict,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            lock_timeout: DEFAULT_LOCK_TIMEOUT,
            readers: Readers::default(),
            durability: Durability::default(),
            on_conflict: OnConflict::default(),
        }
    }
}

/// How a file is treated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Treatment {
    /// Its policy; `None`: no rule says, so it is atomic, and opens with `O_APPEND` append.
    pub policy: Option<Policy>,
    /// What its versions must be.
    pub validate: Validation,
    /// The longest an open of it waits.
    pub lock_timeout: Duration,
    /// What an open for reading does while a version of it is being written.
    pub readers: Readers,
    /// How much a commit of it waits for the disk.
    pub durability: Durability,
    /// What a commit does that meets a change made behind the mount's back.
    pub on_conflict: OnConflict,
}

impl Treatment {
    /// What the rules say, and the rest from the mount.
    pub fn new(said: Settings, defaults: &Defaults) -> Self {
        Self {
            policy: said.policy,
            validate: said.validate.unwrap_or(Validation::None),
            lock_timeout: said.lock_timeout.unwrap_or(defaults.lock_timeout),
            readers: said.readers.unwrap_or(defaults.readers),
            durability: said.durability.unwrap_or(defaults.durability),
            on_conflict: said.on_conflict.unwrap_or(defaults.on_conflict),
        }
    }

    /// Is the file opened as it is in BACKING?
    pub fn is_direct(&self) -> bool {
        self.policy == Some(Policy::Direct)
    }
}
