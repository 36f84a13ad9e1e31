//! The FUSE adapter: one thin method per request, which decodes it, calls the engine and sends
//! its answer. It holds no state of its own; no fuser type goes below it.

mod convert;
mod lock_kind;
mod opened;
mod readers;
pub mod replace;
pub mod session;
mod walker;
mod wire;

use crate::backing::Errno;
use crate::engine::Engine;
use crate::engine::attributes::Change;
use crate::engine::io::Placement;
use crate::engine::lookup::{Entry, ListedEntry};
use crate::engine::make::NewMode;
use crate::engine::names::Rename;
use crate::engine::open::{OpenFlags, Opened};
use crate::engine::superseded::Superseded;
use crate::engine::tree::NodeId;
use crate::locks::{Lock, Space};
use crate::sync::Arc;
use crate::sync::mpsc::Sender;
use convert::{caller, dirent_type, fuse_errno, fuse_type, node, timestamps};
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileHandle, FopenFlags, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags as FuseOpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use log::{debug, info, trace, warn};
use opened::{created_flags, send_opened};
use readers::Readers;
use rustix::fs::FileType;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;
use wire::{Answer, Device, Page};

/// The largest write, and read, that the kernel sends in one request (its own limit is
/// fs.fuse.max_pages_limit).
const MAX_WRITE: u32 = 1 << 20;

/// What fuser calls.
pub struct Adapter {
    engine: Arc<Engine>,
    device: Device,
    /// Told when the kernel has ended the session.
    at_end: Box<dyn Fn() + Send + Sync>,
    /// The kernel may read committed versions by itself.
    passthrough: bool,
    /// For what fuser does not tell of requests for locks.
    memory: lock_kind::Memory,
    readers: Readers,
}

impl Adapter {
    /// An adapter of an engine; `device` is to be set before the session runs, and `at_end` is
    /// called after its last request.
    pub fn new(engine: Arc<Engine>, device: Device, at_end: Box<dyn Fn() + Send + Sync>) -> Self {
        Self {
            engine,
            readers: Readers::new(device.clone()),
            device,
            at_end,
            passthrough: false,
            memory: lock_kind::Memory::default(),
        }
    }

    fn answer<R>(&self, request: &Request, reply: R) -> Answer {
        Answer::instead_of(reply, request, &self.device)
    }

    /// Answers with an entry; the kernel holds its node id only if it takes the answer.
    fn send_entry(&self, answer: Answer, entry: Result<Entry, Errno>) {
        match entry {
            Ok(entry) => {
                if !answer.entry(&entry) {
                    self.engine.forget(entry.node, 1);
                }
            }
            Err(errno) => answer.error(errno),
        }
    }
}

/// The kernel's cache of a session.
#[derive(Debug)]
struct Cache {
    notifier: fuser::Notifier,
    walker: Sender<Superseded>,
}

impl crate::engine::KernelCache for Cache {
    fn drop_attributes(&self, node: NodeId) {
        // A negative offset: the attributes only, no pages.
        if let Err(error) = self.notifier.inval_inode(INodeNo(node.0), -1, 0) {
            debug!("attributes of node {} not dropped: {error}", node.0);
        }
    }

    fn superseded(&self, old: Superseded) -> bool {
        // It fails if the thread could not do its work, which has been logged.
        self.walker.send(old).is_ok()
    }
}

fn send_empty(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(fuse_errno(errno)),
    }
}

fn empty(reply: ReplyEmpty) -> crate::engine::Done<()> {
    Box::new(move |result| send_empty(reply, result))
}

/// Places 0 and 1 of a listing are `.` and `..`.
const DOTS: u64 = 2;

/// Of how many entries the first page of a listing tells the attributes. The kernel asks for those of every first
/// page, not knowing whether anybody wants them, and for those of later ones if somebody has looked entries up
/// meanwhile.
const UNASKED: usize = 16;

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // O_TRUNC has to come with its OPEN, not as a SETATTR before it.
        config
            .add_capabilities(InitFlags::FUSE_ATOMIC_O_TRUNC)
            .map_err(|_| std::io::Error::other("the kernel lacks FUSE_ATOMIC_O_TRUNC"))?;
        for wish in [
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            // The umask comes with each request: BACKING knows where it doesn't count.
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_POSIX_LOCKS,
            InitFlags::FUSE_FLOCK_LOCKS,
        ] {
            if let Err(missing) = config.add_capabilities(wish) {
                info!("the kernel lacks {missing:?}");
            }
        }
        // Then it asks for the ACLs of every file it judges access to, and takes no error for
        // "there is none".
        if self.engine.has_acls() && config.add_capabilities(InitFlags::FUSE_POSIX_ACL).is_err() {
            warn!("the kernel lacks FUSE_POSIX_ACL: it will not judge by the ACLs of BACKING");
        }
        let _ = config.set_max_write(MAX_WRITE);
        // Reading by the kernel itself needs CAP_SYS_ADMIN.
        if rustix::process::geteuid().is_root() {
            self.passthrough = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
                && config.set_max_stack_depth(2).is_ok();
        }
        Ok(())
    }

    fn destroy(&mut self) {
        (self.at_end)();
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let answer = self.answer(request, reply);
        let entry = self.engine.lookup(caller(request), node(parent), name);
        self.send_entry(answer, entry);
    }

    fn forget(&self, _request: &Request, ino: INodeNo, nlookup: u64) {
        self.engine.forget(node(ino), nlookup);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let answer = self.answer(request, reply);
        match self.engine.attributes(node(ino)) {
            Ok(attributes) => answer.attributes(&attributes),
            Err(errno) => answer.error(errno),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let answer = self.answer(request, reply);
        let change = Change {
            mode,
            uid,
            gid,
            size,
            times: timestamps(atime, mtime),
            handle: fh.map(|fh| fh.0),
        };
        let done = Box::new(move |result: Result<_, Errno>| match result {
            Ok(attributes) => answer.attributes(&attributes),
            Err(errno) => answer.error(errno),
        });
        self.engine.change(caller(request), node(ino), change, done);
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.engine.read_link(node(ino)) {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let answer = self.answer(request, reply);
        // The reverse of the kernel's new_encode_dev().
        let (major, minor) = ((rdev >> 8) & 0xfff, (rdev & 0xff) | ((rdev >> 12) & !0xff));
        let rdev = rustix::fs::makedev(major, minor);
        let (caller, mode) = (caller(request), NewMode::new(mode, umask));
        let entry = self
            .engine
            .make_node(caller, node(parent), name, mode, rdev);
        self.send_entry(answer, entry);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let answer = self.answer(request, reply);
        let (caller, mode) = (caller(request), NewMode::new(mode, umask));
        let entry = self.engine.make_dir(caller, node(parent), name, mode);
        self.send_entry(answer, entry);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.engine
            .unlink(caller(request), node(parent), name, empty(reply));
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        send_empty(reply, self.engine.remove_dir(node(parent), name));
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let answer = self.answer(request, reply);
        let caller = caller(request);
        let entry = self
            .engine
            .make_symlink(caller, node(parent), link_name, target);
        self.send_entry(answer, entry);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let rename = Rename {
            parent: node(parent),
            name: name.to_owned(),
            new_parent: node(newparent),
            new_name: newname.to_owned(),
            flags: flags.bits(),
        };
        self.engine.rename(caller(request), rename, empty(reply));
    }

    fn link(
        &self,
        request: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let answer = self.answer(request, reply);
        let caller = caller(request);
        let entry = self
            .engine
            .link(caller, node(ino), node(newparent), newname);
        self.send_entry(answer, entry);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: FuseOpenFlags, reply: ReplyOpen) {
        let (engine, passthrough) = (self.engine.clone(), self.passthrough);
        let unique = request.unique().0;
        let done = Box::new(move |result: Result<Opened, Errno>| {
            trace!("open, request {unique}: {result:?}");
            send_opened(&engine, reply, passthrough, result);
        });
        let flags = OpenFlags::from_bits(flags.0);
        self.engine.open(caller(request), node(ino), flags, done);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let answer = self.answer(request, reply);
        let flags = OpenFlags::from_bits(flags);
        let (caller, mode) = (caller(request), NewMode::new(mode, umask));
        match self.engine.create(caller, node(parent), name, mode, flags) {
            Ok((entry, opened)) => {
                if !answer.created(&entry, opened.handle, created_flags(&opened.on)) {
                    self.engine.release(opened.handle);
                    self.engine.forget(entry.node, 1);
                }
            }
            Err(errno) => answer.error(errno),
        }
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: FuseOpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let done = Box::new(move |result: Result<Vec<u8>, Errno>| match result {
            Ok(data) => reply.data(&data),
            Err(errno) => reply.error(fuse_errno(errno)),
        });
        // The kernel never asks for more at once; the buffer is made before anything is read.
        self.engine.read(fh.0, offset, size.min(MAX_WRITE), done);
    }

    fn write(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: FuseOpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let placement = Placement {
            offset,
            append: flags.0 & libc::O_APPEND != 0,
            mapped: write_flags.contains(WriteFlags::FUSE_WRITE_CACHE),
            drop_privileges: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
        };
        let done = Box::new(move |result: Result<u32, Errno>| match result {
            Ok(written) => reply.written(written),
            Err(errno) => reply.error(fuse_errno(errno)),
        });
        let caller = caller(request);
        self.engine.write(caller, fh.0, placement, data, done);
        self.readers.rest();
    }

    fn flush(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let (caller, done) = (caller(request), empty(reply));
        self.engine
            .close(caller, node(ino), fh.0, lock_owner.0, done);
        self.readers.rest();
    }

    fn getlk(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let told = lock_kind::Told {
            node: ino,
            handle: fh,
            owner: lock_owner,
            start,
            end,
            kind: typ,
            locker: pid,
            wait: false,
        };
        // There is no such question for flock.
        let call = match told.call(Space::Fcntl) {
            Ok(call) => call,
            Err(errno) => return reply.error(fuse_errno(errno)),
        };
        let done = Box::new(move |result: Result<Option<Lock>, Errno>| match result {
            Ok(Some(lock)) => {
                let kind = lock_kind::type_of(lock.mode);
                reply.locked(lock.range.start, lock.range.end, kind, lock.process);
            }
            Ok(None) => reply.locked(start, end, libc::F_UNLCK, 0),
            Err(errno) => reply.error(fuse_errno(errno)),
        });
        self.engine.test_lock(call, done);
    }

    fn setlk(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let told = lock_kind::Told {
            node: ino,
            handle: fh,
            owner: lock_owner,
            start,
            end,
            kind: typ,
            locker: pid,
            wait: sleep,
        };
        let space = self.memory.space(request, &told).ok_or(Errno::NOLCK);
        match space.and_then(|space| told.call(space)) {
            Ok(call) => self.engine.lock(caller(request), call, sleep, empty(reply)),
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: FuseOpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.engine.release(fh.0);
        reply.ok();
    }

    fn fsync(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.engine.sync(fh.0, empty(reply));
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: FuseOpenFlags, reply: ReplyOpen) {
        match self.engine.open_dir(node(ino)) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let add = |name: &OsStr, reported, kind, next| {
            reply.add(INodeNo(reported), next, fuse_type(kind), name)
        };
        match list(&self.engine, fh.0, offset, add) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }

    fn readdirplus(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let mut page = Page::answering(&reply);
        let answer = self.answer(request, reply);
        let mut told = Vec::new();
        let most = match offset {
            0 => UNASKED,
            _ => usize::MAX,
        };
        let add = |name: &OsStr, reported, kind, next| {
            if !page.has_room(name) {
                return true;
            }
            let dots = name.as_bytes() == b"." || name.as_bytes() == b"..";
            let entry = match dots || told.len() >= most {
                true => None,
                false => self.engine.look_up_listed(caller(request), fh.0, name).ok(),
            };
            match entry {
                Some(entry) => {
                    page.add(name, &entry, next);
                    told.push(entry.node);
                }
                None => page.add_name(name, reported, dirent_type(kind), next),
            }
            false
        };
        let taken = match list(&self.engine, fh.0, offset, add) {
            Ok(()) => answer.page(&page),
            Err(errno) => {
                answer.error(errno);
                false
            }
        };
        if !taken {
            told.into_iter().for_each(|id| self.engine.forget(id, 1));
        }
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: FuseOpenFlags,
        reply: ReplyEmpty,
    ) {
        self.engine.release_dir(fh.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.engine.sync_dir(fh.0, empty(reply));
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.engine.stat_fs() {
            Ok(fs) => reply.statfs(
                fs.f_blocks,
                fs.f_bfree,
                fs.f_bavail,
                fs.f_files,
                fs.f_ffree,
                fs.f_bsize as u32,
                fs.f_namemax as u32,
                fs.f_frsize as u32,
            ),
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (caller, flags) = (caller(request), flags as u32);
        let result = self.engine.set_xattr(caller, node(ino), name, value, flags);
        send_empty(reply, result);
    }

    fn getxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        send_xattr(reply, size, self.engine.xattr(node(ino), name));
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let privileged = request.uid() == 0;
        let names = self.engine.xattr_names(node(ino), privileged);
        send_xattr(reply, size, names);
    }

    fn removexattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        send_empty(reply, self.engine.remove_xattr(node(ino), name));
    }

    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(fuse_errno(Errno::NOTTY));
    }

    fn poll(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // The kernel then answers poll(2) by itself, as for any regular file.
        reply.error(fuse_errno(Errno::NOSYS));
    }

    fn fallocate(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.engine
            .allocate(caller(request), fh.0, offset, length, mode, empty(reply));
    }

    fn lseek(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        match self.engine.seek(fh.0, offset, whence) {
            Ok(offset) => reply.offset(offset as i64),
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let done = Box::new(move |result: Result<u32, Errno>| match result {
            Ok(copied) => reply.written(copied),
            Err(errno) => reply.error(fuse_errno(errno)),
        });
        let (from, to) = ((fh_in.0, offset_in), (fh_out.0, offset_out));
        self.engine.copy_range(caller(request), from, to, len, done);
    }
}

/// Answers GETXATTR and LISTXATTR: with size 0 the length is asked, else the value.
fn send_xattr(reply: ReplyXattr, size: u32, value: Result<Vec<u8>, Errno>) {
    match value {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(fuse_errno(Errno::RANGE)),
        Ok(value) => reply.data(&value),
        Err(errno) => reply.error(fuse_errno(errno)),
    }
}

/// Goes through a listing from `offset` on, until `add` says that it is full.
fn list(
    engine: &Engine,
    handle: u64,
    offset: u64,
    mut add: impl FnMut(&OsStr, u64, FileType, u64) -> bool,
) -> Result<(), Errno> {
    if offset < DOTS {
        let (own, parent) = engine.dot_numbers(handle)?;
        let dots = [(0, ".", own), (1, "..", parent)];
        for (place, name, reported) in dots.into_iter().skip(offset as usize) {
            if add(OsStr::new(name), reported, FileType::Directory, place + 1) {
                return Ok(());
            }
        }
    }
    let mut place = offset.saturating_sub(DOTS);
    loop {
        let page: Vec<ListedEntry> = engine.read_dir(handle, place)?;
        let Some(last) = page.last().map(|entry| entry.next) else {
            return Ok(());
        };
        for entry in &page {
            let next = entry.next + DOTS;
            if add(&entry.name, entry.reported, entry.kind, next) {
                return Ok(());
            }
        }
        place = last;
    }
}
