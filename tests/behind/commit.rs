//! What commits do about each kind of change, by each rule, at close(2) and at fsync(2).

use crate::common::bare::Disk;
use crate::common::{Mount, User};
use crate::{BOTH, Rule, behind, kept, ruled};
use std::fs;

/// Python that changes `f` by a handle, and says what came of each step.
const WRITER: &str = "
def attempt(work):
    try:
        work()
        say('done')
    except OSError as e:
        say(errno.errorcode[e.errno])
f = open(NAME, MODE, buffering=0)
f.write(b'mine')
say('written')
if hear() == 'fsync':
    attempt(lambda: os.fsync(f.fileno()))
    hear()
attempt(f.close)
";

/// A change made behind the mount.
struct Change {
    name: &'static str,
    /// What is there before.
    setup: &'static str,
    /// How the file is opened.
    mode: &'static str,
    /// What is done in BACKING while it is open.
    change: &'static str,
    /// What the log says.
    said: &'static str,
    /// What the file is if the commit wins; `None` if it can't.
    won: Option<&'static str>,
}

const CHANGES: [Change; 14] = [
    Change {
        name: "more was appended to it",
        setup: "echo original > f",
        mode: "r+b",
        change: "echo theirs >> f",
        said: "it was edited behind the mount; it had 9 bytes of",
        won: Some("mineinal\n"),
    },
    Change {
        name: "as much was written over it",
        setup: "echo original > f",
        mode: "wb",
        change: "echo 0riginal 1<> f",
        said: "it was edited behind the mount; it had 9 bytes of",
        won: Some("mine"),
    },
    Change {
        name: "it was cut off",
        setup: "echo original > f",
        mode: "r+b",
        change: "truncate -s 3 f",
        said: "now 3 bytes of",
        won: Some("mineinal\n"),
    },
    Change {
        name: "another file was renamed over it",
        setup: "echo original > f",
        mode: "wb",
        change: "echo theirs > g; mv g f",
        said: "it was replaced behind the mount; it had 9 bytes of",
        won: Some("mine"),
    },
    Change {
        name: "a file that the mount knows was renamed over it",
        setup: "echo original > f; echo known > g",
        mode: "r+b",
        change: "cat \"$MOUNT/g\"; mv g f; cat \"$MOUNT/f\" 2> /dev/null || :",
        said: "it was replaced behind the mount; it had 9 bytes of",
        won: Some("mineinal\n"),
    },
    Change {
        name: "it was removed",
        setup: "echo original > f",
        mode: "r+b",
        change: "rm f",
        said: "it was removed behind the mount; it had 9 bytes of",
        won: Some("mineinal\n"),
    },
    Change {
        name: "it was removed and made again",
        setup: "echo original > f",
        mode: "r+b",
        change: "rm f; echo theirs > f",
        said: "behind the mount; it had 9 bytes of",
        won: Some("mineinal\n"),
    },
    Change {
        name: "it became a symbolic link",
        setup: "echo original > f; echo theirs > g",
        mode: "wb",
        change: "ln -sf g f",
        said: "it was replaced behind the mount",
        won: Some("mine"),
    },
    Change {
        name: "it became a directory",
        setup: "echo original > f",
        mode: "wb",
        change: "rm f; mkdir f; echo theirs > f/g",
        said: "a directory took its name behind the mount",
        won: None,
    },
    Change {
        name: "it was created",
        setup: ":",
        mode: "xb",
        change: "echo theirs > f",
        said: "it was created behind the mount, with 7 bytes of",
        won: Some("mine"),
    },
    Change {
        name: "one of its names was edited",
        setup: "echo original > f; ln f g",
        mode: "r+b",
        change: "echo theirs >> g",
        said: "it was edited behind the mount; it had 9 bytes of",
        won: Some("mineinal\n"),
    },
    Change {
        name: "one of its names was replaced",
        setup: "echo original > f; ln f g",
        mode: "wb",
        change: "echo theirs > h; mv h f",
        said: "it was replaced behind the mount; it had 9 bytes of",
        won: Some("mine"),
    },
    Change {
        name: "its directory was removed",
        setup: "mkdir d; echo original > d/f",
        mode: "wb",
        change: "rm -r d",
        said: "behind the mount",
        won: None,
    },
    Change {
        name: "it was replaced where it was to be created over another",
        setup: "echo original > f",
        mode: "over",
        change: "echo theirs > g; mv g f",
        said: "it was replaced behind the mount; it had 9 bytes of",
        won: Some("mine"),
    },
];

impl Change {
    fn file(&self) -> &'static str {
        match self.setup.contains("d/f") {
            true => "d/f",
            false => "f",
        }
    }

    fn writer(&self) -> String {
        match self.mode {
            // A file that is renamed over another before it is closed.
            "over" => WRITER
                .replace("say('written')", "os.rename('new', 'f')\nsay('written')")
                .replace("NAME, MODE", "'new', 'xb'"),
            mode => WRITER.replace("NAME, MODE", &format!("'{}', '{mode}'", self.file())),
        }
    }

    /// Runs it; returns what fsync (if asked for) and close said.
    fn run(&self, mount: &Mount, fsync: bool, change: bool) -> Vec<String> {
        behind(mount, self.setup);
        let mut writer = mount.spawn_python(&self.writer());
        writer.expect("written");
        if change {
            let point = mount.point().display();
            behind(mount, &format!("MOUNT={point}; {}", self.change));
        }
        let mut said = Vec::new();
        if fsync {
            writer.tell("fsync");
            said.push(writer.hear());
        }
        writer.tell("close");
        said.push(writer.hear());
        writer.succeed();
        said
    }
}

/// Every file of BACKING, with its content.
fn tree(mount: &Mount) -> String {
    let script =
        "find . -name .latchfs -prune -o -printf '%P %y %n\\n' -type f -exec cat {} \\; | sort";
    let output = std::process::Command::new("sh")
        .args(["-c", script])
        .current_dir(mount.backing())
        .output();
    crate::common::text(&output.expect("find").stdout)
}

fn check(mount: &Mount, change: &Change, rule: Rule, fsync: bool) {
    let what = format!("{}, {rule:?}, fsync: {fsync}", change.name);
    let log_before = mount.log().len();
    let kept_before = kept(mount).len();
    let said = change.run(mount, fsync, true);
    let log = mount.log()[log_before..].to_owned();
    assert!(log.contains(change.said), "{what}: {log}");
    let won = change.won.filter(|_| rule == Rule::Win);
    match won {
        Some(content) => {
            let done = vec!["done"; said.len()];
            assert_eq!(said, done, "{what}");
            assert_eq!(mount.read_behind(change.file()), content, "{what}");
            assert_eq!(mount.read(change.file()), content, "{what}");
            assert!(log.contains("on_conflict = \"win\""), "{what}: {log}");
            assert_eq!(kept(mount).len(), kept_before, "{what}");
        }
        None => {
            let refused = vec!["ESTALE"; said.len()];
            assert_eq!(said, refused, "{what}");
            assert!(log.contains("is kept, to get it back: "), "{what}: {log}");
            assert_eq!(kept(mount).len(), kept_before + 1, "{what}");
            assert!(
                kept(mount)
                    .iter()
                    .any(|content| content.starts_with("mine")),
                "{what}"
            );
            // Nothing else has happened to BACKING.
            let after = tree(mount);
            behind(mount, "rm -rf -- *");
            behind(mount, change.setup);
            let point = mount.point().display();
            behind(mount, &format!("MOUNT={point}; {}", change.change));
            assert_eq!(after, tree(mount), "{what}");
        }
    }
    assert_eq!(mount.store("tmp"), [""; 0], "{what}");
    assert_eq!(mount.store("redo"), [""; 0], "{what}");
    behind(mount, "rm -rf -- *");
    mount.bash("while ls -A | grep -q .; do sleep 0.01; done");
}

fn check_all(rule: Rule, user: User, disk: Option<&Disk>, fsync: &[bool]) {
    let (_config, options) = ruled(rule, user);
    let mount = match disk {
        Some(disk) => options.backing(disk.dir(&format!("{rule:?}-{user:?}"))),
        None => options,
    }
    .mount();
    for change in &CHANGES {
        for fsync in fsync {
            check(&mount, change, rule, *fsync);
        }
    }
}

#[test]
fn a_commit_refuses_to_overwrite_what_was_changed_behind_the_mount() {
    for user in BOTH {
        check_all(Rule::Refuse, user, None, &[false, true]);
    }
}

#[test]
fn a_commit_that_may_win_takes_the_place_of_it_and_says_so() {
    for user in BOTH {
        check_all(Rule::Win, user, None, &[false, true]);
    }
}

#[test]
fn so_it_is_on_ext4_xfs_and_btrfs() {
    for make in [
        &["mkfs.ext4", "-q"][..],
        &["mkfs.xfs", "-q"],
        &["mkfs.btrfs", "-q"],
    ] {
        let disk = Disk::new(make, "loop");
        check_all(Rule::Refuse, User::Root, Some(&disk), &[false]);
        check_all(Rule::Win, User::Ordinary, Some(&disk), &[false]);
    }
}

#[test]
fn without_a_change_nothing_is_refused() {
    for user in BOTH {
        for rule in [Rule::Refuse, Rule::Win] {
            let (_config, options) = ruled(rule, user);
            let mount = options.mount();
            for change in &CHANGES {
                for fsync in [false, true] {
                    let said = change.run(&mount, fsync, false);
                    assert!(said.iter().all(|word| word == "done"), "{}", change.name);
                    assert!(!mount.log().contains("behind the mount"), "{}", mount.log());
                    behind(&mount, "rm -rf -- *");
                    mount.bash("while ls -A | grep -q .; do sleep 0.01; done");
                }
            }
            assert_eq!(kept(&mount), [""; 0]);
        }
    }
}

#[test]
fn an_edit_of_the_same_length_in_the_same_moment_is_noticed() {
    // What would not be, if the file's times were those of the kernel's clock tick.
    for user in BOTH {
        let (_config, options) = ruled(Rule::Refuse, user);
        let mount = options.mount();
        let script = format!(
            "for n in range(200):\n    open('f', 'w').write('first')\n    f = open('f', 'r+')\n    \
             f.write('mine!')\n    open({:?}, 'r+').write('%05d' % n)\n    try:\n        f.close()\n        \
             say('overwrote', n)\n    except OSError as e:\n        assert e.errno == errno.ESTALE, e\n",
            mount.behind("f")
        );
        assert_eq!(mount.python(&script), "");
        assert_eq!(kept(&mount).len(), 200);
        assert_eq!(fs::read_to_string(mount.behind("f")).expect("f"), "00199");
    }
}
