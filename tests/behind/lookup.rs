//! What opens, and stat, see of changes made behind the mount.

use crate::common::{Mount, wait_until};
use crate::{BOTH, Rule, behind, ruled};

/// Changes of `f`, and what it is then.
const CHANGES: [(&str, &str); 8] = [
    ("echo edited >> f", "original\nedited\n"),
    ("echo 0riginal 1<> f", "0riginal\n"),
    ("truncate -s 3 f", "ori"),
    ("echo replaced > g; mv g f", "replaced\n"),
    ("echo replaced > g; touch -r f g; mv g f", "replaced\n"),
    ("rm f; echo again > f", "again\n"),
    ("rm f; echo 'it is a link' > g; ln -s g f", "it is a link\n"),
    ("rm f", ""),
];

/// A reader that has read `f`, and keeps it open.
fn reader(mount: &Mount) -> crate::common::Running {
    let reader = mount.spawn_python(
        "f = open('f')\nassert f.read() == 'original\\n'\nsay('read')\nhear()\n\
         try:\n    say(repr(open('f').read()))\nexcept FileNotFoundError:\n    say(repr(''))\n\
         hear()\n",
    );
    reader.expect("read");
    reader
}

/// Makes `f` anew, behind the mount.
fn begin_with_the_original(mount: &Mount) {
    behind(mount, "rm -f f g; echo original > f");
    wait_until("it is there", || mount.read("f") == "original\n");
}

#[test]
fn the_next_open_sees_what_was_changed_behind_the_mount() {
    for user in BOTH {
        let (_config, options) = ruled(Rule::Refuse, user);
        let mount = options.mount();
        // Opened for reading; with somebody who has it open; with a version of the mount's own.
        for (change, then) in CHANGES {
            for (open, commit) in [(false, false), (false, true), (true, false), (true, true)] {
                let what = format!("{change}, open: {open}, commit: {commit}");
                begin_with_the_original(&mount);
                if commit {
                    mount.bash("echo original > f");
                }
                let mut held = open.then(|| reader(&mount));
                assert_eq!(mount.bash("cat f; stat f > /dev/null"), "original\n");
                behind(&mount, change);
                assert_eq!(mount.bash("cat f || [ ! -e f ]"), then, "{what}");
                if let Some(held) = &mut held {
                    held.tell("again");
                    assert_eq!(held.hear(), format!("{then:?}").replace('"', "'"), "{what}");
                    held.tell("end");
                    held.succeed();
                }
            }
        }
    }
}

#[test]
fn an_open_to_write_begins_with_what_is_there() {
    for user in BOTH {
        let (_config, options) = ruled(Rule::Refuse, user);
        let mount = options.mount();
        for (change, then) in CHANGES {
            for (mode, appender) in [("a", false), ("a", true), ("r+", false)] {
                let what = format!("{change}, {mode}, appender: {appender}");
                begin_with_the_original(&mount);
                let held = reader(&mount);
                let mut other = mount.spawn_python(match appender {
                    true => "f = open('f', 'a')\nsay('open')\nhear()\n",
                    false => "say('open')\nhear()\n",
                });
                other.expect("open");
                behind(&mount, change);
                mount.python(&format!(
                    "try:\n    f = open('f', '{mode}')\nexcept FileNotFoundError:\n    \
                     f = open('f', 'w')\nf.seek(0, 2)\nf.write('more')\nf.close()"
                ));
                assert_eq!(mount.read("f"), format!("{then}more"), "{what}");
                other.tell("end");
                other.succeed();
                drop(held);
            }
        }
        assert!(!mount.log().contains("behind the mount"), "{}", mount.log());
    }
}

#[test]
fn after_a_refused_close_the_next_open_sees_what_is_there() {
    for user in BOTH {
        let (_config, options) = ruled(Rule::Refuse, user);
        let mount = options.mount();
        for (change, then) in CHANGES {
            begin_with_the_original(&mount);
            let mut writer = mount.spawn_python(
                "f = open('f', 'r+')\nf.read()\nf.write('mine')\nf.flush()\nsay('written')\nhear()\n\
                 try:\n    f.close()\nexcept OSError as e:\n    say(errno.errorcode[e.errno])\n\
                 try:\n    say(repr(open('f').read()))\nexcept FileNotFoundError:\n    say(repr(''))\n",
            );
            writer.expect("written");
            behind(&mount, change);
            writer.tell("close");
            writer.expect("ESTALE");
            assert_eq!(
                writer.hear(),
                format!("{then:?}").replace('"', "'"),
                "{change}"
            );
            writer.succeed();
        }
    }
}

#[test]
fn stat_sees_it_soon() {
    for user in BOTH {
        let (_config, options) = ruled(Rule::Refuse, user);
        let mount = options.mount();
        for (change, then) in CHANGES {
            begin_with_the_original(&mount);
            mount.bash("stat f");
            behind(&mount, change);
            let size = || mount.bash("stat -Lc %s f 2> /dev/null || :");
            let expected = match then {
                "" => String::new(),
                then => format!("{}\n", then.len()),
            };
            wait_until("stat sees it", || size() == expected);
        }
    }
}
