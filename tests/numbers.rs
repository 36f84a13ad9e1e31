//! Inode numbers (W11): the same for the life of the mount, the same in stat and in listings, and
//! never the same for two files.

mod common;

use common::{User, drop_caches, options};

const BOTH: [User; 2] = [User::Root, User::Ordinary];

#[test]
fn the_number_of_a_file_stays_the_same_through_its_versions() {
    for user in BOTH {
        let mount = options().user(user).mount();
        let mut program = mount.spawn_python(
            "def number(name):\n    \
                 listed = {e.name: e.inode() for e in os.scandir()}[name]\n    \
                 with open(name) as f:\n        \
                     numbers = {listed, os.stat(name).st_ino, os.fstat(f.fileno()).st_ino}\n    \
                 assert len(numbers) == 1, (name, numbers)\n    \
                 return numbers.pop()\n\
             numbers = {}\n\
             for n in range(40):\n    \
                 name = f'f{n % 4}'\n    \
                 with open(name, 'w') as f:\n        \
                     f.write(str(n))\n        f.flush()\n        \
                     own = os.fstat(f.fileno()).st_ino\n        \
                     listed = {e.name: e.inode() for e in os.scandir()}[name]\n        \
                     assert own == listed == os.stat(name).st_ino, (own, listed)\n    \
                 assert own == number(name)\n    \
                 assert numbers.setdefault(name, own) == own, (name, n)\n    \
                 if n % 10 == 9:\n        say('drop')\n        hear()\n        \
                     assert all(number(k) == v for k, v in numbers.items())\n\
             os.rename('f0', 'g')\nassert number('g') == numbers['f0']\n\
             open('g', 'w').write('x')\nassert number('g') == numbers['f0']\nsay('done')\n",
        );
        for _ in 0..4 {
            program.expect("drop");
            drop_caches();
            program.tell("go on");
        }
        program.expect("done");
        program.succeed();
    }
}

#[test]
fn a_file_that_is_held_open_keeps_its_number_through_later_versions() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.python(
            "open('f', 'w').write('0')\nreaders = []\n\
             for n in range(1, 11):\n    \
                 readers.append(open('f'))\n    open('f', 'w').write(str(n))\n\
             numbers = {os.fstat(f.fileno()).st_ino for f in readers} | {os.stat('f').st_ino}\n\
             assert len(numbers) == 1, numbers\n\
             assert all(os.path.sameopenfile(f.fileno(), readers[0].fileno()) for f in readers)\n\
             assert os.path.samestat(os.fstat(readers[0].fileno()), os.stat('f'))\n",
        );
    }
}

#[test]
fn no_two_files_share_a_number_whatever_is_rewritten_removed_and_made() {
    for user in BOTH {
        let mount = options().user(user).arg("--durability=none").mount();
        let mut program = mount.spawn_python(
            "import random\nrandom.seed(7)\nnames = [f'f{n}' for n in range(30)]\n\
             os.mkdir('d')\nnumbers = {}\nheld = []\n\
             def check():\n    \
                 seen = {}\n    \
                 for place in ['.', 'd']:\n        \
                     for e in os.scandir(place):\n            \
                         path = os.path.normpath(e.path)\n            \
                         s = os.stat(path)\n            \
                         assert s.st_ino == e.inode(), (path, s.st_ino, e.inode())\n            \
                         assert s.st_ino not in seen, (path, seen[s.st_ino], s.st_ino)\n            \
                         seen[s.st_ino] = path\n            \
                         if path in numbers:\n                \
                             assert numbers[path] == s.st_ino, path\n    \
                 return {path: number for number, path in seen.items()}\n\
             for step in range(1500):\n    \
                 name = random.choice(names)\n    path = random.choice([name, 'd/' + name])\n    \
                 action = random.choice('wwwwrtukm')\n    \
                 if action == 'w':\n        \
                     with open(path, 'w') as f:\n            f.write(str(step))\n        \
                     numbers.setdefault(path, os.stat(path).st_ino)\n    \
                 elif action == 'k' and random.random() < 0.2:\n        \
                     # A writer that is killed.\n        \
                     pid = os.fork()\n        \
                     if pid == 0:\n            \
                         f = open(path, 'w')\n            f.write('x')\n            f.flush()\n            \
                         os.kill(os.getpid(), signal.SIGKILL)\n        \
                     os.waitpid(pid, 0)\n    \
                 elif not os.path.exists(path):\n        pass\n    \
                 elif action == 'u':\n        \
                     os.unlink(path)\n        numbers.pop(path)\n    \
                 elif action == 'r':\n        \
                     held = held[-5:] + [open(path)]\n    \
                 elif action == 't':\n        \
                     os.truncate(path, 1)\n    \
                 elif action == 'm':\n        \
                     other = 'd/' + random.choice(names)\n        \
                     if other != path:\n            \
                         os.rename(path, other)\n            numbers[other] = numbers.pop(path)\n    \
                 if step % 100 == 99:\n        \
                     numbers = check()\n        say('drop')\n        hear()\n        \
                     numbers = check()\n\
             say('done')\n",
        );
        for _ in 0..15 {
            program.expect("drop");
            drop_caches();
            program.tell("go on");
        }
        program.expect("done");
        program.succeed();
    }
}
