//! What the daemon defends, and against whom: docs/security.md says which test shows what. Each
//! attack is also made where nothing defends, to see that it would be noticed.

mod common;

use common::{
    LATCHFS, Mount, User, finish, options, second_test_user, test_user, text, wait_until,
};
use latchfs::backing::store::Store;
use latchfs::backing::{Dir, recover};
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};
use rustix::fs::{CWD, FileType, Mode, OFlags, RenameFlags};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const BOTH: [User; 2] = [User::Root, User::Ordinary];
const OUTSIDE: &str = "what lies outside";

/// BACKING with a directory of files beside it that nobody may touch.
struct Place {
    home: tempfile::TempDir,
    user: User,
}

impl Place {
    fn new(user: User) -> Self {
        let home = tempfile::Builder::new()
            .prefix("latchfs-security-")
            .tempdir()
            .expect("a directory");
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let place = Self { home, user };
        for dir in ["backing", "backing/d", "outside", "outside/sub"] {
            fs::create_dir(place.path(dir)).expect("mkdir");
        }
        fs::write(place.path("outside/f"), OUTSIDE).expect("write");
        fs::write(place.path("outside/sub/f"), OUTSIDE).expect("write");
        fs::write(place.path("backing/d/f"), "what lies inside").expect("write");
        fs::write(place.path("backing/f"), "content of f").expect("write");
        place.give("");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Gives everything below a path to the user who mounts.
    fn give(&self, name: &str) {
        if self.user == User::Ordinary {
            let (uid, gid) = test_user();
            let mut chown = Command::new("chown");
            chown
                .args(["-hR", &format!("{uid}:{gid}")])
                .arg(self.path(name));
            assert!(finish(&mut chown).status.success());
        }
    }

    fn mount(&self) -> Mount {
        options()
            .user(self.user)
            .backing(self.path("backing"))
            .mount()
    }

    /// Everything outside of BACKING: names, whose they are, what is in them.
    fn outside(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        let mut dirs = vec![self.path("outside")];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(&dir).expect("a directory").flatten() {
                let (path, stat) = (entry.path(), entry.metadata().expect("stat"));
                let content = fs::read(&path).unwrap_or_default();
                let told = (stat.mode(), stat.uid(), stat.mtime_nsec(), stat.nlink());
                if stat.is_dir() {
                    dirs.push(path.clone());
                }
                found.insert(path, format!("{told:?} {}", text(&content)));
            }
        }
        found
    }
}

/// Exchanges two names all the time, as fast as it goes, until it is dropped.
struct Exchanging {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Exchanging {
    fn new(a: PathBuf, b: PathBuf) -> Self {
        let (stop, count): (Arc<AtomicBool>, Arc<AtomicUsize>) = Default::default();
        let thread = std::thread::spawn({
            let (stop, count) = (stop.clone(), count.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let flags = RenameFlags::EXCHANGE;
                    rustix::fs::renameat_with(CWD, &a, CWD, &b, flags).expect("exchange");
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self {
            stop,
            count,
            thread: Some(thread),
        }
    }
}

impl Drop for Exchanging {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(|thread| thread.join());
    }
}

/// What programs do to `d`, whatever that is: through the mount, or (as a control) directly. Says
/// how often they read what lies outside, and made something.
const USE_D: &str = "
seen = 0
for round in range(ROUNDS):
    name = 'd/new%d' % round
    def attempt(call, *args):
        try: return call(*args)
        except OSError: return None
    fd = attempt(os.open, 'd/f', os.O_RDONLY)
    if fd is not None:
        if b'outside' in os.read(fd, 100): seen += 1
        os.close(fd)
    fd = attempt(os.open, name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    if fd is not None:
        attempt(os.write, fd, b'x'); attempt(os.close, fd)
    fd = attempt(os.open, 'd/f', os.O_WRONLY | os.O_APPEND)
    if fd is not None:
        attempt(os.write, fd, b'+'); attempt(os.close, fd)
    attempt(os.chmod, 'd/f', 0o600 + round % 64)
    attempt(os.utime, 'd/f', (round, round))
    attempt(os.mkdir, name + 'd'); attempt(os.symlink, 'x', name + 's')
    attempt(os.link, 'd/f', name + 'l'); attempt(os.rename, name, name + 'r')
    attempt(os.listdir, 'd'); attempt(os.setxattr, 'd/f', 'user.a', b'1')
    attempt(os.truncate, 'd/f', 20); attempt(os.unlink, name + 's')
say(seen)
";

#[test]
fn a_directory_swapped_for_a_symbolic_link_leads_nowhere_out() {
    for user in BOTH {
        let place = Place::new(user);
        // Relative to BACKING it leads out; the mount lies elsewhere, so that there it is the
        // caller's to follow, to nothing.
        symlink("../outside", place.path("backing/link")).expect("symlink");
        place.give("backing");
        let before = place.outside();
        let mount = place.mount();
        let swap = Exchanging::new(mount.behind("d"), mount.behind("link"));
        let seen = mount.python(&USE_D.replace("ROUNDS", "150"));
        assert_eq!(seen, "0\n");
        assert!(swap.count.load(Ordering::Relaxed) > 100);
        drop(swap);
        assert_eq!(place.outside(), before);
        mount.unmount();

        // By paths, in BACKING itself, it does lead out.
        let swap = Exchanging::new(place.path("backing/d"), place.path("backing/link"));
        wait_until("an escape", || {
            let script =
                format!("import os\ndef say(x): print(x)\n{USE_D}").replace("ROUNDS", "20");
            let mut python = mount.command("python3");
            finish(
                python
                    .args(["-c", &script])
                    .current_dir(place.path("backing")),
            );
            place.outside() != before
        });
        drop(swap);
    }
}

#[test]
fn a_fifo_swapped_for_a_file_is_never_opened_and_never_waited_for() {
    for user in BOTH {
        let place = Place::new(user);
        let fifo = place.path("backing/fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o666), 0)
            .expect("mkfifo");
        place.give("backing");
        // As a writer of the FIFO sees it: it has a reader, or ENXIO says that it has none.
        let has_reader = |path: &Path| {
            let flags = OFlags::WRONLY | OFlags::NONBLOCK;
            let fd = rustix::fs::open(path, flags, Mode::empty()).ok();
            let stat = fd.and_then(|fd| rustix::fs::fstat(fd).ok());
            stat.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
        };
        let mount = place.mount();
        let swap = Exchanging::new(mount.behind("f"), fifo.clone());
        let watched = Arc::new(AtomicUsize::new(0));
        let (stop, seen) = (swap.stop.clone(), watched.clone());
        let name = fifo.clone();
        let watcher = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if has_reader(&name) {
                    seen.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        mount.python(
            "
for round in range(300):
    for flags in [os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_TRUNC]:
        try: os.close(os.open('f', flags | os.O_NONBLOCK))
        except OSError: pass
    try: os.truncate('f', 5)
    except OSError: pass
",
        );
        drop(swap);
        watcher.join().expect("the watcher");
        assert_eq!(watched.load(Ordering::Relaxed), 0, "the FIFO had a reader");
        mount.unmount();

        // The watcher would have seen a reader.
        let fifo = place.path("backing/another");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o666), 0)
            .expect("mkfifo");
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let _reader = rustix::fs::open(&fifo, flags, Mode::empty()).expect("open");
        assert!(has_reader(&fifo));
    }
}

#[test]
fn the_way_up_from_a_directory_that_was_moved_away_leads_to_the_mount() {
    let place = Place::new(User::Root);
    let before = place.outside();
    let mount = place.mount();
    let mut program = mount.spawn_python(
        "
os.chdir('d'); say('in'); hear()
for path in ['..', '../..', '../f', '../outside', '../sub']:
    try: say(path, sorted(os.listdir(path)) if os.path.isdir(path) else os.path.exists(path))
    except OSError as error: say(path, 'fails')
",
    );
    program.expect("in");
    fs::rename(mount.behind("d"), place.path("outside/sub/d")).expect("mv");
    program.tell("go");
    let said: Vec<String> = (0..5).map(|_| program.hear()).collect();
    program.succeed();
    for line in &said {
        assert!(
            !line.contains("sub'") && !line.contains("outside'"),
            "{said:?}"
        );
    }
    fs::rename(place.path("outside/sub/d"), mount.behind("d")).expect("mv");
    let mut after = place.outside();
    let times: Vec<PathBuf> = vec![place.path("outside/sub")];
    after.retain(|path, _| !times.contains(path));
    assert!(
        after
            .iter()
            .all(|(path, told)| before.get(path) == Some(told))
    );
}

/// Takes a bind mount away again.
struct Bound(PathBuf);

impl Bound {
    fn new(from: &Path, to: &Path) -> Self {
        let mut mount = Command::new("mount");
        assert!(
            finish(mount.arg("--bind").arg(from).arg(to))
                .status
                .success()
        );
        Self(to.to_owned())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn the_store_is_hidden_by_whatever_name_it_can_be_reached() {
    // As where BACKING takes `.LATCHFS` for the same name: another name, the same directory.
    let place = Place::new(User::Root);
    fs::create_dir(place.path("backing/alias")).expect("mkdir");
    let mount = place.mount();
    let bound = Bound::new(&mount.behind(".latchfs"), &mount.behind("alias"));
    assert!(mount.behind("alias/lock").exists());
    let script = "
def attempt(call, *args):
    try: call(*args); say('SUCCEEDED', call, args)
    except OSError as error: pass
for path in ['alias', 'alias/lock', 'alias/kept']:
    attempt(os.lstat, path); attempt(os.open, path, os.O_RDONLY); attempt(os.listdir, path)
attempt(os.mkdir, 'alias'); attempt(os.mkdir, 'alias/x'); attempt(os.rmdir, 'alias')
attempt(os.rename, 'alias', 'x'); attempt(os.rename, 'd', 'alias'); attempt(os.symlink, 'x', 'alias')
say('done')
";
    assert_eq!(mount.python(script), "done\n");
    drop(bound);
    // A name that is not the store's is shown.
    wait_until("it is seen", || mount.path("alias").is_dir());
    assert!(mount.python(script).contains("SUCCEEDED"));
}

#[test]
fn the_store_is_hidden_also_when_it_is_renamed_behind_the_mount() {
    for user in BOTH {
        let place = Place::new(user);
        let mount = place.mount();
        fs::rename(mount.behind(".latchfs"), mount.behind("moved")).expect("mv");
        let said = mount.python(
            "
for path in ['moved', 'moved/lock', '.latchfs']:
    say(os.path.lexists(path))
say('moved' in os.listdir('.'))
",
        );
        assert_eq!(said, "False\nFalse\nFalse\nFalse\n");
        fs::rename(mount.behind("moved"), mount.behind(".latchfs")).expect("mv");
        mount.unmount();
    }
}

#[test]
fn no_handle_leads_to_the_store() {
    let place = Place::new(User::Root);
    let mount = place.mount();
    // A handle of the mount is a node id; so all that may be given are tried.
    let said = mount.python(
        r#"
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
for root, dirs, files in os.walk('.'):
    for name in files: open(os.path.join(root, name)).close()
def handle(path):
    buffer = ctypes.create_string_buffer(struct.pack('Ii', 64, 0) + bytes(64))
    if libc.name_to_handle_at(-100, path, buffer, ctypes.byref(ctypes.c_int()), 0):
        raise OSError(ctypes.get_errno(), 'name_to_handle_at')
    length, kind = struct.unpack_from('Ii', buffer.raw)
    return kind, buffer.raw[8:8 + length]
kind, bytes_of_f = handle(b'd/f')
point = os.open('.', os.O_RDONLY | os.O_DIRECTORY)
opened = names = 0
for node in range(0, 3000):
    tried = struct.pack('III', node >> 32, node & 0xffffffff, 0)
    buffer = ctypes.create_string_buffer(struct.pack('Ii', 12, kind) + tried)
    fd = libc.open_by_handle_at(point, buffer, os.O_RDONLY)
    if fd < 0: continue
    opened += 1
    try: listed = os.listdir(fd)
    except OSError: listed = []
    if 'kept' in listed or 'redo' in listed or '.latchfs' in listed: say('THE STORE', node, listed)
    os.close(fd)
say('f' if len(bytes_of_f) == 12 else bytes_of_f, opened > 0)
"#,
    );
    assert_eq!(said, "f True\n");
}

#[test]
fn a_file_system_mounted_within_backing_is_part_of_the_mirror_and_a_border() {
    let place = Place::new(User::Root);
    let other = place.path("backing/d");
    let mut tmpfs = Command::new("mount");
    tmpfs.args(["-t", "tmpfs", "none"]).arg(&other);
    assert!(finish(&mut tmpfs).status.success());
    let _bound = Bound(other);
    let mount = place.mount();
    mount.bash("echo new > d/n; echo updated > d/n; echo more >> d/n; mkdir d/e; mv d/n d/e/");
    assert_eq!(mount.read_behind("d/e/n"), "updated\nmore\n");
    let said = mount.python(
        "
for call in [lambda: os.rename('f', 'd/f'), lambda: os.rename('d/e/n', 'n'), lambda: os.link('f', 'd/f')]:
    try: call()
    except OSError as error: say(errno.errorcode[error.errno])
",
    );
    assert_eq!(said, "EXDEV\n".repeat(3));
    mount.unmount();
}

/// How a mount with something in the place of `.latchfs` goes.
fn refused(place: &Place, reason: &str) {
    let point = place.path("mnt");
    let _ = fs::create_dir(&point);
    place.give("mnt");
    let mut mount = Command::new(LATCHFS);
    if place.user == User::Ordinary {
        let (uid, gid) = test_user();
        mount.uid(uid).gid(gid);
    }
    mount.arg("mount").arg(place.path("backing")).arg(&point);
    let output = finish(mount.stdin(Stdio::null()));
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains(reason), "{said}");
}

#[test]
fn what_others_have_planted_in_the_place_of_the_store_is_refused() {
    for user in BOTH {
        let place = Place::new(user);
        let store = place.path("backing/.latchfs");
        let before = place.outside();
        symlink("../outside", &store).expect("symlink");
        place.give("backing");
        refused(&place, "can't make .latchfs");
        fs::remove_file(&store).expect("rm");
        fs::write(&store, "").expect("write");
        refused(&place, "can't make .latchfs");
        fs::remove_file(&store).expect("rm");
        // Another user's, or one that others can write in, with a record that would be believed.
        fs::create_dir_all(store.join("redo")).expect("mkdir");
        fs::write(store.join("redo/1.json"), "{}").expect("write");
        place.give("backing");
        let (other, _) = second_test_user();
        chown(&store, Some(other), None).expect("chown");
        refused(&place, "belongs to user");
        place.give("backing");
        if user == User::Root {
            chown(&store, Some(0), None).expect("chown");
        }
        for dir in [&store, &store.join("redo")] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).expect("chmod");
            refused(&place, "others may write");
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("chmod");
        }
        // What is inside is a link out.
        fs::remove_dir_all(store.join("redo")).expect("rm");
        symlink("../../outside", store.join("redo")).expect("symlink");
        place.give("backing");
        refused(&place, "can't make a directory in .latchfs");
        fs::remove_file(store.join("redo")).expect("rm");
        assert_eq!(place.outside(), before);
        // Its own, open to be read by all, is closed, and used.
        let mount = place.mount();
        let mode = store.metadata().expect("stat").mode();
        assert_eq!(mode & 0o7777, 0o700);
        mount.unmount();
    }
}

#[test]
fn no_redo_record_breaks_recovery_or_leads_out_of_backing() {
    let place = Place::new(User::Root);
    symlink("../outside", place.path("backing/link")).expect("symlink");
    fs::write(place.path("backing/hard"), OUTSIDE).expect("write");
    let before = place.outside();
    let root = Dir::open_root(&place.path("backing")).expect("BACKING");
    let store = Store::open(&root).expect("the store");
    let redo_dir = place.path("backing/.latchfs/redo");
    let ino = |name: &str| place.path(name).metadata().expect("stat").ino();
    let inodes = vec![
        ino("outside/f"),
        ino("outside/sub/f"),
        ino("backing/f"),
        0,
        u64::MAX,
    ];
    let component = prop_oneof![
        prop::sample::select(vec![
            "..",
            ".",
            "",
            "d",
            "f",
            "link",
            "outside",
            "../outside/f",
            "/etc/passwd",
            ".latchfs",
        ])
        .prop_map(|name| name.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..5),
    ];
    let path = prop::collection::vec(component, 0..5);
    let written = (path, prop::sample::select(inodes), any::<u64>()).prop_map(|(path, ino, n)| {
        let born = if n % 3 == 0 {
            String::new()
        } else {
            format!(r#","born":[{n},{n}]"#)
        };
        format!(r#"{{"path":{path:?},"dev":{n},"ino":{ino},"time":{n}{born}}}"#).into_bytes()
    });
    let record = prop_oneof![4 => written, 1 => prop::collection::vec(any::<u8>(), 0..100)];
    let name = prop::sample::select(vec!["1", "..", "", "a b", "1.data", "\u{fffd}"]);
    let mut runner = TestRunner::new(Config {
        cases: 400,
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..Config::default()
    });
    let result = runner.run(&(record, name, any::<bool>()), |(record, name, data)| {
        fs::write(redo_dir.join(format!("{name}.json")), &record).expect("write");
        if data {
            fs::write(redo_dir.join(format!("{name}.data")), "hostile").expect("write");
        }
        let done = recover::recover(&root, &store, &mut Vec::new());
        prop_assert!(done.is_ok(), "{done:?}");
        let left = fs::read_dir(&redo_dir).expect("a directory").count();
        prop_assert_eq!(left, 0);
        prop_assert_eq!(&place.outside(), &before);
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
    // A record that is right is believed: the check above could have failed.
    let path = [b"f".to_vec()];
    let record = format!(
        r#"{{"path":{path:?},"dev":0,"ino":{},"time":1}}"#,
        ino("backing/f")
    );
    fs::write(redo_dir.join("1.json"), record).expect("write");
    fs::write(redo_dir.join("1.data"), "believed").expect("write");
    recover::recover(&root, &store, &mut Vec::new()).expect("recover");
    let content = fs::read_to_string(place.path("backing/f")).expect("read");
    assert_eq!(content, "believed");
}

/// What another user gets from a mount, by a path and by a descriptor that was handed over.
fn as_other(mount: &Mount, (uid, gid): (u32, u32)) -> String {
    let script = "
import errno, os, sys
for call in [os.stat, os.listdir, lambda p: os.open(p, os.O_RDONLY), lambda p: os.open(p + '/f', os.O_RDONLY),
             lambda p: os.open(p + '/new', os.O_WRONLY | os.O_CREAT), lambda p: os.mkdir(p + '/newd')]:
    try: call(sys.argv[1]); print('allowed')
    except OSError as error: print(errno.errorcode[error.errno])
";
    let mut python = Command::new("python3");
    python.args(["-c", script]).arg(mount.point());
    let output = finish(python.uid(uid).gid(gid).stdin(Stdio::null()));
    text(&output.stdout)
}

#[test]
fn without_allow_other_nobody_else_gets_in_not_even_root() {
    let denied = "EACCES\n".repeat(6);
    let root = options().mount();
    root.bash("chmod 777 .; echo x > f; chmod 666 f");
    assert_eq!(as_other(&root, test_user()), denied);
    root.unmount();
    let ordinary = options().user(User::Ordinary).mount();
    ordinary.bash("chmod 777 .; echo x > f; chmod 666 f");
    assert_eq!(as_other(&ordinary, (0, 0)), denied);
    assert_eq!(as_other(&ordinary, second_test_user()), denied);
    ordinary.unmount();
    // With it, they do.
    let shared = options().arg("-oallow_other").mount();
    shared.bash("chmod 777 .; echo x > f; chmod 666 f");
    assert_eq!(as_other(&shared, test_user()), "allowed\n".repeat(6));
}
