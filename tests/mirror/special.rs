//! FIFOs, sockets and device nodes.

use crate::common::{User, options};
use crate::pair::{BOTH, Pair};

#[test]
fn a_fifo_connects_two_programs() {
    for user in BOTH {
        let pair = Pair::new(user);
        let said = pair.same(
            r#"
tell("made", os.mkfifo, "fifo", 0o640)
tell("look", look, "fifo")
tell("again", os.mkfifo, "fifo")
tell("nobody reads", os.open, "fifo", os.O_WRONLY | os.O_NONBLOCK)
writer = subprocess.Popen(["sh", "-c", "echo through the fifo > fifo"])
tell("read", read, "fifo")
tell("ended", writer.wait)
os.rename("fifo", "renamed")
os.link("renamed", "second")
writer = subprocess.Popen(["sh", "-c", "echo by another name > second"])
tell("read", read, "renamed")
tell("ended", writer.wait)
"#,
        );
        assert!(said.contains("read b'through the fifo"), "{said}");
    }
}

#[test]
fn a_socket_can_be_bound_and_connected_to() {
    for user in BOTH {
        let pair = Pair::new(user);
        let said = pair.same(
            r#"
server = socket.socket(socket.AF_UNIX)
tell("bind", server.bind, "socket")
server.listen()
os.chmod("socket", 0o600)
tell("look", look, "socket")
def connect():
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("socket")
        client.sendall(b"hello")
tell("connect", connect)
tell("heard", lambda: server.accept()[0].recv(100))
tell("bind again", socket.socket(socket.AF_UNIX).bind, "socket")
tell("open", os.open, "socket", os.O_RDONLY)
server.close()
tell("nobody listens", connect)
"#,
        );
        assert!(said.contains("heard b'hello'"), "{said}");
    }
}

#[test]
fn root_makes_device_nodes_and_uses_them_where_dev_allows() {
    let script = r#"
for name, kind, major, minor in [("null", stat.S_IFCHR, 1, 3), ("zero", stat.S_IFCHR, 1, 5),
                                 ("block", stat.S_IFBLK, 7, 200), ("big", stat.S_IFCHR, 511, 70000),
                                 ("wide", stat.S_IFBLK, 4095, 1048575)]:
    tell(name, os.mknod, name, kind | 0o644, os.makedev(major, minor))
    s = os.lstat(name)
    say(look(name), os.major(s.st_rdev), os.minor(s.st_rdev))
tell("plain", os.mknod, "plain", stat.S_IFREG | 0o600)
tell("exists", os.mknod, "plain", stat.S_IFIFO | 0o600)
write("plain", b"then written")
"#;
    let with = Pair::with(options().arg("-odev"));
    let said = with.same(script);
    assert!(said.contains("511 70000"), "{said}");
    let said = with.same(
        r#"
with open("zero", "rb") as zero:
    tell("zero", zero.read, 3)
tell("null", write, "null", b"away")
tell("null", read, "null")
"#,
    );
    assert!(said.contains(r"zero b'\x00\x00\x00'"), "{said}");
    let without = Pair::with(options().arg("-onodev"));
    without.same(script);
    let said = without
        .mount
        .python("try: open('zero')\nexcept OSError as e: say(e.errno)");
    assert_eq!(said, "13\n");
}

#[test]
fn an_ordinary_user_makes_no_device_nodes() {
    let pair = Pair::new(User::Ordinary);
    let said = pair.same(
        r#"
tell("device", os.mknod, "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
tell("plain", os.mknod, "plain", stat.S_IFREG | 0o640)
tell("socket", os.mknod, "socket", stat.S_IFSOCK | 0o640)
"#,
    );
    assert!(said.contains("device 'EPERM'"), "{said}");
}
