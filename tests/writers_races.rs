//! Races between the parts of one transaction: an fsync and a close, a close and an open that joins,
//! a commit and a descriptor that outlives it.

mod common;

use common::{User, options};

const BOTH: [User; 2] = [User::Root, User::Ordinary];

#[test]
fn a_close_waits_for_the_fsync_of_another_thread() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("printf v0 > f");
        let said = mount.python(
            "for n in range(4):\n    \
                 fd = os.open('f', os.O_WRONLY | os.O_TRUNC)\n    \
                 data = b'%d' % n * (24 << 20)\n    \
                 os.write(fd, data)\n    \
                 begun = threading.Event()\n    \
                 def sync():\n        \
                     begun.set()\n        \
                     os.fsync(fd)\n    \
                 t = threading.Thread(target=sync)\n    \
                 t.start()\n    \
                 begun.wait()\n    \
                 os.close(fd)\n    \
                 with open('f', 'r+') as f:\n        \
                     got = f.read()\n        \
                     assert got == data.decode(), (n, len(got), got[:2])\n        \
                     f.write('x')\n    \
                 t.join()\n    \
                 assert os.path.getsize('f') == len(data) + 1\n\
             say('done')",
        );
        assert_eq!(said, "done\n");
    }
}

#[test]
fn an_open_that_joins_while_the_first_descriptor_is_closed_loses_nothing() {
    for user in BOTH {
        let mount = options().user(user).arg("--durability=none").mount();
        let said = mount.python(
            "for n in range(400):\n    \
                 a, b = b'%08d' % n * 1000, b'%08d' % (n + 50000000) * 500\n    \
                 truncate = os.O_TRUNC if n % 2 else 0\n    \
                 first = os.open('f', os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)\n    \
                 def close():\n        \
                     os.write(first, a)\n        \
                     os.close(first)\n    \
                 t = threading.Thread(target=close)\n    \
                 t.start()\n    \
                 second = os.open('f', os.O_RDWR | truncate)\n    \
                 os.pwrite(second, b, 0)\n    \
                 os.close(second)\n    \
                 t.join()\n    \
                 got = open('f', 'rb').read()\n    \
                 both = {a[:8], b[:8]}\n    \
                 assert got and got[:8] in both and got[-8:] in both, (n, len(got), got[:8])\n\
             say('done')",
        );
        assert_eq!(said, "done\n");
    }
}

#[test]
fn a_descriptor_that_outlives_its_commit_cannot_change_the_version() {
    for user in BOTH {
        let mount = options().user(user).mount();
        for change in [
            "os.ftruncate(late, 0)",
            "os.ftruncate(late, 5)",
            "os.pwrite(late, b'zz', 0)",
            "os.posix_fallocate(late, 0, 9000)",
            "os.truncate(f'/proc/self/fd/{late}', 0)",
        ] {
            let said = mount.python(&format!(
                "import socket\n\
                 open('f', 'w').write('v0')\n\
                 fd = os.open('f', os.O_RDWR)\n\
                 os.pwrite(fd, b'committed', 0)\n\
                 a, c = socket.socketpair()\n\
                 socket.send_fds(a, [b'x'], [fd])\n\
                 os.close(fd)\n\
                 reader = os.open('f', os.O_RDONLY)\n\
                 late = socket.recv_fds(c, 1, 1)[1][0]\n\
                 try:\n    {change}\n    say('done')\n\
                 except OSError as e:\n    say(errno.errorcode[e.errno])\n\
                 say(os.pread(reader, 100, 0))\n\
                 os.close(late)\n"
            ));
            assert!(!said.starts_with("done"), "{change}: {said}");
            assert!(said.ends_with("b'committed'\n"), "{change}: {said}");
            assert_eq!(mount.read_behind("f"), "committed", "{change}");
        }
    }
}

#[test]
fn every_way_to_change_a_file_without_privileges_clears_set_user_id() {
    let mount = options().arg("-oallow_other,suid").mount();
    let (uid, gid) = common::test_user();
    mount.bash("chmod 777 .; printf hello > source");
    for change in [
        "os.open('f', os.O_WRONLY | os.O_TRUNC)",
        "os.pwrite(os.open('f', os.O_WRONLY), b'z', 0)",
        "os.ftruncate(os.open('f', os.O_WRONLY), 1)",
        "os.truncate('f', 1)",
        "os.posix_fallocate(os.open('f', os.O_WRONLY), 0, 9000)",
        "os.copy_file_range(os.open('source', os.O_RDONLY), os.open('f', os.O_WRONLY), 2)",
    ] {
        mount.bash("rm -f f; printf content > f; chmod 6777 f");
        mount.python(&format!(
            "os.setgroups([])\nos.setgid({gid})\nos.setuid({uid})\n{change}\n"
        ));
        assert_eq!(mount.bash("stat -c %a f"), "777\n", "{change}");
    }
}
