//! One file replaced where nobody serves BACKING: for commands, which are their own only client.

use super::io::{Handle, Placement};
use super::make::NewMode;
use super::open::{OpenFlags, Opened};
use super::transaction::Detached;
use super::tree::ROOT_NODE;
use super::{Caller, Done, Engine, NodeId};
use crate::backing::kept::Kind;
use crate::backing::{Errno, shadow};
use crate::owner::{Exit, ProcessWatch, Processes, Search, Thread};
use crate::sync::Arc;
use crate::sync::mpsc::channel;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// How much is copied at a time, in bytes.
const PIECE: usize = 1 << 20;
/// How often a name that somebody changes behind our back is looked up.
const ATTEMPTS: usize = 5;
/// How long what has been begun may take to end.
const AT_END: Duration = Duration::from_secs(10);

/// The processes of an engine that only this thread uses: nobody but it has anything open.
#[derive(Clone, Copy, Debug)]
pub struct Alone;

impl Processes for Alone {
    fn thread(&self, tid: u32) -> Option<Thread> {
        Some(Thread {
            tid,
            process: std::process::id(),
            parent: 0,
            groups: Vec::new(),
            name: String::from("latchfs"),
            exiting: false,
            in_exec: false,
            interrupted: false,
            signalled: false,
        })
    }

    fn exit(&self, _process: u32) -> Exit {
        Exit::Unknown
    }

    fn holds_open_for_writing(&self, _process: u32, _inode: u64) -> bool {
        false
    }

    fn holds_open(&self, _process: u32, _inode: u64, _device: Option<u64>) -> Option<bool> {
        Some(false)
    }

    fn locks_description(&self, _tid: u32) -> Option<bool> {
        None
    }

    fn anyone_holds(&self, _search: &Search) -> bool {
        false
    }

    fn maps(&self, _process: u32, _inode: u64) -> bool {
        false
    }

    fn watch(&self, _process: u32) -> Option<ProcessWatch> {
        None
    }
}

impl Engine {
    /// Makes `content` the file at a path within the mount, as a program would that opens, writes and
    /// closes it; one that is not there is made, with mode 0600. The engine must have nobody else
    /// that uses it.
    ///
    /// # Errors
    /// What open(2), write(2) and close(2) on the mount would say.
    pub fn replace_file(self: &Arc<Self>, path: &Path, content: &File) -> Result<(), Errno> {
        let caller = Caller {
            tid: rustix::thread::gettid().as_raw_pid() as u32,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        };
        let way = plain_components(path).ok_or(Errno::INVAL)?;
        let name = way.file_name().ok_or(Errno::ISDIR)?;
        let mut parent = ROOT_NODE;
        for component in way.parent().into_iter().flatten() {
            parent = self.lookup(caller, parent, component)?.node;
        }
        let opened = self.open_to_replace(caller, parent, name)?;
        let mut result = self.copy_into(caller, &opened, content);
        if result.is_err() {
            self.throw_away(&opened, path);
        }
        let closed = answer(|done| self.flush(caller, opened.handle, done));
        self.release(opened.handle);
        self.drain(AT_END);
        result = result.and(closed);
        result
    }

    fn open_to_replace(
        self: &Arc<Self>,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
    ) -> Result<Opened, Errno> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let opened = match self.lookup(caller, parent, name) {
                Ok(entry) => {
                    let flags = OpenFlags::from_bits(libc::O_WRONLY | libc::O_TRUNC);
                    answer(|done| self.open(caller, entry.node, flags, done))
                }
                Err(Errno::NOENT) => {
                    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
                    let flags = OpenFlags::from_bits(flags);
                    let mode = NewMode::new(0o600, 0);
                    let made = self.create(caller, parent, name, mode, flags);
                    made.map(|(_, opened)| opened)
                }
                Err(errno) => return Err(errno),
            };
            match opened {
                // On it the kernel looks the name up again, too.
                Err(Errno::STALE) if attempts < ATTEMPTS => {}
                other => return other,
            }
        }
    }

    fn copy_into(
        self: &Arc<Self>,
        caller: Caller,
        opened: &Opened,
        content: &File,
    ) -> Result<(), Errno> {
        let mut buffer = vec![0; PIECE];
        let mut placement = Placement::default();
        loop {
            let read = content.read_at(&mut buffer, placement.offset);
            let data = &buffer[..read.map_err(shadow::errno)?];
            if data.is_empty() {
                return Ok(());
            }
            let write = |done| self.write(caller, opened.handle, placement, data, done);
            placement.offset += u64::from(answer(write)?);
        }
    }

    /// What has been written so far is nobody's.
    fn throw_away(&self, opened: &Opened, path: &Path) {
        if let Some(Handle::Transaction { transaction, .. }) =
            self.handles.get(&opened.handle).as_deref()
        {
            transaction.inner.lock().detached = Some(Detached {
                path: path.to_owned(),
                by_writer: true,
                kind: Kind::Detached,
                reason: "it could not be copied whole",
            });
        }
    }
}

/// A path within a mount as a way from its root; `None` if it is none.
pub fn plain_components(path: &Path) -> Option<PathBuf> {
    let mut way = PathBuf::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => way.push(name),
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    (!way.as_os_str().is_empty()).then_some(way)
}

/// Waits for the answer to a request.
fn answer<T: Send + 'static>(ask: impl FnOnce(Done<T>)) -> Result<T, Errno> {
    let (send, receive) = channel();
    ask(Box::new(move |result| drop(send.send(result))));
    receive.recv().unwrap_or(Err(Errno::IO))
}
