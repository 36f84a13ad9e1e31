//! The recording disk: a small FUSE server with three files.
//!
//! - `recorded`: the disk that the workload writes to. Each write and each fsync goes into the log.
//! - `state`: the disk after one power cut. What is written to it is gone with it; it can be logged, too.
//! - `marks`: a line that is written here goes into the log as well, between what the disk was asked to do
//!   before the write(2) was called and after it returned.

use crate::log::{Entry, Image, Overlay, apply};
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use rustix::process::{Signal, set_parent_process_death_signal};
use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, UNIX_EPOCH};

const ROOT: INodeNo = INodeNo(1);
const RECORDED: INodeNo = INodeNo(2);
const STATE: INodeNo = INodeNo(3);
const MARKS: INodeNo = INodeNo(4);
const TTL: Duration = Duration::from_secs(3600);

/// What the server knows.
#[derive(Default)]
pub struct Inner {
    recorded: Image,
    log: Vec<Entry>,
    recording: bool,
    /// The disk after a power cut.
    pub state: Overlay,
    /// What has been done to it, if that is to be known.
    pub state_log: Option<Vec<Entry>>,
}

/// The mounted server; unmounted when it is dropped.
pub struct Disk {
    inner: Arc<Mutex<Inner>>,
    point: PathBuf,
    session: Option<BackgroundSession>,
    _watchdog: Sender<()>,
}

impl Disk {
    /// Mounts a disk of so many bytes.
    pub fn new(point: &Path, size: usize) -> Self {
        let recorded = vec![0; size];
        let inner = Arc::new(Mutex::new(Inner {
            recorded,
            ..Inner::default()
        }));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("latchfs-powercut".into())];
        let server = Server {
            inner: inner.clone(),
            size: size as u64,
        };
        let session = fuser::spawn_mount(server, point, &config).expect("the recording disk");
        let device = rustix::fs::stat(point).expect("the disk").st_dev;
        Self {
            inner,
            point: point.to_owned(),
            session: Some(session),
            _watchdog: watchdog(rustix::fs::minor(device)),
        }
    }

    /// The file of the disk that is recorded.
    pub fn recorded(&self) -> PathBuf {
        self.point.join("recorded")
    }

    /// The file of the disk after a power cut.
    pub fn state(&self) -> PathBuf {
        self.point.join("state")
    }

    /// The file that marks are written to.
    pub fn marks(&self) -> PathBuf {
        self.point.join("marks")
    }

    /// What the server knows.
    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("the disk")
    }

    /// From here on everything is logged. Returns the disk as it is.
    pub fn record(&self) -> Image {
        let mut inner = self.inner();
        inner.recording = true;
        inner.recorded.clone()
    }

    /// Ends that, and returns the log. The disk is gone.
    pub fn stop(&self) -> Vec<Entry> {
        let mut inner = self.inner();
        inner.recording = false;
        inner.recorded = Image::new();
        std::mem::take(&mut inner.log)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let session = self.session.take().expect("it is dropped once");
        if std::thread::panicking() {
            // What is mounted above it goes when the process ends, and so does it.
            return std::mem::forget(session);
        }
        session.umount_and_join().expect("unmount");
    }
}

/// Ends the FUSE connection if this process is killed. A thread of it that waits for the disk then would
/// wait for ever: it can't be killed, and has the server's descriptor open that nobody reads any more. The
/// watchdog dies with the answer.
fn watchdog(connection: u32) -> Sender<()> {
    const SCRIPT: &str = r#"trap 'echo 1 > "$0"; exit' TERM; read _"#;
    let abort = format!("/sys/fs/fuse/connections/{connection}/abort");
    let (alive, over) = channel();
    let (started, begun) = channel();
    // It is told of the end of this thread, which never waits for the disk.
    std::thread::spawn(move || {
        let mut command = Command::new("sh");
        command
            .args(["-c", SCRIPT])
            .arg(abort)
            .stdin(Stdio::piped());
        // So that a signal to all at the terminal leaves it to its work.
        command.process_group(0);
        // SAFETY: one system call.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::TERM))?));
        }
        let mut child = command.spawn().expect("sh");
        started.send(()).expect("the disk");
        let _ = over.recv();
        drop(child.stdin.take());
        child.wait().expect("sh");
    });
    begun.recv().expect("the watchdog");
    alive
}

struct Server {
    inner: Arc<Mutex<Inner>>,
    size: u64,
}

impl Server {
    fn attributes(&self, ino: INodeNo) -> FileAttr {
        let disk = ino == RECORDED || ino == STATE;
        let size = if disk { self.size } else { 0 };
        let kind = match ino {
            ROOT => FileType::Directory,
            _ => FileType::RegularFile,
        };
        FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            flags: 0,
            blksize: 4096,
        }
    }

    /// Something happens to a disk.
    fn happens(&self, ino: INodeNo, entry: Entry) {
        let inner = &mut *self.inner.lock().expect("the disk");
        if ino == STATE {
            inner.state.apply(&entry);
            inner
                .state_log
                .iter_mut()
                .for_each(|log| log.push(entry.clone()));
            return;
        }
        apply(&mut inner.recorded, &entry);
        // Marks tell of what is there at the beginning, too.
        if inner.recording || ino == MARKS {
            inner.log.push(entry);
        }
    }
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let ino = match name.to_str() {
            Some("recorded") => RECORDED,
            Some("state") => STATE,
            Some("marks") => MARKS,
            _ => return reply.error(Errno::ENOENT),
        };
        reply.entry(&TTL, &self.attributes(ino), Generation(0));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(ino));
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Nothing of the last state stays cached: no FOPEN_KEEP_CACHE.
        let flags = match ino {
            MARKS => FopenFlags::FOPEN_DIRECT_IO,
            _ => FopenFlags::empty(),
        };
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let inner = self.inner.lock().expect("the disk");
        if ino == STATE {
            let bytes = inner.state.read(offset, size as usize);
            drop(inner);
            return reply.data(&bytes);
        }
        let from = (offset as usize).min(inner.recorded.len());
        let to = (from + size as usize).min(inner.recorded.len());
        reply.data(&inner.recorded[from..to]);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let entry = match ino {
            MARKS => Entry::Mark(String::from_utf8_lossy(data).trim_end().to_owned()),
            _ => Entry::Write(offset, data.into()),
        };
        self.happens(ino, entry);
        reply.written(data.len() as u32);
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.happens(ino, Entry::Flush);
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) == 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let length = length.min(self.size.saturating_sub(offset));
        self.happens(ino, Entry::Zero(offset, length));
        reply.ok();
    }
}
