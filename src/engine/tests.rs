//! The engine driven without a kernel: requests as FUSE would send them, processes from a script.

use super::attributes::Change;
use super::io::Placement;
use super::lookup::Entry;
use super::make::NewMode;
use super::names::Rename;
use super::open::{OpenFlags, Opened};
use super::tree::{NodeId, ROOT_NODE};
use super::{Caller, Done, Engine, Settings};
use crate::backing::store::Store;
use crate::backing::{Dir, Errno};
use crate::config::Durability;
use crate::owner::{Exit, ProcessWatch, Processes, Search, Thread};
use crate::rules::Defaults;
use crate::sync::{Arc, Mutex};
use std::collections::HashSet;
use std::ffi::OsStr;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Duration;

/// Longer than any test takes.
const DEADLINE: Duration = Duration::from_secs(30);

/// Every thread is a process of its own, alive unless it is in `killed`, and its descriptors are
/// gone when it closes them unless it is said that somebody holds them.
#[derive(Default)]
struct Script {
    killed: HashSet<u32>,
    interrupted: HashSet<u32>,
    held: bool,
}

#[derive(Clone, Default)]
struct Scripted(Arc<Mutex<Script>>);

impl Processes for Scripted {
    fn thread(&self, tid: u32) -> Option<Thread> {
        let script = self.0.lock();
        Some(Thread {
            tid,
            process: tid,
            parent: 1,
            name: String::from("test"),
            exiting: script.killed.contains(&tid),
            in_exec: false,
            interrupted: script.interrupted.contains(&tid),
            signalled: script.interrupted.contains(&tid),
            groups: Vec::new(),
        })
    }

    fn exit(&self, process: u32) -> Exit {
        if self.0.lock().killed.contains(&process) {
            Exit::Signalled(9)
        } else {
            Exit::Unknown
        }
    }

    fn holds_open_for_writing(&self, _process: u32, _inode: u64) -> bool {
        self.0.lock().held
    }

    fn anyone_holds(&self, _search: &Search) -> bool {
        self.0.lock().held
    }

    fn holds_open(&self, _process: u32, _inode: u64, _device: Option<u64>) -> Option<bool> {
        Some(self.0.lock().held)
    }

    fn locks_description(&self, _tid: u32) -> Option<bool> {
        None
    }

    fn maps(&self, _process: u32, _inode: u64) -> bool {
        false
    }

    fn watch(&self, _process: u32) -> Option<ProcessWatch> {
        None
    }
}

struct Bench {
    engine: Arc<Engine>,
    script: Scripted,
    dir: tempfile::TempDir,
}

fn caller(tid: u32) -> Caller {
    Caller {
        tid,
        uid: 0,
        gid: 0,
    }
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let root = Dir::open_root(dir.path()).expect("the directory");
        let store = Store::open(&root).expect("the store");
        let settings = Settings {
            defaults: Defaults {
                lock_timeout: DEADLINE,
                durability: Durability::None,
                ..Defaults::default()
            },
            ..Settings::default()
        };
        let script = Scripted::default();
        let engine = Engine::new(root, Some(store), settings, Box::new(script.clone()));
        let engine = engine.expect("an engine");
        Self {
            engine,
            script,
            dir,
        }
    }

    fn with_file(content: &str) -> Self {
        let bench = Self::new();
        std::fs::write(bench.dir.path().join("f"), content).expect("a file");
        bench
    }

    fn behind(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("f")).expect("the file")
    }

    fn lookup(&self, tid: u32) -> Result<Entry, Errno> {
        self.engine.lookup(caller(tid), ROOT_NODE, OsStr::new("f"))
    }

    fn ask_to_open(&self, tid: u32, node: NodeId, bits: i32) -> Receiver<Result<Opened, Errno>> {
        let (done, answer) = answer();
        let flags = OpenFlags::from_bits(bits);
        self.engine.open(caller(tid), node, flags, done);
        answer
    }

    /// open(2), as the kernel does it.
    fn open(&self, tid: u32, bits: i32) -> Result<Opened, Errno> {
        let node = self.lookup(tid)?.node;
        match got(&self.ask_to_open(tid, node, bits)) {
            Err(Errno::STALE) => {
                let node = self.lookup(tid)?.node;
                got(&self.ask_to_open(tid, node, bits))
            }
            other => other,
        }
    }

    fn create(&self, tid: u32) -> Opened {
        let flags = OpenFlags::from_bits(libc::O_WRONLY | libc::O_CREAT);
        let name = OsStr::new("f");
        let made = self
            .engine
            .create(caller(tid), ROOT_NODE, name, NewMode::new(0o644, 0), flags);
        made.expect("created").1
    }

    fn write(&self, tid: u32, opened: &Opened, data: &str) -> Result<u32, Errno> {
        let (done, answer) = answer();
        let data = data.as_bytes();
        self.engine
            .write(caller(tid), opened.handle, Placement::default(), data, done);
        got(&answer)
    }

    fn rename(&self, tid: u32, from: &str, to: &str) -> Result<(), Errno> {
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

    fn read(&self, opened: &Opened) -> String {
        let (done, answer) = answer();
        self.engine.read(opened.handle, 0, 1 << 16, done);
        String::from_utf8(got(&answer).expect("read")).expect("text")
    }

    fn flush(&self, tid: u32, opened: &Opened) -> Result<(), Errno> {
        let (done, answer) = answer();
        self.engine.flush(caller(tid), opened.handle, done);
        got(&answer)
    }

    fn close(&self, tid: u32, opened: &Opened) -> Result<(), Errno> {
        let result = self.flush(tid, opened);
        self.engine.release(opened.handle);
        assert!(self.engine.drain(DEADLINE));
        result
    }
}

fn answer<T: Send + 'static>() -> (Done<T>, Receiver<Result<T, Errno>>) {
    let (send, receive) = channel();
    let done = Box::new(move |result| drop(send.send(result)));
    (done, receive)
}

fn got<T>(answer: &Receiver<Result<T, Errno>>) -> Result<T, Errno> {
    answer.recv_timeout(DEADLINE).expect("an answer in time")
}

const UPDATE: i32 = libc::O_WRONLY | libc::O_TRUNC;

#[test]
fn a_version_becomes_the_file_at_the_last_close() {
    let bench = Bench::with_file("old");
    let opened = bench.open(1, UPDATE).expect("opened");
    bench.write(1, &opened, "new").expect("written");
    bench.script.0.lock().held = true;
    assert_eq!(bench.flush(2, &opened), Ok(()));
    assert_eq!(bench.behind(), "old", "somebody holds it still");
    bench.script.0.lock().held = false;
    assert_eq!(bench.close(1, &opened), Ok(()));
    assert_eq!(bench.behind(), "new");
    assert!(bench.engine.is_idle());
}

#[test]
fn release_commits_what_no_flush_did() {
    let bench = Bench::with_file("old");
    let opened = bench.open(1, UPDATE).expect("opened");
    bench.write(1, &opened, "new").expect("written");
    bench.engine.release(opened.handle);
    assert!(bench.engine.drain(DEADLINE));
    assert_eq!(bench.behind(), "new");
    assert!(bench.engine.is_idle());
}

#[test]
fn a_killed_writer_leaves_the_old_file() {
    let bench = Bench::with_file("old");
    let opened = bench.open(1, UPDATE).expect("opened");
    bench.write(1, &opened, "new").expect("written");
    bench.script.0.lock().killed.insert(1);
    let _ = bench.close(1, &opened);
    assert_eq!(bench.behind(), "old");
    assert!(bench.engine.is_idle());
}

#[test]
fn the_next_writer_is_answered_when_the_first_is_done() {
    let bench = Bench::with_file("old");
    let first = bench.open(1, UPDATE).expect("opened");
    let node = bench.lookup(2).expect("found").node;
    let waiting = bench.ask_to_open(2, node, UPDATE);
    assert_eq!(waiting.try_recv().err(), Some(TryRecvError::Empty));
    bench.write(1, &first, "one").expect("written");
    bench.close(1, &first).expect("committed");
    assert_eq!(got(&waiting).err(), Some(Errno::STALE));
    let node = bench.lookup(2).expect("found").node;
    let second = got(&bench.ask_to_open(2, node, UPDATE)).expect("opened");
    assert_eq!(bench.behind(), "one");
    bench.write(2, &second, "two").expect("written");
    bench.close(2, &second).expect("committed");
    assert_eq!(bench.behind(), "two");
    assert!(bench.engine.is_idle());
}

#[test]
fn a_waiting_reader_gets_the_version_it_waited_for_even_if_a_next_one_overtakes_it() {
    let bench = Bench::with_file("old");
    let writer = bench.open(1, UPDATE).expect("opened");
    let node = bench.lookup(2).expect("found").node;
    let waiting = bench.ask_to_open(2, node, libc::O_RDONLY);
    bench.write(1, &writer, "one").expect("written");
    bench.close(1, &writer).expect("committed");
    assert_eq!(got(&waiting).err(), Some(Errno::STALE));
    let node = bench.lookup(2).expect("found").node;
    // Between the reader's second LOOKUP and its second OPEN, the file is replaced again.
    let next = bench.open(3, UPDATE).expect("opened");
    bench.write(3, &next, "two").expect("written");
    bench.close(3, &next).expect("committed");
    let reader = got(&bench.ask_to_open(2, node, libc::O_RDONLY)).expect("opened");
    assert_eq!(bench.read(&reader), "one");
    bench.engine.release(reader.handle);
    assert!(bench.engine.is_idle());
}

#[test]
fn a_thread_on_its_way_to_a_version_gets_there_although_the_kernel_forgets_it_meanwhile() {
    let bench = Bench::with_file("old");
    let writer = bench.open(1, UPDATE).expect("opened");
    let stale = bench.lookup(2).expect("found").node;
    let waiting = bench.ask_to_open(2, stale, libc::O_RDONLY);
    bench.write(1, &writer, "one").expect("written");
    bench.close(1, &writer).expect("committed");
    assert_eq!(got(&waiting).err(), Some(Errno::STALE));
    // The kernel asks, sees that the node id is another, and forgets both before it asks again.
    let target = bench.lookup(2).expect("found").node;
    bench.engine.forget(target, 1);
    bench.engine.forget(stale, 100);
    let next = bench.open(3, UPDATE).expect("opened");
    let node = bench.lookup(2).expect("found").node;
    assert_eq!(node, target);
    let reader = got(&bench.ask_to_open(2, node, libc::O_RDONLY)).expect("opened");
    assert_eq!(bench.read(&reader), "one");
    bench.engine.release(reader.handle);
    bench.close(3, &next).expect("committed");
    assert!(bench.engine.is_idle());
}

#[test]
fn a_writer_who_waits_for_a_file_that_another_replaces_by_rename_gets_the_other() {
    let bench = Bench::with_file("old");
    std::fs::write(bench.dir.path().join("g"), "other").expect("a file");
    let first = bench.open(1, UPDATE).expect("opened");
    let node = bench.lookup(2).expect("found").node;
    let waiting = bench.ask_to_open(2, node, libc::O_RDWR);
    assert_eq!(bench.rename(3, "g", "f"), Ok(()));
    assert_eq!(got(&waiting).err(), Some(Errno::STALE));
    // The kernel looks up twice, and its next OPEN is the last it makes.
    bench.lookup(2).expect("found");
    let node = bench.lookup(2).expect("found").node;
    let second = got(&bench.ask_to_open(2, node, libc::O_RDWR)).expect("opened");
    assert_eq!(bench.read(&second), "other");
    bench.write(2, &second, "OTH").expect("written");
    bench.close(2, &second).expect("committed");
    bench.close(1, &first).expect("detached");
    assert_eq!(bench.behind(), "OTHer");
    assert!(bench.engine.is_idle());
}

#[test]
fn a_rename_between_two_names_of_one_file_takes_neither_from_who_writes_it() {
    let bench = Bench::with_file("old");
    std::fs::hard_link(bench.dir.path().join("f"), bench.dir.path().join("g")).expect("a link");
    let g = OsStr::new("g");
    bench
        .engine
        .lookup(caller(1), ROOT_NODE, g)
        .expect("it is there");
    let writer = bench.open(1, UPDATE).expect("opened");
    assert_eq!(bench.rename(2, "f", "g"), Ok(()));
    let (done, answer) = answer();
    bench.engine.unlink(caller(2), ROOT_NODE, g, done);
    assert_eq!(got(&answer), Ok(()));
    bench.write(1, &writer, "new").expect("written");
    assert_eq!(bench.close(1, &writer), Ok(()));
    assert_eq!(bench.behind(), "new");
}

#[test]
fn an_opener_that_does_not_come_back_gives_its_lease_up() {
    let bench = Bench::with_file("old");
    let node = bench.lookup(1).expect("found").node;
    let redirected = got(&bench.ask_to_open(1, node, UPDATE));
    assert_eq!(redirected.err(), Some(Errno::STALE));
    assert!(!bench.engine.is_idle());
    // It opens something else instead.
    let _ = bench.create_other(1);
    let other = bench.open(2, UPDATE).expect("opened at once");
    bench.close(2, &other).expect("committed");
    assert!(bench.engine.drain(DEADLINE));
    assert_eq!(bench.behind(), "");
}

impl Bench {
    fn create_other(&self, tid: u32) -> Result<(), Errno> {
        let flags = OpenFlags::from_bits(libc::O_WRONLY | libc::O_CREAT);
        let name = OsStr::new("other");
        let (_, opened) =
            self.engine
                .create(caller(tid), ROOT_NODE, name, NewMode::new(0o644, 0), flags)?;
        self.close(tid, &opened)
    }
}

#[test]
fn a_waiter_with_a_signal_pending_gets_eintr() {
    let bench = Bench::with_file("old");
    let writer = bench.open(1, UPDATE).expect("opened");
    let engine = bench.engine.clone();
    let watcher = std::thread::spawn(move || engine.watch());
    let node = bench.lookup(2).expect("found").node;
    let waiting = bench.ask_to_open(2, node, UPDATE);
    bench.script.0.lock().interrupted.insert(2);
    assert_eq!(got(&waiting).err(), Some(Errno::INTR));
    bench.close(1, &writer).expect("committed");
    assert!(bench.engine.is_idle());
    bench.engine.stop_watching();
    watcher.join().expect("it ends");
}

#[test]
fn a_file_being_created_is_empty_to_others_and_not_in_backing() {
    let bench = Bench::new();
    let opened = bench.create(1);
    bench.write(1, &opened, "content").expect("written");
    let others = bench.lookup(2).expect("it has its name").attributes.stat;
    assert_eq!(others.st_size, 0);
    let own = bench.lookup(1).expect("it has its name").attributes.stat;
    assert_eq!(own.st_size, 7);
    assert!(!bench.dir.path().join("f").exists());
    bench.close(1, &opened).expect("committed");
    assert_eq!(bench.behind(), "content");
}

#[test]
fn a_file_keeps_its_number_through_its_versions() {
    let bench = Bench::new();
    let opened = bench.create(1);
    let first = bench.lookup(2).expect("found");
    bench.close(1, &opened).expect("committed");
    for _ in 0..3 {
        let opened = bench.open(1, UPDATE).expect("opened");
        bench.write(1, &opened, "more").expect("written");
        bench.close(1, &opened).expect("committed");
        let now = bench.lookup(2).expect("found");
        assert_ne!(now.node, first.node, "a node id of its own");
        assert_eq!(now.attributes.reported, first.attributes.reported);
    }
}

#[test]
fn a_listing_that_was_read_before_an_update_tells_the_files_number() {
    use std::os::unix::fs::MetadataExt;
    let bench = Bench::with_file("old");
    let first = bench.lookup(2).expect("found");
    let handle = bench.engine.open_dir(ROOT_NODE).expect("a handle");
    let page = |offset| bench.engine.read_dir(handle, offset).expect("a page");
    // What comes first is read anew when the first page is asked for.
    let more = ["a", "b", "c", "d", "e", "g", "h", "i", "j", "k"];
    let mut more = more.iter().map(|name| bench.dir.path().join(name));
    while page(0)[0].name == "f" {
        std::fs::write(more.next().expect("f is not always first"), "").expect("a file");
    }
    let opened = bench.open(1, UPDATE).expect("opened");
    let private = bench.lookup(1).expect("found").node;
    bench.write(1, &opened, "new").expect("written");
    bench.close(1, &opened).expect("committed");
    for node in [first.node, private] {
        bench.engine.forget(node, u64::MAX);
    }
    let known = |state: &super::State| state.tree.child(super::ROOT, OsStr::new("f"));
    assert_eq!(known(&bench.engine.state.lock()), None);
    let listed = page(1).into_iter().find(|entry| entry.name == "f");
    let reported = listed.expect("it is listed").reported;
    assert_eq!(reported, first.attributes.reported);
    let behind = std::fs::metadata(bench.dir.path().join("f")).expect("the file");
    assert_ne!(reported, behind.ino(), "it is another inode");
}

#[test]
fn an_open_for_update_that_writes_nothing_changes_nothing() {
    let bench = Bench::with_file("old");
    let before = bench.lookup(1).expect("found").attributes.stat.st_ino;
    let opened = bench.open(1, libc::O_RDWR).expect("opened");
    assert_eq!(bench.read(&opened), "old");
    bench.close(1, &opened).expect("nothing to commit");
    let after = bench.lookup(1).expect("found").attributes.stat.st_ino;
    assert_eq!(before, after, "the same file of BACKING");
}

#[test]
fn truncate_by_path_is_refused_while_another_writes_and_commits_otherwise() {
    let bench = Bench::with_file("0123456789");
    let truncate = |tid, node| {
        let (done, answer) = answer();
        let change = Change {
            size: Some(4),
            ..Change::default()
        };
        bench.engine.change(caller(tid), node, change, done);
        got(&answer).map(|attributes| attributes.stat.st_size)
    };
    let writer = bench.open(1, libc::O_WRONLY).expect("opened");
    let node = bench.lookup(2).expect("found").node;
    assert_eq!(truncate(2, node), Err(Errno::BUSY));
    bench.close(1, &writer).expect("nothing to commit");
    let node = bench.lookup(2).expect("found").node;
    assert_eq!(truncate(2, node), Err(Errno::STALE));
    let node = bench.lookup(2).expect("found").node;
    assert_eq!(truncate(2, node), Ok(4));
    assert_eq!(bench.behind(), "0123");
    assert!(bench.engine.is_idle());
}

#[test]
fn the_kernel_forgetting_everything_leaves_nothing_in_the_table() {
    let bench = Bench::new();
    let opened = bench.create(1);
    // CREATE told the kernel of the private version, this LOOKUP of the file.
    let public = bench.lookup(2).expect("found").node;
    let private = bench.lookup(1).expect("found").node;
    bench.close(1, &opened).expect("committed");
    bench.engine.forget(public, 1);
    bench.engine.forget(private, 2);
    let state = bench.engine.state.lock();
    assert_eq!(state.tree.sizes(), (1, 1), "the root only");
}

#[test]
fn an_inode_number_that_is_used_again_at_once_belongs_to_the_new_file() {
    use super::tree::Tree;
    use super::version::Version;
    use crate::backing::Identity;
    use rustix::fs::FileType;
    let number = |ino| Identity { dev: 1, ino };
    let mut tree = Tree::new(number(2));
    let (root, file) = (super::tree::ROOT, FileType::RegularFile);
    let old = tree.found(number(10), file, root, OsStr::new("old"));
    // A commit renames number 11 over number 10, and before it can say so, another file gets that.
    tree.vacate(number(10));
    let new = tree.found(number(10), file, root, OsStr::new("new"));
    let content = Arc::new(tempfile::tempfile().expect("a file"));
    tree.published(old, number(11), &Version::new(content, false));
    assert_ne!(old, new);
    assert_eq!(tree.found(number(10), file, root, OsStr::new("new")), new);
    assert_eq!(tree.found(number(11), file, root, OsStr::new("old")), old);
    let numbers = [old, new].map(|key| tree.inode(key).expect("known").reported);
    assert_ne!(numbers[0], numbers[1]);
}

#[test]
fn a_name_removed_while_another_of_its_file_is_looked_up_is_not_taken_for_a_change_behind_the_mount()
 {
    let bench = Bench::with_file("old");
    std::fs::create_dir(bench.dir.path().join("d")).expect("a directory");
    let (engine, g) = (&bench.engine, OsStr::new("g"));
    let d = engine.lookup(caller(1), ROOT_NODE, OsStr::new("d"));
    let d = d.expect("found").node;
    for round in 0..300 {
        let file = bench.lookup(1).expect("found").node;
        engine.link(caller(1), file, d, g).expect("a free name");
        // It writes by the name that goes.
        let open = || {
            let node = engine.lookup(caller(1), d, g)?.node;
            got(&bench.ask_to_open(1, node, UPDATE))
        };
        assert_eq!(open().err(), Some(Errno::STALE));
        let opened = open().expect("opened");
        let content = round.to_string();
        bench.write(1, &opened, &content).expect("written");
        let (done, removed) = answer();
        std::thread::scope(|scope| {
            let looking =
                scope.spawn(
                    || {
                        while bench.lookup(2).expect("found").attributes.stat.st_nlink > 1 {}
                    },
                );
            engine.unlink(caller(3), d, g, done);
            looking.join().expect("it sees one name");
        });
        assert_eq!(got(&removed), Ok(()));
        assert_eq!(bench.close(1, &opened), Ok(()), "in round {round}");
        assert_eq!(bench.behind(), content);
    }
}

#[test]
fn an_opener_whose_turn_is_to_come_when_the_name_goes_opens_what_it_was_led_to() {
    let bench = Bench::with_file("old");
    let node = bench.lookup(1).expect("found").node;
    let sent = got(&bench.ask_to_open(1, node, UPDATE));
    assert_eq!(sent.err(), Some(Errno::STALE));
    let node = bench.lookup(1).expect("found").node;
    let key = bench.engine.key_of(node).expect("known");
    // A record is being appended.
    let turn = bench.engine.turn_at_once(key).expect("free");
    let waiting = bench.ask_to_open(1, node, UPDATE);
    assert!(matches!(waiting.try_recv(), Err(TryRecvError::Empty)));
    let (done, removed) = answer();
    bench
        .engine
        .unlink(caller(2), ROOT_NODE, OsStr::new("f"), done);
    assert_eq!(got(&removed), Ok(()));
    drop(turn);
    let opened = got(&waiting).expect("opened");
    bench.write(1, &opened, "new").expect("written");
    assert_eq!(bench.close(1, &opened), Ok(()));
    assert!(bench.engine.is_idle());
}
