//! Nothing piles up in the daemon: no descriptors, and no memory to speak of.

mod common;

use common::{Mount, as_each_user, wait_until};
use std::fs;

/// Runs the script a few times to warm up, then as it is asked to, and checks that the daemon has
/// as many descriptors as before, and at most 20 MiB more.
#[track_caller]
fn check(mount: &Mount, script: &str, times: usize) {
    let run = |times: usize| mount.python(&format!("for n in range({times}):\n{script}"));
    run(times / 10);
    let settled = || {
        let before = mount.descriptors();
        wait_until("it is at rest", || mount.descriptors() <= before);
        (mount.descriptors(), mount.memory())
    };
    let (fds, kib) = settled();
    run(times);
    wait_until("all descriptors are closed", || mount.descriptors() <= fds);
    let grown = mount.memory().saturating_sub(kib);
    assert!(grown < 20 * 1024, "{grown} KiB more");
}

#[test]
fn writing_renaming_and_removing_files_leaks_nothing() {
    as_each_user(|mount| {
        let script = "    name = 'file %d' % n\n\
            \x20   with open(name, 'w') as f: f.write('x' * 5000)\n\
            \x20   with open(name, 'r+') as f: f.write('y')\n\
            \x20   open(name).read()\n\
            \x20   os.rename(name, 'renamed'); open('renamed').read()\n\
            \x20   os.unlink('renamed')\n";
        check(mount, script, 2000);
        assert_eq!(mount.bash("ls"), "");
    });
}

#[test]
fn updates_of_one_file_leak_nothing() {
    as_each_user(|mount| {
        let script = "    with open('f', 'w') as f: f.write('x' * 5000)\n\
            \x20   os.stat('f'); open('f').read(); os.truncate('f', 100)\n";
        check(mount, script, 2000);
    });
}

#[test]
fn writers_that_die_and_opens_that_fail_leak_nothing() {
    as_each_user(|mount| {
        mount.bash("echo x > f; chmod 600 f");
        let script = "    pid = os.fork()\n\
            \x20   if pid == 0:\n\
            \x20       a = open('f', 'w'); a.write('half'); a.flush(); b = open('new %d' % n, 'w'); b.write('x'); b.flush()\n\
            \x20       os.kill(os.getpid(), signal.SIGKILL)\n\
            \x20   os.waitpid(pid, 0)\n\
            \x20   try: os.open('f', os.O_CREAT | os.O_EXCL)\n\
            \x20   except OSError: pass\n\
            \x20   try: os.open('none', os.O_WRONLY)\n\
            \x20   except OSError: pass\n";
        check(mount, script, 200);
        assert_eq!(mount.bash("ls; cat f"), "f\nx\n");
    });
}

#[test]
fn directories_and_listings_leak_nothing() {
    as_each_user(|mount| {
        let script = "    os.makedirs('d%d/e' % n); open('d%d/e/f' % n, 'w').close(); os.listdir('d%d' % n)\n\
            \x20   os.symlink('x', 'd%d/s' % n); os.link('d%d/e/f' % n, 'd%d/g' % n); os.rename('d%d' % n, 'd')\n\
            \x20   os.unlink('d/g'); os.unlink('d/e/f'); os.rmdir('d/e'); os.unlink('d/s'); os.rmdir('d')\n";
        check(mount, script, 2000);
        assert_eq!(mount.bash("ls"), "");
    });
}

// Five thousand, ended by exit and by kill: tests/writers_leftovers.rs.
#[test]
fn a_thousand_open_files_are_given_back() {
    as_each_user(|mount| {
        let fds = mount.descriptors();
        let said = mount.python(
            "import resource\n\
             hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n\
             resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))\n\
             count = min(1000, hard - 100)\n\
             files = [open('f%d' % n, 'w') for n in range(count)]\n\
             for f in files: f.write('x')\n\
             for f in files: f.close()\n\
             say(len(os.listdir('.')) == count)\n\
             files = [open('f%d' % n) for n in range(count)]\n\
             say(all(f.read() == 'x' for f in files))\n\
             for f in files: f.close()",
        );
        assert_eq!(said, "True\nTrue\n");
        // All of it: also the few directories it may keep open.
        wait_until("all descriptors are closed", || {
            mount.descriptors() <= fds + 1
        });
    });
}

/// Threads of the daemon.
fn threads(mount: &Mount) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", mount.daemon()));
    tasks.expect("its threads").count()
}

#[test]
fn threads_that_many_closes_at_once_needed_end() {
    as_each_user(|mount| {
        let before = threads(mount);
        mount.python(
            "def write(n):\n    for turn in range(50):\n        \
                 with open('f%d' % n, 'w') as f: f.write('x')\n\
             writers = [threading.Thread(target=write, args=[n]) for n in range(40)]\n\
             for w in writers: w.start()\n\
             for w in writers: w.join()",
        );
        // One or two may be at work when a mount is asked how it is.
        wait_until("its threads have ended", || threads(mount) <= before + 2);
    });
}
