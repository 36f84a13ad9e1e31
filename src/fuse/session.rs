//! One mount, from its beginning to its end.

use super::Adapter;
use super::replace::{self, Unplaced};
use super::wire::Device;
use crate::backing::kept::{KEPT_MAX_AGE, KEPT_MAX_SIZE, Limits};
use crate::backing::recover::recover;
use crate::backing::store::{OpenError, Store};
use crate::backing::{Dir, Errno, identity};
use crate::config::{DEFAULT_LOCK_TIMEOUT, MountConfig};
use crate::engine::{Engine, Settings};
use crate::owner::Proc;
use crate::rules::Defaults;
use crate::rules::file::ConfigurationError;
use crate::rules::find::find;
use crate::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use crate::sync::{Arc, OnceLock};
use fuser::{Config, MountOption, Session, SessionACL};
use log::{error, info, warn};
use rustix::mount::UnmountFlags;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// How many threads read requests. One has no cross-core wake-ups; the second keeps the mount
/// answering while the first is at a system call that takes long after all.
const EVENT_THREADS: usize = 2;
/// How long the pool gets to finish what it has begun once nobody can wait for it any more.
const LAST_TASKS: Duration = Duration::from_secs(5);

/// What kind of failure ended [`serve`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServeErrorKind {
    /// BACKING is served by another latchfs.
    Busy,
    /// The kernel or fusermount3 refused the mount.
    Mount,
    /// BACKING can't be used.
    Backing,
    /// The configuration file can't be used.
    Configuration,
    /// Anything else.
    Internal,
}

/// Why [`serve`] failed: a kind, and one line for the user.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ServeError {
    kind: ServeErrorKind,
    message: String,
}

impl ServeError {
    fn new(kind: ServeErrorKind, message: impl std::fmt::Display) -> Self {
        let message = message.to_string();
        Self { kind, message }
    }

    /// What kind of failure it was.
    pub fn kind(&self) -> ServeErrorKind {
        self.kind
    }
}

/// What happens to a mount.
enum Event {
    /// It is unmounted, and nothing of it is open any more.
    Ended,
    /// Somebody wants it to end.
    Stop,
    /// Somebody has changed the configuration file.
    Reload,
}

/// What [`serve`] tells on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// The dead mount that is to be replaced is going: the directory beneath can be seen from here on.
    Uncovered,
    /// The mount answers.
    Ready,
}

/// Puts BACKING right, mounts it, tells that it is ready once the mount answers, and serves it until
/// it is unmounted or this process gets SIGTERM or SIGINT. Then transactions in flight have
/// `unmount_timeout` to finish; what is left is rolled back and kept aside.
///
/// # Errors
/// [`ServeErrorKind`] says which; nothing is mounted then.
pub fn serve(config: MountConfig, tell: impl Fn(News)) -> Result<(), ServeError> {
    // Modes come from programs, with their umask applied by the kernel already.
    rustix::process::umask(rustix::fs::Mode::empty());
    raise_descriptor_limit();
    let backing = |e: Errno| {
        let path = config.backing.display();
        ServeError::new(ServeErrorKind::Backing, format!("{path}: {e}"))
    };
    let root = match config.replaces {
        // No path is sure to lead there past the dead mount.
        Some(_) => Dir::open_root(Path::new(".")),
        None => Dir::open_root(&config.backing),
    };
    let root = root.map_err(backing)?;
    let (settings, configuration) =
        settings(&config, &root).map_err(|e| ServeError::new(ServeErrorKind::Configuration, e))?;
    change_directory(&config, &root).map_err(backing)?;
    let store = open_store(&config, &root)?;
    let engine = Engine::new(root, store, settings, Box::new(Proc)).map_err(backing)?;
    engine.prune_kept();
    let (events, inbox) = channel();
    listen_for_signals(events.clone())?;
    let internal = |what: &str, e: std::io::Error| {
        ServeError::new(ServeErrorKind::Internal, format!("{what}: {e}"))
    };
    let device: Device = Arc::new(OnceLock::new());
    let ended = events;
    let at_end = Box::new(move || drop(ended.send(Event::Ended)));
    let adapter = Adapter::new(engine.clone(), device.clone(), at_end);
    let (session, unplaced) = mount(&config, adapter, engine.root(), &tell)?;
    let copy = session.as_fd().try_clone_to_owned();
    let _ = device.set(copy.map_err(|e| internal("can't copy the descriptor of /dev/fuse", e))?);
    let walker = super::walker::start(engine.clone(), config.mountpoint.clone())
        .map_err(|e| internal("can't start a thread", e))?;
    let notifier = session.notifier();
    engine.set_kernel(Box::new(super::Cache { notifier, walker }));
    let background = session
        .spawn()
        .map_err(|e| internal("can't start a thread", e))?;
    start("waiters", {
        let engine = engine.clone();
        move || engine.watch()
    })?;
    // Dropped, it would unmount whatever is on the mountpoint by then, be it another mount: fuser
    // 0.18 takes an ended session for a mounted one.
    std::mem::forget(background);
    let device = match &unplaced {
        Some(unplaced) => unplaced.device(),
        None => replace::device_of(&config.mountpoint),
    };
    match device {
        Ok(device) => engine.set_device(device),
        Err(e) => warn!("{}: {e}", config.mountpoint.display()),
    }
    if let (Some(unplaced), Some(dead)) = (&unplaced, config.replaces) {
        let put = unplaced.put(&config.mountpoint, dead, || tell(News::Uncovered));
        put.map_err(|e| cannot_mount(&config, e))?;
    }
    // Nothing of ours may keep it busy.
    drop(unplaced);
    info!(
        "serving {} on {} (configuration: {configuration})",
        config.backing.display(),
        config.mountpoint.display()
    );
    tell(News::Ready);
    #[cfg(feature = "lock-times")]
    crate::sync::timed::begin_report();
    let forced = run(&config, &engine, &inbox);
    if !forced {
        engine.release_all();
    }
    engine.end_all_lost();
    if !engine.drain(LAST_TASKS) {
        warn!("gave up waiting for the disk");
    } else if !forced && !engine.is_idle() {
        error!("bug: a lease or a waiter was left behind");
    }
    engine.settle_store();
    engine.stop_watching();
    #[cfg(feature = "lock-times")]
    crate::sync::timed::report();
    info!("{} is unmounted", config.mountpoint.display());
    Ok(())
}

/// Mounts, with the first exchange of messages. In the place of a dead mount, the new one is nowhere to
/// be seen yet, if the kernel lets us do so.
fn mount(
    config: &MountConfig,
    adapter: Adapter,
    root: &Dir,
    tell: &impl Fn(News),
) -> Result<(Session<Adapter>, Option<Unplaced>), ServeError> {
    let failed = |e| cannot_mount(config, e);
    let mut uncovered = None;
    if let Some(dead) = config.replaces {
        let mode = root.stat().map_err(|e| failed(e.into()))?.st_mode;
        match replace::make(config, mode) {
            Ok((device, unplaced)) => {
                let mut options = options(config);
                options.mount_options.clear();
                let session = Session::from_fd(adapter, device, options.acl, options);
                return Ok((session.map_err(failed)?, Some(unplaced)));
            }
            Err(Errno::PERM | Errno::NOSYS) => {
                // What somebody else has taken away is not wanted back.
                replace::pin(&config.mountpoint, dead).map_err(|e| failed(e.into()))?;
                tell(News::Uncovered);
                let since = SystemTime::now();
                replace::take_away(&config.mountpoint, dead).map_err(|e| failed(e.into()))?;
                uncovered = replace::Uncovered::new(&config.mountpoint, since).ok();
            }
            Err(e) => return Err(failed(e.into())),
        }
    }
    let session = Session::new(adapter, &config.mountpoint, &options(config)).map_err(failed)?;
    // In place, it is BACKING, of which the mount shows all.
    if let Some(directory) = uncovered.filter(|_| config.mountpoint != config.backing) {
        directory.covered(&config.mountpoint).map_err(failed)?;
    }
    Ok((session, None))
}

fn cannot_mount(config: &MountConfig, error: impl Into<std::io::Error>) -> ServeError {
    let (path, error) = (config.mountpoint.display(), error.into());
    ServeError::new(
        ServeErrorKind::Mount,
        format!("can't mount on {path}: {error}"),
    )
}

/// Serves until the end; true if something was still open then.
fn run(config: &MountConfig, engine: &Arc<Engine>, inbox: &Receiver<Event>) -> bool {
    loop {
        match inbox.recv() {
            Ok(Event::Ended) | Err(_) => return false,
            Ok(Event::Reload) => reload(config, engine),
            Ok(Event::Stop) => break,
        }
    }
    info!("asked to stop: {} goes", config.mountpoint.display());
    detach(&config.mountpoint);
    let end = Instant::now() + config.unmount_timeout;
    loop {
        // The kernel ends the session when the last file and the last current directory are gone.
        // Directories hold nothing that could be lost.
        if engine.open_files() == 0 && engine.in_flight() == 0 {
            return false;
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        match inbox.recv_timeout(left.min(Duration::from_millis(20))) {
            Ok(Event::Ended) | Err(RecvTimeoutError::Disconnected) => return false,
            // Asked twice: at once, then.
            Ok(Event::Stop) => break,
            Ok(Event::Reload) => {}
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
    engine.give_up("the file system was unmounted before it was closed");
    true
}

/// What the configuration file and the command line say, and which file that is.
fn settings(config: &MountConfig, root: &Dir) -> Result<(Settings, String), ConfigurationError> {
    let (file, path) = find(config.config.as_deref(), root, &config.backing)?;
    let path = path.map_or(String::from("built in"), |path| path.display().to_string());
    let said = &config.overrides;
    let lock_timeout = said.lock_timeout.or(file.lock_timeout);
    let settings = Settings {
        defaults: Defaults {
            lock_timeout: lock_timeout.unwrap_or(DEFAULT_LOCK_TIMEOUT),
            readers: said.readers.or(file.readers).unwrap_or_default(),
            durability: said.durability.or(file.durability).unwrap_or_default(),
            on_conflict: file.on_conflict.unwrap_or_default(),
        },
        rules: file.rules,
        kept: Limits {
            max_age: said
                .kept_max_age
                .or(file.kept_max_age)
                .unwrap_or(KEPT_MAX_AGE),
            max_size: said
                .kept_max_size
                .or(file.kept_max_size)
                .unwrap_or(KEPT_MAX_SIZE),
        },
        request_limit: request_limit(),
    };
    if let Some(limit) = settings.request_limit {
        warn!("no wait is longer than {limit:?}: sysctl fs.fuse.*_request_timeout");
    }
    for program in settings.rules.programs().filter(|name| !is_there(name)) {
        warn!("{program}, by which {path} has versions checked, is not there: they are refused");
    }
    Ok((settings, path))
}

/// Can a program be found, by its path or in `PATH`?
fn is_there(program: &str) -> bool {
    if program.contains('/') {
        return Path::new(program).exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).exists())
}

/// Reads the configuration file again, for later opens. One that can't be used changes nothing.
fn reload(config: &MountConfig, engine: &Engine) {
    match settings(config, engine.root()) {
        Ok((settings, path)) => {
            engine.set_settings(settings);
            engine.prune_kept();
            info!("the configuration was read again: {path}");
        }
        Err(error) => error!("{error}; the configuration stays as it was"),
    }
}

/// Leaves the directory that the program was started in, which is the user's.
///
/// For where to: a mount in place covers BACKING, so that no path leads there any more but
/// `/proc/PID/cwd` of this process, by which other commands find it (`cli::served`).
fn change_directory(config: &MountConfig, root: &Dir) -> Result<(), Errno> {
    let in_place = match config.replaces {
        // What is covered can't be looked at, but by then both have one name.
        Some(_) => config.mountpoint == config.backing,
        None => identity(&rustix::fs::stat(&config.mountpoint)?) == identity(&root.stat()?),
    };
    if in_place {
        rustix::process::fchdir(root)
    } else {
        rustix::process::chdir("/")
    }
}

fn open_store(config: &MountConfig, root: &Dir) -> Result<Option<Store>, ServeError> {
    if config.read_only {
        return Ok(None);
    }
    let path = config.backing.display();
    let mut store = Store::open(root).map_err(|e| {
        let kind = match e {
            OpenError::Served(_) => ServeErrorKind::Busy,
            OpenError::Foreign(_) | OpenError::Writable(_) | OpenError::Io(..) => {
                ServeErrorKind::Backing
            }
        };
        ServeError::new(kind, format!("{path}: {e}"))
    })?;
    let mut done = Vec::new();
    let recovered = recover(root, &store, &mut done);
    for action in done {
        warn!("{path}: {}", action.done());
    }
    recovered.map_err(|e| {
        let message = format!("{path}: can't put right what an earlier latchfs left: {e}");
        ServeError::new(ServeErrorKind::Backing, message)
    })?;
    store.show_as(&config.backing);
    Ok(Some(store))
}

/// The kernel aborts the whole mount when one request is older than fs.fuse.max_request_timeout
/// (seconds, 0: never), so nothing may wait that long.
fn request_limit() -> Option<Duration> {
    let limits = ["default_request_timeout", "max_request_timeout"].map(|name| {
        let text = std::fs::read_to_string(format!("/proc/sys/fs/fuse/{name}"));
        text.ok().and_then(|t| t.trim().parse::<u64>().ok())
    });
    let limit = limits.into_iter().flatten().filter(|s| *s > 0).min();
    limit.map(|seconds| Duration::from_secs(seconds) / 2)
}

fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let _ = setrlimit(Resource::Nofile, raised);
}

pub(super) fn options(config: &MountConfig) -> Config {
    let root = rustix::process::geteuid().is_root();
    let source = config.backing.to_string_lossy().into_owned();
    // fusermount3 takes its options as one string; mount(2) takes the source as it is.
    let source = if root {
        source
    } else {
        source.replace('\\', "\\\\").replace(',', "\\,")
    };
    let mut options = vec![
        MountOption::FSName(source),
        // Not MountOption::Subtype, which fuser drops when it mounts by itself.
        MountOption::CUSTOM(String::from("subtype=latchfs")),
        MountOption::DefaultPermissions,
        if config.read_only {
            MountOption::RO
        } else {
            MountOption::RW
        },
    ];
    let mut acl = if config.allow_other {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    for word in &config.fuse_options {
        options.push(match word.as_str() {
            "nosuid" => MountOption::NoSuid,
            "suid" => MountOption::Suid,
            "nodev" => MountOption::NoDev,
            "dev" => MountOption::Dev,
            "noexec" => MountOption::NoExec,
            "exec" => MountOption::Exec,
            "noatime" => MountOption::NoAtime,
            "atime" => MountOption::Atime,
            "sync" => MountOption::Sync,
            "async" => MountOption::Async,
            "dirsync" => MountOption::DirSync,
            "auto_unmount" => MountOption::AutoUnmount,
            "allow_root" => {
                if acl == SessionACL::Owner {
                    acl = SessionACL::RootAndOwner;
                }
                continue;
            }
            other => MountOption::CUSTOM(other.to_owned()),
        });
    }
    let mut result = Config::default();
    result.mount_options = options;
    result.acl = acl;
    result.n_threads = Some(EVENT_THREADS);
    // An answer has to be written to the descriptor that its request was read from, and `wire`
    // has one.
    result.clone_fd = false;
    result
}

fn listen_for_signals(events: Sender<Event>) -> Result<(), ServeError> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(|e| {
        let message = format!("can't listen for signals: {e}");
        ServeError::new(ServeErrorKind::Internal, message)
    })?;
    start("signals", move || {
        for signal in &mut signals {
            let event = match signal {
                SIGHUP => Event::Reload,
                _ => Event::Stop,
            };
            if events.send(event).is_err() {
                return;
            }
        }
    })
}

fn start(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), ServeError> {
    let builder = thread::Builder::new().name(name.to_owned());
    builder.spawn(work).map(drop).map_err(|e| {
        let message = format!("can't start a thread: {e}");
        ServeError::new(ServeErrorKind::Internal, message)
    })
}

/// Takes the mount out of the namespace; what is open in it stays open.
fn detach(mountpoint: &Path) {
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    match rustix::mount::unmount(mountpoint, flags) {
        Err(Errno::PERM) => {
            if let Err(e) = replace::fusermount(mountpoint) {
                warn!("can't run fusermount3 to unmount: {e}");
            }
        }
        Err(e) => warn!("{}: can't unmount: {e}", mountpoint.display()),
        Ok(()) => {}
    }
}
