//! What a mount is asked to do: the settings that the command line and rules choose.

use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// What an open for reading does while another owner's transaction is in flight on the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Readers {
    /// Wait for the complete version, at most the lock timeout.
    #[default]
    Wait,
    /// Open the last committed version at once.
    Snapshot,
}

/// How much a commit waits for the disk before `close()` returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// fsync the version, rename it into place, fsync the directory: after `close()` returned 0 a
    /// power cut cannot take the version back.
    #[default]
    Full,
    /// fsync the version and rename it into place: never torn after a power cut, may be older.
    Rename,
    /// Rename into place without any fsync: atomic for programs, not for power cuts.
    None,
}

/// What a commit does if its file was changed behind the mount's back since it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnConflict {
    /// `close()` fails with `ESTALE`; what was written is kept aside.
    #[default]
    Refuse,
    /// The commit replaces what it found.
    Win,
}

/// Settings of a mount that its configuration file has, too; `None`: not set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// The longest an open waits for its turn (writers) or for the complete version (readers).
    pub lock_timeout: Option<Duration>,
    /// What opens for reading do while a version is being written.
    pub readers: Option<Readers>,
    /// How much a commit waits for the disk.
    pub durability: Option<Durability>,
    /// How long versions that could not become the file are kept.
    pub kept_max_age: Option<Duration>,
    /// How many bytes of the disk they may take.
    pub kept_max_size: Option<u64>,
}

/// The settings of one mount, all paths absolute.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// The directory to mirror.
    pub backing: PathBuf,
    /// Where to show it.
    pub mountpoint: PathBuf,
    /// The id, in the table of mounts, of a dead mount at the mountpoint that is to be replaced. BACKING
    /// is then the current directory, since its path may lead to the dead mount.
    pub replaces: Option<u64>,
    /// The configuration file, if one was named.
    pub config: Option<PathBuf>,
    /// What was said on the command line, which wins over the configuration file.
    pub overrides: Overrides,
    /// How long an unmount waits for transactions in flight before it rolls them back.
    pub unmount_timeout: Duration,
    /// Mount read-only: nothing is written to BACKING, not even latchfs's own directory.
    pub read_only: bool,
    /// Let users other than the one who mounts use it (`allow_other`).
    pub allow_other: bool,
    /// Further mount options for the kernel or fusermount3, as given (`nosuid`, `noexec`, ...).
    pub fuse_options: Vec<String>,
}

/// The default of [`Overrides::lock_timeout`].
pub const DEFAULT_LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// The default of [`MountConfig::unmount_timeout`].
pub const DEFAULT_UNMOUNT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longer waits than this are mistakes, and adding one to a clock must never overflow.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A duration: `10s`, `1m 30s`, `500ms`; a plain number is seconds.
///
/// # Errors
/// What was expected.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let number = text.parse::<f64>().ok().map(Duration::try_from_secs_f64);
    let duration = match number {
        Some(number) => number.map_err(|error| error.to_string())?,
        None => humantime::parse_duration(text)
            .map_err(|_| "expected a time such as 10s, 1m30s, 500ms or a number of seconds")?,
    };
    if duration > LONGEST {
        return Err("the longest possible time is 365d".to_owned());
    }
    Ok(duration)
}
