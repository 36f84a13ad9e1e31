//! Names (N1): rename, link, unlink and their kin act at once, and never wait for a lease.

mod common;

use common::{Mount, Running, User, options, wait_until, wait_until_parked};
use std::fs;
use std::os::unix::fs::MetadataExt;

const BOTH: [User; 2] = [User::Root, User::Ordinary];

/// A program that has written to `name` and goes on when told.
fn writer_of(mount: &Mount, name: &str) -> Running {
    let writer = mount.spawn_python(&format!(
        "f = open('{name}', 'w')\nf.write('half')\nf.flush()\nsay('half')\nhear()\n\
         f.write(' and half')\nf.close()\nsay('closed')\nhear()\n"
    ));
    writer.expect("half");
    writer
}

/// A program that says `ready`, opens `name` in a mode, and says what it read or which error it
/// got.
fn opener(mount: &Mount, name: &str, mode: &str) -> Running {
    let opener = mount.spawn_python(&format!(
        "say('ready')\ntry:\n    f = open('{name}', '{mode}')\n    \
         say(f.read() if f.readable() else 'open')\nexcept OSError as e:\n    \
         say(errno.errorcode[e.errno])\n"
    ));
    opener.expect("ready");
    opener
}

/// `renameat2(2)` in Python: `rename2(old, new, flags)` returns 0 or an error's name.
const RENAMEAT2: &str = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n\
     def rename2(old, new, flags):\n    \
         if libc.renameat2(-100, old.encode(), -100, new.encode(), flags) == 0:\n        \
             return 0\n    \
         return errno.errorcode[ctypes.get_errno()]\n\
     NOREPLACE, EXCHANGE = 1, 2\n";

#[test]
fn a_rename_right_after_close_moves_the_saved_file_a_thousand_times() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.python(
            "for n in range(1000):\n    \
                 with open('t', 'w') as f:\n        f.write(str(n))\n    \
                 os.rename('t', 'f')\n    \
                 assert open('f').read() == str(n), n\n    \
                 assert not os.path.exists('t')\n",
        );
        assert_eq!(mount.read_behind("f"), "999");
        assert_eq!(mount.bash("ls"), "f\n");
    }
}

#[test]
fn a_rename_waits_for_a_commit_whose_last_close_has_happened() {
    let mount = options().mount();
    // Large enough that its fsync takes a while.
    let size = 192 << 20;
    let closing = mount.spawn_python(&format!(
        "f = open('t', 'wb')\nfor _ in range({size} // (1 << 20)):\n    f.write(bytes(1 << 20))\n\
         f.flush()\nsay('closing')\nf.close()\nsay('closed')\n"
    ));
    closing.expect("closing");
    wait_until("close() waits", || common::is_blocked(closing.pid()));
    mount.bash("timeout 50 mv t f");
    // Nobody has to wait for the writer's close() to find it there.
    let behind = fs::metadata(mount.behind("f")).expect("the saved file");
    assert_eq!(behind.len(), size);
    assert!(!mount.behind("t").exists());
    closing.expect("closed");
    assert_eq!(mount.store("kept"), [""; 0]);
}

#[test]
fn a_version_being_written_follows_the_rename_of_its_file() {
    for user in BOTH {
        let mount = options().user(user).mount();
        for old in ["printf old > f", "true"] {
            mount.bash(&format!("{old}; mkdir -p d"));
            let mut writer = writer_of(&mount, "f");
            mount.bash("timeout 20 mv f d/g");
            assert_eq!(mount.bash("ls; ls d"), "d\ng\n");
            let reader = opener(&mount, "d/g", "r");
            wait_until_parked(reader.pid(), 1);
            writer.tell("go on");
            writer.expect("closed");
            reader.expect("half and half");
            assert_eq!(mount.read_behind("d/g"), "half and half");
            assert_eq!(mount.bash("ls; ls d; test ! -e f"), "d\ng\n");
            assert!(!mount.behind("f").exists());
            mount.bash("rm d/g");
        }
        assert_eq!(mount.store("kept"), [""; 0]);
    }
}

#[test]
fn a_version_being_written_follows_the_rename_of_a_directory_above_it() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("mkdir -p a/b; printf old > a/b/f");
        let mut old = writer_of(&mount, "a/b/f");
        let mut new = writer_of(&mount, "a/b/g");
        mount.bash("timeout 20 mv a c; timeout 20 mv c/b d; test ! -e a");
        let reader = opener(&mount, "d/f", "r");
        wait_until_parked(reader.pid(), 1);
        for writer in [&mut old, &mut new] {
            writer.tell("go on");
            writer.expect("closed");
        }
        reader.expect("half and half");
        assert_eq!(mount.read_behind("d/f"), "half and half");
        assert_eq!(mount.read_behind("d/g"), "half and half");
        assert_eq!(mount.bash("ls; ls c d"), "c\nd\nc:\n\nd:\nf\ng\n");
    }
}

#[test]
fn no_name_operation_waits_for_a_lease() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("printf old > f; touch a c; mkdir empty; ln -s f s");
        let mut writers = [writer_of(&mount, "f"), writer_of(&mount, "created")];
        let waiting = [
            opener(&mount, "f", "r"),
            opener(&mount, "f", "r+"),
            opener(&mount, "created", "r"),
            opener(&mount, "s", "r"),
        ];
        for opener in &waiting {
            wait_until_parked(opener.pid(), 1);
        }
        for command in [
            "ls -la",
            "ls -U",
            "find . -ls",
            "stat f created s",
            "stat -L s",
            "test -e f -a -w f -a -r created",
            "mkdir new",
            "rmdir empty",
            "touch another",
            "bash -c 'echo x > written'",
            "cat written",
            "mv a b",
            "rm c",
            "ln b hard",
            "ln -s f soft",
            "mkfifo fifo",
            "ln f of-f",
            "chmod 600 f created",
            "touch f",
            "mv f moved",
            "mv created also-moved",
            "mv moved f",
            "rm of-f",
            "rm also-moved",
            "rm f",
        ] {
            let output = mount.try_run("bash", &format!("timeout 60 {command}"));
            assert!(output.status.success(), "{command}: {output:?}");
        }
        for writer in &mut writers {
            writer.tell("go on");
            writer.expect("closed");
        }
    }
}

#[test]
fn a_file_being_created_can_be_linked_and_appears_under_all_its_names() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("mkdir d");
        let mut writer = writer_of(&mount, "f");
        mount.bash("timeout 20 ln f g; timeout 20 ln f d/h");
        assert_eq!(mount.bash("ls; ls d"), "d\nf\ng\nh\n");
        assert!(!mount.behind("g").exists());
        let reader = opener(&mount, "g", "r");
        wait_until_parked(reader.pid(), 1);
        writer.tell("go on");
        writer.expect("closed");
        reader.expect("half and half");
        let numbers = mount.bash("stat -c '%i %h %s' f g d/h");
        let lines: Vec<_> = numbers.lines().collect();
        assert!(lines[0].ends_with(" 3 13"), "{numbers}");
        assert!(lines.iter().all(|line| *line == lines[0]), "{numbers}");
        let behind = ["f", "g", "d/h"].map(|name| {
            let metadata = fs::metadata(mount.behind(name)).expect("the file");
            (metadata.ino(), metadata.nlink(), metadata.len())
        });
        assert_eq!(behind, [(behind[0].0, 3, 13); 3]);
    }
}

// How programs without RENAME_NOREPLACE put a file in place.
#[test]
fn a_file_being_created_linked_to_another_name_and_unlinked_appears_there() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.python(
            "f = open('t', 'w')\nf.write('new')\nf.flush()\nos.link('t', 'f')\nos.unlink('t')\n\
             assert os.listdir() == ['f']\nf.close()\nassert open('f').read() == 'new'\n\
             assert os.stat('f').st_nlink == 1\n",
        );
        assert_eq!(mount.read_behind("f"), "new");
        assert_eq!(mount.store("kept"), [""; 0]);
    }
}

#[test]
fn o_tmpfile_is_refused_in_a_way_that_programs_know_how_to_handle() {
    for user in BOTH {
        let mount = options().user(user).mount();
        let output = mount.python(
            "import tempfile\ntry:\n    os.open('.', os.O_TMPFILE | os.O_RDWR)\n    say('open')\n\
             except OSError as e:\n    say(errno.errorcode[e.errno])\n\
             with tempfile.TemporaryFile(dir='.') as t:\n    t.write(b'temporary')\n    \
                 t.seek(0)\n    say(t.read().decode(), os.listdir())\n\
             with tempfile.SpooledTemporaryFile(max_size=1, dir='.') as t:\n    \
                 t.write(b'temporary')\n    t.seek(0)\n    say(t.read().decode(), os.listdir())\n\
             with tempfile.TemporaryDirectory(dir='.') as d:\n    \
                 open(d + '/f', 'w').write('x')\n\
             say(os.listdir())\n",
        );
        assert_eq!(output, "ENOTSUP\ntemporary []\ntemporary []\n[]\n");
        assert_eq!(mount.store("kept"), [""; 0]);
    }
}

#[test]
fn a_directory_in_which_a_file_is_being_created_is_not_empty() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("mkdir d e");
        let mut writer = writer_of(&mount, "d/f");
        let refused = mount.try_run("sh", "timeout 20 rmdir d");
        assert!(!refused.status.success());
        assert!(common::text(&refused.stderr).contains("Directory not empty"));
        let refused = mount.try_run("sh", "timeout 20 mv -T e d");
        assert!(!refused.status.success(), "renamed over a directory in use");
        writer.tell("go on");
        writer.expect("closed");
        assert_eq!(mount.read_behind("d/f"), "half and half");
    }
}

#[test]
fn an_open_file_can_be_removed_and_then_its_directory() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.python(
            "import shutil\n\
             os.mkdir('d')\nopen('d/r', 'w').write('content')\nopen('d/w', 'w').write('old')\n\
             r, w, n = open('d/r'), open('d/w', 'r+'), open('d/n', 'w+')\n\
             w.write('new')\nn.write('new')\nw.flush()\nn.flush()\n\
             for name in ['r', 'w', 'n']:\n    os.unlink('d/' + name)\n\
             os.rmdir('d')\n\
             assert r.read() == 'content' and os.fstat(r.fileno()).st_size == 7\n\
             w.seek(0)\nn.seek(0)\nassert w.read() == n.read() == 'new'\n\
             [f.close() for f in (r, w, n)]\n\
             os.makedirs('d/e')\nopen('d/e/f', 'w').write('x')\n\
             r, w = open('d/e/f'), open('d/e/g', 'w')\nw.write('y')\nw.flush()\n\
             shutil.rmtree('d')\n\
             assert r.read() == 'x' and os.listdir() == []\n",
        );
        assert_eq!(fs::read_dir(mount.backing()).expect("BACKING").count(), 1);
    }
}

#[test]
fn rename_without_replacing_refuses_files_that_exist_or_are_being_created() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("echo a > a; echo b > b");
        let mut writer = writer_of(&mount, "created");
        let script = "say(rename2('a', 'b', NOREPLACE), rename2('a', 'created', NOREPLACE))\n\
             say(rename2('created', 'b', NOREPLACE), rename2('a', 'c', NOREPLACE))\n\
             say(rename2('created', 'd', NOREPLACE), sorted(os.listdir()))\n";
        assert_eq!(
            mount.python(&format!("{RENAMEAT2}{script}")),
            "EEXIST EEXIST\nEEXIST 0\n0 ['b', 'c', 'd']\n"
        );
        writer.tell("go on");
        writer.expect("closed");
        assert_eq!(mount.read_behind("d"), "half and half");
        assert_eq!(mount.read_behind("b") + &mount.read_behind("c"), "b\na\n");
    }
}

#[test]
fn rename_by_exchange_swaps_two_files_and_what_is_being_written_to_them() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("mkdir d; echo a > a; echo b > d/b");
        let before = mount.bash("stat -c %i a d/b");
        let exchange = format!("{RENAMEAT2}say(rename2('a', 'd/b', EXCHANGE))\n");
        assert_eq!(mount.python(&exchange), "0\n");
        assert_eq!(mount.read("a") + &mount.read("d/b"), "b\na\n");
        assert_eq!(mount.bash("stat -c %i d/b a"), before);
        let mut writer = writer_of(&mount, "a");
        assert_eq!(mount.python(&exchange), "0\n");
        writer.tell("go on");
        writer.expect("closed");
        assert_eq!(mount.read_behind("d/b"), "half and half");
        assert_eq!(mount.read_behind("a"), "a\n");
        assert_eq!(mount.bash("stat -c %i a d/b"), before);
    }
}

#[test]
fn rename_of_one_hard_link_over_another_changes_nothing() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.python(
            "open('a', 'w').write('x')\nos.link('a', 'b')\nos.rename('a', 'b')\n\
             assert sorted(os.listdir()) == ['a', 'b']\n\
             open('a', 'w').write('y')\nassert open('b').read() == 'y'\n\
             os.rename('b', 'a')\nassert sorted(os.listdir()) == ['a', 'b']\n",
        );
    }
}
