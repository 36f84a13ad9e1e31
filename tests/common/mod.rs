//! Real mounts for the tests: made through the command line, under a deadline, and cleaned up
//! whatever happens. A mount that hangs is aborted, so that a bug fails a test and not the machine.

#![allow(dead_code)]

pub mod bare;
pub mod daemon;
pub mod failing;
pub mod reliability;
pub mod supervised;
pub mod syscalls;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The longest anything here waits for anything.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// How long a program may take that a test runs from its beginning to its end: it may do much, and a
/// loaded machine is slow.
const LONG: Duration = Duration::from_secs(300);

/// The binary under test.
pub const LATCHFS: &str = env!("CARGO_BIN_EXE_latchfs");

/// Who mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// root: the kernel reads committed versions by itself.
    Root,
    /// An ordinary user, through fusermount3.
    Ordinary,
}

/// How to mount.
#[derive(Clone, Debug)]
pub struct Options {
    args: Vec<String>,
    user: User,
    backing: Option<PathBuf>,
    in_place: bool,
}

/// The options of a mount: by root, with the defaults but for a lock timeout of 30 s, so that a
/// slow machine does not time out where nothing is wrong.
pub fn options() -> Options {
    Options {
        args: vec![],
        user: User::Root,
        backing: None,
        in_place: std::env::var_os("LATCHFS_TEST_IN_PLACE").is_some(),
    }
}

impl Options {
    /// Adds an option of `latchfs mount`.
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Sets who mounts.
    pub fn user(mut self, user: User) -> Self {
        self.user = user;
        self
    }

    /// Mirrors this directory instead of a fresh one.
    pub fn backing(mut self, backing: impl Into<PathBuf>) -> Self {
        self.backing = Some(backing.into());
        self
    }

    /// Mounts a directory over itself: the mountpoint is BACKING, by a bind mount made before, so that
    /// the tests see it behind the mount all the same. With `LATCHFS_TEST_IN_PLACE=1` every mount
    /// is one.
    pub fn in_place(mut self) -> Self {
        self.in_place = true;
        self
    }

    /// Mounts.
    pub fn mount(self) -> Mount {
        let mount = self.unmounted();
        mount.start();
        mount
    }

    /// Makes the directories, and mounts nothing yet.
    pub fn unmounted(self) -> Mount {
        Mount::new(self)
    }
}

/// Mounts with the defaults.
pub fn mount() -> Mount {
    options().mount()
}

/// A mount, with its BACKING and its log in a directory of its own.
pub struct Mount {
    home: Option<tempfile::TempDir>,
    backing: PathBuf,
    point: PathBuf,
    user: User,
    options: Options,
}

impl Mount {
    fn new(options: Options) -> Self {
        let home = tempfile::Builder::new()
            .prefix("latchfs-test-")
            .tempdir()
            .expect("a temporary directory");
        let root = home.path();
        // mkdtemp gives 0700; the ordinary user has to get through.
        fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("chmod");
        let backing = options
            .backing
            .clone()
            .unwrap_or_else(|| root.join("backing"));
        let point = root.join("mnt");
        fs::create_dir_all(&backing).expect("mkdir");
        fs::create_dir(&point).expect("mkdir");
        if options.user == User::Ordinary {
            let (uid, gid) = test_user();
            for path in [root, &backing, &point] {
                std::os::unix::fs::chown(path, Some(uid), Some(gid)).expect("chown");
            }
        }
        if options.in_place {
            let mut bind = Command::new("mount");
            // Private: what is mounted on one of them is not to appear on the other.
            bind.args(["--bind", "--make-private"]);
            let output = finish(bind.arg(&backing).arg(&point));
            assert!(output.status.success(), "{}", text(&output.stderr));
        }
        Self {
            backing,
            point,
            user: options.user,
            options,
            home: Some(home),
        }
    }

    /// Runs `latchfs mount`, and returns once the mount answers.
    pub fn start(&self) {
        let output = self.try_start();
        assert!(
            output.status.success(),
            "latchfs mount failed: {}{}",
            text(&output.stderr),
            self.log()
        );
    }

    /// The same, whatever comes of it.
    pub fn try_start(&self) -> Output {
        let mut command = self.command(LATCHFS);
        finish(command.args(self.mount_args()).stdin(Stdio::null()))
    }

    /// What `latchfs` is told to mount it.
    fn mount_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = ["mount", "-v", "--log-file"].map(OsString::from).into();
        args.push(self.log_path().into());
        let given = &self.options.args;
        if !given.iter().any(|arg| arg.contains("lock-timeout")) {
            args.push("--lock-timeout=30s".into());
        }
        args.extend(given.iter().map(OsString::from));
        if !self.options.in_place {
            args.push(self.backing.clone().into());
        }
        args.push(self.point.clone().into());
        args
    }

    /// Who mounts it.
    pub fn user(&self) -> User {
        self.user
    }

    /// A command run as the user who mounts, in a process group of its own.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        if self.user == User::Ordinary {
            let (uid, gid) = test_user();
            command.uid(uid).gid(gid);
        }
        command.process_group(0);
        command
    }

    /// A path in the mount.
    pub fn path(&self, name: &str) -> PathBuf {
        self.point.join(name)
    }

    /// The same path in BACKING.
    pub fn behind(&self, name: &str) -> PathBuf {
        self.backing.join(name)
    }

    /// The mountpoint.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// BACKING.
    pub fn backing(&self) -> &Path {
        &self.backing
    }

    /// What lies in `.latchfs/NAME`.
    pub fn store(&self, name: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.backing.join(".latchfs").join(name))
            .expect("the store")
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().into())
            .collect();
        names.sort();
        names
    }

    fn log_path(&self) -> PathBuf {
        self.point.with_file_name("log")
    }

    /// The daemon's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The daemon's process.
    pub fn daemon(&self) -> u32 {
        fs::read_to_string(self.backing.join(".latchfs/lock"))
            .expect("the lock file")
            .lines()
            .next()
            .and_then(|pid| pid.parse().ok())
            .expect("a pid")
    }

    /// Runs a script by `sh`, `bash`, `dash`, ... with the mountpoint as its current directory;
    /// it must end by itself, and successfully. Returns its standard output.
    pub fn run(&self, shell: &str, script: &str) -> String {
        let output = self.try_run(shell, script);
        successful(&format!("{shell} -c {script:?}"), &output)
    }

    /// The same, however it ends.
    pub fn try_run(&self, shell: &str, script: &str) -> Output {
        finish(self.script(shell, script).stdin(Stdio::null()))
    }

    /// bash.
    pub fn bash(&self, script: &str) -> String {
        self.run("bash", script)
    }

    /// Python, with a script that may import what the tests often need.
    pub fn python(&self, script: &str) -> String {
        let output = self.try_python(script);
        assert!(
            output.status.success(),
            "python: {}\n{}{}\n{script}",
            output.status,
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// The same, however it ends.
    pub fn try_python(&self, script: &str) -> Output {
        self.try_run("python3", &format!("{PRELUDE}{script}"))
    }

    /// A Python program left running, with pipes to its standard input and output.
    pub fn spawn_python(&self, script: &str) -> Running {
        Running::new(&mut self.script("python3", &format!("{PRELUDE}{script}")))
    }

    /// A shell script left running, with pipes to its standard input and output.
    pub fn spawn(&self, shell: &str, script: &str) -> Running {
        Running::new(&mut self.script(shell, script))
    }

    fn script(&self, shell: &str, script: &str) -> Command {
        let mut command = self.command(shell);
        command.arg("-c").arg(script).current_dir(&self.point);
        command
    }

    /// What a program reads from a file of the mount now.
    pub fn read(&self, name: &str) -> String {
        text(
            &finish(
                self.command("cat")
                    .arg(self.path(name))
                    .stdin(Stdio::null()),
            )
            .stdout,
        )
    }

    /// What the file in BACKING holds now.
    pub fn read_behind(&self, name: &str) -> String {
        fs::read_to_string(self.behind(name)).expect("the file in BACKING")
    }

    /// Unmounts by `latchfs umount`, and checks that nothing stays behind.
    pub fn unmount(&self) {
        let daemon = self.daemon();
        let output = finish(self.command(LATCHFS).arg("umount").arg(&self.point));
        assert!(
            output.status.success(),
            "latchfs umount: {}",
            text(&output.stderr)
        );
        self.check_gone(daemon);
    }

    /// Checks that the daemon has ended, unmounted, and left nothing in its store but what it
    /// keeps on purpose.
    pub fn check_gone(&self, daemon: u32) {
        wait_until("the daemon has ended", || !alive(daemon));
        assert!(!self.is_mounted(), "still mounted");
        let log = self.log();
        assert!(!log.contains("bug:") && !log.contains("panicked"), "{log}");
        assert_eq!(self.store("tmp"), [""; 0], "left in .latchfs/tmp");
        assert_eq!(self.store("redo"), [""; 0], "left in .latchfs/redo");
    }

    /// Is it in the table of mounts?
    pub fn is_mounted(&self) -> bool {
        device_of(&self.point).is_some()
    }

    /// Kills the daemon as a crash would, and takes the dead mount away.
    pub fn crash(&self) {
        let daemon = self.daemon();
        kill(daemon, "KILL");
        wait_until("the daemon is dead", || !alive(daemon));
        detach(&self.point);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let failing = std::thread::panicking();
        if failing {
            eprintln!("the daemon's log:\n{}", self.log());
        }
        if self.is_mounted() {
            let daemon = fs::read_to_string(self.backing.join(".latchfs/lock"))
                .ok()
                .and_then(|pid| pid.lines().next()?.parse::<u32>().ok());
            if failing {
                // First, or it would start another daemon.
                if let Some(supervisor) = daemon.and_then(supervised::supervisor_of) {
                    kill(supervisor, "KILL");
                }
                abort(&self.point);
                detach(&self.point);
            } else {
                self.unmount();
            }
            if let Some(daemon) = daemon.filter(|_| failing) {
                kill(daemon, "KILL");
            }
        }
        if self.options.in_place {
            // The bind mount.
            detach(&self.point);
        }
    }
}

/// Put before every Python script.
pub const PRELUDE: &str = "import errno, json, mmap, os, signal, subprocess, sys, threading, time\n\
def say(*words):\n    print(*words, flush=True)\n\
def hear():\n    return sys.stdin.readline().strip()\n";

/// A program left running; it is killed, with all it started, if the test ends first.
pub struct Running {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
    stdin: Option<std::process::ChildStdin>,
}

impl Running {
    /// Starts it.
    pub fn new(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program");
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("its output");
        let (send, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            use std::io::BufRead;
            for line in std::io::BufReader::new(stdout).lines() {
                let Ok(line) = line else { return };
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            lines,
            stdin,
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line of its output.
    pub fn hear(&self) -> String {
        self.lines.recv_timeout(DEADLINE).expect("a line in time")
    }

    /// Waits for a line of its output, which must be this.
    pub fn expect(&self, line: &str) {
        assert_eq!(self.hear(), line);
    }

    /// A line of its output, if it has printed one.
    pub fn try_hear(&self) -> Option<String> {
        self.lines.try_recv().ok()
    }

    /// Has it printed nothing more? (Asked only where it can't have by then.)
    pub fn is_silent(&self) -> bool {
        self.try_hear().is_none()
    }

    /// A line of its output that is there already, or that it says before its end, if that has come.
    pub fn heard(&self) -> Option<String> {
        self.lines.recv_timeout(DEADLINE).ok()
    }

    /// Sends it a line.
    pub fn tell(&mut self, line: &str) {
        use std::io::Write;
        let stdin = self.stdin.as_mut().expect("its input");
        writeln!(stdin, "{line}").expect("it listens");
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: &str) {
        kill(self.pid(), signal);
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        drop(self.stdin.take());
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status;
            }
            assert!(Instant::now() < end, "the program did not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for its end, which must be a success.
    pub fn succeed(&mut self) {
        let status = self.wait();
        assert!(status.success(), "{status}");
    }

    /// Waits until it is blocked in an open of the mount (or another call that waits for an
    /// answer of the daemon).
    pub fn wait_until_blocked(&self) {
        wait_until("it waits for the daemon", || is_blocked(self.pid()));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // The whole group: it was started in one of its own.
            let _ = Command::new("kill")
                .args(["-KILL", "--", &format!("-{}", self.pid())])
                .status();
            let _ = self.child.wait();
        }
    }
}

/// Is some thread of the process waiting for an answer of a FUSE daemon?
pub fn is_blocked(pid: u32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    tasks.flatten().any(|task| {
        fs::read_to_string(task.path().join("wchan")).is_ok_and(|at| at.contains("request_wait"))
    })
}

/// Runs a command to its end, which has to come within five minutes.
pub fn finish(command: &mut Command) -> Output {
    let name = format!("{command:?}");
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{name}: {e}"));
    let pid = child.id();
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = send.send(child.wait_with_output());
    });
    match receive.recv_timeout(LONG) {
        Ok(output) => output.expect("its output"),
        Err(_) => {
            kill(pid, "KILL");
            panic!("{name} did not end in time");
        }
    }
}

/// The standard output of a program that must have succeeded.
#[track_caller]
pub fn successful(what: &str, output: &Output) -> String {
    assert!(
        output.status.success(),
        "{what}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// Waits for something to become true.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Sends a signal.
pub fn kill(pid: u32, signal: &str) {
    let _ = Command::new("kill")
        .arg(format!("-{signal}"))
        .arg(pid.to_string())
        .stderr(Stdio::null())
        .status();
}

/// Does a process live (and is no zombie)? One of which a thread still does what a kill can't end
/// (an fsync) lives: it holds its locks.
pub fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/status"))
        .is_ok_and(|s| !s.contains("State:\tZ") || !s.contains("Threads:\t1\n"))
}

/// The user and group that the tests run programs as where they must not be root.
pub fn test_user() -> (u32, u32) {
    ids(&test_user_name())
}

/// A second one. Both are in the group [`SHARE`].
pub fn second_test_user() -> (u32, u32) {
    ids(&(test_user_name() + "2"))
}

/// The group that both test users are in.
pub const SHARE: &str = "latchfs-share";

fn test_user_name() -> String {
    std::env::var("LATCHFS_TEST_USER").unwrap_or_else(|_| "latchfs-test".into())
}

/// The number of a group.
pub fn group(name: &str) -> u32 {
    let output = Command::new("getent").args(["group", name]).output();
    let line = text(&output.expect("getent").stdout);
    let number = line.split(':').nth(2).and_then(|n| n.parse().ok());
    number.unwrap_or_else(|| panic!("no group {name}: scripts/test makes it"))
}

fn ids(name: &str) -> (u32, u32) {
    let id = |flag: &str| -> u32 {
        let output = Command::new("id").args([flag, name]).output().expect("id");
        let text = text(&output.stdout);
        text.trim()
            .parse()
            .unwrap_or_else(|_| panic!("no user {name}: scripts/test makes it"))
    };
    (id("-u"), id("-g"))
}

/// The device of the mount at a path, from the table of mounts (which never hangs).
fn device_of(point: &Path) -> Option<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("the table of mounts");
    let fields = table
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let mut found = fields.filter(|f| Path::new(f[4]) == point && f.contains(&"fuse.latchfs"));
    found.next_back().map(|fields| fields[2].to_owned())
}

/// Ends a FUSE connection from outside, whatever its daemon does.
pub fn abort(point: &Path) {
    let Some(device) = device_of(point) else {
        return;
    };
    let control = Path::new("/sys/fs/fuse/connections");
    if !control.join("0").exists() && fs::read_dir(control).is_ok_and(|d| d.count() == 0) {
        let _ = Command::new("mount")
            .args(["-t", "fusectl", "none"])
            .arg(control)
            .status();
    }
    let minor = device.split(':').nth(1).unwrap_or_default();
    let _ = fs::write(control.join(minor).join("abort"), "1");
}

/// Takes a mount out of the namespace, dead or alive.
fn detach(point: &Path) {
    let _ = Command::new("umount").arg("-l").arg(point).status();
}

/// How many threads of a process wait for an answer of a FUSE daemon.
pub fn blocked_threads(pid: u32) -> usize {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return 0;
    };
    let wait_channels = tasks.flatten().map(|task| task.path().join("wchan"));
    wait_channels
        .filter(|path| fs::read_to_string(path).is_ok_and(|at| at.contains("request_wait")))
        .count()
}

/// Waits until `count` threads of a process stay blocked: seen so in many looks in a row, since a
/// request that is answered at once looks the same in a single one.
pub fn wait_until_parked(pid: u32, count: usize) {
    let mut in_a_row = 0;
    wait_until("its threads stay blocked", || {
        in_a_row = match blocked_threads(pid) >= count {
            true => in_a_row + 1,
            false => 0,
        };
        in_a_row > 15
    });
}

/// Makes the kernel forget every inode and name that nobody uses.
pub fn drop_caches() {
    fs::write("/proc/sys/vm/drop_caches", "3").expect("drop_caches");
}

/// A process stopped by SIGSTOP, for as long as this lives.
pub struct Stopped(u32);

impl Stopped {
    /// Stops it, and waits until all of it stands.
    pub fn new(pid: u32) -> Self {
        kill(pid, "STOP");
        let stopped = Self(pid);
        wait_until("it is stopped", || {
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
            tasks.flatten().all(|task| {
                fs::read_to_string(task.path().join("status"))
                    .is_ok_and(|status| status.contains("State:\tT"))
            })
        });
        stopped
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        kill(self.0, "CONT");
    }
}

/// Runs a test on a mount of root's, and on one of an ordinary user's.
pub fn as_each_user(test: impl Fn(&Mount)) {
    for user in [User::Root, User::Ordinary] {
        let mount = options().user(user).mount();
        test(&mount);
        mount.unmount();
    }
}

impl Mount {
    /// How many versions of a file have been committed so far, as the log tells.
    pub fn commits(&self, name: &str) -> usize {
        self.log()
            .matches(&format!("/{name}: committed for pid "))
            .count()
    }
}

/// Takes a mount away whatever its daemon does: for tests that mount by themselves.
pub fn take_away(point: &Path) {
    abort(point);
    detach(point);
}
