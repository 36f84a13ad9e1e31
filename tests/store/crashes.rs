//! kill -9 of the daemon, with transactions in flight.

use crate::common::{Mount, Running, User, alive, kill, options, wait_until};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const BOTH: [User; 2] = [User::Root, User::Ordinary];
const KINDS: [&str; 4] = ["overwrite", "update", "linked", "create"];

/// Programs that write all the time, and what they say of it outside the mount.
struct Writers {
    running: Running,
    records: PathBuf,
}

impl Writers {
    fn start(mount: &Mount, first: usize) -> Self {
        let records = mount.point().with_file_name("records");
        let script = format!("rm -rf {0}; mkdir {0}", records.display());
        mount.bash(&script);
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/store/writers.py");
        let source = fs::read_to_string(program).expect("the writers");
        let script = format!(
            "exec python3 -c {} {} {first}",
            quoted(&source),
            records.display()
        );
        let running = mount.spawn("sh", &script);
        Self { running, records }
    }

    /// The numbers that a writer has begun and finished to save.
    fn record(&self, kind: &str, word: &str) -> Vec<usize> {
        let record = fs::read_to_string(self.records.join(kind)).unwrap_or_default();
        let numbers = record.lines().filter_map(|line| line.strip_prefix(word));
        numbers
            .map(|n| n.trim().parse().expect("a number"))
            .collect()
    }

    fn all_have_saved(&self, times: usize) -> bool {
        let mut kinds = KINDS.iter();
        kinds.all(|kind| self.record(kind, "done").len() >= times)
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The number of the version in a file, which must be whole.
#[track_caller]
fn version(path: &Path, kind: &str) -> usize {
    let content = fs::read_to_string(path).expect("a file");
    let lines: Vec<&str> = content.lines().collect();
    assert_eq!(lines.len(), 500, "{kind}: torn");
    assert!(lines.iter().all(|line| *line == lines[0]), "{kind}: mixed");
    let number = lines[0].strip_prefix(kind).expect("its own content");
    number.trim().parse().expect("a number")
}

/// A whole version, no older than the last save that was acknowledged, and no newer than the last
/// that was begun.
#[track_caller]
fn check(writers: &Writers, path: &Path, kind: &str, before: usize) {
    let begun = writers.record(kind, "begin").last().copied();
    let done = writers.record(kind, "done").last().copied();
    let found = version(path, kind);
    assert!(
        (done.unwrap_or(before)..=begun.unwrap_or(before)).contains(&found),
        "{kind}: {found}, but {done:?} was acknowledged and {begun:?} begun"
    );
}

#[test]
fn after_kill_9_every_file_is_a_whole_version_and_acknowledged_ones_are_kept() {
    for user in BOTH {
        let mount = options().user(user).mount();
        for kind in KINDS {
            let script = format!("for i in $(seq 500); do echo '{kind} 00000000'; done > {kind}");
            mount.bash(&script);
        }
        mount.bash("ln linked second");
        let mut last = 0;
        for round in 0..15 {
            let mut writers = Writers::start(&mount, last);
            wait_until("all have saved", || writers.all_have_saved(1 + round % 3));
            // Any moment is right: this one differs from round to round.
            std::thread::sleep(std::time::Duration::from_micros(round as u64 * 700));
            mount.crash();
            writers.running.wait();
            // In BACKING, before anything was put right: old or new versions only. (The file with
            // two hard links is rewritten in place, which recovery finishes.)
            for kind in ["overwrite", "update"] {
                check(&writers, &mount.behind(kind), kind, last);
            }
            if mount.behind("create").exists() {
                check(&writers, &mount.behind("create"), "create", last);
            }
            mount.start();
            assert_eq!(mount.store("tmp"), [""; 0]);
            assert_eq!(mount.store("redo"), [""; 0]);
            for kind in ["overwrite", "update", "linked"] {
                check(&writers, &mount.behind(kind), kind, last);
            }
            let read = mount.read("linked");
            assert!(read == mount.read("second"), "one file no more");
            let names = mount.bash("ls -A");
            let names: Vec<&str> = names.lines().filter(|name| *name != "create").collect();
            assert_eq!(names, ["linked", "overwrite", "second", "update"]);
            let begun = KINDS.map(|kind| *writers.record(kind, "begin").last().expect("a save"));
            last = begun.into_iter().max().expect("a number");
            for kind in KINDS {
                let script =
                    format!("for i in $(seq 500); do echo '{kind} {last:08}'; done > {kind}");
                mount.bash(&script);
            }
        }
        assert_eq!(mount.store("kept"), [""; 0]);
    }
}

/// Rewrites `d/f` thrice by a program that also changes its mode, and kills the daemon in the middle
/// of each.
fn interrupt_rewrites(mount: &Mount) {
    for (letter, mode) in [("b", "600"), ("c", "640"), ("d", "755")] {
        let script = format!(
            "with open('d/f', 'w') as f:\n    f.write('{letter}' * 96 * 2**20)\n    \
             os.fchmod(f.fileno(), 0o{mode})\n"
        );
        let mut writer = mount.spawn_python(&script);
        let redo = mount.behind(".latchfs/redo");
        let under_way = || {
            let names = fs::read_dir(&redo).expect("redo").flatten();
            names
                .filter(|entry| entry.path().extension().is_some_and(|e| e == "json"))
                .count()
                > 0
        };
        wait_until("the rewrite is under way", under_way);
        mount.crash();
        writer.wait();
        mount.start();
        assert_eq!(mount.store("redo"), [""; 0]);
        let script =
            "head -c 1 d/f; wc -c < d/f; tr -d \"$(head -c 1 d/f)\" < d/f | wc -c; stat -c %a d/f";
        let said = mount.bash(script);
        // It was durable before the first byte was rewritten: it is the new version.
        assert_eq!(said, format!("{letter}100663296\n0\n{mode}\n"));
    }
}

#[test]
fn a_rewrite_in_place_that_was_interrupted_is_finished_before_the_mount_serves() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("mkdir d; head -c 96M /dev/zero | tr '\\0' a > d/f; ln d/f d/g");
        interrupt_rewrites(&mount);
        assert_eq!(mount.bash("cmp d/f d/g && stat -c %h d/f"), "2\n");
    }
}

#[test]
fn so_is_one_of_a_file_whose_directory_may_not_be_written() {
    let mount = options().user(User::Ordinary).mount();
    mount.bash("mkdir d; head -c 96M /dev/zero | tr '\\0' a > d/f; chmod 500 d");
    let before = fs::metadata(mount.behind("d/f")).expect("f").ino();
    interrupt_rewrites(&mount);
    assert_eq!(fs::metadata(mount.behind("d/f")).expect("f").ino(), before);
    mount.bash("chmod 700 d");
}

#[test]
fn a_daemon_killed_while_files_are_created_leaves_no_name_of_them() {
    for user in BOTH {
        let mount = options().user(user).mount();
        let mut writer = mount.spawn_python(
            "os.mkdir('d')\n\
             files = [open('d/new %d' % n, 'w') for n in range(200)]\n\
             for f in files: f.write('x' * 10000); f.flush()\n\
             say('open'); hear()\n\
             failed = 0\n\
             for f in files:\n    try: f.close()\n    except OSError: failed += 1\n\
             say(failed)",
        );
        writer.expect("open");
        mount.crash();
        assert_eq!(fs::read_dir(mount.behind("d")).expect("list").count(), 0);
        writer.tell("close");
        writer.expect("200");
        mount.start();
        assert_eq!(mount.bash("ls d"), "");
        assert_eq!(mount.store("tmp"), [""; 0]);
        assert_eq!(mount.store("kept"), [""; 0]);
    }
}

#[test]
fn waiters_are_answered_when_the_daemon_dies() {
    for user in BOTH {
        let mount = options().user(user).arg("--lock-timeout=1h").mount();
        mount.bash("echo old > f");
        let writer = mount.spawn_python("f = open('f', 'w'); say('open'); hear()");
        writer.expect("open");
        let mut waiters = ["r", "w"].map(|mode| {
            mount.spawn_python(&format!(
                "say('start')\ntry: open('f', '{mode}')\nexcept OSError as e: say(errno.errorcode[e.errno])"
            ))
        });
        for waiter in &waiters {
            waiter.expect("start");
            waiter.wait_until_blocked();
        }
        let daemon = mount.daemon();
        kill(daemon, "KILL");
        for waiter in &mut waiters {
            let said = waiter.hear();
            assert!(
                ["ECONNABORTED", "ENOTCONN"].contains(&said.as_str()),
                "{said}"
            );
            waiter.succeed();
        }
        wait_until("it is dead", || !alive(daemon));
        drop(writer);
        crate::common::take_away(mount.point());
        mount.start();
        assert_eq!(mount.read("f"), "old\n");
    }
}
