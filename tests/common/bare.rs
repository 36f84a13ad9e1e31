//! "Same as on the bare directory": scenarios of several users, run through a mount and in a bare
//! directory beside BACKING, and every outcome and every attribute compared.

use super::{DEADLINE, Mount, SHARE, finish, group, second_test_user, test_user, text};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What the scenarios are written in. `alice`, `bob` and `root` run Python in a process of that user
/// and note what came of it; `alice` and `bob` are both in the group SHARE.
const DRIVER: &str = r#"
import errno, json, os, stat, subprocess, sys
sys.dont_write_bytecode = True
NAMES = json.loads(sys.argv[1])
ALICE, BOB, SHARE = NAMES['alice'][0], NAMES['bob'][0], NAMES['share']
outcomes = []

def sh(command):
    done = subprocess.run(['sh', '-c', command], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return (done.returncode, done.stdout)
def write(name, content='new', mode='w'):
    with open(name, mode) as f:
        f.write(content)
def read(name):
    with open(name) as f:
        return f.read()
def make(name, mode=0o666, content=None):
    fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode)
    if content:
        os.write(fd, content.encode())
    os.close(fd)
def st(name):
    s = os.lstat(name)
    return (oct(s.st_mode), s.st_uid, s.st_gid, s.st_nlink)
def each(*works):
    seen = []
    for work in works:
        try:
            seen.append(repr(work()))
        except OSError as e:
            seen.append(errno.errorcode[e.errno])
    return seen
def everything(mode=0o777):
    "One of each kind of file."
    make('file', mode)
    os.mkdir('dir', mode)
    os.mkfifo('fifo', mode)
    os.mknod('node', stat.S_IFREG | mode)
    os.mknod('socket', stat.S_IFSOCK | mode)
    os.symlink('file', 'link')

def user(ids):
    def run(work, umask=0o022, groups=None):
        sys.stdout.flush()
        out, into = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.setgroups(ids[2] if groups is None else groups)
                os.setresgid(ids[1], ids[1], ids[1])
                os.setresuid(ids[0], ids[0], ids[0])
                os.umask(umask)
                try:
                    result = repr(eval(work, globals()) if isinstance(work, str) else work())
                except OSError as e:
                    result = errno.errorcode[e.errno]
                except BaseException as e:
                    result = repr(e)
                os.write(into, result.encode())
            finally:
                os._exit(0)
        os.close(into)
        result = os.fdopen(out).read()
        os.waitpid(child, 0)
        outcomes.append([work if isinstance(work, str) else work.__name__, result])
    return run
root = user((0, 0, [0]))
alice, bob = user(NAMES['alice']), user(NAMES['bob'])

def xattrs(path):
    try:
        names = sorted(os.listxattr(path, follow_symlinks=False))
    except OSError as e:
        return errno.errorcode[e.errno]
    return {n: os.getxattr(path, n, follow_symlinks=False).hex() for n in names
            if n != 'trusted.SGI_ACL_FILE'}
def snapshot(top):
    seen = {}
    for at, dirs, files in os.walk(top):
        for name in [''] + dirs + files:
            path = os.path.join(at, name) if name else at
            s = os.lstat(path)
            kind = stat.S_IFMT(s.st_mode)
            entry = [oct(s.st_mode), s.st_uid, s.st_gid, s.st_nlink, s.st_rdev, xattrs(path)]
            if kind == stat.S_IFREG:
                entry += [s.st_size, open(path, 'rb').read().hex()[:200]]
            elif kind == stat.S_IFLNK:
                entry += [os.readlink(path)]
            seen[os.path.relpath(path, top)] = entry
    return seen

os.umask(0o022)
def scenario(name, work):
    os.mkdir(name)
    os.chmod(name, 0o777)
    here = os.getcwd()
    os.chdir(name)
    outcomes.clear()
    work()
    os.chdir(here)
    report = [json.dumps([name, 'outcome', *o]) for o in outcomes]
    report += [json.dumps([name, 'file', p, e]) for p, e in sorted(snapshot(name).items())]
    print('\n'.join(report), flush=True)
"#;

/// Runs scenarios by `script` in a directory; one line for each outcome and each file.
fn run_in(dir: &Path, script: &str) -> Vec<String> {
    let (alice, bob, share) = (test_user(), second_test_user(), group(SHARE));
    let names = format!(
        "{{\"alice\": [{}, {}, [{share}]], \"bob\": [{}, {}, [{share}]], \"share\": {share}}}",
        alice.0, alice.1, bob.0, bob.1
    );
    let mut command = Command::new("timeout");
    command
        .arg(DEADLINE.as_secs().to_string())
        .args(["python3", "-c"])
        .arg(format!("{DRIVER}{script}"))
        .arg(names)
        .current_dir(dir)
        .stdin(Stdio::null());
    let output = finish(&mut command);
    assert!(
        output.status.success(),
        "in {}: {}\n{}{}",
        dir.display(),
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout).lines().map(str::to_owned).collect()
}

/// What is different, line by line.
fn differences(bare: &[String], mount: &[String]) -> Vec<String> {
    let only = |a: &[String], b: &[String], what: &str| -> Vec<String> {
        let lines = a.iter().filter(|line| !b.contains(line));
        lines.map(|line| format!("{what}: {line}")).collect()
    };
    let mut all = only(bare, mount, "bare ");
    all.extend(only(mount, bare, "mount"));
    all.sort_by_key(|line| line[6..].to_owned());
    all
}

/// Runs scenarios on a mount and on a bare directory, `bare`, of the same file system; returns what
/// came out different. BACKING, looked at directly, has to show the same, too.
pub fn compare_with(mount: &Mount, bare: &Path, script: &str) -> Vec<String> {
    let on_bare = run_in(bare, script);
    let on_mount = run_in(mount.point(), script);
    assert!(!on_bare.is_empty(), "the scenarios say something");
    let mut found = differences(&on_bare, &on_mount);
    let look = "import os\nfor name in sorted(os.listdir('.')):\n    if name != '.latchfs':\n        \
         print('\\n'.join(json.dumps([p, e]) for p, e in sorted(snapshot(name).items())))\n";
    let (seen, behind) = (run_in(mount.point(), look), run_in(mount.backing(), look));
    found.extend(differences(&behind, &seen));
    found
}

/// The same with a directory beside BACKING; they must not differ.
pub fn check_same(mount: &Mount, script: &str) {
    let bare = mount.backing().with_file_name("bare");
    fs::create_dir(&bare).expect("mkdir");
    let found = compare_with(mount, &bare, script);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// A small file system in a file, mounted with these options.
pub struct Disk {
    _home: tempfile::TempDir,
    point: PathBuf,
}

impl Disk {
    /// Makes it by a command, which gets the image's path, and mounts it.
    pub fn new(make: &[&str], options: &str) -> Self {
        let home = tempfile::Builder::new()
            .prefix("latchfs-disk-")
            .tempdir()
            .expect("a temporary directory");
        fs::set_permissions(
            home.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .expect("chmod");
        let (image, point) = (home.path().join("image"), home.path().join("disk"));
        let file = fs::File::create(&image).expect("the image");
        file.set_len(400 << 20).expect("its length");
        fs::create_dir(&point).expect("mkdir");
        let run = |command: &mut Command| {
            let output = finish(command.stdin(Stdio::null()));
            assert!(
                output.status.success(),
                "{command:?}: {}",
                text(&output.stderr)
            );
        };
        run(Command::new(make[0]).args(&make[1..]).arg(&image));
        run(Command::new("mount")
            .args(["-o", options])
            .arg(&image)
            .arg(&point));
        Self { _home: home, point }
    }

    /// A new directory in it.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.point.join(name);
        fs::create_dir(&path).expect("mkdir");
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.point).status();
    }
}
