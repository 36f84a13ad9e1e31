//! Mode, owner and times.

use crate::common::{User, options};
use crate::pair::{BOTH, Pair};

#[test]
fn chmod_sets_every_mode() {
    for user in BOTH {
        let pair = Pair::new(user);
        pair.same(
            r#"
os.mkdir("d"); write("f"); os.symlink("f", "s"); os.mkfifo("p")
for mode in [0, 0o400, 0o200, 0o111, 0o644, 0o777, 0o1777, 0o2755, 0o4755, 0o6755, 0o7777, 0o2644]:
    for name in ["f", "d", "s", "p"]:
        tell(name, os.chmod, name, mode)
        tell(name, look, name)
    touch("made", mode=0)
    fd = os.open("made", os.O_RDONLY) if attempt(os.chmod, "made", 0o600) is None else None
    tell("by descriptor", os.fchmod, fd, mode)
    tell("look", look, "made")
    os.close(fd)
    os.unlink("made")
tell("nothing", os.chmod, "no", 0o600)
# A writer's own descriptor: with its version.
fd = os.open("f2", os.O_WRONLY | os.O_CREAT, 0o600)
os.write(fd, b"x")
tell("writer", os.fchmod, fd, 0o640)
tell("own view", lambda: oct(os.fstat(fd).st_mode))
os.close(fd)
for mask in [0, 0o022, 0o077, 0o777]:
    os.umask(mask)
    name = "mask%o" % mask
    touch(name, mode=0o7777)
    os.mkdir(name + "d", 0o7777)
    os.mkfifo(name + "p", 0o666)
    os.umask(0)
    tell(name, lambda: [look(name + end) for end in ["", "d", "p"]])
os.chmod("d", 0o755)
"#,
        );
    }
}

#[test]
fn chown_by_root_moves_files_and_clears_setuid_as_natively() {
    let pair = Pair::with(options().arg("-oallow_other,suid"));
    let said = pair.same(
        r#"
os.mkdir("d"); write("f"); os.symlink("f", "s"); os.symlink("no", "dangling"); os.mkfifo("p")
for name in ["f", "d", "s", "dangling", "p"]:
    for uid, gid in [(12345, 23456), (-1, 7), (8, -1), (-1, -1), (4294967294, 65534)]:
        tell(name, os.chown, name, uid, gid, follow_symlinks=False)
        tell(name, look, name)
tell("followed", os.chown, "s", 5, 6)
tell("target", look, "f")
tell("followed to nothing", os.chown, "dangling", 5, 6)
for mode in [0o4755, 0o6755, 0o2745, 0o6777]:
    os.chmod("f", mode)
    os.chown("f", 1, 1)
    tell("cleared", look, "f")
    os.chmod("d", mode)
    os.chown("d", 1, 1)
    tell("kept", look, "d")
fd = os.open("g", os.O_WRONLY | os.O_CREAT, 0o640)
os.write(fd, b"x")
tell("writer", os.fchown, fd, 77, 88)
os.close(fd)
tell("writer", look, "g")
# The owner stays over an update.
with open("g", "r+b") as f:
    f.write(b"updated")
write("g", b"replaced")
tell("kept", look, "g")
"#,
    );
    assert!(said.contains("77, 88"), "{said}");
}

#[test]
fn chown_by_an_ordinary_user_is_refused_as_natively() {
    let pair = Pair::new(User::Ordinary);
    let said = pair.same(
        r#"
write("f")
tell("away", os.chown, "f", 0, 0)
tell("group", os.chown, "f", -1, 0)
tell("itself", os.chown, "f", os.getuid(), os.getgid())
tell("nothing", os.chown, "f", -1, -1)
"#,
    );
    assert!(said.contains("away 'EPERM'"), "{said}");
}

#[test]
fn times_are_set_to_the_nanosecond() {
    for user in BOTH {
        let pair = Pair::new(user);
        let said = pair.same(
            r#"
os.mkdir("d"); write("f"); os.symlink("f", "s"); os.mkfifo("p")
def times(name, follow=False):
    s = os.stat(name, follow_symlinks=follow)
    return s.st_atime_ns, s.st_mtime_ns
def recent(name):
    return [abs(time.time() - t / 1e9) < 300 for t in times(name)]
for name in ["f", "d", "p"]:
    for atime, mtime in [((1, 2), (3, 4)), ((1e9, 999999999), (1500000000, 123456789)), ((0, 0), (0, 0)),
                         ((-1, 0), (-1, 999999999)), ((-2, 1), (-3, 500000000)), ((-2147483648, 0), (-2147483648, 1)),
                         ((2147483648, 5), (4294967296, 6)), ((15032385535, 0), (15032385535, 999999999)),
                         ((1 << 40, 0), (-(1 << 40), 0))]:
        tell(name, utimensat, name, (int(atime[0]), atime[1]), (mtime[0], mtime[1]))
        tell(name, times, name)
        tell(name + " omit both", utimensat, name, OMIT, OMIT)
        tell(name, times, name)
    utimensat(name, (10, 11), (12, 13))
    tell("omit atime", utimensat, name, OMIT, (14, 15))
    tell(name, times, name)
    tell("omit mtime", utimensat, name, (16, 17), OMIT)
    tell(name, times, name)
    tell("now", utimensat, name, NOW, OMIT)
    tell(name, lambda: (recent(name), times(name)[1]))
    tell("now", utimensat, name, NOW, NOW)
    tell(name, recent, name)
    tell("bad", utimensat, name, (0, 1 << 29 | 1 << 30), (0, 0))
    tell("bad", utimensat, name, (0, 10**9), (0, 0))
tell("link itself", utimensat, "s", (20, 21), (22, 23), 0x100)
tell("link", times, "s")
tell("through it", utimensat, "s", (30, 31), (32, 33))
tell("target", lambda: (times("s", True)[1], times("f")[1], times("s")[1]))
tell("nothing", utimensat, "no", NOW, NOW)
# By a writer's descriptor, after its last write: it stays so after close (cp -p, tar, rsync).
for flags in [os.O_CREAT, os.O_TRUNC, 0]:
    fd = os.open("g", os.O_WRONLY | flags)
    os.write(fd, b"x")
    os.utime(fd, ns=(1000000000000000001, 1100000000000000002))
    os.close(fd)
    tell("kept", lambda: times("g")[1])
    tell("again", read, "g")
    tell("kept", lambda: times("g")[1])
fd = os.open("g", os.O_RDONLY)
os.utime(fd, ns=(1, 1200000000000000003))
os.close(fd)
tell("by a reader", lambda: times("g")[1])
# Without a change of the content, an open to write changes no time.
os.close(os.open("g", os.O_WRONLY))
os.close(os.open("g", os.O_RDWR | os.O_APPEND))
tell("untouched", lambda: times("g")[1])
write("g", b"new")
tell("new", lambda: recent("g")[1])
# A read-only file's times can be set by its owner.
os.chmod("g", 0o400)
os.utime("g", ns=(5, 6))
tell("read-only", lambda: times("g")[1])
"#,
        );
        assert!(said.contains("(-1999999999, -2500000000)"), "{said}");
        assert!(said.contains("kept 1100000000000000002"), "{said}");
    }
}

#[test]
fn programs_that_preserve_attributes_preserve_them() {
    for user in BOTH {
        let pair = Pair::new(user);
        pair.same(
            r#"
def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    say(command, done.returncode, done.stderr)
os.mkdir("src"); os.mkdir("src/sub", 0o750)
write("src/a", b"a" * 10000); write("src/sub/b", b"b"); os.symlink("a", "src/link"); os.link("src/a", "src/hard")
os.chmod("src/a", 0o640); os.chmod("src/sub/b", 0o755)
for n, name in enumerate(["src/a", "src/sub/b", "src/sub", "src"]):
    os.utime(name, ns=(10**18 + n, 10**18 + n))
run("cp", "-a", "src", "copy")
run("cp", "-p", "src/a", "single")
run("rsync", "-aH", "src/", "synced")
run("rsync", "-aH", "--inplace", "src/", "synced")
run("tar", "cf", "t.tar", "src")
os.mkdir("out")
run("tar", "xpf", "t.tar", "-C", "out")
run("install", "-m", "600", "src/a", "installed")
run("touch", "-d", "2001-02-03 04:05:06.789 UTC", "installed")
run("touch", "-r", "src/a", "single")
run("mv", "copy", "moved")
run("diff", "-r", "src", "moved")
run("diff", "-r", "src", "synced")
run("diff", "-r", "src", "out/src")
os.unlink("t.tar")
"#,
        );
    }
}
