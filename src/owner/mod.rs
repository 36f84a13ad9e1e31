//! What `/proc` tells about the threads that send requests.
//!
//! A request says which thread sent it. The rest has to be asked: which process the thread
//! belongs to, whether that process is dying and of what, whether anybody still holds a file
//! open. [`Processes`] is that set of questions and [`Proc`] answers them from `/proc`; tests of
//! the callers answer them from a script.
//!
//! # What may be read, and when
//!
//! The thread asked about is usually blocked in a request that *we* have not answered yet, so a
//! read that waits for that thread waits for ever, and takes along `ps` and everyone else who
//! reads the same file. `execve` is the trap: it closes the close-on-exec descriptors, which
//! sends us FLUSH requests, while it holds the process's `exec_update_lock`. Linux 6.18 takes
//! that lock for `/proc/PID/stat`, `maps`, `wchan`, `stack` and for following
//! `/proc/PID/fd/N`. Hence the rules of this module:
//!
//! * `status`, listing `fdinfo`, reading `fdinfo/N`, listing `task`, and `task/TID/children` are
//!   read at any time: they take no lock that is held across a request.
//! * `stat` is read only when no thread of the process has an address space left, that is, no
//!   `VmSize` line in its `status`. Such a process is past everything `execve` does.
//! * `syscall` is read only of a thread that is in a request which is not answered yet. `execve`
//!   takes the lock only when the other threads of the process have ended, which such a one has
//!   not; and it is not in `execve` itself.
//! * `maps` is read only when `VmExe` is not zero. From the moment `execve` takes the lock for
//!   the new address space until it has released it, the process shows the new address space,
//!   in which the bounds of the program's code are not set yet.
//!
//! The rule for `maps` leaves a gap: the process may enter `execve` between the two reads. See
//! [`Processes::maps`] for what that means to the caller.
//!
//! One more thing can make a read wait: `status` and `maps` borrow the address space, and if the
//! process exits in that moment, the borrower is the last to use it and unmaps it. If it had a
//! file of ours mapped, that writes to the file. So **none of this may be called from a thread
//! that the mount needs in order to answer a WRITE**, nor with a lock held that a WRITE takes.
//!
//! # Want of descriptors
//!
//! To look takes descriptors, and a program can have used them up. What could not be looked at then is not
//! taken for absent: the descriptor is held and the mapping is there, so that nothing is committed
//! too early (RELEASE comes, and commits); and how a process ended is asked again for a while.
//!
//! # Privileges
//!
//! Run as root, everything is seen. An ordinary user's daemon sees the descriptors, mappings and
//! exit codes of that user's own processes; for others the answers are "does not hold" and
//! [`Exit::Unknown`].

mod files;
mod holders;
mod status;
mod watch;

use holders::{Access, Holds};
pub use watch::ProcessWatch;

/// A thread that is alive, or at least not reaped yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Thread {
    /// Its thread id.
    pub tid: u32,
    /// The id of its process.
    pub process: u32,
    /// The id of the process that would be told of its process's death; 0 if it is not visible
    /// from here.
    pub parent: u32,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
    /// The name of the thread, which for a process's first thread is the name of the program,
    /// both cut to 15 bytes. Bytes that are not UTF-8 are replaced.
    pub name: String,
    /// The thread has no address space any more: it is exiting or a zombie. (It may have ended
    /// alone; [`Processes::exit`] asks about the process. Kernel threads look like this, too.)
    pub exiting: bool,
    /// The thread is inside `execve`, between the old program and the new one.
    pub in_exec: bool,
    /// A signal is pending that is meant to end what the thread does: it is not blocked, not
    /// ignored, and its default action terminates, whether it is caught or not. A
    /// fatal signal to the process, the death of a sibling that ends the whole process, and an
    /// `execve` of a sibling all show as a pending SIGKILL, which always counts.
    pub interrupted: bool,
    /// A signal is pending that has interrupted the call this thread is in, whatever its default
    /// action is: a call that is made again afterwards by the kernel (`ERESTARTSYS`) may be ended
    /// by it, and only by one that is sure to be for this thread. (A signal to a process of many
    /// threads goes to its first thread, unless that blocks it.)
    pub signalled: bool,
}

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Exit {
    /// Of this signal.
    Signalled(i32),
    /// By itself, with whatever exit status.
    Normal,
    /// It can not be told: the process has not ended, nothing of it is left, or it belongs to
    /// somebody into whose processes this one has no view.
    Unknown,
}

impl Exit {
    /// From the status that `wait(2)` gives, whose low seven bits are the signal.
    fn from_wait_status(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::Normal,
            signal => Self::Signalled(signal),
        }
    }
}

/// What [`Processes::anyone_holds`] looks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Search {
    /// The inode number as `/proc/PID/fdinfo` shows it. For a file of a FUSE mount that is the
    /// `attr.ino` which the kernel was told last, by LOOKUP, CREATE, GETATTR or SETATTR: if those
    /// tell different numbers for one file, each of them has to be looked for.
    pub inode: u64,
    /// The device number of the file system it is on, as stat(2) there gives it, to tell it from
    /// a file of another file system that has the same inode number; `None`: any.
    pub device: Option<u64>,
    /// The process that opened the file.
    pub opener: u32,
    /// A process other than the opener has been seen closing it.
    pub shared: bool,
    /// Descriptors with `O_APPEND` are of something else.
    pub no_append: bool,
}

/// Questions about processes. Nothing here fails: what is gone, or must not be seen, is answered
/// as the methods say.
///
/// See the [module](self) for the threads that must not ask.
pub trait Processes: Send + Sync {
    /// The thread `tid`, or None if it is gone.
    fn thread(&self, tid: u32) -> Option<Thread>;

    /// How a process that is exiting, or a zombie, is ending. [`Exit::Unknown`] for one that has
    /// a living thread, or is gone. (When an exiting process closes its files, none of its
    /// threads is alive any more: descriptors go after memory, and with the last thread.)
    fn exit(&self, process: u32) -> Exit;

    /// Whether the process holds a descriptor of this inode number that is open for writing.
    /// A descriptor that only names a file (`O_PATH`) does not count.
    fn holds_open_for_writing(&self, process: u32, inode: u64) -> bool;

    /// Whether the process holds a descriptor of this inode number at all (`O_PATH` ones do not
    /// count). None if that can't be told: it belongs to somebody into whose processes this one has
    /// no view.
    fn holds_open(&self, process: u32, inode: u64, device: Option<u64>) -> Option<bool>;

    /// Whether the call of fcntl(2) that a thread is in asks for an open file description lock
    /// (true), or for a traditional one (false). None if that can't be told.
    ///
    /// The thread must be in a request that is not answered yet.
    fn locks_description(&self, tid: u32) -> Option<bool>;

    /// Whether any process holds a descriptor of this inode number that is open for writing.
    ///
    /// The opener is asked first. If it holds none, and nobody else has been seen closing the
    /// file (`shared` is false), only its living children are asked, for this reason: a copy
    /// of a descriptor gets into another process by `fork`, so every holder descends from the
    /// opener through processes that held a copy; every one of those that closed its copy, by
    /// `close`, `execve` or exit, sent us a FLUSH, which sets `shared`; so those between opener
    /// and holder all hold it still, and the first of them is a child of the opener.
    ///
    /// If `shared` is true, or the opener is gone or a zombie, or a child is exiting, or the kernel does
    /// not list children (`CONFIG_PROC_CHILDREN`), every process in `/proc` is asked, except the
    /// calling process itself, whose descriptors are on the other side of the mount (it is asked
    /// if it is the opener).
    ///
    /// A FLUSH may come while this runs, from a process that had forked a holder and was already
    /// passed. A caller that gets "nobody" must look whether one has come since it filled in the
    /// `Search`, and if so ask again with `shared` set.
    ///
    /// What is missed if `shared` is false: copies that did not get there by `fork` (sent over
    /// a unix socket, fetched with `pidfd_getfd`), children made with `CLONE_PARENT`, and
    /// those of a process that shared its whole descriptor table (`CLONE_FILES`, not a thread)
    /// and is gone. What is always missed: descriptors that no process has in its table at this
    /// moment (in flight over a socket, registered with an io_uring), and those of a thread
    /// that has left the table of its process (`unshare(CLONE_FILES)`). Their RELEASE still
    /// comes.
    ///
    /// Inode numbers are compared, not mounts: a process in another mount namespace holds the
    /// same file under another mount id. The price is that a file of the same number on another
    /// file system is taken for this one, and small numbers are taken: `/dev/null` and the
    /// terminals in `/dev/pts` are held open for writing by nearly everyone. The files of the
    /// mount should have numbers that no other file system uses.
    fn anyone_holds(&self, search: &Search) -> bool;

    /// Whether the process has a mapping of this inode number that is shared and writable. False
    /// if it can not be read, or must not be read now because the process is inside `execve`
    /// (where it has no such mapping any more).
    ///
    /// If the process enters `execve` at the wrong moment, the call waits until the FLUSH
    /// requests are answered that `execve` causes. It also waits while one of its threads is
    /// inside `munmap` or `mmap` and writes pages of a file back. The answers to FLUSH and WRITE
    /// must never depend on it, except to a FLUSH of this very process, which is then not in
    /// `execve`.
    fn maps(&self, process: u32, inode: u64) -> bool;

    /// Takes hold of a process, to be able to tell later how it ended. None if it is gone.
    fn watch(&self, process: u32) -> Option<ProcessWatch>;
}

/// The processes of this machine, as far as this process's `/proc` shows them.
#[derive(Clone, Copy, Default, Debug)]
pub struct Proc;

impl Processes for Proc {
    fn thread(&self, tid: u32) -> Option<Thread> {
        status::read(tid).map(|status| status.into_thread(tid))
    }

    fn exit(&self, process: u32) -> Exit {
        match status::state_patiently(process) {
            status::State::Ending(exit) => exit,
            status::State::Alive | status::State::Gone => Exit::Unknown,
        }
    }

    fn holds_open_for_writing(&self, process: u32, inode: u64) -> bool {
        let held = || holders::holds(process, inode, None, Access::Write) == Holds::Yes;
        files::completely(held).unwrap_or(true)
    }

    fn holds_open(&self, process: u32, inode: u64, device: Option<u64>) -> Option<bool> {
        files::completely(|| holders::holds_at_all(process, inode, device)).flatten()
    }

    fn locks_description(&self, tid: u32) -> Option<bool> {
        status::locks_description(tid)
    }

    fn anyone_holds(&self, search: &Search) -> bool {
        files::completely(|| holders::anyone_holds(search)).unwrap_or(true)
    }

    fn maps(&self, process: u32, inode: u64) -> bool {
        files::completely(|| holders::maps(process, inode)).unwrap_or(true)
    }

    fn watch(&self, process: u32) -> Option<ProcessWatch> {
        ProcessWatch::new(process)
    }
}

#[cfg(test)]
mod tests;
