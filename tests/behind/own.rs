//! What is no conflict: everything that is done by way of the mount, and changes that are not of the
//! content.

use crate::{BOTH, Rule, behind, kept, ruled};

/// Done while `f` is open to be updated; each time the update has to be committed.
const THROUGH_THE_MOUNT: [&str; 11] = [
    ":",
    "touch -d '2001-02-03 04:05:06' f",
    "touch f; touch f",
    "touch -a f; touch -m -d '1969-01-01' f",
    "chmod 640 f; chmod 600 f",
    "setfattr -n user.x -v y f",
    "ln f g",
    "ln f g; rm g",
    "mkdir d; mv f d/f; mv d/f f; rmdir d",
    "mv f g; touch g; mv g f",
    "timeout 0.2 cat f || :; stat f; ls -l",
];

/// The same directly in BACKING.
const BEHIND: [&str; 5] = [
    "chmod 640 f",
    "setfattr -n user.x -v y f",
    "ln f g",
    "cat f; ls -l",
    "mv f g; mv g f",
];

#[test]
fn what_is_done_through_the_mount_is_no_conflict() {
    for user in BOTH {
        let (_config, options) = ruled(Rule::Refuse, user);
        let mount = options.mount();
        for fsync in [false, true] {
            let through = THROUGH_THE_MOUNT.iter().map(|script| (true, script));
            let behind_it = BEHIND.iter().map(|script| (false, script));
            for (in_mount, script) in through.chain(behind_it) {
                mount.bash("rm -f f g; echo original > f");
                let sync = if fsync { "os.fsync(f.fileno())" } else { "" };
                let mut writer = mount.spawn_python(&format!(
                    "f = open('f', 'r+', buffering=1)\nf.write('one\\n')\n{sync}\nsay('written')\nhear()\n\
                     {sync}\nf.write('two\\n')\n{sync}\nf.close()\nsay('closed')\n"
                ));
                writer.expect("written");
                match in_mount {
                    true => drop(mount.bash(script)),
                    false => behind(&mount, script),
                }
                writer.tell("go on");
                writer.expect("closed");
                writer.succeed();
                assert_eq!(mount.read_behind("f"), "one\ntwo\n\n", "{script}");
            }
        }
        assert!(!mount.log().contains("behind the mount"), "{}", mount.log());
        assert_eq!(kept(&mount), [""; 0]);
    }
}

#[test]
fn an_edit_behind_is_noticed_though_the_mount_has_set_the_times_since() {
    for user in BOTH {
        let (_config, options) = ruled(Rule::Refuse, user);
        let mount = options.mount();
        mount.bash("echo original > f");
        let mut writer = mount.spawn_python(
            "f = open('f', 'r+')\nf.write('mine')\nf.flush()\nsay('written')\nhear()\ntry:\n    \
             f.close()\nexcept OSError as e:\n    say(errno.errorcode[e.errno])\n",
        );
        writer.expect("written");
        behind(&mount, "echo 0riginal 1<> f");
        mount.bash("touch -d '2001-02-03 04:05:06' f");
        writer.tell("close");
        writer.expect("ESTALE");
        writer.succeed();
        assert_eq!(mount.read_behind("f"), "0riginal\n");
    }
}

#[test]
fn two_who_set_the_times_at_once_make_no_conflict() {
    for user in BOTH {
        let (_config, options) = ruled(Rule::Refuse, user);
        let mount = options.mount();
        mount.python(
            "open('f', 'w').write('original')\n\
             end = time.monotonic() + 1\n\
             def touch(n):\n    while time.monotonic() < end:\n        os.utime('f', (n, n))\n\
             threads = [threading.Thread(target=touch, args=(n,)) for n in range(3)]\n\
             [t.start() for t in threads]\n\
             while time.monotonic() < end:\n    with open('f', 'r+') as f:\n        f.write('mine')\n\
             [t.join() for t in threads]\n",
        );
        assert!(!mount.log().contains("behind the mount"), "{}", mount.log());
    }
}
