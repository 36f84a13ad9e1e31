//! What is known of a kept version: the JSON beside its bytes.

use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Why a version is not the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Its validation failed.
    Refused,
    /// It was not finished: its writer died, or a write failed.
    RolledBack,
    /// The file lost its name while it was written.
    Detached,
    /// The file was changed behind the mount meanwhile.
    Conflict,
    /// The mount ended before it was closed.
    Unmounted,
    /// Found after a crash, and its file was not there any more.
    Recovered,
    /// Not known: its record can't be read, or was written by another release.
    #[default]
    #[serde(other)]
    Unknown,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Refused => "refused",
            Self::RolledBack => "rolled-back",
            Self::Detached => "detached",
            Self::Conflict => "conflict",
            Self::Unmounted => "unmounted",
            Self::Recovered => "recovered",
            Self::Unknown => "unknown",
        })
    }
}

/// What is known of a kept version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored")]
pub struct Record {
    /// The path within the mount that the version was written to; where that is not UTF-8, as near
    /// as possible.
    pub path: String,
    /// The path byte by byte, where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_bytes: Option<Vec<u8>>,
    /// Seconds since the epoch when it was kept.
    pub time: u64,
    /// The process that opened the file to write; 0 if that is not known.
    pub pid: u32,
    /// That process's user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// That process's name.
    pub program: String,
    /// Why the version is not the file, in a word.
    pub kind: Kind,
    /// The same in words for people.
    pub reason: String,
    /// How many bytes the version has; `None`: not recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// A record as it is found: also one of an earlier release.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Stored {
    path: StoredPath,
    path_bytes: Option<Vec<u8>>,
    time: u64,
    pid: u32,
    uid: Option<u32>,
    program: String,
    kind: Kind,
    reason: String,
    size: Option<u64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum StoredPath {
    Text(String),
    /// As a redo record has it, which recovery once put here as it was.
    Components(Vec<Vec<u8>>),
}

impl Default for StoredPath {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

impl From<Stored> for Record {
    fn from(stored: Stored) -> Self {
        let record = Self {
            path_bytes: stored.path_bytes,
            time: stored.time,
            pid: stored.pid,
            uid: stored.uid,
            program: stored.program,
            kind: stored.kind,
            reason: stored.reason,
            size: stored.size,
            ..Self::default()
        };
        match stored.path {
            StoredPath::Text(path) => Self { path, ..record },
            StoredPath::Components(components) => Self {
                kind: Kind::Recovered,
                reason: String::from("its file was no longer there after a crash"),
                ..record
            }
            .at(&within_mount(&components)),
        }
    }
}

/// The path within the mount of a way from BACKING.
pub(crate) fn within_mount<C: AsRef<[u8]>>(components: &[C]) -> PathBuf {
    let mut bytes = Vec::new();
    for component in components {
        bytes.push(b'/');
        bytes.extend_from_slice(component.as_ref());
    }
    PathBuf::from(OsString::from_vec(bytes))
}

impl Record {
    /// The same with this path within the mount.
    pub fn at(mut self, path: &Path) -> Self {
        self.path = path.to_string_lossy().into_owned();
        self.path_bytes = match path.to_str() {
            Some(_) => None,
            None => Some(path.as_os_str().as_bytes().to_vec()),
        };
        self
    }

    /// The path within the mount.
    pub fn path(&self) -> PathBuf {
        match &self.path_bytes {
            Some(bytes) => PathBuf::from(OsString::from_vec(bytes.clone())),
            None => PathBuf::from(&self.path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    fn read(json: &str) -> Record {
        serde_json::from_str(json).expect(json)
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        for path in [&b"/d/f"[..], b"/d/\xff\n", "/\u{202e}".as_bytes()] {
            let path = Path::new(OsStr::from_bytes(path));
            let record = Record {
                time: 1,
                pid: 2,
                uid: Some(3),
                program: String::from("vim"),
                kind: Kind::RolledBack,
                reason: String::from("died"),
                size: Some(4),
                ..Record::default()
            }
            .at(path);
            let json = serde_json::to_string(&record).expect("JSON");
            assert!(json.contains(r#""kind":"rolled-back""#), "{json}");
            assert_eq!(read(&json), record);
            assert_eq!(record.path(), path);
        }
    }

    #[test]
    fn records_of_other_releases_are_read() {
        let old = read(r#"{"path":"/f","time":5,"pid":6,"program":"sh","reason":"gone"}"#);
        assert_eq!((old.kind, old.uid, old.size), (Kind::Unknown, None, None));
        assert_eq!((&*old.path, old.time, old.pid), ("/f", 5, 6));
        let redo = read(r#"{"path":[[100],[102,255]],"dev":1,"ino":2,"time":7}"#);
        assert_eq!((redo.kind, redo.time), (Kind::Recovered, 7));
        assert_eq!(redo.path(), Path::new(OsStr::from_bytes(b"/d/f\xff")));
        let newer = read(r#"{"path":"/f","kind":"eaten","by":"dog"}"#);
        assert_eq!(newer.kind, Kind::Unknown);
        assert!(serde_json::from_str::<Record>("[]x").is_err());
    }
}
