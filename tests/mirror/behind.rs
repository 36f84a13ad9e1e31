//! What is made and removed directly in BACKING is seen soon: the kernel believes a name for a
//! second, so these tests wait, under the deadline, for what they expect.

use crate::common::{options, wait_until};
use crate::pair::BOTH;
use std::fs;
use std::os::unix::fs::{chown, symlink};

#[test]
fn a_file_made_in_backing_is_visible() {
    for user in BOTH {
        let mount = options().user(user).mount();
        assert_eq!(
            mount.bash("ls; cat f 2> /dev/null || echo missing"),
            "missing\n"
        );
        fs::create_dir(mount.behind("d")).expect("mkdir");
        fs::write(mount.behind("d/f"), "made behind").expect("write");
        fs::write(mount.behind("f"), "made behind").expect("write");
        symlink("f", mount.behind("s")).expect("symlink");
        let (uid, gid) = crate::common::test_user();
        for name in ["d", "d/f", "f"] {
            chown(mount.behind(name), Some(uid), Some(gid)).expect("chown");
        }
        wait_until("the file is seen", || mount.read("f") == "made behind");
        assert_eq!(mount.read("d/f"), "made behind");
        assert_eq!(mount.read("s"), "made behind");
        assert_eq!(mount.bash("ls"), "d\nf\ns\n");
        mount.bash("echo changed > f; echo changed > d/f; rm s");
        assert_eq!(mount.read_behind("f"), "changed\n");
        assert_eq!(mount.read_behind("d/f"), "changed\n");
        assert!(!mount.behind("s").exists());
    }
}

#[test]
fn a_file_removed_from_backing_is_gone() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("mkdir d; echo x > f; echo y > d/f; cat f d/f; ls -l . d");
        fs::remove_file(mount.behind("f")).expect("rm");
        fs::remove_dir_all(mount.behind("d")).expect("rm -r");
        let gone = |script: &str| !mount.try_run("sh", script).status.success();
        wait_until("the file is gone", || gone("cat f"));
        wait_until("the directory is gone", || gone("stat d"));
        assert_eq!(mount.bash("ls"), "");
        // The names are free.
        mount.bash("echo new > f; mkdir d; echo new > d/f");
        assert_eq!(mount.read_behind("f"), "new\n");
        assert_eq!(mount.read("d/f"), "new\n");
    }
}

#[test]
fn names_moved_in_backing_are_found_where_they_are() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("mkdir d; echo a > a; echo b > d/b; cat a d/b");
        fs::rename(mount.behind("a"), mount.behind("d/a")).expect("mv");
        fs::rename(mount.behind("d"), mount.behind("e")).expect("mv");
        wait_until("the new name is seen", || mount.read("e/a") == "a\n");
        wait_until("the old names are gone", || {
            mount.bash("cat a d/b d/a 2> /dev/null; :").is_empty()
        });
        assert_eq!(mount.read("e/b"), "b\n");
        mount.bash("echo more >> e/a");
        assert_eq!(mount.read_behind("e/a"), "a\nmore\n");
    }
}
