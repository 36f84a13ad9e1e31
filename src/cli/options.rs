//! Mount options as `-o` gives them: `ro,nosuid,lock_timeout=10s`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use super::exit::Failure;
use super::values::{any_duration, duration_or_off, positive_duration, size};
use crate::config::{Durability, Readers};

/// Pairs of options of which the last one given wins, as in mount(8).
const SWITCHES: [[&str; 2]; 5] = [
    ["suid", "nosuid"],
    ["dev", "nodev"],
    ["exec", "noexec"],
    ["atime", "noatime"],
    ["sync", "async"],
];

/// Words of fstab(5) that mount(8) and systemd act on, not the filesystem.
const FSTAB_WORDS: [&str; 11] = [
    "defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail", "_netdev",
    "comment",
];

/// What all `-o` together say. `None`: not mentioned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct MountOptions {
    pub(super) read_only: bool,
    pub(super) allow_other: bool,
    pub(super) allow_root: bool,
    pub(super) auto_unmount: bool,
    /// Options for the kernel or fusermount3, each at most once and none contradicting another.
    pub(super) kernel: Vec<String>,
    /// `fsname=`, which must be BACKING: that is how `latchfs umount` finds the daemon.
    pub(super) source: Option<PathBuf>,
    pub(super) lock_timeout: Option<Duration>,
    pub(super) readers: Option<Readers>,
    pub(super) durability: Option<Durability>,
    pub(super) kept_max_age: Option<Duration>,
    pub(super) kept_max_size: Option<u64>,
    pub(super) unmount_timeout: Option<Duration>,
    pub(super) config: Option<PathBuf>,
    pub(super) log_file: Option<PathBuf>,
    pub(super) foreground: bool,
    pub(super) supervise: bool,
    pub(super) watchdog: Option<Duration>,
    pub(super) restart_pause: Option<Duration>,
}

impl MountOptions {
    /// Parses the values of all `-o` in the order given.
    pub(super) fn parse(lists: &[OsString]) -> Result<Self, Failure> {
        let mut options = Self::default();
        for option in lists.iter().flat_map(|list| split(list.as_bytes())) {
            options.add(&option)?;
        }
        options.check()?;
        Ok(options)
    }

    fn add(&mut self, option: &[u8]) -> Result<(), Failure> {
        let (name, value) = match option.iter().position(|byte| *byte == b'=') {
            Some(at) => (&option[..at], Some(OsStr::from_bytes(&option[at + 1..]))),
            None => (option, None),
        };
        let name = String::from_utf8_lossy(name);
        if name.is_empty() && value.is_none() {
            // As in "ro,,nosuid": mount(8) does not mind either.
            return Ok(());
        }
        if is_for_others(&name) {
            return Ok(());
        }
        match value {
            Some(value) => self.add_value(&name, value),
            None => self.add_word(&name),
        }
    }

    fn add_word(&mut self, name: &str) -> Result<(), Failure> {
        match name {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "allow_other" => self.allow_other = true,
            "allow_root" => self.allow_root = true,
            "auto_unmount" => self.auto_unmount = true,
            // The kernel checks permissions in any case.
            "default_permissions" => {}
            "dirsync" => self.set_kernel(name, &[name]),
            "foreground" => self.foreground = true,
            "supervise" => self.supervise = true,
            _ => match SWITCHES.iter().find(|pair| pair.contains(&name)) {
                Some(pair) => self.set_kernel(name, pair),
                None if is_own_value(name) || matches!(name, "fsname" | "subtype") => {
                    return Err(Failure::usage(format!(
                        "mount option {name} needs a value: {name}=VALUE"
                    )));
                }
                None => return Err(unknown(name)),
            },
        }
        Ok(())
    }

    fn add_value(&mut self, name: &str, value: &OsStr) -> Result<(), Failure> {
        match name.replace('-', "_").as_str() {
            "lock_timeout" => self.lock_timeout = Some(parse(name, value, positive_duration)?),
            "unmount_timeout" => self.unmount_timeout = Some(parse(name, value, any_duration)?),
            "watchdog" => self.watchdog = Some(parse(name, value, duration_or_off)?),
            "restart_pause" => self.restart_pause = Some(parse(name, value, any_duration)?),
            "readers" => self.readers = Some(parse(name, value, choice)?),
            "durability" => self.durability = Some(parse(name, value, choice)?),
            "kept_max_age" => self.kept_max_age = Some(parse(name, value, any_duration)?),
            "kept_max_size" => self.kept_max_size = Some(parse(name, value, size)?),
            "config" | "log_file" if value.is_empty() => {
                return Err(Failure::usage(format!("mount option {name}= needs a path")));
            }
            "config" => self.config = Some(value.into()),
            "log_file" => self.log_file = Some(value.into()),
            "fsname" => self.source = Some(value.into()),
            "subtype" if value == "latchfs" => {}
            "subtype" => {
                return Err(Failure::usage(format!(
                    "mount option subtype={} cannot be had: it is how latchfs knows its mounts; \
                     leave it out",
                    value.to_string_lossy()
                )));
            }
            _ => return Err(unknown(name)),
        }
        Ok(())
    }

    /// Makes `name` the one that counts of a group of which only one can.
    fn set_kernel(&mut self, name: &str, group: &[&str]) {
        self.kernel.retain(|known| !group.contains(&known.as_str()));
        self.kernel.push(name.to_owned());
    }

    fn check(&self) -> Result<(), Failure> {
        if self.allow_other && self.allow_root {
            return Err(Failure::usage(
                "mount options allow_other and allow_root exclude each other; leave one out",
            ));
        }
        if self.auto_unmount && !self.allow_other && !self.allow_root {
            // fusermount3, which then watches over the mount, must be let into it.
            return Err(Failure::usage(
                "mount option auto_unmount works only with allow_other or allow_root; add one",
            ));
        }
        Ok(())
    }
}

/// Writes an option so that [`split`] reads it back: for the command line of the daemon.
pub(super) fn escape(option: &str) -> String {
    option.replace('\\', r"\\").replace(',', r"\,")
}

fn is_for_others(name: &str) -> bool {
    FSTAB_WORDS.contains(&name) || name.starts_with("x-") || name.starts_with("X-")
}

fn is_own_value(name: &str) -> bool {
    matches!(
        name.replace('-', "_").as_str(),
        "lock_timeout"
            | "unmount_timeout"
            | "readers"
            | "durability"
            | "kept_max_age"
            | "kept_max_size"
            | "config"
            | "log_file"
            | "watchdog"
            | "restart_pause"
    )
}

fn unknown(name: &str) -> Failure {
    Failure::usage(format!(
        "unknown mount option: {name}; see latchfs mount --help"
    ))
}

fn parse<T>(
    name: &str,
    value: &OsStr,
    read: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, Failure> {
    let value = value.to_string_lossy();
    read(&value).map_err(|why| Failure::usage(format!("mount option {name}={value}: {why}")))
}

/// One of the names that the long option takes.
fn choice<T: ValueEnum>(text: &str) -> Result<T, String> {
    T::from_str(text, false).map_err(|_| {
        let names: Vec<String> = T::value_variants()
            .iter()
            .filter_map(|value| Some(value.to_possible_value()?.get_name().to_owned()))
            .collect();
        format!("expected one of: {}", names.join(", "))
    })
}

/// Splits a list at its commas. As in libfuse, a backslash takes the special meaning from the
/// character after it.
fn split(list: &[u8]) -> Vec<Vec<u8>> {
    let mut options = vec![Vec::new()];
    let mut bytes = list.iter().copied();
    while let Some(byte) = bytes.next() {
        let literal = match byte {
            b',' => {
                options.push(Vec::new());
                continue;
            }
            b'\\' => bytes.next().unwrap_or(b'\\'),
            byte => byte,
        };
        // The list never is empty: it starts with one option and only grows.
        if let Some(option) = options.last_mut() {
            option.push(literal);
        }
    }
    options
}

#[cfg(test)]
mod tests;
