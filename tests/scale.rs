//! Many files, wide directories, deep ones: that they work, and what the daemon takes for them.
//! scripts/scale measures the same with a million files.

mod common;

use common::{Mount, as_each_user, mount, wait_until};
use std::fs;

const DIRECTORIES: u64 = 1000;
const PER_DIRECTORY: u64 = 20;
/// All that is in the tree.
const INODES: u64 = DIRECTORIES * (PER_DIRECTORY + 1);

/// Bytes of memory of the daemon.
fn memory(mount: &Mount) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", mount.daemon()));
    let status = status.expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    1024 * number.expect("a number").parse::<u64>().expect("a number")
}

fn descriptors(mount: &Mount) -> usize {
    let fds = fs::read_dir(format!("/proc/{}/fd", mount.daemon()));
    fds.expect("its descriptors").count()
}

/// How many inodes the daemon still knew when it gave memory back last.
fn known(mount: &Mount) -> Option<u64> {
    let log = mount.log();
    let line = log
        .lines()
        .rfind(|line| line.contains("memory is given back"))?;
    let words = line.rsplit(", ").next()?;
    words.split(' ').next()?.parse().ok()
}

fn make_tree(mount: &Mount) {
    fs::create_dir(mount.behind("tree")).expect("mkdir");
    for d in 0..DIRECTORIES {
        let dir = mount.behind(&format!("tree/directory {d:04}"));
        fs::create_dir(&dir).expect("mkdir");
        for n in 0..PER_DIRECTORY {
            fs::write(dir.join(format!("file {d:04} {n:02}.txt")), "").expect("a file");
        }
    }
}

#[test]
fn an_inode_that_the_kernel_knows_takes_at_most_600_bytes_and_gives_them_back() {
    let mount = mount();
    make_tree(&mount);
    // The first requests start the daemon's threads.
    mount.bash("ls; cat 'tree/directory 0000/file 0000 00.txt'");
    let before = memory(&mount);
    let look = "find tree -ls | sed 's/^ *//' | sort -k 11";
    let seen = mount.bash(look);
    assert_eq!(seen.lines().count() as u64, INODES + 1);
    let behind = format!("cd '{}' && {look}", mount.backing().display());
    assert!(
        seen == mount.bash(&behind),
        "another listing than in BACKING"
    );
    let full = memory(&mount);
    let each = full.saturating_sub(before) / INODES;
    assert!(each <= 600, "{each} bytes for each inode");
    assert!(
        each >= 50,
        "{each} bytes: the kernel did not cache the tree"
    );
    assert!(descriptors(&mount) < 1024);

    // Dentries and inodes; no pages, which other tests use.
    fs::write("/proc/sys/vm/drop_caches", "2").expect("drop_caches");
    wait_until("the kernel has forgotten most", || {
        known(&mount).is_some_and(|known| known < INODES / 4)
    });
    let enough = before + (full - before) / 2;
    wait_until("half of the memory is given back", || {
        memory(&mount) < enough
    });
    wait_until("all directories are closed", || descriptors(&mount) < 100);
    assert!(seen == mount.bash(look), "another listing than before");
    mount.unmount();
}

#[test]
fn a_wide_directory_is_listed_whole_and_removed_while_another_creates_in_it() {
    as_each_user(|mount| {
        // Behind the mount: each file made through it would be a commit.
        mount.bash("mkdir wide");
        for n in 1..=10_000 {
            fs::write(mount.behind(&format!("wide/entry {n:05}")), "").expect("a file");
        }
        let said =
            mount.bash("ls -U wide | wc -l; ls -U wide | sort -u | wc -l; ls wide | tail -n 1");
        assert_eq!(said, "10000\n10000\nentry 10000\n");
        mount.bash(
            "(until [ ! -e wide ]; do echo x > \"wide/new $((n++))\"; done) 2>/dev/null &\n\
             for try in {1..1000}; do rm -r wide 2>/dev/null && break; done; wait; [ ! -e wide ]",
        );
        assert_eq!(mount.bash("ls"), "");
    });
}

#[test]
fn directories_work_at_any_depth() {
    as_each_user(|mount| {
        // More than the daemon keeps open, and more than a path may have.
        let said = mount.python(
            "depth = 1500\n\
             for n in range(depth): os.mkdir('directory'); os.chdir('directory')\n\
             open('f', 'w').write('x')\n\
             deepest = os.open('.', os.O_RDONLY)\n\
             for n in range(depth): os.chdir('..')\n\
             say(os.listdir())\n\
             for n in range(700): os.chdir('directory'); os.stat('directory')\n\
             os.fchdir(deepest)\n\
             open('f', 'a').write('y'); say(open('f').read(), os.listdir())\n\
             os.unlink('f')\n\
             for n in range(depth): os.chdir('..'); os.rmdir('directory')\n\
             say(os.listdir())",
        );
        assert_eq!(said, "['directory']\nxy ['f']\n[]\n");
    });
}
