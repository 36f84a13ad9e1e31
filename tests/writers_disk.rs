//! W6 and W8: what happens when the disk is full, a quota is used up, or the disk fails. BACKING
//! is a small file system in a file.

mod common;

use common::{Mount, User, options, wait_until};
use std::path::PathBuf;
use std::process::Command;

/// A file system in a file, mounted for as long as this lives.
struct Disk {
    home: tempfile::TempDir,
    mounts: Vec<PathBuf>,
}

impl Disk {
    fn new() -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path();
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("chmod");
        std::fs::create_dir(path.join("disk")).expect("mkdir");
        let mounts = vec![path.join("disk")];
        Self { home, mounts }
    }

    /// Makes it, by a script that finds its directory in `$D` and is to mount `$D/disk`.
    fn made_by(script: &str) -> Self {
        let disk = Self::new();
        disk.sh(script);
        disk
    }

    /// An ext4 of 8 MiB without blocks reserved for root.
    fn small(options: &str) -> Self {
        Self::made_by(&format!(
            "truncate -s 8M image; mkfs.ext4 -q -F -m 0 {options} image; mount -o loop image disk"
        ))
    }

    fn sh(&self, script: &str) {
        let mut command = Command::new("bash");
        command.args(["-e", "-c", script]);
        let output = common::finish(command.current_dir(self.home.path()));
        let error = common::text(&output.stderr);
        assert!(output.status.success(), "{script}: {error}");
    }

    /// A directory on it.
    fn directory(&self) -> PathBuf {
        self.mounts[0].join("backing")
    }

    fn mount(&self, user: User) -> Mount {
        options().backing(self.directory()).user(user).mount()
    }

    /// Free space in blocks.
    fn free(&self) -> u64 {
        self.sh("sync -f disk");
        let of = rustix::fs::statvfs(&self.mounts[0]).expect("statvfs");
        of.f_bavail
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for path in &self.mounts {
            let _ = Command::new("umount").arg("-l").arg(path).status();
        }
    }
}

/// Runs a test on a small ext4, mounted by each user, with `f` holding "old".
fn on_a_small_disk(test: impl Fn(&Disk, &Mount)) {
    for user in [User::Root, User::Ordinary] {
        let disk = Disk::small("");
        let mount = disk.mount(user);
        mount.bash("printf old > f; touch g; printf more >> g; rm g");
        test(&disk, &mount);
        mount.unmount();
    }
}

/// Python that fills the disk through the mount: `fill(f)` writes until there is an error.
const FILL: &str = r#"
def fill(f):
    while True:
        try:
            os.write(f, b"x" * 300000)
        except OSError as e:
            return errno.errorcode[e.errno]
def close(f):
    try:
        os.close(f)
    except OSError as e:
        return errno.errorcode[e.errno]
"#;

#[test]
fn a_writer_on_a_full_disk_gets_enospc_at_write_and_at_close() {
    on_a_small_disk(|_, mount| {
        let told = mount.python(&format!(
            "{FILL}\nf = os.open('f', os.O_WRONLY | os.O_TRUNC)\nprint(fill(f), close(f))"
        ));
        assert_eq!(told, "ENOSPC ENOSPC\n");
        let told = mount.python(&format!(
            "{FILL}\nf = os.open('new', os.O_WRONLY | os.O_CREAT)\nprint(fill(f), close(f))"
        ));
        assert_eq!(told, "ENOSPC ENOSPC\n");
    });
}

#[test]
fn a_full_disk_leaves_the_old_version_and_the_space_comes_back() {
    on_a_small_disk(|disk, mount| {
        let free = disk.free();
        mount.python(&format!(
            "{FILL}\nfor turn in range(3):\n    for name in 'f', 'new':\n        \
             f = os.open(name, os.O_RDWR | os.O_CREAT)\n        fill(f)\n        close(f)"
        ));
        assert_eq!(mount.bash("cat f; ls"), "oldf\n");
        assert_eq!(mount.bash("ls -A"), "f\n");
        wait_until("the space is back", || disk.free() >= free);
        assert!(
            mount.log().contains("/f: update by pid "),
            "{}",
            mount.log()
        );
        mount.bash("printf next > f");
        assert_eq!(
            std::fs::read_to_string(disk.directory().join("f")).expect("f"),
            "next"
        );
    });
}

#[test]
fn a_program_that_ignores_the_failed_write_can_not_commit() {
    on_a_small_disk(|disk, mount| {
        let told = mount.python(&format!(
            "{FILL}
f = os.open('f', os.O_RDWR | os.O_TRUNC)
os.write(f, b'begin')
fill(f)
# There is room again, and writing goes on.
os.ftruncate(f, 5)
try: os.write(f, b'end')
except OSError: pass
print(close(f))"
        ));
        assert_eq!(told, "ENOSPC\n");
        assert_eq!(mount.read("f"), "old");
        assert_eq!(
            std::fs::read_to_string(disk.directory().join("f")).expect("f"),
            "old"
        );
        mount.bash("printf next > f");
        assert_eq!(mount.read("f"), "next");
    });
}

#[test]
fn a_program_that_never_looks_at_errors_leaves_the_old_version() {
    on_a_small_disk(|_, mount| {
        mount.try_run(
            "bash",
            "yes > f 2>/dev/null; head -c 20M /dev/zero > f 2>/dev/null",
        );
        assert_eq!(mount.read("f"), "old");
        // One of two writers of a version fails.
        mount.try_run(
            "bash",
            "{ echo begin; head -c 20M /dev/zero 2>/dev/null; echo end; } > f",
        );
        assert_eq!(mount.read("f"), "old");
    });
}

#[test]
fn every_close_of_a_spoiled_version_reports_the_error() {
    on_a_small_disk(|_, mount| {
        let told = mount.python(&format!(
            "{FILL}\nf = os.open('f', os.O_WRONLY)\ng = os.dup(f)\nfill(g)\nprint(close(f), close(g))"
        ));
        assert_eq!(told, "ENOSPC ENOSPC\n");
        let told = mount.python(
            "try:\n    with open('f', 'w') as f: f.write('x' * 20_000_000)\n\
             except OSError as e: print(errno.errorcode[e.errno])",
        );
        assert_eq!(told, "ENOSPC\n");
    });
}

#[test]
fn fsync_on_a_full_disk_fails_and_so_does_the_close() {
    on_a_small_disk(|_, mount| {
        let told = mount.python(&format!(
            "{FILL}
f = os.open('f', os.O_WRONLY | os.O_TRUNC)
os.write(f, b'first')
os.fsync(f)
fill(f)
try: os.fsync(f)
except OSError as e: print(errno.errorcode[e.errno])
print(close(f))"
        ));
        assert_eq!(told, "ENOSPC\nENOSPC\n");
        assert_eq!(mount.read("f"), "first");
    });
}

#[test]
fn posix_fallocate_on_a_full_disk_spoils_the_version_or_nothing() {
    on_a_small_disk(|_, mount| {
        let told = mount.python(&format!(
            "{FILL}
f = os.open('f', os.O_RDWR)
try: os.posix_fallocate(f, 0, 1 << 30)
except OSError as e: print(errno.errorcode[e.errno])
size = os.fstat(f).st_size
print(close(f) in (None, 'ENOSPC'))"
        ));
        assert_eq!(told, "ENOSPC\nTrue\n");
        assert_eq!(mount.read("f"), "old");
    });
}

#[test]
fn a_mapping_that_the_full_disk_has_no_room_for_is_not_committed() {
    // The program may never hear of it by its stores, but must by msync() or close().
    on_a_small_disk(|_, mount| {
        let told = mount.python(
            r#"
f = os.open("f", os.O_RDWR | os.O_TRUNC)
os.ftruncate(f, 20_480_000)
m = mmap.mmap(f, 20_480_000)
for at in range(0, 20_480_000, 4096):
    m[at : at + 4096] = b"x" * 4096
try: m.flush()
except OSError as e: print("msync:", errno.errorcode[e.errno])
m.close()
try: os.close(f)
except OSError as e: print("close:", errno.errorcode[e.errno])
"#,
        );
        assert!(told.contains("close: ENOSPC\n"), "{told}");
        assert!(told.contains("msync: "), "{told}");
        assert_eq!(mount.read("f"), "old");
        // And where the kernel writes the pages after the close.
        mount.try_python(
            r#"
f = os.open("f", os.O_RDWR | os.O_TRUNC)
os.ftruncate(f, 20_480_000)
m = mmap.mmap(f, 20_480_000)
os.close(f)
for at in range(0, 20_480_000, 4096):
    m[at : at + 4096] = b"x" * 4096
m.close()
"#,
        );
        assert_eq!(mount.read("f"), "old");
    });
}

#[test]
fn an_error_that_only_the_commit_meets_is_reported_by_close() {
    // No inode is free for the new version; nothing was written before the close.
    for user in [User::Root, User::Ordinary] {
        let disk = Disk::small("-N 32");
        let mount = disk.mount(user);
        mount.bash("printf old > f");
        disk.sh("cd disk; i=0; while : > fill$i; do i=$((i + 1)); done 2>/dev/null; true");
        let told = mount.python(
            "try:\n    f = os.open('f', os.O_WRONLY | os.O_TRUNC)\n    os.close(f)\n\
             except OSError as e: print(errno.errorcode[e.errno])",
        );
        assert_eq!(told, "ENOSPC\n");
        assert_eq!(mount.read("f"), "old");
        disk.sh("rm disk/fill*");
        mount.bash("printf next > f");
        assert_eq!(mount.read("f"), "next");
        mount.unmount();
    }
}

#[test]
fn an_error_of_the_disk_below_is_reported_by_close() {
    // The file system believes that it has room, but the file it lies in has none: every write()
    // succeeds, and the fsync of the commit fails.
    let mut disk = Disk::new();
    let below = disk.home.path().join("below");
    disk.mounts.push(below);
    disk.sh(
        "mkdir below; mount -t tmpfs -o size=3M none below; truncate -s 64M below/image
        mkfs.ext4 -q -F -m 0 -O ^has_journal -E lazy_itable_init=1,nodiscard below/image
        mount -o loop below/image disk",
    );
    let mount = disk.mount(User::Root);
    mount.bash("printf old > f");
    let told = mount.python(
        r#"
f = os.open("f", os.O_WRONLY | os.O_TRUNC)
for _ in range(16):
    os.write(f, b"x" * 1000000)
try:
    os.close(f)
except OSError as e:
    print(errno.errorcode[e.errno])
"#,
    );
    assert!(["EIO\n", "ENOSPC\n"].contains(&&*told), "{told}");
    assert_eq!(mount.read("f"), "old");
    assert_eq!(
        std::fs::read_to_string(disk.directory().join("f")).expect("f"),
        "old"
    );
    mount.unmount();
}

#[test]
fn a_used_up_quota_is_reported_at_write_and_at_close() {
    let disk = Disk::made_by(
        "truncate -s 128M image; mkfs.btrfs -q --mixed image; mount -o loop image disk
        btrfs subvolume create disk/backing; btrfs quota enable disk
        btrfs qgroup limit 8M disk/backing",
    );
    for user in [User::Root, User::Ordinary] {
        let mount = disk.mount(user);
        mount.bash("printf old > f");
        let told = mount.python(&format!(
            "{FILL}\nf = os.open('f', os.O_WRONLY | os.O_TRUNC)\nprint(fill(f), close(f))"
        ));
        assert_eq!(told, "EDQUOT EDQUOT\n", "{user:?}");
        assert_eq!(mount.read("f"), "old", "{user:?}");
        mount.unmount();
        disk.sh("rm -rf disk/backing/f disk/backing/.latchfs; btrfs filesystem sync disk");
    }
}
