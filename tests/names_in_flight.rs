//! A file that is being created has a name, and all that can be done to a name can be done to it at
//! once. Each case is done by the writer itself, and by another thread, on the mount and on a bare
//! directory: the same must come of it.

mod common;

use common::{Mount, User, finish, options, text};
use std::path::Path;

const BOTH: [User; 2] = [User::Root, User::Ordinary];

/// What the cases use: `t` prints what comes of a call, `f` writes to `p`, which is new.
const HARNESS: &str = r#"
import ctypes, errno, os, stat, subprocess, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
def rename2(old, new, flags):
    if libc.renameat2(-100, old.encode(), -100, new.encode(), flags) != 0:
        raise OSError(ctypes.get_errno(), '')
def t(what, call):
    try:
        came = call()
    except OSError as e:
        came = errno.errorcode[e.errno]
    print('   ', what + ':', came)
def put(name, content):
    with open(name, 'w') as file:
        file.write(content)
def ls(path='.'):
    return sorted(name for name in os.listdir(path) if name != '.latchfs')
def links(*names):
    return [os.lstat(name).st_nlink for name in names]
def begin(name, content):
    file = open(name, 'w')
    file.write(content)
    file.flush()
    return file
def as_another(work):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    if thread.is_alive():
        print('it waits')
        os._exit(1)
def tree():
    for top, dirs, files in os.walk('.'):
        for name in sorted(dirs + files):
            path = os.path.join(top, name)
            if '.latchfs' in path:
                continue
            s = os.lstat(path)
            content = open(path).read() if stat.S_ISREG(s.st_mode) else ''
            yield path, oct(s.st_mode), s.st_nlink, content
def case(what, work, by):
    print(what)
    subprocess.run('rm -rf ./*; mkdir dir dir2; ln -s other sl; mkfifo fifo', shell=True)
    put('other', 'other')
    put('third', 'third')
    f = begin('p', 'half')
    if by == 'another':
        as_another(lambda: work(f))
    else:
        work(f)
    t('close', f.close)
    for line in sorted(tree()):
        print('   ', *line)
"#;

fn run(mount: &Mount, at: &Path, cases: &str, by: &str) -> String {
    let script = format!(
        "{HARNESS}\n{cases}\nfor name, work in list(globals().items()):\n    \
             if name.startswith('case_'):\n        case(name[5:], work, {by:?})\n"
    );
    let mut command = mount.command("timeout");
    command
        .args(["50", "python3", "-c", &script])
        .current_dir(at);
    let output = finish(&mut command);
    assert!(
        output.status.success(),
        "{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// Runs cases on a mount and on a bare directory, and compares what is printed.
fn same(cases: &str) {
    let wanted = cases.matches("def case_").count();
    for user in BOTH {
        let mount = options().user(user).mount();
        let bare = mount.point().with_file_name("bare");
        assert!(finish(mount.command("mkdir").arg(&bare)).status.success());
        for by in ["its writer", "another"] {
            let expected = run(&mount, &bare, cases, by);
            assert_eq!(
                expected.matches("    close: None").count(),
                wanted,
                "{expected}"
            );
            let seen = run(&mount, mount.point(), cases, by);
            for (expected, seen) in expected.split("\n    close").zip(seen.split("\n    close")) {
                assert_eq!(seen, expected, "by {by}, {user:?}");
            }
            assert_eq!(seen, expected, "by {by}, {user:?}");
        }
    }
}

#[test]
fn a_file_being_created_is_there_for_whoever_would_make_something_of_its_name() {
    same(
        r#"
def case_open_exclusively(f):
    t('open', lambda: os.open('p', os.O_CREAT | os.O_EXCL | os.O_WRONLY))
def case_mkdir(f):
    t('mkdir', lambda: os.mkdir('p'))
def case_symlink(f):
    t('symlink', lambda: os.symlink('x', 'p'))
def case_mkfifo(f):
    t('mkfifo', lambda: os.mkfifo('p'))
def case_link(f):
    t('link', lambda: os.link('other', 'p'))
def case_as_a_directory(f):
    t('list', lambda: os.listdir('p'))
    t('stat', lambda: os.stat('p/x'))
    t('slash', lambda: os.stat('p/'))
    t('open', lambda: os.open('p/x', os.O_CREAT | os.O_WRONLY))
    t('rmdir', lambda: os.rmdir('p'))
    t('rename into it', lambda: os.rename('other', 'p/x'))
    t('rename a directory over it', lambda: os.rename('dir', 'p'))
def case_as_a_link(f):
    t('readlink', lambda: os.readlink('p'))
"#,
    );
}

#[test]
fn a_file_being_created_has_attributes_that_can_be_changed() {
    same(
        r#"
def case_mode_and_times(f):
    t('chmod', lambda: os.chmod('p', 0o604))
    t('mode', lambda: oct(os.stat('p').st_mode))
    t('utime', lambda: os.utime('p', (1, 2)))
    t('time', lambda: os.stat('p').st_mtime)
    t('chown', lambda: os.chown('p', os.getuid(), os.getgid()))
    t('access', lambda: (os.access('p', os.R_OK | os.W_OK), os.access('p', os.X_OK)))
def case_extended_attributes(f):
    t('none', lambda: os.getxattr('p', 'user.a'))
    t('set', lambda: [os.setxattr('p', 'user.' + a, b'1') for a in 'abc'])
    t('get', lambda: os.getxattr('p', 'user.a'))
    t('remove', lambda: os.removexattr('p', 'user.b'))
    t('list', lambda: sorted(a for a in os.listxattr('p') if a.startswith('user.')))
def case_listing(f):
    t('scandir', lambda: sorted((e.name, e.is_file(follow_symlinks=False),
        e.inode() == os.lstat(e.name).st_ino) for e in os.scandir('.') if e.name != '.latchfs'))
    t('same', lambda: os.stat('p').st_ino == os.fstat(f.fileno()).st_ino)
"#,
    );
}

#[test]
fn attributes_of_a_file_being_created_are_kept_by_its_commit() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.python(
            "f = open('p', 'w')\nf.write('half')\nf.flush()\n\
             other = \"import os; os.chmod('p', 0o604); os.setxattr('p', 'user.a', b'1')\"\n\
             subprocess.run([sys.executable, '-c', other], check=True)\n\
             number = os.stat('p').st_ino\nf.close()\n\
             assert os.stat('p').st_mode & 0o7777 == 0o604\n\
             assert os.getxattr('p', 'user.a') == b'1' and os.stat('p').st_ino == number\n",
        );
        assert_eq!(mount.read_behind("p"), "half");
    }
}

#[test]
fn a_file_being_created_can_be_renamed_wherever_a_file_can() {
    same(
        r#"
def case_there_and_back(f):
    t('rename', lambda: os.rename('p', 'q'))
    t('ls', ls)
    t('rename', lambda: os.rename('q', 'dir/q'))
    t('rename', lambda: os.rename('dir/q', 'p'))
    t('itself', lambda: os.rename('p', 'p'))
def case_with_its_directory(f):
    t('rename', lambda: os.rename('p', 'dir/p'))
    t('rename', lambda: os.rename('dir', 'moved'))
    t('ls', lambda: ls('moved'))
    t('rmdir', lambda: os.rmdir('moved'))
    t('over', lambda: os.rename('dir2', 'moved'))
def case_over_what_is_no_file(f):
    t('directory', lambda: os.rename('p', 'dir'))
    t('link', lambda: os.rename('p', 'sl'))
    t('fifo', lambda: os.rename('sl', 'fifo'))
    t('ls', ls)
def case_to_nowhere(f):
    t('no directory', lambda: os.rename('p', 'none/x'))
    t('below a file', lambda: os.rename('p', 'other/x'))
    t('below itself', lambda: os.rename('p', 'p/x'))
    t('a directory', lambda: os.rename('p', 'dir/'))
    t('too long', lambda: os.rename('p', 'n' * 256))
    t('as long as can be', lambda: os.rename('p', 'n' * 255))
def case_over_a_file(f):
    t('rename', lambda: os.rename('p', 'other'))
    t('ls', ls)
def case_over_a_file_and_away(f):
    t('rename', lambda: os.rename('p', 'other'))
    t('rename', lambda: os.rename('other', 'q'))
    t('gone', lambda: os.stat('other'))
    t('ls', ls)
def case_over_a_file_and_removed(f):
    t('rename', lambda: os.rename('p', 'other'))
    t('unlink', lambda: os.unlink('other'))
    t('gone', lambda: os.stat('other'))
    t('ls', ls)
def case_over_one_file_and_another(f):
    t('rename', lambda: os.rename('p', 'other'))
    t('rename', lambda: os.rename('other', 'third'))
    t('gone', lambda: os.stat('other'))
    t('ls', ls)
def case_by_way_of_another_name(f):
    t('one', lambda: os.rename('p', 't'))
    t('two', lambda: os.rename('other', 'p'))
    t('three', lambda: os.rename('t', 'other'))
def case_without_replacing(f):
    t('onto it', lambda: rename2('other', 'p', NOREPLACE))
    t('it onto', lambda: rename2('p', 'other', NOREPLACE))
    t('a directory', lambda: rename2('p', 'dir', NOREPLACE))
    t('new', lambda: rename2('p', 'new', NOREPLACE))
def case_wrong_flags(f):
    t('both', lambda: rename2('p', 'q', NOREPLACE | EXCHANGE))
    t('unknown', lambda: rename2('p', 'q', 16))
def case_with_a_whiteout(f):
    if os.getuid() == 0:
        t('rename', lambda: rename2('p', 'q', WHITEOUT))
        t('ls', ls)
"#,
    );
}

#[test]
fn a_file_being_created_can_change_places_with_another() {
    same(
        r#"
def case_with_a_file(f):
    t('exchange', lambda: rename2('p', 'other', EXCHANGE))
    t('read', lambda: open('p').read())
    t('ls', ls)
def case_the_other_way(f):
    t('exchange', lambda: rename2('dir/none', 'p', EXCHANGE))
    t('exchange', lambda: rename2('other', 'p', EXCHANGE))
    t('read', lambda: open('p').read())
def case_with_a_directory(f):
    put('dir/x', 'x')
    t('exchange', lambda: rename2('p', 'dir', EXCHANGE))
    t('ls', lambda: ls('p'))
def case_with_a_link_and_back(f):
    t('exchange', lambda: rename2('p', 'sl', EXCHANGE))
    t('link', lambda: os.readlink('p'))
    t('exchange', lambda: rename2('p', 'sl', EXCHANGE))
    t('link', lambda: os.readlink('sl'))
def case_with_nothing(f):
    t('exchange', lambda: rename2('p', 'none', EXCHANGE))
    t('exchange', lambda: rename2('none', 'p', EXCHANGE))
def case_with_itself(f):
    t('exchange', lambda: rename2('p', 'p', EXCHANGE))
def case_after_a_rename_over_a_file(f):
    t('rename', lambda: os.rename('p', 'other'))
    t('exchange', lambda: rename2('other', 'third', EXCHANGE))
    t('read', lambda: open('other').read())
    t('ls', ls)
"#,
    );
}

#[test]
fn two_files_being_created_can_take_each_others_names() {
    for by in ["exchange", "rename"] {
        for user in BOTH {
            let mount = options().user(user).mount();
            let swap = match by {
                "exchange" => "rename2('p', 'q', EXCHANGE)",
                _ => "os.rename('p', 't'), os.rename('q', 'p'), os.rename('t', 'q')",
            };
            mount.python(&format!(
                "{HARNESS}\nf, g = begin('p', 'of p'), begin('q', 'of q')\n{swap}\n\
                 assert ls() == ['p', 'q']\nf.close()\nassert ls() == ['p', 'q']\ng.close()\n\
                 assert open('p').read() == 'of q' and open('q').read() == 'of p'\n"
            ));
            assert_eq!(mount.read_behind("p") + &mount.read_behind("q"), "of qof p");
            assert_eq!(mount.store("kept"), [""; 0]);
        }
    }
}

#[test]
fn a_file_that_changed_places_with_one_being_created_stays_if_its_writer_is_killed() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("echo other > other");
        let mut writer = mount.spawn_python(&format!(
            "{HARNESS}\nf = begin('p', 'half')\nrename2('p', 'other', EXCHANGE)\nsay('done')\nhear()\n"
        ));
        writer.expect("done");
        writer.signal("KILL");
        writer.wait();
        common::wait_until("it is rolled back", || mount.bash("ls") == "p\n");
        assert_eq!(mount.read("p"), "other\n");
        assert_eq!(mount.read_behind("p"), "other\n");
        assert!(!mount.behind("other").exists());
    }
}

#[test]
fn a_file_being_created_can_have_several_names_that_come_and_go() {
    same(
        r#"
def case_links(f):
    t('link', lambda: os.link('p', 'q'))
    t('link', lambda: os.link('q', 'dir/r'))
    t('count', lambda: links('p', 'q', 'dir/r') + [os.fstat(f.fileno()).st_nlink])
    t('same', lambda: len({os.stat(n).st_ino for n in ['p', 'q', 'dir/r']}))
    t('unlink', lambda: os.unlink('p'))
    t('count', lambda: links('q', 'dir/r') + [os.fstat(f.fileno()).st_nlink])
    t('rename', lambda: os.rename('q', 'dir/r'))
    t('ls', lambda: (ls(), ls('dir')))
def case_onto_what_exists(f):
    t('file', lambda: os.link('p', 'other'))
    t('directory', lambda: os.link('p', 'dir'))
    t('itself', lambda: os.link('p', 'p'))
    t('nowhere', lambda: os.link('p', 'none/x'))
def case_of_two_names(f):
    t('link', lambda: os.link('p', 'q'))
    t('exchange', lambda: rename2('p', 'q', EXCHANGE))
    t('rename', lambda: os.rename('p', 'q'))
    t('ls', ls)
def case_one_name_over_a_file(f):
    t('link', lambda: os.link('p', 'q'))
    t('rename', lambda: os.rename('q', 'other'))
    t('count', lambda: links('p', 'other'))
    t('unlink', lambda: os.unlink('p'))
    t('count', lambda: links('other'))
    t('ls', ls)
def case_both_names_over_files(f):
    t('link', lambda: os.link('p', 'q'))
    t('rename', lambda: os.rename('q', 'other'))
    t('rename', lambda: os.rename('p', 'third'))
    t('ls', ls)
def case_both_names_over_files_and_one_away(f):
    t('link', lambda: os.link('p', 'q'))
    t('rename', lambda: os.rename('q', 'other'))
    t('rename', lambda: os.rename('p', 'third'))
    t('rename', lambda: os.rename('other', 'q'))
    t('unlink', lambda: os.unlink('third'))
    t('ls', ls)
def case_over_a_file_and_linked(f):
    t('rename', lambda: os.rename('p', 'other'))
    t('link', lambda: os.link('other', 'q'))
    t('count', lambda: links('other', 'q'))
    t('unlink', lambda: os.unlink('other'))
    t('gone', lambda: os.stat('other'))
    t('ls', ls)
"#,
    );
}

#[test]
fn a_file_being_created_can_be_removed_or_replaced_by_its_writer() {
    same(
        r#"
def case_removed(f):
    t('unlink', lambda: os.unlink('p'))
    t('gone', lambda: os.stat('p'))
    t('links', lambda: os.fstat(f.fileno()).st_nlink)
    t('again', lambda: put('p', 'second'))
def case_removed_and_made_exclusively(f):
    t('unlink', lambda: os.unlink('p'))
    t('open', lambda: open('p', 'x').close())
    t('directory', lambda: os.mkdir('p'))
def case_replaced_by_a_file(f):
    t('rename', lambda: os.rename('other', 'p'))
    t('links', lambda: os.fstat(f.fileno()).st_nlink)
    t('read', lambda: open('p').read())
def case_replaced_by_a_link(f):
    t('rename', lambda: os.rename('sl', 'p'))
    t('link', lambda: os.readlink('p'))
def case_replaced_by_another_that_is_being_created(f):
    g = begin('p2', 'second')
    t('rename', lambda: os.rename('p2', 'p'))
    t('ls', ls)
    t('close', lambda: g.close() or 'done')
    t('read', lambda: open('p').read())
def case_over_another_that_is_being_created(f):
    g = begin('p2', 'second')
    t('rename', lambda: os.rename('p', 'p2'))
    t('links', lambda: os.fstat(g.fileno()).st_nlink)
    t('ls', ls)
    t('close', lambda: g.close() or 'done')
def case_over_a_file_and_replaced(f):
    t('rename', lambda: os.rename('p', 'other'))
    t('rename', lambda: os.rename('third', 'other'))
    t('read', lambda: open('other').read())
    t('ls', ls)
"#,
    );
}

/// Writers create 50 files each, and close them one after the other, while others list the
/// directory; says how often a listing lacked a name or had one twice.
const LISTERS: &str = r#"
WRITERS, FILES = 20, 50
os.mkdir('d')
wanted = sorted(f'{w}-{n}' for w in range(WRITERS) for n in range(FILES))
def forked(work):
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return child
def write(w):
    files = [begin(f'd/{w}-{n}', 'x') for n in range(FILES)]
    os.write(made[1], b'x')
    os.read(start[0], 1)
    for file in files:
        file.close()
def look(attributes):
    looks = wrong = 0
    while not os.path.exists('stop') or looks < 3:
        if attributes:
            seen = [e.name for e in os.scandir('d') if e.stat()]
        else:
            seen = os.listdir('d')
        looks += 1
        wrong += sorted(seen) != wanted
    os.write(1, f'{wrong} wrong\n'.encode())
made, start = os.pipe(), os.pipe()
writers = [forked(lambda: write(w)) for w in range(WRITERS)]
for _ in writers:
    os.read(made[0], 1)
listers = [forked(lambda: look(attributes)) for attributes in [False, False, True]]
os.write(start[1], b'x' * WRITERS)
for child in writers:
    assert os.waitpid(child, 0)[1] == 0
put('stop', '')
for child in listers:
    assert os.waitpid(child, 0)[1] == 0
"#;

#[test]
fn a_listing_during_a_thousand_commits_has_every_name_once() {
    for user in BOTH {
        let mount = options().user(user).arg("--durability=none").mount();
        let output = mount.python(&format!("{HARNESS}{LISTERS}"));
        assert_eq!(output, "0 wrong\n".repeat(3), "{user:?}");
        let behind = std::fs::read_dir(mount.behind("d")).expect("BACKING");
        assert_eq!(behind.count(), 1000);
    }
}
