//! The patterns by which programs count together: nothing may be lost.

use crate::common::{as_each_user, wait_until};
use crate::{Command, LOCKING, bare, python};
use std::path::Path;

const PROCESSES: usize = 8;
const ROUNDS: usize = 25;

/// Each of these adds one to the number in the file `f`, within a lock.
const IN_PLACE: &str = "f = open('f', 'r+'); fcntl.flock(f, EXCLUSIVE); number = int(f.read()); \
    f.seek(0); f.truncate(); f.write(str(number + 1)); f.close()";
const BY_LOCKF: &str = "f = open('f', 'r+'); fcntl.lockf(f, EXCLUSIVE); number = int(f.read()); \
    f.seek(0); f.truncate(); f.write(str(number + 1)); f.close()";
/// The lock is on another file, and the file is replaced.
fn beside(mode: &str) -> String {
    format!(
        "l = open('f.lock', '{mode}'); fcntl.flock(l, EXCLUSIVE); number = int(open('f').read()); \
         f = open('tmp', 'w'); f.write(str(number + 1)); f.flush(); os.fsync(f.fileno()); f.close(); \
         os.rename('tmp', 'f'); l.close()"
    )
}

/// The lock of the origin's helper: tried in a loop for ten seconds.
const POLLING: &str = "l = open('f.lock'); end = time.monotonic() + 50\n\
    while flock(l, EXCLUSIVE | NB) != 'got':\n\
    \x20   assert time.monotonic() < end\n\
    \x20   time.sleep(0.002)\n\
    number = int(open('f').read()); f = open('tmp', 'w'); f.write(str(number + 1)); f.flush(); \
    os.fsync(f.fileno()); f.close(); os.rename('tmp', 'f'); fcntl.flock(l, UNLOCK); l.close()";

/// Many processes do `work` many times.
fn count(step: &str) -> String {
    let step = step.replace('\n', "\n            ");
    format!(
        "open('f', 'w').write('0')\n\
         open('f.lock', 'a').close()\n\
         children = []\n\
         for _ in range({PROCESSES}):\n\
         \x20   child = os.fork()\n\
         \x20   if child == 0:\n\
         \x20       for _ in range({ROUNDS}):\n\
         \x20           {step}\n\
         \x20       os._exit(0)\n\
         \x20   children.append(child)\n\
         ends = [os.waitpid(child, 0)[1] for child in children]\n\
         assert ends == [0] * {PROCESSES}, ends\n\
         say(open('f').read())\n"
    )
}

fn all_are_counted(step: &str) {
    let all = format!("{}\n", PROCESSES * ROUNDS);
    as_each_user(|mount| {
        let said = python(mount.command("python3"), mount.point(), "f", &count(step));
        assert_eq!(said, all);
        assert_eq!(mount.read_behind("f"), all.trim());
    });
}

#[test]
fn no_update_is_lost_by_processes_that_lock_the_file_they_change() {
    all_are_counted(IN_PLACE);
}

#[test]
fn no_update_is_lost_by_processes_that_lock_it_by_lockf() {
    all_are_counted(BY_LOCKF);
}

#[test]
fn no_update_is_lost_by_processes_that_lock_another_file_open_for_reading() {
    all_are_counted(&beside("r"));
}

#[test]
fn no_update_is_lost_by_processes_that_lock_another_file_open_for_writing() {
    all_are_counted(&beside("w"));
}

#[test]
fn no_update_is_lost_by_processes_that_lock_another_file_open_for_appending() {
    all_are_counted(&beside("a"));
}

#[test]
fn no_update_is_lost_by_processes_that_poll_for_the_lock() {
    all_are_counted(POLLING);
}

#[test]
fn the_same_processes_lose_updates_in_a_bare_directory_without_their_locks() {
    for step in [IN_PLACE, &beside("r")] {
        let step = step.replace("fcntl.flock(l, EXCLUSIVE)", "pass");
        let step = step.replace("fcntl.flock(f, EXCLUSIVE)", "pass");
        // An empty file that is read half-way, or a temporary file that another renamed, ends a
        // process: that is a loss, too.
        wait_until("an update is lost", || {
            let bare = bare();
            let mut command = Command::new("python3");
            let script = format!("{LOCKING}{}", count(&step));
            command.arg("-c").arg(script).current_dir(bare.path());
            let output = crate::common::finish(&mut command);
            crate::text(&output.stdout).trim() != (PROCESSES * ROUNDS).to_string()
        });
    }
}

const SHELLS: &str = "echo 0 > f; : > f.lock\n\
    for _ in 1 2 3 4; do\n\
    \x20 (for _ in 1 2 3 4 5 6 7 8 9 10; do LOCK sh -c 'n=$(cat f); echo $((n + 1)) > f'; done) &\n\
    done; wait; cat f\n";

#[test]
fn no_update_is_lost_by_shells_that_run_commands_under_flock() {
    as_each_user(|mount| {
        assert_eq!(mount.bash(&SHELLS.replace("LOCK", "flock f.lock")), "40\n");
    });
}

#[test]
fn no_update_is_lost_by_shells_that_lock_a_descriptor() {
    let script = "echo 0 > f; : > f.lock\n\
        for _ in 1 2 3 4; do\n\
        \x20 (for _ in 1 2 3 4 5 6 7 8 9 10; do\n\
        \x20    (flock 9; n=$(cat f); echo $((n + 1)) > f) 9< f.lock\n\
        \x20  done) &\n\
        done; wait; cat f\n";
    as_each_user(|mount| assert_eq!(mount.bash(script), "40\n"));
}

#[test]
fn flock_with_a_file_that_is_not_there_yet_runs_one_command_after_the_other() {
    // Both make the file, for reading, and hold it for as long as their command runs.
    as_each_user(|mount| {
        let said = mount.bash(
            "for n in 1 2 3; do flock new sh -c 'echo begin; sleep 0.2; echo end' & done; wait",
        );
        assert_eq!(said, "begin\nend\n".repeat(3));
    });
}

/// Eight processes deliver to a mailbox by Python's mailbox module: dot lock and lockf.
fn deliver(command: Command, dir: &Path) -> String {
    // (Two processes that find no mailbox each make one, and the second empties that of the first: so
    // it is there.)
    let script = "import mailbox\n\
         open('inbox', 'w').close()\n\
         children = []\n\
         for number in range(8):\n\
         \x20   child = os.fork()\n\
         \x20   if child == 0:\n\
         \x20       for mail in range(5):\n\
         \x20           box = mailbox.mbox('inbox')\n\
         \x20           while True:\n\
         \x20               try:\n\
         \x20                   box.lock()\n\
         \x20                   break\n\
         \x20               except mailbox.ExternalClashError:\n\
         \x20                   time.sleep(0.002)\n\
         \x20           box.add(f'Subject: {number}-{mail}\\n\\nbody of {number}-{mail}\\n')\n\
         \x20           box.flush()\n\
         \x20           box.unlock()\n\
         \x20           box.close()\n\
         \x20       os._exit(0)\n\
         \x20   children.append(child)\n\
         ends = [os.waitpid(child, 0)[1] for child in children]\n\
         assert ends == [0] * 8, ends\n\
         box = mailbox.mbox('inbox')\n\
         subjects = sorted(mail['subject'] for mail in box)\n\
         say(len(box), subjects == [f'{n}-{m}' for n in range(8) for m in range(5)])\n";
    python(command, dir, "f", script)
}

#[test]
fn no_mail_is_lost_by_processes_that_deliver_to_one_mailbox() {
    let bare = bare();
    let expected = deliver(Command::new("python3"), bare.path());
    assert_eq!(expected, "40 True\n");
    as_each_user(|mount| {
        let said = deliver(mount.command("python3"), mount.point());
        assert_eq!(said, expected);
    });
}
