//! `latchfs kept`: versions that could not become the file.
//!
//! To list, show and remove them, the daemon is not asked: it minds nothing of that. What is restored
//! goes through the mount, if there is one.

mod restore;
mod table;

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use serde::Serialize;

use super::args::{KeptCommand, KeptPurgeArgs};
use super::exit::{Exit, Failure, shell_word};
use super::output::{flushed, print, print_json};
use super::served::{self, Served};
use crate::backing::Errno;
use crate::backing::kept::{Entry, Flaw, Kept, Record};
use crate::show::printable;

/// Does what the command line asks for.
pub(super) fn run(command: &KeptCommand) -> Result<(), Failure> {
    match command {
        KeptCommand::List { path, json } => {
            let shelf = Shelf::find(path)?;
            match json {
                true => print_json(&shelf.entries.iter().map(Shown::new).collect::<Vec<_>>()),
                false => print(&table::list(&shelf, SystemTime::now())),
            }
        }
        KeptCommand::Show {
            path,
            id,
            data,
            json,
        } => {
            let shelf = Shelf::find(path)?;
            let entry = shelf.entry(id)?;
            match (data, json) {
                (true, _) => shelf.copy_out(entry),
                (false, true) => print_json(&Shown::new(entry)),
                (false, false) => print(&table::show(&shelf, entry, SystemTime::now())),
            }
        }
        KeptCommand::Restore(args) => restore::run(args),
        KeptCommand::Purge(args) => purge(args),
    }
}

/// The kept versions of what a path belongs to.
struct Shelf {
    place: Served,
    /// `None` where latchfs never was.
    kept: Option<Kept>,
    /// Those at or below what was named, the oldest first.
    entries: Vec<Entry>,
}

impl Shelf {
    fn find(path: &Path) -> Result<Self, Failure> {
        let place = served::find(path)?;
        let failed = |errno| {
            let shown = shell_word(&place.backing);
            let message = match errno {
                Errno::ACCESS | Errno::PERM => format!(
                    "the kept versions of {shown} are not open to this user; run this as the user \
                     whose daemon serves it, or as root"
                ),
                errno => format!("the kept versions of {shown} can't be read: {errno}"),
            };
            Failure::new(Exit::Backing, message)
        };
        let kept = Kept::of(&place.root).map_err(failed)?;
        let mut entries = match &kept {
            Some(kept) => kept.list().map_err(failed)?,
            None if place.rest.as_os_str().is_empty() => Vec::new(),
            None => {
                let message = format!("{} belongs to no latchfs; check the path", path.display());
                return Err(Failure::new(Exit::Backing, message));
            }
        };
        if !place.rest.as_os_str().is_empty() {
            let below = Path::new("/").join(&place.rest);
            entries.retain(|entry| entry.record.path().starts_with(&below));
        }
        Ok(Self {
            place,
            kept,
            entries,
        })
    }

    /// How BACKING is named in commands.
    fn word(&self) -> String {
        shell_word(&self.place.backing)
    }

    /// What was named.
    fn named(&self) -> String {
        match self.place.rest.as_os_str().is_empty() {
            true => self.word(),
            false => format!(
                "{} (of {})",
                printable(Path::new("/").join(&self.place.rest)),
                self.word()
            ),
        }
    }

    /// The one version whose ID begins like this.
    fn entry(&self, id: &str) -> Result<&Entry, Failure> {
        let fail = |message: String| Err(Failure::new(Exit::Kept, message));
        let exact = self.entries.iter().find(|entry| entry.id == id);
        let mut found = self.entries.iter().filter(|entry| entry.id.starts_with(id));
        match (exact, found.next(), found.next()) {
            (Some(entry), ..) | (None, Some(entry), None) if !id.is_empty() => Ok(entry),
            (None, Some(_), Some(_)) if !id.is_empty() => {
                let all = self.entries.iter().map(|entry| &*entry.id);
                let all: Vec<&str> = all.filter(|other| other.starts_with(id)).collect();
                fail(format!(
                    "{} is the beginning of several: {}",
                    printable(id),
                    all.join(", ")
                ))
            }
            _ => fail(format!(
                "there is no kept version {} here; to see those there are: latchfs kept list {}",
                printable(id),
                self.word()
            )),
        }
    }

    fn open(&self, entry: &Entry) -> Result<std::fs::File, Failure> {
        let opened = match &self.kept {
            Some(kept) => kept.open(&entry.id),
            None => Err(Errno::NOENT),
        };
        opened.map_err(|errno| {
            let message = format!("the kept version {} can't be read: {errno}", entry.id);
            Failure::new(Exit::Kept, message)
        })
    }

    /// Writes the bytes to standard output.
    fn copy_out(&self, entry: &Entry) -> Result<(), Failure> {
        let mut from = self.open(entry)?;
        let mut to = std::io::stdout().lock();
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let length = match from.read(&mut buffer) {
                Ok(0) => return flushed(to.flush()),
                Ok(length) => length,
                Err(error) => {
                    let message = format!("the kept version {} can't be read: {error}", entry.id);
                    return Err(Failure::new(Exit::Kept, message));
                }
            };
            match to.write_all(&buffer[..length]) {
                Ok(()) => {}
                other => return flushed(other),
            }
        }
    }
}

/// A kept version in JSON.
#[derive(Serialize)]
struct Shown<'a> {
    id: &'a str,
    #[serde(flatten)]
    record: Record,
    /// Of the file that it would become.
    mode: String,
    owner: u32,
    group: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    flaw: Option<Flaw>,
}

impl<'a> Shown<'a> {
    fn new(entry: &'a Entry) -> Self {
        let record = Record {
            size: Some(entry.stat.st_size as u64),
            ..entry.record.clone()
        };
        Self {
            id: &entry.id,
            record,
            mode: format!("{:04o}", entry.stat.st_mode & 0o7777),
            owner: entry.stat.st_uid,
            group: entry.stat.st_gid,
            flaw: entry.flaw,
        }
    }
}

#[derive(Serialize)]
struct Purged {
    purged: Vec<String>,
    bytes: u64,
}

fn purge(args: &KeptPurgeArgs) -> Result<(), Failure> {
    let shelf = Shelf::find(&args.path)?;
    let mut doomed: Vec<&Entry> = Vec::new();
    // All of them first: a wrong one removes nothing.
    for id in &args.ids {
        doomed.push(shelf.entry(id)?);
    }
    if args.all {
        doomed.extend(&shelf.entries);
    }
    if let Some(age) = args.older_than {
        let before = crate::backing::store::since_epoch().saturating_sub(age);
        let old = |entry: &&Entry| Duration::from_secs(entry.record.time) < before;
        doomed.extend(shelf.entries.iter().filter(old));
    }
    let mut done = Purged {
        purged: Vec::new(),
        bytes: 0,
    };
    for entry in doomed {
        let removed = shelf.kept.as_ref().map(|kept| kept.remove(&entry.id));
        match removed {
            Some(Ok(())) => {
                done.purged.push(entry.id.clone());
                done.bytes += entry.stat.st_size as u64;
            }
            // Named twice, or the daemon was faster.
            None | Some(Err(Errno::NOENT)) => {}
            Some(Err(errno)) => {
                let message = format!(
                    "the kept version {} can't be removed: {errno}; {} were removed before",
                    entry.id,
                    done.purged.len()
                );
                return Err(Failure::new(Exit::Kept, message));
            }
        }
    }
    if args.json {
        return print_json(&done);
    }
    let count = done.purged.len();
    let size = human_size(done.bytes);
    let versions = if count == 1 { "version" } else { "versions" };
    print(&format!(
        "{}: {count} kept {versions} purged ({size})\n",
        shelf.named()
    ))
}

/// A size for people.
fn human_size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}
