//! Many users on one mount of root's (`allow_other`): what is whose, who may do what, and what
//! becomes of set-user-id; compared, outcome by outcome, with the bare directory.

mod common;

use common::bare::{Disk, check_same, compare_with};
use common::{
    Options, SHARE, User, finish, group, options, second_test_user, test_user, text, wait_until,
};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// A mount by root that ordinary users may enter.
fn shared() -> Options {
    options().arg("-o").arg("allow_other,default_permissions")
}

fn check(script: &str) {
    check_same(&shared().mount(), script);
}

/// Runs a script as a user (with no supplementary groups) in a directory.
fn run_as((uid, gid): (u32, u32), dir: &Path, script: &str) -> (bool, String) {
    let mut command = Command::new("timeout");
    command.args(["50", "bash", "-c", script]).uid(uid).gid(gid);
    let output = finish(command.current_dir(dir).stdin(Stdio::null()));
    let out = text(&output.stdout) + &text(&output.stderr);
    (output.status.success(), out)
}

fn succeed_as(user: (u32, u32), dir: &Path, script: &str) -> String {
    let (ok, out) = run_as(user, dir, script);
    assert!(ok, "{script}: {out}");
    out
}

#[test]
fn the_comparison_with_the_bare_directory_notices_a_difference() {
    let mount = shared().mount();
    let bare = mount.backing().with_file_name("bare");
    fs::create_dir(&bare).expect("mkdir");
    // A set-group-id directory gives its group to one of them only.
    fs::set_permissions(&bare, fs::Permissions::from_mode(0o2755)).expect("chmod");
    chown(&bare, None, Some(group(SHARE))).expect("chgrp");
    let found = compare_with(
        &mount,
        &bare,
        "scenario('s', lambda: alice(\"make('f')\"))\n",
    );
    assert!(!found.is_empty());
}

#[test]
fn what_is_made_belongs_to_who_made_it_with_the_umask_of_that_program() {
    check(
        "
for number, mask in enumerate([0, 0o022, 0o027, 0o077, 0o777]):
    for mode in [0o777, 0o666, 0o400, 0]:
        scenario(f'alice-{number}-{mode}', lambda: alice('everything(%d)' % mode, umask=mask))
        scenario(f'root-{number}-{mode}', lambda: root('everything(%d)' % mode, umask=mask))
def bits():
    for mode in [0o4755, 0o2755, 0o6777, 0o2644, 0o1777]:
        alice('make(\"f%d\", %d)' % (mode, mode), umask=0)
        alice('os.mkdir(\"d%d\", %d)' % (mode, mode), umask=0)
        alice('os.mkfifo(\"p%d\", %d)' % (mode, mode), umask=0)
scenario('bits', bits)
def groups():
    alice('everything()', groups=[])
    # A process that has changed its group.
    user((ALICE, SHARE, []))('make(\"newgrp\")')
    user((0, SHARE, []))('make(\"root-newgrp\")')
scenario('groups', groups)
",
    );
}

#[test]
fn a_set_group_id_directory_gives_its_group_and_directories_the_bit() {
    check(
        "
def prepare(gid):
    os.mkdir('d'); os.chown('d', 0, gid); os.chmod('d', 0o2777); os.chdir('d')
def member():
    prepare(SHARE)
    alice('everything()')
    alice(\"make('x', 0o2775)\", umask=0)
    alice(\"os.mkdir('dir/below')\")
    alice(\"make('dir/f')\")
    root(\"os.mkdir('by-root')\")
def stranger():
    prepare(0)
    alice('everything()')
    # Who is not in the group can't make files that act for it.
    for mode in [0o2775, 0o2675, 0o6777, 0o2644]:
        alice('make(\"f%d\", %d)' % (mode, mode), umask=0)
        alice('os.mknod(\"n%d\", stat.S_IFREG | %d)' % (mode, mode), umask=0)
        alice('os.mkdir(\"d%d\", %d)' % (mode, mode), umask=0)
    root(\"make('by-root', 0o2775)\")
scenario('member', member)
scenario('stranger', stranger)
",
    );
}

#[test]
fn in_a_sticky_directory_only_the_owner_removes_a_file_but_others_may_update_it() {
    check(
        "
def sticky():
    os.chmod('.', 0o1777)
    alice(\"make('f', 0o666, 'old')\", umask=0)
    alice(\"make('g', 0o666, 'old')\", umask=0)
    bob(\"make('mine', 0o666, 'mine')\", umask=0)
    for work in ['os.unlink(\"f\")', 'os.rename(\"f\", \"h\")', 'os.rename(\"mine\", \"f\")',
                 'write(\"f\", \"by bob\", \"r+\")', 'write(\"f\", \"more\", \"r+\")',
                 'os.truncate(\"g\", 2)', 'os.truncate(\"g\", 0)', 'st(\"f\")', 'st(\"g\")']:
        bob(work)
    alice(\"os.unlink('g')\")
    alice(\"os.rename('f', 'h')\")
    root(\"os.unlink('mine')\")
scenario('sticky', sticky)
def own():
    os.chown('.', ALICE, -1)
    os.chmod('.', 0o1777)
    bob(\"make('f', 0o644)\")
    alice(\"os.rename('f', 'g')\")
    alice(\"os.unlink('g')\")
scenario('the-owner-of-the-directory', own)
",
    );
}

#[test]
fn chown_and_chmod_are_for_who_may_and_drop_set_user_id_as_they_should() {
    check(
        "
def chowns():
    for mode in [0o644, 0o6755, 0o2644, 0o6711, 0o4644]:
        f = 'f%o' % mode
        alice(f\"make('{f}')\")
        for who, uid, gid in [(alice, -1, SHARE), (alice, -1, ALICE), (alice, BOB, -1), (alice, -1, 0),
                              (alice, ALICE, -1), (bob, -1, SHARE), (bob, BOB, BOB), (root, BOB, BOB),
                              (alice, -1, SHARE), (bob, -1, SHARE), (root, -1, 0), (bob, BOB, -1),
                              (bob, -1, -1), (root, 0, 0)]:
            os.chmod(f, mode)
            who(f\"os.chown('{f}', {uid}, {gid})\")
            who(f\"st('{f}')\")
scenario('chown', chowns)
def on_handles():
    for how in ['r', 'r+', 'w', 'a']:
        alice(f\"make('{how}', 0o666, 'old')\")
        os.chmod(how, 0o6755)
        def change():
            with open(how, how) as f:
                if how != 'r': f.write('x'); f.flush()
                os.fchmod(f.fileno(), 0o2640)
                os.fchown(f.fileno(), -1, SHARE)
                if how != 'r': f.write('y')
                return [oct(os.fstat(f.fileno()).st_mode), os.fstat(f.fileno()).st_gid]
        alice(change)
        bob(change)
scenario('handles', on_handles)
def directories():
    alice(\"os.mkdir('d')\")
    os.chmod('d', 0o2755)
    alice(f\"os.chown('d', -1, {SHARE})\")
    alice(\"st('d')\")
    alice(\"os.symlink('nowhere', 'l')\")
    alice(f\"os.lchown('l', -1, {SHARE})\")
    bob(f\"os.lchown('l', {BOB}, -1)\")
scenario('directories', directories)
def chmods():
    for gid in [ALICE, SHARE, 0]:
        for name in ['f', 'd']:
            path = '%s%d' % (name, gid)
            make(path) if name == 'f' else os.mkdir(path)
            os.chown(path, ALICE, gid)
            for mode in [0o2755, 0o2644, 0o4755, 0o1777, 0o7777, 0]:
                alice('os.chmod(\"%s\", %d)' % (path, mode))
                alice('st(\"%s\")' % path)
            bob('os.chmod(\"%s\", 0o777)' % path)
scenario('chmod', chmods)
",
    );
}

#[test]
fn permissions_are_those_of_owner_group_and_others_in_that_order() {
    check(
        "
works = ['read(\"f\")', 'write(\"f\")', 'write(\"f\", \"x\", \"r+\")', 'write(\"f\", \"x\", \"a\")',
         'os.truncate(\"f\", 1)', '[os.access(\"f\", m) for m in (1, 2, 4)]', 'os.utime(\"f\")',
         'os.utime(\"f\", (1, 2))', 'os.setxattr(\"f\", \"user.x\", b\"1\")', 'os.getxattr(\"f\", \"user.x\")',
         'os.setxattr(\"f\", \"trusted.x\", b\"1\")', 'os.getxattr(\"f\", \"trusted.x\")',
         'os.setxattr(\"f\", \"security.x\", b\"1\")', 'os.listxattr(\"f\")', 'os.link(\"f\", \"g\")']
for mode in [0, 0o600, 0o060, 0o006, 0o066, 0o440, 0o664, 0o222, 0o111]:
    for gid in ['ALICE', 'SHARE']:
        def try_all():
            make('f', content='content')
            os.chown('f', ALICE, globals()[gid])
            os.chmod('f', mode)
            os.setxattr('f', 'trusted.t', b't')
            for who in [alice, bob, root]:
                for work in works:
                    who(work)
                if os.path.exists('g'): os.unlink('g')
        scenario('%o-%s' % (mode, gid), try_all)
def in_directories():
    for mode in [0, 0o700, 0o070, 0o755, 0o733, 0o744, 0o770]:
        d = 'd%o' % mode
        os.mkdir(d); make(d + '/f', content='x'); os.chmod(d + '/f', 0o666)
        os.chown(d, ALICE, SHARE); os.chmod(d, mode)
        for who in [alice, bob, root, lambda work: bob(work, groups=[])]:
            for work in ['os.listdir(\"%s\")', 'read(\"%s/f\")', 'write(\"%s/f\")', 'make(\"%s/new\")',
                         'os.unlink(\"%s/new\")', 'os.mkdir(\"%s/dir\")', 'os.rmdir(\"%s/dir\")',
                         'os.rename(\"%s/f\", \"%s/f\")', 'write(\"%s/by-name\")', 'st(\"%s/f\")']:
                who(work.replace('%s', d))
scenario('directories', in_directories)
",
    );
}

#[test]
fn a_write_drops_set_user_id_and_capabilities_as_on_a_disk() {
    check(
        "
CAP = bytes.fromhex('0100000200040000000000000000000000000000')
ways = ['write(\"f\")', 'write(\"f\", \"x\", \"r+\")', 'write(\"f\", \"x\", \"a\")', 'os.truncate(\"f\", 1)',
        'os.truncate(\"f\", 0)', 'sh(\"fallocate -l 10 f\")', 'sh(\"cp /etc/hostname f\")[0]',
        'os.chown(\"f\", -1, SHARE)', 'os.chmod(\"f\", 0o6777)', 'os.close(os.open(\"f\", os.O_RDWR))']
for number, way in enumerate(ways):
    for mode in [0o6777, 0o4766, 0o2767, 0o2777]:
        for who, gid in [(alice, SHARE), (alice, 0), (bob, SHARE), (bob, 0), (root, SHARE)]:
            def change():
                make('f', content='content')
                os.chown('f', ALICE, gid); os.chmod('f', mode)
                # Root's fallocate can't be told from a chown to -1 there.
                if who != root or 'fallocate' not in way:
                    os.setxattr('f', 'security.capability', CAP)
                who(way)
            scenario('%d-%o-%d-%d' % (number, mode, [alice, bob, root].index(who), gid), change)
",
    );
}

#[test]
fn files_without_versions_know_their_users_too() {
    check(
        "
ways = ['write(\"f.db\")', 'write(\"f.db\", \"x\", \"r+\")', 'write(\"f.db\", \"x\", \"a\")',
        'os.truncate(\"f.db\", 1)', 'sh(\"fallocate -l 10 f.db\")', 'os.chown(\"f.db\", -1, SHARE)',
        'os.chmod(\"f.db\", 0o6777)', 'read(\"f.db\")', 'os.unlink(\"f.db\")']
for number, way in enumerate(ways):
    for mode in [0o6777, 0o4766, 0o2767, 0o640]:
        for who, gid in [(alice, SHARE), (alice, 0), (bob, SHARE), (bob, 0), (root, SHARE)]:
            def change():
                make('f.db', content='content')
                os.chown('f.db', ALICE, gid); os.chmod('f.db', mode)
                who(way)
            scenario('%d-%o-%d-%d' % (number, mode, [alice, bob, root].index(who), gid), change)
def made():
    os.chmod('.', 0o2777)
    for mask in [0, 0o027]:
        alice('make(\"%d.db\", 0o666)' % mask, umask=mask)
        sh('setfacl -d -m u:0:rwx .')
        bob('make(\"%d.sqlite\", 0o2777)' % mask, umask=mask)
        sh('setfacl -k .')
scenario('made', made)
",
    );
}

#[test]
fn root_may_what_root_may() {
    check(
        "
def powers():
    alice(\"make('f', 0, 'secret')\")
    alice(\"os.mkdir('d', 0)\")
    for work in ['read(\"f\")', 'write(\"f\")', 'make(\"d/f\")', 'os.listdir(\"d\")',
                 'os.mknod(\"null\", stat.S_IFCHR | 0o666, os.makedev(1, 3))',
                 'os.mknod(\"disk\", stat.S_IFBLK | 0o600, os.makedev(259, 300000))',
                 'os.setxattr(\"f\", \"trusted.a\", b\"1\")', 'os.setxattr(\"f\", \"security.b\", b\"2\")',
                 'os.setxattr(\"f\", \"user.c\", b\"3\")', 'os.setxattr(\"d\", \"trusted.a\", b\"1\")',
                 'os.listxattr(\"f\")', 'os.chown(\"f\", 12345, 54321)', 'os.chmod(\"f\", 0o6755)',
                 'write(\"f\", \"again\")', 'os.listxattr(\"f\")', 'os.removexattr(\"f\", \"trusted.a\")',
                 'os.utime(\"f\", (1, 2))', 'os.link(\"f\", \"g\")', 'os.unlink(\"f\")',
                 'sh(\"setcap cap_net_raw+ep g && getcap g\")']:
        root(work)
    alice('os.mknod(\"mine\", stat.S_IFCHR | 0o666, os.makedev(1, 3))')
    alice('os.listxattr(\"d\")')
scenario('root', powers)
",
    );
}

#[test]
fn a_user_without_the_right_to_the_directory_updates_a_file_as_on_a_disk() {
    check(
        "
ways = ['write(\"d/f\")', 'write(\"d/f\", \"x\", \"r+\")', 'write(\"d/f\", \"x\", \"a\")', 'os.truncate(\"d/f\", 1)',
        'sh(\"cp /etc/hostname d/f\")[0]', 'os.utime(\"d/f\")', 'sh(\"{ echo a; echo b; } > d/f\")',
        'os.unlink(\"d/f\")', 'os.rename(\"d/f\", \"d/g\")', 'make(\"d/new\")']
for owner, gid, mode in [('ALICE', 'ALICE', 0o644), ('0', 'SHARE', 0o664), ('0', '0', 0o666), ('BOB', 'BOB', 0o666)]:
    for dir_mode in [0o755, 0o555, 0o1777, 0o1755]:
        def update():
            os.mkdir('d'); make('d/f', content='content')
            os.chown('d/f', eval(owner), eval(gid)); os.chmod('d/f', mode); os.chmod('d', dir_mode)
            os.setxattr('d/f', 'user.kept', b'yes')
            os.setxattr('d/f', 'trusted.kept', b'yes')
            for way in ways[:7]:
                alice(way)
                alice('read(\"d/f\")')
            for way in ways[7:]:
                alice(way)
        scenario('%s-%o-%o' % (owner, mode, dir_mode), update)
",
    );
}

/// The birth time and the inode number of a file, looked at directly.
fn inode(path: &Path) -> (u64, std::time::SystemTime) {
    let metadata = fs::metadata(path).expect("it");
    (metadata.ino(), metadata.created().expect("its birth time"))
}

/// Ways to update `f`.
const UPDATES: [&str; 5] = [
    "echo new > f",
    "echo more >> f",
    "printf x 1<> f",
    "truncate -s 3 f",
    "dd if=/dev/zero of=f bs=1 count=3 conv=notrunc status=none",
];

#[test]
fn a_file_whose_writer_may_not_write_the_directory_keeps_its_inode() {
    for user in [User::Root, User::Ordinary] {
        let mount = match user {
            User::Root => shared().mount(),
            User::Ordinary => options().user(user).mount(),
        };
        fs::set_permissions(mount.backing(), fs::Permissions::from_mode(0o755)).expect("chmod");
        chown(mount.backing(), Some(0), Some(0)).expect("chown");
        fs::write(mount.behind("f"), "old").expect("f");
        let (uid, gid) = test_user();
        // The user's own file, one of another's, and one of the user's group's.
        for (owner, group, mode) in [(uid, gid, 0o644), (0, 0, 0o666), (0, gid, 0o664)] {
            chown(mount.behind("f"), Some(owner), Some(group)).expect("chown");
            fs::set_permissions(mount.behind("f"), fs::Permissions::from_mode(mode))
                .expect("chmod");
            let before = inode(&mount.behind("f"));
            for update in UPDATES {
                succeed_as((uid, gid), mount.point(), update);
                assert_eq!(inode(&mount.behind("f")), before, "{update}");
                let behind = fs::metadata(mount.behind("f")).expect("f");
                let (is, was) = ((behind.uid(), behind.gid()), (owner, group));
                assert_eq!((is, behind.mode() & 0o7777), (was, mode), "{update}");
                let seen = succeed_as((uid, gid), mount.point(), "cat f");
                assert_eq!(seen, mount.read_behind("f"), "{update}");
            }
        }
        assert_eq!(mount.store("redo"), [""; 0]);
        // Whoever may write the directory, too, replaces it.
        if user == User::Root {
            let before = inode(&mount.behind("f"));
            mount.bash("echo by root > f");
            assert_ne!(inode(&mount.behind("f")), before);
        }
        mount.unmount();
    }
}

#[test]
fn an_ordinary_users_update_of_anothers_file_leaves_it_its_owner() {
    let mount = options().user(User::Ordinary).mount();
    let (owner, _) = second_test_user();
    fs::write(mount.behind("f"), "old").expect("f");
    chown(mount.behind("f"), Some(owner), Some(0)).expect("chown");
    fs::set_permissions(mount.behind("f"), fs::Permissions::from_mode(0o666)).expect("chmod");
    let before = inode(&mount.behind("f"));
    for update in UPDATES {
        mount.bash(update);
        let behind = fs::metadata(mount.behind("f")).expect("f");
        assert_eq!((behind.uid(), behind.gid()), (owner, 0), "{update}");
        assert_eq!(inode(&mount.behind("f")), before, "{update}");
    }
    // Through the handle, too, it is the other's while it is written.
    let seen = mount.python(
        "f = open('f', 'r+')\nf.write('new')\nf.flush()\nprint(os.fstat(f.fileno()).st_uid)\n\
         try: os.fchmod(f.fileno(), 0o600)\nexcept PermissionError: print('EPERM')\n",
    );
    assert_eq!(seen, format!("{owner}\nEPERM\n"));
}

#[test]
fn readers_of_a_file_that_keeps_its_inode_keep_their_version() {
    for user in [User::Root, User::Ordinary] {
        let mount = match user {
            User::Root => shared().mount(),
            User::Ordinary => options().user(user).mount(),
        };
        chown(mount.backing(), Some(0), Some(0)).expect("chown");
        let old = "o".repeat(300_000);
        fs::write(mount.behind("f"), &old).expect("f");
        let (uid, gid) = test_user();
        chown(mount.behind("f"), Some(uid), Some(gid)).expect("chown");
        let before = inode(&mount.behind("f"));
        let mut reader = mount.spawn_python(
            "f = open('f')\nm = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\nsay(f.read(1000))\n\
             hear()\nsay(f.read() + f.read() == 'o' * 299000, bytes(m) == b'o' * 300000)\nhear()\n",
        );
        assert_eq!(reader.hear().len(), 1000);
        for _ in 0..3 {
            succeed_as(
                (uid, gid),
                mount.point(),
                "head -c 300000 /dev/zero | tr '\\0' n > f",
            );
        }
        assert_eq!(inode(&mount.behind("f")), before);
        reader.tell("go on");
        reader.expect("True True");
        reader.succeed();
        assert_eq!(mount.read("f"), "n".repeat(300_000));
        mount.unmount();
    }
}

#[test]
fn a_reader_from_before_the_directory_was_closed_keeps_its_version_too() {
    // The kernel reads the file by itself for this one, and can't be told to read a copy.
    let mount = shared().mount();
    let (uid, gid) = test_user();
    mount.bash(&format!("echo old > f; chown {uid}:{gid} f .; chmod 755 ."));
    let mut reader =
        mount.spawn_python("f = open('f')\nsay('open')\nhear()\nsay(f.read().strip())\n");
    reader.expect("open");
    mount.bash("chown 0:0 .");
    succeed_as((uid, gid), mount.point(), "echo new > f");
    reader.tell("read");
    reader.expect("old");
    reader.succeed();
    assert_eq!(mount.read("f"), "new\n");
    let behind = fs::metadata(mount.behind("f")).expect("f");
    assert_eq!((behind.uid(), behind.gid()), (uid, gid));
    assert!(mount.log().contains("readers hold the old version"));
}

#[test]
fn nothing_is_somebody_elses_for_a_moment() {
    let mount = shared().mount();
    mount.bash("chmod 777 .");
    let backing = mount.backing().to_owned();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let watcher = std::thread::spawn(move || {
        let mut looks = 0;
        let mut others = Vec::new();
        while stopped.try_recv().is_err() {
            for entry in fs::read_dir(&backing).expect("BACKING").flatten() {
                let Ok(metadata) = fs::symlink_metadata(entry.path()) else {
                    continue;
                };
                looks += 1;
                if entry.file_name() != ".latchfs" && metadata.uid() == 0 {
                    others.push(entry.file_name());
                }
            }
        }
        (looks, others)
    });
    let script = "for i in $(seq 150); do mkdir d$i; mkfifo p$i; ln -s x l$i; echo x > f$i; \
                  rm -r d$i p$i l$i f$i; done";
    succeed_as(test_user(), mount.point(), script);
    stop.send(()).expect("it watches");
    let (looks, others) = watcher.join().expect("the watcher");
    assert!(looks > 100, "it looked {looks} times");
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn without_allow_other_nobody_else_gets_in() {
    let (first, second) = (test_user(), second_test_user());
    // Of an ordinary user: neither another one nor root.
    let mount = options().user(User::Ordinary).mount();
    mount.bash("echo secret > f; chmod 777 .; chmod 666 f");
    for user in [second, (0, 0)] {
        for script in ["cat f", "ls .", "echo x > f", "stat f", "touch g"] {
            let (ok, out) = run_as(
                user,
                Path::new("/"),
                &format!("cd {} && {script}", mount.point().display()),
            );
            assert!(
                !ok && out.contains("Permission denied"),
                "{user:?}: {script}: {out}"
            );
        }
    }
    assert_eq!(mount.read("f"), "secret\n");
    mount.unmount();
    // Of root: none but root.
    let mount = options().mount();
    mount.bash("echo secret > f; chmod 777 .; chmod 666 f");
    for user in [first, second] {
        let (ok, out) = run_as(
            user,
            Path::new("/"),
            &format!("cat {}/f", mount.point().display()),
        );
        assert!(!ok && out.contains("Permission denied"), "{user:?}: {out}");
    }
    mount.unmount();
    // With allow_root, root too, but no other.
    let mount = options().arg("-o").arg("allow_root").mount();
    mount.bash("echo secret > f; chmod 777 .; chmod 666 f");
    let (ok, out) = run_as(
        first,
        Path::new("/"),
        &format!("cat {}/f", mount.point().display()),
    );
    assert!(!ok && out.contains("Permission denied"), "{out}");
}

/// chattr(1), undone at the end so that the directory can be removed.
struct Chattr(std::path::PathBuf, &'static str);

impl Chattr {
    fn set(path: std::path::PathBuf, flag: &'static str) -> Self {
        let status = Command::new("chattr")
            .arg(format!("+{flag}"))
            .arg(&path)
            .status();
        assert!(status.expect("chattr").success());
        Self(path, flag)
    }
}

impl Drop for Chattr {
    fn drop(&mut self) {
        let _ = Command::new("chattr")
            .arg(format!("-{}", self.1))
            .arg(&self.0)
            .status();
    }
}

#[test]
fn chattr_on_the_file_refuses_the_open_and_on_the_directory_keeps_the_inode() {
    let mount = options().mount();
    mount.bash("echo old > f; mkdir d; echo old > d/f");
    for flag in ["i", "a"] {
        let _chattr = Chattr::set(mount.behind("f"), flag);
        for update in ["echo x > f", "printf x 1<> f", "truncate -s 1 f"] {
            let output = mount.try_run("bash", update);
            let error = text(&output.stderr);
            assert!(
                error.contains("Operation not permitted"),
                "+{flag} {update}: {error}"
            );
        }
        assert_eq!(mount.read("f"), "old\n");
    }
    mount.bash("echo new > f");
    let before = inode(&mount.behind("d/f"));
    let chattr = Chattr::set(mount.behind("d"), "i");
    mount.bash("echo new > d/f");
    drop(chattr);
    assert_eq!(mount.read_behind("d/f"), "new\n");
    assert_eq!(inode(&mount.behind("d/f")), before);
}

/// What is mounted there, until the end of the test.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn new(arguments: &[&str], at: std::path::PathBuf) -> Self {
        let status = Command::new("mount").args(arguments).arg(&at).status();
        assert!(status.expect("mount").success(), "mount {arguments:?}");
        Self(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn what_is_mounted_within_backing_is_updated_too() {
    let mount = options().mount();
    mount.bash("mkdir d; echo old > f");
    fs::write(mount.backing().with_file_name("elsewhere"), "old\n").expect("a file");
    let elsewhere = mount.backing().with_file_name("elsewhere");
    let _directory = Mounted::new(&["-t", "tmpfs", "none"], mount.behind("d"));
    let _file = Mounted::new(
        &["--bind", elsewhere.to_str().expect("a path")],
        mount.behind("f"),
    );
    wait_until("the kernel asks again", || {
        mount.bash("ls -a d") == ".\n..\n"
    });
    mount.bash("echo new > d/g; echo newer > d/g; echo more >> d/g");
    assert_eq!(mount.read_behind("d/g"), "newer\nmore\n");
    wait_until("the kernel asks again", || {
        mount.try_run("bash", "echo new > f").status.success()
    });
    assert_eq!(fs::read_to_string(&elsewhere).expect("it"), "new\n");
    assert_eq!(mount.store("redo"), [""; 0]);
}

#[test]
fn what_is_written_is_at_the_writers_expense() {
    // A third of the disk is for root alone.
    let disk = Disk::new(&["mkfs.ext4", "-q", "-m", "33"], "loop");
    let (bare, backing) = (disk.dir("bare"), disk.dir("backing"));
    let mount = shared().backing(&backing).mount();
    for dir in [&bare, &backing] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).expect("chmod");
    }
    // Writes until the disk is full, and tells how much of it (in percent) is free then.
    let fill = "python3 -c \"
import os, sys
f = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR)
try:
    while True: os.write(f, bytes(1 << 20))
except OSError as e: print(e.strerror)
s = os.statvfs('.')
print(s.f_bfree * 100 // s.f_blocks > 25)
try: os.close(f)
except OSError: pass
os.unlink(sys.argv[1]) if os.path.exists(sys.argv[1]) else None
\" ";
    for (user, left) in [(test_user(), "True"), ((0, 0), "False")] {
        for dir in [bare.as_path(), mount.point()] {
            // One with versions, and one without.
            for name in ["f", "f.db"] {
                let out = succeed_as(user, dir, &format!("{fill} {name}"));
                let expected = format!("No space left on device\n{left}\n");
                assert_eq!(out, expected, "{name} in {} by {user:?}", dir.display());
            }
        }
    }
    mount.unmount();
}
