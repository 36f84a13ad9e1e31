//! An engine over a directory of its own, and threads that use it as a kernel would for them.

use crate::scripted::Scripted;
use latchfs::backing::store::Store;
use latchfs::backing::{Dir, Errno};
use latchfs::config::Durability;
use latchfs::engine::io::Placement;
use latchfs::engine::lookup::Entry;
use latchfs::engine::names::Rename;
use latchfs::engine::open::{OpenFlags, Opened};
use latchfs::engine::tree::{NodeId, ROOT_NODE};
use latchfs::engine::{Caller, Done, Engine, Settings};
use latchfs::rules::Defaults;
use shuttle::sync::mpsc::{Receiver, channel};
use shuttle::thread::JoinHandle;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub const READ: i32 = libc::O_RDONLY;
pub const WRITE: i32 = libc::O_RDWR;
pub const UPDATE: i32 = libc::O_WRONLY | libc::O_TRUNC;
pub const APPEND: i32 = libc::O_WRONLY | libc::O_APPEND;

/// A file that a thread has open.
pub struct File {
    opened: Opened,
    inode: u64,
    writes: bool,
}

/// When an open began, when it was seen to wait, when it was served.
#[derive(Debug, Default)]
struct Turn {
    began: u64,
    waits: Option<u64>,
    served: u64,
}

/// What is noted of the threads. The locks are of the standard library: they are no places for shuttle
/// to change the thread.
#[derive(Default)]
struct Notes {
    time: u64,
    turns: HashMap<String, Vec<Turn>>,
    inside: HashMap<String, u32>,
}

impl Notes {
    fn now(&mut self) -> u64 {
        self.time += 1;
        self.time
    }
}

pub struct Scene {
    engine: Arc<Engine>,
    script: Scripted,
    notes: Mutex<Notes>,
    dir: tempfile::TempDir,
}

fn caller(tid: u32) -> Caller {
    let (uid, gid) = (0, 0);
    Caller { tid, uid, gid }
}

fn answer<T: Send + 'static>() -> (Done<T>, Receiver<Result<T, Errno>>) {
    let (send, receive) = channel();
    (Box::new(move |result| drop(send.send(result))), receive)
}

impl Scene {
    pub fn new(lock_timeout: Duration) -> Arc<Self> {
        let dir = tempfile::tempdir().expect("a directory");
        let root = Dir::open_root(dir.path()).expect("the directory");
        let store = Store::open(&root).expect("the store");
        let settings = Settings {
            defaults: Defaults {
                lock_timeout,
                durability: Durability::None,
                ..Defaults::default()
            },
            ..Settings::default()
        };
        let script = Scripted::default();
        let engine = Engine::new(root, Some(store), settings, Box::new(script.clone()));
        Arc::new(Self {
            engine: engine.expect("an engine"),
            script,
            notes: Mutex::default(),
            dir,
        })
    }

    /// Puts a file there before the threads begin, and its directory.
    pub fn put(&self, name: &str, content: &str) {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        std::fs::write(path, content).expect("a file");
    }

    /// Gives a file a further name before the threads begin.
    pub fn put_link(&self, name: &str, other: &str) {
        let path = |name| self.dir.path().join(name);
        std::fs::hard_link(path(name), path(other)).expect("a hard link");
    }

    /// What BACKING holds.
    pub fn behind(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).expect("the file")
    }

    /// The names in BACKING.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).expect("BACKING");
        let names = entries.map(|e| e.expect("an entry").file_name());
        let names = names.map(|name| name.into_string().expect("text"));
        names.filter(|name| name != ".latchfs").collect()
    }

    fn note<T>(&self, note: impl FnOnce(&mut Notes) -> T) -> T {
        note(&mut self.notes.lock().expect("no poison"))
    }

    /// The directory of a path, and the name there.
    fn parent_of<'a>(&self, tid: u32, path: &'a str) -> Result<(NodeId, &'a OsStr), Errno> {
        let (dirs, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut parent = ROOT_NODE;
        for dir in dirs.split_terminator('/') {
            let entry = self.engine.lookup(caller(tid), parent, OsStr::new(dir))?;
            parent = entry.node;
        }
        Ok((parent, OsStr::new(name)))
    }

    /// What the kernel asks before it does something with a path.
    pub fn look(&self, tid: u32, path: &str) -> Result<Entry, Errno> {
        let (parent, name) = self.parent_of(tid, path)?;
        self.engine.lookup(caller(tid), parent, name)
    }

    /// open(2), as the kernel does it.
    pub fn open(&self, tid: u32, name: &str, bits: i32) -> Result<File, Errno> {
        let began = self.note(Notes::now);
        let mut waits = None;
        let mut attempt = || {
            let entry = self.look(tid, name)?;
            let (done, answer) = answer();
            let flags = OpenFlags::from_bits(bits);
            self.engine.open(caller(tid), entry.node, flags, done);
            let opened = answer.try_recv().unwrap_or_else(|_| {
                waits = Some(self.note(Notes::now));
                answer.recv().expect("an answer")
            })?;
            Ok((opened, entry.attributes.reported))
        };
        let (opened, inode) = match attempt() {
            Err(Errno::STALE) => attempt()?,
            other => other?,
        };
        let writes = bits & libc::O_ACCMODE != libc::O_RDONLY;
        if writes {
            self.script.0.lock().hold(tid, inode, true);
        }
        if writes && bits & libc::O_APPEND == 0 {
            self.note(|notes| {
                let served = notes.now();
                let turns = notes.turns.entry(name.into()).or_default();
                turns.push(Turn {
                    began,
                    waits,
                    served,
                });
            });
        }
        Ok(File {
            opened,
            inode,
            writes,
        })
    }

    /// Who was seen waiting before another asked was served before it.
    pub fn check_order(&self, name: &str) {
        self.note(|notes| {
            for one in &notes.turns[name] {
                for other in &notes.turns[name] {
                    let first = one.waits.is_some_and(|waits| waits < other.began);
                    assert!(!first || one.served < other.served, "{:?}", notes.turns);
                }
            }
        });
    }

    pub fn read(&self, file: &File) -> String {
        let (done, answer) = answer();
        self.engine.read(file.opened.handle, 0, 1 << 12, done);
        let bytes = answer.recv().expect("an answer").expect("read");
        String::from_utf8(bytes).expect("text")
    }

    pub fn write(&self, tid: u32, file: &File, data: &str) {
        self.put_bytes(tid, file, Placement::default(), data);
    }

    pub fn append(&self, tid: u32, file: &File, data: &str) {
        let placement = Placement {
            append: true,
            ..Placement::default()
        };
        self.put_bytes(tid, file, placement, data);
    }

    fn put_bytes(&self, tid: u32, file: &File, placement: Placement, data: &str) {
        let (done, answer) = answer();
        let handle = file.opened.handle;
        self.engine
            .write(caller(tid), handle, placement, data.as_bytes(), done);
        assert_eq!(answer.recv().expect("an answer"), Ok(data.len() as u32));
    }

    pub fn sync(&self, file: &File) -> Result<(), Errno> {
        let (done, answer) = answer();
        self.engine.sync(file.opened.handle, done);
        answer.recv().expect("an answer")
    }

    /// close(2) of the only copy of a descriptor that writes.
    pub fn close(&self, tid: u32, file: File) -> Result<(), Errno> {
        assert!(file.writes);
        self.script.0.lock().hold(tid, file.inode, false);
        let (done, answer) = answer();
        self.engine.flush(caller(tid), file.opened.handle, done);
        let result = answer.recv().expect("an answer");
        self.engine.release(file.opened.handle);
        result
    }

    /// close(2) of one that reads, or the end of a mapping of one that writes.
    pub fn release(&self, tid: u32, file: File) {
        if file.writes {
            self.script.0.lock().hold(tid, file.inode, false);
        }
        self.engine.release(file.opened.handle);
    }

    pub fn rename(&self, tid: u32, from: &str, to: &str) -> Result<(), Errno> {
        let (parent, name) = self.parent_of(tid, from)?;
        let (new_parent, new_name) = self.parent_of(tid, to)?;
        let (done, answer) = answer();
        let rename = Rename {
            parent,
            name: name.into(),
            new_parent,
            new_name: new_name.into(),
            flags: 0,
        };
        self.engine.rename(caller(tid), rename, done);
        answer.recv().expect("an answer")
    }

    pub fn unlink(&self, tid: u32, name: &str) -> Result<(), Errno> {
        let (parent, name) = self.parent_of(tid, name)?;
        let (done, answer) = answer();
        self.engine.unlink(caller(tid), parent, name, done);
        answer.recv().expect("an answer")
    }

    /// A signal for a thread is pending from now on.
    pub fn interrupt(&self, tid: u32) {
        self.script.0.lock().interrupted.insert(tid);
    }

    /// A thread is where only one may be.
    pub fn enter(&self, name: &str) {
        self.note(|notes| {
            let inside = notes.inside.entry(name.into()).or_default();
            *inside += 1;
            assert_eq!(*inside, 1, "two write {name}");
        });
    }

    pub fn leave(&self, name: &str) {
        self.note(|notes| *notes.inside.get_mut(name).expect("entered") -= 1);
    }

    pub fn is_free(&self, name: &str) -> bool {
        self.note(|notes| notes.inside.get(name).is_none_or(|inside| *inside == 0))
    }

    /// The thread that looks after waiters.
    pub fn watch(&self) -> JoinHandle<()> {
        let engine = self.engine.clone();
        shuttle::thread::spawn(move || engine.watch())
    }

    pub fn stop(&self, watcher: JoinHandle<()>) {
        self.engine.stop_watching();
        watcher.join().expect("it ends");
    }

    /// Nothing is left over.
    pub fn end(&self) {
        assert!(self.engine.drain(Duration::from_secs(3600)));
        self.engine.end_all_lost();
        assert!(self.engine.drain(Duration::from_secs(3600)));
        assert!(self.engine.is_idle(), "{}", self.engine.describe());
        assert_eq!(self.engine.in_flight(), 0);
    }
}
