//! The policy `direct`: databases, lock files, pid files and swap files are opened as they are in
//! BACKING, without versions and turns.

mod common;

use common::{Mount, Running, User, as_each_user, options, wait_until};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;

/// A program that has a file open for writing, has written to it, and stays.
fn writer_of(mount: &Mount, name: &str) -> Running {
    let writer = mount.spawn_python(&format!(
        "f = open('{name}', 'r+b', buffering=0)\nf.write(b'first')\nsay('open')\nhear()\n\
         f.seek(0)\nf.write(b'other')\nsay('written')\nhear()\n"
    ));
    writer.expect("open");
    writer
}

#[test]
fn two_programs_write_a_database_at_once_and_see_each_other() {
    as_each_user(|mount| {
        mount.bash("echo ..... > app.db");
        let mut first = writer_of(mount, "app.db");
        let mut second = writer_of(mount, "app.db");
        assert_eq!(mount.read("app.db"), "first\n");
        assert_eq!(mount.read_behind("app.db"), "first\n");
        for writer in [&mut first, &mut second] {
            writer.tell("go on");
            writer.expect("written");
            assert_eq!(mount.read_behind("app.db"), "other\n");
        }
        assert_eq!(mount.read("app.db"), "other\n");
    });
}

#[test]
fn the_same_two_programs_take_turns_at_an_atomic_file() {
    // The negative control of the test above.
    let mount = options().arg("--lock-timeout=100ms").mount();
    mount.bash("echo ..... > app.dat");
    let _first = writer_of(&mount, "app.dat");
    let out = mount.try_python("open('app.dat', 'r+b')");
    assert!(common::text(&out.stderr).contains("TimeoutError"));
    assert_eq!(mount.read_behind("app.dat"), ".....\n");
}

#[test]
fn a_killed_writer_of_a_direct_file_leaves_what_it_wrote() {
    as_each_user(|mount| {
        let mut writer = mount.spawn_python(
            "f = open('daemon.pid', 'w')\nf.write('123')\nf.flush()\nsay('written')\nhear()\n",
        );
        writer.expect("written");
        assert_eq!(mount.read("daemon.pid"), "123");
        writer.signal("KILL");
        writer.wait();
        assert_eq!(mount.read_behind("daemon.pid"), "123");
    });
}

#[test]
fn sqlite_databases_take_two_writing_processes() {
    as_each_user(|mount| {
        for (name, mode) in [("journal.db", "delete"), ("wal.sqlite3", "wal")] {
            mount.bash(&format!(
                "sqlite3 {name} 'pragma journal_mode={mode}; create table t(n integer)' >&2"
            ));
            let script = format!(
                "import sqlite3\ndb = sqlite3.connect('{name}', timeout=60)\n\
                 for n in range(100):\n    with db: db.execute('insert into t values(?)', (n,))\n\
                 db.close()\n"
            );
            let mut both = [mount.spawn_python(&script), mount.spawn_python(&script)];
            both.iter_mut().for_each(Running::succeed);
            let check = mount.bash(&format!(
                "sqlite3 {name} 'pragma integrity_check; select count(*), sum(n) from t'"
            ));
            assert_eq!(check, "ok\n200|9900\n", "{name}");
        }
    });
}

#[test]
fn a_shared_mapping_of_a_direct_file_is_shared_by_processes() {
    as_each_user(|mount| {
        mount.bash("head -c 8192 /dev/zero > shared.db-shm");
        let map =
            "import mmap\nf = open('shared.db-shm', 'r+b')\nm = mmap.mmap(f.fileno(), 8192)\n";
        let mut reader = mount.spawn_python(&format!(
            "{map}say('mapped')\nhear()\nsay(m[5000:5005].decode())\n"
        ));
        reader.expect("mapped");
        mount.python(&format!("{map}m[5000:5005] = b'hello'\n"));
        reader.tell("look");
        reader.expect("hello");
        reader.succeed();
        let written = fs::read(mount.behind("shared.db-shm")).expect("read");
        wait_until("the page to be written", || {
            &written[5000..5005] == b"hello"
        });
    });
}

#[test]
fn appenders_to_a_direct_file_lose_no_line() {
    as_each_user(|mount| {
        let script = "import os\nf = os.open('all.lock', os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n\
                      for n in range(500): os.write(f, b'%05d %05d\\n' % (os.getpid() % 99999, n))\n";
        let mut all: Vec<Running> = (0..4).map(|_| mount.spawn_python(script)).collect();
        // Behind the mount's back, too: where the end is, BACKING decides.
        let outside = "import sys\nf = open(sys.argv[1], 'ab', buffering=0)\n\
                       for n in range(500): f.write(b'outside %03d\\n' % n)\n";
        let path = mount.behind("all.lock");
        wait_until("the file to be there", || path.exists());
        let mut outsider = mount.command("python3");
        assert!(
            outsider
                .args(["-c", outside])
                .arg(&path)
                .status()
                .expect("python")
                .success()
        );
        all.iter_mut().for_each(Running::succeed);
        let text = mount.read_behind("all.lock");
        assert_eq!(text.lines().count(), 2500);
        assert!(text.lines().all(|line| line.len() == 11));
    });
}

#[test]
fn a_direct_file_that_was_removed_is_there_for_those_who_have_it_open() {
    as_each_user(|mount| {
        mount.python(
            "f = open('temp.db', 'w+b', buffering=0)\nf.write(b'12345')\nos.unlink('temp.db')\n\
             f.write(b'678')\n\
             assert os.fstat(f.fileno()).st_size == 8 and os.fstat(f.fileno()).st_nlink == 0\n\
             again = open(f'/proc/self/fd/{f.fileno()}', 'r+b', buffering=0)\n\
             assert again.read() == b'12345678'\nagain.write(b'9')\n\
             f.truncate(3)\nf.seek(0)\nassert f.read() == b'123'\n\
             assert not os.path.exists('temp.db')\n\
             f = open('other.db', 'w+')\nos.rename('other.db', 'h')\nopen('h').close()\n\
             os.unlink('h')\nopen(f'/proc/self/fd/{f.fileno()}').close()\n",
        );
        assert!(!mount.behind("temp.db").exists());
    });
}

#[test]
fn a_direct_file_is_truncated_under_its_readers() {
    as_each_user(|mount| {
        mount.python(
            "open('a.db', 'w').write('12345678')\nr = open('a.db', 'rb', buffering=0)\n\
             os.truncate('a.db', 4)\nassert r.read() == b'1234'\n\
             with open('a.db', 'r+') as f: f.truncate(2)\n\
             assert os.stat('a.db').st_size == 2\n\
             open('a.db', 'w').close()\nassert os.fstat(r.fileno()).st_size == 0\n",
        );
    });
}

#[test]
fn a_direct_file_renamed_to_an_atomic_name_is_atomic_from_then_on() {
    as_each_user(|mount| {
        mount.bash("echo old > f.lock; exec 3<>f.lock; mv f.lock f; exec 3>&-; echo new > f");
        let mut writer = mount.spawn_python(
            "f = open('f', 'w')\nf.write('half')\nf.flush()\nsay('half')\nhear()\nf.close()\n",
        );
        writer.expect("half");
        assert_eq!(mount.read_behind("f"), "new\n");
        writer.tell("close");
        writer.succeed();
        assert_eq!(mount.read_behind("f"), "half");
    });
}

#[test]
fn a_file_renamed_while_it_is_open_is_used_both_ways() {
    as_each_user(|mount| {
        mount.bash("echo old > f.dat");
        // Its handle stays the version it opened ...
        let mut reader = mount.spawn_python(
            "f = open('f.dat', buffering=1)\nsay('open')\nhear()\nsay(f.read().strip())\n",
        );
        reader.expect("open");
        mount.bash("mv f.dat f.db");
        let mut direct = mount.spawn_python(
            "f = open('f.db', 'r+b', buffering=0)\nf.seek(4)\nf.write(b'more\\n')\nsay('written')\n\
             hear()\nf.write(b'last\\n')\n",
        );
        direct.expect("written");
        assert_eq!(mount.read("f.db"), "old\nmore\n");
        mount.bash("mv f.db f.dat; echo new > f.dat");
        assert_eq!(mount.read("f.dat"), "new\n");
        // ... and that of a direct file the inode it opened.
        direct.tell("go on");
        direct.succeed();
        assert_eq!(mount.read("f.dat"), "new\n");
        reader.tell("read");
        reader.hear();
        reader.succeed();
    });
}

#[test]
fn files_that_package_managers_call_lock_are_atomic() {
    let mount = common::mount();
    let mut writer = mount.spawn_python(
        "f = open('Cargo.lock', 'w')\nf.write('x')\nf.flush()\nsay('written')\nhear()\n",
    );
    writer.expect("written");
    assert!(!mount.behind("Cargo.lock").exists());
    writer.tell("close");
    writer.succeed();
    assert_eq!(mount.read_behind("Cargo.lock"), "x");
}

#[test]
fn a_write_by_an_ordinary_user_clears_set_user_id_of_a_direct_file() {
    let mount = options().arg("-oallow_other").mount();
    let (uid, gid) = common::test_user();
    let path = mount.behind("tool.db");
    fs::write(&path, "old").expect("write");
    let set = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
    let mode = || fs::metadata(&path).expect("stat").mode() & 0o7777;
    for script in [
        "with open('tool.db', 'r+') as f: f.write('n')",
        "os.truncate('tool.db', 1)",
        "open('tool.db', 'w')",
        "with open('tool.db', 'r+') as f: os.posix_fallocate(f.fileno(), 0, 100)",
    ] {
        std::os::unix::fs::chown(&path, Some(uid), Some(gid)).expect("chown");
        set(0o6755);
        let mut python = std::process::Command::new("python3");
        python.args(["-c", &format!("import os\n{script}")]);
        python.uid(uid).gid(gid).current_dir(mount.point());
        assert!(common::finish(&mut python).status.success(), "{script}");
        assert_eq!(mode(), 0o755, "{script}");
    }
}

#[test]
fn a_direct_file_that_becomes_a_version_is_made_durable_first() {
    // The order of the daemon's calls, since a power cut can't be had here.
    let mount = options().user(User::Root).mount();
    mount.bash("echo data > index.lock; echo old > index");
    let trace = tempfile::NamedTempFile::new().expect("a file");
    let daemon = mount.daemon();
    let mut strace = mount
        .command("strace")
        .args([
            "-f",
            "-qq",
            "-e",
            "trace=fsync,fdatasync,renameat,renameat2",
        ])
        .arg("-o")
        .arg(trace.path())
        .args(["-p", &daemon.to_string()])
        .spawn()
        .expect("strace");
    wait_until("strace to be attached", || {
        fs::read_to_string(format!("/proc/{daemon}/status"))
            .is_ok_and(|status| !status.contains("TracerPid:\t0"))
    });
    mount.bash("mv index.lock index; cat index >&2");
    // Not SIGINT, by which it could stop the threads that it lets go.
    common::kill(strace.id(), "KILL");
    strace.wait().expect("strace");
    let calls = fs::read_to_string(trace.path()).expect("the trace");
    let at = |call: &str| {
        calls
            .find(call)
            .unwrap_or_else(|| panic!("no {call} in\n{calls}"))
    };
    assert!(at("fsync(") < at("renameat"), "{calls}");
    assert!(calls.rfind("fsync(") > Some(at("renameat")), "{calls}");
    assert_eq!(mount.read_behind("index"), "data\n");
}
