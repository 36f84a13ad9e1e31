//! Locks that programs take themselves (N3), by real programs, on mounts of both users; and the same
//! on a bare directory, which has to answer the same.

#[path = "../common/mod.rs"]
mod common;
mod counting;
mod databases;
mod rules;
mod versions;
mod waits;

use common::{DEADLINE, Mount, User, options, text};
use std::path::Path;
use std::process::{Command, Stdio};

/// Put before the scripts: locks by one letter each, and what became of them.
const LOCKING: &str = r#"
import errno, fcntl, os, signal, struct, subprocess, sys, threading, time
SHARED, EXCLUSIVE, UNLOCK, NB = fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN, fcntl.LOCK_NB
LAYOUT = "hhxxxxqqixxxx"
def say(*words):
    print(*words, flush=True)
def hear():
    return sys.stdin.readline().strip()
def attempt(call, *args):
    try:
        call(*args)
        return "got"
    except OSError as e:
        return errno.errorcode[e.errno].replace("EDEADLOCK", "EDEADLK")
def flock(fd, how):
    return attempt(fcntl.flock, fd, how)
def lockf(fd, how, start=0, length=0):
    return attempt(fcntl.lockf, fd, how, length, start)
def ofd(fd, kind, start=0, length=0, wait=False):
    command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
    return attempt(fcntl.fcntl, fd, command, struct.pack(LAYOUT, kind, 0, start, length, 0))
def who(fd, kind=fcntl.F_WRLCK, start=0, length=0, command=fcntl.F_GETLK):
    lock = struct.pack(LAYOUT, kind, 0, start, length, 0)
    kind, _, start, length, pid = struct.unpack(LAYOUT, fcntl.fcntl(fd, command, lock))
    return ("none",) if kind == fcntl.F_UNLCK else (kind, start, length, pid)
def elsewhere(what):
    "The value of an expression in another process: f is f, opened there to read; W is inherited."
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        for fd in range(3, 64):
            if fd not in (write, globals().get("W")):
                try:
                    os.close(fd)
                except OSError:
                    pass
        f = os.open('f', os.O_RDONLY)
        os.write(write, repr(eval(what, globals(), {"f": f})).encode())
        os._exit(0)
    os.close(write)
    answer = b""
    while piece := os.read(read, 4096):
        answer += piece
    os.close(read)
    assert os.waitpid(child, 0)[1] == 0
    return eval(answer)
"#;

/// Runs a Python script in a directory, with a file of this name in the place of `f`, and returns
/// what it printed.
fn python(mut command: Command, dir: &Path, name: &str, script: &str) -> String {
    let script = format!("{LOCKING}{script}").replace("'f'", &format!("'{name}'"));
    command.arg("-c").arg(&script).current_dir(dir);
    let output = common::finish(command.stdin(Stdio::null()));
    common::successful(&script, &output)
}

/// A directory that is no mount.
fn bare() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

/// Runs a script on a bare directory, and on a mount of each user, there also with a file that has no
/// versions (`f.db`) in the place of `f`: all must print the same. The file is there, with ten bytes.
///
/// (Readers do not wait for writers on these mounts: a program can have `f` open to write while
/// another opens it to read. Two that open it to write would take turns.)
fn same_as_bare(script: &str) -> String {
    let bare = bare();
    std::fs::write(bare.path().join("f"), "0123456789").expect("a file");
    let expected = python(Command::new("python3"), bare.path(), "f", script);
    for user in [User::Root, User::Ordinary] {
        let mount = options().user(user).arg("--readers=snapshot").mount();
        for name in ["f", "f.db"] {
            mount.bash("rm -rf *; printf 0123456789 | tee f > f.db");
            let seen = python(mount.command("python3"), mount.point(), name, script);
            let mut lines = seen.lines().zip(expected.lines()).enumerate();
            let other = lines.find(|(_, (seen, expected))| seen != expected);
            assert_eq!(other, None, "{name} on a mount of {user:?}");
            assert_eq!(seen.len(), expected.len());
        }
        mount.unmount();
    }
    expected
}

/// A Python program left running in a mount.
fn spawn(mount: &Mount, script: &str) -> common::Running {
    mount.spawn_python(&format!("{LOCKING}{script}"))
}

/// How long something took that has to be quick: far less than any timeout of latchfs, and far more
/// than a slow machine needs.
const QUICK: std::time::Duration = std::time::Duration::from_secs(15);

const _: () = assert!(QUICK.as_secs() < DEADLINE.as_secs());
