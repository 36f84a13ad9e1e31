//! A file that loses its name while it is being written (N1): its close succeeds and publishes
//! nothing, what was written is kept aside, and whoever waited for it gets on.

mod common;

use common::{Mount, Running, User, options, wait_until_parked};
use std::fs;

const BOTH: [User; 2] = [User::Root, User::Ordinary];

/// A program that has written to `name`, says under which name it runs, and closes when told.
fn writer_of(mount: &Mount, name: &str) -> (Running, String) {
    let writer = mount.spawn_python(&format!(
        "f = open('{name}', 'w')\nf.write('written')\nf.flush()\n\
         say(open('/proc/self/comm').read().strip())\nhear()\nf.close()\nsay('closed')\nhear()\n"
    ));
    let program = writer.hear();
    (writer, program)
}

/// Checks that exactly one version is kept: of this path, with these bytes, and that the log says
/// who had written it and why it is there.
fn check_kept(mount: &Mount, path: &str, pid: u32, program: &str) {
    let kept = mount.store("kept");
    assert_eq!(kept.len(), 2, "{kept:?}");
    let behind = mount.behind(".latchfs/kept");
    let data = kept.iter().find(|name| name.ends_with(".data"));
    let data = data.expect("the bytes");
    let record = kept.iter().find(|name| name.ends_with(".json"));
    let record = fs::read(behind.join(record.expect("the record"))).expect("the record");
    assert_eq!(
        fs::read_to_string(behind.join(data)).expect("the bytes"),
        "written"
    );
    let record: serde_json::Value = serde_json::from_slice(&record).expect("JSON");
    assert_eq!(record["path"], path);
    assert_eq!(record["pid"], pid);
    assert_eq!(record["program"], program);
    let reason = record["reason"].as_str().expect("a reason");
    assert!(!reason.is_empty());
    let log = mount.log();
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 1, "{log}");
    let id = data.strip_suffix(".data").expect("its ID");
    for part in [path, &format!("pid {pid}"), program, reason, id] {
        assert!(warnings[0].contains(part), "{part} in {}", warnings[0]);
    }
}

fn check_nothing_kept(mount: &Mount) {
    assert_eq!(mount.store("kept"), [""; 0]);
    let log = mount.log();
    assert!(!log.contains("WARN"), "{log}");
}

#[test]
fn a_file_that_another_removes_while_it_is_written_is_kept_aside() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("mkdir d; printf old > d/f");
        let (mut writer, program) = writer_of(&mount, "d/f");
        mount.bash("timeout 20 rm d/f; test ! -e d/f; test -z \"$(ls d)\"");
        assert!(!mount.behind("d/f").exists());
        writer.tell("close");
        writer.expect("closed");
        assert_eq!(mount.bash("ls d"), "");
        assert!(!mount.behind("d/f").exists());
        check_kept(&mount, "/d/f", writer.pid(), &program);
        writer.succeed();
        // The name is free for another.
        mount.bash("echo next > d/f");
        assert_eq!(mount.read_behind("d/f"), "next\n");
    }
}

#[test]
fn a_file_being_created_that_another_removes_is_kept_aside() {
    for user in BOTH {
        let mount = options().user(user).mount();
        let (mut writer, program) = writer_of(&mount, "f");
        mount.bash("timeout 20 rm f; test ! -e f; test -z \"$(ls)\"");
        writer.tell("close");
        writer.expect("closed");
        assert_eq!(mount.bash("ls"), "");
        assert!(!mount.behind("f").exists());
        check_kept(&mount, "/f", writer.pid(), &program);
        writer.succeed();
    }
}

#[test]
fn a_file_that_another_is_renamed_over_while_it_is_written_is_kept_aside() {
    for user in BOTH {
        for old in ["printf old > f", "true"] {
            let mount = options().user(user).mount();
            mount.bash(&format!("{old}; printf other > g"));
            let (mut writer, program) = writer_of(&mount, "f");
            mount.bash("timeout 20 mv g f");
            assert_eq!(mount.read("f"), "other");
            writer.tell("close");
            writer.expect("closed");
            assert_eq!(mount.read("f"), "other");
            assert_eq!(mount.read_behind("f"), "other");
            assert_eq!(mount.bash("ls"), "f\n");
            check_kept(&mount, "/f", writer.pid(), &program);
            writer.succeed();
        }
    }
}

#[test]
fn a_file_that_its_own_writer_removes_is_thrown_away_silently() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.python(
            "open('old', 'w').write('old')\n\
             for name in ['old', 'new', 'old', 'new']:\n    \
                 f = open(name, 'w+')\n    f.write('temporary')\n    os.unlink(name)\n    \
                 f.write(' and more')\n    f.seek(0)\n    \
                 assert f.read() == 'temporary and more'\n    \
                 assert os.fstat(f.fileno()).st_nlink == 0, os.fstat(f.fileno())\n    \
                 f.close()\n    \
                 assert not os.path.exists(name) and os.listdir() in ([], ['old']), name\n",
        );
        // Another thread of it is as good.
        mount.python(
            "f = open('f', 'w')\nf.write('temporary')\nf.flush()\n\
             t = threading.Thread(target=os.unlink, args=('f',))\nt.start()\nt.join()\nf.close()\n",
        );
        assert_eq!(mount.bash("ls"), "");
        check_nothing_kept(&mount);
    }
}

#[test]
fn a_removed_file_of_which_nothing_was_written_is_not_kept() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("printf old > f");
        let mut writer = mount
            .spawn_python("f = open('f', 'r+')\nsay('open')\nhear()\nf.close()\nsay('closed')\n");
        writer.expect("open");
        mount.bash("timeout 20 rm f");
        writer.tell("close");
        writer.expect("closed");
        check_nothing_kept(&mount);
    }
}

#[test]
fn a_detached_file_can_still_be_stat_truncated_and_written() {
    for user in BOTH {
        for mode in ["r+", "w", "w+", "a"] {
            for detach in ["rm f", "mv g f"] {
                let mount = options().user(user).mount();
                mount.bash("printf old > f; printf other > g");
                let mut writer = mount.spawn_python(&format!(
                    "f = open('f', '{mode}')\nsay('open')\nhear()\nfd = f.fileno()\n\
                     assert os.fstat(fd).st_nlink == 0, os.fstat(fd)\n\
                     f.truncate(0)\nassert os.fstat(fd).st_size == 0\n\
                     os.fchmod(fd, 0o600)\nf.truncate(10)\nassert os.fstat(fd).st_size == 10\n\
                     f.truncate(0)\nf.write('written')\nf.flush()\nos.fsync(fd)\n\
                     assert os.fstat(fd).st_size == 7\nf.close()\nsay('closed')\n"
                ));
                writer.expect("open");
                mount.bash(&format!("timeout 20 {detach}"));
                writer.tell("go on");
                writer.expect("closed");
                let left = if detach == "rm f" { "g\n" } else { "f\n" };
                assert_eq!(mount.bash("ls; test ! -e f || test $(cat f) = other"), left);
            }
        }
    }
}

/// A program that says `ready`, opens `f` in a mode, and says what it read or wrote.
fn opener(mount: &Mount, mode: &str) -> Running {
    let opener = mount.spawn_python(&format!(
        "say('ready')\ntry:\n    f = open('f', '{mode}')\n    \
         say(f.read() if f.readable() else f.write('by the waiter'))\nexcept OSError as e:\n    \
         say(errno.errorcode[e.errno])\n"
    ));
    opener.expect("ready");
    opener
}

#[test]
fn those_who_wait_for_a_file_that_is_removed_find_no_file() {
    for user in BOTH {
        for old in ["printf old > f", "true"] {
            let mount = options().user(user).mount();
            mount.bash(old);
            let (mut writer, _) = writer_of(&mount, "f");
            let waiting = ["r", "r+", "r", "r+"].map(|mode| opener(&mount, mode));
            for opener in &waiting {
                wait_until_parked(opener.pid(), 1);
            }
            mount.bash("timeout 20 rm f");
            for opener in &waiting {
                opener.expect("ENOENT");
            }
            writer.tell("close");
            writer.expect("closed");
        }
    }
}

#[test]
fn those_who_wait_for_a_file_that_is_replaced_get_the_other() {
    for user in BOTH {
        for old in ["printf old > f", "true"] {
            let mount = options().user(user).mount();
            mount.bash(&format!("{old}; printf other > g"));
            let (mut writer, _) = writer_of(&mount, "f");
            let reader = opener(&mount, "r");
            wait_until_parked(reader.pid(), 1);
            mount.bash("timeout 20 mv g f");
            reader.expect("other");
            writer.tell("close");
            writer.expect("closed");
        }
    }
}

#[test]
fn a_writer_who_waits_for_a_file_that_is_replaced_writes_the_other() {
    for user in BOTH {
        for mode in ["w", "r+"] {
            let mount = options().user(user).mount();
            mount.bash("printf old > f; printf 'other file' > g");
            let (mut writer, _) = writer_of(&mount, "f");
            let mut waiter = mount.spawn_python(&format!(
                "say('ready')\nf = open('f', '{mode}')\nf.write('by the waiter')\nf.close()\n\
                 say('closed')\n"
            ));
            waiter.expect("ready");
            wait_until_parked(waiter.pid(), 1);
            mount.bash("timeout 20 mv g f");
            waiter.expect("closed");
            waiter.succeed();
            assert_eq!(mount.read_behind("f"), "by the waiter");
            writer.tell("close");
            writer.expect("closed");
            assert_eq!(mount.read("f"), "by the waiter");
        }
    }
}

#[test]
fn a_writer_who_waits_for_a_file_that_is_removed_creates_it_anew() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("printf old > f");
        let (mut writer, _) = writer_of(&mount, "f");
        let mut waiter = opener(&mount, "w");
        wait_until_parked(waiter.pid(), 1);
        mount.bash("timeout 20 rm f");
        waiter.expect("13");
        waiter.succeed();
        assert_eq!(mount.read_behind("f"), "by the waiter");
        writer.tell("close");
        writer.expect("closed");
        assert_eq!(mount.read("f"), "by the waiter");
    }
}

#[test]
fn a_file_being_created_and_renamed_over_another_replaces_it_at_its_close() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("printf old > f");
        let mut saver = mount.spawn_python(
            "import tempfile\n\
             with tempfile.NamedTemporaryFile('w', dir='.', delete=False) as t:\n    \
                 t.write('new')\n    t.flush()\n    os.replace(t.name, 'f')\n    \
                 say('replaced')\n    hear()\n    t.write(' and more')\n\
             say('closed')\n",
        );
        saver.expect("replaced");
        // Until then the old one is there for a crash, and whoever opens it waits.
        assert_eq!(mount.read_behind("f"), "old");
        assert_eq!(mount.bash("ls"), "f\n");
        let reader = opener(&mount, "r");
        wait_until_parked(reader.pid(), 1);
        saver.tell("go on");
        saver.expect("closed");
        reader.expect("new and more");
        assert_eq!(mount.read_behind("f"), "new and more");
        assert_eq!(fs::read_dir(mount.backing()).expect("BACKING").count(), 2);
        check_nothing_kept(&mount);
    }
}

#[test]
fn a_file_being_created_and_renamed_over_another_leaves_that_if_its_writer_is_killed() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("printf old > f");
        let mut saver = mount.spawn_python(
            "f = open('t', 'w')\nf.write('new')\nf.flush()\nos.replace('t', 'f')\n\
             say('replaced')\nhear()\n",
        );
        saver.expect("replaced");
        let reader = opener(&mount, "r");
        wait_until_parked(reader.pid(), 1);
        saver.signal("KILL");
        saver.wait();
        reader.expect("old");
        assert_eq!(mount.read("f"), "old");
        assert_eq!(mount.bash("ls; stat -c %s f; wc -c f"), "f\n3\n3 f\n");
        assert_eq!(mount.read_behind("f"), "old");
        mount.bash("echo next > f");
        assert_eq!(mount.read_behind("f"), "next\n");
    }
}

#[test]
fn a_file_being_created_and_renamed_over_another_leaves_that_if_the_daemon_is_killed() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("printf old > f");
        let saver = mount.spawn_python(
            "f = open('t', 'w')\nf.write('new')\nf.flush()\nos.replace('t', 'f')\n\
             say('replaced')\nhear()\n",
        );
        saver.expect("replaced");
        mount.crash();
        assert_eq!(mount.read_behind("f"), "old");
        drop(saver);
        mount.start();
        assert_eq!(mount.read("f"), "old");
        assert_eq!(mount.bash("ls"), "f\n");
    }
}

#[test]
fn a_file_being_created_and_renamed_over_another_takes_that_with_it_when_removed_or_moved() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.python(
            "open('a', 'w').write('old a')\nopen('b', 'w').write('old b')\n\
             f = open('t', 'w')\nf.write('new')\nf.flush()\n\
             os.replace('t', 'a')\nos.unlink('a')\n\
             assert not os.path.exists('a') and os.listdir() == ['b']\nf.close()\n\
             f = open('t', 'w')\nf.write('new')\nf.flush()\n\
             os.replace('t', 'b')\nos.rename('b', 'c')\n\
             assert not os.path.exists('b') and os.listdir() == ['c'], os.listdir()\nf.close()\n\
             assert os.listdir() == ['c'] and open('c').read() == 'new'\n",
        );
        assert_eq!(mount.read_behind("c"), "new");
        assert_eq!(fs::read_dir(mount.backing()).expect("BACKING").count(), 2);
    }
}
