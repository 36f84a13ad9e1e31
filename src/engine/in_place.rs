//! Files that keep their inode: a version of them is copied into it, under a redo record.
//!
//! - A rename over one name of a hard-linked file would tear it from its other names.
//! - A user who may write a file but not its directory could not have replaced it; neither does the
//!   commit, also where the daemon, being root, could.
//! - An ordinary user's daemon can't give a new inode the owner of the old one.
//! - A name can be a mount of its own, or its directory on another file system than `.latchfs`.
//!
//! Readers must not see the inode change. Opens wait meanwhile; who has it open already is given a
//! copy. That can't be done to those for whom the kernel reads the inode by itself. So it does not
//! where a file may have to be rewritten ([`Engine::may_be_rewritten`]); and where it does all the
//! same (the file was linked, or a mode was changed, since it was opened), the version becomes a
//! new inode after all.

use super::Engine;
use super::commit::Published;
use super::conflict::{Candidate, Conflict};
use super::transaction::Transaction;
use super::tree::{Key, Name};
use super::version::Version;
use crate::backing::credentials::{NOTHING, acting_as};
use crate::backing::redo::{self, Rewrite, Rewritten};
use crate::backing::shadow::{self, Shadow};
use crate::backing::unfinished::{self, Unfinished};
use crate::backing::{Dir, Errno, Identity, Seen, Stat, dir, identity, stamp};
use crate::sync::Arc;
use log::{error, info, warn};
use rustix::fs::RenameFlags;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;

/// A version whose readers were given a copy, and what they had before; `None`: nobody had it open.
type Moved = Option<(Arc<Version>, Arc<File>)>;

impl Engine {
    /// Refuses at the open, as a disk does, what the commit would be refused.
    ///
    /// # Errors
    /// `EPERM` for a file that chattr(1) has made immutable, or only to be appended to.
    pub(super) fn check_changeable(&self, transaction: &Transaction) -> Result<(), Errno> {
        let check = self.at_place(transaction.inode, |dir, name, _| dir.check_changeable(name));
        match check {
            Err(Errno::PERM) => {
                info!(
                    "{}: not opened for pid {} ({}): it is immutable or append-only (chattr(1))",
                    self.path_of(transaction.inode),
                    transaction.writer.process,
                    transaction.writer.program
                );
                Err(Errno::PERM)
            }
            // What became of its name is found out later.
            _ => Ok(()),
        }
    }

    /// Has the file to keep its inode, though it has no other name?
    pub(super) fn must_stay(
        &self,
        transaction: &Transaction,
        shadow: &Shadow,
        dir: &Dir,
        file: &Stat,
    ) -> Result<bool, Errno> {
        if self.privileged {
            let who = &transaction.writer.credentials;
            return Ok(who.uid != 0 && !acting_as(who, NOTHING, || dir.may_replace(file, who.uid))?);
        }
        let new = rustix::fs::fstat(shadow.file())?;
        let other = (new.st_uid, new.st_gid) != (file.st_uid, file.st_gid);
        Ok(other && !transaction.inner.lock().explicit.owner)
    }

    /// May a later commit have to rewrite this file of `dir`? Then the kernel must not read it by
    /// itself. `of_file`: what the file is like.
    pub(super) fn may_be_rewritten(&self, dir: &Dir, file: &File, of_file: &Stat) -> bool {
        if !self.privileged {
            // Nothing is read by the kernel itself.
            return false;
        }
        let Ok(of_dir) = dir.stat() else {
            return true;
        };
        let acls = || self.acls && (has_acl(dir) || has_acl(file));
        of_file.st_nlink > 1
            || of_dir.st_dev != self.root_identity.dev
            || !every_writer_may_replace(&of_dir, of_file, acls)
    }

    /// Rewrites the file's inode, which is to be still as `stat` tells.
    ///
    /// # Errors
    /// `ESTALE` if it was changed behind the mount; `EAGAIN` if its names have changed meanwhile; what opening and writing it says.
    pub(super) fn publish_in_place(
        &self,
        candidate: &Candidate,
        dir: &Dir,
        name: &Name,
        stat: &Stat,
    ) -> Result<Published, Errno> {
        let key = candidate.transaction.inode;
        let target = match redo::open_for_rewrite(dir, &name.name, identity(stat)) {
            // The name has changed since it was looked at.
            Err(Errno::STALE | Errno::NOENT) => return Err(Errno::AGAIN),
            other => other?,
        };
        let set_rewriting = |rewriting| {
            if let Some(inode) = self.state.lock().tree.inode_mut(key) {
                inode.rewriting = rewriting;
            }
        };
        set_rewriting(true);
        let result = match self.move_readers_away(key, dir) {
            Ok(Some(moved)) => self.rewrite(candidate, &target, stat).inspect_err(|_| {
                // The inode is what it was, and may grow.
                if let Some((version, file)) = moved {
                    version.move_to(file);
                }
            }),
            Ok(None) => self.publish_under_all_names(candidate, stat),
            Err(errno) => Err(errno),
        };
        set_rewriting(false);
        result
    }

    fn rewrite(
        &self,
        candidate: &Candidate,
        target: &File,
        stat: &Stat,
    ) -> Result<Published, Errno> {
        let &Candidate {
            transaction,
            shadow,
            ..
        } = candidate;
        let key = transaction.inode;
        let path = self.state.lock().tree.path(key).ok_or(Errno::STALE)?;
        // Everything else it has already, also what others give it meanwhile.
        let own = {
            let inner = transaction.inner.lock();
            let mut own = inner.explicit.clone();
            own.mode |= inner.privileges_dropped;
            own
        };
        let expected = (!candidate.may_win()).then(|| stamp(stat));
        let store = self.store()?;
        // Before, so that nothing can fail once the inode is the version.
        let (file, own_stamp) = (
            Arc::new(redo::open_again(target)?),
            stamp(&rustix::fs::fstat(shadow.file())?),
        );
        let rewrite = Rewrite {
            shadow,
            target,
            path: &path,
            own: &own,
            expected,
        };
        let rewritten = redo::rewrite(store, &rewrite, || self.end_log(key));
        let rewritten = rewritten.inspect_err(|errno| {
            if let (Errno::STALE, Ok(now)) = (*errno, rustix::fs::fstat(target)) {
                let conflict = Conflict::between(Some(Seen::of(stat)), Some(&now));
                transaction.inner.lock().conflict = conflict;
            }
        })?;
        let seen = rustix::fs::fstat(target).map_or_else(
            |_| Seen {
                identity: identity(stat),
                stamp: own_stamp,
            },
            |now| Seen::of(&now),
        );
        let (version, unfinished) = match rewritten {
            Rewritten::Whole => (self.new_version(key, file, true, true), None),
            // Its record says so: who has it open meanwhile reads the version there.
            Rewritten::Unfinished(errno) => {
                (Version::new(shadow.file().clone(), true), Some(errno))
            }
        };
        self.state
            .lock()
            .tree
            .published(key, seen.identity, &version);
        Ok(Published {
            dirs: Vec::new(),
            version,
            late: false,
            seen,
            unfinished,
        })
    }

    /// Does anything belong into the inode of a file that a rewrite has left undone?
    pub(super) fn is_unsettled(&self, key: Key) -> bool {
        self.ask_unfinished(key, Unfinished::has)
    }

    /// Is the inode of a file perhaps half rewritten? Nobody may read it then.
    pub(super) fn is_torn(&self, key: Key) -> bool {
        self.ask_unfinished(key, Unfinished::is_torn)
    }

    fn ask_unfinished(&self, key: Key, ask: impl Fn(&Unfinished, Identity) -> bool) -> bool {
        let Some(store) = self.store.as_ref().filter(|s| !s.unfinished().is_empty()) else {
            return false;
        };
        let identity = self.state.lock().tree.inode(key).and_then(|i| i.identity);
        identity.is_some_and(|identity| ask(store.unfinished(), identity))
    }

    /// Finishes what a rewrite of the file's inode has left undone. Blocks.
    ///
    /// # Errors
    /// `EIO` and its like: nothing may be put into the inode, and if it is torn, nobody may read it.
    pub(super) fn settle_inode(&self, key: Key) -> Result<(), Errno> {
        let identity = self.state.lock().tree.inode(key).and_then(|i| i.identity);
        let (Some(identity), Ok(store)) = (identity, self.store()) else {
            return Ok(());
        };
        let torn = store.unfinished().is_torn(identity);
        unfinished::settle(store, identity).inspect_err(|errno| {
            let path = self.path_of(key);
            error!("{path}: its rewrite in place can't be finished: {errno}");
        })?;
        if torn {
            info!("{}: its rewrite in place is finished", self.path_of(key));
            self.drop_cached_attributes(key);
        }
        Ok(())
    }

    /// For a file whose readers have had its inode open since before it had to stay, so that it must
    /// not change: the version becomes a new inode, which gets all names the mount knows. One after
    /// the other; a crash in between leaves each name a whole version.
    fn publish_under_all_names(
        &self,
        candidate: &Candidate,
        stat: &Stat,
    ) -> Result<Published, Errno> {
        let (key, shadow) = (candidate.transaction.inode, candidate.shadow);
        let names = self.state.lock().names_of(key);
        let _locked = self.names.exclusive(names.iter().map(|name| name.parent));
        if self.state.lock().names_of(key) != names {
            // Somebody was faster; the caller comes again.
            return Err(Errno::AGAIN);
        }
        let (name, others) = names.split_first().ok_or(Errno::STALE)?;
        let dir = self.dir(name.parent)?;
        let further_names = (stat.st_nlink as usize) > names.len();
        let seen = Seen::of(&rustix::fs::fstat(shadow.file())?);
        self.while_vacant(Some(stat), Some(key), || {
            let file = (&dir, &*name.name);
            shadow::with_time_of(&dir, || self.take_place(candidate, file, stat))
        })?;
        warn!(
            "{}: readers hold the old version, so what was written becomes a file of its own{}",
            self.path_of(key),
            if further_names {
                "; names of it that were made behind the mount keep the old content"
            } else {
                ""
            }
        );
        let mut dirs = vec![dir.clone()];
        for other in others {
            let there = self
                .dir(other.parent)
                .and_then(|to| to.stat_at(&other.name));
            if there.is_ok_and(|there| identity(&there) == identity(stat)) {
                dirs.push(self.publish_again(&dir, name, other)?);
            }
        }
        let now = rustix::fs::fstat(shadow.file());
        let may_change = now.map_or(true, |now| self.may_be_rewritten(&dir, shadow.file(), &now));
        let version = self.new_version(key, shadow.file().clone(), may_change, true);
        self.state
            .lock()
            .tree
            .published(key, seen.identity, &version);
        Ok(Published {
            dirs,
            version,
            late: false,
            seen,
            unfinished: None,
        })
    }

    /// Gives what was published as `name` of `dir` a further name, whatever is there now. Returns
    /// the directory of that.
    pub(super) fn publish_again(&self, dir: &Dir, name: &Name, other: &Name) -> Result<Dir, Errno> {
        let store = self.store()?;
        let to = self.dir(other.parent)?;
        let temp = store.unique_name();
        dir.link(&name.name, store.tmp(), &temp)?;
        let renamed = store
            .tmp()
            .rename(&temp, &to, &other.name, RenameFlags::empty());
        // It is still there where that failed (the directory may be gone behind the mount), and
        // where the name was a hard link of it already.
        let _ = store.tmp().unlink(&temp);
        renamed.map(|()| to)
    }

    /// Gives those who have the current version open a copy of it, before its inode changes; returns
    /// what they had. `None` if the kernel reads the inode for them by itself.
    fn move_readers_away(&self, key: Key, dir: &Dir) -> Result<Option<Moved>, Errno> {
        let Ok((_, version)) = self.version(key) else {
            return Ok(Some(None));
        };
        let from = version.file();
        let copy = Shadow::create_for(dir, self.store()?, 0o600)?;
        shadow::clone_content(&from, copy.file(), super::io::length(&from)?)?;
        let moved = version.move_to(copy.file().clone());
        Ok(moved.then_some(Some((version, from))))
    }
}

fn has_acl(fd: impl AsFd) -> bool {
    dir::xattr(fd, OsStr::new(dir::ACL_ACCESS)).is_ok()
}

/// May everyone (but root, who may anyway) who may write a file replace it in its directory, too?
/// Told from the modes alone, so "no" where that can't tell; `acls`: one of them has an ACL.
fn every_writer_may_replace(dir: &Stat, file: &Stat, acls: impl Fn() -> bool) -> bool {
    const WRITE_AND_SEARCH: u32 = 0o3;
    let open_to = |class: u32| (dir.st_mode >> class) & WRITE_AND_SEARCH == WRITE_AND_SEARCH;
    let (owner, group, others) = (open_to(6), open_to(3), open_to(0));
    if file.st_mode & 0o022 == 0 && (file.st_uid == 0 || (file.st_uid == dir.st_uid && owner)) {
        return true;
    }
    if acls() {
        return false;
    }
    let everyone = owner && group && others;
    // That whoever owns a file in the directory's group is in that group is likely, not certain.
    let its_group = owner && group && file.st_gid == dir.st_gid;
    let sticky = dir.st_mode & 0o1000 != 0;
    let by_owner =
        file.st_uid == 0 || everyone || its_group || (file.st_uid == dir.st_uid && owner);
    let by_group = file.st_mode & 0o020 == 0 || (!sticky && (everyone || its_group));
    let by_others = file.st_mode & 0o002 == 0 || (!sticky && everyone);
    by_owner && by_group && by_others
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(mode: u32, uid: u32, gid: u32) -> Stat {
        let mut stat = rustix::fs::stat("/").expect("the root");
        (stat.st_mode, stat.st_uid, stat.st_gid) = (mode, uid, gid);
        stat
    }

    fn may_replace(dir: (u32, u32, u32), file: (u32, u32, u32)) -> bool {
        let (dir, file) = (stat(dir.0, dir.1, dir.2), stat(file.0, file.1, file.2));
        every_writer_may_replace(&dir, &file, || false)
    }

    #[test]
    fn whoever_may_write_the_file_must_be_able_to_write_the_directory() {
        // One user's own, root's own, a shared directory, one for everybody.
        assert!(may_replace((0o755, 1, 1), (0o644, 1, 1)));
        assert!(may_replace((0o755, 0, 0), (0o644, 0, 0)));
        assert!(may_replace((0o2775, 0, 7), (0o664, 1, 7)));
        assert!(may_replace((0o777, 0, 0), (0o666, 1, 7)));
        // The group, or all, may write the file only.
        assert!(!may_replace((0o755, 1, 7), (0o664, 1, 7)));
        assert!(!may_replace((0o775, 1, 7), (0o666, 1, 7)));
        assert!(!may_replace((0o775, 1, 8), (0o664, 1, 7)));
        // Its owner may write the file only.
        assert!(!may_replace((0o755, 0, 0), (0o644, 1, 1)));
        assert!(!may_replace((0o555, 1, 1), (0o644, 1, 1)));
    }

    #[test]
    fn a_sticky_directory_keeps_the_files_of_others() {
        assert!(may_replace((0o1777, 0, 0), (0o644, 1, 1)));
        assert!(!may_replace((0o1777, 0, 0), (0o664, 1, 1)));
        assert!(!may_replace((0o1777, 0, 0), (0o666, 1, 1)));
    }

    #[test]
    fn of_acls_nothing_is_known_but_what_they_say_of_the_owner() {
        let with_acl = |dir, file| every_writer_may_replace(&dir, &file, || true);
        assert!(with_acl(stat(0o775, 1, 1), stat(0o644, 1, 1)));
        assert!(!with_acl(stat(0o777, 1, 1), stat(0o664, 1, 1)));
    }
}
