//! Directories to mount by hand, with whatever names and options.

use crate::common::{LATCHFS, User, alive, finish, kill, test_user, text, wait_until};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A directory with a BACKING and a MOUNTPOINT in it; what is mounted below it is taken away at
/// the end.
pub struct Scene {
    _guard: tempfile::TempDir,
    pub dir: PathBuf,
    pub backing: PathBuf,
    pub point: PathBuf,
    user: User,
}

impl Scene {
    pub fn new(user: User) -> Self {
        Self::named(user, OsStr::new("backing"), OsStr::new("point"))
    }

    pub fn named(user: User, backing: &OsStr, point: &OsStr) -> Self {
        let guard = tempfile::Builder::new()
            .prefix("latchfs-test-")
            .tempdir()
            .expect("a directory");
        let dir = guard.path().canonicalize().expect("its path");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("chmod");
        let scene = Self {
            backing: dir.join(backing),
            point: dir.join(point),
            dir,
            user,
            _guard: guard,
        };
        scene.own(&scene.dir);
        scene.make_dir(&scene.backing);
        scene.make_dir(&scene.point);
        scene
    }

    /// Makes a directory of the user who mounts.
    pub fn make_dir(&self, path: &Path) {
        fs::create_dir_all(path).expect("mkdir");
        self.own(path);
    }

    /// Makes a file of the user who mounts.
    pub fn make_file(&self, path: &Path, content: &str) {
        fs::write(path, content).expect("write");
        self.own(path);
    }

    fn own(&self, path: &Path) {
        if self.user == User::Ordinary {
            let (uid, gid) = test_user();
            chown(path, Some(uid), Some(gid)).expect("chown");
        }
    }

    /// A program run as the user who mounts.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        if self.user == User::Ordinary {
            let (uid, gid) = test_user();
            command.uid(uid).gid(gid);
        }
        command.process_group(0).current_dir(&self.dir);
        command
    }

    /// Runs `latchfs` with these arguments to its end.
    pub fn latchfs<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Output {
        finish(self.command(LATCHFS).args(args).stdin(Stdio::null()))
    }

    /// `latchfs mount OPTIONS BACKING MOUNTPOINT`, which must succeed.
    #[track_caller]
    pub fn mount(&self, options: &[&str]) {
        self.mount_on(options, &self.backing, &self.point);
    }

    #[track_caller]
    pub fn mount_on(&self, options: &[&str], backing: &Path, point: &Path) {
        let mut args = vec![OsStr::new("mount")];
        args.extend(options.iter().map(OsStr::new));
        args.extend([OsStr::new("--"), backing.as_os_str(), point.as_os_str()]);
        let output = self.latchfs(args);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }

    /// `latchfs umount MOUNTPOINT`, which must succeed and leave nothing behind.
    #[track_caller]
    pub fn unmount(&self) {
        let daemon = self.daemon();
        let output = self.latchfs([OsStr::new("umount"), self.point.as_os_str()]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(text(&output.stderr), "");
        self.check_gone(daemon);
    }

    /// No mount, no process, nothing in the store.
    #[track_caller]
    pub fn check_gone(&self, daemon: u32) {
        wait_until("the daemon has ended", || !alive(daemon));
        assert_eq!(self.mounts(), Vec::<PathBuf>::new());
        for name in ["tmp", "redo"] {
            let left = fs::read_dir(self.backing.join(".latchfs").join(name)).expect("the store");
            assert_eq!(left.count(), 0, "left in .latchfs/{name}");
        }
    }

    /// Runs the command, which must refuse with this code, in one line with these words, and change
    /// nothing.
    #[track_caller]
    pub fn refuses<A: AsRef<OsStr>>(&self, args: &[A], code: i32, words: &str) {
        let before = (self.state(), self.mounts());
        let output = self.latchfs(args);
        self.check_refusal(&output, code, words);
        assert_eq!((self.state(), self.mounts()), before, "something changed");
    }

    #[track_caller]
    pub fn check_refusal(&self, output: &Output, code: i32, words: &str) {
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(stderr.starts_with("latchfs: "), "{stderr}");
        assert!(stderr.contains(words), "{stderr}");
        assert_eq!(stderr.find('\n'), Some(stderr.len() - 1), "{stderr}");
        assert_eq!(text(&output.stdout), "");
    }

    /// The daemon of the scene's BACKING.
    pub fn daemon(&self) -> u32 {
        daemon_of(&self.backing).expect("a pid in the lock file")
    }

    /// What is mounted below the scene.
    pub fn mounts(&self) -> Vec<PathBuf> {
        let table = fs::read("/proc/self/mountinfo").expect("the table of mounts");
        table
            .split(|byte| *byte == b'\n')
            .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
            .map(|point| PathBuf::from(unescape(point)))
            .filter(|point| point.starts_with(&self.dir))
            .collect()
    }

    /// All paths below the scene but those in mounts, with what changes when something is written.
    fn state(&self) -> Vec<(PathBuf, u64, i64, i64, u32)> {
        let mounts = self.mounts();
        let mut found = Vec::new();
        let mut todo = vec![self.dir.clone()];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(&dir).expect("list") {
                let path = entry.expect("entry").path();
                if mounts.contains(&path) {
                    continue;
                }
                let stat = path.symlink_metadata().expect("stat");
                if stat.is_dir() {
                    todo.push(path.clone());
                }
                found.push((
                    path,
                    stat.ino(),
                    stat.mtime(),
                    stat.mtime_nsec(),
                    stat.mode(),
                ));
            }
        }
        found.sort();
        found
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for entry in fs::read_dir(&self.dir).expect("list").flatten() {
            if self.mounts().contains(&entry.path()) {
                continue;
            }
            if let Some(daemon) = daemon_of(&entry.path()).filter(|pid| is_latchfs(*pid)) {
                kill(daemon, "KILL");
            }
        }
        for point in self.mounts() {
            let _ = Command::new("umount").arg("-l").arg(point).status();
        }
    }
}

fn daemon_of(backing: &Path) -> Option<u32> {
    let lock = fs::read_to_string(backing.join(".latchfs/lock")).ok()?;
    lock.lines().next()?.parse().ok()
}

fn is_latchfs(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "latchfs\n")
}

/// Paths in the table of mounts have some characters as three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::new();
    let mut rest = field;
    while let Some((byte, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(code) if *byte == b'\\' => {
                bytes.push(code);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}

/// The source of a mount as the table of mounts has it.
pub fn source_of(point: &Path) -> Option<OsString> {
    let table = fs::read("/proc/self/mountinfo").expect("the table of mounts");
    let lines = table.split(|byte| *byte == b'\n');
    let mut lines = lines.filter(|line| {
        let field = line.split(|byte| *byte == b' ').nth(4);
        field.is_some_and(|field| unescape(field).as_bytes() == point.as_os_str().as_bytes())
    });
    let fields: Vec<&[u8]> = lines.next()?.split(|byte| *byte == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    Some(unescape(fields[dash + 2]))
}
