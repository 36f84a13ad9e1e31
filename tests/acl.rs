//! POSIX ACLs: judged by the kernel on the mount, inherited, changed by chmod, kept by commits; all
//! of it compared with the bare directory.

mod common;

use common::bare::{Disk, check_same, compare_with};
use common::{Options, User, finish, options, test_user, text};
use std::path::Path;
use std::process::{Command, Stdio};

/// A mount by root that ordinary users may enter.
fn shared() -> Options {
    options().arg("-o").arg("allow_other,default_permissions")
}

/// What the scenarios here use.
const TOOLS: &str = "
def facl(path): return sh('getfacl -n --absolute-names ' + path)
def setfacl(arguments): return sh('setfacl -n ' + arguments)
READ_WRITE = '-m u:%d:rw ' % BOB
";

fn check(script: &str) {
    check_same(&shared().mount(), &format!("{TOOLS}{script}"));
}

#[test]
fn an_acl_lets_in_and_keeps_out_as_on_a_disk() {
    check(
        "
works = ['read(\"f\")', 'write(\"f\")', 'write(\"f\", \"x\", \"r+\")', 'write(\"f\", \"x\", \"a\")',
         'os.truncate(\"f\", 1)', '[os.access(\"f\", m) for m in (1, 2, 4)]', 'facl(\"f\")', 'st(\"f\")',
         'setfacl(\"-m u:0:r f\")', 'os.getxattr(\"f\", \"system.posix_acl_access\")']
acls = ['-m u:%d:rw' % BOB, '-m u:%d:r' % BOB, '-m u:%d:-' % BOB, '-m u:%d:rw,m::r' % BOB,
        '-m g:%d:rw' % SHARE, '-m g:%d:-' % SHARE, '-m u:%d:rwx,g:%d:-,o::rw' % (BOB, SHARE),
        '-m u::-,g::rw', '-m o::rw,g:%d:r' % SHARE]
for number, acl in enumerate(acls):
    for mode in [0o600, 0o640, 0o666]:
        def judged():
            make('f', content='content')
            os.chown('f', ALICE, SHARE); os.chmod('f', mode)
            # The kernel knows the file by now, and must notice.
            bob('read(\"f\")'); bob('st(\"f\")'); root('st(\"f\")')
            alice('setfacl(\"%s f\")' % acl)
            root('st(\"f\")')
            for who in [bob, alice, lambda w: bob(w, groups=[]), root]:
                for work in works:
                    who(work)
            root('setfacl(\"-b f\")')
            for work in works[:8]:
                bob(work)
        scenario('%d-%o' % (number, mode), judged)
def way():
    os.mkdir('d'); make('d/f', content='x'); os.chmod('d/f', 0o666); os.chmod('d', 0o700)
    for acl in ['u:%d:x', 'u:%d:rx', 'u:%d:wx', 'u:%d:rwx', 'u:%d:w', 'u:%d:r']:
        setfacl('-m ' + acl % BOB + ' d')
        for work in ['read(\"d/f\")', 'os.listdir(\"d\")', 'make(\"d/g\")', 'write(\"d/f\")', 'os.unlink(\"d/g\")']:
            bob(work)
scenario('directories', way)
",
    );
}

#[test]
fn what_is_made_inherits_the_default_acl_and_then_no_umask() {
    check(
        "
defaults = ['-d -m u:%d:rwx' % BOB, '-d -m u::rw,g::r,o::-,u:%d:rw' % BOB, '-d -m g:%d:rwx,m::rx' % SHARE,
            '-d -m u::rwx,g::rwx,o::rwx', '-d -m u::r,g::-,o::rw']
for number, acl in enumerate(defaults):
    for mask in [0, 0o022, 0o077, 0o777]:
        for mode in [0o777, 0o666, 0o600]:
            def inherit():
                setfacl(acl + ' .')
                alice('everything(%d)' % mode, umask=mask)
                alice('os.mkdir(\"dir/below\", %d)' % mode, umask=mask)
                alice('make(\"by-name\")', umask=mask)
                root('write(\"by-root\")', umask=mask)
            scenario('%d-%o-%o' % (number, mask, mode), inherit)
def set_group_id():
    os.chown('.', -1, SHARE); os.chmod('.', 0o2777)
    setfacl('-d -m u:%d:rwx .' % BOB)
    alice('everything()')
    bob('make(\"dir/f\", 0o2777)', umask=0)
    bob('make(\"by-bob\", 0o2777)', umask=0)
scenario('set-group-id', set_group_id)
def taken_back():
    setfacl('-d -m u:%d:rwx .' % BOB)
    alice('make(\"a\", 0o666)')
    setfacl('-k .')
    alice('make(\"b\", 0o666)')
scenario('taken-back', taken_back)
",
    );
}

#[test]
fn an_acl_survives_the_replacement_of_its_file_and_none_leaks_onto_one_without() {
    check(
        "
ways = ['write(\"f\")', 'write(\"f\", \"x\", \"r+\")', 'write(\"f\", \"x\", \"a\")', 'os.truncate(\"f\", 1)',
        'os.truncate(\"f\", 0)', 'sh(\"cp /etc/hostname f\")[0]', 'sh(\"{ echo a; echo b; } > f\")',
        'sh(\"dd if=/dev/zero of=f bs=1 count=3 conv=notrunc status=none\")']
for who in ['alice', 'bob', 'root']:
    for number, way in enumerate(ways):
        for acl in ['-m u:%d:rw' % BOB, '-m g:%d:rw,m::rw,u:%d:rw' % (SHARE, BOB), '-b']:
            for default in ['-k', '-d -m u:0:rwx,g::rwx']:
                def replace():
                    make('f', content='content')
                    os.chown('f', ALICE, ALICE); os.chmod('f', 0o646)
                    setfacl(acl + ' f'); setfacl(default + ' .')
                    os.chown('.', ALICE, ALICE)
                    globals()[who](way)
                    globals()[who]('facl(\"f\")')
                    globals()[who](way)
                scenario('%s-%d-%d-%d' % (who, number, len(acl), len(default)), replace)
def names():
    make('f', content='x'); setfacl(READ_WRITE + 'f')
    for work in ['os.link(\"f\", \"g\")', 'write(\"g\")', 'os.rename(\"f\", \"h\")', 'write(\"h\", \"y\")',
                 'sh(\"cp -a h i\")', 'sh(\"mv i j\")', 'sh(\"cp h k\")', 'facl(\"g h j k\")']:
        root(work)
scenario('names', names)
",
    );
}

#[test]
fn chmod_is_the_mask_of_an_acl_and_an_acl_is_the_mode() {
    check(
        "
def masks():
    make('f'); os.chown('f', ALICE, ALICE)
    setfacl('-m u:%d:rwx,g:%d:rw f' % (BOB, SHARE))
    for mode in [0o777, 0o750, 0o707, 0o666, 0o640, 0]:
        alice('st(\"f\")')
        alice('os.chmod(\"f\", %d)' % mode)
        alice('st(\"f\")')
        alice('facl(\"f\")')
        bob('[os.access(\"f\", m) for m in (1, 2, 4)]')
    for acl in ['-m m::r', '-m g::x', '-m u::r,o::r', '-x u:%d' % BOB, '-b', '-m u::rw,g::r,o::r', '-m u::rwx,g::rwx,o::-']:
        alice('setfacl(\"%s f\")' % acl)
        alice('st(\"f\")')
        alice('os.listxattr(\"f\")')
scenario('masks', masks)
def set_group_id():
    for gid in [ALICE, SHARE, 0]:
        f = 'f%d' % gid
        make(f)
        for who in [alice, bob, root]:
            os.chown(f, ALICE, gid); os.chmod(f, 0o6755); setfacl('-b ' + f)
            who('setfacl(\"-m u:%d:rwx %s\")' % (BOB, f))
            root('st(\"%s\")' % f)
scenario('set-group-id', set_group_id)
def refused():
    alice('make(\"f\")'); alice('os.mkdir(\"d\")'); alice('os.symlink(\"f\", \"l\")')
    good = os.getxattr; setfacl('-m u:0:r f')
    blob = os.getxattr('f', 'system.posix_acl_access')
    global BLOB
    BLOB = blob
    for work in ['os.setxattr(\"f\", \"system.posix_acl_access\", BLOB)', 'os.setxattr(\"f\", \"system.posix_acl_access\", b\"junk\")',
                 'os.setxattr(\"f\", \"system.posix_acl_default\", BLOB)', 'os.setxattr(\"d\", \"system.posix_acl_default\", BLOB)',
                 'os.setxattr(\"l\", \"system.posix_acl_access\", BLOB, follow_symlinks=False)',
                 'os.getxattr(\"l\", \"system.posix_acl_access\", follow_symlinks=False)',
                 'os.getxattr(\"d\", \"system.posix_acl_default\")', 'os.getxattr(\"d\", \"system.posix_acl_access\")',
                 'os.removexattr(\"f\", \"system.posix_acl_access\")', 'os.removexattr(\"f\", \"system.posix_acl_access\")',
                 'os.removexattr(\"d\", \"system.posix_acl_default\")', 'os.listxattr(\"d\")']:
        bob(work)
        alice(work)
        root(work)
scenario('refused', refused)
",
    );
}

#[test]
fn an_acl_set_through_a_writers_handle_appears_with_its_version() {
    check(
        "
def through_the_handle():
    make('like'); setfacl(READ_WRITE + 'like')
    global BLOB
    BLOB = os.getxattr('like', 'system.posix_acl_access')
    for how in ['w', 'r+', 'a']:
        for order in [0, 1, 2]:
            f = '%s%d' % (how, order)
            make(f, content='content'); os.chown(f, ALICE, ALICE); os.chmod(f, 0o644)
            if order == 2: setfacl('-m u:0:rwx ' + f)
            def write_and_set():
                with open(f, how) as o:
                    seen = []
                    if order: o.write('x'); o.flush()
                    os.setxattr(o.fileno(), 'system.posix_acl_access', BLOB)
                    seen.append(oct(os.fstat(o.fileno()).st_mode))
                    o.write('y'); o.flush()
                    os.fchmod(o.fileno(), 0o640)
                    seen.append(oct(os.fstat(o.fileno()).st_mode))
                    seen.append(os.getxattr(o.fileno(), 'system.posix_acl_access') == BLOB)
                    return seen
            alice(write_and_set)
            bob('read(\"%s\")' % f)
            bob('write(\"%s\")' % f)
            root('facl(\"%s\")' % f)
scenario('handles', through_the_handle)
def created():
    make('like'); setfacl(READ_WRITE + 'like')
    global BLOB
    BLOB = os.getxattr('like', 'system.posix_acl_access')
    def create_and_set():
        with open('f', 'x') as o:
            o.write('x')
            os.setxattr('f', 'system.posix_acl_access', BLOB)
            return oct(os.stat('f').st_mode)
    alice(create_and_set)
    root('facl(\"f\")')
scenario('created', created)
def meanwhile():
    make('f', content='content'); os.chown('f', ALICE, ALICE)
    def others_set():
        with open('f', 'r+') as o:
            o.write('x'); o.flush()
            sh('setfacl -n -m u:%d:rw f' % BOB)
            o.write('y')
    alice(others_set)
    bob('read(\"f\")')
    root('facl(\"f\")')
scenario('meanwhile', meanwhile)
",
    );
}

#[test]
fn an_ordinary_users_mount_has_acls_too() {
    let mount = options().user(User::Ordinary).mount();
    let (uid, _) = test_user();
    mount.bash("umask 077; echo old > f; setfacl -m u:0:rw f; mkdir d; setfacl -d -m u:0:rwx d");
    for update in [
        "echo new > f",
        "echo more >> f",
        "printf x 1<> f",
        "truncate -s 1 f",
    ] {
        mount.bash(update);
        let acl = mount.bash("getfacl -cn f");
        assert_eq!(
            acl,
            "user::rw-\nuser:0:rw-\ngroup::---\nmask::rw-\nother::---\n\n"
        );
        assert_eq!(facl(&mount.behind("f")), acl, "{update}");
    }
    mount.bash("umask 077; echo x > d/f; mkdir d/d; mkfifo d/p");
    for name in ["d/f", "d/d", "d/p"] {
        let acl = mount.bash(&format!("getfacl -cn {name}"));
        assert!(acl.contains("user:0:rwx"), "{name}: {acl}");
        assert_eq!(facl(&mount.behind(name)), acl);
    }
    // The kernel judges by them: an owner that may read by nothing but an ACL may not.
    mount.bash(&format!("setfacl -m u::-,u:{uid}:rw f"));
    let denied = mount.try_run("bash", "cat f");
    assert!(text(&denied.stderr).contains("Permission denied"));
}

fn facl(path: &Path) -> String {
    let mut command = Command::new("getfacl");
    command.args(["-cn", "--absolute-names"]).arg(path);
    text(&finish(command.stdin(Stdio::null())).stdout)
}

fn on_disk(make: &[&str], options: &str, script: &str) {
    let disk = Disk::new(make, options);
    let mount = shared().backing(disk.dir("backing")).mount();
    let found = compare_with(&mount, &disk.dir("bare"), &format!("{TOOLS}{script}"));
    assert!(found.is_empty(), "{}", found.join("\n"));
    mount.unmount();
}

/// A bit of everything.
const MIXED: &str = "
def mixed():
    os.chown('.', ALICE, SHARE); os.chmod('.', 0o2775)
    for mask in [0, 0o027, 0o077]:
        for who in ['alice', 'bob', 'root']:
            f = '%s%o' % (who, mask)
            globals()[who]('make(\"%s\", 0o666, \"x\")' % f, umask=mask)
            globals()[who]('os.mkdir(\"%s.d\")' % f, umask=mask)
            globals()[who]('setfacl(\"-m u:0:rw %s\")' % f)
            alice('os.getxattr(\"%s\", \"system.posix_acl_access\")' % f)
            bob('write(\"%s\")' % f)
            bob('facl(\"%s\")' % f)
            globals()[who]('write(\"%s\")' % f)
    alice('setfacl(\"-d -m u:0:rwx .\")')
    alice('everything()', umask=0o077)
    alice('write(\"file\")')
scenario('mixed', mixed)
";

#[test]
fn a_backing_without_acls_has_none_on_the_mount_either() {
    // As on NFS 4 and FAT.
    on_disk(&["mkfs.btrfs", "-q"], "loop,noacl", MIXED);
}

#[test]
fn acls_are_the_same_on_xfs_and_btrfs() {
    on_disk(&["mkfs.xfs", "-q"], "loop", MIXED);
    on_disk(&["mkfs.btrfs", "-q"], "loop", MIXED);
}
