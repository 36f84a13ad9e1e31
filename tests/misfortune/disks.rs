//! A disk that fails under the daemon, for real: an image that is remounted read-only while programs write,
//! one whose file is cut short, chattr(1) on a file and on its directory.

use crate::common::reliability::Row;
use crate::common::{Mount, Running, finish, options, text, wait_until};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An ext4 in a file; unmounted at the end, which is after that of its mount.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Self {
        let disk = Self(
            tempfile::Builder::new()
                .prefix("latchfs-test-")
                .tempdir()
                .expect("a directory"),
        );
        let file = fs::File::create(disk.image()).expect("an image");
        file.set_len(32 << 20).expect("its size");
        run(Command::new("mkfs.ext4")
            .args(["-q", "-m", "0"])
            .arg(disk.image()));
        fs::create_dir(disk.path()).expect("mkdir");
        run(Command::new("mount")
            .args(["-o", "loop,errors=remount-ro"])
            .arg(disk.image())
            .arg(disk.path()));
        fs::remove_dir(disk.path().join("lost+found")).expect("rmdir");
        disk
    }

    fn image(&self) -> PathBuf {
        self.0.path().join("image")
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("disk")
    }

    /// What ext4 does with errors=remount-ro when it meets one: nothing is written any more. (`mount -o
    /// remount,ro` is refused as long as a file is open for writing, as the daemon's lock is.)
    fn stop_writing(&self) {
        let table = fs::read_to_string("/proc/self/mounts").expect("the mounts");
        let mut lines = table
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>());
        let mine = lines.find(|fields| Path::new(fields[1]) == self.path());
        let device = mine.expect("it is mounted")[0].replace("/dev/", "");
        let trigger = format!("/sys/fs/ext4/{device}/trigger_fs_error");
        fs::write(trigger, "latchfs-test").expect("trigger_fs_error");
    }

    /// Repairs it, and mounts it again.
    fn mount_again(&self) {
        wait_until("it is unmounted", || {
            let output = finish(Command::new("umount").arg(self.path()));
            output.status.success()
        });
        let repaired = finish(Command::new("e2fsck").arg("-fy").arg(self.image()));
        assert!(
            repaired.status.code().is_some_and(|code| code < 4),
            "{}",
            text(&repaired.stdout)
        );
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(self.image())
            .arg(self.path()));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let point = self.path();
        let gone = || {
            Command::new("umount")
                .arg(&point)
                .status()
                .is_ok_and(|s| s.success())
        };
        for _ in 0..100 {
            if gone() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let _ = Command::new("umount").arg("-l").arg(&point).status();
    }
}

fn run(command: &mut Command) {
    let output = finish(command);
    assert!(
        output.status.success(),
        "{command:?}: {}",
        text(&output.stderr)
    );
}

/// Programs that write versions of a file each, and tell `NUMBER ok` or `NUMBER ERRNO` of each; told a line, they
/// stop.
const LOAD: &str = "
import select
def content(n): return (b'%08d\\n' % n) * 1000
n = 0
while not select.select([0], [], [], 0)[0]:
    n += 1
    try:
        how = n % 3
        if how < 2:
            fd = os.open(NAME, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            failed = None
            try: os.write(fd, content(n)); how and os.fsync(fd)
            except OSError as e: failed = e
            try: os.close(fd)
            except OSError as e: failed = failed or e
            if failed: raise failed
        else:
            with open(f'{NAME}.tmp', 'wb', buffering=0) as f: f.write(content(n)); os.fsync(f.fileno())
            os.rename(f'{NAME}.tmp', NAME)
        say(n, 'ok')
    except OSError as e: say(n, errno.errorcode[e.errno])
say('end')
";

fn load(mount: &Mount) -> Vec<Running> {
    ["a", "b", "c"]
        .map(|name| mount.spawn_python(&format!("NAME = '{name}'\n{LOAD}")))
        .into()
}

/// Waits for a report that is `ok`, or not.
fn next(program: &Running, ok: bool) -> (u64, String) {
    let end = std::time::Instant::now() + crate::common::DEADLINE;
    loop {
        let line = program.hear();
        let (n, what) = line.split_once(' ').expect("two words");
        if (what == "ok") == ok {
            return (n.parse().expect("a number"), what.to_owned());
        }
        assert!(std::time::Instant::now() < end, "still {line}");
    }
}

/// Stops a program; returns its last version that was acknowledged, and the errors it met.
fn end(program: &mut Running, mut last: u64) -> (u64, Vec<String>) {
    program.tell("stop");
    let mut errors = vec![];
    loop {
        let line = program.hear();
        if line == "end" {
            program.succeed();
            return (last, errors);
        }
        match line.split_once(' ').expect("two words") {
            (n, "ok") => last = n.parse().expect("a number"),
            (_, errno) => errors.push(errno.to_owned()),
        }
    }
}

fn whole(path: &Path) -> u64 {
    let content = fs::read_to_string(path).expect("the file");
    let first = content.lines().next().expect("a line").to_owned();
    let same = content.lines().count() == 1000 && content.lines().all(|line| line == first);
    assert!(same, "torn: {} bytes", content.len());
    first.parse().expect("a number")
}

/// The control of [`whole`].
#[test]
#[should_panic(expected = "torn")]
fn a_torn_file_of_the_load_is_noticed() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let half = format!("{}{}", "00000002\n".repeat(500), "00000001\n".repeat(500));
    fs::write(file.path(), half).expect("write");
    whole(file.path());
}

/// Ends a daemon whose disk does not let it clear up.
fn end_daemon(mount: &Mount, daemon: u32) {
    let output = finish(
        mount
            .command(crate::common::LATCHFS)
            .arg("umount")
            .arg(mount.point()),
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
    wait_until("the daemon has ended", || !crate::common::alive(daemon));
    let log = mount.log();
    assert!(!log.contains("bug:") && !log.contains("panicked"), "{log}");
}

#[test]
fn a_disk_that_turns_read_only_under_load_gives_an_error_and_keeps_what_was_acknowledged() {
    let disk = Disk::new();
    let mount = options().backing(disk.path()).mount();
    let daemon = mount.daemon();
    let mut programs = load(&mount);
    let mut lasts: Vec<u64> = programs
        .iter()
        .map(|program| next(program, true).0)
        .collect();
    disk.stop_writing();
    for (program, last) in programs.iter_mut().zip(&mut lasts) {
        // What was acknowledged before that.
        let error = loop {
            let line = program.hear();
            match line.split_once(' ').expect("two words") {
                (n, "ok") => *last = n.parse().expect("a number"),
                (_, error) => break error.to_owned(),
            }
        };
        assert!(["EROFS", "EIO"].contains(&error.as_str()), "{error}");
        let (after, errors) = end(program, *last);
        assert_eq!(after, *last, "a version was acknowledged after an error");
        let other = errors
            .iter()
            .find(|e| !["EROFS", "EIO"].contains(&e.as_str()));
        assert_eq!(other, None);
    }
    // The daemon lives, and what is there is read.
    for (name, last) in ["a", "b", "c"].iter().zip(&lasts) {
        assert!(whole(&mount.path(name)) >= *last);
    }
    let refused = mount.try_run("bash", "echo more > g");
    assert!(
        text(&refused.stderr).contains("Read-only file system"),
        "{refused:?}"
    );
    end_daemon(&mount, daemon);
    disk.mount_again();
    mount.start();
    for (name, last) in ["a", "b", "c"].iter().zip(&lasts) {
        let found = whole(&mount.path(name));
        assert!(
            (*last..=last + 1).contains(&found),
            "{name}: {last} was acknowledged, {found} is there"
        );
    }
    assert_eq!(mount.store("tmp"), [""; 0]);
    mount.bash("echo new > a; cat a");
    mount.unmount();
    Row {
        fault: "the disk turns read-only",
        injected: "an ext4 error (errors=remount-ro) under three writers; repaired and mounted again",
        cases: 3,
        violations: 0,
        command: "scripts/test turns_read_only_under_load",
    }
    .report();
}

#[test]
fn a_disk_that_goes_away_gives_eio_and_leaves_the_old_version() {
    let disk = Disk::new();
    let mount = options().backing(disk.path()).mount();
    let daemon = mount.daemon();
    mount.bash("echo old > f; sync f");
    let mut writer = mount.spawn_python(
        "fd = os.open('f', os.O_WRONLY | os.O_TRUNC); os.write(fd, b'new'); say('wrote'); hear()\n\
         try: os.close(fd); say('closed')\n\
         except OSError as e: say(errno.errorcode[e.errno])\nhear()",
    );
    writer.expect("wrote");
    // Every call fails from here on: EXT4_IOC_SHUTDOWN, without the log.
    let shutdown = "import fcntl, os, struct, sys\n\
        fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";
    run(Command::new("python3")
        .args(["-c", shutdown])
        .arg(disk.path()));
    writer.tell("close");
    writer.expect("EIO");
    drop(writer);
    let refused = mount.try_run("bash", "echo more > g");
    assert!(!refused.status.success());
    assert!(crate::common::alive(daemon));
    end_daemon(&mount, daemon);
    disk.mount_again();
    mount.start();
    assert_eq!(mount.read("f"), "old\n");
    mount.bash("echo new > f; cat f");
    assert_eq!(mount.read_behind("f"), "new\n");
    mount.unmount();
    Row {
        fault: "the disk goes away",
        injected: "EXT4_IOC_SHUTDOWN of a loop image with a version half written; mounted again",
        cases: 1,
        violations: 0,
        command: "scripts/test disk_that_goes_away",
    }
    .report();
}

#[test]
fn chattr_under_load_is_told_and_the_file_stays_whole() {
    let disk = Disk::new();
    let mount = options().backing(disk.path()).mount();
    let chattr = |flag: &str, path: &Path| run(Command::new("chattr").arg(flag).arg(path));
    let base = mount.descriptors();
    let mut programs = load(&mount);
    for program in &programs {
        next(program, true);
    }
    let mut cases = 0;
    for _ in 0..3 {
        chattr("+i", &mount.behind("a"));
        let (_, error) = next(&programs[0], false);
        assert_eq!(error, "EPERM");
        whole(&mount.behind("a"));
        // Others are not concerned.
        next(&programs[1], true);
        chattr("-i", &mount.behind("a"));
        next(&programs[0], true);
        // A directory that may not be changed: files keep their inode, and none is made.
        chattr("+i", &disk.path());
        let (_, error) = next(&programs[2], false);
        assert!(["EPERM", "EACCES"].contains(&error.as_str()), "{error}");
        next(&programs[2], true);
        chattr("-i", &disk.path());
        cases += 2;
    }
    for (program, name) in programs.iter_mut().zip(["a", "b", "c"]) {
        let last = next(program, true).0;
        let (last, _) = end(program, last);
        assert_eq!(whole(&mount.behind(name)), last);
        assert_eq!(whole(&mount.path(name)), last);
    }
    drop(programs);
    assert_eq!(mount.store("tmp"), [""; 0]);
    // What a rewrite in place could not end is held until the mount ends, which ends it.
    mount.wait_until_descriptors_are_back(base + 4);
    mount.unmount();
    Row {
        fault: "chattr +i on a file and on its directory",
        injected: "set and taken away under three writers",
        cases,
        violations: 0,
        command: "scripts/test chattr_under_load",
    }
    .report();
}
