//! A mount and a bare directory, in which the same is done.

use crate::common::{Mount, Options, User, finish, options, successful};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// What the scripts may use.
const LIB: &str = concat!(
    "import errno, json, mmap, os, signal, subprocess, sys, threading, time\n",
    "def say(*words):\n    print(*words, flush=True)\n",
    include_str!("lib.py"),
);
const TREE: &str = include_str!("tree.py");

/// A mount, and a bare directory beside it, of the same owner on the same file system.
pub struct Pair {
    pub mount: Mount,
    pub bare: PathBuf,
}

impl Pair {
    pub fn new(user: User) -> Self {
        Self::with(options().user(user))
    }

    pub fn with(options: Options) -> Self {
        let mount = options.mount();
        // As deep as the mountpoint: relative paths out of the tree lead to the same places.
        let bare = mount.point().with_file_name("bare");
        let made = mount.command("mkdir").arg(&bare).status().expect("mkdir");
        assert!(made.success());
        Self { mount, bare }
    }

    /// Runs a Python script in the mount and in the bare directory: it must say the same in both,
    /// and leave the same behind in BACKING, in the mount and in the bare directory. Returns what
    /// it said.
    #[track_caller]
    pub fn same(&self, script: &str) -> String {
        let said = self.says_the_same(script);
        self.check_trees();
        said
    }

    /// The same without a look at what is left behind.
    #[track_caller]
    pub fn says_the_same(&self, script: &str) -> String {
        let bare = self.python(&self.bare, script);
        let mount = self.python(self.mount.point(), script);
        assert_same("the script said", &mount, &bare);
        bare
    }

    /// BACKING, the mount and the bare directory must hold the same.
    #[track_caller]
    pub fn check_trees(&self) {
        let bare = self.tree(&self.bare);
        assert_same("BACKING holds", &self.tree(self.mount.backing()), &bare);
        assert_same("the mount shows", &self.tree(self.mount.point()), &bare);
    }

    fn tree(&self, dir: &Path) -> String {
        let mut command = self.mount.command("python3");
        command.arg("-c").arg(TREE).arg(dir);
        successful(
            "the tree of a directory",
            &finish(command.stdin(Stdio::null())),
        )
    }

    fn python(&self, dir: &Path, script: &str) -> String {
        let mut command = self.mount.command("python3");
        let script = format!("{LIB}\n{script}");
        command.arg("-c").arg(&script).current_dir(dir);
        successful(&script, &finish(command.stdin(Stdio::null())))
    }

    /// Puts a file into the directory that holds both.
    pub fn put_outside(&self, name: &str, content: &str) {
        let path = self.bare.with_file_name(name);
        fs::write(&path, content).expect("a file");
        let all = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        fs::set_permissions(&path, all).expect("chmod");
    }
}

/// Compares two texts and shows the lines that differ.
#[track_caller]
pub fn assert_same(what: &str, mount: &str, bare: &str) {
    if mount == bare {
        return;
    }
    let missing = |of: &str, from: &str| -> String {
        let known: Vec<&str> = from.lines().collect();
        let lines = of.lines().filter(|line| !known.contains(line));
        lines.take(20).map(|line| format!("  {line}\n")).collect()
    };
    panic!(
        "{what}, with the mount only:\n{}and bare only:\n{}",
        missing(mount, bare),
        missing(bare, mount)
    );
}

/// A test with each kind of user.
pub const BOTH: [User; 2] = [User::Root, User::Ordinary];
