//! W6 and W7: close() returns after the commit, and fsync() commits what was written so far.

mod common;

use common::{Mount, Running, User, as_each_user, options, wait_until_parked};

#[test]
fn after_every_close_by_python_the_file_in_backing_is_the_new_one() {
    as_each_user(|mount| {
        mount.python(
            r#"
for turn in range(100):
    with open("f", "w") as f:
        f.write(str(turn))
    assert open("../backing/f").read() == str(turn)
    f = os.open("f", os.O_RDWR)
    os.pwrite(f, b"X", 0)
    os.close(f)
    assert open("../backing/f").read() == "X" + str(turn)[1:]
    with open(f"f{turn}", "x") as f:
        f.write("new")
    assert open(f"../backing/f{turn}").read() == "new"
"#,
        );
    });
}

#[test]
fn after_every_redirection_of_a_shell_the_file_in_backing_is_the_new_one() {
    as_each_user(|mount| {
        for shell in ["bash", "dash"] {
            mount.run(
                shell,
                r#"
check() {
    read -r line <../backing/f && [ "$line" = "$1" ] || { echo "$1: $line"; exit 1; }
}
i=0
while [ $i -lt 50 ]; do
    i=$((i + 1))
    echo "builtin $i" > f; check "builtin $i"
    /bin/echo "command $i" > f; check "command $i"
    { /bin/echo "both $i"; /bin/echo more; } > f; check "both $i"
    (echo "subshell $i") > f; check "subshell $i"
    exec 3>f; echo "exec $i" >&3; exec 3>&-; check "exec $i"
    /bin/echo "pipe $i" | cat > f; check "pipe $i"
done
"#,
            );
        }
    });
}

#[test]
fn after_a_program_has_exited_without_closing_the_file_in_backing_is_the_new_one() {
    as_each_user(|mount| {
        mount.python(
            r#"
for turn in range(50):
    if os.fork() == 0:
        os.write(os.open("f", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), b"%d" % turn)
        os._exit(0)
    os.wait()
    assert open("../backing/f").read() == str(turn)
"#,
        );
    });
}

#[test]
fn after_dup2_over_the_last_descriptor_the_file_in_backing_is_the_new_one() {
    as_each_user(|mount| {
        mount.python(
            r#"
null = os.open("/dev/null", os.O_WRONLY)
for turn in range(20):
    f = os.open("f", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(f, b"%d" % turn)
    os.dup2(null, f)
    assert open("../backing/f").read() == str(turn)
    os.close(f)
"#,
        );
    });
}

#[test]
fn after_close_the_death_of_the_daemon_cannot_take_the_version_back() {
    as_each_user(|mount| {
        mount.bash("echo first > f; echo second > f; echo new > g");
        mount.crash();
        assert_eq!(mount.read_behind("f"), "second\n");
        assert_eq!(mount.read_behind("g"), "new\n");
        mount.start();
        assert_eq!(mount.read("f"), "second\n");
    });
}

#[test]
fn a_daemon_that_dies_before_the_close_leaves_the_old_version() {
    as_each_user(|mount| {
        mount.bash("echo old > f");
        let writer = mount.spawn(
            "bash",
            "exec 3>f 4>g; echo new >&3; echo new >&4; echo written; read -r _",
        );
        writer.expect("written");
        mount.crash();
        drop(writer);
        assert_eq!(mount.read_behind("f"), "old\n");
        assert!(!mount.behind("g").exists());
        mount.start();
        assert_eq!(mount.bash("cat f; ls"), "old\nf\n");
    });
}

/// A writer that has written "first " to `f` and called fsync; it writes "second" when told to,
/// and closes when told again.
fn synced(mount: &Mount) -> Running {
    let writer = mount.spawn_python(
        r#"
f = os.open("f", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.write(f, b"first ")
os.fsync(f)
say("synced")
hear()
os.write(f, b"second")
say("written")
hear()
os.close(f)
say("closed")
hear()
"#,
    );
    writer.expect("synced");
    writer
}

#[test]
fn fsync_commits_what_has_been_written_so_far() {
    as_each_user(|mount| {
        mount.bash("echo old > f");
        let _writer = synced(mount);
        assert_eq!(mount.read_behind("f"), "first ");
    });
}

#[test]
fn fsync_of_a_file_being_created_gives_it_its_name_in_backing() {
    as_each_user(|mount| {
        let mut writer = synced(mount);
        assert_eq!(mount.read_behind("f"), "first ");
        writer.signal("KILL");
        writer.wait();
        assert_eq!(mount.read("f"), "first ");
    });
}

#[test]
fn what_is_written_after_fsync_is_the_next_version() {
    as_each_user(|mount| {
        mount.bash("echo old > f");
        let mut writer = synced(mount);
        writer.tell("write");
        writer.expect("written");
        assert_eq!(mount.read_behind("f"), "first ");
        writer.tell("close");
        writer.expect("closed");
        assert_eq!(mount.read_behind("f"), "first second");
        assert_eq!(mount.read("f"), "first second");
    });
}

#[test]
fn a_writer_killed_after_fsync_leaves_the_synced_version() {
    as_each_user(|mount| {
        mount.bash("echo old > f");
        let mut writer = synced(mount);
        writer.tell("write");
        writer.expect("written");
        writer.signal("KILL");
        writer.wait();
        assert_eq!(mount.read_behind("f"), "first ");
        assert_eq!(mount.read("f"), "first ");
    });
}

#[test]
fn a_writer_that_called_fsync_still_has_the_lease() {
    as_each_user(|mount| {
        mount.bash("echo old > f");
        let mut writer = synced(mount);
        let mut second = mount.spawn("bash", "exec 3<> f; cat <&3 > /dev/null; echo third >&3");
        wait_until_parked(second.pid(), 1);
        writer.tell("write");
        writer.expect("written");
        writer.tell("close");
        writer.expect("closed");
        second.succeed();
        assert_eq!(mount.read_behind("f"), "first secondthird\n");
    });
}

#[test]
fn a_reader_that_does_not_wait_reads_the_synced_version() {
    for user in [User::Root, User::Ordinary] {
        let mount = options().user(user).arg("--readers=snapshot").mount();
        mount.bash("echo old > f");
        let mut writer = synced(&mount);
        assert_eq!(mount.read("f"), "first ");
        writer.tell("write");
        writer.expect("written");
        assert_eq!(mount.read("f"), "first ");
        assert_eq!(mount.bash("stat -c %s f"), "6\n");
        mount.unmount_after(writer);
    }
}

/// Ends a writer by its own close, and unmounts.
trait UnmountAfter {
    fn unmount_after(&self, writer: Running);
}

impl UnmountAfter for Mount {
    fn unmount_after(&self, mut writer: Running) {
        writer.tell("close");
        writer.expect("closed");
        writer.succeed();
        self.unmount();
    }
}

#[test]
fn every_kind_of_sync_commits() {
    as_each_user(|mount| {
        mount.python(
            r#"
import ctypes
def behind():
    return open("../backing/f").read()
open("f", "w").write("old")
f = os.open("f", os.O_RDWR)
os.pwrite(f, b"1", 0)
os.fdatasync(f)
assert behind() == "1ld", behind()
os.pwrite(f, b"2", 1)
os.fsync(os.dup(f))
assert behind() == "12d", behind()
os.ftruncate(f, 1)
os.fsync(f)
assert behind() == "1", behind()
os.fsync(f)
os.fsync(f)
for turn in range(20):
    os.pwrite(f, b"%d" % turn, 0)
    assert behind() != str(turn)
    os.fsync(f)
    assert behind() == str(turn), behind()
"#,
        );
        mount.bash(
            "dd if=/dev/zero of=f bs=3 count=4 conv=fsync status=none; stat -c %s ../backing/f",
        );
        assert_eq!(mount.read_behind("f"), "\0".repeat(12));
    });
}

#[test]
fn fsync_by_a_child_commits_what_its_parent_wrote() {
    as_each_user(|mount| {
        mount.python(
            r#"
f = os.open("f", os.O_WRONLY | os.O_CREAT)
os.write(f, b"parent")
if os.fork() == 0:
    os.fsync(f)
    os._exit(0)
os.wait()
assert open("../backing/f").read() == "parent"
os.write(f, b" and more")
assert open("../backing/f").read() == "parent"
os.close(f)
assert open("../backing/f").read() == "parent and more"
"#,
        );
    });
}

#[test]
fn fsync_of_a_large_file_commits_each_time_all_of_it() {
    as_each_user(|mount| {
        mount.python(
            r#"
block = os.urandom(1 << 20)
f = os.open("f", os.O_RDWR | os.O_CREAT)
for turn in range(12):
    os.write(f, block)
    if turn % 4 == 3:
        os.fsync(f)
        assert open("../backing/f", "rb").read() == block * (turn + 1)
os.pwrite(f, b"end", 0)
os.close(f)
assert open("../backing/f", "rb").read() == b"end" + (block * 12)[3:]
"#,
        );
    });
}
