//! Many processes do everything to the same few names at once: no program gets an error that a
//! disk would not give it, every read is one whole version, and nothing stays behind.

mod common;

use common::{User, options};

const BOTH: [User; 2] = [User::Root, User::Ordinary];

/// Each worker takes random steps; it prints the errors it met that are not part of the game.
const STORM: &str = r#"
import random, collections, traceback
SOURCE = open('/proc/self/cmdline').read().split('\0')[-2].split('\n')
NAMES = ['a', 'b', 'c', 'd/a', 'd/b']
# What rename, link, unlink and open answer when somebody else was faster; and EBUSY for
# truncate(path) of a file that is being written.
FAIR = {errno.ENOENT, errno.EEXIST}
def content(n):
    return f'{n:08}' * (500 + n % 3000)
def check(text, how):
    if text:
        n = int(text[:8])
        assert text == content(n), (how, len(text), text[:8], text[-8:])
def step(r, n):
    name, other = r.sample(NAMES, 2)
    action = r.choice(ACTIONS)
    try:
        if action == 'write':
            with open(name, 'w') as f:
                f.write(content(n))
        elif action == 'read':
            with open(name) as f:
                check(f.read(), 'read')
        elif action == 'map':
            with open(name, 'rb') as f:
                if os.fstat(f.fileno()).st_size:
                    with mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:
                        check(m[:].decode(), 'mapping')
        elif action == 'save':
            with open(f't{n}', 'w') as f:
                f.write(content(n))
            os.rename(f't{n}', name)
        elif action == 'early':
            with open(f't{n}', 'w') as f:
                f.write(content(n))
                os.rename(f't{n}', name)
        elif action == 'update':
            with open(name, 'r+') as f:
                check(f.read(), 'update')
                f.seek(0)
                f.truncate()
                f.write(content(n))
        elif action == 'rename':
            os.rename(name, other)
        elif action == 'unlink':
            os.unlink(name)
        elif action == 'link':
            os.link(name, other)
        elif action == 'create':
            fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            os.write(fd, content(n).encode())
            os.close(fd)
        elif action == 'stat':
            os.stat(name)
            os.listdir('d')
            [e.stat() for e in os.scandir('.')]
        elif action == 'chmod':
            os.chmod(name, r.choice([0o644, 0o600]))
    except OSError as e:
        if e.errno not in FAIR:
            # Which call of the action it was.
            call = traceback.extract_tb(e.__traceback__)[-1]
            line = SOURCE[call.lineno - 1].strip() if call.name == 'step' else call.name
            errors[action, line, errno.errorcode[e.errno]] += 1
errors = collections.Counter()
os.makedirs('d', exist_ok=True)
children = []
for worker in range(6):
    pid = os.fork()
    if pid == 0:
        r = random.Random(worker)
        try:
            for n in range(STEPS):
                step(r, worker * 100_000 + n)
        except BaseException as e:
            errors['exception', repr(e)] += 1
        if errors:
            say(worker, dict(errors))
        os._exit(0)
    children.append(pid)
for pid in children:
    os.waitpid(pid, 0)
for name in os.listdir('.') + ['d/' + n for n in os.listdir('d')]:
    if name != 'd':
        check(open(name).read(), name)
"#;

fn storm(actions: &str) {
    for user in BOTH {
        let mount = options().user(user).arg("--durability=none").mount();
        let script = format!("ACTIONS = '{actions}'.split()\nSTEPS = 1000\n{STORM}");
        assert_eq!(mount.python(&script), "", "{user:?}");
        mount.unmount();
    }
}

#[test]
fn a_storm_of_writers_and_readers_meets_no_error() {
    storm("write read map update stat chmod");
}

#[test]
fn a_storm_of_saves_and_removals_meets_no_error() {
    storm("write read map save update unlink create stat");
}

#[test]
fn a_storm_of_renames_meets_no_error() {
    storm("write read save early rename unlink create stat update");
}

#[test]
fn a_storm_of_hard_links_meets_no_error() {
    storm("write read map link unlink rename save update stat");
}
