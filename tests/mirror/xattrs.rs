//! Extended attributes.

use crate::common::{User, options};
use crate::pair::{BOTH, Pair};

#[test]
fn extended_attributes_are_set_read_listed_and_removed_as_natively() {
    for user in BOTH {
        let pair = Pair::new(user);
        let said = pair.same(
            r#"
os.mkdir("d"); write("f"); os.symlink("f", "s"); os.symlink("f", "s2"); os.mkfifo("p")
for name in ["f", "d", "s", "p"]:
    follow = name != "s"
    for key, value in [("user.a", b"1"), ("user.empty", b""), ("user.binary", bytes(range(256))),
                       ("user." + "n" * 250, b"long name"), ("user." + "n" * 251, b"too long"),
                       ("user.größe", "größe".encode()), ("user.", b"no name"), ("trusted.t", b"trusted"),
                       ("security.none", b"s"), ("unknown.x", b"x"), ("nodot", b"x"), ("system.x", b"x")]:
        tell((name, key), os.setxattr, name, key, value, follow_symlinks=follow)
        tell((name, key), os.getxattr, name, key, follow_symlinks=follow)
    tell("listed", lambda: sorted(os.listxattr(name, follow_symlinks=follow)))
    tell("create", os.setxattr, name, "user.a", b"2", os.XATTR_CREATE, follow_symlinks=follow)
    tell("create", os.setxattr, name, "user.c", b"2", os.XATTR_CREATE, follow_symlinks=follow)
    tell("replace", os.setxattr, name, "user.a", b"3", os.XATTR_REPLACE, follow_symlinks=follow)
    tell("replace", os.setxattr, name, "user.d", b"3", os.XATTR_REPLACE, follow_symlinks=follow)
    tell("both", os.setxattr, name, "user.d", b"3", 3, follow_symlinks=follow)
    tell("value", os.getxattr, name, "user.a", follow_symlinks=follow)
    tell("none", os.getxattr, name, "user.none", follow_symlinks=follow)
    tell("remove", os.removexattr, name, "user.a", follow_symlinks=follow)
    tell("remove again", os.removexattr, name, "user.a", follow_symlinks=follow)
    tell("gone", os.getxattr, name, "user.a", follow_symlinks=follow)
    tell("left", lambda: sorted(os.listxattr(name, follow_symlinks=follow)))
tell("through a link", os.setxattr, "s2", "user.through", b"link")
tell("target", os.getxattr, "f", "user.through")
tell("no file", os.setxattr, "no", "user.a", b"")
"#,
        );
        assert!(said.contains("create 'EEXIST'"), "{said}");
        assert!(said.contains("replace 'ENODATA'"), "{said}");
    }
}

#[test]
fn sizes_of_extended_attributes_are_told_and_limited_as_natively() {
    for user in BOTH {
        let pair = Pair::new(user);
        let said = pair.same(
            r#"
write("f")
for size in [0, 1, 100, 1000, 2000, 3000, 3900, 4000, 4096, 5000, 60000, 65536, 65537]:
    tell(size, os.setxattr, "f", "user.size", b"v" * size)
    tell(size, lambda: len(os.getxattr("f", "user.size")))
os.removexattr("f", "user.size")
os.setxattr("f", "user.v", b"0123456789")
os.setxattr("f", "user.w", b"")
libc.getxattr.restype = libc.listxattr.restype = ctypes.c_ssize_t
def get(size):
    buffer = ctypes.create_string_buffer(size + 1)
    length = by_libc("getxattr", b"f", b"user.v", buffer, ctypes.c_size_t(size))
    return length, buffer.raw[:size]
def names(size):
    buffer = ctypes.create_string_buffer(size + 1)
    length = by_libc("listxattr", b"f", buffer, ctypes.c_size_t(size))
    return length, sorted(buffer.raw[:size].split(b"\0"))
for size in [0, 1, 9, 10, 11, 100]:
    tell(size, get, size)
for size in [0, 1, 13, 14, 15, 100]:
    tell(size, names, size)
# Many of them.
write("many")
for n in range(60):
    tell(n, os.setxattr, "many", "user.number%d" % n, b"%d" % n)
tell("listed", lambda: sorted(os.listxattr("many")))
"#,
        );
        assert!(said.contains("9 'ERANGE'"), "{said}");
    }
}

#[test]
fn extended_attributes_survive_updates_and_go_with_their_version() {
    for user in BOTH {
        let pair = Pair::new(user);
        pair.same(
            r#"
def all(name):
    return [(key, os.getxattr(name, key)) for key in sorted(os.listxattr(name))]
write("f"); os.setxattr("f", "user.a", b"1"); os.setxattr("f", "user.b", b"2")
write("f", b"replaced")
tell("kept", all, "f")
with open("f", "r+b") as f:
    f.write(b"up")
    os.setxattr(f.fileno(), "user.c", b"3")
    os.removexattr(f.fileno(), "user.a")
    tell("own", lambda: sorted(os.listxattr(f.fileno())))
tell("kept", all, "f")
with open("f", "wb") as f:
    os.setxattr(f.fileno(), "user.d", b"4")
tell("kept", all, "f")
with open("new", "wb") as f:
    os.setxattr(f.fileno(), "user.new", b"5")
    f.write(b"x")
tell("new", all, "new")
os.rename("new", "f")
tell("renamed over", all, "f")
os.link("f", "g")
write("g", b"linked"); os.setxattr("f", "user.both", b"6")
tell("linked", all, "g")
with open("f", "rb") as f:
    os.setxattr(f.fileno(), "user.reader", b"7")
tell("by a reader", all, "g")
"#,
        );
    }
}

#[test]
fn trusted_attributes_are_hidden_from_ordinary_users() {
    let pair = Pair::with(options().arg("-oallow_other"));
    let said = pair.same(
        r#"
os.umask(0)
write("f"); os.chmod("f", 0o666); os.chmod(".", 0o777)
os.setxattr("f", "trusted.secret", b"root's own")
os.setxattr("f", "user.open", b"for all")
def ordinary():
    tell("listed", lambda: sorted(os.listxattr("f")))
    tell("get", os.getxattr, "f", "trusted.secret")
    tell("set", os.setxattr, "f", "trusted.secret", b"x")
    tell("remove", os.removexattr, "f", "trusted.secret")
    tell("security", os.setxattr, "f", "security.x", b"x")
    tell("user", os.setxattr, "f", "user.mine", b"x")
    os.chdir("/")
as_user(12345, 12345, ordinary)
tell("listed by root", lambda: sorted(os.listxattr("f")))
os.chmod("f", 0o444)
as_user(12345, 12345, lambda: tell("read-only", os.setxattr, "f", "user.mine", b"y"))
os.chmod("f", 0o000)
as_user(12345, 12345, lambda: tell("closed", os.getxattr, "f", "user.mine"))
"#,
    );
    assert!(said.contains("set 'EPERM'"), "{said}");
}

#[test]
fn a_writer_without_privileges_drops_capabilities_as_natively() {
    let pair = Pair::with(options().arg("-oallow_other,suid").user(User::Root));
    let said = pair.same(
        r#"
os.umask(0); os.chmod(".", 0o777)
# cap_net_raw, version 2.
caps = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
def prepare(name):
    write(name, b"program"); os.chmod(name, 0o6777)
    tell("set", os.setxattr, name, "security.capability", caps)
def show(name):
    say(name, look(name), os.listxattr(name))
def patch(name):
    with open(name, "r+b") as f:
        f.write(b"x")
for who in [0, 12345]:
    for change in [patch, lambda name: write(name, b"y"), lambda name: os.truncate(name, 2)]:
        prepare("f")
        as_user(who, who, lambda: change("f"))
        show("f")
        os.unlink("f")
prepare("untouched")
as_user(12345, 12345, lambda: os.close(os.open("untouched", os.O_RDWR)))
show("untouched")
os.chown("untouched", 1, 1)
show("untouched")
"#,
    );
    assert!(said.contains("security.capability"), "{said}");
}
