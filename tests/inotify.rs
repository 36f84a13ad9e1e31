//! What inotify watchers hear of a commit, and that whoever opens on hearing it gets the new version.

mod common;

use common::{Mount, Running, User, as_each_user, finish, options, text, wait_until};
use std::path::Path;

/// `Inotify` in Python: `hear()` waits for the next event, `last()` for all that was heard until
/// the marker file `END` was made.
const INOTIFY: &str = r#"
import ctypes, select, struct
libc = ctypes.CDLL(None, use_errno=True)
WORDS = {1: 'ACCESS', 2: 'MODIFY', 4: 'ATTRIB', 8: 'CLOSE_WRITE', 16: 'CLOSE_NOWRITE', 32: 'OPEN',
         64: 'MOVED_FROM', 128: 'MOVED_TO', 256: 'CREATE', 512: 'DELETE', 1024: 'DELETE_SELF',
         2048: 'MOVE_SELF', 0x4000: 'OVERFLOW', 0x8000: 'IGNORED'}
BITS = {word: bit for bit, word in WORDS.items()}
class Inotify:
    def __init__(self):
        self.fd = libc.inotify_init1(os.O_CLOEXEC)
        self.heard = []
    def watch(self, path, mask=0xfff):
        wd = libc.inotify_add_watch(self.fd, path.encode(), mask)
        if wd < 0:
            raise OSError(ctypes.get_errno(), path)
        return wd
    def hear(self, limit=30):
        while not self.heard:
            if not select.select([self.fd], [], [], limit)[0]:
                raise TimeoutError('nothing was heard')
            data, at = os.read(self.fd, 65536), 0
            while at < len(data):
                wd, mask, _, size = struct.unpack_from('iIII', data, at)
                name = data[at + 16:at + 16 + size].rstrip(b'\0').decode()
                at += 16 + size
                words = [word for bit, word in WORDS.items() if mask & bit]
                self.heard += [(wd, word, name) for word in words]
        return self.heard.pop(0)
    def wait_for(self, word, name=''):
        heard = []
        while not heard or heard[-1] != (word, name):
            heard.append(self.hear()[1:])
        return heard
"#;

/// What is done to `f`; `f` is there, with another name for it if the script wants one.
const ACTS: &[(&str, &str)] = &[
    ("overwrite", "echo new > f"),
    ("append", "echo new >> f"),
    (
        "update in place",
        "dd if=/dev/zero of=f bs=1 count=1 conv=notrunc status=none",
    ),
    ("truncate", "truncate -s 1 f"),
    ("create", "echo new > g"),
    ("write nothing", "exec 3<> f; exec 3>&-"),
    ("read", "cat f"),
    (
        "change the mode and the times",
        "chmod 600 f; touch -d 2020-01-01 f",
    ),
    (
        "a temporary file and a rename over it",
        "echo new > t; mv t f",
    ),
    ("rename away", "mv f g"),
    ("remove", "rm f"),
    ("make a hard link", "ln f g"),
    ("make a directory", "mkdir d; rmdir d"),
];

/// What a watcher of `watched` hears of each act, in `at`.
fn heard(mount: &Mount, at: &Path, watched: &str) -> String {
    let mut script = format!("import errno, os, subprocess\n{INOTIFY}\n");
    script += "acts = [\n";
    for (what, act) in ACTS {
        script += &format!("    ({what:?}, {act:?}),\n");
    }
    script += "]\n";
    script += &format!(
        r#"
for what, act in acts:
    os.system('rm -rf f g t END; echo old > f')
    watcher = Inotify()
    watcher.watch({watched:?})
    subprocess.run(['bash', '-c', act], check=True, stdout=subprocess.DEVNULL)
    heard = []
    if {watched:?} == '.':
        os.mkdir('END')
        heard = watcher.wait_for('CREATE', 'END')[:-1]
        os.rmdir('END')
    else:
        # If its version is not gone yet, it is now.
        os.system('rm -f f g')
        while not heard or heard[-1][0] != 'IGNORED':
            heard.append(watcher.hear()[1:])
    print(what + ':', *[word + (':' + name if name else '') for word, name in heard])
    os.close(watcher.fd)
"#
    );
    let mut command = mount.command("timeout");
    command
        .args(["50", "python3", "-c", &script])
        .current_dir(at);
    let output = finish(&mut command);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// A directory of the same user beside the mount.
fn bare(mount: &Mount) -> std::path::PathBuf {
    let bare = mount.point().with_file_name("bare");
    let made = finish(mount.command("mkdir").arg(&bare));
    assert!(made.status.success());
    bare
}

#[test]
fn a_watcher_of_the_directory_hears_what_it_hears_of_a_bare_one() {
    as_each_user(|mount| {
        let expected = heard(mount, &bare(mount), ".");
        assert!(
            expected.contains("overwrite: OPEN:f MODIFY:f CLOSE_WRITE:f"),
            "{expected}"
        );
        assert_eq!(heard(mount, mount.point(), "."), expected);
    });
}

#[test]
fn a_watcher_of_the_file_hears_of_renames_and_removals_what_it_hears_on_a_bare_directory() {
    as_each_user(|mount| {
        let names = |all: String| -> Vec<String> {
            let of_names = |line: &&str| {
                ["read", "a temporary", "rename", "remove"]
                    .iter()
                    .any(|w| line.starts_with(w))
            };
            all.lines().filter(of_names).map(str::to_owned).collect()
        };
        let expected = names(heard(mount, &bare(mount), "f"));
        assert_eq!(expected.len(), 4);
        assert_eq!(names(heard(mount, mount.point(), "f")), expected);
    });
}

#[test]
fn a_watcher_of_the_file_hears_that_its_version_is_gone() {
    as_each_user(|mount| {
        let seen = heard(mount, mount.point(), "f");
        // That makes no new version.
        assert!(seen.contains("append: OPEN MODIFY CLOSE_WRITE"), "{seen}");
        for what in ["overwrite", "update in place", "truncate"] {
            assert!(
                seen.contains(&format!("{what}: DELETE_SELF IGNORED\n")),
                "{what}: {seen}"
            );
        }
        // Where there is no new version, only of the removal at the end.
        assert!(
            seen.contains("write nothing: ATTRIB DELETE_SELF IGNORED\n"),
            "{seen}"
        );
    });
}

#[test]
fn a_watcher_of_a_file_that_others_read_hears_that_its_version_is_gone() {
    as_each_user(|mount| {
        mount.python(&format!(
            "{INOTIFY}\n\
             open('f', 'w').write('old')\nos.mkdir('d')\n\
             for _ in range(20):\n    \
                 reader, mapped = open('f'), open('f', 'rb')\n    \
                 old = open('f').read()\n    \
                 page = mmap.mmap(mapped.fileno(), 0, prot=mmap.PROT_READ)\n    \
                 watcher = Inotify()\n    watcher.watch('f', BITS['DELETE_SELF'])\n    \
                 new = old + 'x'\n    \
                 subprocess.run(['sh', '-c', f'printf {{new}} > f'], check=True)\n    \
                 assert watcher.wait_for('IGNORED')[0] == ('DELETE_SELF', '')\n    \
                 assert open('f').read() == new and os.stat('f').st_nlink == 1\n    \
                 assert reader.read() == old == page[:].decode()\n    \
                 told = os.fstat(reader.fileno())\n    \
                 assert (told.st_size, told.st_nlink) == (len(old), 0), told\n    \
                 assert told.st_ino == os.stat('f').st_ino\n    \
                 os.close(watcher.fd)\n"
        ));
    });
}

#[test]
fn a_watcher_of_one_of_several_hard_links_hears_of_a_commit_by_another() {
    as_each_user(|mount| {
        mount.python(&format!(
            "{INOTIFY}\n\
             open('f', 'w').write('old')\nos.mkdir('d')\nos.link('f', 'd/g')\n\
             for name in ['d/g', 'f', 'd/g']:\n    \
                 watcher = Inotify()\n    watcher.watch('f', BITS['DELETE_SELF'])\n    \
                 subprocess.run(['sh', '-c', f'echo {{name}} > {{name}}'], check=True)\n    \
                 watcher.wait_for('DELETE_SELF')\n    \
                 assert open('f').read() == open('d/g').read() == name + '\\n'\n    \
                 assert os.stat('f').st_nlink == 2\n"
        ));
    });
}

/// A program that writes versions of `f` when told, each of several writes.
fn versions(mount: &Mount) -> Running {
    mount.spawn_python(
        "say('ready')\n\
         while n := hear():\n    \
             f = open('f', 'w')\n    \
             for _ in range(3):\n        f.write(n + ' ')\n        f.flush()\n    \
             f.close()\n    say('written')\n",
    )
}

#[test]
fn whoever_opens_on_close_write_has_the_new_version_without_waiting() {
    as_each_user(|mount| {
        mount.bash("echo old > f");
        let mut writer = versions(mount);
        writer.expect("ready");
        // With O_NONBLOCK an open does not wait.
        let watcher = mount.spawn_python(&format!(
            "{INOTIFY}\nwatcher = Inotify()\nwatcher.watch('.', BITS['CLOSE_WRITE'])\nsay('ready')\n\
             for n in range(100):\n    watcher.wait_for('CLOSE_WRITE', 'f')\n    \
                 say(os.read(os.open('f', os.O_RDONLY | os.O_NONBLOCK), 100).decode())\n"
        ));
        watcher.expect("ready");
        for n in 0..100 {
            writer.tell(&n.to_string());
            watcher.expect(&format!("{n} {n} {n} "));
            writer.expect("written");
        }
    });
}

#[test]
fn whoever_opens_on_the_first_event_of_a_writer_gets_the_whole_version() {
    for event in ["OPEN", "MODIFY"] {
        as_each_user(|mount| {
            mount.bash("echo old > f");
            let mut writer = versions(mount);
            writer.expect("ready");
            let watcher = mount.spawn_python(&format!(
                "{INOTIFY}\nsay('ready')\n\
                 while hear():\n    \
                     watcher = Inotify()\n    watcher.watch('.', BITS['{event}'])\n    \
                     say('watching')\n    \
                     watcher.wait_for('{event}', 'f')\n    say(open('f').read())\n    \
                     os.close(watcher.fd)\n"
            ));
            let mut watcher = watcher;
            watcher.expect("ready");
            for n in 0..50 {
                watcher.tell("watch");
                watcher.expect("watching");
                writer.tell(&n.to_string());
                watcher.expect(&format!("{n} {n} {n} "));
                writer.expect("written");
            }
        });
    }
}

#[test]
fn whoever_opens_a_created_file_on_hearing_of_it_gets_the_whole_of_it() {
    as_each_user(|mount| {
        mount.python(&format!(
            "{INOTIFY}\n\
             for n in range(50):\n    \
                 watcher = Inotify()\n    watcher.watch('.', BITS['CREATE'])\n    \
                 writer = subprocess.Popen(['bash', '-c', f'{{{{ echo a; echo b; }}}} > f{{n}}'])\n    \
                 watcher.wait_for('CREATE', f'f{{n}}')\n    \
                 assert open(f'f{{n}}').read() == 'a\\nb\\n'\n    \
                 assert writer.wait() == 0\n    os.close(watcher.fd)\n"
        ));
    });
}

// As of systemd's PathChanged=, and of every program that survives editors which rename.
#[test]
fn a_watch_put_on_the_file_again_hears_of_every_commit() {
    as_each_user(|mount| {
        mount.bash("echo old > f");
        let mut writer = versions(mount);
        writer.expect("ready");
        let watcher = mount.spawn_python(&format!(
            "{INOTIFY}\nwatcher = Inotify()\n\
             wanted = sum(BITS[w] for w in 'DELETE_SELF MOVE_SELF ATTRIB CLOSE_WRITE'.split())\n\
             for n in range(100):\n    \
                 watcher.watch('f', wanted)\n    say('watching')\n    \
                 watcher.wait_for('IGNORED')\n    say(open('f').read())\n"
        ));
        for n in 0..100 {
            watcher.expect("watching");
            writer.tell(&n.to_string());
            watcher.expect(&format!("{n} {n} {n} "));
            writer.expect("written");
        }
    });
}

#[test]
fn inotifywait_hears_of_commits_in_a_directory_and_to_a_file() {
    as_each_user(|mount| {
        mount.bash("echo old > f; mkdir d");
        // What loops of shell scripts do; it says on stderr when it watches.
        let mut loops = mount.spawn(
            "bash",
            "for n in $(seq 10); do inotifywait -e close_write,delete_self,move_self f 2>&1 || exit; \
             cat f; done",
        );
        for n in 0..10 {
            loops.expect("Setting up watches.");
            loops.expect("Watches established.");
            mount.bash(&format!("echo {n} > f"));
            loops.expect("f DELETE_SELF ");
            loops.expect(&n.to_string());
        }
        loops.succeed();
        let mut monitor = mount.spawn(
            "bash",
            "exec inotifywait -m -r -e close_write,moved_to . 2>&1",
        );
        monitor.expect("Setting up watches.  Beware: since -r was given, this may take a while!");
        monitor.expect("Watches established.");
        for n in 0..10 {
            mount.bash(&format!(
                "echo {n} > f; echo {n} > d/g; echo {n} > t; mv t f"
            ));
            for line in ["./ CLOSE_WRITE,CLOSE f", "./d/ CLOSE_WRITE,CLOSE g"] {
                monitor.expect(line);
            }
            monitor.expect("./ CLOSE_WRITE,CLOSE t");
            monitor.expect("./ MOVED_TO f");
        }
        monitor.signal("TERM");
        monitor.wait();
    });
}

/// Committers, creators, renamers, readers and watchers in one directory, until a file `stop` is
/// there or the mount is gone.
const STORM: &str = r#"
def forever(work):
    n = 0
    while not os.path.exists('../stop'):
        try:
            work(n)
        except (FileNotFoundError, FileExistsError, InterruptedError, TimeoutError):
            pass
        n += 1
def commit(n):
    open(f'f{n % 3}', 'w').write('x' * 4096)
def create(n):
    open(f'new{os.getpid()}', 'x').write('x')
    os.unlink(f'new{os.getpid()}')
def rename(n):
    open('t%d' % os.getpid(), 'w').write('x' * 4096)
    os.rename('t%d' % os.getpid(), f'f{n % 3}')
def swap(n):
    os.rename(f'f{n % 3}', f'f{(n + 1) % 3}')
def link(n):
    os.link(f'f{n % 3}', f'f{(n + 1) % 4}')
def directory(n):
    os.mkdir(f'd{os.getpid()}')
    os.rmdir(f'd{os.getpid()}')
def read(n):
    with open(f'f{n % 3}') as f:
        assert len(f.read()) == 4096
        os.listdir()
        assert len(f.read()) == 0
def watch(n):
    watcher = Inotify()
    try:
        watcher.watch(f'f{n % 3}', BITS['MODIFY'] | BITS['ATTRIB'] | BITS['DELETE_SELF'])
        watcher.hear(0.05)
    finally:
        os.close(watcher.fd)
children = []
for work in [commit, commit, create, rename, swap, link, directory, read, read, watch, watch, watch]:
    child = os.fork()
    if child == 0:
        try:
            forever(work)
            os._exit(0)
        except OSError as e:
            if e.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO):
                os._exit(0)
            print(work.__name__, repr(e), flush=True)
        except BaseException as e:
            print(work.__name__, repr(e), flush=True)
        os._exit(1)
    children.append(child)
say('running')
bad = [c for c in children if os.waitpid(c, 0)[1]]
say('ended', len(bad))
"#;

#[test]
fn commits_among_creators_renamers_readers_and_watchers_do_not_deadlock() {
    as_each_user(|mount| {
        let mut storm = mount.spawn_python(&format!("{INOTIFY}{STORM}"));
        storm.expect("running");
        let commits = || mount.log().matches(": committed for pid ").count();
        wait_until("there were many commits", || commits() > 500);
        std::fs::write(mount.point().with_file_name("stop"), "").expect("stop");
        storm.expect("ended 0");
        storm.succeed();
        let log = mount.log();
        assert!(!log.contains("ERROR"), "{log}");
    });
}

#[test]
fn a_daemon_killed_while_it_tells_watchers_takes_nobody_with_it() {
    for user in [User::Root, User::Ordinary] {
        for round in 1..=3 {
            let mount = options().user(user).mount();
            let mut storm = mount.spawn_python(&format!("{INOTIFY}{STORM}"));
            storm.expect("running");
            let commits = || mount.log().matches(": committed for pid ").count();
            wait_until("it is at work", || commits() > 20 * round);
            mount.crash();
            storm.expect("ended 0");
            storm.succeed();
        }
    }
}
