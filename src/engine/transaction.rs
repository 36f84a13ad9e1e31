//! A writer's private version under construction.

use super::ahead::Ahead;
use super::conflict::Conflict;
use super::tree::{Key, Name, NodeId};
use super::version::Version;
use super::{Engine, Settings};
use crate::backing::kept::Kind;
use crate::backing::shadow::{self, Own, Shadow};
use crate::backing::{Credentials, Errno, Seen, Stat};
use crate::owner::ProcessWatch;
use crate::sync::{Arc, Mutex, RwLock};
use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

/// Who opened a file to write it.
#[derive(Clone, Debug)]
pub struct Writer {
    /// The thread: the owner of the lease.
    pub tid: u32,
    /// Its process.
    pub process: u32,
    /// Its name, for the log.
    pub program: String,
    /// Its user: whose rights and whose quota count.
    pub credentials: Credentials,
}

/// How far a transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its opener was sent to look the name up again, and has not come back yet.
    Pending,
    /// It has open handles.
    Open,
    /// Its last close has happened; it is being committed or rolled back.
    Closing,
    /// It is over.
    Ended(Result<(), Errno>),
}

/// Why a transaction lost its name.
#[derive(Clone, Debug)]
pub struct Detached {
    /// The path within the mount that it had.
    pub path: PathBuf,
    /// By the program that writes it: then it meant to throw the content away.
    pub by_writer: bool,
    /// As what it is kept aside.
    pub kind: Kind,
    /// For the log.
    pub reason: &'static str,
}

/// A name that another file took behind the mount.
#[derive(Clone, Debug)]
pub struct Displaced {
    /// Which it was.
    pub name: Name,
    /// The way there within the mount.
    pub path: Vec<OsString>,
}

/// A transaction. Its lease is held by `writer.tid` until it ends.
#[derive(Debug)]
pub struct Transaction {
    /// The node id of its private version.
    pub node: NodeId,
    /// The file it is for.
    pub inode: Key,
    /// The inode number that programs see.
    pub reported: u64,
    /// What applied to opens when it was opened.
    pub settings: Arc<Settings>,
    /// Who opened it.
    pub writer: Writer,
    /// When, since the engine's start.
    pub began: Duration,
    /// The rest, which changes.
    pub inner: Mutex<Inner>,
    /// Held while the shadow is made, which may copy a large file; never by an event thread.
    pub copying: Mutex<()>,
    /// Shared while bytes go into the shadow; exclusive for the moment from which on it must not
    /// change any more.
    pub writing: RwLock<()>,
}

/// The changing part of a [`Transaction`].
#[derive(Debug)]
pub struct Inner {
    /// How far it is.
    pub phase: Phase,
    /// Its opener has come back, and is about to open it: it is not to be taken for one that never came.
    pub arrived: bool,
    /// Open handles of its node id.
    pub handles: u32,
    /// Those of them of which no close has been told yet. The descriptor of such a one is somewhere,
    /// or on its way to a process: an open(2) has been answered that has not returned.
    pub unclosed: u32,
    /// The version it starts from; `None`: from nothing.
    pub base: Option<Arc<Version>>,
    /// The shadow, once something was written.
    pub shadow: Option<Arc<Shadow>>,
    /// The shadow was published by fsync(2) and belongs to a version now: copy before writing.
    pub published: bool,
    /// It differs from what is committed.
    pub dirty: bool,
    /// A write failed: it can't be committed any more (W8).
    pub failed: Option<Errno>,
    /// The process of its last write died of this signal (W9).
    pub died: Option<(u32, i32)>,
    /// The thread and the process of the last write.
    pub last_writer: Option<(u32, u32)>,
    /// That process has closed its last copy of the descriptor since, alive: what becomes of it
    /// later does not count.
    pub last_writer_closed: bool,
    /// A process other than the opener's has closed a copy of the descriptor.
    pub closed_elsewhere: bool,
    /// It has a handle that can be mapped for writing.
    pub mappable: bool,
    /// It has a handle that can be read, or mapped, or had one.
    pub readable: bool,
    /// It has a handle with `O_APPEND`, or had one.
    pub appends: bool,
    /// Processes that were seen to have it mapped for writing.
    pub mapped_by: HashSet<u32>,
    /// How the opener's process ends, for writes by a mapping that come after close().
    pub watch: Option<ProcessWatch>,
    /// Attributes set by its writer through its handle: they win over the file's at commit.
    pub explicit: Own,
    /// The file's attributes when it began.
    pub replaced: Option<Stat>,
    /// What the commit is to find in BACKING; `None`: nothing, or it is not known.
    pub expected: Option<Seen>,
    /// How long the file was when it began, or the version was at its last fsync(2): what comes
    /// after that in the file are records appended since.
    pub mark: Option<u64>,
    /// The version that such records were appended to.
    pub late: Option<Arc<Version>>,
    /// What it found instead.
    pub conflict: Option<Conflict>,
    /// The name by which its opener came, if it had to be looked up for it.
    pub opened_as: Option<Name>,
    /// The name that another file took behind the mount: that one, or the last.
    pub displaced: Option<Displaced>,
    /// The file's attributes when the shadow got its copy of them.
    pub attributes_of: Option<Stat>,
    /// Written by someone without privileges: set-user-id and capabilities go.
    pub privileges_dropped: bool,
    /// It has no name any more.
    pub detached: Option<Detached>,
    /// Bytes written so far.
    pub written: u64,
    /// What of that is on its way to the disk.
    pub ahead: Ahead,
    /// An fsync(2) is committing what was written so far.
    pub syncing: bool,
    /// What to do when that is over: a next fsync(2), or the end.
    pub after_sync: Vec<Postponed>,
    /// What to do when it has ended.
    pub at_end: Vec<Continuation>,
}

/// Work that a thread of the pool is to do.
pub type Work = Box<dyn FnOnce(&Arc<Engine>) + Send>;

/// Work on a transaction that waits for another part of it.
pub struct Postponed(pub Work);

impl std::fmt::Debug for Postponed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Postponed")
    }
}

/// Work that waits for a transaction to end.
pub struct Continuation(pub Box<dyn FnOnce(Result<(), Errno>) + Send>);

impl std::fmt::Debug for Continuation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Continuation")
    }
}

impl Transaction {
    /// A transaction that has just got its lease.
    pub fn new(
        node: NodeId,
        inode: Key,
        reported: u64,
        writer: Writer,
        settings: Arc<Settings>,
        began: Duration,
        phase: Phase,
    ) -> Arc<Self> {
        Arc::new(Self {
            node,
            inode,
            reported,
            settings,
            writer,
            began,
            inner: Mutex::new(Inner {
                phase,
                arrived: false,
                handles: 0,
                unclosed: 0,
                base: None,
                shadow: None,
                published: false,
                dirty: false,
                failed: None,
                died: None,
                last_writer: None,
                last_writer_closed: false,
                closed_elsewhere: false,
                mappable: false,
                readable: false,
                appends: false,
                mapped_by: HashSet::new(),
                watch: None,
                explicit: Own::default(),
                replaced: None,
                expected: None,
                mark: None,
                late: None,
                conflict: None,
                opened_as: None,
                displaced: None,
                attributes_of: None,
                privileges_dropped: false,
                detached: None,
                written: 0,
                ahead: Ahead::default(),
                syncing: false,
                after_sync: Vec::new(),
                at_end: Vec::new(),
            }),
            copying: Mutex::new(()),
            writing: RwLock::new(()),
        })
    }

    /// Clears the bits that a write by its writer, without privileges, clears, once.
    pub fn drop_privileges(&self) -> Result<(), Errno> {
        let mut inner = self.inner.lock();
        if !inner.privileges_dropped {
            if let Some(shadow) = &inner.shadow {
                shadow::drop_privileges(shadow.file(), &self.writer.credentials)?;
            }
            inner.privileges_dropped = true;
        }
        Ok(())
    }

    /// Is it open, or about to be?
    pub fn is_in_flight(&self) -> bool {
        matches!(self.inner.lock().phase, Phase::Pending | Phase::Open)
    }

    /// Has its last close happened, and its end not yet?
    pub fn is_closing(&self) -> bool {
        self.inner.lock().phase == Phase::Closing
    }

    /// Has `work` done when the commit that is under way is over; at once if it is over already.
    pub fn after_commit(&self, work: impl FnOnce(Result<(), Errno>) + Send + 'static) {
        let mut inner = self.inner.lock();
        if inner.phase == Phase::Closing {
            inner.at_end.push(Continuation(Box::new(work)));
            return;
        }
        drop(inner);
        work(Ok(()));
    }
}

/// What a transaction's content is read from.
pub struct Content {
    /// The file.
    pub file: Arc<File>,
    /// What is longer is not its content: records were appended since.
    pub limit: Option<u64>,
}

impl Content {
    /// How long the content is, in bytes.
    ///
    /// # Errors
    /// `EIO`.
    pub fn length(&self) -> Result<u64, Errno> {
        let length = super::io::length(&self.file)?;
        Ok(self.limit.map_or(length, |limit| limit.min(length)))
    }
}

impl Inner {
    /// What holds its content now, if anything does (else it is empty).
    pub fn content(&self) -> Option<Content> {
        let (file, grows) = match (&self.shadow, &self.base) {
            (Some(shadow), _) => (shadow.file().clone(), self.published),
            (None, Some(base)) => (base.file(), true),
            (None, None) => return None,
        };
        let limit = self.mark.filter(|_| grows);
        Some(Content { file, limit })
    }

    /// The shadow, if something was written to it that is no version.
    pub fn unpublished(&self) -> Option<Arc<Shadow>> {
        self.writable().filter(|_| self.dirty)
    }

    /// The shadow if it can be written as it is.
    pub fn writable(&self) -> Option<Arc<Shadow>> {
        self.shadow.clone().filter(|_| !self.published)
    }

    /// What was to be published belongs to no version after all, unless a write has made a next
    /// shadow meanwhile. Either began at this `mark`.
    pub fn take_back(&mut self, mark: Option<u64>) {
        self.mark = mark;
        if self.published {
            self.published = false;
            self.dirty = true;
        }
    }

    /// The mount itself has changed the file that its commit is to find.
    pub fn expect_instead(&mut self, before: Seen, after: Seen) {
        if self.expected == Some(before) {
            self.expected = Some(after);
        }
    }

    /// A write by `tid` of `process` reached it.
    pub fn wrote(&mut self, tid: u32, process: u32) {
        self.dirty = true;
        self.last_writer = Some((tid, process));
        self.last_writer_closed = false;
        // Whoever wrote last decides, and that one lives.
        self.died = None;
    }

    /// The process by whose death the transaction is rolled back (W9).
    pub fn decider(&self, opener: u32) -> u32 {
        self.last_writer.map_or(opener, |(_, process)| process)
    }

    /// A process that holds it is seen dying of a signal.
    pub fn note_death(&mut self, opener: u32, process: u32, signal: i32) {
        if self.decider(opener) == process {
            self.died = Some((process, signal));
        }
    }
}
