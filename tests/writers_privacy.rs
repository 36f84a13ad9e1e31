//! W5: nothing of a transaction is visible to anyone but its handles.

mod common;

use common::{Mount, Running, User, as_each_user, options, wait_until_parked};

/// A writer that has replaced a part of `f` and appended to it, and goes on when told to.
fn updater(mount: &Mount) -> Running {
    mount.bash("printf 'old old old' > f");
    let updater = mount.spawn_python(
        r#"
f = os.open("f", os.O_RDWR)
os.write(f, b"new")
os.pwrite(f, b"x" * 1000000, 500)
say(os.fstat(f).st_size)
hear()
os.close(f)
say("closed")
hear()
"#,
    );
    updater.expect("1000500");
    updater
}

/// A writer that creates `new`.
fn creator(mount: &Mount) -> Running {
    let creator = mount.spawn_python(
        r#"
f = os.open("new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
os.write(f, b"content")
say("written")
hear()
os.close(f)
say("closed")
hear()
"#,
    );
    creator.expect("written");
    creator
}

#[test]
fn bytes_that_are_being_written_are_not_in_backing() {
    as_each_user(|mount| {
        let mut updater = updater(mount);
        assert_eq!(mount.read_behind("f"), "old old old");
        updater.tell("close");
        updater.expect("closed");
        assert_eq!(mount.read_behind("f").len(), 1_000_500);
    });
}

#[test]
fn backing_shows_no_temporary_files_while_a_file_is_being_written() {
    as_each_user(|mount| {
        let (_updater, _creator) = (updater(mount), creator(mount));
        assert_eq!(mount.bash("ls -A ../backing"), ".latchfs\nf\n");
    });
}

#[test]
fn bytes_that_are_being_written_are_not_read_by_others() {
    for user in [User::Root, User::Ordinary] {
        let mount = options().user(user).arg("--readers=snapshot").mount();
        let mut updater = updater(&mount);
        assert_eq!(mount.read("f"), "old old old");
        updater.tell("close");
        updater.expect("closed");
        assert_eq!(mount.read("f").len(), 1_000_500);
        mount.unmount();
    }
}

#[test]
fn size_and_times_by_stat_are_those_of_the_old_version_until_the_commit() {
    as_each_user(|mount| {
        mount.bash("printf 'old old old' > f; touch -d '2001-02-03 04:05:06.789' f");
        let stat = "stat -c '%s %b %y %z %i %h %a' f";
        let before = mount.bash(stat);
        assert!(before.starts_with("11 "), "{before}");
        let mut writer = mount.spawn_python(
            "f = os.open('f', os.O_RDWR)\nos.write(f, b'x' * 1000000)\nsay('written')\nhear()\n\
             os.ftruncate(f, 3)\nsay('shortened')\nhear()\nos.close(f)\nsay('closed')\nhear()\n",
        );
        for step in ["written", "shortened"] {
            writer.expect(step);
            assert_eq!(mount.bash(stat), before, "{step}");
            // By a listing (readdirplus), and by an open that reads nothing but attributes.
            assert_eq!(mount.bash("find . -name f -size 11c"), "./f\n", "{step}");
            assert_eq!(
                mount.bash("ls -l --full-time | grep -c '  *11 2001-02-03'"),
                "1\n"
            );
            let path = "fd = os.open('f', os.O_PATH)\nprint(os.fstat(fd).st_size)";
            assert_eq!(mount.python(path), "11\n", "{step}");
            writer.tell("go on");
        }
        writer.expect("closed");
        let after = mount.bash(stat);
        assert!(
            after.starts_with("3 ") && !after.contains("2001"),
            "{after}"
        );
    });
}

#[test]
fn an_emptied_file_is_not_seen_empty() {
    as_each_user(|mount| {
        mount.bash("echo old > f");
        let mut writer = mount.spawn(
            "bash",
            "exec 3>f; echo open; read -r _; exec 3>&-; echo closed; read -r _",
        );
        writer.expect("open");
        assert_eq!(
            mount.bash("stat -c %s f; test -s f && echo full"),
            "4\nfull\n"
        );
        assert_eq!(mount.read_behind("f"), "old\n");
        writer.tell("close");
        writer.expect("closed");
        assert_eq!(mount.bash("stat -c %s f"), "0\n");
    });
}

#[test]
fn the_writers_handles_see_the_size_and_bytes_that_it_has_written() {
    as_each_user(|mount| {
        mount.python(
            r#"
open("f", "w").write("old old old")
f = os.open("f", os.O_RDWR)
d = os.dup(f)
os.pwrite(f, b"NEW and longer", 0)
for handle in f, d:
    assert os.fstat(handle).st_size == 14
    assert os.pread(handle, 100, 0) == b"NEW and longer"
    assert os.lseek(handle, 0, os.SEEK_END) == 14
if os.fork() == 0:
    os._exit(os.pread(d, 100, 0) != b"NEW and longer" or os.fstat(f).st_size != 14)
assert os.wait()[1] == 0
"#,
        );
    });
}

#[test]
fn a_file_being_created_has_its_name_in_the_mount_at_once() {
    as_each_user(|mount| {
        let _creator = creator(mount);
        assert_eq!(mount.bash("ls"), "new\n");
        assert_eq!(mount.bash("find . -type f"), "./new\n");
        assert_eq!(
            mount.python("print(os.listdir(), [e.name for e in os.scandir()])"),
            "['new'] ['new']\n"
        );
    });
}

#[test]
fn a_file_being_created_stats_as_empty() {
    as_each_user(|mount| {
        let _creator = creator(mount);
        assert_eq!(
            mount.bash("umask 022; stat -c '%s %b %a %F %h' new"),
            "0 0 640 regular empty file 1\n"
        );
    });
}

#[test]
fn a_file_being_created_is_not_in_backing() {
    as_each_user(|mount| {
        let mut creator = creator(mount);
        assert!(!mount.behind("new").exists());
        creator.tell("close");
        creator.expect("closed");
        assert_eq!(mount.read_behind("new"), "content");
    });
}

#[test]
fn creating_exclusively_what_is_being_created_fails_at_once() {
    as_each_user(|mount| {
        let mut creator = creator(mount);
        let told = mount.python(
            "before = time.monotonic()\n\
             try: os.open('new', os.O_WRONLY | os.O_CREAT | os.O_EXCL)\n\
             except FileExistsError: print('exists', time.monotonic() - before < 10)\n",
        );
        assert_eq!(told, "exists True\n");
        // The shell's way, too.
        let told =
            mount.bash("set -C; if echo x > new; then echo written; else echo refused; fi 2>&1");
        assert!(told.ends_with("refused\n"), "{told}");
        creator.tell("close");
        creator.expect("closed");
        assert_eq!(mount.read_behind("new"), "content");
    });
}

#[test]
fn opening_a_file_being_created_to_read_waits_for_all_of_it() {
    as_each_user(|mount| {
        let mut creator = creator(mount);
        let reader = mount.spawn("bash", "cat new; echo; read -r _");
        wait_until_parked_child(&reader);
        assert!(reader.is_silent());
        creator.tell("close");
        creator.expect("closed");
        reader.expect("content");
    });
}

/// Waits until the only child of a shell is blocked.
fn wait_until_parked_child(shell: &Running) {
    let children = format!("/proc/{0}/task/{0}/children", shell.pid());
    let mut child = String::new();
    common::wait_until("it has a child", || {
        child = std::fs::read_to_string(&children).expect("its children");
        !child.is_empty()
    });
    wait_until_parked(child.trim().parse().expect("a pid"), 1);
}

#[test]
fn opening_a_file_being_created_to_write_waits_for_its_turn() {
    as_each_user(|mount| {
        for how in [
            "os.O_WRONLY",
            "os.O_WRONLY | os.O_CREAT",
            "os.O_RDWR | os.O_APPEND",
        ] {
            let mut creator = creator(mount);
            let mut second = mount.spawn_python(&format!(
                "f = os.open('new', {how})\nsay(os.fstat(f).st_size)\nos.pwrite(f, b'!', 7)\nos.close(f)"
            ));
            wait_until_parked(second.pid(), 1);
            assert!(second.is_silent(), "{how}");
            creator.tell("close");
            creator.expect("closed");
            second.expect("7");
            second.succeed();
            assert_eq!(mount.read_behind("new"), "content!", "{how}");
            mount.bash("rm new");
        }
    });
}

#[test]
fn a_creation_that_is_rolled_back_leaves_no_name_and_wakes_who_waited() {
    as_each_user(|mount| {
        let mut creator = creator(mount);
        let reader = mount.spawn_python(
            "try: f = os.open('new', os.O_RDONLY); say(os.read(f, 10).decode())\n\
             except FileNotFoundError: say('not found')\nhear()",
        );
        let writer = mount.spawn_python(
            "try: f = os.open('new', os.O_RDWR); say(os.read(f, 10).decode()); os.close(f)\n\
             except FileNotFoundError: say('not found')\nhear()",
        );
        let maker = mount.spawn_python(
            "f = os.open('new', os.O_WRONLY | os.O_CREAT)\nos.write(f, b'mine')\nos.close(f)\n\
             say('made')\nhear()",
        );
        for waiting in [&reader, &writer, &maker] {
            wait_until_parked(waiting.pid(), 1);
        }
        creator.signal("KILL");
        creator.wait();
        maker.expect("made");
        // Who looks after the maker finds its file; who looks before finds none.
        for told in [reader.hear(), writer.hear()] {
            assert!(["not found", "mine"].contains(&&*told), "{told:?}");
        }
        assert_eq!(mount.read_behind("new"), "mine");
        assert_eq!(mount.bash("ls -A ../backing; ls"), ".latchfs\nnew\nnew\n");
    });
}

#[test]
fn a_rolled_back_creation_alone_leaves_nothing() {
    as_each_user(|mount| {
        let mut creator = creator(mount);
        creator.signal("KILL");
        creator.wait();
        mount.bash("! test -e new && ! cat new 2>/dev/null");
        assert_eq!(mount.bash("ls -A ../backing; ls"), ".latchfs\n");
        mount.python("os.close(os.open('new', os.O_WRONLY | os.O_CREAT | os.O_EXCL))");
        assert_eq!(mount.read_behind("new"), "");
    });
}

#[test]
fn a_file_created_by_an_open_for_reading_is_there_at_once() {
    as_each_user(|mount| {
        let holder = mount.spawn_python(
            r#"
f = os.open("lock", os.O_RDONLY | os.O_CREAT, 0o200)
say(oct(os.fstat(f).st_mode), os.read(f, 10))
hear()
"#,
        );
        holder.expect("0o100200 b''");
        assert_eq!(mount.bash("stat -c '%a %s' ../backing/lock"), "200 0\n");
        // Nobody has to wait for it.
        mount.bash("chmod 600 lock; timeout 20 cat lock; echo pid > lock");
        assert_eq!(mount.read_behind("lock"), "pid\n");
        let said = mount.python(
            r#"
try: os.open("lock", os.O_RDONLY | os.O_CREAT | os.O_EXCL)
except FileExistsError: say("exists")
say(os.read(os.open("lock", os.O_RDONLY | os.O_CREAT), 10))
"#,
        );
        assert_eq!(said, "exists\nb'pid\\n'\n");
    });
}
