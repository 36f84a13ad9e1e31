//! Files with the policy `direct`: opened as they are in BACKING, without versions and turns.
//!
//! A node id is used either for versions or directly. A file whose policy changes while somebody
//! has it open (it was renamed) gets a fresh node id for those who open it from then on, so that
//! one node id never has both kinds of handles, which the kernel could not tell apart.

use super::io::Handle;
use super::lookup::Entry;
use super::make::{Made, NewMode};
use super::open::{OpenFlags, Opened, OpenedOn, Wish};
use super::transaction::Writer;
use super::tree::{Key, NodeId};
use super::version::Version;
use super::{Caller, Done, Engine, State};
use crate::backing::shadow;
use crate::backing::{Credentials, Dir, Errno, dir, identity, unfinished};
use crate::config::Durability;
use crate::rules::{Policy, Treatment};
use crate::sync::Arc;
use crate::sync::atomic::AtomicU64;
use log::warn;
use rustix::fs::{FileType, OFlags};
use std::ffi::OsStr;
use std::fs::File;
use std::path::PathBuf;

/// An open handle of a file of BACKING itself.
#[derive(Debug)]
pub struct DirectFile {
    /// The file, opened as the program asked for it.
    pub file: Arc<File>,
    /// May it be written?
    pub writable: bool,
    /// Who opened it: at whose expense it is written.
    pub who: Credentials,
    /// Bytes written so far.
    pub written: AtomicU64,
    /// What all handles of the node id share.
    _version: Arc<Version>,
}

impl Engine {
    /// How a file is treated, by its first name; `None` if it has none.
    pub(super) fn treatment_of(&self, state: &State, key: Key) -> Option<Treatment> {
        let path: PathBuf = state.tree.path(key)?.into_iter().collect();
        Some(self.settings().treatment(&path))
    }

    /// The same for a name, of which no file may be known.
    pub(super) fn treatment_at(&self, parent: Key, name: &OsStr) -> Treatment {
        let parent = self.state.lock().tree.path(parent).unwrap_or_default();
        let path: PathBuf = parent.iter().map(|c| c.as_os_str()).chain([name]).collect();
        self.settings().treatment(&path)
    }

    /// What a file without a transaction in flight, treated like this, is to be opened as. If it is
    /// open otherwise, it gets a fresh node id for that. `appends`: by somebody who is to append to
    /// it.
    pub(super) fn settle_policy(
        &self,
        state: &mut State,
        key: Key,
        treatment: Option<&Treatment>,
        appends: bool,
    ) -> Policy {
        let inode = state.tree.inode(key);
        let appended = inode.is_some_and(|inode| inode.appended);
        let current = inode.map(|inode| inode.current);
        let open = current.and_then(|current| state.tree.alive(current).1);
        let policy = match treatment.and_then(|treatment| treatment.policy) {
            Some(Policy::Direct) => Policy::Direct,
            Some(Policy::Append) => Policy::Append,
            _ if appends || appended || state.appenders.contains_key(&key) => Policy::Append,
            _ => Policy::Atomic,
        };
        match open {
            // Without a name it stays what it is.
            Some(open) if treatment.is_none() => open.policy,
            // Nor does one that may grow stop to.
            Some(open) if open.policy == Policy::Append && policy == Policy::Atomic => open.policy,
            Some(open) if open.policy != policy => {
                // Who is to append does it in a way in which those who read it notice.
                if policy != Policy::Append || !appends {
                    state.tree.renew(key);
                }
                policy
            }
            _ => policy,
        }
    }

    /// Opens a file of BACKING itself.
    ///
    /// # Errors
    /// `ESTALE` if its node id stands for something else by now; what BACKING says.
    pub(super) fn open_direct(&self, wish: &Wish) -> Result<Opened, Errno> {
        let file = Arc::new(self.open_backing(wish.inode, wish.node, wish.flags)?);
        // Of a reader's, nothing is asked.
        let writer = wish.writer.as_ref();
        let who = writer.map(|w| w.credentials.clone()).unwrap_or_default();
        if wish.flags.truncate {
            truncate(&file, 0, &who)?;
        }
        let version = self.direct_version(wish.inode, wish.node, &file)?;
        Ok(self.direct_handle(file, wish.flags.write, who, version))
    }

    fn direct_handle(
        &self,
        file: Arc<File>,
        writable: bool,
        who: Credentials,
        version: Arc<Version>,
    ) -> Opened {
        let direct = DirectFile {
            file,
            writable,
            who,
            written: AtomicU64::new(0),
            _version: version,
        };
        Opened {
            handle: self.add_handle(Handle::Direct(Arc::new(direct))),
            on: OpenedOn::Backing,
        }
    }

    fn open_backing(&self, key: Key, node: NodeId, flags: OpenFlags) -> Result<File, Errno> {
        if self.is_torn(key) || (flags.write || flags.truncate) && self.is_unsettled(key) {
            return Err(Errno::IO);
        }
        let access = match (flags.write, flags.read_write, flags.truncate) {
            (_, true, _) => OFlags::RDWR,
            (true, ..) => OFlags::WRONLY,
            // To truncate it, the daemon needs to write.
            (false, false, true) => OFlags::RDWR,
            (false, false, false) => OFlags::RDONLY,
        };
        self.check_descriptors()?;
        let named = self.at_place(key, |dir, name, identity| {
            dir.open_file(name, access, identity)
        });
        match (named, self.state.lock().tree.alive(node).1) {
            // It was removed and is still open: through /proc/self/fd it can be opened again.
            (Err(Errno::STALE), Some(open)) => dir::open_again(&*open.file(), access),
            (named, _) => named,
        }
    }

    /// What the handles of a node id that is used directly have in common.
    fn direct_version(
        &self,
        key: Key,
        node: NodeId,
        file: &Arc<File>,
    ) -> Result<Arc<Version>, Errno> {
        let mut state = self.state.lock();
        if let Some(open) = state.tree.alive(node).1 {
            return match open.policy {
                Policy::Direct => Ok(open),
                Policy::Atomic | Policy::Append => Err(Errno::STALE),
            };
        }
        let inode = state.tree.inode(key).ok_or(Errno::STALE)?;
        if inode.current != node || inode.transaction.is_some() {
            return Err(Errno::STALE);
        }
        let version = Version::direct(file.clone());
        match state.tree.opened(node, &version) {
            true => Ok(version),
            false => Err(Errno::STALE),
        }
    }

    /// open(2) with `O_CREAT` of a free name whose policy is direct; the caller of this holds the
    /// directory's lock on names.
    ///
    /// # Errors
    /// `EEXIST` if it is not free; what BACKING says.
    pub(super) fn create_direct(
        &self,
        (caller, writer): (Caller, &Writer),
        (parent, dir): (Key, &Dir),
        name: &OsStr,
        mode: NewMode,
        flags: OpenFlags,
    ) -> Result<(Entry, Opened), Errno> {
        let access = match (flags.write, flags.read_write) {
            (_, true) => OFlags::RDWR,
            (true, false) => OFlags::WRONLY,
            (false, false) => OFlags::RDONLY,
        };
        let made = self.make_file(caller, (parent, dir), name, mode, access)?;
        let Made {
            file,
            stat,
            claim,
            key,
        } = made;
        let version = match self.direct_version(key, claim.node, &file) {
            Ok(version) => version,
            Err(errno) => {
                self.forget(claim.node, 1);
                return Err(errno);
            }
        };
        let entry = self.entry(claim, Some(stat))?;
        let who = writer.credentials.clone();
        Ok((entry, self.direct_handle(file, flags.write, who, version)))
    }

    /// The file that a truncation is to act on at once, if it is a direct one. `handle`: the one
    /// it came through.
    ///
    /// # Errors
    /// `ESTALE` to have the path looked up again; what BACKING says.
    pub(super) fn direct_to_truncate(
        &self,
        caller: Caller,
        node: NodeId,
        handle: Option<u64>,
    ) -> Result<Option<Arc<File>>, Errno> {
        if let Some(handle) = handle {
            return match self.handles.get(&handle).as_deref() {
                Some(Handle::Direct(direct)) => Ok(Some(direct.file.clone())),
                _ => Ok(None),
            };
        }
        let key = {
            let mut state = self.state.lock();
            let (key, inode) = state.tree.inode_of(node).ok_or(Errno::STALE)?;
            let in_flight = inode.transaction.is_some();
            let treatment = self.treatment_of(&state, key);
            let treatment = treatment.as_ref();
            if in_flight || self.settle_policy(&mut state, key, treatment, false) != Policy::Direct
            {
                return Ok(None);
            }
            let current = state.tree.inode(key).map(|inode| inode.current);
            let sent = state.give_up_redirect(caller.tid);
            match current {
                Some(current) if current == node => key,
                Some(current) if !sent => {
                    state.redirect(caller, key, node, current, None, None);
                    return Err(Errno::STALE);
                }
                _ => return Err(Errno::BUSY),
            }
        };
        let flags = OpenFlags::from_bits(libc::O_WRONLY);
        Ok(Some(Arc::new(self.open_backing(key, node, flags)?)))
    }

    /// write(2) of a direct handle.
    pub(super) fn write_direct(
        &self,
        direct: &DirectFile,
        placement: super::io::Placement,
        data: &[u8],
    ) -> Result<u32, Errno> {
        use rustix::io::{IoSlice, ReadWriteFlags};
        if placement.drop_privileges {
            shadow::drop_privileges(&direct.file, &direct.who)?;
        }
        let flags = match placement.append {
            // Where the end is, BACKING knows best.
            true => ReadWriteFlags::APPEND,
            false => ReadWriteFlags::empty(),
        };
        let mut written = 0;
        while written < data.len() {
            let rest = [IoSlice::new(&data[written..])];
            let at = placement.offset + written as u64;
            let write = || rustix::io::pwritev2(&direct.file, &rest, at, flags);
            match self.approved(&direct.who, write) {
                Ok(n) => written += n,
                Err(Errno::INTR) => {}
                // What could be written counts, as for write(2) itself.
                Err(_) if written > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(written as u32)
    }

    /// Is a rename that of a file without versions, or of one that was appended to, to a name with
    /// versions? Then what was written must be durable first (N2).
    pub(super) fn makes_a_version(&self, from: (Key, &OsStr), to: (Key, &OsStr)) -> bool {
        let appended = || {
            let key = self.state.lock().tree.child(from.0, from.1);
            key.is_some_and(|key| self.was_appended(key))
        };
        let to = self.treatment_at(to.0, to.1);
        to.durability != Durability::None
            && !to.is_direct()
            && (self.treatment_at(from.0, from.1).is_direct() || appended())
    }

    /// Were records appended to a file since it was known, or committed?
    pub(super) fn was_appended(&self, key: Key) -> bool {
        let state = self.state.lock();
        state.tree.inode(key).is_some_and(|inode| inode.appended)
    }

    /// Makes the file of a name durable.
    pub(super) fn sync_file_at(&self, parent: Key, name: &OsStr) -> Result<(), Errno> {
        let dir = self.dir(parent)?;
        let stat = dir.stat_at(name)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        let open = |access| dir.open_file(name, access, identity(&stat));
        match open(OFlags::RDONLY).or_else(|_| open(OFlags::WRONLY)) {
            Ok(file) => rustix::fs::fsync(file),
            Err(Errno::ACCESS) => {
                warn!(
                    "{}: can't be opened to make it durable before it is renamed",
                    name.to_string_lossy()
                );
                Ok(())
            }
            Err(errno) => Err(errno),
        }
    }

    /// Makes a directory's entries durable, if the mount is to be.
    pub(super) fn sync_entries(&self, key: Key) -> Result<(), Errno> {
        match self.settings().defaults.durability {
            Durability::Full => self.dir(key)?.sync(),
            Durability::Rename | Durability::None => Ok(()),
        }
    }

    fn sync_file(&self, file: &File) -> Result<(), Errno> {
        // It may have been opened before a commit rewrote it.
        if let Ok(store) = self.store() {
            unfinished::settle(store, identity(&rustix::fs::fstat(file)?))?;
        }
        rustix::fs::fsync(file)
    }

    /// fsync(2) of a direct handle.
    pub(super) fn sync_direct(self: &Arc<Self>, direct: Arc<DirectFile>, done: Done<()>) {
        self.spawn(move |engine| done(engine.sync_file(&direct.file)));
    }
}

/// truncate(2) of a direct file.
pub(super) fn truncate(file: &File, size: u64, who: &Credentials) -> Result<(), Errno> {
    rustix::fs::ftruncate(file, size)?;
    clear_privileges(file, who)
}

/// Clears what a change of the content by someone without privileges clears (inode(7)).
pub(super) fn clear_privileges(file: &File, who: &Credentials) -> Result<(), Errno> {
    match who.uid {
        0 => Ok(()),
        _ => shadow::drop_privileges(file, who),
    }
}
