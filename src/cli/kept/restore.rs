//! `latchfs kept restore`: a kept version becomes the file after all, or is written elsewhere.
//!
//! Through the mount, if there is one, as any program would write it: so it takes its turn, is
//! validated, and readers keep their versions. Else by the engine, over BACKING, with the store locked.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::process::Signal;
use serde::Serialize;

use super::super::args::KeptRestoreArgs;
use super::super::exit::{Exit, Failure, complain};
use super::super::output::{print, print_json};
use super::super::served;
use super::{Shelf, human_size};
use crate::backing::kept::{Entry, Kind, Limits};
use crate::backing::recover::recover;
use crate::backing::shadow::{copy_attributes, errno};
use crate::backing::store::Store;
use crate::backing::{Dir, Errno, Stat};
use crate::engine::offline::{Alone, plain_components};
use crate::engine::{Engine, Settings};
use crate::rules::Defaults;
use crate::rules::find::find;
use crate::show::printable;

/// How much is copied at a time, in bytes.
const PIECE: usize = 1 << 20;

#[derive(Serialize)]
struct Restored<'a> {
    id: &'a str,
    to: String,
    size: u64,
}

/// Does what the command line asks for.
pub(super) fn run(args: &KeptRestoreArgs) -> Result<(), Failure> {
    let shelf = Shelf::find(&args.path)?;
    let entry = shelf.entry(&args.id)?;
    let from = shelf.open(entry)?;
    let to = match &args.to {
        Some(to) => {
            check_free(to, args.force)?;
            let place = served::find(to)?;
            match place.daemon.and_then(|daemon| daemon.point) {
                // It is a file of a mount, perhaps of this one, whichever way it was named.
                Some(point) => Restore {
                    shelf: &shelf,
                    entry,
                    from,
                    path: place.rest,
                    force: true,
                }
                .through_the_mount(&point)?,
                None => {
                    write_beside(&from, entry, to, args.force)?;
                    to.clone()
                }
            }
        }
        None => {
            let restore = Restore {
                shelf: &shelf,
                entry,
                from,
                path: path_of(&shelf, entry)?,
                force: args.force,
            };
            match &shelf.place.daemon {
                Some(daemon) => match &daemon.point {
                    Some(point) => restore.through_the_mount(point)?,
                    None => return Err(restore.unreachable(daemon.pid)),
                },
                None => restore.directly()?,
            }
        }
    };
    let size = entry.stat.st_size as u64;
    if args.json {
        let to = to.to_string_lossy().into_owned();
        let id = &entry.id;
        return print_json(&Restored { id, to, size });
    }
    print(&format!(
        "{} restored ({}); it stays kept, too, until: latchfs kept purge {} {}\n",
        printable(&to),
        human_size(size),
        shelf.word(),
        entry.id
    ))
}

fn refused(message: String) -> Failure {
    Failure::new(Exit::Kept, message)
}

/// Where a version was to be, as a way from the root of the mount.
fn path_of(shelf: &Shelf, entry: &Entry) -> Result<PathBuf, Failure> {
    plain_components(&entry.record.path()).ok_or_else(|| {
        refused(format!(
            "of which file {} is a version is not known; say where it goes: latchfs kept restore {} \
             {} --to FILE",
            entry.id,
            shelf.word(),
            entry.id
        ))
    })
}

/// A version on its way back.
struct Restore<'a> {
    shelf: &'a Shelf,
    entry: &'a Entry,
    from: File,
    /// From the root of the mount.
    path: PathBuf,
    force: bool,
}

impl Restore<'_> {
    fn shown(&self) -> String {
        printable(Path::new("/").join(&self.path))
    }

    /// As any program would do it.
    fn through_the_mount(&self, point: &Path) -> Result<PathBuf, Failure> {
        let failed = |what: &str, errno| self.failed(what, errno);
        let root = rustix::fs::open(point, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| failed("the mount can't be entered", errno))?;
        let open = |flags: OFlags| {
            // Whoever owns a directory of the way may have put a link in its place since.
            let way = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            let flags = flags | OFlags::WRONLY | OFlags::CLOEXEC;
            let mode = match flags.contains(OFlags::CREATE) {
                true => Mode::from_raw_mode(0o600),
                false => Mode::empty(),
            };
            rustix::fs::openat2(&root, &self.path, flags, mode, way).map(File::from)
        };
        let (to, made) = match open(OFlags::empty()) {
            Err(Errno::NOENT) => {
                let to = open(OFlags::CREATE | OFlags::EXCL);
                (to.map_err(|errno| failed("it can't be made", errno))?, true)
            }
            other => (
                other.map_err(|errno| failed("it can't be opened", errno))?,
                false,
            ),
        };
        // Nobody else writes it from here on.
        if !made {
            let stat = rustix::fs::fstat(&to);
            self.check_age(&stat.map_err(|errno| failed("it can't be looked at", errno))?)?;
        }
        self.fill(&to, made);
        close(to).map_err(|errno| {
            self.forget_own();
            match errno {
                Errno::BADMSG => refused(format!(
                    "{} is refused: the mount validates it, and this version is not valid (the \
                     daemon's log says where); write it elsewhere: latchfs kept restore {} {} \
                     --to FILE",
                    self.shown(),
                    self.shelf.word(),
                    self.entry.id
                )),
                errno => failed("it can't be committed", errno),
            }
        })?;
        Ok(point.join(&self.path))
    }

    /// Writes the bytes; what goes wrong there, the close tells. But a version that can't be read to
    /// its end must not become the file.
    fn fill(&self, to: &File, made: bool) {
        let written = truncate(to).and_then(|()| copy(&self.from, to));
        match written {
            Ok(()) if made => {
                let _ = copy_attributes(&self.from, &self.entry.stat, to);
            }
            Ok(()) | Err(CopyError::Write(_)) => {}
            Err(CopyError::Read(errno)) => {
                complain(&self.failed("the kept version can't be read", errno).message);
                // The mount takes back what a killed program has written.
                let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
            }
        }
    }

    /// What the daemon has kept of this attempt is nothing new.
    fn forget_own(&self) {
        let Some(kept) = &self.shelf.kept else { return };
        let own = std::process::id();
        for entry in kept.list().unwrap_or_default() {
            let this = entry.record.pid == own && entry.record.time >= self.entry.record.time;
            if this && entry.id != self.entry.id && !self.is_on_shelf(&entry.id) {
                let _ = kept.remove(&entry.id);
            }
        }
    }

    fn is_on_shelf(&self, id: &str) -> bool {
        self.shelf.entries.iter().any(|entry| entry.id == id)
    }

    /// Where nobody serves BACKING.
    fn directly(&self) -> Result<PathBuf, Failure> {
        let root = &self.shelf.place.root;
        let backing = &self.shelf.place.backing;
        let word = self.shelf.word();
        let mut store = Store::open(root)
            .map_err(|error| Failure::new(Exit::from(&error), format!("{word}: {error}")))?;
        store.show_as(backing);
        let unusable = |errno| Failure::new(Exit::Backing, format!("{word}: {errno}"));
        let mut done = Vec::new();
        let recovered = recover(root, &store, &mut done);
        for action in done {
            complain(&format!("{word}: {}", action.done()));
        }
        recovered.map_err(unusable)?;
        let before = self.stat_in(root)?;
        if let Some(before) = &before {
            self.check_age(before)?;
        }
        let (file, _) = find(None, root, backing)
            .map_err(|error| Failure::new(Exit::Configuration, error.to_string()))?;
        let settings = Settings {
            defaults: Defaults {
                durability: file.durability.unwrap_or_default(),
                ..Defaults::default()
            },
            rules: file.rules,
            // Nothing is removed here for what a next mount would remove.
            kept: Limits::NONE,
            request_limit: None,
        };
        let engine = Engine::new(root.clone(), Some(store), settings, Box::new(Alone));
        let engine = engine.map_err(unusable)?;
        let way = Path::new("/").join(&self.path);
        let replaced = engine.replace_file(&way, &self.from);
        replaced
            .inspect_err(|_| self.forget_own())
            .map_err(|errno| match errno {
                Errno::BADMSG => refused(format!(
                    "{} is refused: by its rule it is validated, and this version is not valid; \
                     write it elsewhere: latchfs kept restore {word} {} --to FILE",
                    self.shown(),
                    self.entry.id
                )),
                errno => self.failed("it can't be written", errno),
            })?;
        if before.is_none() {
            self.give_attributes(root);
        }
        Ok(backing.join(&self.path))
    }

    /// The directory of BACKING that the file is in, and its name.
    fn place_in(&self, root: &Dir) -> Result<(Dir, std::ffi::OsString), Errno> {
        let name = self.path.file_name().ok_or(Errno::ISDIR)?;
        let mut dir = root.clone();
        for component in self.path.parent().into_iter().flatten() {
            dir = dir.open_dir(component)?;
        }
        Ok((dir, name.to_owned()))
    }

    fn stat_in(&self, root: &Dir) -> Result<Option<Stat>, Failure> {
        let stat = self
            .place_in(root)
            .and_then(|(dir, name)| match dir.stat_at(&name) {
                Err(Errno::NOENT) => Ok(None),
                other => other.map(Some),
            });
        stat.map_err(|errno| self.failed("it can't be looked at", errno))
    }

    /// A file that was made gets the owner, mode and attributes of the version.
    fn give_attributes(&self, root: &Dir) {
        let opened = self.place_in(root).and_then(|(dir, name)| {
            let who = crate::backing::identity(&dir.stat_at(&name)?);
            dir.open_file(&name, OFlags::RDONLY, who)
        });
        let given = opened.and_then(|to| copy_attributes(&self.from, &self.entry.stat, &to));
        if let Err(errno) = given {
            let message = self
                .failed("its owner and mode could not be set", errno)
                .message;
            complain(&message);
        }
    }

    /// Is what is there now newer than the version, or of another lineage?
    fn check_age(&self, now: &Stat) -> Result<(), Failure> {
        if self.force {
            return Ok(());
        }
        let word = self.shelf.word();
        let force = format!("latchfs kept restore --force {word} {}", self.entry.id);
        let show = format!("latchfs kept show {word} {} --data", self.entry.id);
        let other = matches!(self.entry.record.kind, Kind::Detached | Kind::Conflict);
        let why = if other {
            "another file has taken its name while this version was written"
        } else if changed_at(now) > self.kept_at() {
            "it was changed after this version was kept"
        } else {
            return Ok(());
        };
        Err(refused(format!(
            "{}: {why}; to compare: {show}; to replace it all the same: {force}",
            self.shown()
        )))
    }

    /// When the version was kept, by the clock of its file system.
    fn kept_at(&self) -> (i64, i64) {
        let stat = &self.entry.stat;
        let own = (stat.st_ctime, stat.st_ctime_nsec as i64);
        // A copy of the whole tree has made it younger than it is.
        match i64::try_from(self.entry.record.time) {
            Ok(time) if time > 0 => own.min((time.saturating_add(1), 0)),
            _ => own,
        }
    }

    fn failed(&self, what: &str, errno: Errno) -> Failure {
        let hint = match errno {
            Errno::NOENT => "; its directory is gone: make it, or use --to FILE",
            Errno::LOOP | Errno::NOTDIR => {
                "; its way leads through something that is no directory now: use --to FILE"
            }
            Errno::ISDIR => "; a directory has its name now: use --to FILE",
            Errno::TIMEDOUT | Errno::AGAIN => "; another program is writing it: try again later",
            Errno::ACCESS | Errno::PERM => {
                "; run this as the user who mounted it, or as one who may write it"
            }
            _ => "",
        };
        refused(format!("{}: {what}: {errno}{hint}", self.shown()))
    }

    fn unreachable(&self, pid: u32) -> Failure {
        let word = self.shelf.word();
        Failure::new(
            Exit::Busy,
            format!(
                "{word} is served by process {pid}, whose mount can't be seen from here; run this \
                 where it can, or use --to FILE"
            ),
        )
    }
}

/// When a file was last changed or got its name.
fn changed_at(stat: &Stat) -> (i64, i64) {
    let modified = (stat.st_mtime, stat.st_mtime_nsec as i64);
    modified.max((stat.st_ctime, stat.st_ctime_nsec as i64))
}

enum CopyError {
    Read(Errno),
    Write(Errno),
}

fn truncate(to: &File) -> Result<(), CopyError> {
    rustix::fs::ftruncate(to, 0).map_err(CopyError::Write)
}

fn copy(mut from: &File, to: &File) -> Result<(), CopyError> {
    let mut buffer = vec![0; PIECE];
    let mut offset = 0;
    loop {
        let length = from.read(&mut buffer);
        let length = length.map_err(|error| CopyError::Read(errno(error)))?;
        if length == 0 {
            return Ok(());
        }
        let written = to.write_all_at(&buffer[..length], offset);
        written.map_err(|error| CopyError::Write(errno(error)))?;
        offset += length as u64;
    }
}

/// close(2), with its error, which says how the commit went.
fn close(file: File) -> Result<(), Errno> {
    use std::os::fd::IntoRawFd as _;
    // SAFETY: the descriptor is this function's own from here on, and used no more.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(errno(std::io::Error::last_os_error())),
    }
}

/// May this file be written?
fn check_free(to: &Path, force: bool) -> Result<(), Failure> {
    let shown = printable(to);
    if to.is_dir() {
        return Err(refused(format!(
            "{shown} is a directory; name a file in it"
        )));
    }
    if !force && to.symlink_metadata().is_ok() {
        return Err(refused(format!(
            "{shown} is there already; to replace it: --force"
        )));
    }
    Ok(())
}

/// Writes a version to another file, whole or not at all.
fn write_beside(from: &File, entry: &Entry, to: &Path, force: bool) -> Result<(), Failure> {
    let shown = printable(to);
    let failed = |errno: Errno| refused(format!("{shown} can't be written: {errno}"));
    let name = to.file_name().ok_or_else(|| failed(Errno::ISDIR))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}", std::process::id()));
    let temporary = to.with_file_name(temporary);
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600);
    let file = file.open(&temporary).map_err(|e| failed(errno(e)))?;
    let written = copy(from, &file)
        .map_err(|error| match error {
            CopyError::Read(errno) | CopyError::Write(errno) => errno,
        })
        .and_then(|()| copy_attributes(from, &entry.stat, &file))
        .and_then(|()| rustix::fs::fsync(&file))
        .and_then(|()| close(file));
    let flags = match force {
        true => RenameFlags::empty(),
        false => RenameFlags::NOREPLACE,
    };
    let cwd = rustix::fs::CWD;
    written
        .and_then(|()| rustix::fs::renameat_with(cwd, &temporary, cwd, to, flags))
        .map_err(|errno| {
            let _ = std::fs::remove_file(&temporary);
            failed(errno)
        })
}
