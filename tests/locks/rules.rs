//! What flock(2) and fcntl(2) say of locks: each script runs on a bare directory, too.

use crate::same_as_bare;

#[test]
fn flock_excludes_other_open_files_and_shares_with_shared_ones() {
    let said = same_as_bare(
        "a, b = os.open('f', os.O_RDONLY), os.open('f', os.O_RDONLY)\n\
         say(flock(a, SHARED | NB), flock(b, SHARED | NB), flock(b, EXCLUSIVE | NB))\n\
         say(flock(a, UNLOCK), flock(b, EXCLUSIVE | NB), flock(a, SHARED | NB))\n\
         say(flock(b, SHARED | NB), flock(a, SHARED | NB))\n\
         say(elsewhere('flock(f, EXCLUSIVE | NB)'), elsewhere('flock(f, SHARED | NB)'))\n",
    );
    assert!(said.starts_with("got got EAGAIN\n"), "{said}");
}

#[test]
fn a_conversion_by_flock_that_is_refused_loses_the_lock_it_had() {
    let said = same_as_bare(
        "a, b = os.open('f', os.O_RDONLY), os.open('f', os.O_RDONLY)\n\
         say(flock(a, SHARED | NB), flock(b, SHARED | NB), flock(b, EXCLUSIVE | NB))\n\
         say(flock(a, EXCLUSIVE | NB))\n",
    );
    assert_eq!(said, "got got EAGAIN\ngot\n");
}

#[test]
fn processes_lock_ranges_apart_from_each_other_and_are_told_who_has_them() {
    let said = same_as_bare(
        "f = W = os.open('f', os.O_RDWR)\n\
         say(lockf(f, EXCLUSIVE | NB, 0, 3), lockf(f, SHARED | NB, 5, 2))\n\
         say(elsewhere('lockf(W, EXCLUSIVE | NB, 3, 2)'), elsewhere('lockf(f, SHARED | NB, 2, 2)'))\n\
         say(elsewhere('lockf(f, SHARED | NB, 5, 9)'), elsewhere('lockf(W, EXCLUSIVE | NB, 6, 9)'))\n\
         kind, start, length, pid = elsewhere('who(f)')\n\
         say(kind, start, length, pid == os.getpid())\n\
         kind, start, length, pid = elsewhere('who(f, fcntl.F_WRLCK, 4)')\n\
         say(kind, start, length, pid == os.getpid())\n\
         say(*elsewhere('who(f, fcntl.F_RDLCK, 4)'), *who(f))\n\
         say(lockf(f, UNLOCK, 1, 1), elsewhere('lockf(W, EXCLUSIVE | NB, 1, 1)'))\n\
         say(elsewhere('lockf(W, EXCLUSIVE | NB, 0, 1)'), elsewhere('lockf(f, SHARED | NB, 2, 1)'))\n\
         say(lockf(f, EXCLUSIVE | NB, 7, 0), elsewhere('lockf(f, SHARED | NB, 1 << 40, 1)'))\n",
    );
    assert!(said.starts_with("got got\ngot EAGAIN\n"), "{said}");
}

#[test]
fn an_upgrade_by_fcntl_that_is_refused_keeps_the_lock_it_had() {
    let said = same_as_bare(
        "f = W = os.open('f', os.O_RDWR)\n\
         def both():\n\
         \x20   read, write = os.pipe()\n\
         \x20   child = os.fork()\n\
         \x20   if child == 0:\n\
         \x20       mine = os.open('f', os.O_RDONLY)\n\
         \x20       assert lockf(mine, SHARED | NB) == 'got'\n\
         \x20       os.write(write, b'x')\n\
         \x20       signal.pause()\n\
         \x20   os.read(read, 1)\n\
         \x20   return child\n\
         say(lockf(f, SHARED | NB))\n\
         child = both()\n\
         say(lockf(f, EXCLUSIVE | NB), elsewhere('lockf(W, EXCLUSIVE | NB)'))\n\
         os.kill(child, signal.SIGKILL)\n\
         os.waitpid(child, 0)\n\
         say(elsewhere('lockf(W, EXCLUSIVE | NB)'), lockf(f, EXCLUSIVE | NB))\n\
         say(elsewhere('lockf(f, SHARED | NB)'))\n",
    );
    assert_eq!(said, "got\nEAGAIN EAGAIN\nEAGAIN got\nEAGAIN\n");
}

#[test]
fn flock_and_fcntl_locks_on_one_file_do_not_conflict() {
    // As mutt and procmail do: both, on one mailbox.
    let said = same_as_bare(
        "f = W = os.open('f', os.O_RDWR)\n\
         say(flock(f, EXCLUSIVE | NB), elsewhere('lockf(W, EXCLUSIVE | NB)'))\n\
         say(lockf(f, EXCLUSIVE | NB), flock(f, UNLOCK), elsewhere('flock(f, EXCLUSIVE | NB)'))\n\
         say(elsewhere('lockf(W, EXCLUSIVE | NB)'))\n",
    );
    assert_eq!(said, "got got\ngot got got\nEAGAIN\n");
}

#[test]
fn open_file_description_locks_exclude_threads_of_one_process() {
    let said = same_as_bare(
        "answers = []\n\
         a, b = os.open('f', os.O_RDWR), os.open('f', os.O_RDWR)\n\
         def other():\n\
         \x20   answers.append(ofd(b, fcntl.F_WRLCK, 2, 3))\n\
         \x20   answers.append(ofd(b, fcntl.F_WRLCK, 5, 3))\n\
         \x20   answers.append(who(b, command=fcntl.F_OFD_GETLK))\n\
         say(ofd(a, fcntl.F_WRLCK, 0, 4))\n\
         thread = threading.Thread(target=other)\n\
         thread.start()\n\
         thread.join()\n\
         say(*answers)\n\
         say(elsewhere('lockf(f, SHARED | NB, 3, 1)'), elsewhere('lockf(f, SHARED | NB, 4, 1)'))\n\
         say(lockf(a, EXCLUSIVE | NB, 0, 4))\n",
    );
    assert!(said.starts_with("got\nEAGAIN got"), "{said}");
}

#[test]
fn a_child_shares_the_flock_of_its_parent_and_not_its_fcntl_locks() {
    let said = same_as_bare(
        "f = W = os.open('f', os.O_RDWR)\n\
         say(flock(f, EXCLUSIVE | NB), lockf(f, EXCLUSIVE | NB))\n\
         def in_child(work):\n\
         \x20   child = os.fork()\n\
         \x20   if child == 0:\n\
         \x20       work()\n\
         \x20       os._exit(0)\n\
         \x20   os.waitpid(child, 0)\n\
         in_child(lambda: say(flock(f, EXCLUSIVE | NB), lockf(f, EXCLUSIVE | NB)))\n\
         say(elsewhere('flock(f, SHARED | NB)'), elsewhere('lockf(f, SHARED | NB)'))\n\
         in_child(lambda: os.close(f))\n\
         say(elsewhere('flock(f, SHARED | NB)'), elsewhere('lockf(f, SHARED | NB)'))\n\
         in_child(lambda: flock(f, UNLOCK))\n\
         say(elsewhere('flock(f, SHARED | NB)'), elsewhere('lockf(f, SHARED | NB)'))\n",
    );
    assert_eq!(
        said,
        "got got\ngot EAGAIN\nEAGAIN EAGAIN\nEAGAIN EAGAIN\ngot EAGAIN\n"
    );
}

#[test]
fn a_close_gives_locks_back_before_it_returns() {
    // Through all kinds of descriptors, the first lock on a file and later ones.
    let said = same_as_bare(
        "def again(mode, take, name):\n\
         \x20   for _ in range(50):\n\
         \x20       open(name, 'a').close()\n\
         \x20       f, g = os.open(name, mode), os.open(name, mode)\n\
         \x20       assert take(f) == 'got', 'the first'\n\
         \x20       os.close(f)\n\
         \x20       assert take(g) == 'got', 'after a close'\n\
         \x20       os.close(g)\n\
         \x20       os.unlink(name)\n\
         for mode, number in [(os.O_RDONLY, 1), (os.O_RDWR, 2)]:\n\
         \x20   again(mode, lambda f: flock(f, EXCLUSIVE | NB), 'a')\n\
         \x20   again(mode, lambda f: ofd(f, fcntl.F_RDLCK), 'b')\n\
         again(os.O_RDWR, lambda f: ofd(f, fcntl.F_WRLCK), 'c')\n\
         say('done')\n",
    );
    assert_eq!(said, "done\n");
}

#[test]
fn a_close_of_any_descriptor_gives_the_fcntl_locks_of_its_process_back() {
    let said = same_as_bare(
        "f, g, W = (os.open('f', os.O_RDWR) for _ in range(3))\n\
         say(lockf(f, EXCLUSIVE | NB), flock(f, EXCLUSIVE | NB))\n\
         os.close(os.dup(g))\n\
         say(elsewhere('lockf(W, EXCLUSIVE | NB)'), elsewhere('flock(f, EXCLUSIVE | NB)'))\n\
         say(lockf(f, EXCLUSIVE | NB))\n\
         os.close(g)\n\
         say(elsewhere('lockf(W, EXCLUSIVE | NB)'), elsewhere('flock(f, EXCLUSIVE | NB)'))\n\
         say(lockf(f, EXCLUSIVE | NB))\n\
         open('f').close()\n\
         say(elsewhere('lockf(W, EXCLUSIVE | NB)'), elsewhere('flock(f, EXCLUSIVE | NB)'))\n",
    );
    assert_eq!(
        said,
        "got got\ngot EAGAIN\ngot\ngot EAGAIN\ngot\ngot EAGAIN\n"
    );
}

#[test]
fn the_end_of_a_process_gives_its_locks_back() {
    for end in [
        "os._exit(0)",
        "os.kill(os.getpid(), signal.SIGKILL)",
        "os.execvp('true', ['true'])",
    ] {
        let said = same_as_bare(&format!(
            "for mode in os.O_RDONLY, os.O_RDWR:\n\
             \x20   for _ in range(10):\n\
             \x20       child = os.fork()\n\
             \x20       if child == 0:\n\
             \x20           f = os.open('f', mode)\n\
             \x20           if flock(f, EXCLUSIVE | NB) != 'got' or lockf(f, SHARED | NB) != 'got':\n\
             \x20               os._exit(3)\n\
             \x20           {end}\n\
             \x20       say(os.WEXITSTATUS(os.waitpid(child, 0)[1]))\n\
             W = os.open('f', os.O_RDWR)\n\
             say(elsewhere('flock(f, EXCLUSIVE | NB)'), elsewhere('lockf(W, EXCLUSIVE | NB)'))\n"
        ));
        assert!(said.ends_with("got got\n"), "{end}: {said}");
        assert!(!said.contains('3'), "{end}: {said}");
    }
}

#[test]
fn a_program_keeps_its_locks_over_exec_with_the_descriptor() {
    let said = same_as_bare(
        "f = W = os.open('f', os.O_RDWR)\n\
         W = os.open('f', os.O_RDWR)\n\
         os.set_inheritable(f, True)\n\
         say(flock(f, EXCLUSIVE | NB), lockf(f, EXCLUSIVE | NB))\n\
         read, write = os.pipe()\n\
         child = subprocess.Popen(['cat'], stdin=read, pass_fds=[f])\n\
         say(flock(f, EXCLUSIVE | NB))\n\
         os.close(f)\n\
         say(elsewhere('flock(f, SHARED | NB)'), elsewhere('lockf(W, EXCLUSIVE | NB)'))\n\
         os.close(write)\n\
         os.close(read)\n\
         child.wait()\n\
         say(elsewhere('flock(f, SHARED | NB)'))\n",
    );
    assert_eq!(said, "got got\ngot\nEAGAIN got\ngot\n");
}

#[test]
fn a_lock_through_a_descriptor_that_cannot_write_is_refused_as_on_a_bare_directory() {
    let said = same_as_bare(
        "r, w = os.open('f', os.O_RDONLY), os.open('f', os.O_WRONLY)\n\
         say(lockf(r, EXCLUSIVE | NB), lockf(w, SHARED | NB), ofd(r, fcntl.F_WRLCK))\n\
         say(flock(r, EXCLUSIVE | NB), flock(w, SHARED | NB))\n\
         say(lockf(w, EXCLUSIVE | NB), lockf(r, SHARED | NB))\n",
    );
    assert_eq!(said, "EBADF EBADF EBADF\ngot EAGAIN\ngot got\n");
}

#[test]
fn directories_and_fifos_can_be_locked() {
    let said = same_as_bare(
        "os.mkdir('d')\n\
         os.mkfifo('p')\n\
         for name, mode in ('d', os.O_RDONLY), ('p', os.O_RDWR):\n\
         \x20   a, b = os.open(name, mode), os.open(name, mode)\n\
         \x20   say(flock(a, EXCLUSIVE | NB), flock(b, EXCLUSIVE | NB))\n\
         \x20   os.close(a)\n\
         \x20   say(flock(b, EXCLUSIVE | NB))\n",
    );
    assert_eq!(said, "got EAGAIN\ngot\n".repeat(2));
}

#[test]
fn names_do_not_matter_to_locks() {
    let said = same_as_bare(
        "f = os.open('f', os.O_RDONLY)\n\
         say(flock(f, EXCLUSIVE | NB))\n\
         g, h, tmp = (name + 'f'[1:] for name in ('g', 'h', 'tmp'))\n\
         os.link('f', g)\n\
         os.rename('f', h)\n\
         open('f', 'w').close()\n\
         def other(name):\n\
         \x20   fd = os.open(name, os.O_RDONLY)\n\
         \x20   return flock(fd, EXCLUSIVE | NB)\n\
         say(other('f'), other(g), other(h))\n\
         os.unlink(g)\n\
         os.unlink(h)\n\
         say(flock(os.open(f'/proc/self/fd/{f}', os.O_RDONLY), EXCLUSIVE | NB))\n\
         open(tmp, 'w').close()\n\
         t = os.open(tmp, os.O_RDONLY)\n\
         say(flock(t, EXCLUSIVE | NB))\n\
         os.rename(tmp, 'f')\n\
         say(other('f'))\n",
    );
    assert_eq!(said, "got\ngot EAGAIN EAGAIN\nEAGAIN\ngot\nEAGAIN\n");
}

#[test]
fn many_ranges_of_many_processes_end_as_on_a_bare_directory() {
    same_as_bare(
        "import random\n\
         chance = random.Random(7)\n\
         children = []\n\
         w = os.open('f', os.O_RDWR)\n\
         pids = []\n\
         for number in range(4):\n\
         \x20   (there, their), (back, answer) = os.pipe(), os.pipe()\n\
         \x20   child = os.fork()\n\
         \x20   if child == 0:\n\
         \x20       f = os.open('f', os.O_RDONLY) if number == 3 else w\n\
         \x20       with os.fdopen(there) as orders:\n\
         \x20           for line in orders:\n\
         \x20               kind, start, length = map(int, line.split())\n\
         \x20               how = (SHARED | NB, EXCLUSIVE | NB, UNLOCK)[kind]\n\
         \x20               seen = who(f, fcntl.F_WRLCK, start, length)[:3]\n\
         \x20               got = lockf(f, how, start, length)\n\
         \x20               os.write(answer, f'{got} {seen}\\n'.encode())\n\
         \x20       os._exit(0)\n\
         \x20   pids.append(child)\n\
         \x20   os.close(there)\n\
         \x20   os.close(answer)\n\
         \x20   children.append((their, os.fdopen(back)))\n\
         for _ in range(600):\n\
         \x20   number, kind = chance.randrange(4), chance.randrange(3)\n\
         \x20   start, length = chance.randrange(20), chance.randrange(8)\n\
         \x20   order, answer = children[number]\n\
         \x20   os.write(order, f'{kind} {start} {length}\\n'.encode())\n\
         \x20   say(number, kind, start, length, answer.readline().strip())\n\
         for pid in pids:\n\
         \x20   os.kill(pid, signal.SIGKILL)\n\
         \x20   os.waitpid(pid, 0)\n",
    );
}

#[test]
fn a_read_only_mount_has_locks_too() {
    let bare = crate::bare();
    std::fs::write(bare.path().join("f"), "x").expect("a file");
    let mount = crate::options().backing(bare.path()).arg("-oro").mount();
    let script = "a, b = os.open('f', os.O_RDONLY), os.open('f', os.O_RDONLY)\n\
         say(flock(a, EXCLUSIVE | NB), flock(b, EXCLUSIVE | NB), lockf(a, SHARED | NB))\n";
    let said = crate::python(mount.command("python3"), mount.point(), "f", script);
    assert_eq!(said, "got EAGAIN got\n");
    // It has no store in BACKING, so nobody knows its daemon by that.
    let mut umount = mount.command(crate::common::LATCHFS);
    let output = crate::common::finish(umount.arg("umount").arg(mount.point()));
    assert!(output.status.success(), "{}", crate::text(&output.stderr));
}
