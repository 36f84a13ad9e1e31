//! Programs that are killed at random moments, a thousand of them.

use crate::common::reliability::Row;
use crate::common::{Mount, Running, options, wait_until};
use std::collections::BTreeMap;

/// Parents that fork clients, each of which does things to the same few files and tells of each step
/// by a byte; after so many bytes, and a moment of spinning, its parent kills it. `c` tells that a count was
/// raised, and its close has returned; `C` that this is begun.
const CLIENTS: &str = r#"
import fcntl, random
NAMES = ['a', 'b', 'c', 'd/a']
def content(n): return (b'%08d' % n) * (50 + n * 7919 % 3000)
def client(r, tell):
    def step(what=b'.'): os.write(tell, what)
    n = r.randrange(10 ** 8)
    while True:
        n += 1
        name, other = r.sample(NAMES, 2)
        action = r.choice(ACTIONS)
        try:
            if action == 'write':
                with open(name, 'wb', buffering=0) as f:
                    text = content(n); step()
                    f.write(text[:len(text) // 2]); step(); f.write(text[len(text) // 2:]); step()
            elif action == 'update':
                with open(name, 'r+b', buffering=0) as f:
                    step(); f.truncate(0); step(); f.write(content(n)); step()
            elif action == 'sync':
                with open(name, 'wb', buffering=0) as f:
                    step(); f.write(content(n)); step(); os.fsync(f.fileno()); step()
                    f.seek(0); f.truncate(); step(); f.write(content(n + 1)); step()
            elif action == 'save':
                with open(f't{os.getpid()}', 'wb', buffering=0) as f:
                    f.write(content(n)); step()
                os.rename(f't{os.getpid()}', name); step()
            elif action == 'append':
                with open('log', 'ab', buffering=0) as f:
                    for k in range(3): f.write(b'%d %s\n' % (n, b'x' * (n % 500))); step()
            elif action == 'count':
                with open('count', 'r+b', buffering=0) as f:
                    fcntl.flock(f, fcntl.LOCK_EX); step()
                    found = int(f.read()); f.seek(0); step(b'C')
                    f.write(b'%d' % (found + 1)); step()
                step(b'c')
            elif action == 'map':
                with open(name, 'r+b') as f:
                    step(); f.truncate(4000); m = mmap.mmap(f.fileno(), 4000); step()
                    m[:] = b'%08d' % n * 500; step(); m.close(); step()
            elif action == 'lock':
                with open('lock', 'w') as f: fcntl.flock(f, fcntl.LOCK_EX); step()
            elif action == 'read':
                with open(name, 'rb') as f: check(f.read(), name); step()
            elif action == 'make':
                os.makedirs(f'e{n % 3}', exist_ok=True); step(); os.rmdir(f'e{n % 3}'); step()
            elif action == 'remove':
                os.unlink(name); step()
            elif action == 'link':
                os.link(name, other); step()
        except (FileNotFoundError, FileExistsError): step()
def check(text, name):
    if text:
        n = int(text[:8])
        assert text in (content(n), b'%08d' % n * 500), (name, len(text), text[:16], text[-16:])
def parent(seed):
    r = random.Random(seed)
    steps, begun, done = 0, 0, 0
    for number in range(COUNT):
        hears, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(hears)
            try: client(random.Random(seed * 10000 + number), tell)
            except BaseException as e: os.write(2, repr(e).encode() + b'\n')
            os._exit(1)
        os.close(tell)
        told = b''
        for _ in range(r.randrange(1, 25)):
            byte = os.read(hears, 1)
            if not byte: break
            told += byte
        for _ in range(r.randrange(0, 3000)): pass
        os.kill(pid, signal.SIGKILL)
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        while byte := os.read(hears, 1000): told += byte
        os.close(hears)
        steps += len(told); begun += told.count(b'C'); done += told.count(b'c')
        if ended != -signal.SIGKILL: say('ended', ended)
        if number % 10 == 9: say('killed', number + 1)
    say('parent', steps, begun, done)
    os._exit(0)
os.makedirs('d', exist_ok=True)
for name, text in ('count', '0'), ('log', ''):
    with open(name, 'w') as f: f.write(text)
for seed in range(PARENTS):
    if os.fork() == 0: parent(SEED * 1000 + seed)
for _ in range(PARENTS): os.wait()
wrong = []
for where in '.', 'd':
    for name in os.listdir(where):
        path = os.path.join(where, name)
        if name not in ('count', 'log') and os.path.isfile(path):
            try: check(open(path, 'rb').read(), path)
            except (AssertionError, ValueError) as e: wrong.append(str(e))
for line in open('log', 'rb'):
    n, _, rest = line.partition(b' ')
    if rest != b'x' * (int(n) % 500) + b'\n': wrong.append(f'log: {line}')
say('torn', len(wrong), *wrong[:3])
say('count', open('count').read())
"#;

/// What a run has told: by its first word, the numbers in the lines.
fn run(
    mount: &Mount,
    parents: usize,
    count: usize,
    actions: &str,
) -> BTreeMap<String, Vec<String>> {
    let seed = std::env::var("LATCHFS_TEST_SEED").unwrap_or_else(|_| "1".into());
    let program: Running = mount.spawn_python(&format!(
        "SEED, PARENTS, COUNT, ACTIONS = {seed}, {parents}, {count}, '{actions}'.split()\n{CLIENTS}"
    ));
    let mut told: BTreeMap<String, Vec<String>> = BTreeMap::new();
    loop {
        let line = program.hear();
        let (what, rest) = line.split_once(' ').expect("two words");
        told.entry(what.to_owned())
            .or_default()
            .push(rest.to_owned());
        if what == "count" {
            return told;
        }
    }
}

const ACTIONS: &str = "write update sync save append count count map lock read make remove link";

#[test]
fn a_thousand_killed_clients_leave_whole_files_and_no_lease() {
    let (parents, count) = (4, 250);
    let mount = options()
        .arg("--durability=none")
        .arg("--kept-max-size=1MiB")
        .mount();
    mount.bash("echo x > x; cat x; rm x; mkdir d; echo x > d/x; rm d/x");
    let base = mount.descriptors();
    let told = run(&mount, parents, count, ACTIONS);
    assert_eq!(
        told.get("ended"),
        None,
        "clients ended before they were killed"
    );
    assert_eq!(told["torn"], ["0"], "{told:?}");
    let (mut steps, mut begun, mut done) = (0, 0, 0);
    for line in &told["parent"] {
        let numbers: Vec<u64> = line.split(' ').flat_map(str::parse).collect();
        (steps, begun, done) = (steps + numbers[0], begun + numbers[1], done + numbers[2]);
    }
    let counted: u64 = told["count"][0].parse().expect("a number");
    println!("{steps} steps; the count is {counted}: {done} were acknowledged, {begun} begun");
    assert!(
        (done..=begun).contains(&counted),
        "{done} <= {counted} <= {begun}"
    );
    // No lease, and no lock: each file opens at once.
    let blocked = "import fcntl\n\
        left = []\n\
        for where in '.', 'd':\n\
        \x20   for name in os.listdir(where):\n\
        \x20       path = os.path.join(where, name)\n\
        \x20       if not os.path.isfile(path): continue\n\
        \x20       try:\n\
        \x20           fd = os.open(path, os.O_RDWR | os.O_NONBLOCK); fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB); os.close(fd)\n\
        \x20       except OSError as e: left.append((path, errno.errorcode[e.errno]))\n\
        say(left)";
    wait_until("every file opens at once", || {
        mount.python(blocked) == "[]\n"
    });
    assert_eq!(mount.store("tmp"), [""; 0]);
    assert_eq!(mount.store("redo"), [""; 0]);
    mount.wait_until_descriptors_are_back(base + 4);
    let kept: u64 = mount
        .store("kept")
        .iter()
        .map(|name| {
            let file = mount.behind(".latchfs/kept").join(name);
            file.metadata().map_or(0, |data| data.len())
        })
        .sum();
    assert!(kept <= 1 << 20, "{kept} bytes are kept");
    assert!(!mount.store("kept").is_empty(), "no kill met a version");
    mount.unmount();
    Row {
        fault: "client killed at a random moment",
        injected: "SIGKILL after a random step of writing, updating, renaming, appending, mapping, locking; \
                   four at a time on the same few files",
        cases: (parents * count) as u64,
        violations: 0,
        command: "scripts/test a_thousand_killed_clients",
    }
    .report();
}

/// The control: without latchfs the same kills do tear files.
#[test]
fn the_same_kills_tear_files_in_a_bare_directory() {
    let mount = options().mount();
    let bare = tempfile::tempdir().expect("a directory");
    let script = format!(
        "import os\nos.chdir({:?})\nSEED, PARENTS, COUNT, ACTIONS = 1, 4, 25, 'write update read'.split()\n{CLIENTS}",
        bare.path()
    );
    let said = mount.python(&script);
    // Readers that saw half a file ended by the failed check.
    let torn = said
        .lines()
        .any(|line| line.starts_with("torn ") && line != "torn 0");
    assert!(torn || said.contains("ended "), "{said}");
}
