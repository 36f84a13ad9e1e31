//! The engine, driven as a kernel would for programs from a script.

use crate::compare::{Shown, Size, System, explore, notices};
use crate::op::{How, OWNERS, Op};
use crate::reference::{Ended, FLAWS, Slot, Step};
use crate::scripted::Scripted;
use latchfs::backing::store::Store;
use latchfs::backing::{Dir, Errno};
use latchfs::config::Durability;
use latchfs::engine::attributes::Change;
use latchfs::engine::io::Placement;
use latchfs::engine::lookup::Entry;
use latchfs::engine::make::NewMode;
use latchfs::engine::names::Rename;
use latchfs::engine::open::{OpenFlags, Opened};
use latchfs::engine::tree::{NodeId, ROOT_NODE};
use latchfs::engine::{Caller, Done, Engine, Settings};
use latchfs::rules::Defaults;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longer than any test takes.
const DEADLINE: Duration = Duration::from_secs(60);
/// A thread that only looks.
const STRANGER: u32 = 7;

/// A descriptor; copies share the handle.
#[derive(Clone)]
struct File {
    handle: Rc<u64>,
    node: NodeId,
    inode: u64,
    reads: bool,
    writes: bool,
}

/// An open(2) that waits for an answer.
struct Waiting {
    slot: Slot,
    name: &'static str,
    how: How,
    entry: Entry,
    /// It has been sent to look again already.
    again: bool,
    answer: Receiver<Result<Opened, Errno>>,
}

struct Owner {
    tid: u32,
    files: BTreeMap<Slot, File>,
    waiting: Option<Waiting>,
}

pub struct Bench {
    engine: Arc<Engine>,
    script: Scripted,
    owners: Vec<Owner>,
    /// Waits that have ended, and nobody has asked how.
    ended: HashMap<(usize, Slot), Ended>,
    /// What the kernel was told of, and how often.
    told: HashMap<NodeId, u64>,
    watcher: Option<JoinHandle<()>>,
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

fn got<T>(answer: &Receiver<Result<T, Errno>>) -> Result<T, Errno> {
    answer.recv_timeout(DEADLINE).expect("an answer in time")
}

/// The files of a directory.
pub fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).expect("BACKING");
    let entries = entries.map(|entry| entry.expect("an entry"));
    entries
        .filter(|entry| entry.file_name() != ".latchfs")
        .map(|entry| {
            let name = entry.file_name().into_string().expect("text");
            (name, std::fs::read(entry.path()).expect("a file"))
        })
        .collect()
}

impl Bench {
    fn lookup(&mut self, tid: u32, name: &str) -> Result<Entry, Errno> {
        let entry = self
            .engine
            .lookup(caller(tid), ROOT_NODE, OsStr::new(name))?;
        *self.told.entry(entry.node).or_default() += 1;
        Ok(entry)
    }

    /// One walk to a name and its open or creation, of which there are two at most.
    fn attempt(
        &mut self,
        owner: usize,
        slot: Slot,
        name: &'static str,
        how: How,
        again: bool,
    ) -> Option<Ended> {
        let tid = self.owners[owner].tid;
        let flags = OpenFlags::from_bits(how.bits());
        let mut found = self.lookup(tid, name);
        if again && found.is_err() {
            // The kernel asks whether what it knows of the name is so still, and then for the name.
            found = self.lookup(tid, name);
        }
        let entry = match found {
            Ok(_) if how.create && how.exclusive => return Some(Err(Errno::EXIST)),
            Ok(entry) => entry,
            Err(Errno::NOENT) if how.create => {
                let mode = NewMode::new(0o644, 0);
                let name_ = OsStr::new(name);
                let made = self
                    .engine
                    .create(caller(tid), ROOT_NODE, name_, mode, flags);
                return match made {
                    Ok((entry, opened)) => {
                        *self.told.entry(entry.node).or_default() += 1;
                        self.opened(owner, slot, how, &entry, &opened);
                        Some(Ok(()))
                    }
                    Err(Errno::STALE) if !again => self.attempt(owner, slot, name, how, true),
                    Err(Errno::INTR) => self.attempt(owner, slot, name, how, false),
                    Err(errno) => Some(Err(errno)),
                };
            }
            Err(errno) => return Some(Err(errno)),
        };
        let (done, answer) = answer();
        self.engine.open(caller(tid), entry.node, flags, done);
        self.owners[owner].waiting = Some(Waiting {
            slot,
            name,
            how,
            entry,
            again,
            answer,
        });
        self.proceed(owner)
    }

    /// Goes on with an open(2) that may have been answered.
    fn proceed(&mut self, owner: usize) -> Option<Ended> {
        assert!(self.engine.drain(DEADLINE));
        let waiting = self.owners[owner].waiting.as_ref()?;
        let answer = waiting.answer.try_recv().ok()?;
        let waiting = self.owners[owner].waiting.take()?;
        let Waiting {
            slot,
            name,
            how,
            entry,
            again,
            ..
        } = waiting;
        match answer {
            Ok(opened) => {
                self.opened(owner, slot, how, &entry, &opened);
                Some(Ok(()))
            }
            Err(Errno::STALE) if !again => self.attempt(owner, slot, name, how, true),
            // What it found changed under its way: it tries again, as Python and the shells do.
            Err(Errno::INTR) => self.attempt(owner, slot, name, how, false),
            Err(errno) => Some(Err(errno)),
        }
    }

    fn opened(&mut self, owner: usize, slot: Slot, how: How, entry: &Entry, opened: &Opened) {
        let flags = OpenFlags::from_bits(how.bits());
        let file = File {
            handle: Rc::new(opened.handle),
            node: entry.node,
            inode: entry.attributes.reported,
            reads: !flags.write || flags.read_write,
            writes: flags.write,
        };
        self.hold(owner, &file, true);
        self.owners[owner].files.insert(slot, file);
    }

    fn hold(&self, owner: usize, file: &File, more: bool) {
        if file.writes {
            let process = self.owners[owner].tid;
            self.script.0.lock().hold(process, file.inode, more);
        }
    }

    fn close(&mut self, owner: usize, slot: Slot) -> Ended {
        let file = self.owners[owner].files.remove(&slot).ok_or(Errno::BADF)?;
        self.hold(owner, &file, false);
        let (done, answer) = answer();
        let tid = self.owners[owner].tid;
        self.engine.flush(caller(tid), *file.handle, done);
        let result = got(&answer);
        if Rc::strong_count(&file.handle) == 1 {
            self.engine.release(*file.handle);
        }
        result
    }

    fn close_all(&mut self, owner: usize) {
        let slots: Vec<Slot> = self.owners[owner].files.keys().copied().collect();
        for slot in slots {
            let _ = self.close(owner, slot);
        }
    }

    /// The process ends, of a signal or by itself, and another takes its place.
    fn end_process(&mut self, owner: usize, signal: Option<i32>) {
        let tid = self.owners[owner].tid;
        if self.owners[owner].waiting.is_some() {
            let _ = self.interrupt(owner);
        }
        self.script.0.lock().ended.insert(tid, signal);
        self.close_all(owner);
        self.owners[owner].tid = tid + 10;
    }

    fn interrupt(&mut self, owner: usize) -> Ended {
        let tid = self.owners[owner].tid;
        if self.watcher.is_none() {
            let engine = self.engine.clone();
            self.watcher = Some(std::thread::spawn(move || engine.watch()));
        }
        self.script.0.lock().interrupted.insert(tid);
        let waiting = self.owners[owner].waiting.take().expect("it waits");
        let result = got(&waiting.answer).map(drop);
        self.script.0.lock().interrupted.remove(&tid);
        result
    }

    fn read(&self, file: &File) -> Vec<u8> {
        let (done, answer) = answer();
        self.engine.read(*file.handle, 0, 1 << 12, done);
        got(&answer).expect("read")
    }

    fn use_descriptor(&mut self, op: &Op, owner: usize, step: &Step) -> Ended {
        let tid = self.owners[owner].tid;
        if let Op::Close { .. } = op {
            return self.close(owner, step.slot);
        }
        let file = self.owners[owner].files.get(&step.slot);
        let file = file.ok_or(Errno::BADF)?.clone();
        match op {
            Op::Write { offset, data, .. } => {
                let placement = Placement {
                    offset: *offset as u64,
                    ..Placement::default()
                };
                let (done, answer) = answer();
                self.engine
                    .write(caller(tid), *file.handle, placement, data, done);
                got(&answer).map(|written| assert_eq!(written as usize, data.len()))
            }
            Op::Truncate { length, .. } => {
                let change = Change {
                    size: Some(*length as u64),
                    handle: Some(*file.handle),
                    ..Change::default()
                };
                let (done, answer) = answer();
                self.engine.change(caller(tid), file.node, change, done);
                got(&answer).map(drop)
            }
            Op::Dup { .. } => {
                self.hold(owner, &file, true);
                self.owners[owner].files.insert(step.new, file);
                Ok(())
            }
            _ => {
                let (done, answer) = answer();
                self.engine.sync(*file.handle, done);
                got(&answer)
            }
        }
    }

    fn rename(&mut self, tid: u32, from: &str, to: &str) -> Ended {
        let source = self.lookup(tid, from)?;
        if self.lookup(tid, to).is_ok_and(|to| to.node == source.node) {
            // The kernel does not ask.
            return Ok(());
        }
        let (done, answer) = answer();
        let rename = Rename {
            parent: ROOT_NODE,
            name: from.into(),
            new_parent: ROOT_NODE,
            new_name: to.into(),
            flags: 0,
        };
        self.engine.rename(caller(tid), rename, done);
        got(&answer)
    }

    fn link(&mut self, tid: u32, from: &str, to: &str) -> Ended {
        let source = self.lookup(tid, from)?;
        if self.lookup(tid, to).is_ok() {
            return Err(Errno::EXIST);
        }
        let to = OsStr::new(to);
        let entry = self.engine.link(caller(tid), source.node, ROOT_NODE, to)?;
        *self.told.entry(entry.node).or_default() += 1;
        Ok(())
    }

    fn unlink(&mut self, tid: u32, name: &str) -> Ended {
        self.lookup(tid, name)?;
        let (done, answer) = answer();
        let name = OsStr::new(name);
        self.engine.unlink(caller(tid), ROOT_NODE, name, done);
        got(&answer)
    }

    fn list(&self) -> Vec<String> {
        let listing = self.engine.open_dir(ROOT_NODE).expect("the root");
        let entries = self.engine.read_dir(listing, 0).expect("its entries");
        self.engine.release_dir(listing);
        let entries = entries.into_iter();
        entries
            .map(|entry| entry.name.into_string().expect("text"))
            .collect()
    }
}

impl System for Bench {
    fn new(files: &BTreeMap<&'static str, Vec<u8>>) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).expect("a file");
        }
        let root = Dir::open_root(dir.path()).expect("the directory");
        let store = Store::open(&root).expect("the store");
        let settings = Settings {
            defaults: Defaults {
                lock_timeout: Duration::from_secs(3600),
                durability: Durability::None,
                ..Defaults::default()
            },
            ..Settings::default()
        };
        let script = Scripted::default();
        let engine = Engine::new(root, Some(store), settings, Box::new(script.clone()));
        let owner = |number| Owner {
            tid: 101 + number as u32,
            files: BTreeMap::new(),
            waiting: None,
        };
        Self {
            engine: engine.expect("an engine"),
            script,
            owners: (0..OWNERS).map(owner).collect(),
            ended: HashMap::new(),
            told: HashMap::new(),
            watcher: None,
            dir,
        }
    }

    fn act(&mut self, op: &Op, step: &Step) -> Option<Ended> {
        let owner = op.owner();
        let tid = self.owners[owner].tid;
        let ended = match op {
            Op::Open { name, how, .. } => self.attempt(owner, step.new, name, *how, false),
            Op::Rename { from, to, .. } => Some(self.rename(tid, from, to)),
            Op::Link { from, to, .. } => Some(self.link(tid, from, to)),
            Op::Unlink { name, .. } => Some(self.unlink(tid, name)),
            Op::Kill { .. } => {
                self.end_process(owner, Some(9));
                Some(Ok(()))
            }
            Op::Exit { .. } => {
                self.end_process(owner, None);
                Some(Ok(()))
            }
            Op::Interrupt { .. } => {
                let waiting = self.owners[owner].waiting.as_ref();
                let slot = waiting.map_or(0, |waiting| waiting.slot);
                let ended = self.interrupt(owner);
                self.ended.insert((owner, slot), ended);
                Some(Ok(()))
            }
            _ => Some(self.use_descriptor(op, owner, step)),
        };
        // One that goes on may let another one in.
        let mut moved = true;
        while std::mem::take(&mut moved) {
            for other in (0..OWNERS).filter(|other| *other != owner) {
                let slot = self.owners[other].waiting.as_ref().map(|w| w.slot);
                if let (Some(slot), Some(ended)) = (slot, self.proceed(other)) {
                    self.ended.insert((other, slot), ended);
                    moved = true;
                }
            }
        }
        assert!(self.engine.drain(DEADLINE));
        ended
    }

    fn ended(&mut self, owner: usize, slot: Slot) -> Ended {
        self.ended.remove(&(owner, slot)).expect("it waits no more")
    }

    fn waits(&mut self, owner: usize) -> bool {
        self.owners[owner].waiting.is_some()
    }

    fn descriptors(&mut self, owner: usize) -> BTreeMap<Slot, Shown> {
        let files = self.owners[owner].files.iter();
        files
            .map(|(slot, file)| {
                let size = self
                    .engine
                    .attributes(file.node)
                    .expect("fstat")
                    .stat
                    .st_size;
                (*slot, (file.reads.then(|| self.read(file)), size as u64))
            })
            .collect()
    }

    fn names(&mut self, who: Option<usize>) -> BTreeMap<String, (u64, u64)> {
        let tid = who.map_or(STRANGER, |owner| self.owners[owner].tid);
        let names = self.list();
        names
            .into_iter()
            .map(|name| {
                let stat = self
                    .lookup(tid, &name)
                    .expect("it is listed")
                    .attributes
                    .stat;
                (name, (stat.st_size as u64, stat.st_nlink))
            })
            .collect()
    }

    fn behind(&mut self) -> BTreeMap<String, Vec<u8>> {
        contents(self.dir.path())
    }

    fn end(self) {
        let engine = &self.engine;
        if let Some(watcher) = self.watcher {
            engine.stop_watching();
            watcher.join().expect("it ends");
        }
        assert!(engine.drain(DEADLINE));
        assert!(engine.is_idle(), "somebody holds or waits");
        assert_eq!((engine.in_flight(), engine.open_files()), (0, 0));
        for (node, times) in &self.told {
            engine.forget(*node, *times);
        }
        assert_eq!(engine.known(), (1, 1), "inodes and node ids nobody knows");
    }
}

const SIZE: Size = Size {
    cases: 80,
    steps: 60,
    shrink: 20_000,
};

#[test]
fn the_engine_does_what_the_model_of_its_promises_does() {
    explore::<Bench>(
        "the engine",
        "scripts/test the_engine_does_what_the_model",
        &SIZE,
    );
}

#[test]
fn the_comparison_of_the_engine_with_the_model_notices_every_flaw() {
    let unnoticed = FLAWS
        .into_iter()
        .filter(|flaw| !notices::<Bench>(*flaw, &SIZE));
    let unnoticed: Vec<_> = unnoticed.collect();
    assert_eq!(unnoticed, []);
}
