//! Reading and writing in every way there is.

use crate::pair::{BOTH, Pair};

#[test]
fn reads_and_writes_at_odd_offsets_give_the_same_bytes() {
    for user in BOTH {
        let pair = Pair::new(user);
        pair.same(
            r#"
random.seed(7)
def edit(fd, count):
    for n in range(count):
        offset, length = random.randrange(300000), random.choice([0, 1, 7, 511, 4096, 4097, 70001])
        os.pwrite(fd, random.randbytes(length), offset)
        say(n, hashlib.sha1(os.pread(fd, 9999, random.randrange(400000))).hexdigest())
fd = os.open("f", os.O_RDWR | os.O_CREAT)
edit(fd, 60)
os.close(fd)
fd = os.open("f", os.O_RDWR)
edit(fd, 30)
tell("beyond the end", os.pread, fd, 10, 1 << 40)
tell("negative", os.pread, fd, 10, -1)
tell("zero", os.pread, fd, 0, 5)
say(os.lseek(fd, 0, os.SEEK_END), os.lseek(fd, -5, os.SEEK_CUR), os.fstat(fd).st_size)
os.write(fd, b"at the end")
os.close(fd)
with open("f", "rb", buffering=0) as f:
    for offset in [0, 1, 4095, 4096, 4097, 131071, 300001]:
        f.seek(offset)
        say(offset, hashlib.sha1(f.read(12345)).hexdigest())
"#,
        );
    }
}

#[test]
fn vectors_are_read_and_written_whole() {
    for user in BOTH {
        let pair = Pair::new(user);
        pair.same(
            r#"
parts = [b"a" * 1, b"", b"b" * 4095, b"c" * 100000, b"d"]
fd = os.open("f", os.O_RDWR | os.O_CREAT)
tell("writev", os.writev, fd, parts)
tell("pwritev", os.pwritev, fd, [b"XX", b"YY"], 4094)
tell("many", os.writev, fd, [b"m%d" % n for n in range(1000)])
os.lseek(fd, 0, os.SEEK_SET)
buffers = [bytearray(10), bytearray(0), bytearray(5000), bytearray(200000)]
tell("readv", os.readv, fd, buffers)
say([hashlib.sha1(b).hexdigest() for b in buffers])
tell("preadv", os.preadv, fd, buffers, 100)
say([hashlib.sha1(b).hexdigest() for b in buffers])
os.close(fd)
fd = os.open("f", os.O_RDONLY)
tell("readv", os.readv, fd, buffers)
say([hashlib.sha1(b).hexdigest() for b in buffers])
"#,
        );
    }
}

#[test]
fn truncation_shortens_and_lengthens_with_zeros() {
    for user in BOTH {
        let pair = Pair::new(user);
        pair.same(
            r#"
write("f", b"0123456789" * 1000)
for size in [9999, 5000, 4096, 1, 0, 1, 4097, 100000, 12, 12]:
    tell(size, os.truncate, "f", size)
    say(os.stat("f").st_size, hashlib.sha1(read("f")).hexdigest())
fd = os.open("f", os.O_RDWR)
for size in [3, 10, 70000, 0, 5]:
    tell(size, os.ftruncate, fd, size)
    say(os.fstat(fd).st_size, hashlib.sha1(os.pread(fd, 100000, 0)).hexdigest())
    os.pwrite(fd, b"end", size)
os.close(fd)
say(read("f"))
fd = os.open("f", os.O_RDWR | os.O_TRUNC)
tell("emptied", lambda: (os.fstat(fd).st_size, os.pread(fd, 10, 0)))
os.close(fd)
tell("stays empty", read, "f")
tell("too large", os.truncate, "f", 1 << 62)
"#,
        );
    }
}

#[test]
fn appended_bytes_go_to_the_end_whatever_the_offset() {
    for user in BOTH {
        let pair = Pair::new(user);
        pair.same(
            r#"
write("f", b"start ")
fd = os.open("f", os.O_RDWR | os.O_APPEND)
os.lseek(fd, 0, os.SEEK_SET)
os.write(fd, b"one ")
os.lseek(fd, 2, os.SEEK_SET)
os.write(fd, b"two ")
say(os.lseek(fd, 0, os.SEEK_CUR), os.pread(fd, 100, 0))
os.ftruncate(fd, 3)
os.write(fd, b"three")
say(os.pread(fd, 100, 0))
os.close(fd)
for n in range(5):
    subprocess.run(["sh", "-c", "echo line %d >> f; { echo a; echo b; } >> made" % n], check=True)
say(read("f"), read("made"))
fd = os.open("f", os.O_RDWR)
fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
os.write(fd, b"by fcntl")
os.close(fd)
say(read("f"))
"#,
        );
    }
}

#[test]
fn direct_and_synchronous_writes_arrive() {
    for user in BOTH {
        let pair = Pair::new(user);
        pair.same(
            r#"
block = mmap.mmap(-1, 1 << 16)
block.write(random.Random(3).randbytes(1 << 16))
for flags in [os.O_DIRECT, os.O_SYNC, os.O_DSYNC, os.O_DIRECT | os.O_SYNC]:
    fd = os.open("f", os.O_RDWR | os.O_CREAT | flags)
    tell("write", os.writev, fd, [block])
    tell("again", os.pwritev, fd, [memoryview(block)[:8192]], 4096)
    buffer = mmap.mmap(-1, 1 << 16)
    tell("read", os.preadv, fd, [buffer], 8192)
    say(hashlib.sha1(buffer).hexdigest())
    os.close(fd)
    fd = os.open("f", os.O_RDONLY | flags)
    tell("read", os.preadv, fd, [buffer], 0)
    say(hashlib.sha1(buffer).hexdigest())
    os.close(fd)
fd = os.open("f", os.O_RDWR)
os.write(fd, b"synced")
tell("fsync", os.fsync, fd)
tell("fdatasync", os.fdatasync, fd)
os.write(fd, b" twice")
os.close(fd)
fd = os.open("f", os.O_RDONLY)
tell("fsync of a reader", os.fsync, fd)
os.close(fd)
fd = os.open(".", os.O_RDONLY)
tell("fsync of the directory", os.fsync, fd)
os.sync()
"#,
        );
    }
}

#[test]
fn sixty_four_mebibytes_at_once_arrive_whole() {
    for user in BOTH {
        let pair = Pair::new(user);
        pair.same(
            r#"
content = random.Random(64).randbytes(64 << 20)
with open("f", "wb", buffering=0) as f:
    at = 0
    while at < len(content):
        at += f.write(memoryview(content)[at:])
say(os.stat("f").st_size, read("f") == content)
with open("f", "r+b") as f:
    f.seek(33333333)
    f.write(b"patched")
say(hashlib.sha1(read("f")).hexdigest())
subprocess.run(["cp", "f", "copy"], check=True)
subprocess.run(["dd", "if=f", "of=dd", "bs=3M", "status=none"], check=True)
subprocess.run(["cmp", "f", "copy"], check=True)
subprocess.run(["cmp", "f", "dd"], check=True)
"#,
        );
    }
}

#[test]
fn mappings_read_and_write_the_file() {
    for user in BOTH {
        let pair = Pair::new(user);
        pair.same(
            r#"
write("f", bytes(range(256)) * 100)
with open("f", "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:
    say(len(m), hashlib.sha1(m).hexdigest())
with open("f", "rb") as f, mmap.mmap(f.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as m:
    m[:4] = b"mine"
    say(m[:8])
say(read("f")[:8])
with open("f", "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
    m[10:20] = b"by mapping"
    m[-3:] = b"end"
    m.flush()
    say(os.pread(f.fileno(), 10, 10))
say(read("f")[10:20], read("f")[-3:])
def unreadable():
    fd = os.open("f", os.O_WRONLY)
    try: mmap.mmap(fd, 10)
    finally: os.close(fd)
tell("of a writer", unreadable)
def readonly():
    with open("f", "rb") as f: mmap.mmap(f.fileno(), 10)
tell("of a reader", readonly)
os.chmod("f", 0o755)
write("script", b'#!/bin/sh\necho ran\n'); os.chmod("script", 0o755)
say(subprocess.run(["./script"], capture_output=True).stdout)
subprocess.run(["cp", "/bin/true", "program"], check=True)
tell("executed", lambda: subprocess.run(["./program"]).returncode)
"#,
        );
    }
}

#[test]
fn ranges_are_copied_between_files() {
    for user in BOTH {
        let pair = Pair::new(user);
        let said = pair.same(
            r#"
content = random.Random(5).randbytes(3000000)
write("from", content)
def copy(source, target, count, at=None, to=None):
    left = count
    while left:
        done = os.copy_file_range(source, target, left, at, to)
        if not done: break
        left -= done
        at = None if at is None else at + done
        to = None if to is None else to + done
    return count - left
source = os.open("from", os.O_RDONLY)
target = os.open("to", os.O_RDWR | os.O_CREAT)
tell("all", copy, source, target, 1 << 30)
tell("part", copy, source, target, 4097, 333, 55555)
tell("beyond", copy, source, target, 10, 1 << 40, 0)
tell("hole", copy, source, target, 100, 0, 4000000)
say(hashlib.sha1(os.pread(target, 5000000, 0)).hexdigest())
tell("into a reader", os.copy_file_range, target, source, 10)
tell("from itself", copy, target, target, 1000, 0, 2000000)
tell("overlapping", os.copy_file_range, target, target, 1000, 0, 500)
os.close(target)
target = os.open("to", os.O_RDWR)
tell("into an update", copy, source, target, 1000, 0, 10)
os.close(target)
os.lseek(source, 0, os.SEEK_SET)
out = os.open("sent", os.O_WRONLY | os.O_CREAT)
sent = 0
while n := os.sendfile(out, source, None, 1 << 20): sent += n
say("sent", sent)
tell("part", os.sendfile, out, source, 100, 50)
os.close(out)
r, w = os.pipe()
out = os.open("spliced", os.O_WRONLY | os.O_CREAT)
tell("into a pipe", os.splice, source, w, 5000, offset_src=777)
tell("out of it", os.splice, r, out, 5000)
os.close(out)
tell("sent", lambda: hashlib.sha1(read("sent")).hexdigest())
"#
            .replace("os.splice,", "splice,")
            .replace("content = random", SPLICE)
            .as_str(),
        );
        assert!(said.contains("sent 3000000"), "{said}");
    }
}

/// os.splice is younger than the oldest Python that the tests run on.
const SPLICE: &str = r#"
def splice(source, target, count, offset_src=None):
    offset = None if offset_src is None else ctypes.byref(ctypes.c_longlong(offset_src))
    libc.splice.restype = ctypes.c_ssize_t
    return by_libc("splice", source, offset, target, None, ctypes.c_size_t(count), 0)
content = random"#;

#[test]
fn a_limit_on_the_size_of_files_holds() {
    for user in BOTH {
        let pair = Pair::new(user);
        let said = pair.same(
            r#"
import resource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
fd = os.open("f", os.O_WRONLY | os.O_CREAT)
tell("fits", os.write, fd, b"x" * 9000)
tell("half", os.write, fd, b"x" * 9000)
tell("nothing", os.write, fd, b"x" * 9000)
tell("truncate", os.ftruncate, fd, 20000)
tell("close", os.close, fd)
tell("size", lambda: os.stat("f").st_size)
"#,
        );
        assert!(said.contains("nothing 'EFBIG'"), "{said}");
    }
}
