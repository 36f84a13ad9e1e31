//! Directories, links, renames, and names as odd as Linux allows.

use crate::common::User;
use crate::pair::{BOTH, Pair};

#[test]
fn directories_are_made_renamed_and_removed_as_natively() {
    for user in BOTH {
        let pair = Pair::new(user);
        let said = pair.same(
            r#"
os.umask(0o022)
tell("plain", os.mkdir, "a")
tell("private", os.mkdir, "private", 0o700)
os.umask(0)
tell("open", os.mkdir, "open", 0o777)
tell("sticky", os.mkdir, "sticky", 0o1777)
tell("again", os.mkdir, "a")
tell("below nothing", os.mkdir, "no/b")
write("file")
tell("below a file", os.mkdir, "file/b")
tell("over a file", os.mkdir, "file")
tell("slash", os.mkdir, "slash/")
os.makedirs("a/b/c")
write("a/b/c/f")
tell("links", links, "a")
tell("not empty", os.rmdir, "a")
tell("no directory", os.rmdir, "file")
tell("nothing", os.rmdir, "nothing")
tell("dot", os.rmdir, "a/.")
tell("dots", os.rmdir, "a/..")
tell("unlink", os.unlink, "a")
tell("into itself", os.rename, "a", "a/b/x")
os.mkdir("empty")
tell("over not empty", os.rename, "empty", "a")
tell("over a file", os.rename, "empty", "file")
tell("a file over", os.rename, "file", "empty")
tell("over empty", os.rename, "a/b", "empty")
tell("moved", read, "empty/c/f")
tell("old name", os.stat, "a/b")
tell("links", links, "a")
tell("removed", os.rmdir, "a")
tell("gone", os.stat, "a")
tell("again", os.mkdir, "a")
tell("root", os.rename, "empty/c", "c")
tell("dotdot", os.listdir, "c/..")
os.chdir("c")
os.rename("../c", "../renamed")
tell("cwd", read, "f")
tell("name", lambda: os.path.basename(os.getcwd()))
os.unlink("f")
os.rmdir("../renamed")
tell("in a removed directory", touch, "f")
"#,
        );
        assert!(said.contains("not empty 'ENOTEMPTY'"), "{said}");
        assert!(said.contains("moved b'content'"), "{said}");
    }
}

#[test]
fn symbolic_links_keep_their_target_and_are_followed_by_the_caller() {
    for user in BOTH {
        let pair = Pair::new(user);
        pair.put_outside("outside", "");
        let said = pair.same(
            r#"
write("../outside", b"outside the tree")
os.mkdir("d")
write("f", b"inside")
for target in ["f", "d", "nowhere", "/etc/hostname", "../outside", "/proc/self/cwd/f", "x" * 4095,
               "with\nnewline", "./d/../f", "loop"]:
    name = "loop" if target == "loop" else "to " + target[:20].replace("/", "_")
    tell("make", os.symlink, target, name)
    tell("target", os.readlink, name)
    tell("size", lambda: os.lstat(name).st_size)
    tell("open", read, name) if target != "/etc/hostname" else None
    tell("nofollow", os.open, name, os.O_RDONLY | os.O_NOFOLLOW)
    tell("type", lambda: look(name)[0])
tell("empty", os.symlink, "", "empty")
tell("exists", os.symlink, "f", "to d")
tell("too long", os.symlink, "x" * 4096, "long")
tell("readlink of a file", os.readlink, "f")
# Through a link: the target is written, the link stays.
write("to f", b"changed")
tell("target", read, "f")
write("to .._outside", b"written through the link")
tell("outside", read, "../outside")
write("to nowhere", b"made through a dangling link")
tell("made", read, "nowhere")
tell("exclusive", os.open, "to nowhere", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
tell("directory", os.mkdir, "to d/below")
tell("below", os.listdir, "d")
tell("rmdir", os.rmdir, "to d")
tell("hard link of a link", os.link, "to f", "second", follow_symlinks=False)
tell("same", os.path.samestat, os.lstat("to f"), os.lstat("second"))
tell("links", links, "second")
tell("rename", os.rename, "to f", "renamed")
tell("over a file", os.rename, "renamed", "nowhere")
tell("now", os.readlink, "nowhere")
tell("unlink", os.unlink, "to d")
tell("target stays", os.listdir, "d")
"#,
        );
        assert!(said.contains("outside b'written through"), "{said}");
        assert!(said.contains("open 'ELOOP'"), "{said}");
    }
}

#[test]
fn hard_links_are_one_file() {
    for user in BOTH {
        let pair = Pair::new(user);
        let said = pair.same(
            r#"
os.mkdir("d")
write("a", b"one")
tell("link", os.link, "a", "b")
tell("elsewhere", os.link, "a", "d/c")
tell("links", links, "a")
tell("same", lambda: len({os.stat(p).st_ino for p in ["a", "b", "d/c"]}))
for path, text in [("a", b"by a"), ("b", b"by b, longer"), ("d/c", b"c")]:
    write(path, text)
    tell("all", lambda: [read(p) for p in ["a", "b", "d/c"]])
    tell("sizes", lambda: [os.stat(p).st_size for p in ["a", "b", "d/c"]])
with open("b", "r+b") as f:
    f.seek(1)
    f.write(b"patched")
with open("d/c", "ab") as f:
    f.write(b"appended")
os.truncate("a", 12)
tell("all", lambda: [read(p) for p in ["a", "b", "d/c"]])
tell("links", links, "a")
tell("same", lambda: len({os.stat(p).st_ino for p in ["a", "b", "d/c"]}))
os.chmod("a", 0o640)
tell("mode", look, "d/c")
tell("exists", os.link, "a", "d")
tell("exists", os.link, "a", "b")
tell("nothing", os.link, "no", "x")
tell("a directory", os.link, "d", "e")
tell("rename onto itself", os.rename, "a", "b")
tell("both stay", lambda: (read("a"), read("b")))
tell("unlink", os.unlink, "a")
tell("links", links, "b")
tell("rename", os.rename, "b", "d/b")
write("d/b", b"still one")
tell("other", read, "d/c")
os.unlink("d/b")
tell("links", links, "d/c")
write("d/c", b"alone")
tell("alone", read, "d/c")
"#,
        );
        assert!(said.contains("same 1"), "{said}");
    }
}

#[test]
fn rename_obeys_its_flags() {
    for user in BOTH {
        let pair = Pair::new(user);
        let script = r#"
os.mkdir("d"); os.mkdir("e"); write("e/below")
write("a", b"a"); write("b", b"b"); os.symlink("a", "s")
tell("noreplace taken", renameat2, "a", "b", NOREPLACE)
tell("noreplace free", renameat2, "a", "c", NOREPLACE)
tell("noreplace itself", renameat2, "c", "c", NOREPLACE)
tell("read", lambda: (read("c"), read("b")))
tell("exchange files", renameat2, "b", "c", EXCHANGE)
tell("read", lambda: (read("c"), read("b")))
tell("exchange file and directory", renameat2, "b", "e", EXCHANGE)
tell("read", lambda: (read("e"), os.listdir("b")))
tell("exchange directories", renameat2, "b", "d", EXCHANGE)
tell("read", lambda: (os.listdir("d"), os.listdir("b")))
tell("exchange with a link", renameat2, "s", "c", EXCHANGE)
tell("read", lambda: (os.readlink("c"), read("s")))
tell("exchange across", renameat2, "s", "d/below", EXCHANGE)
tell("read", lambda: (read("s"), read("d/below")))
tell("exchange with nothing", renameat2, "s", "nothing", EXCHANGE)
tell("exchange into itself", renameat2, "d", "d/below", EXCHANGE)
tell("both flags", renameat2, "s", "c", NOREPLACE | EXCHANGE)
tell("unknown flag", renameat2, "s", "c", 64)
tell("nothing", renameat2, "nothing", "x", 0)
tell("name too long", renameat2, "s", "x" * 256, 0)
# What was exchanged can be written, and lands under its new name.
write("s", b"s again"); write("d/below", b"below again")
tell("read", lambda: (read("s"), read("d/below")))
write("over", b"over"); write("under", b"under")
tell("over", os.rename, "over", "under")
tell("read", read, "under")
tell("gone", os.stat, "over")
"#;
        let said = pair.same(script);
        assert!(said.contains("noreplace taken 'EEXIST'"), "{said}");
        assert!(said.contains("exchange files None"), "{said}");
    }
    let pair = Pair::new(User::Root);
    pair.same(
        r#"
write("a", b"a")
tell("whiteout", renameat2, "a", "b", WHITEOUT)
tell("left", lambda: (look("a")[0], os.lstat("a").st_rdev))
tell("moved", read, "b")
"#,
    );
}

#[test]
fn names_may_hold_any_bytes_and_be_as_long_as_natively() {
    for user in BOTH {
        let pair = Pair::new(user);
        let said = pair.same(
            r#"
long = b"n" * 255
odd = [b"new\nline", b" space ", b"-rf", b"tab\t", b"\\", b"quo'te\"", "größe 文件 🦀".encode(),
       b"\xff\xfe invalid", b"\x80", b"*?[", b".hidden", b"...", long, ("é" * 127).encode()]
for name in odd:
    tell(name, write, name, b"1" + name)
    tell(name, write, name, b"2" + name)
    tell(name, read, name)
    os.mkdir(b"d-" + name[:250])
    tell(name, write, b"d-" + name[:250] + b"/" + name)
    os.rename(name, b"r-" + name[:250])
    tell(name, os.symlink, name, name)
    tell(name, os.readlink, name)
    tell(name, os.link, b"r-" + name[:250], b"h-" + name[:250])
tell("listed", lambda: sorted(os.listdir(b".")))
too_long = b"n" * 256
for call in [os.mkdir, os.stat, os.unlink, os.rmdir, touch, os.readlink, os.listxattr]:
    tell(call.__name__, call, too_long)
tell("link", os.link, b"r-" + long[:250], too_long)
tell("rename", os.rename, b"r-" + long[:250], too_long)
tell("rename from", os.rename, too_long, b"x")
tell("symlink", os.symlink, b"x", too_long)
tell("way through", os.stat, too_long + b"/x")
tell("empty", os.stat, b"")
"#,
        );
        assert!(said.contains("touch 'ENAMETOOLONG'"), "{said}");
    }
}

#[test]
fn paths_may_be_deep() {
    for user in BOTH {
        let pair = Pair::new(user);
        pair.same(
            r#"
# As long as a path can be,
path = ""
while len(path) < 3900:
    path += "d" * 120 + "/"
    os.mkdir(path)
write(path + "f", b"deep")
write(path + "f", b"deeper")
tell("read", read, path + "f")
tell("too long", os.stat, path + "f" * (4096 - len(path)))
# and deeper than a path can tell.
os.mkdir("w")
os.chdir("w")
for level in range(300):
    os.mkdir("level %d" % level)
    os.chdir("level %d" % level)
write("f", b"very deep")
with open("f", "r+b") as f:
    f.write(b"VERY")
tell("read", read, "f")
tell("up", os.listdir, "../../..")
"#,
        );
    }
}

#[test]
fn opens_that_natively_fail_fail_in_the_same_way() {
    for user in BOTH {
        let pair = Pair::new(user);
        let said = pair.same(
            r#"
os.mkdir("d"); write("f", b"old"); os.symlink("f", "s")
for name in ["f", "d", "s", "no", "f/x", "d/no", "no/x", "d/", "f/", "no/"]:
    for flags in ["O_RDONLY", "O_WRONLY", "O_RDWR", "O_WRONLY O_TRUNC", "O_RDONLY O_DIRECTORY",
                  "O_WRONLY O_DIRECTORY", "O_RDONLY O_NOFOLLOW", "O_PATH", "O_PATH O_NOFOLLOW",
                  "O_WRONLY O_CREAT O_EXCL", "O_RDONLY O_CREAT O_DIRECTORY", "O_WRONLY O_APPEND"]:
        value = 0
        for flag in flags.split():
            value |= getattr(os, flag)
        def once():
            fd = os.open(name, value)
            os.close(fd)
            return "opened"
        tell(name + " " + flags, once)
    if name == "no":
        os.unlink("no")
fd = os.open("f", os.O_RDONLY)
tell("write to a reader", os.write, fd, b"x")
tell("truncate a reader", os.ftruncate, fd, 1)
tell("allocate in a reader", os.posix_fallocate, fd, 0, 1)
tell("seek before the start", os.lseek, fd, -1, os.SEEK_SET)
os.close(fd)
fd = os.open("f", os.O_WRONLY)
tell("read from a writer", os.read, fd, 1)
tell("closed", os.close, fd)
fd = os.open("d", os.O_RDONLY)
tell("read a directory", os.read, fd, 1)
os.close(fd)
tell("truncate a directory", os.truncate, "d", 0)
tell("truncate nothing", os.truncate, "no2", 0)
tell("truncate to less than nothing", os.truncate, "f", -1)
"#,
        );
        assert!(said.contains("write to a reader 'EBADF'"), "{said}");
    }
}

#[test]
fn a_removed_current_directory_lists_as_empty() {
    for user in BOTH {
        let pair = Pair::new(user);
        let said = pair.same(
            r#"
os.mkdir("d")
os.chdir("d")
os.rmdir("../d")
tell("list", os.listdir, ".")
tell("make", os.mkdir, "x")
tell("links", links, ".")
"#,
        );
        assert!(said.starts_with("list []"), "{said}");
    }
}

#[test]
fn a_hard_link_made_later_shows_updates_at_once() {
    for user in BOTH {
        let pair = Pair::new(user);
        pair.same(
            r#"
write("a", b"one")
tell("known", look, "a")
os.link("a", "b")
write("b", b"longer")
tell("other name", look, "a")
os.chmod("b", 0o600)
tell("other name", look, "a")
write("a", b"the longest")
tell("other name", look, "b")
os.unlink("a")
tell("links", links, "b")
"#,
        );
    }
}
