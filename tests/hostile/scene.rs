//! A daemon between a made-up kernel and a BACKING, and what must be true of them afterwards.

use crate::kernel::{Args, Kernel, Who, op};
use fuser::SessionACL;
use latchfs::backing::Dir;
use latchfs::backing::store::Store;
use latchfs::config::{Durability, Readers};
use latchfs::engine::{Engine, Settings};
use latchfs::fuse::Adapter;
use latchfs::owner::{Exit, Proc, ProcessWatch, Processes, Search, Thread};
use latchfs::rules::Defaults;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// In every file beside BACKING.
pub const CANARY: &[u8] = b"what lies outside of BACKING";
/// In a file of the store.
pub const SECRET: &[u8] = b"what lies in the store";

/// One scene at a time: they count the descriptors of the process.
pub fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    record_panics();
    ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Notes every panic of a thread that is not a test's.
fn record_panics() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let thread = std::thread::current();
            let name = thread.name().unwrap_or("");
            if name.starts_with("fuser") || name.starts_with("blocking") || name == "daemon" {
                let mut panics = PANICS.lock().unwrap_or_else(|p| p.into_inner());
                panics.push(format!("{name}: {info}"));
            }
            usual(info);
        }));
    });
}

/// What the daemon is told about processes: made up, and changed by the test.
#[derive(Debug, Default)]
pub struct Script {
    /// The process of each thread there is.
    pub threads: HashMap<u32, u32>,
    /// Processes dying of a signal.
    pub dying: HashSet<u32>,
    /// Threads with a signal that ends their waits.
    pub interrupted: HashSet<u32>,
    /// Somebody holds every descriptor.
    pub held: bool,
    /// Everything is mapped by those who opened it.
    pub mapped: bool,
}

/// Answers from a script.
#[derive(Clone, Default)]
pub struct Scripted(pub Arc<Mutex<Script>>);

impl Scripted {
    pub fn script(&self) -> MutexGuard<'_, Script> {
        self.0.lock().unwrap_or_else(|p| p.into_inner())
    }
}

impl Processes for Scripted {
    fn thread(&self, tid: u32) -> Option<Thread> {
        let script = self.script();
        let process = *script.threads.get(&tid)?;
        Some(Thread {
            tid,
            process,
            parent: 1,
            name: String::from("made up"),
            exiting: script.dying.contains(&process),
            in_exec: false,
            interrupted: script.interrupted.contains(&tid),
            groups: Vec::new(),
            signalled: script.interrupted.contains(&tid),
        })
    }

    fn exit(&self, process: u32) -> Exit {
        match self.script().dying.contains(&process) {
            true => Exit::Signalled(9),
            false => Exit::Unknown,
        }
    }

    fn holds_open_for_writing(&self, _process: u32, _inode: u64) -> bool {
        self.script().held
    }

    fn holds_open(&self, _process: u32, _inode: u64, _device: Option<u64>) -> Option<bool> {
        Some(self.script().held)
    }

    fn locks_description(&self, tid: u32) -> Option<bool> {
        let script = self.script();
        script.threads.contains_key(&tid).then_some(script.mapped)
    }

    fn anyone_holds(&self, _search: &Search) -> bool {
        self.script().held
    }

    fn maps(&self, _process: u32, _inode: u64) -> bool {
        self.script().mapped
    }

    fn watch(&self, process: u32) -> Option<ProcessWatch> {
        let this = self.clone();
        Some(ProcessWatch::scripted(move || {
            let dying = this.script().dying.contains(&process);
            dying.then_some(Exit::Signalled(9))
        }))
    }
}

/// Whom the daemon asks about processes.
#[derive(Clone)]
pub enum Asked {
    Script(Scripted),
    Proc,
}

/// A daemon at work.
pub struct Scene {
    home: tempfile::TempDir,
    pub kernel: Kernel,
    pub engine: Option<Arc<Engine>>,
    outside: BTreeMap<PathBuf, String>,
    session: Option<JoinHandle<()>>,
    watcher: Option<JoinHandle<()>>,
    descriptors_before: usize,
    descriptors_at_rest: usize,
    device: (i32, Option<PathBuf>),
}

/// How long anything may take.
const DEADLINE: Duration = Duration::from_secs(20);
/// How long the daemon may take to come to rest.
const REST: Duration = Duration::from_secs(8);

impl Scene {
    pub fn new(asked: Asked, readers: Readers, acl: SessionACL) -> Self {
        PANICS.lock().unwrap_or_else(|p| p.into_inner()).clear();
        rustix::process::umask(rustix::fs::Mode::empty());
        let descriptors_before = descriptors();
        let home = tempfile::Builder::new()
            .prefix("latchfs-hostile-")
            .tempdir()
            .expect("a temporary directory");
        let backing = furnish(home.path());
        let outside = snapshot(home.path());
        let root = Dir::open_root(&backing).expect("BACKING");
        let store = Store::open(&root).expect("the store");
        fs::write(backing.join(".latchfs/kept/0.data"), SECRET).expect("write");
        let settings = Settings {
            defaults: Defaults {
                lock_timeout: Duration::from_millis(60),
                durability: Durability::None,
                readers,
                ..Defaults::default()
            },
            ..Settings::default()
        };
        let processes: Box<dyn Processes> = match asked {
            Asked::Script(script) => Box::new(script),
            Asked::Proc => Box::new(Proc),
        };
        let engine = Engine::new(root, Some(store), settings, processes).expect("an engine");
        // Descriptors of the mount are told by it; there are none.
        engine.set_device(u64::MAX);
        let (kernel, theirs) = Kernel::new();
        let device_number = theirs.as_raw_fd();
        let device: Arc<OnceLock<OwnedFd>> = Arc::default();
        let _ = device.set(theirs.try_clone().expect("a copy"));
        let adapter = Adapter::new(engine.clone(), device, Box::new(|| {}));
        let init = kernel.init();
        let mut config = fuser::Config::default();
        config.n_threads = Some(2);
        let session = fuser::Session::from_fd(adapter, theirs, acl, config);
        let session = session.expect("a session");
        let answer = kernel.wait(init, DEADLINE).expect("an answer to INIT");
        assert_eq!(answer.errno, 0);
        let spawn = |work: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name("daemon".into());
            thread.spawn(work).expect("a thread")
        };
        let session = spawn(Box::new(move || drop(session.run())));
        let watcher = spawn(Box::new({
            let engine = engine.clone();
            move || engine.watch()
        }));
        let mut scene = Self {
            home,
            kernel,
            engine: Some(engine),
            outside,
            session: Some(session),
            watcher: Some(watcher),
            descriptors_before,
            descriptors_at_rest: 0,
            device: (device_number, target_of(device_number)),
        };
        // Whatever is opened once and kept is open after this.
        scene.ask(op::STATFS, 1, NOBODY, &Args::new());
        scene.descriptors_at_rest = descriptors();
        scene
    }

    pub fn engine(&self) -> &Arc<Engine> {
        self.engine.as_ref().expect("it runs")
    }

    pub fn backing(&self) -> PathBuf {
        self.home.path().join("backing")
    }

    /// Makes a request and waits for its answer.
    pub fn ask(&self, opcode: u32, node: u64, who: Who, args: &Args) -> crate::kernel::Answer {
        let unique = self.kernel.send(opcode, node, who, args);
        let answer = self.kernel.wait(unique, DEADLINE);
        answer.unwrap_or_else(|| panic!("no answer to opcode {opcode}"))
    }

    /// Waits until nothing is under way; says what is, if that takes too long. `nudge` is called
    /// now and then.
    pub fn settle(&self, mut nudge: impl FnMut()) -> Result<(), String> {
        let engine = self.engine();
        let end = Instant::now() + REST;
        loop {
            let drained = engine.drain(Duration::from_secs(5));
            let known = engine.known();
            let state = (
                drained,
                engine.is_idle(),
                engine.in_flight(),
                engine.open_files(),
                known,
            );
            if state == (true, true, 0, 0, (1, 1)) {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(format!(
                    "not at rest: (drained, idle, in flight, open files, known inodes and nodes) = \
                     {state:?}\n{}",
                    engine.describe()
                ));
            }
            std::thread::sleep(Duration::from_millis(2));
            nudge();
        }
    }

    /// Everything that must be true once all handles and node ids were given back.
    pub fn check(&self) -> Result<(), String> {
        let panics = PANICS.lock().unwrap_or_else(|p| p.into_inner()).clone();
        if !panics.is_empty() {
            return Err(format!("panics: {panics:?}"));
        }
        if self.kernel.unasked() > 0 {
            return Err(String::from("answers to requests that were never made"));
        }
        self.check_outside()?;
        let store = self.backing().join(".latchfs");
        for (dir, names) in [
            ("", &["append", "kept", "lock", "redo", "tmp"][..]),
            ("tmp", &[]),
            ("redo", &[]),
            ("append", &[]),
        ] {
            let found = listing(&store.join(dir));
            if found != names {
                return Err(format!("in .latchfs/{dir}: {found:?}"));
            }
        }
        let answer = self.ask(op::GETATTR, 1, NOBODY, &Args::new().u64(0).u64(0));
        if answer.errno != 0 {
            return Err(format!("GETATTR of the root: errno {}", answer.errno));
        }
        // What a thread has just answered with may still be in its hands.
        if !soon(|| descriptors() <= self.descriptors_at_rest) {
            return Err(format!("descriptors leaked: {:?}", descriptor_targets()));
        }
        Ok(())
    }

    /// Nothing outside of BACKING was touched or shown, and nothing of the store was shown.
    pub fn check_outside(&self) -> Result<(), String> {
        if self.kernel.has_seen(CANARY) {
            return Err(String::from("content from outside of BACKING was read"));
        }
        if self.kernel.has_seen(SECRET) {
            return Err(String::from("content of the store was read"));
        }
        let outside = snapshot(self.home.path());
        if outside != self.outside {
            return Err(format!(
                "outside of BACKING: {:?} became {outside:?}",
                self.outside
            ));
        }
        Ok(())
    }

    /// Hangs up, and checks that nothing of the daemon stays.
    pub fn end(mut self) -> Result<(), String> {
        let engine = self.stop();
        // A thread of the pool lets go a moment after its work is over.
        let gone = soon(|| Arc::strong_count(&engine) == 1);
        if !gone {
            return Err(String::from("references to the engine are left"));
        }
        drop(engine);
        self.close_device();
        let before = self.descriptors_before;
        drop(self);
        if !soon(|| descriptors() == before) {
            let after = descriptors();
            return Err(format!(
                "{before} descriptors before, {after} after: {:?}",
                descriptor_targets()
            ));
        }
        Ok(())
    }

    /// The adapter leaks its references to the device, on purpose (see `Answer::instead_of`), so
    /// that it stays open to the end of the process.
    fn close_device(&self) {
        let (number, target) = &self.device;
        if target_of(*number) == *target {
            // SAFETY: the session has ended, and its references were forgotten: nobody uses the
            // number, and nobody will close it.
            drop(unsafe { OwnedFd::from_raw_fd(*number) });
        }
    }

    fn stop(&mut self) -> Arc<Engine> {
        let engine = self.engine.take().expect("it runs");
        self.kernel.hang_up();
        engine.stop_watching();
        for thread in [self.session.take(), self.watcher.take()] {
            let _ = thread.expect("it runs").join();
        }
        engine.drain(DEADLINE);
        engine
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if self.engine.is_some() {
            self.stop();
            self.close_device();
        }
    }
}

/// The kernel itself.
pub const NOBODY: Who = Who {
    uid: 0,
    gid: 0,
    tid: 0,
};

/// BACKING with a little of everything, and what lies beside it.
fn furnish(home: &Path) -> PathBuf {
    let canary = home.join("canary");
    fs::create_dir(&canary).expect("mkdir");
    fs::create_dir(canary.join("d")).expect("mkdir");
    for name in ["f", "g", "d/f"] {
        fs::write(canary.join(name), CANARY).expect("write");
    }
    let backing = home.join("backing");
    fs::create_dir(&backing).expect("mkdir");
    fs::create_dir_all(backing.join("d/e")).expect("mkdir");
    fs::write(backing.join("f"), "content of f").expect("write");
    fs::write(backing.join("g"), vec![b'g'; 100_000]).expect("write");
    fs::write(backing.join("d/f"), "content of d/f").expect("write");
    fs::write(backing.join("f.db"), "used directly").expect("write");
    fs::hard_link(backing.join("f"), backing.join("d/h")).expect("link");
    symlink(&canary, backing.join("out")).expect("symlink");
    symlink("../canary/f", backing.join("outf")).expect("symlink");
    symlink("../../canary", backing.join("d/out")).expect("symlink");
    symlink(".latchfs", backing.join("store")).expect("symlink");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        backing.join("p"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o666),
        0,
    )
    .expect("mkfifo");
    backing
}

/// Everything in a scene but BACKING: what it is, whose, and what is in it.
pub fn snapshot(home: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![home.to_owned()];
    while let Some(dir) = open.pop() {
        for name in listing(&dir) {
            let path = dir.join(name);
            if path == home.join("backing") {
                continue;
            }
            let stat = path.symlink_metadata().expect("stat");
            let content = if stat.is_file() {
                fs::read(&path).expect("read")
            } else {
                Vec::new()
            };
            let line = format!(
                "{:o} {}:{} {} links, changed {}.{}, {:?}",
                stat.mode(),
                stat.uid(),
                stat.gid(),
                stat.nlink(),
                stat.ctime(),
                stat.ctime_nsec(),
                String::from_utf8_lossy(&content)
            );
            if stat.is_dir() {
                open.push(path.clone());
            }
            found.insert(path, line);
        }
    }
    found
}

fn listing(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a directory").flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Waits a little for something to become true.
fn soon(condition: impl Fn() -> bool) -> bool {
    let end = Instant::now() + REST / 4;
    while !condition() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// All but the one that the adapter opens once for the process (`fuse/lock_kind.rs`).
fn descriptors() -> usize {
    let targets = descriptor_targets();
    let kept = |target: &&String| target.starts_with("/proc/") && target.ends_with("/mem");
    targets.len() - targets.iter().filter(kept).count()
}

fn target_of(descriptor: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{descriptor}")).ok()
}

fn descriptor_targets() -> Vec<String> {
    let all = fs::read_dir("/proc/self/fd").expect("/proc").flatten();
    let targets = all.filter_map(|fd| fs::read_link(fd.path()).ok());
    targets.map(|t| t.to_string_lossy().into_owned()).collect()
}
