//! How a content becomes the file: by the commit of the mount ([`crate::backing::shadow`]), without
//! its store.
//!
//! The shadow has no name until it is whole and durable. A new file is then linked to its name;
//! to replace one takes a rename, and so a temporary name for a moment: `.NAME.latchfs-tmp`, beside
//! the file. On a file system without `O_TMPFILE` the shadow has that name from the beginning.
//!
//! A temporary name belongs to whoever holds an exclusive flock(2) on what it names. The shadow is
//! locked before it is linked there; where it was made under that name, it is locked next, and has
//! to be found there still. So what a killed program left is told from what another is about to
//! rename: nobody has it locked, and the next who needs the name removes it. The lock stays with
//! the file when it is renamed: what appears under the file's name is locked from the first moment.

use super::target::Target;
use super::wait::Wait;
use crate::backing::shadow::{self, Shadow, Temporaries};
use crate::backing::{Credentials, Dir, Errno};
use crate::show::printable;
use crate::sync::Arc;
use log::{info, warn};
use rustix::fs::{FlockOperation, OFlags};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The longest name, in bytes, on the file systems there are.
const LONGEST_NAME: usize = 255;
const SUFFIX: &str = ".latchfs-tmp";

/// Makes `content` the content of `target` in one step, and returns when that is durable. `old` is the
/// file that is there, which the caller has locked; without one, the name must be free. Returns the
/// new file, open for writing, and locked exclusively.
///
/// # Errors
/// `EEXIST` if the name is not free; `EAGAIN` if there was no time to wait for another's temporary
/// file; `ENOSPC`, `EACCES` and whatever else making a file there says. The file is then as it was.
pub(super) fn commit(
    target: &Target,
    old: Option<&File>,
    content: &[u8],
    wait: &mut Wait,
) -> Result<Arc<File>, Errno> {
    let temps = Beside(target);
    let shadow = loop {
        match make(&temps, old.is_some()) {
            Ok(shadow) => break shadow,
            Err(Errno::EXIST) => temps.make_way(wait)?,
            Err(Errno::AGAIN) if wait.pause() => {}
            Err(errno) => return Err(errno),
        }
    };
    let mut file: &File = shadow.file();
    file.write_all(content).map_err(shadow::errno)?;
    if let Some(old) = old {
        keep_attributes(target, old, file)?;
    }
    rustix::fs::fsync(file)?;
    loop {
        let placed = match old {
            Some(_) => shadow.replace(&target.dir, &target.name, &temps),
            None => shadow.link(&target.dir, &target.name),
        };
        match placed {
            Err(Errno::EXIST) if old.is_some() => temps.make_way(wait)?,
            other => break other?,
        }
    }
    shadow::sync_dir(&target.dir, file)?;
    Ok(shadow.file().clone())
}

/// A shadow that nobody takes for a leftover.
///
/// # Errors
/// `EAGAIN` if somebody did, before it could be locked.
fn make(temps: &Beside<'_>, replaces: bool) -> Result<Shadow, Errno> {
    // What replaces a file must not be more open than that while it has no attributes.
    let mode = if replaces { 0o600 } else { 0o666 };
    let shadow = Shadow::create(&temps.0.dir, temps, mode)?;
    let lock = FlockOperation::NonBlockingLockExclusive;
    let own = match rustix::fs::flock(shadow.file(), lock) {
        Ok(()) => !shadow.is_named() || temps.target().is(shadow.file())?,
        Err(Errno::WOULDBLOCK) => false,
        Err(errno) => return Err(errno),
    };
    if !own {
        shadow.disown_name();
        return Err(Errno::AGAIN);
    }
    Ok(shadow)
}

/// Mode, owner, ACL and extended attributes survive (W11), as far as this process may set them.
fn keep_attributes(target: &Target, old: &File, new: &File) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(old)?;
    shadow::copy_attributes(old, &stat, new)?;
    let user = rustix::process::geteuid();
    if !user.is_root() {
        let groups = rustix::process::getgroups()?;
        let who = Credentials {
            uid: user.as_raw(),
            gid: rustix::process::getegid().as_raw(),
            groups: Some(groups.into_iter().map(|group| group.as_raw()).collect()),
        };
        shadow::drop_privileges(new, &who)?;
    }
    if stat.st_nlink > 1 {
        let name = printable(&target.name);
        warn!(
            "{name}: it had {} hard links; the others keep the old content",
            stat.st_nlink
        );
    }
    Ok(())
}

/// The temporary name beside a file.
struct Beside<'a>(&'a Target);

impl Temporaries for Beside<'_> {
    fn temporary_dir(&self) -> &Dir {
        &self.0.dir
    }

    fn temporary_name(&self) -> OsString {
        temporary_name(&self.0.name)
    }
}

fn temporary_name(of: &OsStr) -> OsString {
    let mut name = vec![b'.'];
    name.extend_from_slice(of.as_bytes());
    if name.len() + SUFFIX.len() > LONGEST_NAME {
        let mut hash = DefaultHasher::new();
        hash.write(of.as_bytes());
        let hash = format!("-{:016x}", hash.finish());
        name.truncate(LONGEST_NAME - SUFFIX.len() - hash.len());
        name.extend_from_slice(hash.as_bytes());
    }
    name.extend_from_slice(SUFFIX.as_bytes());
    OsString::from_vec(name)
}

impl Beside<'_> {
    fn target(&self) -> Target {
        Target {
            dir: self.0.dir.clone(),
            name: self.temporary_name(),
        }
    }

    /// Removes what a killed program left under the temporary name, or waits a moment for whoever
    /// uses it now.
    fn make_way(&self, wait: &mut Wait) -> Result<(), Errno> {
        let there = self.target();
        let busy = match there.open(OFlags::RDONLY) {
            Ok(file) => match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // Whoever holds the lock, and no other, may take the name away.
                Ok(()) => {
                    if there.is(&file)? {
                        there.dir.unlink(&there.name)?;
                        info!(
                            "removed {}, which a killed program left",
                            printable(&there.name)
                        );
                    }
                    false
                }
                Err(Errno::WOULDBLOCK) => true,
                Err(errno) => return Err(errno),
            },
            Err(Errno::NOENT) => false,
            Err(Errno::AGAIN | Errno::INTR | Errno::STALE) => true,
            Err(errno) => return Err(errno),
        };
        match busy && !wait.pause() {
            true => Err(Errno::AGAIN),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_name_can_be_recognised_and_is_never_too_long() {
        assert_eq!(temporary_name(OsStr::new("a.json")), ".a.json.latchfs-tmp");
        let longest = "x".repeat(LONGEST_NAME - SUFFIX.len() - 1);
        assert_eq!(temporary_name(OsStr::new(&longest)).len(), LONGEST_NAME);
        let names = ["y", "z"].map(|end| {
            temporary_name(OsStr::new(&format!(
                "{}{end}",
                "x".repeat(LONGEST_NAME - 1)
            )))
        });
        assert_ne!(names[0], names[1]);
        assert!(names.iter().all(|name| name.len() == LONGEST_NAME));
    }
}
