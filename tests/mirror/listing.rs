//! Listings of directories.

use crate::pair::{BOTH, Pair};

/// Declarations for the C functions, whose positions Python does not show.
const DIRENT: &str = r#"
class Dirent(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_ulong), ("off", ctypes.c_long), ("reclen", ctypes.c_ushort),
                ("type", ctypes.c_ubyte), ("name", ctypes.c_char * 256)]
libc.opendir.restype = ctypes.c_void_p
libc.readdir.restype = ctypes.POINTER(Dirent)
libc.telldir.restype = ctypes.c_long
for name in ["readdir", "telldir", "rewinddir", "closedir"]:
    getattr(libc, name).argtypes = [ctypes.c_void_p]
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
def next_name(d):
    entry = libc.readdir(d)
    return entry.contents.name if entry else None
def rest(d):
    return list(iter(lambda: next_name(d), None))
"#;

#[test]
fn five_thousand_entries_are_listed_once_each() {
    for user in BOTH {
        let pair = Pair::new(user);
        let script = r#"
os.mkdir("d")
for n in range(5000):
    name = "d/" + "entry number %d " % n + "x" * (n % 150)
    if n % 50 == 0: os.mkdir(name)
    elif n % 50 == 1: os.symlink("x", name)
    elif n % 50 == 2: os.mkfifo(name)
    elif n % 50 == 3: touch(name)
    else: os.mknod(name)
def same(names):
    say(len(names), hashlib.sha1(repr(sorted(names)).encode()).hexdigest())
same(os.listdir("d"))
with os.scandir("d") as entries:
    same([(e.name, e.is_dir(follow_symlinks=False), e.is_symlink()) for e in entries])
for command in ["ls -U d", "ls -lU --time-style=+ d | cut -c1-10,50-", "find d -type f", "find d -type l", "find d -links 2",
                "rm -r d/*7*; ls -U d", "find d -delete; ls"]:
    same(subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout.split("\n"))
"#
        .replace("cut -c1-10,50-", "cut -c1-10");
        let said = pair.says_the_same(&script);
        assert!(said.starts_with("5000 "), "{said}");
    }
}

#[test]
fn a_place_in_a_listing_can_be_told_and_returned_to() {
    for user in BOTH {
        let pair = Pair::new(user);
        let said = pair.says_the_same(&format!(
            "{DIRENT}{}",
            r#"
os.mkdir("d")
for n in range(5000): os.mknod("d/entry number %d " % n + "x" * (n % 150))
d = libc.opendir(b"d")
places, names = [], []
while True:
    place = libc.telldir(d)
    name = next_name(d)
    if name is None: break
    places.append(place); names.append(name)
say(len(names), len(set(names)), len(set(places)))
random.seed(1)
for n in sorted(random.sample(range(5002), 10)) + random.sample(range(5002), 10):
    libc.seekdir(d, places[n])
    assert rest(d) == names[n:], n
libc.rewinddir(d)
assert rest(d) == names
# What was made since is seen after rewinddir(3), and what was removed is not.
touch("d/new"); os.unlink("d/" + names[-1].decode() if names[-1] not in (b".", b"..") else "d/" + names[100].decode())
libc.rewinddir(d)
again = rest(d)
say(len(again), b"new" in again)
libc.closedir(d)
"#
        ));
        assert_eq!(said, "5002 5002 5002\n5002 True\n");
    }
}

#[test]
fn a_listing_tells_the_inode_numbers_that_stat_tells() {
    for user in BOTH {
        let pair = Pair::new(user);
        let said = pair.same(&format!(
            "{DIRENT}{}",
            r#"
os.makedirs("d/sub/below"); write("d/f"); os.symlink("f", "d/s"); os.mkfifo("d/p"); os.link("d/f", "d/hard")
def wrong(path):
    found = [(e.name, e.inode(), os.lstat(e.path).st_ino) for e in os.scandir(path)]
    return [f for f in found if f[1] != f[2]]
def dots(path):
    d = libc.opendir(os.fsencode(path))
    inos = {}
    while entry := libc.readdir(d): inos[entry.contents.name] = entry.contents.ino
    libc.closedir(d)
    return [inos[b"."] == os.stat(path).st_ino, inos[b".."] == os.stat(path + "/..").st_ino]
for path in ["d", "d/sub"]:
    tell(path, wrong, path)
    tell(path, dots, path)
ino = os.stat("d/f").st_ino
os.unlink("d/hard")
for n in range(3):
    with open("d/f", "r+b") as f: f.write(b"%d" % n)
    tell("d", wrong, "d")
    tell("same", lambda: os.stat("d/f").st_ino == ino)
os.rename("d/sub/below", "d/moved")
tell("d", wrong, "d")
tell("moved", dots, "d/moved")
"#
        ));
        assert!(said.contains("d []"), "{said}");
    }
}

/// A name that stays is listed exactly once, whatever happens to others meanwhile.
#[test]
fn names_that_stay_are_listed_while_others_come_and_go() {
    for user in BOTH {
        let pair = Pair::new(user);
        let said = pair.mount.python(
            r#"
os.mkdir("d")
stay = {"stay %d" % n + "x" * 50 for n in range(800)}
for name in stay: os.mknod("d/" + name)
stop = False
def churn(which):
    n = 0
    while not stop:
        name = "d/churn %d %d" % (which, n % 40)
        with open(name, "w") as f: f.write("x")
        os.rename(name, name + " renamed")
        os.unlink(name + " renamed")
        n += 1
    return n
threads = [threading.Thread(target=churn, args=(n,)) for n in range(3)]
for t in threads: t.start()
try:
    for n in range(16):
        names = os.listdir("d") if n % 2 else [e.name for e in os.scandir("d")]
        assert len(names) == len(set(names)), "twice"
        assert stay <= set(names), stay - set(names)
        out = subprocess.run(["ls", "-lU", "d"], capture_output=True, text=True).stdout
        assert out.count("stay ") == 800, out.count("stay ")
finally:
    stop = True
    for t in threads: t.join()
say(sorted(os.listdir("d")) == sorted(stay))
"#,
        );
        assert_eq!(said, "True\n");
    }
}

/// W5: it lists, and stats as empty.
#[test]
fn a_file_being_created_is_listed_once() {
    for user in BOTH {
        let pair = Pair::new(user);
        let said = pair.mount.python(
            r#"
for n in range(1000): os.mknod("old %d" % n)
files = [open("new %d" % n, "w") for n in range(100)]
for f in files: f.write("x"); f.flush()
names = os.listdir(".")
say(len(names), len(set(names)))
say(subprocess.run("ls -l new* | wc -l; ls -l new* | awk '{ s += $5 } END { print s }'", shell=True, capture_output=True, text=True).stdout.split())
for f in files: f.close()
say(len(os.listdir(".")), os.stat("new 5").st_size)
"#,
        );
        assert_eq!(said, "1100 1100\n['100', '0']\n1100 1\n");
    }
}
