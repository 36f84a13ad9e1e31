//! Sparse files, preallocation, and files larger than 4 GiB.

use crate::common::bare::Disk;
use crate::common::options;
use crate::pair::{BOTH, Pair};

#[test]
fn ranges_are_allocated_punched_and_zeroed_as_natively() {
    for user in BOTH {
        let pair = Pair::new(user);
        let said = pair.same(
            r#"
KEEP, PUNCH, ZERO = 1, 2, 16
content = random.Random(9).randbytes(200000)
write("f", content)
for mode, offset, length in [(0, 0, 1000), (0, 190000, 20000), (KEEP, 300000, 50000), (PUNCH | KEEP, 4096, 8192),
                             (PUNCH | KEEP, 50001, 3333), (PUNCH, 0, 10), (ZERO, 100000, 4097),
                             (ZERO | KEEP, 209000, 5000), (ZERO, 209000, 5000), (PUNCH | KEEP, 1 << 30, 10),
                             (0, 0, 0), (KEEP, -1, 10), (64, 0, 10)]:
    fd = os.open("f", os.O_RDWR)
    tell((mode, offset, length), fallocate, fd, mode, offset, length)
    own = os.fstat(fd).st_size, hashlib.sha1(os.pread(fd, 400000, 0)).hexdigest()
    os.close(fd)
    say(own, os.stat("f").st_size, hashlib.sha1(read("f")).hexdigest())
fd = os.open("new", os.O_RDWR | os.O_CREAT)
tell("new", os.posix_fallocate, fd, 0, 1 << 20)
os.pwrite(fd, b"x", 100)
os.close(fd)
say(os.stat("new").st_size, os.stat("new").st_blocks >= 2048)
"#,
        );
        assert!(said.contains("(3, 4096, 8192) None"), "{said}");
    }
}

#[test]
fn data_and_holes_are_found() {
    for user in BOTH {
        let pair = Pair::new(user);
        let said = pair.same(
            r#"
fd = os.open("f", os.O_RDWR | os.O_CREAT)
for at in [0, 1 << 20, 5 << 20]:
    os.pwrite(fd, b"d" * 10000, at)
os.ftruncate(fd, 8 << 20)
os.close(fd)
os.sync()
say(segments("f"))
fd = os.open("f", os.O_RDONLY)
for at in [0, 5000, 20000, 1 << 20, 6 << 20, (8 << 20) - 1, 8 << 20, 9 << 20]:
    tell(at, os.lseek, fd, at, os.SEEK_DATA)
    tell(at, os.lseek, fd, at, os.SEEK_HOLE)
os.close(fd)
fd = os.open("empty", os.O_RDWR | os.O_CREAT)
tell("empty", os.lseek, fd, 0, os.SEEK_DATA)
tell("empty", os.lseek, fd, 0, os.SEEK_HOLE)
os.ftruncate(fd, 1 << 20)
tell("hole", os.lseek, fd, 0, os.SEEK_DATA)
tell("hole", os.lseek, fd, 0, os.SEEK_HOLE)
os.close(fd)
fd = os.open("empty", os.O_RDWR | os.O_TRUNC)
tell("emptied", os.lseek, fd, 0, os.SEEK_DATA)
tell("emptied", os.lseek, fd, 0, os.SEEK_HOLE)
os.close(fd)
"#,
        );
        assert!(said.contains("[(0, 12288), (1048576"), "{said}");
    }
}

#[test]
fn holes_stay_holes_over_an_update_in_place() {
    for user in BOTH {
        let pair = Pair::new(user);
        let script = r#"
with open("sparse", "wb") as f:
    for at in range(0, 64 << 20, 16 << 20):
        f.seek(at)
        f.write(b"data")
    f.truncate(64 << 20)
os.link("sparse", "second")
subprocess.run(["cp", "--sparse=always", "sparse", "alone"], check=True)
for name in ["alone", "sparse"]:
    with open(name, "r+b") as f:
        f.seek(33 << 20)
        f.write(b"patch")
    os.sync()
    say(name, os.stat(name).st_size, segments(name), os.stat(name).st_blocks < 200)
os.truncate("alone", 128 << 20)
say(os.stat("alone").st_size, os.stat("alone").st_blocks < 200)
"#;
        let said = pair.same(script);
        assert!(!said.contains("False"), "{said}");
    }
}

#[test]
fn files_may_be_larger_than_4_gib() {
    for user in BOTH {
        let pair = Pair::new(user);
        let said = pair.says_the_same(
            r#"
GIB = 1 << 30
with open("big", "wb") as f:
    for at in [0, 4 * GIB - 3, 5 * GIB + 1]:
        f.seek(at)
        f.write(b"across the limit")
say(os.stat("big").st_size, segments("big"))
with open("big", "r+b") as f:
    f.seek(7 * GIB)
    f.write(b"far")
    f.seek(4 * GIB - 3)
    say(f.read(10))
    f.seek(-3, os.SEEK_CUR)
    f.write(b"X")
with open("big", "rb") as f:
    for at in [0, 4 * GIB - 3, 5 * GIB + 1, 7 * GIB, 6 * GIB]:
        f.seek(at)
        say(f.read(16))
    f.seek(0, os.SEEK_END)
    say(f.tell())
with open("big", "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:
    say(m[5 * GIB:5 * GIB + 20])
os.truncate("big", 6 * GIB)
say(os.stat("big").st_size, os.stat("big").st_blocks < 200)
os.unlink("big")
"#,
        );
        assert!(said.contains("True"), "{said}");
    }
}

#[test]
fn statfs_tells_what_backing_has() {
    for user in BOTH {
        let pair = Pair::new(user);
        let said = pair.says_the_same(
            r#"
os.mkdir("d"); write("f")
for path in [".", "d", "f"]:
    s = os.statvfs(path)
    say(s.f_bsize, s.f_frsize, s.f_blocks, s.f_files, s.f_namemax)
say(subprocess.run(["df", "--output=size,itotal", "."], capture_output=True, text=True, check=True).stdout)
"#,
        );
        assert!(said.contains("255"), "{said}");
    }
}

#[test]
fn statfs_counts_down_as_files_are_written() {
    // A disk of its own: nobody else writes there meanwhile.
    let disk = Disk::new(&["mkfs.ext4", "-q"], "loop");
    let mount = options().backing(disk.dir("backing")).mount();
    let said = mount.python(
        "def free(): s = os.statvfs('.'); return s.f_bavail * s.f_frsize\n\
         before = free()\n\
         with open('f', 'wb') as f: f.write(os.urandom(64 << 20))\n\
         say(before - free() >= 64 << 20)",
    );
    assert_eq!(said, "True\n");
    mount.unmount();
}
