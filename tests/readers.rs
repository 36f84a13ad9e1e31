//! Opens for reading while a version is being written (R1, R3, W5): who waits, for how long, and
//! what everyone else sees meanwhile.

mod common;

use common::{Mount, Running, User, options, wait_until_parked};
use std::fs;
use std::os::unix::fs::MetadataExt;

const BOTH: [User; 2] = [User::Root, User::Ordinary];

/// A program that has written half of a new version of `name`; told to go on, it writes the rest
/// and closes.
fn writer_of(mount: &Mount, name: &str) -> Running {
    let writer = mount.spawn_python(&format!(
        "f = open('{name}', 'w')\nf.write('new first half, ')\nf.flush()\nsay('half')\nhear()\n\
         f.write('new second half')\nf.close()\nsay('closed')\nhear()\n"
    ));
    writer.expect("half");
    writer
}

/// What the file holds when [`writer_of`] is done.
const NEW: &str = "new first half, new second half";

/// A program that says `ready`, reads `name`, and says what it read or which error it got.
fn reader_of(mount: &Mount, name: &str) -> Running {
    let reader = mount.spawn_python(&format!(
        "say('ready')\ntry:\n    say(open('{name}').read())\nexcept OSError as e:\n    \
         say(errno.errorcode[e.errno])\n"
    ));
    reader.expect("ready");
    reader
}

#[test]
fn an_open_for_reading_waits_for_the_commit_and_then_reads_the_whole_version() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("printf old > f");
        let mut writer = writer_of(&mount, "f");
        let mut reader = reader_of(&mount, "f");
        wait_until_parked(reader.pid(), 1);
        assert!(reader.is_silent());
        assert_eq!(mount.read_behind("f"), "old");
        writer.tell("go on");
        writer.expect("closed");
        reader.expect(NEW);
        reader.succeed();
        writer.succeed();
    }
}

#[test]
fn an_open_for_reading_waits_for_a_file_being_created() {
    for user in BOTH {
        let mount = options().user(user).mount();
        let mut writer = writer_of(&mount, "f");
        let reader = reader_of(&mount, "f");
        wait_until_parked(reader.pid(), 1);
        assert!(reader.is_silent());
        writer.tell("go on");
        writer.expect("closed");
        reader.expect(NEW);
        writer.succeed();
    }
}

#[test]
fn a_reader_that_waits_for_a_writer_who_is_killed_reads_the_old_version() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("printf old > f");
        let mut writer = writer_of(&mount, "f");
        let reader = reader_of(&mount, "f");
        wait_until_parked(reader.pid(), 1);
        writer.signal("KILL");
        writer.wait();
        reader.expect("old");
    }
}

#[test]
fn a_reader_that_waits_for_a_creator_who_is_killed_finds_no_file() {
    for user in BOTH {
        let mount = options().user(user).mount();
        let mut writer = writer_of(&mount, "f");
        let reader = reader_of(&mount, "f");
        wait_until_parked(reader.pid(), 1);
        writer.signal("KILL");
        writer.wait();
        reader.expect("ENOENT");
        assert!(!mount.behind("f").exists());
    }
}

#[test]
fn a_reader_that_waits_longer_than_the_lock_timeout_gets_etimedout() {
    for user in BOTH {
        let mount = options().user(user).arg("--lock-timeout=500ms").mount();
        mount.bash("printf old > f");
        let mut writers = [writer_of(&mount, "f"), writer_of(&mount, "created")];
        for (name, writer) in ["f", "created"].into_iter().zip(&mut writers) {
            let reader = reader_of(&mount, name);
            reader.expect("ETIMEDOUT");
            let log = mount.log();
            let warning = log
                .lines()
                .find(|line| line.contains(&format!("/{name}:")) && line.contains("timed out"));
            let warning = warning.unwrap_or_else(|| panic!("no warning in {log}"));
            for part in ["WARN", &reader.pid().to_string(), &writer.pid().to_string()] {
                assert!(warning.contains(part), "{part} in {warning}");
            }
            // The writer does not suffer.
            writer.tell("go on");
            writer.expect("closed");
            assert_eq!(mount.read(name), NEW);
        }
    }
}

#[test]
fn a_reader_that_asks_not_to_wait_gets_the_last_version_or_eagain_if_there_is_none() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("printf old > f");
        let mut writers = [writer_of(&mount, "f"), writer_of(&mount, "created")];
        let attempt = "for name in ['f', 'created']:\n    try:\n        \
             fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK)\n        \
             say(os.read(fd, 100).decode())\n    except OSError as e:\n        \
             say(errno.errorcode[e.errno])\n";
        assert_eq!(mount.python(attempt), "old\nEAGAIN\n");
        for writer in &mut writers {
            writer.tell("go on");
            writer.expect("closed");
        }
        assert_eq!(mount.python(attempt), format!("{NEW}\n{NEW}\n"));
    }
}

#[test]
fn with_readers_snapshot_an_open_reads_the_last_version_at_once() {
    for user in BOTH {
        // Should it wait, it would time out at once.
        let mount = options()
            .user(user)
            .arg("--readers=snapshot")
            .arg("--lock-timeout=1ms")
            .mount();
        mount.bash("printf old > f");
        let mut writer = writer_of(&mount, "f");
        assert_eq!(mount.read("f"), "old");
        let mut reader = mount.spawn_python(
            "f = open('f')\nsay('open')\nhear()\nsay(f.read(), os.fstat(f.fileno()).st_size)\n\
             say(open('f').read())\n",
        );
        reader.expect("open");
        writer.tell("go on");
        writer.expect("closed");
        reader.tell("read");
        reader.expect("old 3");
        reader.expect(NEW);
    }
}

// There is no last version to read, and an open that finds an empty file would be a torn read.
#[test]
fn with_readers_snapshot_an_open_still_waits_for_a_file_being_created() {
    for user in BOTH {
        let mount = options().user(user).arg("--readers=snapshot").mount();
        let mut writer = writer_of(&mount, "f");
        let reader = reader_of(&mount, "f");
        wait_until_parked(reader.pid(), 1);
        writer.tell("go on");
        writer.expect("closed");
        reader.expect(NEW);
    }
}

#[test]
fn a_reader_gets_in_between_two_of_a_queue_of_writers() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("printf old > f");
        let mut first = writer_of(&mount, "f");
        let mut queue = mount.spawn_python(
            "tell, told = os.pipe()[::-1]\n\
             def write(number):\n    \
                 with open('f', 'w') as f:\n        \
                     f.write(f'of the queue, {number}')\n        f.flush()\n        \
                     say('its turn')\n        os.read(told, 1)\n\
             threads = [threading.Thread(target=write, args=(n,)) for n in range(20)]\n\
             [t.start() for t in threads]\nsay('started')\n\
             for n in range(20):\n    hear()\n    os.write(tell, b'x')\n\
             [t.join() for t in threads]\nsay('done')\n",
        );
        queue.expect("started");
        wait_until_parked(queue.pid(), 20);
        let reader = reader_of(&mount, "f");
        wait_until_parked(reader.pid(), 1);
        first.tell("go on");
        first.expect("closed");
        queue.expect("its turn");
        // The next writer has the file and keeps it, and nineteen more wait for it.
        reader.expect(NEW);
        for _ in 0..19 {
            queue.tell("next");
            queue.expect("its turn");
        }
        queue.tell("next");
        queue.expect("done");
        assert!(mount.read("f").starts_with("of the queue, "));
    }
}

#[test]
fn readers_never_make_a_writer_wait() {
    for user in BOTH {
        // A writer that has to wait gets an error.
        let mount = options().user(user).arg("--lock-timeout=1ms").mount();
        mount.bash("printf old > f");
        let mut reader = mount.spawn_python(
            "files = [open('f') for _ in range(100)]\n\
             mapped = mmap.mmap(files[0].fileno(), 0, prot=mmap.PROT_READ)\n\
             say(files[1].read(), mapped[:].decode())\nhear()\n\
             say(files[2].read(), files[99].read(), mapped[:].decode())\n",
        );
        reader.expect("old old");
        for number in 0..20 {
            mount.bash(&format!("printf {number} > f"));
            mount.bash("printf x 1<> f; printf yy >> f; truncate -s 1 f");
            assert_eq!(mount.read("f").len(), 1);
        }
        reader.tell("read");
        reader.expect("old old old");
        reader.succeed();
    }
}

#[test]
fn others_see_the_old_size_and_times_while_a_version_is_written() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("printf old > f; touch -d 2001-02-03 f");
        let seen = |what: &str| {
            mount.run(
                "sh",
                &format!("stat -c {what} f; ls -l --time-style=+%s f | cut -d' ' -f5-"),
            )
        };
        let before = seen("'%s %Y %Z %i %b'");
        let mut writer = mount.spawn_python(
            "f = open('f', 'w')\nf.write('x' * 100_000)\nf.flush()\n\
             say(os.fstat(f.fileno()).st_size, os.stat('f').st_size)\nhear()\n\
             f.close()\nsay('closed')\n",
        );
        // The writer sees its own.
        writer.expect("100000 100000");
        assert_eq!(seen("'%s %Y %Z %i %b'"), before);
        let behind = fs::metadata(mount.behind("f")).expect("the file");
        assert_eq!((behind.size(), behind.mtime() / 86_400), (3, 11_356));
        writer.tell("close");
        writer.expect("closed");
        assert_eq!(
            mount.bash("stat -c %s f; find f -newermt 2015-01-01"),
            "100000\nf\n"
        );
    }
}

#[test]
fn a_file_being_created_lists_once_and_stats_as_empty_but_is_not_in_backing() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("mkdir d; echo > d/other");
        let mut writer = writer_of(&mount, "d/f");
        // ls -l and find get a listing with attributes, ls and python one without.
        assert_eq!(mount.bash("ls d"), "f\nother\n");
        assert_eq!(mount.bash("ls -lU d | grep -c ' f$'"), "1\n");
        assert_eq!(mount.bash("find d -name f -size 0"), "d/f\n");
        assert_eq!(mount.python("say(os.listdir('d').count('f'))"), "1\n");
        assert_eq!(
            mount.bash("stat -c '%s %b %h %F' d/f"),
            "0 0 1 regular empty file\n"
        );
        assert_eq!(fs::read_dir(mount.behind("d")).expect("d").count(), 1);
        writer.tell("go on");
        writer.expect("closed");
        assert_eq!(mount.bash("ls d"), "f\nother\n");
        assert_eq!(
            mount.bash("stat -c '%s %h' d/f"),
            format!("{} 1\n", NEW.len())
        );
        assert_eq!(mount.read_behind("d/f"), NEW);
    }
}
