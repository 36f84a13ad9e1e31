//! Locks belong to the file, not to one version of it.

use crate::common::{User, as_each_user, drop_caches, options};
use crate::spawn;

/// Holds a lock on `f` through a descriptor open for reading, until told otherwise.
const HOLDER: &str = "f = os.open('f', os.O_RDONLY)\n\
    say(flock(f, EXCLUSIVE))\n\
    hear()\n\
    say(os.read(f, 99).decode())\n\
    os.close(f)\n\
    say('closed')\n\
    hear()\n";

#[test]
fn a_lock_on_an_old_version_excludes_lockers_of_the_new_ones() {
    as_each_user(|mount| {
        mount.bash("printf old > f");
        let mut holder = spawn(mount, HOLDER);
        holder.expect("got");
        let script = "a, b = os.open('f', os.O_RDONLY), os.open('f', os.O_RDWR)\n\
            say(flock(a, SHARED | NB), flock(b, EXCLUSIVE | NB), os.read(a, 9).decode())\n";
        for version in 1..4 {
            mount.bash(&format!("printf new{version} > f"));
            drop_caches();
            let said = crate::python(mount.command("python3"), mount.point(), "f", script);
            assert_eq!(said, format!("EAGAIN EAGAIN new{version}\n"));
        }
        holder.tell("on");
        // It has kept its version, and what it gives back is the lock of the file.
        holder.expect("old");
        holder.expect("closed");
        let said = crate::python(mount.command("python3"), mount.point(), "f", script);
        assert_eq!(said, "got EAGAIN new3\n");
        holder.tell("on");
        holder.succeed();
    });
}

#[test]
fn a_lock_on_a_file_being_created_stays_when_it_appears() {
    for user in [User::Root, User::Ordinary] {
        let mount = options().user(user).arg("--readers=snapshot").mount();
        let mut writer = spawn(
            &mount,
            "f = open('new', 'w')\n\
             say(flock(f, EXCLUSIVE))\n\
             f.write('x')\n\
             f.flush()\n\
             os.fsync(f.fileno())\n\
             say('written')\n\
             hear()\n\
             f.close()\n\
             say('closed')\n",
        );
        writer.expect("got");
        writer.expect("written");
        let script = "f = open('new')\n\
            say(f.read(), flock(f, SHARED | NB))\n";
        let try_it = || crate::python(mount.command("python3"), mount.point(), "f", script);
        assert_eq!(try_it(), "x EAGAIN\n");
        writer.tell("on");
        writer.expect("closed");
        assert_eq!(try_it(), "x got\n");
        writer.succeed();
        mount.unmount();
    }
}

#[test]
fn a_reader_with_a_shared_lock_keeps_its_version_and_the_writer_waits_for_it() {
    as_each_user(|mount| {
        mount.bash("printf old > f");
        let mut reader = spawn(mount, &HOLDER.replace("EXCLUSIVE", "SHARED"));
        reader.expect("got");
        let mut writer = spawn(
            mount,
            "f = open('f', 'r+')\n\
             say(flock(f, EXCLUSIVE | NB))\n\
             say(flock(f, EXCLUSIVE))\n\
             f.write('new')\n\
             f.close()\n\
             say('closed')\n",
        );
        writer.expect("EAGAIN");
        crate::common::wait_until_parked(writer.pid(), 1);
        assert_eq!(mount.read_behind("f"), "old");
        reader.tell("on");
        reader.expect("old");
        reader.expect("closed");
        writer.expect("got");
        writer.expect("closed");
        assert_eq!(mount.read("f"), "new");
        reader.tell("on");
        reader.succeed();
        writer.succeed();
    });
}

#[test]
fn a_rollback_leaves_the_locks_of_others() {
    as_each_user(|mount| {
        mount.bash("printf old > f");
        let mut holder = spawn(mount, HOLDER);
        holder.expect("got");
        let mut writer = spawn(
            mount,
            "f = open('f', 'w')\n\
             f.write('half')\n\
             f.flush()\n\
             say('written')\n\
             os.kill(os.getpid(), signal.SIGKILL)\n",
        );
        writer.expect("written");
        writer.wait();
        let said = crate::python(
            mount.command("python3"),
            mount.point(),
            "f",
            "f = os.open('f', os.O_RDONLY)\n\
             say(flock(f, SHARED | NB), os.read(f, 9).decode())\n",
        );
        assert_eq!(said, "EAGAIN old\n");
        holder.tell("on");
        holder.expect("old");
        holder.expect("closed");
        holder.tell("on");
        holder.succeed();
    });
}

#[test]
fn a_traditional_lock_of_a_process_goes_with_its_descriptor_though_a_child_has_a_copy() {
    // The first lock on a file that is open for reading: its closes are not told of.
    as_each_user(|mount| {
        mount.bash("printf x > f");
        let mut holder = spawn(
            mount,
            "f = os.open('f', os.O_RDONLY)\n\
             say(lockf(f, SHARED | NB))\n\
             child = os.fork()\n\
             if child == 0:\n\
             \x20   signal.pause()\n\
             hear()\n\
             os.close(f)\n\
             say('closed')\n\
             hear()\n\
             os.kill(child, signal.SIGKILL)\n\
             os.waitpid(child, 0)\n",
        );
        holder.expect("got");
        let script = "f = os.open('f', os.O_RDWR)\n\
            say(lockf(f, EXCLUSIVE | NB))\n";
        let try_it = || crate::python(mount.command("python3"), mount.point(), "f", script);
        assert_eq!(try_it(), "EAGAIN\n");
        // One that waits is told, too.
        let mut waiter = spawn(mount, &script.replace(" | NB", ""));
        crate::common::wait_until_parked(waiter.pid(), 1);
        holder.tell("on");
        holder.expect("closed");
        waiter.expect("got");
        waiter.succeed();
        assert_eq!(try_it(), "got\n");
        holder.tell("on");
        holder.succeed();
    });
}
