//! What the usual mount options do.

use crate::common::{Mount, User, finish, options, text};
use crate::pair::BOTH;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Stdio;

/// The options of a mount in the table of mounts.
fn told(mount: &Mount) -> Vec<String> {
    let output = finish(
        mount
            .command("findmnt")
            .args(["-n", "-o", "OPTIONS", "--mountpoint"])
            .arg(mount.point()),
    );
    text(&output.stdout)
        .trim()
        .split(',')
        .map(str::to_owned)
        .collect()
}

/// All that a read-only mount may not change: names and times.
fn state(dir: &Path) -> Vec<(String, i64, i64, u64)> {
    let stat = |path: &Path| {
        let stat = fs::symlink_metadata(path).expect("stat");
        let name = path.display().to_string();
        (name, stat.mtime_nsec(), stat.ctime_nsec(), stat.size())
    };
    let mut found = vec![stat(dir)];
    // The tests give it to the user who mounts.
    found[0].2 = 0;
    for entry in fs::read_dir(dir).expect("list") {
        let path = entry.expect("entry").path();
        found.push(stat(&path));
    }
    found.sort();
    found
}

#[test]
fn a_read_only_mount_refuses_every_change_and_leaves_backing_alone() {
    for user in BOTH {
        let home = tempfile::tempdir().expect("a directory");
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let backing = home.path().join("backing");
        fs::create_dir(&backing).expect("mkdir");
        fs::write(backing.join("f"), "content").expect("write");
        fs::write(backing.join("g"), "more").expect("write");
        fs::create_dir(backing.join("d")).expect("mkdir");
        let (uid, gid) = crate::common::test_user();
        if user == User::Ordinary {
            for path in [&backing, &backing.join("f"), &backing.join("d")] {
                chown(path, Some(uid), Some(gid)).expect("chown");
            }
        }
        let before = state(&backing);
        let mount = ReadOnly::start(home.path(), &backing, user);
        let said = mount.0.python(
            r#"
def attempt(call, *args):
    try: say("SUCCEEDED", call(*args))
    except OSError as error: say(errno.errorcode[error.errno])
for flags in [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND]:
    attempt(os.open, "f", flags)
attempt(os.open, "new", os.O_WRONLY | os.O_CREAT)
attempt(os.mkdir, "x"); attempt(os.rmdir, "d"); attempt(os.unlink, "f"); attempt(os.symlink, "a", "b")
attempt(os.link, "f", "h"); attempt(os.rename, "f", "h"); attempt(os.mkfifo, "p"); attempt(os.truncate, "f", 1)
attempt(os.chmod, "f", 0o777); attempt(os.chown, "f", os.getuid(), os.getgid()); attempt(os.utime, "f")
attempt(os.setxattr, "f", "user.x", b"1"); attempt(os.removexattr, "f", "user.x")
attempt(os.chmod, ".", 0o777)
assert not os.access("f", os.W_OK)
assert open("f").read() == "content" and sorted(os.listdir(".")) == ["d", "f", "g"]
with open("f") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m: assert m[:] == b"content"
"#,
        );
        let odd: Vec<&str> = said.lines().filter(|line| *line != "EROFS").collect();
        assert_eq!(odd, [""; 0], "{said}");
        assert!(told(&mount.0).contains(&"ro".to_owned()));
        drop(mount);
        assert_eq!(state(&backing), before);
        assert!(!backing.join(".latchfs").exists());
    }
}

/// A read-only mount, which has no store to find its daemon by.
struct ReadOnly(std::mem::ManuallyDrop<Mount>);

impl ReadOnly {
    fn start(_home: &Path, backing: &Path, user: User) -> Self {
        let mount = options().user(user).backing(backing).arg("-oro").mount();
        Self(std::mem::ManuallyDrop::new(mount))
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let mut umount = self.0.command(crate::common::LATCHFS);
        umount.arg("umount").arg(self.0.point());
        let output = finish(umount.stdin(Stdio::null()));
        if !std::thread::panicking() {
            assert!(output.status.success(), "{}", text(&output.stderr));
            assert!(!self.0.is_mounted());
        }
        // With nothing mounted, this only removes the directories.
        // SAFETY: dropped once, here, and not used afterwards.
        unsafe { std::mem::ManuallyDrop::drop(&mut self.0) };
    }
}

#[test]
fn noexec_refuses_to_run_programs() {
    for user in BOTH {
        let script = "printf '#!/bin/sh\\necho ran\\n' > s; chmod 755 s; cp /bin/true t; ./s; ./t";
        let mount = options().user(user).arg("-onoexec").mount();
        let output = mount.try_run("sh", script);
        assert_eq!(output.status.code(), Some(126), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("Permission denied"));
        assert_eq!(mount.run("sh", "sh ./s"), "ran\n");
        drop(mount);
        let mount = options().user(user).mount();
        assert_eq!(mount.run("sh", script), "ran\n");
    }
}

#[test]
fn nosuid_takes_set_user_id_away() {
    let script = "cp /usr/bin/id i; chown 0 i; chmod 4755 i; chmod 755 .; \
                  setpriv --reuid 12345 --regid 12345 --clear-groups ./i -u";
    for (option, user) in [("suid", "0\n"), ("nosuid", "12345\n")] {
        let mount = options().arg(format!("-oallow_other,{option}")).mount();
        assert_eq!(mount.run("sh", script), user, "{option}");
        assert_eq!(
            told(&mount).contains(&"nosuid".to_owned()),
            option != "suid"
        );
    }
    // A mount by an ordinary user never honours set-user-id programs or devices.
    let mount = options().user(User::Ordinary).mount();
    let told = told(&mount);
    for option in ["nosuid", "nodev"] {
        assert!(told.contains(&option.to_owned()), "{told:?}");
    }
}

#[test]
fn options_are_told_in_the_table_of_mounts() {
    for user in BOTH {
        let mount = options()
            .user(user)
            .arg("-onoexec,noatime,nodev,nosuid")
            .mount();
        let told = told(&mount);
        for option in ["rw", "noexec", "noatime", "nodev", "nosuid"] {
            assert!(told.contains(&option.to_owned()), "{option}: {told:?}");
        }
        let table = fs::read_to_string("/proc/self/mountinfo").expect("the table");
        let point = mount.point().display().to_string();
        let line = table
            .lines()
            .find(|line| line.split(' ').nth(4) == Some(&point));
        let line = line.expect("its line");
        let source = mount.backing().display();
        assert!(line.contains(&format!("fuse.latchfs {source} ")), "{line}");
        assert!(line.contains("default_permissions"), "{line}");
    }
}
