//! Writers that write by a mapping: what W5, W6, W9 and W10 say of them.

mod common;

use common::{Mount, as_each_user, wait_until, wait_until_parked};

/// Put before every script: mappings by mmap(2) itself, since Python's keep a descriptor open.
const MAPPING: &str = r#"
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.msync.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
class Mapping:
    def __init__(self, f, size, flags=mmap.MAP_SHARED):
        self.size = size
        self.at = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, f, 0)
        assert self.at != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
    def write(self, offset, data):
        ctypes.memmove(self.at + offset, data, len(data))
    def read(self, offset, size):
        return ctypes.string_at(self.at + offset, size)
    def sync(self):
        assert libc.msync(self.at, self.size, 4) == 0, os.strerror(ctypes.get_errno())
    def unmap(self):
        assert libc.munmap(self.at, self.size) == 0
def behind():
    return open("../backing/f", "rb").read()
"#;

/// Runs a script; `f` holds "old old" before, and `expected` as soon as nobody uses it any more.
fn maps(mount: &Mount, script: &str, expected: &str) {
    mount.bash("printf 'old old' > f");
    mount.try_python(&format!("{MAPPING}{script}"));
    // Opening it waits for what may still be in flight.
    assert_eq!(mount.read("f"), expected, "{script}");
    assert_eq!(mount.read_behind("f"), expected, "{script}");
}

#[test]
fn what_a_mapping_wrote_before_munmap_is_committed_by_close() {
    as_each_user(|mount| {
        let script = r#"
f = os.open("f", os.O_RDWR)
m = Mapping(f, 7)
m.write(0, b"NEW")
assert behind() == b"old old"
m.unmap()
os.close(f)
assert behind() == b"NEW old", behind()
"#;
        maps(mount, &format!("{script}\nos.rename('f', 'f')"), "NEW old");
        let out = mount.python(&format!(
            "{MAPPING}\nopen('f', 'w').write('old old')\n{script}\nprint('good')"
        ));
        assert_eq!(out, "good\n");
    });
}

#[test]
fn pythons_mmap_is_committed_when_the_mapping_and_its_descriptors_are_closed() {
    // It has a descriptor of its own, and closes that before it unmaps; what comes after the
    // close is committed by the release, which nobody waits for but the next open.
    as_each_user(|mount| {
        mount.bash("printf 'old old' > f");
        mount.python(&format!(
            r#"{MAPPING}
with open("f", "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
    m[0:3] = b"NEW"
    assert behind() == b"old old"
assert behind() == b"NEW old", behind()
f = open("f", "r+b")
m = mmap.mmap(f.fileno(), 0)
f.close()
m[4:7] = b"NEW"
assert behind() == b"NEW old"
m.close()
"#
        ));
        assert_eq!(mount.read("f"), "NEW NEW");
        assert_eq!(mount.read_behind("f"), "NEW NEW");
    });
}

#[test]
fn msync_commits_what_has_been_written_so_far() {
    as_each_user(|mount| {
        mount.python(&format!(
            r#"{MAPPING}
open("f", "w").write("old old")
f = os.open("f", os.O_RDWR)
m = Mapping(f, 7)
m.write(0, b"NEW")
m.sync()
assert behind() == b"NEW old", behind()
m.write(4, b"MORE"[:3])
assert m.read(0, 7) == b"NEW MOR"
assert os.pread(f, 100, 0) == b"NEW MOR", os.pread(f, 100, 0)
assert behind() == b"NEW old", behind()
m.sync()
assert behind() == b"NEW MOR", behind()
m.write(0, b"end")
m.unmap()
os.close(f)
assert behind() == b"end MOR", behind()
"#
        ));
    });
}

#[test]
fn a_writer_killed_after_msync_leaves_the_synced_version() {
    as_each_user(|mount| {
        let script = "f = os.open('f', os.O_RDWR)\nm = Mapping(f, 7)\nm.write(0, b'NEW')\nm.sync()\n\
            m.write(4, b'NEW')\nos.kill(os.getpid(), 9)";
        maps(mount, script, "NEW old");
    });
}

#[test]
fn what_a_mapping_writes_after_close_is_committed_by_munmap() {
    as_each_user(|mount| {
        mount.bash("printf 'old old' > f");
        let mut writer = mount.spawn_python(&format!(
            r#"{MAPPING}
f = os.open("f", os.O_RDWR)
m = Mapping(f, 7)
m.write(0, b"N")
os.close(f)
assert behind() == b"old old", behind()
m.write(1, b"EW")
say("written")
hear()
m.unmap()
say("unmapped")
hear()
"#
        ));
        writer.expect("written");
        assert_eq!(mount.read_behind("f"), "old old");
        let mut second = mount.spawn("bash", "cat f; printf ' and more' >> f");
        // It is a child of the shell that waits, or the shell itself where that replaced itself.
        wait_until("the next one waits", || {
            let children = format!("/proc/{0}/task/{0}/children", second.pid());
            let children = std::fs::read_to_string(children).unwrap_or_default();
            children
                .split(' ')
                .filter_map(|child| child.parse().ok())
                .any(common::is_blocked)
        });
        writer.tell("munmap");
        writer.expect("unmapped");
        second.expect("NEW old");
        second.succeed();
        assert_eq!(mount.read_behind("f"), "NEW old and more");
    });
}

#[test]
fn what_a_mapping_writes_after_close_is_committed_by_a_normal_exit() {
    as_each_user(|mount| {
        for exit in ["os._exit(0)", "os._exit(3)", "sys.exit(1)"] {
            let script = format!(
                "f = os.open('f', os.O_RDWR)\nm = Mapping(f, 7)\nos.close(f)\nm.write(0, b'NEW')\n{exit}"
            );
            maps(mount, &script, "NEW old");
        }
    });
}

#[test]
fn a_mapping_that_is_never_unmapped_is_committed_by_a_normal_exit() {
    as_each_user(|mount| {
        let script =
            "f = os.open('f', os.O_RDWR)\nm = Mapping(f, 7)\nm.write(0, b'NEW')\nos._exit(1)";
        maps(mount, script, "NEW old");
        let threads =
            "for _ in range(4): threading.Thread(target=time.sleep, args=(600,)).start()\n";
        maps(mount, &format!("{threads}{script}"), "NEW old");
    });
}

#[test]
fn a_mapping_is_given_up_by_execve() {
    as_each_user(|mount| {
        let script = "f = os.open('f', os.O_RDWR)\nm = Mapping(f, 7)\nm.write(0, b'NEW')\n\
            os.execlp('true', 'true')";
        maps(mount, script, "NEW old");
        let script = "f = os.open('f', os.O_RDWR)\nm = Mapping(f, 7)\nos.close(f)\nm.write(0, b'NEW')\n\
            os.execlp('true', 'true')";
        maps(mount, script, "NEW old");
    });
}

#[test]
fn a_writer_killed_with_a_mapping_leaves_the_old_version() {
    as_each_user(|mount| {
        for death in [
            "os.kill(os.getpid(), 9)",
            "os.kill(os.getpid(), 15)",
            "ctypes.string_at(0)",
        ] {
            // Before and after its close.
            for close in ["", "os.close(f)\n"] {
                let script = format!(
                    "f = os.open('f', os.O_RDWR)\nm = Mapping(f, 7)\nm.write(0, b'N')\n{close}\
                     m.write(1, b'EW')\n{death}"
                );
                maps(mount, &script, "old old");
                let threads =
                    "for _ in range(4): threading.Thread(target=time.sleep, args=(600,)).start()\n";
                maps(mount, &format!("{threads}{script}"), "old old");
            }
        }
    });
}

#[test]
fn a_creator_killed_with_a_mapping_leaves_no_file() {
    as_each_user(|mount| {
        for close in ["", "os.close(f)\n"] {
            mount.try_python(&format!(
                "{MAPPING}f = os.open('new', os.O_RDWR | os.O_CREAT)\nos.ftruncate(f, 8192)\n\
                 m = Mapping(f, 8192)\nm.write(0, b'half')\n{close}os.kill(os.getpid(), 9)"
            ));
            // The name goes with the release, which nobody waits for.
            wait_until("the name is gone", || mount.bash("ls").is_empty());
            assert!(!mount.behind("new").exists());
        }
    });
}

#[test]
fn a_file_grown_by_ftruncate_is_written_by_its_mapping() {
    as_each_user(|mount| {
        mount.python(&format!(
            r#"{MAPPING}
for name in "grown", "f":
    size = 3 * 1024 * 1024 + 5
    f = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.ftruncate(f, size)
    m = Mapping(f, size)
    data = os.urandom(size)
    m.write(0, data)
    assert os.pread(f, 10, size - 10) == data[-10:]
    m.unmap()
    os.close(f)
    assert open("../backing/" + name, "rb").read() == data
    assert open(name, "rb").read() == data
"#
        ));
    });
}

#[test]
fn a_file_grown_while_it_is_mapped_keeps_what_the_mapping_wrote() {
    as_each_user(|mount| {
        mount.python(&format!(
            r#"{MAPPING}
f = os.open("f", os.O_RDWR | os.O_CREAT)
os.write(f, b"a" * 4096)
m = Mapping(f, 4096)
m.write(0, b"mapped")
os.ftruncate(f, 8192)
os.pwrite(f, b"written", 8000)
n = Mapping(f, 8192)
n.write(4096, b"second")
assert m.read(0, 7) == b"mappeda"
m.unmap()
n.unmap()
os.close(f)
got = behind()
assert len(got) == 8192
assert got[:7] == b"mappeda" and got[4096:4102] == b"second" and got[8000:8007] == b"written"
"#
        ));
    });
}

#[test]
fn writes_by_descriptor_and_by_mapping_see_each_other() {
    as_each_user(|mount| {
        mount.python(&format!(
            r#"{MAPPING}
f = os.open("f", os.O_RDWR | os.O_CREAT)
os.write(f, b"." * 10000)
m = Mapping(f, 10000)
for turn in range(50):
    os.pwrite(f, b"%04d" % turn, turn * 150)
    assert m.read(turn * 150, 4) == b"%04d" % turn
    m.write(turn * 150 + 10, b"%04d" % turn)
    assert os.pread(f, 4, turn * 150 + 10) == b"%04d" % turn
m.unmap()
os.close(f)
got = behind()
for turn in range(50):
    assert got[turn * 150 : turn * 150 + 14] == b"%04d......%04d" % (turn, turn)
"#
        ));
    });
}

#[test]
fn a_private_mapping_writes_nothing_and_delays_no_commit() {
    as_each_user(|mount| {
        mount.python(&format!(
            r#"{MAPPING}
open("f", "w").write("old old")
f = os.open("f", os.O_RDWR)
m = Mapping(f, 7, mmap.MAP_PRIVATE)
m.write(0, b"private")
os.pwrite(f, b"NEW", 0)
os.close(f)
assert behind() == b"NEW old", behind()
assert m.read(0, 7) == b"private"
m.unmap()
assert behind() == b"NEW old", behind()
"#
        ));
    });
}

#[test]
fn a_reader_waits_for_a_mapping_that_outlives_the_close_and_then_reads_all_of_it() {
    // A mapping keeps the version in the kernel's caching mode: its first readers must not fail.
    as_each_user(|mount| {
        mount.bash("printf 'old old' > f");
        let mut writer = mount.spawn_python(&format!(
            "{MAPPING}f = os.open('f', os.O_RDWR)\nm = Mapping(f, 7)\nos.close(f)\n\
             m.write(0, b'NEW')\nsay('written')\nhear()\nm.unmap()\nsay('unmapped')\nhear()\n"
        ));
        writer.expect("written");
        let reader = mount.spawn_python(
            "f = os.open('f', os.O_RDONLY)\nsay(os.read(f, 100).decode())\n\
             say(mmap.mmap(f, 0, prot=mmap.PROT_READ)[:].decode())\nhear()",
        );
        wait_until_parked(reader.pid(), 1);
        assert!(reader.is_silent());
        writer.tell("munmap");
        writer.expect("unmapped");
        reader.expect("NEW old");
        reader.expect("NEW old");
    });
}

#[test]
fn a_child_that_inherited_a_mapping_ends_the_version() {
    as_each_user(|mount| {
        mount.bash("printf 'old old' > f");
        let before = mount.commits("f");
        let mut parent = mount.spawn_python(&format!(
            r#"{MAPPING}
f = os.open("f", os.O_RDWR)
m = Mapping(f, 7)
m.write(0, b"N")
r, w = os.pipe()
if os.fork() == 0:
    os.close(f)
    os.write(w, b"x")
    hear()
    m.write(1, b"EW")
    m.unmap()
    say("unmapped")
    os._exit(0)
os.read(r, 1)
m.unmap()
os.close(f)
say("parent has closed")
os.wait()
"#
        ));
        parent.expect("parent has closed");
        parent.tell("write");
        parent.expect("unmapped");
        parent.succeed();
        assert_eq!(mount.read("f"), "NEW old");
        assert_eq!(mount.commits("f"), before + 1);
    });
}

#[test]
fn children_that_share_a_mapping_write_one_version() {
    as_each_user(|mount| {
        mount.python(&format!(
            r#"{MAPPING}
open("f", "w").write("old old")
f = os.open("f", os.O_RDWR)
os.ftruncate(f, 8 * 4096)
m = Mapping(f, 8 * 4096)
for number in range(8):
    if os.fork() == 0:
        m.write(number * 4096, b"child %d" % number)
        os._exit(0)
for _ in range(8):
    os.wait()
assert behind() == b"old old"
m.unmap()
os.close(f)
got = behind()
assert [got[n * 4096 : n * 4096 + 7] for n in range(8)] == [b"child %d" % n for n in range(8)]
"#
        ));
    });
}
