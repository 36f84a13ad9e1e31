//! Other users of a mount made by root: each has in it what it would have in a bare directory.

use crate::common::{User, finish, options, test_user, text};
use crate::pair::Pair;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

fn shared() -> Pair {
    Pair::with(options().arg("-oallow_other,suid,exec"))
}

#[test]
fn what_is_made_belongs_to_who_made_it() {
    let said = shared().same(
        r#"
os.chmod(".", 0o777)
os.mkdir("setgid"); os.chown("setgid", 5, 777); os.chmod("setgid", 0o2777)
def make(where, who):
    os.umask(0o027)
    for label, call, name in [
            ("file", lambda p: write(p), "f"), ("mode", lambda p: touch(p, mode=0o6775), "m"),
            ("directory", lambda p: os.mkdir(p, 0o777), "d"), ("fifo", os.mkfifo, "p"),
            ("node", lambda p: os.mknod(p, 0o106777), "n"), ("link", lambda p: os.symlink("x", p), "s"),
            ("socket", lambda p: socket.socket(socket.AF_UNIX).bind(p), "k")]:
        path = "%s/%s.%s" % (where, name, who)
        tell(label, call, path)
        tell(label, look, path)
for where in [".", "setgid"]:
    for uid, gid, groups in [(0, 0, []), (12345, 23456, []), (12345, 23456, [777]), (0, 23456, []), (12345, 777, [])]:
        as_user(uid, gid, lambda: make(where, "%d-%d-%d" % (uid, gid, len(groups))), groups)
"#,
    );
    assert!(said.contains("12345, 23456"), "{said}");
    assert!(said.contains("12345, 777"), "{said}");
}

#[test]
fn permission_is_denied_where_it_natively_is() {
    let said = shared().same(
        r#"
os.umask(0)
users = {"owner": (1001, 1001, []), "group": (1002, 1000, []), "member": (1003, 1003, [1000]),
         "other": (1004, 1004, []), "root": (0, 0, [])}
def opened(path, flags):
    os.close(os.open(path, flags))
    return "opened"
def probe(mode):
    d, f = "d%o" % mode, "f%o" % mode
    for label, call in [
            ("read", lambda: opened(f, os.O_RDONLY)), ("write", lambda: opened(f, os.O_WRONLY)),
            ("both", lambda: opened(f, os.O_RDWR)), ("append", lambda: opened(f, os.O_WRONLY | os.O_APPEND)),
            ("empty", lambda: opened(f, os.O_RDONLY | os.O_TRUNC)), ("truncate", lambda: os.truncate(f, 3)),
            ("access", lambda: [os.access(f, m) for m in range(8)]),
            ("effective", lambda: [os.access(f, m, effective_ids=True) for m in range(8)]),
            ("execute", lambda: os.execv(f, [f]) if not os.access(f, os.X_OK) else "may"),
            ("xattr", lambda: os.setxattr(f, "user.x", b"1")), ("xattr", lambda: os.getxattr(f, "user.x")),
            ("now", lambda: os.utime(f)), ("then", lambda: os.utime(f, (1, 1))), ("link", lambda: os.link(f, d + "/l")),
            ("list", lambda: sorted(os.listdir(d))), ("stat", lambda: look(d + "/in")), ("enter", lambda: os.chdir(d)),
            ("create", lambda: write(d + "/new")), ("mkdir", lambda: os.mkdir(d + "/nd")),
            ("rename", lambda: os.rename(d + "/in", d + "/out")), ("back", lambda: os.rename(d + "/out", d + "/in")),
            ("unlink", lambda: os.unlink(d + "/new")), ("rmdir", lambda: os.rmdir(d + "/nd")),
            ("unlink", lambda: os.unlink(d + "/l")), ("access", lambda: [os.access(d, m) for m in range(8)])]:
        here = os.getcwd()
        tell((f, label), call)
        os.chdir(here) if os.getcwd() != here else None
modes = [0o000, 0o400, 0o200, 0o100, 0o600, 0o040, 0o020, 0o070, 0o004, 0o002, 0o007, 0o644, 0o755, 0o777, 0o750]
for mode in modes:
    os.mkdir("d%o" % mode); write("d%o/in" % mode); write("f%o" % mode)
    for name in ["d%o" % mode, "f%o" % mode]:
        os.chown(name, 1001, 1000); os.chmod(name, mode)
os.chmod(".", 0o755)
for name, (uid, gid, groups) in users.items():
    say("***", name)
    def work():
        for mode in modes: probe(mode)
    as_user(uid, gid, work, groups)
"#,
    );
    assert!(said.contains("('f400', 'write') 'EACCES'"), "{said}");
}

#[test]
fn only_the_owner_changes_attributes() {
    let said = shared().same(
        r#"
os.chmod(".", 0o777)
write("f"); os.chown("f", 1001, 1001); os.chmod("f", 0o666)
os.mkdir("d"); os.chown("d", 1001, 1001); os.chmod("d", 0o777)
write("g"); os.chown("g", 1001, 1000); os.chmod("g", 0o777)
def work():
    for name in ["f", "d", "g"]:
        for label, call in [("chmod", lambda: os.chmod(name, 0o6755)), ("chown", lambda: os.chown(name, 1002, -1)),
                            ("chgrp", lambda: os.chown(name, -1, 1000)), ("other", lambda: os.chown(name, -1, 4321)),
                            ("times", lambda: os.utime(name, (1, 1))), ("now", lambda: os.utime(name)),
                            ("remove", lambda: os.removexattr(name, "user.x")),
                            ("set", lambda: os.setxattr(name, "user.x", b"1"))]:
            tell((name, label), call)
            say(look(name))
for who in [1002, 1001]:
    for groups in [[], [1000]]:
        say("***", who, groups)
        as_user(who, who, work, groups)
"#,
    );
    assert!(said.contains("('f', 'chmod') 'EPERM'"), "{said}");
}

#[test]
fn a_sticky_directory_protects_the_files_of_others() {
    let said = shared().same(
        r#"
os.chmod(".", 0o755)
os.mkdir("tmp"); os.chmod("tmp", 0o1777)
def make():
    write("tmp/f"); os.mkdir("tmp/d"); write("tmp/d/x"); write("tmp/open"); os.chmod("tmp/open", 0o666)
def attack():
    write("tmp/mine"); os.mkdir("tmp/own")
    tell("unlink", os.unlink, "tmp/f")
    tell("rename", os.rename, "tmp/f", "tmp/g")
    tell("over", os.rename, "tmp/mine", "tmp/f")
    tell("rmdir", os.rmdir, "tmp/d")
    tell("exchange", renameat2, "tmp/mine", "tmp/f", EXCHANGE)
    tell("link", os.link, "tmp/f", "tmp/linked")
    tell("write", write, "tmp/open", b"written")
    tell("own", os.unlink, "tmp/mine")
    tell("own", os.rename, "tmp/own", "tmp/own2")
as_user(1001, 1001, make)
as_user(1002, 1002, attack)
as_user(1001, 1001, lambda: tell("owner", os.unlink, "tmp/f"))
tell("read", read, "tmp/open")
"#,
    );
    assert!(said.contains("unlink 'EPERM'"), "{said}");
    assert!(said.contains("rename 'EPERM'"), "{said}");
}

#[test]
fn an_update_by_another_user_keeps_the_owner() {
    let said = shared().same(
        r#"
os.chmod(".", 0o777)
for name in ["whole", "part", "linked"]:
    write(name); os.chown(name, 1001, 1000); os.chmod(name, 0o666)
os.link("linked", "second")
def work():
    write("whole", b"replaced")
    with open("part", "r+b") as f: f.write(b"X")
    write("second", b"rewritten")
    os.truncate("part", 4)
as_user(1002, 1002, work)
tell("kept", lambda: [look(n) for n in ["whole", "part", "second", "linked"]])
tell("read", lambda: [read(n) for n in ["whole", "part", "linked", "second"]])
# Also in a directory that the writer may not write, of which it may only write the file.
os.mkdir("closed"); write("closed/f"); os.chmod("closed/f", 0o666)
as_user(1002, 1002, lambda: tell("closed", write, "closed/f", b"through"))
tell("read", read, "closed/f")
"#,
    );
    assert!(said.contains("closed None"), "{said}");
}

#[test]
fn a_mount_by_root_without_allow_other_refuses_others() {
    let pair = Pair::new(User::Root);
    pair.mount
        .bash("umask 0; echo secret > f; mkdir d; chmod 777 .");
    let (uid, gid) = test_user();
    let point = pair.mount.point().display();
    for script in [
        format!("cat {point}/f"),
        format!("ls {point}"),
        format!("cd {point}"),
        format!("echo x > {point}/new"),
        format!("stat {point}/f"),
        format!("touch {point}/d/x"),
    ] {
        let mut command = pair.mount.command("bash");
        command.arg("-c").arg(&script).uid(uid).gid(gid);
        let output = finish(command.stdin(Stdio::null()));
        let stderr = text(&output.stderr);
        assert!(!output.status.success(), "{script}");
        assert!(stderr.contains("Permission denied"), "{script}: {stderr}");
    }
    assert_eq!(pair.mount.bash("ls"), "d\nf\n");
}

#[test]
fn a_mount_by_an_ordinary_user_refuses_even_root() {
    let pair = Pair::new(User::Ordinary);
    pair.mount.bash("echo mine > f");
    let read = std::fs::read(pair.mount.path("f"));
    let error = read.expect_err("root is not let in");
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
}

#[test]
fn a_directory_of_any_mode_is_what_it_natively_is_to_its_owner() {
    let pair = Pair::new(User::Ordinary);
    let said = pair.same(
        r#"
for mode in range(0, 0o1000, 0o100):
    d = "d%03o" % mode
    os.mkdir(d)
    write(d + "/f")
    os.mkdir(d + "/s")
    os.chmod(d, mode)
    tell(d + " list", lambda: sorted(os.listdir(d)))
    tell(d + " types", lambda: sorted((e.name, e.is_dir(follow_symlinks=False)) for e in os.scandir(d)))
    for what, call in [("stat", lambda: look(d + "/f")), ("enter", lambda: os.chdir(d) or os.chdir("..")),
                       ("create", lambda: write(d + "/new")),
                       ("update", lambda: write(d + "/f")),
                       ("mkdir", lambda: os.mkdir(d + "/nd")), ("unlink", lambda: os.unlink(d + "/f"))]:
        tell(d + " " + what, call)
for mode in range(0, 0o1000, 0o100):
    os.chmod("d%03o" % mode, 0o755)
"#,
    );
    assert!(said.contains("EACCES"), "{said}");
}
