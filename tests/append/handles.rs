//! What a handle with `O_APPEND` does, one at a time.

use crate::common::{as_each_user, options, text};
use std::fs;

#[test]
fn an_append_is_seen_at_once_and_nobody_waits_for_it() {
    as_each_user(|mount| {
        let mut writer = mount.spawn_python(
            "f = os.open('log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n\
             while line := hear():\n    os.write(f, line.encode() + b'\\n'); say('written')",
        );
        for (line, all) in [("one", "one\n"), ("two", "one\ntwo\n")] {
            writer.tell(line);
            writer.expect("written");
            assert_eq!(mount.read("log"), all);
            assert_eq!(mount.read_behind("log"), all);
            let length = fs::metadata(mount.behind("log")).expect("stat").len();
            assert_eq!(mount.run("sh", "stat -c %s log").trim(), length.to_string());
        }
        // Another appender does not wait either.
        mount.run("sh", "echo three >> log");
        writer.tell("four");
        writer.expect("written");
        assert_eq!(mount.read("log"), "one\ntwo\nthree\nfour\n");
        writer.succeed();
    });
}

#[test]
fn a_killed_appender_leaves_what_it_wrote() {
    as_each_user(|mount| {
        let writer = mount.spawn_python(
            "f = open('log', 'a'); f.write('kept\\n'); f.flush(); say('written'); hear()",
        );
        writer.expect("written");
        writer.signal("KILL");
        drop(writer);
        assert_eq!(mount.read("log"), "kept\n");
    });
}

#[test]
fn tail_follows_a_log_that_is_appended_to() {
    as_each_user(|mount| {
        mount.run("sh", "echo old > log");
        let tail = mount.spawn("sh", "exec tail -n +1 -s 0.05 -f log");
        tail.expect("old");
        for n in 0..3 {
            mount.run("sh", &format!("echo {n} >> log"));
            tail.expect(&n.to_string());
        }
        let by_name = mount.spawn("sh", "exec tail -n +1 -s 0.05 -F log");
        for line in ["old", "0", "1", "2"] {
            by_name.expect(line);
        }
        mount.run("sh", "echo more >> log");
        by_name.expect("more");
        tail.expect("more");
    });
}

#[test]
fn a_reader_that_has_read_to_the_end_reads_on() {
    as_each_user(|mount| {
        mount.run("sh", "printf 'first part,' > f");
        let mut reader = mount.spawn_python(
            "f = open('f', 'rb', buffering=0)\nm = mmap.mmap(f.fileno(), 11, prot=mmap.PROT_READ)\n\
             while hear():\n    say(f.read(), os.fstat(f.fileno()).st_size, m[:])",
        );
        reader.tell("go");
        reader.expect("b'first part,' 11 b'first part,'");
        // The last page of what it has read grows.
        mount.run("sh", "printf ' second' >> f");
        reader.tell("go");
        reader.expect("b' second' 18 b'first part,'");
        mount.run("sh", "printf ' third' >> f");
        reader.tell("go");
        reader.expect("b' third' 24 b'first part,'");
        reader.succeed();
    });
}

#[test]
fn the_offset_after_an_append_is_the_end_of_the_file() {
    as_each_user(|mount| {
        let said = mount.python(
            "f = os.open('f', os.O_RDWR | os.O_CREAT | os.O_APPEND)\n\
             g = os.open('f', os.O_WRONLY | os.O_APPEND)\n\
             os.write(f, b'ab'); os.write(g, b'cd'); os.write(f, b'ef')\n\
             assert os.lseek(f, 0, os.SEEK_CUR) == 6, os.lseek(f, 0, os.SEEK_CUR)\n\
             os.pwrite(f, b'gh', 0)\n\
             assert os.lseek(g, 0, os.SEEK_END) == 8\n\
             say(os.pread(f, 100, 0), os.fstat(f).st_size)\n\
             try: os.read(g, 1)\nexcept OSError as e: say(e.strerror)",
        );
        assert_eq!(said, "b'abcdefgh' 8\nBad file descriptor\n");
    });
}

#[test]
fn one_thread_with_both_waits_for_nobody() {
    as_each_user(|mount| {
        mount.python(
            "a = os.open('f', os.O_WRONLY | os.O_CREAT | os.O_APPEND); os.write(a, b'log ')\n\
             w = os.open('f', os.O_RDWR); os.write(w, b'LOG '); os.write(a, b'own ')\n\
             os.close(w); os.write(a, b'end'); os.close(a)",
        );
        assert_eq!(mount.read("f"), "LOG own end");
        assert_eq!(mount.read_behind("f"), "LOG own end");
    });
}

#[test]
fn a_handle_follows_its_file_through_truncation_rename_and_removal() {
    as_each_user(|mount| {
        let mut log = mount.spawn_python(
            "f = os.open('log', os.O_RDWR | os.O_CREAT | os.O_APPEND)\n\
             while line := hear():\n    os.write(f, line.encode()); say(os.pread(f, 100, 0))",
        );
        log.tell("one");
        log.expect("b'one'");
        mount.run("sh", ": > log");
        log.tell("two");
        log.expect("b'two'");
        assert_eq!(mount.read_behind("log"), "two");
        mount.run("sh", "truncate -s 1 log");
        log.tell("three");
        log.expect("b'tthree'");
        mount.run("sh", "mv log old; echo new > log");
        log.tell("four");
        log.expect("b'tthreefour'");
        assert_eq!(
            (mount.read("old").as_str(), mount.read("log").as_str()),
            ("tthreefour", "new\n")
        );
        mount.run("sh", "mv log old");
        log.tell("five");
        log.expect("b'tthreefourfive'");
        assert_eq!(mount.read("old"), "new\n");
        log.succeed();
    });
}

#[test]
fn ftruncate_through_an_append_handle_leaves_readers_their_version() {
    as_each_user(|mount| {
        mount.run("sh", "echo content >> f");
        let mut reader = mount.spawn_python("f = open('f'); say('open'); hear(); say(f.read())");
        reader.expect("open");
        mount.python("f = open('f', 'a'); f.truncate(0); f.write('new'); f.close()");
        reader.tell("read");
        reader.expect("content");
        assert_eq!(mount.read("f"), "new");
        mount.python(
            "f = open('g', 'a+'); os.unlink('g'); f.write('abc'); f.flush(); f.truncate(1)\n\
             f.write('d'); f.seek(0); assert f.read() == 'ad'",
        );
    });
}

#[test]
fn o_append_with_o_trunc_is_a_version_of_its_own() {
    as_each_user(|mount| {
        mount.run("sh", "echo old > f");
        let mut writer = mount.spawn_python(
            "f = os.open('f', os.O_WRONLY | os.O_TRUNC | os.O_APPEND); os.write(f, b'new'); say('written')\n\
             hear(); os.close(f)",
        );
        writer.expect("written");
        assert_eq!(mount.read_behind("f"), "old\n");
        writer.tell("close");
        writer.succeed();
        assert_eq!(mount.read("f"), "new");
    });
}

/// 24 MiB, in memory.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        let at = tempfile::tempdir().expect("a directory");
        let mut mount = std::process::Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=24m", "none"])
            .arg(at.path());
        assert!(mount.status().expect("mount").success());
        Self(at)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(self.0.path())
            .status();
    }
}

#[test]
fn what_a_full_disk_has_no_room_for_is_not_there_at_all() {
    let disk = SmallDisk::new();
    let mount = options().backing(disk.0.path()).mount();
    let said = mount.python(
        "f = os.open('log', os.O_RDWR | os.O_CREAT | os.O_APPEND); n = 0\n\
         record = b'x' * 999_999 + b'\\n'\n\
         while True:\n\
         \x20   try: assert os.write(f, record) == len(record); n += 1\n\
         \x20   except OSError as e: say(errno.errorcode[e.errno]); break\n\
         assert os.fstat(f).st_size == n * len(record), (os.fstat(f).st_size, n)\n\
         assert 5 < n < 26, n\n\
         os.close(f)",
    );
    assert_eq!(said, "ENOSPC\n");
    let length = fs::metadata(mount.behind("log")).expect("stat").len();
    assert_eq!(length % 1_000_000, 0);
    mount.unmount();
}

#[test]
fn dev_stdout_of_a_program_whose_output_is_a_log_appends_to_it() {
    as_each_user(|mount| {
        mount.run(
            "sh",
            "{ echo one; echo two > /dev/stderr; echo three | tee /dev/stdout; } >> log 2>&1",
        );
        assert_eq!(mount.read("log"), "one\ntwo\nthree\nthree\n");
    });
}

#[test]
fn a_write_by_an_ordinary_user_clears_set_user_id_of_a_file_it_appends_to() {
    let mount = options().user(crate::common::User::Ordinary).mount();
    mount.run("sh", "echo x > f; chmod 6755 f; echo y >> f");
    assert_eq!(mount.run("sh", "stat -c %a f"), "755\n");
    mount.unmount();
}

#[test]
fn a_file_that_chattr_allows_only_to_be_appended_to_is() {
    let mount = options().mount();
    mount.run("sh", "echo one > log");
    let chattr = |flag: &str| {
        let mut chattr = std::process::Command::new("chattr");
        let output = chattr
            .arg(flag)
            .arg(mount.behind("log"))
            .output()
            .expect("chattr");
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    chattr("+a");
    let result = std::panic::catch_unwind(|| {
        mount.run("sh", "echo two >> log; ! (echo x > log) 2>&1");
        assert_eq!(mount.read("log"), "one\ntwo\n");
    });
    chattr("-a");
    result.expect("as on a disk");
    mount.unmount();
}

#[test]
fn a_user_who_may_write_the_file_but_not_the_directory_appends_to_it() {
    let mount = options().arg("-o").arg("allow_other").mount();
    let (uid, gid) = crate::common::test_user();
    mount.run("sh", "echo one > log; ln log other");
    std::os::unix::fs::chown(mount.behind("log"), Some(uid), Some(gid)).expect("chown");
    let before = fs::metadata(mount.behind("log")).expect("stat");
    let mut command = mount.command("sh");
    std::os::unix::process::CommandExt::uid(&mut command, uid);
    let output = crate::common::finish(
        command
            .args(["-c", "echo two >> log"])
            .current_dir(mount.point()),
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(mount.read("other"), "one\ntwo\n");
    let after = fs::metadata(mount.behind("log")).expect("stat");
    use std::os::unix::fs::MetadataExt;
    assert_eq!((before.ino(), before.nlink()), (after.ino(), after.nlink()));
    mount.unmount();
}

#[test]
fn appending_behind_the_mount_loses_nothing() {
    as_each_user(|mount| {
        let mut log = mount.spawn_python(
            "f = os.open('log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n\
             while line := hear():\n    os.write(f, line.encode() + b'\\n'); say('written')",
        );
        log.tell("one");
        log.expect("written");
        let mut behind = fs::File::options()
            .append(true)
            .open(mount.behind("log"))
            .expect("open");
        std::io::Write::write_all(&mut behind, b"behind\n").expect("write");
        log.tell("two");
        log.expect("written");
        assert_eq!(mount.read("log"), "one\nbehind\ntwo\n");
        assert!(
            mount
                .log()
                .contains("its length was changed behind the mount"),
            "{}",
            mount.log()
        );
        log.succeed();
    });
}

#[test]
fn locks_on_append_handles_exclude_each_other() {
    as_each_user(|mount| {
        let mut holder = mount.spawn_python(
            "import fcntl\nf = open('log', 'a'); fcntl.flock(f, fcntl.LOCK_EX); say('locked'); hear()",
        );
        holder.expect("locked");
        let refused = "import fcntl\nf = open('log', 'a')\n\
                       try: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB); say('got it')\n\
                       except BlockingIOError: say('refused')";
        assert_eq!(mount.python(refused), "refused\n");
        holder.tell("end");
        holder.succeed();
        assert_eq!(mount.python(refused), "got it\n");
    });
}

#[test]
fn thousands_of_logs_can_be_open_at_once() {
    let mount = options().arg("--durability=none").mount();
    mount.python(
        "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))\n\
         logs = [open(f'log{n}', 'a') for n in range(2000)]\n\
         for round in range(2):\n\
         \x20   for n, log in enumerate(logs): log.write(f'{n} {round}\\n'); log.flush()\n\
         for log in logs[:50]: log.close()",
    );
    assert_eq!(mount.read_behind("log1999"), "1999 0\n1999 1\n");
    mount.unmount();
    assert_eq!(mount.store("append"), [""; 0]);
}

#[test]
fn a_rule_decides_whether_o_append_makes_records_or_versions() {
    let home = tempfile::tempdir().expect("a directory");
    let config = home.path().join("config.toml");
    let rules = "[[rule]]\nmatch = \"*.log\"\npolicy = \"append\"\n\
                 [[rule]]\nmatch = \"*.txt\"\npolicy = \"atomic\"\n";
    fs::write(&config, rules).expect("write");
    let mount = options()
        .arg(format!("--config={}", config.display()))
        .mount();
    let mut writer = mount.spawn_python(
        "flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND\n\
         def opened(name, more=0):\n    f = os.open(name, flags | more); os.write(f, b'new'); return f\n\
         files = []\n\
         while line := hear():\n\
         \x20   name, how = line.split()\n\
         \x20   files.append(opened(name, os.O_TRUNC if how == 'emptied-' else 0)); say('written')",
    );
    mount.run(
        "sh",
        "for f in a.log b.log a.txt a.json; do echo '\"old\"' > $f; done",
    );
    for (name, how, then) in [
        ("a.log", "", "\"old\"\nnew"),
        ("b.log", "emptied", "new"),
        ("a.txt", "", "\"old\"\n"),
        // What is to be valid JSON is validated as a whole.
        ("a.json", "", "\"old\"\n"),
    ] {
        writer.tell(&format!("{name} {how}-"));
        writer.expect("written");
        assert_eq!(mount.read_behind(name), then, "{name}");
    }
    writer.signal("KILL");
    drop(writer);
    mount.unmount();
    assert_eq!(mount.read_behind("a.txt"), "\"old\"\n");
}
