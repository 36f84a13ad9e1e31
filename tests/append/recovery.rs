//! What is left of a file that was being appended to when the daemon died.

use crate::common::failing::Failing;
use crate::common::{LATCHFS, Mount, User, alive, finish, kill, options, text, wait_until};
use std::fs;

#[test]
fn after_kill_9_between_two_records_nothing_is_lost_and_nothing_is_said() {
    let mount = options().mount();
    let mut writer = mount.spawn_python(
        "f = os.open('log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n\
         while line := hear():\n    os.write(f, line.encode() + b'\\n'); say('written')",
    );
    for line in ["one", "two"] {
        writer.tell(line);
        writer.expect("written");
    }
    assert_eq!(mount.store("append").len(), 1);
    mount.crash();
    let output = recover(&mount);
    assert!(!output.contains("log"), "{output}");
    assert_eq!(mount.read_behind("log"), "one\ntwo\n");
    assert_eq!(mount.store("append"), [""; 0]);
}

fn recover(mount: &Mount) -> String {
    let output = finish(mount.command(LATCHFS).arg("recover").arg(mount.backing()));
    assert!(output.status.success(), "{output:?}");
    text(&output.stdout) + &text(&output.stderr)
}

/// Kills the daemon while it copies a large record, until one is torn; returns how long the file
/// was with whole records only.
fn torn(mount: &Mount) -> u64 {
    // In one request of 1 MB, which goes to the file in several steps.
    const RECORD: u64 = 1_000_000;
    for attempt in 0..300_u64 {
        let writer = mount.spawn_python(
            "f = os.open('log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n\
             os.write(f, b'x' * 999_999 + b'\\n'); say('written')\n\
             try:\n    while True: os.write(f, b'x' * 999_999 + b'\\n')\nexcept OSError: pass",
        );
        writer.expect("written");
        let daemon = mount.daemon();
        // Somewhere within one record, or between two.
        std::thread::sleep(std::time::Duration::from_micros(1000 + 37 * attempt));
        kill(daemon, "KILL");
        wait_until("the daemon is dead", || !alive(daemon));
        crate::common::take_away(mount.point());
        drop(writer);
        let length = fs::metadata(mount.behind("log")).expect("stat").len();
        if length % RECORD != 0 {
            return length - length % RECORD;
        }
        fs::remove_file(mount.behind("log")).expect("remove");
        mount.start();
    }
    panic!("no record was torn");
}

#[test]
fn a_record_torn_by_kill_9_is_trimmed_before_the_mount_serves_and_the_log_says_so() {
    let mount = options().mount();
    let whole = torn(&mount);
    mount.start();
    let log = fs::read(mount.path("log")).expect("read");
    assert_eq!(log.len() as u64, whole);
    assert!(log.chunks(1_000_000).all(|record| record.ends_with(b"x\n")));
    let said = format!("bytes after {whole}");
    assert!(mount.log().contains(&said), "{}", mount.log());
    assert!(
        mount
            .log()
            .contains("an incomplete record from the end of log"),
        "{}",
        mount.log()
    );
    mount.run("sh", "echo more >> log");
    wait_until("the log of records is gone", || {
        mount.store("append").is_empty()
    });
    mount.unmount();
}

#[test]
fn recover_trims_a_torn_record_by_hand_and_says_so() {
    let mount = options().mount();
    let whole = torn(&mount);
    let said = recover(&mount);
    assert!(said.contains(&format!("bytes after {whole}")), "{said}");
    assert_eq!(
        fs::metadata(mount.behind("log")).expect("stat").len(),
        whole
    );
}

#[test]
fn what_was_appended_behind_a_dead_mount_stays() {
    let mount = options().mount();
    let mut writer = mount.spawn_python(
        "f = os.open('log', os.O_WRONLY | os.O_CREAT | os.O_APPEND); os.write(f, b'one\\n')\n\
         say('written'); hear()",
    );
    writer.expect("written");
    mount.crash();
    let mut behind = fs::File::options()
        .append(true)
        .open(mount.behind("log"))
        .expect("open");
    std::io::Write::write_all(&mut behind, b"by hand\n").expect("write");
    let said = recover(&mount);
    assert!(said.contains("left log as it is"), "{said}");
    assert_eq!(mount.read_behind("log"), "one\nby hand\n");
    writer.tell("end");
}

#[test]
fn a_log_closed_with_any_durability_leaves_nothing_in_the_store() {
    for durability in ["full", "rename", "none"] {
        let mount = options().arg(format!("--durability={durability}")).mount();
        mount.run("sh", "for n in 1 2 3; do echo $n >> log; done; sync log");
        mount.python("f = open('log', 'a'); f.write('4\\n'); f.flush(); os.fsync(f.fileno())");
        assert_eq!(mount.read_behind("log"), "1\n2\n3\n4\n");
        wait_until("the log of records is gone", || {
            mount.store("append").is_empty()
        });
        mount.unmount();
    }
}

#[test]
fn the_log_of_many_records_is_shortened() {
    let mount = options().arg("--durability=none").mount();
    let mut writer = mount.spawn_python(
        "f = os.open('log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n\
         for n in range(60_000): os.write(f, b'%d\\n' % n)\n\
         say('written'); hear()",
    );
    writer.expect("written");
    let longest = || {
        let logs = fs::read_dir(mount.behind(".latchfs/append")).expect("list");
        logs.flatten()
            .filter_map(|log| Some(log.metadata().ok()?.len()))
            .max()
    };
    wait_until("its log is short", || {
        longest().is_some_and(|length| length < 600_000)
    });
    mount.crash();
    assert!(!recover(&mount).contains("removed an incomplete"));
    assert_eq!(mount.read_behind("log").lines().count(), 60_000);
    writer.tell("end");
}

#[test]
fn what_was_edited_behind_a_dead_mount_is_kept_aside() {
    let mount = options().mount();
    let mut writer = mount.spawn_python(
        "f = os.open('log', os.O_WRONLY | os.O_CREAT | os.O_APPEND); os.write(f, b'x' * 100)\n\
         say('written'); hear()",
    );
    writer.expect("written");
    mount.crash();
    // The same inode, and shorter than what was appended: as if that had been cut off.
    fs::write(mount.behind("log"), "by hand\n").expect("write");
    recover(&mount);
    let list = finish(
        mount
            .command(LATCHFS)
            .args(["kept", "list"])
            .arg(mount.backing()),
    );
    let list = text(&list.stdout);
    let (id, _) = list
        .lines()
        .nth(1)
        .expect("a version")
        .split_once(' ')
        .expect("an ID");
    assert!(list.contains("/log.tail"), "{list}");
    let shown = finish(
        mount
            .command(LATCHFS)
            .args(["kept", "show", "--data"])
            .arg(mount.backing())
            .arg(id),
    );
    assert_eq!(text(&shown.stdout), "by hand\n");
    writer.tell("end");
}

#[test]
fn a_handle_that_is_closed_after_a_commit_leaves_no_log() {
    let mount = options().mount();
    let mut first = mount.spawn_python(
        "f = os.open('log', os.O_WRONLY | os.O_CREAT | os.O_APPEND); os.write(f, b'one\\n')\n\
         say('written'); hear(); os.close(f); say('closed'); hear()",
    );
    first.expect("written");
    mount.run("sh", "echo new > log");
    let mut second = mount.spawn_python(
        "f = os.open('log', os.O_WRONLY | os.O_APPEND); say('open'); hear(); os.close(f); say('closed')",
    );
    second.expect("open");
    for writer in [&mut first, &mut second] {
        writer.tell("close");
        writer.expect("closed");
    }
    wait_until("the logs are gone", || mount.store("append").is_empty());
    first.tell("end");
}

#[test]
fn what_a_disk_has_lost_something_of_is_never_called_durable() {
    for user in [User::Root, User::Ordinary] {
        let mount = options().user(user).mount();
        let append = |line: &str| {
            mount.python(&format!(
                "f = os.open('log', os.O_WRONLY | os.O_CREAT | os.O_APPEND); os.write(f, b'{line}')\n\
                 try: os.close(f); say('closed')\n\
                 except OSError as e: say(errno.errorcode[e.errno])"
            ))
        };
        assert_eq!(append("one "), "closed\n");
        let failing = Failing::new(&mount, "fsync:error=EIO");
        assert_eq!(append("two "), "EIO\n");
        drop(failing);
        // A power cut may have taken the record before this one.
        assert_eq!(append("three "), "EIO\n");
        assert_eq!(mount.store("append").len(), 1);
        assert_eq!(mount.read("log"), "one two three ");
        // Every record is there, so nothing is trimmed.
        mount.crash();
        mount.start();
        assert_eq!(mount.read("log"), "one two three ");
        let failing = Failing::new(&mount, "fsync:error=EIO");
        assert_eq!(append("four "), "EIO\n");
        drop(failing);
        // What takes its place is whole.
        mount.run("sh", "printf 'new ' > log");
        assert_eq!(append("one "), "closed\n");
        assert_eq!(mount.store("append"), [""; 0]);
        assert_eq!(mount.read("log"), "new one ");
        mount.unmount();
    }
}

#[test]
fn a_log_kept_after_a_failed_fsync_goes_before_the_inode_is_rewritten() {
    let mount = options().mount();
    mount.run("sh", "printf 'one two three four' > log; ln log other");
    let failing = Failing::new(&mount, "fsync:error=EIO");
    mount.try_run("sh", "printf ' five' >> log");
    drop(failing);
    assert_eq!(mount.store("append").len(), 1);
    // Longer than the log believes, and other bytes.
    mount.run(
        "sh",
        "printf 'one version that is longer than all of that' > log",
    );
    assert_eq!(mount.store("append"), [""; 0]);
    mount.crash();
    mount.start();
    assert_eq!(
        mount.read("other"),
        "one version that is longer than all of that"
    );
    mount.unmount();
}
