//! For each reason: the bytes, the record, the log.

use crate::common::{User, as_each_user, options, test_user};
use crate::{kept, kill_writer, only};
use std::os::unix::fs::MetadataExt;

const BOTH: [User; 2] = [User::Root, User::Ordinary];

#[test]
fn what_a_killed_writer_wrote_is_kept() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("mkdir d; echo old > d/f; chmod 604 d/f; setfattr -n user.note -v x d/f");
        let pid = kill_writer(&mount, "'d/f'", "b'half of it'");
        assert_eq!(mount.read("d/f"), "old\n");
        let (record, bytes) = only(&mount);
        assert_eq!(bytes, b"half of it");
        assert_eq!(record["path"], "/d/f");
        assert_eq!(record["kind"], "rolled-back");
        assert_eq!(record["pid"], pid);
        assert_eq!(record["size"], 10);
        let uid = if user == User::Root { 0 } else { test_user().0 };
        assert_eq!(record["uid"], uid);
        let program = record["program"].as_str().expect("a program");
        assert!(program.starts_with("python3"), "{program}");
        let reason = record["reason"].as_str().expect("a reason");
        assert!(reason.contains("signal 9"), "{reason}");
        // With the attributes that it would have had.
        let id = record["id"].as_str().expect("an ID");
        let data = mount.behind(&format!(".latchfs/kept/{id}.data"));
        let stat = data.metadata().expect("stat");
        assert_eq!((stat.mode() & 0o7777, stat.uid()), (0o604, uid));
        // The log says how to get it back.
        let command = format!("latchfs kept restore {} {id}", mount.backing().display());
        let log = mount.log();
        let line = log.lines().find(|l| l.contains("rolled back"));
        assert!(line.expect("a line").ends_with(&command), "{log}");
        mount.unmount();
    }
}

#[test]
fn nothing_is_kept_of_a_killed_writer_who_wrote_nothing_or_threw_it_away_itself() {
    as_each_user(|mount| {
        mount.bash("echo old > f");
        // Truncated, but nothing written.
        kill_writer(mount, "'f'", "b''");
        assert_eq!(mount.read("f"), "old\n");
        // A temporary file that its writer has removed already.
        let mut writer = mount.spawn_python(
            "f = open('tmp', 'w'); f.write('x'); f.flush(); os.unlink('tmp'); say('open'); hear()",
        );
        writer.expect("open");
        writer.signal("KILL");
        writer.wait();
        mount.bash("echo new > tmp; rm tmp");
        assert_eq!(kept(mount), []);
    });
}

#[test]
fn of_a_writer_killed_after_fsync_only_what_came_later_is_kept() {
    as_each_user(|mount| {
        let mut writer = mount.spawn_python(
            "fd = os.open('f', os.O_WRONLY | os.O_CREAT); os.write(fd, b'one'); os.fsync(fd)\n\
             say('synced'); hear(); os.write(fd, b' two'); say('written'); hear()",
        );
        writer.expect("synced");
        assert_eq!(mount.read_behind("f"), "one");
        writer.tell("go on");
        writer.expect("written");
        writer.signal("KILL");
        writer.wait();
        assert_eq!(mount.read("f"), "one");
        mount.bash("echo >> f");
        assert_eq!(only(mount).1, b"one two");
        // What fsync has committed is the file, and nothing else: no second name in the store.
        assert_eq!(mount.behind("f").metadata().expect("stat").nlink(), 1);
    });
}

#[test]
fn what_loses_its_name_is_kept_as_detached_and_names_of_any_bytes_are_recorded() {
    as_each_user(|mount| {
        let name = r"b'odd \xff\nname'";
        let mut writer = mount.spawn_python(&format!(
            "f = open({name}, 'w'); f.write('new'); f.flush(); say('open'); hear(); f.close(); say('closed')"
        ));
        writer.expect("open");
        mount.python(&format!("os.unlink({name})"));
        writer.tell("close");
        writer.expect("closed");
        let (record, bytes) = only(mount);
        assert_eq!(bytes, b"new");
        assert_eq!(record["kind"], "detached");
        assert_eq!(record["path"], "/odd \u{fffd}\nname");
        let bytes: Vec<u8> =
            serde_json::from_value(record["path_bytes"].clone()).expect("its bytes");
        assert_eq!(bytes, b"/odd \xff\nname");
    });
}

#[test]
fn a_change_behind_the_mount_keeps_the_version_as_a_conflict_also_at_fsync() {
    as_each_user(|mount| {
        for at_fsync in [false, true] {
            mount.bash("echo old > f");
            let mut writer = mount.spawn_python(
                "f = open('f', 'w'); f.write('mine'); f.flush(); say('open')\n\
                 def attempt(call, *args):\n    try: call(*args)\n    except OSError as e: say(errno.errorcode[e.errno])\n\
                 if hear() == 'fsync': attempt(os.fsync, f.fileno())\n\
                 attempt(f.close); say('closed')",
            );
            writer.expect("open");
            // Another inode takes the name.
            std::fs::write(mount.behind("g"), "theirs").expect("write");
            std::fs::rename(mount.behind("g"), mount.behind("f")).expect("mv");
            if let User::Ordinary = mount.user() {
                let (uid, gid) = test_user();
                std::os::unix::fs::chown(mount.behind("f"), Some(uid), Some(gid)).expect("chown");
            }
            writer.tell(if at_fsync { "fsync" } else { "close" });
            writer.expect("ESTALE");
            if at_fsync {
                writer.expect("ESTALE");
            }
            writer.expect("closed");
            assert_eq!(mount.read_behind("f"), "theirs");
            let (record, bytes) = kept(mount).pop().expect("a version");
            assert_eq!(bytes, b"mine");
            assert_eq!(record["kind"], "conflict");
            std::fs::remove_file(mount.behind("f")).expect("rm");
        }
        assert_eq!(kept(mount).len(), 2);
    });
}

#[test]
fn what_is_open_at_an_unmount_is_kept_as_unmounted() {
    for user in BOTH {
        let mount = options().user(user).arg("--unmount-timeout=0").mount();
        mount.bash("echo old > f");
        let writer = mount
            .spawn_python("f = open('f', 'w'); f.write('half'); f.flush(); say('open'); hear()");
        writer.expect("open");
        mount.unmount();
        let (record, bytes) = only(&mount);
        assert_eq!(
            (&record["kind"], &*bytes),
            (&"unmounted".into(), &b"half"[..])
        );
        assert_eq!(mount.read_behind("f"), "old\n");
    }
}
