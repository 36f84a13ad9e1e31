//! latchfs's own directory, which the mount never shows (S1).

use crate::pair::{BOTH, Pair};

#[test]
fn the_store_is_invisible_and_can_not_be_made_by_any_name_operation() {
    for user in BOTH {
        let pair = Pair::new(user);
        let said = pair.mount.python(
            r#"
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
os.mkdir("d"); os.mkdir("victim"); open("f", "w").close()
os.symlink("../mnt/.latchfs", "to")
def attempt(label, call, *args, **options):
    try:
        result = call(*args, **options)
        say(label, "SUCCEEDED", result)
    except OSError as error:
        say(label, errno.errorcode[error.errno])
def renameat2(old, new, flags):
    if libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), "renameat2")
store = [".latchfs", "d/../.latchfs", "./.latchfs", os.path.join(os.getcwd(), ".latchfs"), "../mnt/.latchfs"]
for path in store:
    attempt("look", os.stat, path)
    attempt("look", os.lstat, path)
    attempt("look", os.listdir, path)
    attempt("look", os.chdir, path)
    attempt("look", os.open, path, os.O_RDONLY)
    attempt("look", os.open, path, os.O_PATH)
    attempt("look", os.open, path + "/lock", os.O_RDONLY)
    attempt("look", os.listdir, path + "/tmp")
    attempt("look", os.chmod, path, 0o777)
    attempt("look", os.utime, path)
    attempt("look", os.listxattr, path)
    attempt("look", os.unlink, path)
    attempt("look", os.rmdir, path)
    attempt("look", os.rename, path, "mine")
    attempt("look", os.rename, path + "/kept", "mine")
    attempt("look", os.link, path, "mine")
    attempt("look", os.truncate, path, 0)
    attempt("look", os.open, path + "/x", os.O_WRONLY | os.O_CREAT)
    attempt("look", os.mkdir, path + "/x")
    attempt("make", os.open, path, os.O_WRONLY | os.O_CREAT)
    attempt("make", os.open, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    attempt("make", os.mkdir, path)
    attempt("make", os.mkfifo, path)
    attempt("make", os.mknod, path, 0o100600)
    attempt("make", os.symlink, "f", path)
    attempt("make", os.link, "f", path)
    attempt("make", os.rename, "f", path)
    attempt("make", os.rename, "victim", path)
    attempt("make", renameat2, "victim", path, 1)
    attempt("look", renameat2, "victim", path, 2)
    attempt("look", renameat2, path, "victim", 2)
attempt("look", os.stat, "to")
attempt("look", os.listdir, "to")
names = set()
for root, directories, files in os.walk("."):
    names |= set(directories) | set(files)
say(sorted(names))
say(sorted(entry.name for entry in os.scandir(".")))
say(subprocess.run("ls -a; find . -name '.l*'; echo .l*; cp -a . ../copy; ls -A ../copy; rm -r ../copy",
                   shell=True, capture_output=True, text=True).stdout.split())
"#,
        );
        let lines = said.lines().filter(|line| {
            let look = line.starts_with("look") && !line.ends_with("ENOENT");
            // Whatever refuses: nothing may succeed, nor say that there is something.
            let make = line.starts_with("make") && !line.ends_with("EPERM");
            look || make || line.contains("SUCCEEDED")
        });
        let lines: Vec<&str> = lines.collect();
        assert_eq!(lines, [""; 0]);
        assert!(said.contains("['d', 'f', 'to', 'victim']"), "{said}");
        assert!(!said.contains("'.latchfs'"), "{said}");
        assert!(pair.mount.behind(".latchfs/lock").exists());
    }
}

#[test]
fn its_name_is_free_below_the_root() {
    for user in BOTH {
        let pair = Pair::new(user);
        pair.same(
            r#"
os.makedirs("d/.latchfs")
write("d/.latchfs/f")
os.rename("d/.latchfs", "d/x"); os.rename("d/x", "d/.latchfs")
tell("there", os.listdir, "d")
write(".latchfs2"); write(".latchf"); write("latchfs")
tell("there", lambda: sorted(os.listdir(".")))
"#,
        );
    }
}

#[test]
fn it_is_closed_to_everyone_but_who_mounts() {
    use std::os::unix::fs::PermissionsExt;
    for user in BOTH {
        let pair = Pair::new(user);
        let store = pair.mount.behind(".latchfs").metadata().expect("the store");
        assert_eq!(store.permissions().mode() & 0o7777, 0o700);
    }
}

#[test]
fn the_root_has_as_many_links_as_it_shows_directories() {
    for user in BOTH {
        let pair = Pair::new(user);
        assert_eq!(
            pair.mount.bash("stat -c %h .; mkdir d; stat -c %h ."),
            "2\n3\n"
        );
    }
}
