//! A full disk: a small ext4 in a file as BACKING. The writer is told, the old version stays, and
//! the space comes back (W6, W8).

mod common;

use common::{Mount, User, finish, options, test_user, text, wait_until};
use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::Command;

const BOTH: [User; 2] = [User::Root, User::Ordinary];
const MIB: u64 = 1 << 20;

/// A small file system; unmounted at the end, which is after that of its mount.
struct Disk {
    guard: tempfile::TempDir,
    user: User,
}

impl Disk {
    fn new(user: User) -> Self {
        let guard = tempfile::Builder::new()
            .prefix("latchfs-test-")
            .tempdir()
            .expect("a directory");
        let disk = Self { guard, user };
        let all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(disk.guard.path(), all).expect("chmod");
        let image = disk.guard.path().join("image");
        let file = fs::File::create(&image).expect("an image");
        file.set_len(16 * MIB).expect("its size");
        let mut mkfs = Command::new("mkfs.ext4");
        // Nothing reserved, so that root and others find it full at the same moment.
        succeed(
            mkfs.args(["-q", "-m", "0", "-O", "^has_journal"])
                .arg(&image),
        );
        fs::create_dir(disk.path()).expect("mkdir");
        let mut mount = Command::new("mount");
        succeed(mount.args(["-o", "loop"]).arg(&image).arg(disk.path()));
        fs::remove_dir(disk.path().join("lost+found")).expect("rmdir");
        if user == User::Ordinary {
            let (uid, gid) = test_user();
            chown(disk.path(), Some(uid), Some(gid)).expect("chown");
        }
        disk
    }

    fn path(&self) -> PathBuf {
        self.guard.path().join("disk")
    }

    fn mount(&self) -> Mount {
        options().user(self.user).backing(self.path()).mount()
    }

    /// Free bytes, with what was deleted lately counted as free.
    fn free(&self) -> u64 {
        let mut stat = Command::new("stat");
        let output = succeed(stat.args(["-f", "-c", "%a %S"]).arg(self.path()));
        let numbers: Vec<u64> = output.split_whitespace().flat_map(str::parse).collect();
        numbers[0] * numbers[1]
    }

    /// Waits until as much is free as was before, but for a few blocks of metadata.
    #[track_caller]
    fn wait_until_free(&self, before: u64) {
        wait_until("the space is back", || self.free() + 16 * 1024 >= before);
    }

    /// Fills it behind the mount, but for so many bytes.
    fn fill_but(&self, rest: u64) {
        let ballast = fs::File::create(self.path().join("ballast")).expect("ballast");
        let mut step = 4 * MIB;
        let mut size = 0;
        while step >= 4096 {
            let more = self.free().saturating_sub(rest) >= step;
            if more
                && rustix::fs::fallocate(&ballast, rustix::fs::FallocateFlags::empty(), size, step)
                    .is_ok()
            {
                size += step;
            } else {
                step /= 2;
            }
        }
        assert!(self.free() <= rest + 64 * 1024, "{} left", self.free());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Some moments after a daemon was killed its descriptors may still be closing.
        for _ in 0..100 {
            let done = Command::new("umount")
                .arg(self.path())
                .output()
                .expect("umount");
            if done.status.success() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn succeed(command: &mut Command) -> String {
    let output = finish(command);
    assert!(
        output.status.success(),
        "{command:?}: {}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// Writes until it fails, then closes; says how both went.
const FILL: &str = "
def fill(fd, size=65536):
    written = 0
    block = os.urandom(size)
    try:
        while True: written += os.write(fd, block)
    except OSError as e: wrote = errno.errorcode[e.errno]
    try: os.close(fd); closed = 'closed'
    except OSError as e: closed = errno.errorcode[e.errno]
    say(wrote, closed, written > 1 << 20)
";

#[test]
fn the_writer_is_told_at_write_and_at_close_and_the_old_version_stays() {
    for user in BOTH {
        let disk = Disk::new(user);
        let mount = disk.mount();
        mount.bash("echo old > f");
        let before = disk.free();
        for (path, flags) in [("f", "os.O_TRUNC"), ("f", "0"), ("new", "os.O_CREAT")] {
            for access in ["os.O_WRONLY", "os.O_RDWR"] {
                let said = mount.python(&format!(
                    "{FILL}\nfill(os.open('{path}', {access} | {flags}))"
                ));
                assert_eq!(said, "ENOSPC ENOSPC True\n", "{path} {access} {flags}");
                assert_eq!(mount.read("f"), "old\n");
                assert_eq!(mount.read_behind("f"), "old\n");
                assert_eq!(mount.bash("ls"), "f\n");
                disk.wait_until_free(before);
                // The daemon lives, and what fits is written.
                mount.bash("echo old > f; echo small > g; cat g; rm g");
            }
        }
        assert_eq!(mount.store("tmp"), [""; 0]);
        assert_eq!(mount.store("kept"), [""; 0]);
        let warnings = mount.log().matches("rolled back").count();
        assert_eq!(warnings, 6, "{}", mount.log());
    }
}

#[test]
fn a_python_program_gets_an_oserror() {
    for user in BOTH {
        let disk = Disk::new(user);
        let mount = disk.mount();
        mount.bash("echo old > f");
        let before = disk.free();
        let said = mount.python(
            "for name, mode in [('f', 'w'), ('new', 'w'), ('f', 'r+')]:\n\
             \x20   try:\n        with open(name, mode) as f: f.write('x' * (20 << 20))\n        say('success')\n\
             \x20   except OSError as e: say(errno.errorcode[e.errno])\n\
             say(open('f').read(), os.listdir('.'))",
        );
        assert_eq!(said, "ENOSPC\nENOSPC\nENOSPC\nold\n ['f']\n");
        disk.wait_until_free(before);
    }
}

#[test]
fn programs_report_it() {
    for user in BOTH {
        let disk = Disk::new(user);
        let mount = disk.mount();
        mount.bash("echo old > f");
        let before = disk.free();
        for script in [
            "head -c 20M /dev/urandom > f",
            "cat /dev/urandom > f",
            "dd if=/dev/urandom of=f bs=1M count=20",
            "dd if=/dev/urandom of=f bs=1M count=20 conv=notrunc,fsync",
            "head -c 20M /dev/urandom > ../big; cp ../big f",
            "cp ../big new",
            "rsync ../big f",
            "tar cf f ../big",
            "fallocate -l 20M f",
            "fallocate -l 20M new",
        ] {
            let output = mount.try_run("bash", script);
            assert!(!output.status.success(), "{script}");
            let stderr = text(&output.stderr);
            assert!(stderr.contains("No space left"), "{script}: {stderr}");
            assert_eq!(mount.bash("cat f"), "old\n", "{script}");
            mount.bash("rm -f new .*.??????");
            disk.wait_until_free(before);
        }
        mount.bash("head -c 1M /dev/zero > f");
        assert_eq!(mount.behind("f").metadata().expect("stat").len(), MIB);
    }
}

#[test]
fn an_error_once_told_stays_with_the_transaction() {
    for user in BOTH {
        let disk = Disk::new(user);
        let mount = disk.mount();
        mount.bash("echo old > f");
        disk.fill_but(2 * MIB);
        // The first large write fails, the next one would fit: it would be a file with a hole.
        let said = mount.python(
            "fd = os.open('f', os.O_WRONLY | os.O_TRUNC)\n\
             def attempt(call, *args):\n    try: say(call(*args))\n    except OSError as e: say(errno.errorcode[e.errno])\n\
             os.write(fd, b'start')\n\
             os.posix_fallocate(fd, 0, 100)\n\
             big = os.urandom(8 << 20)\n\
             try:\n    at = 0\n    while at < len(big): at += os.pwrite(fd, big[at:], 10 + at)\n    say('fits')\n\
             except OSError as e: say(errno.errorcode[e.errno])\n\
             attempt(os.ftruncate, fd, 5)\n\
             attempt(os.fsync, fd)\n\
             attempt(os.close, fd)",
        );
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[0], "ENOSPC");
        assert_eq!(lines[2..], ["ENOSPC", "ENOSPC"], "{said}");
        assert_eq!(mount.read_behind("f"), "old\n");
        mount.bash("rm ballast");
    }
}

#[test]
fn a_file_can_not_be_created_with_content_on_a_full_disk() {
    for user in BOTH {
        let disk = Disk::new(user);
        let mount = disk.mount();
        mount.bash("echo old > f; mkdir d");
        disk.fill_but(0);
        for name in ["new", "d/new"] {
            let script = format!("head -c 1M /dev/urandom > {name}");
            let output = mount.try_run("bash", &script);
            assert!(!output.status.success());
            assert!(!mount.behind(name).exists());
            assert!(
                !mount
                    .try_run("bash", &format!("stat {name}"))
                    .status
                    .success()
            );
        }
        assert_eq!(mount.bash("ls d; cat f"), "old\n");
        let output = mount.try_run("bash", "head -c 1M /dev/urandom > f");
        assert!(text(&output.stderr).contains("No space left"));
        assert_eq!(mount.bash("cat f"), "old\n");
        // Names can still be removed, which makes room.
        mount.bash("rm ballast; echo new > f; echo x > d/new; cat d/new");
        assert_eq!(mount.read_behind("f"), "new\n");
    }
}

#[test]
fn an_update_of_a_large_file_that_does_not_fit_twice_leaves_it_as_it_was() {
    for user in BOTH {
        let disk = Disk::new(user);
        let mount = disk.mount();
        mount.bash("head -c 9M /dev/urandom > f; sha1sum < f > ../sum");
        let before = disk.free();
        let said = mount.python(
            "fd = os.open('f', os.O_RDWR)\n\
             try: os.pwrite(fd, b'patch', 5 << 20); say('wrote')\n\
             except OSError as e: say(errno.errorcode[e.errno])\n\
             try: os.close(fd); say('closed')\n\
             except OSError as e: say(errno.errorcode[e.errno])",
        );
        assert_eq!(said, "ENOSPC\nENOSPC\n");
        mount.bash("sha1sum < f | cmp - ../sum");
        disk.wait_until_free(before);
    }
}

/// Its inode is rewritten in place, so room for both must be there before the first byte goes.
#[test]
fn a_hard_linked_file_that_does_not_fit_twice_keeps_its_old_version() {
    for user in BOTH {
        let disk = Disk::new(user);
        let mount = disk.mount();
        mount.bash("head -c 100K /dev/urandom > f; ln f g; sha1sum < f > ../sum");
        let before = disk.free();
        let output = mount.try_run("bash", "head -c 9M /dev/urandom > f");
        let told = output.status.code();
        let whole = mount.try_run("bash", "sha1sum < g | cmp - ../sum && cmp f g");
        assert!(
            whole.status.success(),
            "torn: the writer ended with {told:?}"
        );
        disk.wait_until_free(before);
        assert_eq!(mount.store("redo"), [""; 0]);
        mount.unmount();
        mount.start();
        mount.bash("sha1sum < g | cmp - ../sum; echo new > f; cat g");
        assert_eq!(mount.read_behind("g"), "new\n");
    }
}

#[test]
fn a_mount_of_a_full_disk_works() {
    for user in BOTH {
        let disk = Disk::new(user);
        let mount = disk.mount();
        mount.bash("echo old > f");
        mount.unmount();
        disk.fill_but(0);
        mount.start();
        assert_eq!(
            mount.bash("cat f; rm ballast; echo new > f; cat f"),
            "old\nnew\n"
        );
    }
}
