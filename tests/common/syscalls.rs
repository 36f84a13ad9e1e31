//! A daemon whose every system call is asked about before it is done: to kill it there, to have the
//! call fail, or to let it go on. The binary is the one that everybody runs, and the points are those
//! it really comes to.
//!
//! ```ignore
//! let daemon = Supervised::mount(options(), move |call| {
//!     let here = call.serving && call.label() == "fsync backing:.";
//!     if here { Decision::Fail(libc::EIO) } else { Decision::Continue }
//! });
//! daemon.try_run("bash", "echo new > f"); // It is a Mount, too.
//! ```

mod notify;
mod table;

use super::{Mount, Options, User, detach, test_user, wait_until};
use notify::Listener;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::borrow::Cow;
use std::collections::HashSet;
use std::fs::{self, File};
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Component, Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use table::Arg;

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is done.
    Continue,
    /// The process is killed (SIGKILL) before it is done.
    Kill,
    /// It fails with this errno, and is not done.
    Fail(i32),
}

/// What a descriptor or a path stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// BACKING, or something in it: the path from there. A file without a name has one that begins
    /// with `#`.
    Backing(PathBuf),
    /// The device by which the kernel asks and is answered.
    Fuse,
    /// Anything else.
    Other(PathBuf),
    /// It can't be told.
    Unknown,
}

impl Place {
    /// A name for it that is the same in every run.
    pub fn label(&self) -> String {
        match self {
            Self::Backing(path) => format!("backing:{}", steady(path)),
            Self::Fuse => "fuse".into(),
            Self::Other(_) => "other".into(),
            Self::Unknown => "?".into(),
        }
    }
}

/// The path without what differs from run to run: names in the store's directories, and of files that
/// have none.
fn steady(path: &Path) -> String {
    let text = path.to_string_lossy();
    let text = text.strip_suffix(" (deleted)").unwrap_or(&text);
    let mut parts: Vec<Cow<str>> = text.split('/').map(Cow::from).collect();
    let in_store = parts[0] == ".latchfs" && parts.len() > 2;
    if let Some(last) = parts.last_mut() {
        if last.starts_with('#') {
            *last = "(no name)".into();
        } else if in_store {
            let kind = last.rsplit_once('.').map_or("", |(_, kind)| kind);
            let lasts = !kind.is_empty() && kind.chars().all(|c| c.is_ascii_lowercase());
            *last = if lasts {
                format!("*.{kind}")
            } else {
                "*".into()
            }
            .into();
        }
    }
    match parts.join("/") {
        empty if empty.is_empty() => ".".into(),
        path => path,
    }
}

/// A system call that the daemon is about to do.
#[derive(Clone, Debug)]
pub struct Call {
    /// The thread that does it.
    pub thread: u32,
    /// Its number.
    pub number: i64,
    /// Its name, or `syscall 451`.
    pub name: Cow<'static, str>,
    /// What it is given.
    pub args: [u64; 6],
    /// What its descriptors and paths stand for. Of a call that nobody knows: [`Place::Unknown`].
    pub places: Vec<Place>,
    /// Is the mount served by now ([`Supervised::mount`] has returned)?
    pub serving: bool,
}

impl Call {
    /// Does it touch BACKING? So does, for all that is known, a call that nobody knows.
    pub fn touches_backing(&self) -> bool {
        let matters = |place: &Place| matches!(place, Place::Backing(_) | Place::Unknown);
        self.places.iter().any(matters)
    }

    /// Is it an answer to the kernel?
    pub fn is_answer(&self) -> bool {
        self.places.contains(&Place::Fuse) && self.name.starts_with("write")
    }

    /// Its name and its places, the same in every run: `linkat backing:(no name) backing:.latchfs/tmp/*`.
    pub fn label(&self) -> String {
        let places = self.places.iter().map(Place::label);
        let words: Vec<String> = [self.name.to_string()].into_iter().chain(places).collect();
        words.join(" ")
    }
}

/// A process whose calls are asked about. It is killed, if it lives, when this goes.
pub struct Process {
    child: Child,
    pidfd: OwnedFd,
    serving: Arc<AtomicBool>,
    supervisor: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts a command (which must exec once, and be run as root), and has `decide` decide about every
    /// call of the process, from its execve on, in the order in which they come; not about those of
    /// its children. `decide` must not touch the mount. `user`: whom it becomes before it begins.
    pub fn spawn(
        mut command: Command,
        backing: &Path,
        user: User,
        decide: impl FnMut(&Call) -> Decision + Send + 'static,
    ) -> Self {
        let backing = backing.canonicalize().expect("BACKING");
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let serving = Arc::new(AtomicBool::new(false));
        // Not by this thread: spawn returns after the execve, which is the first call to decide about.
        let supervisor = std::thread::spawn({
            let serving = serving.clone();
            move || {
                let listener = Listener::receive(&ours).expect("the listener's descriptor");
                let Some(listener) = listener else { return };
                Supervisor {
                    listener,
                    backing,
                    serving,
                    decide,
                    process: None,
                    threads: HashSet::new(),
                }
                .run();
            }
        });
        let filter = notify::filter();
        let ids = (user == User::Ordinary).then(test_user);
        let prepare = move || {
            notify::install(&filter, &theirs)?;
            match ids {
                Some((uid, gid)) => notify::become_user(uid, gid),
                None => Ok(()),
            }
        };
        // SAFETY: it does system calls on memory that was there before the fork, and nothing else.
        unsafe { command.pre_exec(prepare) };
        let child = command.spawn().expect("the process to supervise");
        // With it our copy of the child's socket: the supervisor hears if the child ends early.
        drop(command);
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).expect("a pidfd");
        Self {
            child,
            pidfd,
            serving,
            supervisor: Some(supervisor),
        }
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Has it ended? How?
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("wait")
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If the one who decides has panicked.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the supervised process has ended", || {
            status = self.ended();
            status.is_some()
        });
        if let Some(supervisor) = self.supervisor.take() {
            // Children of it may still live, and end it later.
            if supervisor.is_finished() {
                supervisor.join().expect("the one who decides");
            }
        }
        status.expect("its status")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.kill();
            let _ = self.child.wait();
        }
    }
}

/// The thread that is asked.
struct Supervisor<D> {
    listener: Listener,
    backing: PathBuf,
    serving: Arc<AtomicBool>,
    decide: D,
    /// The process, once it has done its first call.
    process: Option<(u32, OwnedFd)>,
    /// Threads of its that are known.
    threads: HashSet<u32>,
}

impl<D: FnMut(&Call) -> Decision> Supervisor<D> {
    fn run(mut self) {
        let mut killed = false;
        while let Some(notified) = self.listener.next().expect("the next call") {
            let (id, thread) = (notified.id, notified.pid);
            if !self.is_own(thread) {
                self.listener.go_on(id).expect("answer");
                continue;
            }
            if killed {
                // Nothing more is done: the thread is about to die.
                continue;
            }
            let call = self.describe(&notified.data, thread);
            match (self.decide)(&call) {
                Decision::Continue => self.listener.go_on(id).expect("answer"),
                Decision::Fail(errno) => self.listener.fail(id, errno).expect("answer"),
                Decision::Kill => {
                    killed = true;
                    let (_, pidfd) = self.process.as_ref().expect("the process");
                    pidfd_send_signal(pidfd, Signal::KILL).expect("kill");
                }
            }
        }
    }

    /// Is it a thread of the process itself, not of a child of its?
    fn is_own(&mut self, thread: u32) -> bool {
        let (pid, _) = self.process.get_or_insert_with(|| {
            let pid = i32::try_from(thread).ok().and_then(Pid::from_raw);
            let pidfd = pidfd_open(pid.expect("a pid"), PidfdFlags::empty());
            (thread, pidfd.expect("a pidfd"))
        });
        self.threads.contains(&thread)
            || Path::new(&format!("/proc/{pid}/task/{thread}")).exists()
                && self.threads.insert(thread)
    }

    fn describe(&self, data: &libc::seccomp_data, thread: u32) -> Call {
        let number = i64::from(data.nr);
        let (name, places) = match table::known(number) {
            Some((name, args)) => {
                let place = |arg: &Arg| self.place(*arg, &data.args, thread);
                (Cow::from(name), args.iter().map(place).collect())
            }
            None => (format!("syscall {number}").into(), vec![Place::Unknown]),
        };
        Call {
            thread,
            number,
            name,
            args: data.args,
            places,
            serving: self.serving.load(Ordering::Relaxed),
        }
    }

    fn place(&self, arg: Arg, args: &[u64; 6], thread: u32) -> Place {
        let path = match arg {
            Arg::Fd(at) => descriptor(thread, args[at]),
            Arg::Path(at) => path_from(thread, None, args[at]),
            Arg::At(at) => path_from(thread, Some(args[at]), args[at + 1]),
        };
        let Some(path) = path else {
            return Place::Unknown;
        };
        match path.strip_prefix(&self.backing) {
            Ok(inside) => Place::Backing(inside.into()),
            Err(_) if path == Path::new("/dev/fuse") => Place::Fuse,
            Err(_) => Place::Other(path),
        }
    }
}

/// What a descriptor of the thread stands for.
fn descriptor(thread: u32, fd: u64) -> Option<PathBuf> {
    // The kernel looks at 32 bits.
    let fd = fd as u32 as i32;
    let link = match fd {
        libc::AT_FDCWD => format!("/proc/{thread}/cwd"),
        fd => format!("/proc/{thread}/fd/{fd}"),
    };
    // One that is not open: then the call can touch nothing.
    Some(fs::read_link(link).unwrap_or_else(|_| "closed".into()))
}

/// What a path in the memory of the thread leads to, from a directory's descriptor or from its current
/// directory. Links on the way are left as they are, but for those to its own descriptors.
fn path_from(thread: u32, dir: Option<u64>, address: u64) -> Option<PathBuf> {
    const HERE: u64 = libc::AT_FDCWD as u64;
    let path = if address == 0 {
        // "The descriptor itself."
        PathBuf::new()
    } else {
        string(thread, address)?
    };
    let own = path.strip_prefix("/proc/self/fd").ok();
    if let Some(fd) = own.and_then(|fd| fd.to_str()?.parse().ok()) {
        return descriptor(thread, fd);
    }
    if path.is_absolute() {
        return Some(lexical(&path));
    }
    let dir = descriptor(thread, dir.unwrap_or(HERE))?;
    Some(lexical(&dir.join(path)))
}

/// Without `.`, and without a slash at the end.
fn lexical(path: &Path) -> PathBuf {
    let parts = path.components();
    parts.filter(|part| *part != Component::CurDir).collect()
}

/// A string in the memory of the thread.
fn string(thread: u32, address: u64) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let memory = File::open(format!("/proc/{thread}/mem")).ok()?;
    let mut bytes = vec![0; libc::PATH_MAX as usize];
    // As much as there is: the next page may not be.
    let length = memory.read_at(&mut bytes, address).ok()?;
    bytes.truncate(bytes[..length].iter().position(|byte| *byte == 0)?);
    Some(std::ffi::OsString::from_vec(bytes).into())
}

/// A mount whose daemon is supervised.
pub struct Supervised {
    // In this order: the mount is taken away first.
    mount: Mount,
    process: Process,
}

impl Supervised {
    /// Mounts, and returns once the mount is served.
    pub fn mount(options: Options, decide: impl FnMut(&Call) -> Decision + Send + 'static) -> Self {
        let mut supervised = Self::start(options.unmounted(), decide);
        assert!(supervised.is_served(), "not mounted: {}", supervised.log());
        supervised
    }

    /// Starts the daemon of a mount that has none, and does not wait for it.
    pub fn start(mount: Mount, decide: impl FnMut(&Call) -> Decision + Send + 'static) -> Self {
        let mut command = Command::new(super::LATCHFS);
        command
            .args(mount.mount_args())
            .arg("--foreground")
            .stdin(Stdio::null())
            .process_group(0);
        let _ = fs::remove_file(mount.log_path());
        let process = Process::spawn(command, mount.backing(), mount.user(), decide);
        Self { mount, process }
    }

    /// Waits until the mount is served, or the daemon has ended before that: then false.
    pub fn is_served(&mut self) -> bool {
        let mut ended = false;
        let mut served = false;
        wait_until("the mount is served", || {
            ended = self.process.ended().is_some();
            // The last thing it says before it only answers.
            served = self.mount.log().contains("] mounted ");
            ended || served
        });
        self.process.serving.store(served, Ordering::Relaxed);
        served
    }

    /// The daemon.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Waits for the daemon's end (by [`Decision::Kill`], say), and takes the dead mount away.
    pub fn wait(mut self) -> (Mount, ExitStatus) {
        let status = self.process.wait();
        detach(self.mount.point());
        (self.mount, status)
    }

    /// Kills the daemon, and takes the dead mount away.
    pub fn kill(self) -> Mount {
        self.process.kill();
        self.wait().0
    }
}

impl Deref for Supervised {
    type Target = Mount;

    fn deref(&self) -> &Mount {
        &self.mount
    }
}
