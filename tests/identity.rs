//! What survives the replacement of a file (W11): mode, owner, extended attributes, hard links,
//! times that were set; and the number that stat reports.

mod common;

use common::{
    Mount, Options, Running, User, drop_caches, finish, mount, options, test_user, text, wait_until,
};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

const BOTH: [User; 2] = [User::Root, User::Ordinary];

/// Ways to rewrite `f` in place, by programs that know nothing of its attributes.
const REWRITES: [&str; 6] = [
    "echo new > f",
    "echo more >> f",
    "printf x 1<> f",
    "cp /etc/hostname f",
    "truncate -s 1 f",
    "dd if=/dev/zero of=f bs=1 count=3 conv=notrunc status=none",
];

/// A program that has opened `f` in a mode and written to it, and closes when told.
fn writer_of(mount: &Mount, mode: &str) -> Running {
    let writer = mount.spawn_python(&format!(
        "f = open('f', '{mode}')\nf.write('new')\nf.flush()\nsay('half')\nhear()\nf.close()\n\
         say('closed')\nhear()\n"
    ));
    writer.expect("half");
    writer
}

/// A mount by root that ordinary users may enter, checked by the kernel as a disk would be.
fn shared() -> Options {
    options().arg("-o").arg("allow_other,default_permissions")
}

/// Runs a script in the mount as the ordinary user.
fn as_user(mount: &Mount, script: &str) -> (bool, String) {
    let (uid, gid) = test_user();
    let mut command = Command::new("timeout");
    command.args(["50", "bash", "-c", script]).uid(uid).gid(gid);
    let output = finish(command.current_dir(mount.point()).stdin(Stdio::null()));
    let out = text(&output.stdout) + &text(&output.stderr);
    (output.status.success(), out)
}

#[test]
fn the_mode_survives() {
    for user in BOTH {
        let mount = options().user(user).mount();
        for mode in [0o600, 0o640, 0o664, 0o755, 0o666] {
            for rewrite in REWRITES {
                mount.bash(&format!(
                    "echo old > f; chmod {mode:o} f; umask 077; {rewrite}"
                ));
                let behind = fs::metadata(mount.behind("f")).expect("f");
                assert_eq!(behind.mode() & 0o7777, mode, "after {rewrite}");
                assert_eq!(mount.bash("stat -c %a f"), format!("{mode:o}\n"));
            }
        }
    }
}

#[test]
fn the_owner_survives() {
    let mount = options().mount();
    let (uid, gid) = test_user();
    for rewrite in REWRITES {
        mount.bash(&format!(
            "rm -f f; echo old > f; chown {uid}:{gid} f; chmod 640 f; {rewrite}"
        ));
        let behind = fs::metadata(mount.behind("f")).expect("f");
        assert_eq!((behind.uid(), behind.gid()), (uid, gid), "after {rewrite}");
        assert_eq!(behind.mode() & 0o7777, 0o640);
        let seen = format!("{uid} {gid} 640\n");
        assert_eq!(mount.bash("stat -c '%u %g %a' f"), seen);
    }
}

#[test]
fn a_user_who_may_write_a_file_of_another_does_not_become_its_owner() {
    let mount = shared().mount();
    mount.bash("echo old > f; chmod 666 f; chmod 755 .; mkdir d; chmod 777 d");
    for rewrite in REWRITES {
        let (ok, out) = as_user(&mount, rewrite);
        assert!(ok, "{rewrite}: {out}");
        let behind = fs::metadata(mount.behind("f")).expect("f");
        assert_eq!((behind.uid(), behind.gid()), (0, 0), "after {rewrite}");
    }
    // What the user creates is the user's.
    let (uid, gid) = test_user();
    let (ok, out) = as_user(
        &mount,
        "umask 022; echo x > d/f; mkdir d/d; stat -c '%u %g %a' d/f",
    );
    assert_eq!((ok, out), (true, format!("{uid} {gid} 644\n")));
    for name in ["d/f", "d/d"] {
        let behind = fs::metadata(mount.behind(name)).expect("it");
        assert_eq!((behind.uid(), behind.gid()), (uid, gid), "{name}");
    }
    // And what the user may not write, the user may not write.
    mount.bash("chmod 644 f");
    let (ok, out) = as_user(&mount, "echo x > f");
    assert!(!ok && out.contains("Permission denied"), "{out}");
    let (ok, out) = as_user(&mount, "echo x > g");
    assert!(!ok && out.contains("Permission denied"), "{out}");
}

#[test]
fn extended_attributes_survive() {
    for user in BOTH {
        let mount = options().user(user).mount();
        for rewrite in REWRITES {
            mount.bash(&format!(
                "rm -f f; echo old > f; setfattr -n user.one -v 1 f; \
                 setfattr -n user.two -v $(head -c 1000 /dev/zero | tr '\\0' x) f; {rewrite}"
            ));
            let names = mount.bash("getfattr f | grep user | sort");
            assert_eq!(names, "user.one\nuser.two\n", "after {rewrite}");
            let values = "getfattr --only-values -n user.one f; \
                 getfattr --only-values -n user.two f | wc -c";
            assert_eq!(mount.bash(values), "11000\n");
            let behind = finish(
                Command::new("getfattr")
                    .args(["--only-values", "-n", "user.one"])
                    .arg(mount.behind("f")),
            );
            assert_eq!(text(&behind.stdout), "1");
        }
    }
}

#[test]
fn a_write_by_an_unprivileged_user_clears_set_user_id_and_capabilities() {
    let mount = shared().mount();
    for rewrite in REWRITES {
        mount.bash("rm -f f; cp /bin/true f; chown 0:0 f; chmod 6777 f");
        assert_eq!(mount.bash("stat -c %a f"), "6777\n");
        let (ok, out) = as_user(&mount, rewrite);
        assert!(ok, "{rewrite}: {out}");
        assert_eq!(mount.bash("stat -c %a f"), "777\n", "after {rewrite}");
        let behind = fs::metadata(mount.behind("f")).expect("f");
        assert_eq!(behind.mode() & 0o7777, 0o777, "after {rewrite}");
    }
    for rewrite in ["echo new > f", "echo more >> f"] {
        // By root, they stay, as on a disk.
        mount.bash(&format!("rm -f f; cp /bin/true f; chmod 4755 f; {rewrite}"));
        assert_eq!(mount.bash("stat -c %a f"), "4755\n", "after {rewrite}");
    }
    // cap_net_raw=ep, as setcap writes it.
    let capability = "0x0100000200200000000000000000000000000000";
    for rewrite in ["echo new > f", "echo more >> f", "truncate -s 1 f"] {
        mount.bash(&format!(
            "rm -f f; cp /bin/true f; chmod 777 f; setfattr -n security.capability -v {capability} f"
        ));
        let has = || mount.bash("getfattr -m security.capability f | grep -c capability || true");
        assert_eq!(has(), "1\n");
        let (ok, out) = as_user(&mount, rewrite);
        assert!(ok, "{rewrite}: {out}");
        assert_eq!(has(), "0\n", "after {rewrite}");
    }
}

#[test]
fn a_file_with_two_names_is_rewritten_under_both() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("mkdir d; echo old > f; ln f d/g; chmod 640 f; setfattr -n user.a -v b f");
        let number = fs::metadata(mount.behind("f")).expect("f").ino();
        let before = mount.bash("stat -c '%i %h' f");
        let mut reader = mount.spawn_python(
            "f, g = open('f'), open('d/g')\nm = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\n\
             say('open')\nwhile hear() == 'read':\n    \
                 say(m[:].decode().strip(), f.read().strip(), g.read().strip(), \
             os.fstat(f.fileno()).st_size)\n    f.seek(0)\n    g.seek(0)\n",
        );
        reader.expect("open");
        for (n, name) in [(1, "f"), (2, "d/g"), (3, "f"), (4, "f"), (5, "d/g")] {
            mount.bash(&format!("echo a new version, number {n} > {name}"));
            for name in ["f", "d/g"] {
                let content = format!("a new version, number {n}\n");
                assert_eq!(mount.read(name), content);
                assert_eq!(mount.read_behind(name), content);
                assert_eq!(mount.bash(&format!("stat -c '%i %h' {name}")), before);
                let behind = fs::metadata(mount.behind(name)).expect("it");
                assert_eq!((behind.ino(), behind.nlink()), (number, 2));
                assert_eq!(behind.mode() & 0o7777, 0o640);
            }
            assert_eq!(mount.bash("getfattr --only-values -n user.a f"), "b");
            reader.tell("read");
            reader.expect("old old old 4");
        }
        assert_eq!(mount.store("redo"), [""; 0]);
        reader.succeed();
    }
}

// As root the kernel reads the file of BACKING by itself for those who opened it while it had one
// name; and that file is to be rewritten in place once it has two.
#[test]
fn a_file_that_gets_a_second_name_while_it_is_read_keeps_its_reader_and_its_names() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("echo old > f");
        let mut reader = mount.spawn_python(
            "f = open('f')\nm = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\nsay('open')\n\
             while hear() == 'read':\n    \
                 f.seek(0)\n    say(f.read().strip(), m[:].decode().strip())\n",
        );
        reader.expect("open");
        mount.bash("ln f g; echo new and longer > f");
        reader.tell("read");
        reader.expect("old old");
        assert_eq!(mount.read("f"), "new and longer\n");
        assert_eq!(mount.read("g"), "new and longer\n");
        let numbers = mount.bash("stat -c '%i %h' f g | uniq -c");
        assert!(
            numbers.trim().starts_with('2') && numbers.ends_with(" 2\n"),
            "{numbers}"
        );
        mount.bash("echo newer > g");
        assert_eq!(mount.read("f") + &mount.read("g"), "newer\nnewer\n");
        reader.tell("read");
        reader.expect("old old");
    }
}

#[test]
fn a_hard_link_made_while_a_version_is_written_is_a_link_of_that_version() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("echo old > f");
        let mut writer = writer_of(&mount, "w");
        mount.bash("timeout 20 ln f g");
        writer.tell("close");
        writer.expect("closed");
        assert_eq!(mount.read("f") + &mount.read("g"), "newnew");
        let numbers = mount.bash("stat -c '%i %h' f g");
        let lines: Vec<_> = numbers.lines().collect();
        assert!(
            lines[0] == lines[1] && lines[0].ends_with(" 2"),
            "{numbers}"
        );
    }
}

#[test]
fn a_killed_writer_leaves_all_names_of_a_file_as_they_were() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("echo old > f; ln f g");
        let mut writer = writer_of(&mount, "w");
        writer.signal("KILL");
        writer.wait();
        assert_eq!(mount.read("f") + &mount.read("g"), "old\nold\n");
        mount.unmount();
        assert_eq!(mount.read_behind("f"), "old\n");
        assert_eq!(fs::metadata(mount.behind("g")).expect("g").nlink(), 2);
    }
}

#[test]
fn attributes_set_through_the_handle_appear_with_the_commit() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount
            .bash("echo old > f; chmod 644 f; setfattr -n user.a -v old f; touch -d @1000000000 f");
        let mut writer = mount.spawn_python(
            "f = open('f', 'w')\nf.write('new')\nf.flush()\nfd = f.fileno()\n\
             os.fchmod(fd, 0o600)\nos.setxattr(fd, 'user.a', b'new')\nos.setxattr(fd, 'user.b', b'b')\n\
             os.utime(fd, ns=(1_234_567_890_123_456_789, 1_234_567_891_987_654_321))\n\
             s = os.fstat(fd)\nsay(oct(s.st_mode & 0o7777), s.st_mtime_ns)\nhear()\n\
             f.close()\nsay('closed')\n",
        );
        writer.expect("0o600 1234567891987654321");
        let seen = "stat -c '%a %s %Y' f; getfattr -d f | grep user";
        assert_eq!(mount.bash(seen), "644 4 1000000000\nuser.a=\"old\"\n");
        writer.tell("close");
        writer.expect("closed");
        let new = "600 3 1234567891\nuser.a=\"new\"\nuser.b=\"b\"\n";
        assert_eq!(mount.bash(seen), new);
        let times = mount.bash("stat -c '%x %y' f | cut -c 20-29,56-65");
        assert_eq!(times, ".123456789.987654321\n");
        drop_caches();
        assert_eq!(mount.bash(seen), new);
        let behind = fs::metadata(mount.behind("f")).expect("f");
        assert_eq!(
            (behind.mtime_nsec(), behind.atime_nsec()),
            (987_654_321, 123_456_789)
        );
        assert_eq!(behind.permissions().mode() & 0o7777, 0o600);
    }
}

#[test]
fn times_set_through_the_handle_survive_the_commit_of_any_file() {
    // Just emptied, with a second name, new: as tar and rsync restore files over others.
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash(
            "echo old > emptied; echo old > linked; ln linked second; echo old > both; ln both too",
        );
        mount.python(
            "for name, text in (('emptied', ''), ('linked', 'new'), ('both', ''), ('fresh', '')):\n    \
                 with open(name, 'w') as f:\n        \
                     f.write(text)\n        f.flush()\n        \
                     os.utime(f.fileno(), ns=(1_234_567_890_123_456_789, 1_234_567_891_987_654_321))\n        \
                     os.fchmod(f.fileno(), 0o604)\n",
        );
        for name in ["emptied", "linked", "second", "both", "too", "fresh"] {
            let behind = fs::metadata(mount.behind(name)).expect("the file");
            assert_eq!(
                (behind.mtime(), behind.mtime_nsec(), behind.atime_nsec()),
                (1_234_567_891, 987_654_321, 123_456_789),
                "{user:?}: {name}"
            );
            assert_eq!(behind.permissions().mode() & 0o7777, 0o604, "{name}");
            let seen = mount.bash(&format!("stat -c %.9Y {name}"));
            assert_eq!(seen, "1234567891.987654321\n", "{user:?}: {name}");
        }
    }
}

#[test]
fn writing_a_file_leaves_the_time_of_its_directory_alone() {
    // A rename over it would not; rsync and whoever caches listings by that time can tell.
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash(
            "mkdir d; echo old > d/f; echo old > d/l; ln d/l d/second; touch -d @1000000000.5 d",
        );
        mount.bash("echo new > d/f; echo more >> d/f; truncate -s 1 d/f; echo new > d/l");
        assert_eq!(mount.bash("stat -c %.1Y d"), "1000000000.5\n", "{user:?}");
        mount.bash("echo new > d/new");
        assert_ne!(mount.bash("stat -c %.1Y d"), "1000000000.5\n", "{user:?}");
        mount.bash("touch -d @1000000000.5 d; exec 3> d/other; mv d/other d/f; exec 3>&-");
        assert_ne!(mount.bash("stat -c %.1Y d"), "1000000000.5\n", "{user:?}");
    }
}

#[test]
fn attributes_set_by_others_meanwhile_survive_the_commit() {
    for user in BOTH {
        for mode in ["w", "r+", "a"] {
            let mount = options().user(user).mount();
            mount.bash("printf old > f; chmod 644 f; setfattr -n user.gone -v x f");
            let mut writer = writer_of(&mount, mode);
            mount.bash(
                "timeout 20 chmod 604 f; timeout 20 setfattr -n user.b -v b f; \
                 timeout 20 setfattr -x user.gone f",
            );
            let seen = "stat -c %a f; getfattr -d f | grep user";
            // At once, for everyone else.
            assert_eq!(mount.bash(seen), "604\nuser.b=\"b\"\n");
            writer.tell("close");
            writer.expect("closed");
            assert_eq!(mount.bash(seen), "604\nuser.b=\"b\"\n", "mode {mode}");
            assert!(mount.read("f").ends_with("new"));
        }
    }
}

#[test]
fn a_writers_descriptor_shows_what_others_set_meanwhile() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("printf old > f; chmod 644 f");
        let mut writer = mount.spawn_python(
            "f = open('f', 'w')\nf.write('new')\nf.flush()\nsay('half')\nhear()\n\
             say(oct(os.fstat(f.fileno()).st_mode & 0o777))\nhear()\n",
        );
        writer.expect("half");
        mount.bash("timeout 20 chmod 600 f");
        writer.tell("look");
        writer.expect("0o600");
        writer.tell("end");
    }
}

#[test]
fn an_owner_set_by_another_meanwhile_survives_the_commit() {
    let mount = options().mount();
    let (uid, gid) = test_user();
    mount.bash("echo old > f; chmod 644 f");
    let mut writer = writer_of(&mount, "w");
    mount.bash(&format!("timeout 20 chown {uid}:{gid} f"));
    writer.tell("close");
    writer.expect("closed");
    let seen = format!("{uid} {gid} 644 3\n");
    assert_eq!(mount.bash("stat -c '%u %g %a %s' f"), seen);
}

#[test]
fn the_mode_of_a_file_being_created_can_be_set_by_name() {
    for user in BOTH {
        let mount = options().user(user).mount();
        let mut writer = writer_of(&mount, "w");
        mount.bash("timeout 20 chmod 600 f; test $(stat -c %a f) = 600");
        writer.tell("close");
        writer.expect("closed");
        assert_eq!(mount.bash("stat -c '%a %s' f"), "600 3\n");
    }
}

#[test]
fn touch_creates_a_file_and_sets_times_at_once() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("touch f; test -e f; touch -d '2001-02-03 04:05:06.789 UTC' f");
        assert_eq!(mount.bash("stat -c %Y f"), "981173106\n");
        let behind = fs::metadata(mount.behind("f")).expect("f");
        assert_eq!(
            (behind.mtime(), behind.mtime_nsec()),
            (981_173_106, 789_000_000)
        );
        mount.bash(
            "echo x > g; touch -r f g; test ! f -nt g; test ! g -nt f; touch g; test g -nt f",
        );
        assert_eq!(mount.read_behind("g"), "x\n");
    }
}

#[test]
fn the_times_of_a_version_are_those_of_its_writing() {
    for user in BOTH {
        let mount = options().user(user).mount();
        let script = "touch before; sleep 0.02; echo x > f; sleep 0.02; touch after; \
             touch -d @1 f; sleep 0.02; touch later; sleep 0.02; echo y > f; \
             test f -nt later && echo newer; \
             cp -p before copy; stat -c %Y.%y before copy | uniq | wc -l";
        assert_eq!(mount.bash(script), "newer\n1\n");
        // What stat shows right after the commit is what it shows ever after.
        mount.python(
            "with open('f', 'w') as f:\n    f.write('z')\n\
             a = os.stat('f')\n\
             open('/proc/self/comm').read()\nb = os.stat('f')\n\
             assert a.st_mtime_ns == b.st_mtime_ns and a.st_size == 1\n",
        );
        let seen = mount.bash("stat -c '%y %z %s' f");
        drop_caches();
        assert_eq!(mount.bash("stat -c '%y %z %s' f"), seen);
    }
}

#[test]
fn attributes_that_others_set_during_a_commit_stay() {
    for linked in [false, true] {
        let mount = mount();
        mount.bash("echo old > f; chmod 666 f");
        if linked {
            mount.bash("ln f g");
        }
        let daemon = mount.daemon();
        // Every fsync takes its time, so that there is time for the others.
        let slow = "inject=fsync:delay_enter=300000";
        let mut strace = mount.command("strace");
        strace.args([
            "-f",
            "-qq",
            "-e",
            "trace=fsync",
            "-e",
            slow,
            "-o",
            "/dev/null",
        ]);
        let mut strace = strace
            .args(["-p", &daemon.to_string()])
            .spawn()
            .expect("strace");
        wait_until("strace to be attached", || {
            let status = fs::read_to_string(format!("/proc/{daemon}/status"));
            status.is_ok_and(|status| !status.contains("TracerPid:\t0"))
        });
        let mut writer =
            mount.spawn_python("f = open('f', 'r+')\nf.write('new')\nsay('written')\nf.close()\n");
        writer.expect("written");
        writer.wait_until_blocked();
        if linked {
            wait_until("the rewrite to begin", || !mount.store("redo").is_empty());
        }
        mount.bash("chmod 600 f; chown 1:1 f; setfattr -n user.note -v kept f");
        writer.succeed();
        // It would else stop each thread before it leaves, also one that waits for an answer of
        // another, stopped already.
        common::kill(strace.id(), "KILL");
        strace.wait().expect("strace");
        assert_eq!(mount.read_behind("f"), "new\n");
        let found = mount.bash("stat -c '%a %u %g %h' f; getfattr --only-values -n user.note f");
        let names = if linked { 2 } else { 1 };
        assert_eq!(found, format!("600 1 1 {names}\nkept"), "linked: {linked}");
    }
}
