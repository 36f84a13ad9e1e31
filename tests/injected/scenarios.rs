//! What programs do while a call fails.

/// A worker that is told `prepare NAME`, `run NAME` and `judge NAME`. It answers a run with the calls that
/// failed, and a judgement with the state of things, in the mount and in BACKING: `old`, `new`, or
/// what else is there.
pub const WORKER: &str = r#"
OLD, NEW, PATCH = b'old line\n' * 2000, b'new line!\n' * 3000, b'PATCH' * 100
RECORD = b'a record\n' * 20
failed = []
def attempt(what, call, *args):
    try: return call(*args)
    except OSError as e:
        failed.append(f'{what}:{errno.errorcode[e.errno]}')
        return None
def with_file(name, flags, *steps):
    fd = attempt('open', os.open, name, flags, 0o644)
    if fd is None: return
    for what, step in steps:
        if attempt(what, step, fd) is None and failed: break
    attempt('close', os.close, fd)
def put(name, content):
    with open(name, 'wb', buffering=0) as f: f.write(content)
def whole(write):
    def step(fd):
        at = 0
        while at < len(write): at += os.write(fd, write[at:at + 16384])
        return at
    return ('write', step)
def remove(*names):
    for name in names:
        try: os.unlink(name)
        except FileNotFoundError: pass
        except IsADirectoryError: os.rmdir(name)
def read(where, name):
    try:
        with open(os.path.join(where, name), 'rb') as f: return f.read()
    except FileNotFoundError: return None
def among(name, **states):
    def judge(where):
        found = read(where, name)
        for state, content in states.items():
            if found == content: return state
        return f'torn:{found and (len(found), found[:10], found[-10:])}'.replace(' ', '')
    return judge
def is_there(name, there, gone):
    return lambda where: there if os.path.lexists(os.path.join(where, name)) else gone
def fsync(fd): os.fsync(fd); return True
def kill_writer():
    pid = os.fork()
    if pid == 0:
        try:
            fd = os.open('f', os.O_WRONLY | os.O_TRUNC)
            os.write(fd, NEW[:5000])
            os.kill(os.getpid(), signal.SIGKILL)
        finally: os._exit(0)
    os.waitpid(pid, 0)
def map_file(fd):
    os.ftruncate(fd, len(NEW))
    m = mmap.mmap(fd, len(NEW))
    m[:] = NEW
    m.flush(); m.close()
    return True
def save():
    with_file('t', os.O_WRONLY | os.O_CREAT, whole(NEW), ('fsync', fsync))
    if not failed: attempt('rename', os.rename, 't', 'f')
def linked(where):
    a, b = among('f', old=OLD, new=NEW)(where), among('g', old=OLD, new=NEW)(where)
    return a if a == b else f'{a}/{b}'
def listed():
    names = attempt('listdir', os.listdir, 'many')
    if names is not None and sorted(names) != sorted(f'n{n}' for n in range(300)): failed.append('listdir:WRONG')
def reads():
    fd = attempt('open', os.open, 'f', os.O_RDONLY)
    if fd is None: return
    found, at = b'', 0
    while (part := attempt('read', os.pread, fd, 4096, at)): found += part; at += len(part)
    if not failed and found != OLD: failed.append('read:WRONG')
    attempt('close', os.close, fd)
def many():
    if not os.path.isdir('many'):
        os.mkdir('many')
        for n in range(300): put(f'many/n{n}', b'')
def old(): put('f', OLD)
def twice():
    remove('f', 'g'); put('f', OLD); os.link('f', 'g')
def nothing(): pass
W, T, C = os.O_WRONLY, os.O_TRUNC, os.O_CREAT
F = among('f', old=OLD, new=NEW)
SCENARIOS = {
    'create': (lambda: remove('f'), lambda: with_file('f', W | C | os.O_EXCL, whole(NEW)), among('f', old=None, new=NEW)),
    'replace': (old, lambda: with_file('f', W | T, whole(NEW)), F),
    'update': (old, lambda: with_file('f', os.O_RDWR, ('write', lambda fd: os.pwrite(fd, PATCH, 7000))),
        among('f', old=OLD, new=OLD[:7000] + PATCH + OLD[7000 + len(PATCH):])),
    'append': (lambda: (remove('log'), put('log', OLD)), lambda: with_file('log', W | os.O_APPEND, ('write', lambda fd: os.write(fd, RECORD)),
        ('fsync', fsync)), among('log', old=OLD, new=OLD + RECORD)),
    'linked': (twice, lambda: with_file('f', W | T, whole(NEW)), linked),
    'sync': (old, lambda: with_file('f', W | T, whole(PATCH), ('fsync', fsync), whole(NEW)),
        among('f', old=OLD, synced=PATCH, new=PATCH + NEW)),
    'map': (old, lambda: with_file('f', os.O_RDWR, ('map', map_file)), F),
    'save': (lambda: (remove('t'), put('f', OLD)), save, F),
    'rename': (lambda: (put('f', OLD), put('t', NEW)), lambda: attempt('rename', os.rename, 't', 'f'),
        lambda where: F(where) + (' and t' if F(where) == os.path.exists(os.path.join(where, 't')) == 'new' else '')),
    'move': (lambda: (remove('d/f'), put('f', OLD), os.makedirs('d', exist_ok=True)), lambda: attempt('rename', os.rename, 'f', 'd/f'),
        among('d/f', new=OLD, old=None)),
    'truncate': (old, lambda: attempt('truncate', os.truncate, 'f', 100), among('f', old=OLD, new=OLD[:100])),
    'mkdir': (lambda: remove('e'), lambda: attempt('mkdir', os.mkdir, 'e'), is_there('e', 'new', 'old')),
    'rmdir': (lambda: os.makedirs('e', exist_ok=True), lambda: attempt('rmdir', os.rmdir, 'e'), is_there('e', 'old', 'new')),
    'unlink': (old, lambda: attempt('unlink', os.unlink, 'f'), is_there('f', 'old', 'new')),
    'link': (lambda: (remove('g'), put('f', OLD)), lambda: attempt('link', os.link, 'f', 'g'), is_there('g', 'new', 'old')),
    'symlink': (lambda: remove('s'), lambda: attempt('symlink', os.symlink, 'f', 's'), is_there('s', 'new', 'old')),
    'chmod': (lambda: (remove('f'), put('f', OLD), os.chmod('f', 0o600)), lambda: attempt('chmod', os.chmod, 'f', 0o640),
        lambda where: {0o600: 'old', 0o640: 'new'}.get(os.stat(os.path.join(where, 'f')).st_mode & 0o777, 'other')),
    'read': (old, reads, among('f', new=OLD)),
    'list': (many, listed, lambda where: 'new'),
    'killed': (old, kill_writer, among('f', new=OLD)),
    'direct': (lambda: put('x.db', OLD), lambda: with_file('x.db', W | T, whole(NEW)), among('x.db', old=OLD, new=NEW)),
}
BACKING = sys.argv[-1]
# Until the daemon has done all that a run has left to do: closes are told of later.
while command := hear():
    what, _, name = command.partition(' ')
    prepare, run, judge = SCENARIOS[name]
    failed.clear()
    try:
        if what == 'prepare':
            prepare(); say('ready')
        elif what == 'run':
            run(); say(' '.join(failed) or 'done')
        else:
            shown, behind = judge('.'), judge(BACKING)
            say(shown if shown == behind else f'{shown}-but-{behind}')
    except BaseException as e:
        import traceback
        say(what, 'failed:', repr(e), 'line', traceback.extract_tb(e.__traceback__)[-1].lineno)
"#;

/// What is right after a scenario.
pub struct Scenario {
    /// Its name in the worker.
    pub name: &'static str,
    /// States that are right if no call of the program failed.
    pub done: &'static [&'static str],
    /// States that are right if one did.
    pub failed: &'static [&'static str],
    /// States that are right if one did because what had just been done could not be looked at. (No
    /// disk fails so: the inode is in memory.)
    pub untold: &'static [&'static str],
    /// A commit whose directory can't be made durable tells an error, and is there all the same.
    pub commits: bool,
}

const fn scenario(name: &'static str) -> Scenario {
    Scenario {
        name,
        done: &["new"],
        failed: &["old"],
        untold: &[],
        commits: false,
    }
}

const fn commit(name: &'static str) -> Scenario {
    Scenario {
        commits: true,
        ..scenario(name)
    }
}

const fn reading(name: &'static str) -> Scenario {
    Scenario {
        failed: &["new"],
        ..scenario(name)
    }
}

/// Those that write versions.
pub const VERSIONS: &[Scenario] = &[
    Scenario {
        untold: &["torn:b''"],
        ..commit("create")
    },
    commit("replace"),
    commit("update"),
    Scenario {
        failed: &["old", "synced"],
        ..commit("sync")
    },
    Scenario {
        untold: &["new"],
        ..commit("map")
    },
    commit("save"),
    reading("killed"),
];

/// Those that write what keeps its inode.
pub const IN_PLACE: &[Scenario] = &[
    scenario("linked"),
    // A record is there once its write has returned; fsync tells whether it is durable.
    Scenario {
        failed: &["old", "new"],
        ..scenario("append")
    },
];

/// Those that do something to names and attributes, and those that only look.
pub const NAMES: &[Scenario] = &[
    scenario("rename"),
    scenario("move"),
    commit("truncate"),
    scenario("mkdir"),
    scenario("rmdir"),
    scenario("unlink"),
    Scenario {
        untold: &["new"],
        ..scenario("link")
    },
    scenario("symlink"),
    Scenario {
        untold: &["old-but-new"],
        ..scenario("chmod")
    },
    reading("read"),
    reading("list"),
];

/// One that is written without latchfs's versions.
pub const DIRECT: Scenario = scenario("direct");
