//! How much is kept, and for how long; what a crash leaves; that a full disk gets its room back.

use crate::common::{
    DEADLINE, Mount, User, as_each_user, finish, options, successful, text, wait_until,
};
use crate::{kept, kill_writer, only};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is kept, by the first byte of each.
fn letters(mount: &Mount) -> String {
    kept(mount)
        .iter()
        .map(|(_, bytes)| char::from(bytes[0]))
        .collect()
}

#[test]
fn the_oldest_go_when_all_together_are_too_large() {
    for user in [User::Root, User::Ordinary] {
        let mount = options().user(user).arg("--kept-max-size=1MiB").mount();
        for letter in ["a", "b", "c", "d", "e"] {
            kill_writer(&mount, "'f'", &format!("b'{letter}' * 300_000"));
        }
        assert_eq!(letters(&mount), "cde");
        // One that is larger by itself is not kept, takes no other with it, and is told of.
        kill_writer(&mount, "'f'", "b'x' * 1_100_000");
        assert_eq!(letters(&mount), "cde");
        let log = mount.log();
        let line = log.lines().find(|line| line.contains("is not kept"));
        let line = line.unwrap_or_else(|| panic!("{log}"));
        assert!(line.contains("kept_max_size (1048576 bytes)"), "{line}");
    }
}

#[test]
fn nothing_is_kept_if_nothing_may_be() {
    let mount = options().arg("-okept_max_size=0").mount();
    kill_writer(&mount, "'f'", "b'x'");
    assert_eq!(kept(&mount), []);
}

#[test]
fn bounds_come_from_the_configuration_file_and_a_reload_applies_them() {
    let mount = options().mount();
    for letter in ["a", "b", "c"] {
        kill_writer(&mount, "'f'", &format!("b'{letter}' * 300_000"));
    }
    let write = |text: &str| {
        fs::write(mount.behind(".latchfs/config.toml"), text).expect("the configuration");
    };
    write("kept_max_size = \"700KB\"");
    crate::common::kill(mount.daemon(), "HUP");
    wait_until("the bound applies", || mount.store("kept").len() == 4);
    assert_eq!(letters(&mount), "bc");
    write("kept_max_size = \"400KB\"");
    mount.unmount();
    mount.start();
    assert_eq!(letters(&mount), "c");
}

#[test]
fn what_is_too_old_goes_when_the_mount_starts() {
    for user in [User::Root, User::Ordinary] {
        let mount = options().user(user).mount();
        for letter in ["a", "b", "c"] {
            kill_writer(&mount, "'f'", &format!("b'{letter}'"));
        }
        let all = kept(&mount);
        mount.unmount();
        for (record, age) in [(&all[0].0, "31 days ago"), (&all[1].0, "29 days ago")] {
            let id = record["id"].as_str().expect("an ID");
            let path = mount.behind(&format!(".latchfs/kept/{id}.json"));
            let mut touch = Command::new("touch");
            successful("touch", &finish(touch.args(["-d", age]).arg(path)));
        }
        mount.start();
        assert_eq!(letters(&mount), "bc");
    }
}

#[test]
fn what_a_crash_left_between_the_bytes_and_their_record_is_put_right() {
    as_each_user(|mount| {
        kill_writer(mount, "'f'", "b'whole'");
        let (record, _) = only(mount);
        let id = record["id"].as_str().expect("an ID");
        mount.unmount();
        let (keep, tmp) = (mount.behind(".latchfs/kept"), mount.behind(".latchfs/tmp"));
        // The bytes had their name already, their record not yet.
        let name = format!("{id}.json");
        fs::rename(keep.join(&name), tmp.join(&name)).expect("mv");
        // Of another, there was only the record; a third was being removed.
        fs::write(tmp.join("11111111.json"), "{}").expect("write");
        fs::write(keep.join("22222222.json"), "{}").expect("write");
        // What is not ours stays.
        fs::write(keep.join("README"), "not ours").expect("write");
        mount.start();
        let mut expected = vec![format!("{id}.data"), name, String::from("README")];
        expected.sort();
        assert_eq!(mount.store("kept"), expected);
        assert_eq!(mount.store("tmp"), [""; 0]);
        fs::remove_file(keep.join("README")).expect("rm");
        assert_eq!(only(mount).0, record);
    });
}

#[test]
fn a_daemon_killed_at_any_moment_leaves_whole_kept_versions() {
    let mount = options().mount();
    for round in 0..10 {
        // Writers are killed one after the other until the daemon is.
        let storm = mount.spawn_python(
            "say('go')\n\
             for n in range(100_000):\n\
             \x20   pid = os.fork()\n\
             \x20   if pid == 0:\n\
             \x20       fd = os.open(f'f{n % 4}', os.O_WRONLY | os.O_CREAT)\n\
             \x20       os.write(fd, b'x' * 5000)\n\
             \x20       os.kill(os.getpid(), signal.SIGKILL)\n\
             \x20   os.waitpid(pid, 0)",
        );
        storm.expect("go");
        let before = mount.store("kept").len();
        wait_until("some are kept", || {
            mount.store("kept").len() > before + 10 + 4 * round
        });
        mount.crash();
        drop(storm);
        mount.start();
        assert_eq!(mount.store("tmp"), [""; 0]);
        for (record, bytes) in kept(&mount) {
            assert_eq!(bytes, b"x".repeat(5000));
            assert_eq!(record["kind"], "rolled-back");
        }
    }
}

/// A small file system of its own.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Self {
        let disk = Self(tempfile::tempdir().expect("a directory"));
        let image = disk.0.path().join("image");
        let file = fs::File::create(&image).expect("an image");
        file.set_len(16 << 20).expect("its size");
        fs::create_dir(disk.path()).expect("mkdir");
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-m", "0", "-O", "^has_journal"])
            .arg(&image);
        successful("mkfs", &finish(&mut mkfs));
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(&image).arg(disk.path());
        successful("mount", &finish(&mut mount));
        disk
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("disk")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let end = std::time::Instant::now() + DEADLINE;
        let umount = |path: &Path| Command::new("umount").arg(path).output();
        // A killed daemon's descriptors may still be closing.
        while !umount(&self.path()).is_ok_and(|o| o.status.success()) {
            if std::time::Instant::now() > end {
                let _ = Command::new("umount").arg("-l").arg(self.path()).status();
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

#[test]
fn kept_versions_make_way_for_what_is_written() {
    let disk = Disk::new();
    let mount = options().backing(disk.path()).mount();
    let fill = |disk: &Disk| {
        for left in fs::read_dir(disk.path().join(".latchfs/kept")).expect("the store") {
            fs::remove_file(left.expect("an entry").path()).expect("rm");
        }
        for letter in ["a", "b", "c"] {
            kill_writer(&mount, "'f'", &format!("b'{letter}' * 3_000_000"));
        }
        assert_eq!(mount.store("kept").len(), 6);
    };
    // A new version; in small writes, by an event thread, and in one large allocation.
    for write in [
        "head -c 9M /dev/zero | tr '\\0' x > big",
        "dd if=/dev/urandom of=big bs=4k count=2304 status=none",
        "fallocate -l 9M big",
        // A file that is used directly.
        "head -c 9M /dev/urandom > big.db; mv big.db big",
    ] {
        fill(&disk);
        mount.bash(write);
        assert_eq!(mount.behind("big").metadata().expect("stat").len(), 9 << 20);
        let left = mount.store("kept").len();
        assert!(left < 6, "{write}: {left}");
        assert!(mount.log().contains("made way"), "{}", mount.log());
        mount.bash("rm big");
    }
    // A file that is copied for an update of one byte, and one that is rewritten in place.
    mount.bash("head -c 5M /dev/urandom > big");
    fill(&disk);
    mount.bash("printf x | dd of=big conv=notrunc bs=1 seek=1000 status=none");
    mount.bash("rm -f big; head -c 3M /dev/urandom > big; ln big link");
    fill(&disk);
    mount.bash("head -c 4M /dev/urandom > big; cmp big link; rm big link");
    // What can't be had does not cost them.
    fill(&disk);
    let output = mount.try_run("bash", "fallocate -l 100M big");
    assert!(text(&output.stderr).contains("No space left"));
    assert_eq!(mount.store("kept").len(), 6);
}

#[test]
fn what_did_not_fit_is_not_kept() {
    let disk = Disk::new();
    let mount = options().backing(disk.path()).mount();
    let output = mount.try_run("bash", "head -c 20M /dev/urandom > f");
    assert!(text(&output.stderr).contains("No space left"));
    assert_eq!(kept(&mount), []);
    // What there was of it goes with its handle, and for the end of that no close waits.
    wait_until("there is room again", || {
        let disk = rustix::fs::statvfs(disk.path()).expect("statfs");
        disk.f_bavail * disk.f_frsize > 10 << 20
    });
    mount.bash("head -c 9M /dev/urandom > f");
}
