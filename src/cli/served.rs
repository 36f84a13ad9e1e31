//! Which BACKING a path belongs to, and who serves it: for commands that work beside the daemon.
//!
//! A mount in place covers its BACKING, so that no path leads there. Its daemon has the covered
//! directory as its current one, and `/proc/PID/cwd` leads there past the mount. That this is the
//! daemon of that very mount shows in the table of mounts: what a mount covers is the directory at
//! its own path in its parent mount. Root sees every daemon so, an ordinary user his own ones.
//!
//! Nothing here asks a latchfs for anything: its daemon might not answer.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use clap::Parser as _;
use rustix::fs::{AtFlags, FileType, StatxFlags};

use super::args::{Cli, Command, MountArgs};
use super::exit::{Exit, Failure, shell_word};
use super::mounts::{Mount, MountTable};
use super::resolve::{MAX_LINKS, Place, components, resolve_from};
use crate::backing::store::{DIRECTORY, serving};
use crate::backing::{Dir, Errno, proc_path};

/// The name of every daemon's process in `/proc/PID/comm`.
const NAME: &str = "latchfs\n";

/// That of a process that supervises one.
const SUPERVISOR: &str = "latchfs-superv\n";

/// What a path that the user names belongs to.
#[derive(Debug)]
pub(super) struct Served {
    /// The root of BACKING, also where a mount covers it. For a path that has nothing to do with a
    /// latchfs, the directory itself, or that of the file.
    pub(super) root: Dir,
    /// Its path, for messages. Do not use it for anything else: it may lead into the mount.
    pub(super) backing: PathBuf,
    /// Who serves it now, if somebody does.
    pub(super) daemon: Option<Daemon>,
    /// The way from the root to what was named, free of `..`; empty for the root itself. What it
    /// names need not exist; as far as it does, it leads through no symbolic link.
    pub(super) rest: PathBuf,
}

impl Served {
    /// Is it served now, or was it ever?
    pub(super) fn is_known(&self) -> bool {
        self.daemon.is_some() || self.root.open_dir(OsStr::new(DIRECTORY)).is_ok()
    }
}

/// A daemon that lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Daemon {
    /// Its process.
    pub(super) pid: u32,
    /// Where it shows BACKING. `None` if that is not to be seen from here: not mounted yet, or
    /// unmounted already and busy finishing, or in another mount namespace.
    pub(super) point: Option<PathBuf>,
}

/// Finds what `path` belongs to: BACKING, the mountpoint, or something inside either, of a plain
/// mount or one in place, with a live daemon or none. Its last names need not exist.
///
/// # Errors
/// [`Exit::Backing`] if the path leads nowhere or may not be looked at, or if its BACKING is
/// covered by a mount whose daemon is dead or another user's.
pub(super) fn find(path: &Path) -> Result<Served, Failure> {
    let unusable = |error: io::Error| {
        let what = format!("{} cannot be used: {error}", path.display());
        Failure::new(Exit::Backing, what)
    };
    let mounts = MountTable::read().map_err(unusable)?;
    let mut next = std::path::absolute(path).map_err(unusable)?;
    for _ in 0..MAX_LINKS {
        let (mount, rest) = match place(&next, &mounts).map_err(unusable)? {
            (Place::Outside(found), missing) => {
                return beside(&found, &missing, &mounts).map_err(|e| unusable(e.into()));
            }
            (Place::Root(mount), _) => (mount, PathBuf::new()),
            (Place::Inside(mount, rest), _) => (mount, rest),
        };
        let root = backing_of(&mount, &mounts).ok_or_else(|| out_of_sight(path, &mount))?;
        match walk(&root, &rest).map_err(|e| unusable(e.into()))? {
            Walked::Within(rest) => {
                let daemon = daemon_of(&mount, &mounts).map(|pid| Daemon {
                    pid,
                    point: Some(mount.point.clone()),
                });
                return Ok(Served {
                    root,
                    backing: mount.source,
                    daemon,
                    rest,
                });
            }
            Walked::Out(way) => next = mount.point.join(way),
        }
    }
    Err(unusable(Errno::LOOP.into()))
}

/// The live daemon of a mount, as far as it is to be seen from here: not that of another user or
/// another mount namespace, and not that of a read-only mount that is not in place.
pub(super) fn daemon_of(mount: &Mount, mounts: &MountTable) -> Option<u32> {
    if let Some((pid, _)) = beneath(mount, mounts) {
        return Some(pid);
    }
    let serving = serving(&source_of(mount, mounts)?)?;
    let same = |device| device == mount.device;
    (serving.device.is_none_or(same) && is_daemon(serving.pid, serving.owner))
        .then_some(serving.pid)
}

/// Is a process a daemon of this user? Whoever has a directory can say in its `.latchfs` that any
/// process serves it; and a pid of another namespace would be some other process here.
pub(super) fn is_daemon(pid: u32, user: u32) -> bool {
    user_of(pid) == Some(user) && mount_args(pid).is_some()
}

/// The process that starts this daemon again when it dies, if there is one.
pub(super) fn supervisor_of(daemon: u32) -> Option<u32> {
    let parent = status_field(daemon, "PPid:", 0)?;
    let name = std::fs::read_to_string(format!("/proc/{parent}/comm")).ok()?;
    (name == SUPERVISOR && user_of(parent) == user_of(daemon)).then_some(parent)
}

/// Whose rights a process has.
fn user_of(pid: u32) -> Option<u32> {
    status_field(pid, "Uid:", 1)
}

/// A number in `/proc/PID/status`: the n-th one of the line that begins so.
fn status_field(pid: u32, name: &str, n: usize) -> Option<u32> {
    // Not by stat(2) of the directory, which is root's if the program may not be read.
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().nth(n)?.parse().ok()
}

/// The command line of a daemon; `None` if the process is none.
pub(super) fn mount_args(pid: u32) -> Option<MountArgs> {
    use std::os::unix::ffi::OsStrExt as _;
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let line = line.strip_suffix(b"\0").unwrap_or(&line);
    let words = line.split(|byte| *byte == 0).map(OsStr::from_bytes);
    match Cli::try_parse_from(words).ok()?.command {
        Command::Mount(mount) => Some(mount),
        _ => None,
    }
}

fn out_of_sight(path: &Path, mount: &Mount) -> Failure {
    let word = shell_word(&mount.point);
    let message = format!(
        "{} is covered by a latchfs mount whose daemon is not to be seen from here (another \
         user's, or dead); run this as that user or as root, or take the mount away: latchfs \
         umount {word}",
        path.display()
    );
    Failure::new(Exit::Backing, message)
}

/// Where a path leads, and what of its end does not exist.
fn place(path: &Path, mounts: &MountTable) -> io::Result<(Place, PathBuf)> {
    let mut missing: Vec<&OsStr> = Vec::new();
    let mut at = path;
    loop {
        match resolve_from(Path::new("/"), at, mounts) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (Some(name), Some(parent)) = (at.file_name(), at.parent()) else {
                    return Err(error);
                };
                // A link that leads nowhere is there, but what it names is somewhere else.
                if is_link(at) {
                    return Err(error);
                }
                missing.push(name);
                at = parent;
            }
            other => return Ok((other?, missing.iter().rev().collect())),
        }
    }
}

fn is_link(path: &Path) -> bool {
    path.symlink_metadata()
        .is_ok_and(|found| found.is_symlink())
}

/// What a path outside every mount belongs to: the nearest BACKING around it, if there is one.
fn beside(found: &Path, missing: &Path, mounts: &MountTable) -> Result<Served, Errno> {
    for above in found.ancestors() {
        let known = mounts.latchfs_of(above, None).is_some();
        let Ok(root) = Dir::open_root(above) else {
            continue;
        };
        if !known && root.open_dir(OsStr::new(DIRECTORY)).is_err() {
            continue;
        }
        let serving = serving(&root).filter(|serving| is_daemon(serving.pid, serving.owner));
        let daemon = serving.map(|serving| Daemon {
            pid: serving.pid,
            point: mounts
                .latchfs_of(above, serving.device.as_deref())
                .map(|mount| mount.point.clone()),
        });
        return Ok(served(root, above, found, missing, daemon));
    }
    match Dir::open_root(found) {
        Ok(root) => Ok(served(root, found, found, missing, None)),
        Err(Errno::NOTDIR) => {
            let above = found.parent().ok_or(Errno::NOTDIR)?;
            Ok(served(Dir::open_root(above)?, above, found, missing, None))
        }
        Err(errno) => Err(errno),
    }
}

fn served(
    root: Dir,
    backing: &Path,
    found: &Path,
    missing: &Path,
    daemon: Option<Daemon>,
) -> Served {
    let below = found.strip_prefix(backing).unwrap_or(Path::new(""));
    let all = below.components().chain(missing.components());
    Served {
        root,
        backing: backing.to_owned(),
        daemon,
        // Not by join, which would add a slash for nothing.
        rest: all.collect(),
    }
}

/// The root of the BACKING of a mount.
fn backing_of(mount: &Mount, mounts: &MountTable) -> Option<Dir> {
    match beneath(mount, mounts) {
        Some((_, root)) => Some(root),
        None => source_of(mount, mounts),
    }
}

/// BACKING by its path, unless a latchfs is mounted over it.
fn source_of(mount: &Mount, mounts: &MountTable) -> Option<Dir> {
    match resolve_from(Path::new("/"), &mount.source, mounts).ok()? {
        Place::Outside(path) => Dir::open_root(&path).ok(),
        Place::Root(_) | Place::Inside(..) => None,
    }
}

/// The daemon whose current directory is what this mount, or a copy of it, covers; and that
/// directory.
fn beneath(mount: &Mount, mounts: &MountTable) -> Option<(u32, Dir)> {
    let covers = |root: &Dir| {
        let path = std::fs::read_link(proc_path(root.as_fd())).ok()?;
        let wanted = StatxFlags::MNT_ID;
        let stat = rustix::fs::statx(root, "", AtFlags::EMPTY_PATH, wanted).ok()?;
        let parent = stat.stx_mnt_id;
        mounts
            .of_same_filesystem(mount)
            .any(|copy| copy.parent == parent && copy.point == path)
            .then_some(())
    };
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        // This file first: to read it never blocks, whatever the process is at.
        let name = std::fs::read_to_string(entry.path().join("comm"));
        let ours = || mount.owner.is_none_or(|owner| user_of(pid) == Some(owner));
        if name.is_ok_and(|name| name == NAME) && mount_args(pid).is_some() && ours() {
            let root = Dir::open_root(&entry.path().join("cwd"));
            if let Some(root) = root.ok().filter(|root| covers(root).is_some()) {
                return Some((pid, root));
            }
        }
    }
    None
}

/// Where a way from the root of BACKING leads.
enum Walked {
    /// To this place within it.
    Within(PathBuf),
    /// Out of it, to this path (relative to the mountpoint, or absolute).
    Out(PathBuf),
}

/// Follows a way as the kernel would in the mount, but in BACKING.
fn walk(root: &Dir, way: &Path) -> Result<Walked, Errno> {
    let mut todo = components(way);
    // The directories on the way to where we are, with their names.
    let mut here: Vec<(OsString, Dir)> = Vec::new();
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            if here.pop().is_none() {
                let rest = Path::new("..").iter().map(OsStr::to_owned).chain(todo);
                return Ok(Walked::Out(rest.collect()));
            }
            continue;
        }
        let at = here.last().map_or(root, |(_, dir)| dir);
        let kind = match at.stat_at(&name) {
            Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(errno),
        };
        match kind {
            Some(FileType::Symlink) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP);
                }
                let target = PathBuf::from(OsString::from_vec(at.read_link(&name)?));
                if target.is_absolute() {
                    return Ok(Walked::Out(
                        target.iter().chain(todo.iter().map(|n| &**n)).collect(),
                    ));
                }
                let mut target = components(&target);
                target.append(&mut todo);
                todo = target;
            }
            Some(FileType::Directory) => {
                let dir = at.open_dir(&name)?;
                here.push((name, dir));
            }
            _ if todo.is_empty() => {
                let above = here.iter().map(|(name, _)| &**name);
                return Ok(Walked::Within(above.chain([&*name]).collect()));
            }
            Some(_) => return Err(Errno::NOTDIR),
            None if todo.iter().any(|name| name == "..") => return Err(Errno::NOENT),
            None => {
                let above = here.iter().map(|(name, _)| &**name);
                let below = todo.iter().map(|name| &**name);
                return Ok(Walked::Within(above.chain([&*name]).chain(below).collect()));
            }
        }
    }
    Ok(Walked::Within(
        here.into_iter().map(|(name, _)| name).collect(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A BACKING that no daemon serves, with some links in it.
    fn scene() -> (tempfile::TempDir, PathBuf) {
        let guard = tempfile::tempdir().unwrap();
        let dir = guard.path().canonicalize().unwrap();
        fs::create_dir_all(dir.join("b/.latchfs")).unwrap();
        fs::create_dir_all(dir.join("b/d/e")).unwrap();
        fs::create_dir(dir.join("plain")).unwrap();
        for file in ["b/d/f", "plain/f"] {
            fs::write(dir.join(file), "").unwrap();
        }
        symlink("d/e/../f", dir.join("b/inner")).unwrap();
        symlink("../../plain/f", dir.join("b/d/outer")).unwrap();
        symlink("/absolute", dir.join("b/d/absolute")).unwrap();
        symlink("loop", dir.join("b/loop")).unwrap();
        (guard, dir)
    }

    #[test]
    fn what_is_in_a_backing_belongs_to_it_be_it_there_or_not() {
        let (_guard, dir) = scene();
        for (path, rest) in [
            ("b", ""),
            ("b/", ""),
            ("b/d/e", "d/e"),
            ("b/d/f", "d/f"),
            ("b/inner", "d/f"),
            ("b/d/new", "d/new"),
            ("b/new/newer", "new/newer"),
            ("plain/../b/d/../d/f", "d/f"),
        ] {
            let found = find(&dir.join(path)).unwrap();
            assert_eq!(found.backing, dir.join("b"), "{path}");
            assert_eq!(found.rest, Path::new(rest), "{path}");
            assert_eq!(found.daemon, None, "{path}");
            found.root.stat_at(OsStr::new("inner")).unwrap();
        }
    }

    #[test]
    fn what_has_nothing_to_do_with_latchfs_is_itself() {
        let (_guard, dir) = scene();
        for (path, backing, rest) in [
            ("plain", "plain", ""),
            ("plain/f", "plain", "f"),
            ("b/d/outer", "plain", "f"),
            ("plain/new", "plain", "new"),
        ] {
            let found = find(&dir.join(path)).unwrap();
            assert_eq!(found.backing, dir.join(backing), "{path}");
            assert_eq!(found.rest, Path::new(rest), "{path}");
        }
    }

    #[test]
    fn what_anybody_says_of_a_daemon_is_not_believed() {
        let (_guard, dir) = scene();
        let lock = dir.join("b/.latchfs/lock");
        // A process that is no latchfs.
        fs::write(&lock, format!("{}\n", std::process::id())).unwrap();
        let held = fs::File::open(&lock).unwrap();
        held.lock().unwrap();
        let root = Dir::open_root(&dir.join("b")).unwrap();
        assert!(serving(&root).is_some());
        assert_eq!(find(&dir.join("b/d")).unwrap().daemon, None);
        // What would wait for somebody who writes.
        fs::remove_file(&lock).unwrap();
        let fifo = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &lock, FileType::Fifo, fifo, 0).unwrap();
        assert_eq!(find(&dir.join("b/d")).unwrap().daemon, None);
    }

    #[test]
    fn a_path_that_leads_nowhere_is_refused() {
        let (_guard, dir) = scene();
        for path in ["b/loop", "b/d/absolute", "b/d/f/below", "b/new/../d"] {
            let failure = find(&dir.join(path)).unwrap_err();
            assert_eq!(failure.exit, Exit::Backing, "{path}");
        }
    }

    #[test]
    fn a_way_in_a_mount_is_followed_in_backing() {
        let (_guard, dir) = scene();
        let root = Dir::open_root(&dir.join("b")).unwrap();
        for (way, expected) in [
            ("", Ok("")),
            ("d/e/..", Ok("d")),
            ("inner", Ok("d/f")),
            ("new/newer", Ok("new/newer")),
            ("d/new", Ok("d/new")),
            ("d/e/../../../x", Err("../x")),
            ("d/outer", Err("../plain/f")),
            ("d/absolute/x", Err("/absolute/x")),
        ] {
            let (within, path) = match walk(&root, Path::new(way)).unwrap() {
                Walked::Within(path) => (true, path),
                Walked::Out(path) => (false, path),
            };
            let found = path.to_str().unwrap();
            assert_eq!(within.then_some(found).ok_or(found), expected, "{way}");
        }
        for (way, errno) in [
            ("loop", Errno::LOOP),
            ("d/f/x", Errno::NOTDIR),
            ("new/../d", Errno::NOENT),
        ] {
            assert_eq!(walk(&root, Path::new(way)).err(), Some(errno), "{way}");
        }
    }

    #[test]
    fn a_process_that_is_no_daemon_serves_nothing() {
        assert!(mount_args(std::process::id()).is_none());
        let mounts = MountTable::parse(b"1 0 0:1 / /m rw - fuse.latchfs /nowhere rw\n");
        let mount = mounts.mounted_at(Path::new("/m")).unwrap();
        assert_eq!(daemon_of(mount, &mounts), None);
        assert!(backing_of(mount, &mounts).is_none());
    }
}
