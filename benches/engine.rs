//! What the engine itself costs, without a kernel in between: an uncontended lease, a commit, and
//! names looked up while the kernel knows a million of them.
//!
//! The files are in a temporary directory; with `--durability none` a commit costs its system
//! calls only, with `full` what the disk takes for two fsyncs.

use criterion::{Criterion, criterion_group, criterion_main};
use latchfs::backing::store::Store;
use latchfs::backing::{Dir, Identity};
use latchfs::config::Durability;
use latchfs::engine::attributes::Change;
use latchfs::engine::io::Placement;
use latchfs::engine::open::{OpenFlags, Opened};
use latchfs::engine::tree::{Key, NodeId, ROOT, ROOT_NODE, Tree};
use latchfs::engine::{Caller, Engine, Settings};
use latchfs::owner::{Exit, ProcessWatch, Processes, Search, Thread};
use latchfs::rules::Defaults;
use rustix::fs::FileType;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

/// Processes that are alive, and hold nothing.
struct Scripted;

impl Processes for Scripted {
    fn thread(&self, tid: u32) -> Option<Thread> {
        Some(Thread {
            tid,
            process: tid,
            parent: 1,
            name: String::from("bench"),
            exiting: false,
            in_exec: false,
            interrupted: false,
            signalled: false,
            groups: Vec::new(),
        })
    }

    fn exit(&self, _process: u32) -> Exit {
        Exit::Unknown
    }

    fn holds_open_for_writing(&self, _process: u32, _inode: u64) -> bool {
        false
    }

    fn anyone_holds(&self, _search: &Search) -> bool {
        false
    }

    fn holds_open(&self, _process: u32, _inode: u64, _device: Option<u64>) -> Option<bool> {
        Some(false)
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

const CALLER: Caller = Caller {
    tid: 1000,
    uid: 0,
    gid: 0,
};

fn engine(dir: &std::path::Path, durability: Durability) -> Arc<Engine> {
    let root = Dir::open_root(dir).expect("the directory");
    let store = Store::open(&root).expect("the store");
    let settings = Settings {
        defaults: Defaults {
            lock_timeout: Duration::from_secs(10),
            durability,
            ..Defaults::default()
        },
        ..Settings::default()
    };
    Engine::new(root, Some(store), settings, Box::new(Scripted)).expect("an engine")
}

/// Calls something that answers through a callback, and waits for the answer.
fn wait<T: Send + 'static>(
    call: impl FnOnce(latchfs::engine::Done<T>),
) -> Result<T, rustix::io::Errno> {
    let (send, receive) = channel();
    call(Box::new(move |result| {
        let _ = send.send(result);
    }));
    receive.recv().expect("an answer")
}

/// open(2) as the kernel does it: look up, open, and both again on ESTALE.
fn open(engine: &Arc<Engine>, name: &OsStr, bits: i32) -> (Opened, [NodeId; 2]) {
    let flags = OpenFlags::from_bits(bits);
    let first = engine.lookup(CALLER, ROOT_NODE, name).expect("it is there");
    let redirected = wait(|done| engine.open(CALLER, first.node, flags, done));
    assert!(redirected.is_err(), "a writer is sent to its own version");
    let second = engine.lookup(CALLER, ROOT_NODE, name).expect("it is there");
    let opened = wait(|done| engine.open(CALLER, second.node, flags, done)).expect("opened");
    (opened, [first.node, second.node])
}

fn close(engine: &Arc<Engine>, opened: &Opened, nodes: [NodeId; 2]) {
    wait(|done| engine.flush(CALLER, opened.handle, done)).expect("committed");
    engine.release(opened.handle);
    for node in nodes {
        engine.forget(node, 1);
    }
}

fn benches(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let name = OsStr::new("file");
    std::fs::write(dir.path().join(name), [b'x'; 4096]).expect("a file");

    let quiet = engine(dir.path(), Durability::None);
    // truncate(2) of nothing asks for the lease and gives it back, all on this thread.
    criterion.bench_function("uncontended lease: taken and given back", |b| {
        let node = quiet.lookup(CALLER, ROOT_NODE, name).expect("a file").node;
        let other = quiet.lookup(CALLER, ROOT_NODE, OsStr::new("file"));
        let other = other.expect("a file").node;
        b.iter(|| {
            let size = Some(4096);
            let change = Change {
                size,
                ..Change::default()
            };
            let redirected = wait(|done| quiet.change(CALLER, node, change.clone(), done));
            assert!(redirected.is_err());
            // Any other open of the thread shows that it does not come back.
            let flags = OpenFlags::from_bits(libc::O_RDONLY);
            let opened = wait(|done| quiet.open(CALLER, other, flags, done)).expect("opened");
            quiet.release(opened.handle);
        });
        quiet.forget(node, 2);
    });
    criterion.bench_function("open for update and close, nothing written", |b| {
        b.iter(|| {
            let (opened, nodes) = open(&quiet, name, libc::O_RDWR);
            close(&quiet, &opened, nodes);
        });
    });
    let update = |engine: &Arc<Engine>| {
        let (opened, nodes) = open(engine, name, libc::O_WRONLY | libc::O_TRUNC);
        let data = [b'y'; 4096];
        wait(|done| engine.write(CALLER, opened.handle, Placement::default(), &data, done))
            .expect("written");
        close(engine, &opened, nodes);
    };
    criterion.bench_function("commit of 4 KiB, durability none", |b| {
        b.iter(|| update(&quiet));
    });
    // In a directory of its own: threads of the first engine may be on their way out of it still.
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join(name), [b'x'; 4096]).expect("a file");
    let durable = engine(dir.path(), Durability::Full);
    criterion.bench_function("commit of 4 KiB, durability full", |b| {
        b.iter(|| update(&durable));
    });
}

const PER_DIRECTORY: u64 = 100;

fn name(n: u64) -> OsString {
    OsString::from(format!(
        "file-{:05}-{:03}.txt",
        n / PER_DIRECTORY,
        n % PER_DIRECTORY
    ))
}

fn look_up(tree: &mut Tree, ino: u64, kind: FileType, parent: Key, name: &OsStr) -> Key {
    let key = tree.found(Identity { dev: 1, ino }, kind, parent, name);
    let node = tree.inode(key).expect("it was found").current;
    tree.looked_up(node);
    key
}

/// What is done to the table under the lock that all requests share.
fn table(criterion: &mut Criterion) {
    let known = match std::env::args().any(|arg| arg == "--test") {
        true => 10_000,
        false => 1_000_000,
    };
    let mut tree = Tree::new(Identity { dev: 1, ino: 1 });
    let mut dirs = Vec::new();
    for n in 0..known {
        if n % PER_DIRECTORY == 0 {
            let name = OsString::from(format!("directory-{n}"));
            let ino = u64::MAX - n;
            dirs.push(look_up(&mut tree, ino, FileType::Directory, ROOT, &name));
        }
        let (dir, name) = (dirs[(n / PER_DIRECTORY) as usize], name(n));
        look_up(&mut tree, 2 + n, FileType::RegularFile, dir, &name);
    }
    let mut n = 0;
    criterion.bench_function("table: a known name among 1,000,000", |b| {
        b.iter(|| {
            n = (n + 7919) % known;
            let (dir, name) = (dirs[(n / PER_DIRECTORY) as usize], name(n));
            look_up(&mut tree, 2 + n, FileType::RegularFile, dir, &name)
        });
    });
    criterion.bench_function("table: a new name among 1,000,000, and forgotten", |b| {
        b.iter(|| {
            n += 1;
            let (dir, name) = (dirs[(n % known / PER_DIRECTORY) as usize], name(known + n));
            let key = look_up(&mut tree, 2 + known + n, FileType::RegularFile, dir, &name);
            tree.forget(NodeId(key.0), 1);
        });
    });
}

/// A directory listed with attributes, as `ls -l` and find(1) have it.
fn listing(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    (0..1000).for_each(|n| std::fs::write(dir.path().join(name(n)), "").expect("a file"));
    let engine = engine(dir.path(), Durability::None);
    criterion.bench_function("a directory of 1,000 listed with attributes", |b| {
        b.iter(|| {
            let handle = engine.open_dir(ROOT_NODE).expect("the root");
            let mut place = 0;
            loop {
                let page = engine.read_dir(handle, place).expect("a page");
                let Some(last) = page.last() else {
                    break;
                };
                place = last.next;
                for listed in &page {
                    let entry = engine.look_up_listed(CALLER, handle, &listed.name);
                    engine.forget(entry.expect("an entry").node, 1);
                }
            }
            engine.release_dir(handle);
        });
    });
}

criterion_group!(group, benches, table, listing);
criterion_main!(group);
