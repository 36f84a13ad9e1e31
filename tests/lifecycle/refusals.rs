//! What is refused: one line, a documented exit code, and nothing changed on disk.

use crate::common::{User, as_each_user, text};
use crate::scene::Scene;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;

const BOTH: [User; 2] = [User::Root, User::Ordinary];

#[test]
fn directories_that_can_not_become_a_mount_are_refused() {
    for user in BOTH {
        let scene = Scene::new(user);
        scene.make_dir(&scene.backing.join("sub"));
        scene.make_file(&scene.dir.join("file"), "");
        symlink("backing/sub", scene.dir.join("link")).expect("symlink");
        symlink("nowhere", scene.dir.join("dangling")).expect("symlink");
        for (backing, point, code, words) in [
            ("missing", "point", 3, "does not exist"),
            ("dangling", "point", 3, "does not exist"),
            ("file", "point", 3, "is not a directory"),
            ("file/x", "point", 3, "is not a directory"),
            ("backing", "missing", 4, "does not exist"),
            ("backing", "file", 4, "is not a directory"),
            ("backing", "backing/sub", 4, "is inside BACKING"),
            ("backing", "link", 4, "is inside BACKING"),
            ("backing/sub", "backing", 4, "is inside MOUNTPOINT"),
            ("link", "backing", 4, "is inside MOUNTPOINT"),
        ] {
            for way in [&["mount"][..], &["mount", "-f"], &["mount", "-o", "ro"]] {
                let mut args = way.to_vec();
                args.extend([backing, point]);
                scene.refuses(&args, code, words);
            }
        }
    }
}

#[test]
fn bad_options_are_refused() {
    let scene = Scene::new(User::Root);
    for (option, words) in [
        ("-obogus", "bogus"),
        ("-oro,bogus=1", "bogus"),
        ("-olock_timeout", "needs a value"),
        ("-olock_timeout=", "lock_timeout="),
        ("-olock_timeout=soon", "lock_timeout=soon"),
        ("-olock-timeout=0", "longer than 0"),
        ("-olock_timeout=-1s", "-1s"),
        ("--lock-timeout=1x", "1x"),
        ("--lock-timeout=", "lock-timeout"),
        ("--unmount-timeout=never", "never"),
        ("-oreaders=maybe", "wait, snapshot"),
        ("--readers=maybe", "wait, snapshot"),
        ("-odurability=some", "full"),
        ("--durability=some", "full"),
        ("-osubtype=other", "subtype"),
        ("-ofsname=/other", "fsname"),
        ("--log-file=/nowhere/log", "/nowhere/log"),
        ("--log-file=point/log", "inside the mount"),
    ] {
        scene.refuses(&["mount", option, "backing", "point"], 2, words);
    }
}

#[test]
fn a_mount_on_a_mount_is_refused_and_the_first_goes_on() {
    for user in BOTH {
        let scene = Scene::new(user);
        scene.make_dir(&scene.dir.join("other"));
        scene.make_dir(&scene.dir.join("free"));
        scene.make_dir(&scene.backing.join("sub"));
        scene.mount(&["--log-file=log"]);
        let daemon = scene.daemon();
        for (backing, point, code, words) in [
            ("other", "point", 4, "is already a latchfs mount"),
            ("other", "point/", 4, "is already a latchfs mount"),
            ("other", "point/sub", 4, "is inside the latchfs mount"),
            ("point", "free", 3, "is inside the latchfs mount"),
            ("point/sub", "free", 3, "is inside the latchfs mount"),
            ("backing", "free", 5, "already served"),
            ("backing", "point", 4, "is already a latchfs mount"),
        ] {
            scene.refuses(&["mount", backing, point], code, words);
            scene.refuses(&["mount", "--foreground", backing, point], code, words);
        }
        assert_eq!(scene.daemon(), daemon);
        let written = scene
            .command("sh")
            .args(["-c", "echo still > point/f"])
            .status();
        assert!(written.expect("sh").success());
        let content = fs::read_to_string(scene.backing.join("f")).expect("the file");
        assert_eq!(content, "still\n");
        scene.unmount();
    }
}

#[test]
fn a_busy_backing_names_the_daemon_that_serves_it() {
    as_each_user(|mount| {
        let daemon = mount.daemon();
        let free = mount.point().with_file_name("free");
        assert!(
            mount
                .command("mkdir")
                .arg(&free)
                .status()
                .expect("mkdir")
                .success()
        );
        let mut command = mount.command(crate::common::LATCHFS);
        command.arg("mount").arg(mount.backing()).arg(&free);
        let output = crate::common::finish(&mut command);
        assert_eq!(output.status.code(), Some(5));
        let stderr = text(&output.stderr);
        assert!(stderr.contains(&daemon.to_string()), "{stderr}");
        // Recovery by hand would pull the rug from under it.
        let mut command = mount.command(crate::common::LATCHFS);
        let output = crate::common::finish(command.arg("recover").arg(mount.backing()));
        assert_eq!(output.status.code(), Some(5));
        assert_eq!(mount.daemon(), daemon);
    });
}

#[test]
fn what_the_user_may_not_use_is_refused() {
    let scene = Scene::new(User::Ordinary);
    fs::create_dir(scene.dir.join("closed")).expect("mkdir");
    let closed = fs::Permissions::from_mode(0o700);
    fs::set_permissions(scene.dir.join("closed"), closed).expect("chmod");
    fs::create_dir(scene.dir.join("read-only")).expect("mkdir");
    scene.refuses(&["mount", "closed", "point"], 3, "permission denied");
    scene.refuses(&["mount", "read-only", "point"], 3, ".latchfs");
    // Only what may be written may be mounted over, says fusermount3.
    let output = scene.latchfs(["mount", "backing", "read-only"]);
    scene.check_refusal(&output, 6, "read-only");
    assert!(scene.mounts().is_empty());
}

#[test]
fn allow_other_by_an_ordinary_user_is_refused_with_a_hint() {
    let conf = fs::read_to_string("/etc/fuse.conf").expect("/etc/fuse.conf");
    if conf.lines().any(|line| line.trim() == "user_allow_other") {
        // Here it is allowed, so it works.
        let scene = Scene::new(User::Ordinary);
        scene.mount(&["-oallow_other", "--log-file=log"]);
        return scene.unmount();
    }
    let scene = Scene::new(User::Ordinary);
    let output = scene.latchfs(["mount", "-oallow_other", "backing", "point"]);
    scene.check_refusal(&output, 6, "user_allow_other");
    assert!(scene.mounts().is_empty());
}

#[test]
fn unmounting_what_is_not_mounted_is_refused() {
    for user in BOTH {
        let scene = Scene::new(user);
        scene.make_dir(&scene.backing.join("sub"));
        for point in ["point", "missing", "backing", "/proc", "/"] {
            scene.refuses(&["umount", point], 7, "is not a latchfs mount");
        }
        scene.mount(&["--log-file=log"]);
        scene.refuses(&["umount", "point/sub"], 7, "is inside a latchfs mount");
        scene.refuses(&["umount", "backing"], 7, "is not a latchfs mount");
        scene.unmount();
        scene.refuses(&["umount", "point"], 7, "is not a latchfs mount");
    }
}

#[test]
fn a_user_can_not_unmount_what_another_mounted() {
    let scene = Scene::new(User::Root);
    scene.mount(&["-oallow_other", "--log-file=log"]);
    let daemon = scene.daemon();
    let (uid, gid) = crate::common::test_user();
    let mut command = std::process::Command::new(crate::common::LATCHFS);
    command.uid(uid).gid(gid);
    let output = crate::common::finish(command.arg("umount").arg(&scene.point));
    scene.check_refusal(&output, 8, "as root");
    assert_eq!(scene.daemon(), daemon);
    assert!(crate::common::alive(daemon));
    scene.unmount();
}

#[test]
fn a_backing_inside_or_around_one_that_is_served_is_refused() {
    for user in [User::Root, User::Ordinary] {
        let scene = Scene::new(user);
        std::fs::create_dir_all(scene.dir.join("backing/inner")).expect("mkdir");
        std::fs::create_dir_all(scene.dir.join("other")).expect("mkdir");
        let mounted = scene.latchfs(["mount", "--log-file=log", "backing", "point"]);
        assert!(mounted.status.success(), "{}", text(&mounted.stderr));
        let daemon = scene.daemon();
        for backing in ["backing/inner", "."] {
            let output = scene.latchfs(["mount", backing, "other"]);
            let said = text(&output.stderr);
            assert!(said.lines().count() == 1, "{said}");
            assert!([Some(4), Some(5)].contains(&output.status.code()), "{said}");
        }
        let output = scene.latchfs(["umount", "point"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        scene.check_gone(daemon);
    }
}
