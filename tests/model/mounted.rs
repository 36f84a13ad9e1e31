//! A real mount, and programs that do what they are told.

use crate::common::{Mount, Running, options, wait_until};
use crate::compare::{Shown, Size, System, explore, notices};
use crate::engine::contents;
use crate::op::{OWNERS, Op};
use crate::reference::{Ended, Flaw, Slot, Step};
use rustix::io::Errno;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, MutexGuard};

/// Does what each line says, and answers each with one: a result, or an errno.
const PROGRAM: &str = r#"
class Interrupted(Exception): pass
def interrupt(*_): raise Interrupted
signal.signal(signal.SIGUSR1, interrupt)
fds = {}
def do(what, *args):
    if what == 'chdir': os.chdir(args[0])
    elif what == 'open': fds[args[0]] = os.open(args[1], args[2], 0o644)
    elif what == 'write': assert os.pwrite(fds[args[0]], args[2].encode(), args[1]) == len(args[2])
    elif what == 'truncate': os.ftruncate(fds[args[0]], args[1])
    elif what == 'dup': fds[args[1]] = os.dup(fds[args[0]])
    elif what == 'close': os.close(fds.pop(args[0]))
    elif what == 'sync': os.fsync(fds[args[0]])
    elif what == 'rename': os.rename(*args)
    elif what == 'link': os.link(*args)
    elif what == 'unlink': os.unlink(*args)
    elif what == 'exit': os._exit(0)
    elif what == 'descriptors': return [[slot, read(fd), os.fstat(fd).st_size] for slot, fd in fds.items()]
    elif what == 'names': return [[name, *size_and_links(name)] for name in os.listdir('.')]
def read(fd):
    import fcntl
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY: return None
    return list(os.pread(fd, 4096, 0))
def size_and_links(name):
    stat = os.stat(name)
    return stat.st_size, stat.st_nlink
for line in sys.stdin:
    try: answer = ['done', do(*json.loads(line))]
    except Interrupted: answer = ['failed', errno.EINTR]
    except OSError as e: answer = ['failed', e.errno]
    say(json.dumps(answer))
"#;

/// One mount for all sequences, and the programs that the last one has left.
static SHARED: Mutex<Option<Shared>> = Mutex::new(None);

struct Shared {
    mount: Mount,
    idle: Vec<Running>,
    sequences: u64,
}

fn shared<T>(work: impl FnOnce(&mut Shared) -> T) -> T {
    let mut shared = SHARED.lock().unwrap_or_else(|poison| poison.into_inner());
    let shared = shared.get_or_insert_with(|| Shared {
        mount: options()
            .arg("--lock-timeout=1h")
            .arg("--durability=none")
            .mount(),
        idle: Vec::new(),
        sequences: 0,
    });
    work(shared)
}

struct Owner {
    program: Running,
    waits: bool,
}

impl Owner {
    fn new(dir: &str) -> Self {
        let program = shared(|shared| {
            let idle = shared.idle.pop();
            idle.unwrap_or_else(|| shared.mount.spawn_python(PROGRAM))
        });
        let mut owner = Self {
            program,
            waits: false,
        };
        owner.ask(&json!(["chdir", dir])).expect("its directory");
        owner
    }

    fn tell(&mut self, what: &Value) {
        self.program.tell(&what.to_string());
    }

    fn answer(&mut self) -> Result<Value, Errno> {
        self.waits = false;
        let answer: Value = serde_json::from_str(&self.program.hear()).expect("an answer");
        match (answer[0].as_str(), answer[1].as_i64()) {
            (Some("failed"), Some(errno)) => Err(Errno::from_raw_os_error(errno as i32)),
            _ => Ok(answer[1].clone()),
        }
    }

    fn ask(&mut self, what: &Value) -> Result<Value, Errno> {
        self.tell(what);
        self.answer()
    }

    /// Does it wait in an OPEN? A LOOKUP before it waits for an answer, too.
    fn is_in_open(&self) -> bool {
        let stack = std::fs::read_to_string(format!("/proc/{}/stack", self.program.pid()));
        stack.is_ok_and(|stack| {
            let looks = stack.contains("lookup") || stack.contains("revalidate");
            stack.contains("request_wait") && !looks
        })
    }

    /// An open that is to wait: how it ends all the same, or `None` once it has waited for a while.
    fn wait_in_open(&mut self) -> Option<Ended> {
        self.waits = true;
        let mut looks = 0;
        let mut ended = None;
        wait_until("the open waits or ends", || {
            looks = if self.is_in_open() { looks + 1 } else { 0 };
            if looks == 0
                && let Some(line) = self.program.try_hear()
            {
                ended = Some(line);
            }
            ended.is_some() || looks == 8
        });
        let answer: Value = serde_json::from_str(&ended?).expect("an answer");
        self.waits = false;
        Some(match answer[1].as_i64() {
            Some(errno) => Err(Errno::from_raw_os_error(errno as i32)),
            None => Ok(()),
        })
    }
}

pub struct Mounted {
    /// The directory of this sequence.
    name: String,
    owners: Vec<Owner>,
}

impl Mounted {
    /// A process has ended; another one takes its place.
    fn replace(&mut self, owner: usize) {
        self.owners[owner].program.wait();
        self.owners[owner] = Owner::new(&self.path());
    }

    fn path(&self) -> String {
        shared(|shared| shared.mount.path(&self.name).display().to_string())
    }
}

fn table(answer: &Value) -> impl Iterator<Item = &Vec<Value>> {
    let rows = answer.as_array().expect("a list");
    rows.iter().map(|row| row.as_array().expect("a row"))
}

fn number(value: &Value) -> u64 {
    value.as_u64().expect("a number")
}

impl System for Mounted {
    fn new(files: &BTreeMap<&'static str, Vec<u8>>) -> Self {
        let name = shared(|shared| {
            shared.sequences += 1;
            let name = format!("sequence-{}", shared.sequences);
            let dir = shared.mount.behind(&name);
            std::fs::create_dir(&dir).expect("a directory");
            for (name, content) in files {
                std::fs::write(dir.join(name), content).expect("a file");
            }
            name
        });
        let mut new = Self {
            name,
            owners: Vec::new(),
        };
        let path = new.path();
        new.owners.extend((0..OWNERS).map(|_| Owner::new(&path)));
        new
    }

    fn act(&mut self, op: &Op, step: &Step) -> Option<Ended> {
        let number = op.owner();
        let owner = &mut self.owners[number];
        let what = match op {
            Op::Open { name, how, .. } => {
                owner.tell(&json!(["open", step.new, name, how.bits()]));
                return match step.ended {
                    Some(_) => Some(owner.answer().map(drop)),
                    None => owner.wait_in_open(),
                };
            }
            Op::Write { offset, data, .. } => {
                let data = String::from_utf8(data.clone()).expect("letters");
                json!(["write", step.slot, offset, data])
            }
            Op::Truncate { length, .. } => json!(["truncate", step.slot, length]),
            Op::Dup { .. } => json!(["dup", step.slot, step.new]),
            Op::Close { .. } => json!(["close", step.slot]),
            Op::Sync { .. } => json!(["sync", step.slot]),
            Op::Rename { from, to, .. } => json!(["rename", from, to]),
            Op::Link { from, to, .. } => json!(["link", from, to]),
            Op::Unlink { name, .. } => json!(["unlink", name]),
            Op::Kill { .. } => {
                owner.program.signal("KILL");
                self.replace(number);
                return Some(Ok(()));
            }
            Op::Exit { .. } => {
                owner.tell(&json!(["exit"]));
                self.replace(number);
                return Some(Ok(()));
            }
            Op::Interrupt { .. } => {
                owner.program.signal("USR1");
                return Some(Ok(()));
            }
        };
        Some(owner.ask(&what).map(drop))
    }

    fn ended(&mut self, owner: usize, _slot: Slot) -> Ended {
        self.owners[owner].answer().map(drop)
    }

    fn waits(&mut self, owner: usize) -> bool {
        let owner = &self.owners[owner];
        owner.waits && owner.program.is_silent()
    }

    fn descriptors(&mut self, owner: usize) -> BTreeMap<Slot, Shown> {
        let answer = self.owners[owner].ask(&json!(["descriptors"]));
        let answer = answer.expect("what it reads");
        table(&answer)
            .map(|row| {
                let bytes = row[1].as_array();
                let bytes = bytes.map(|bytes| bytes.iter().map(|b| number(b) as u8).collect());
                (number(&row[0]) as Slot, (bytes, number(&row[2])))
            })
            .collect()
    }

    fn names(&mut self, who: Option<usize>) -> BTreeMap<String, (u64, u64)> {
        let Some(owner) = who else {
            let entries = std::fs::read_dir(self.path()).expect("the directory");
            return entries
                .map(|entry| {
                    let entry = entry.expect("an entry");
                    let stat = entry.metadata().expect("it is listed");
                    let name = entry.file_name().into_string().expect("text");
                    (name, (stat.size(), stat.nlink()))
                })
                .collect();
        };
        let answer = self.owners[owner].ask(&json!(["names"]));
        let answer = answer.expect("the names");
        table(&answer)
            .map(|row| {
                let name = row[0].as_str().expect("a name").to_owned();
                (name, (number(&row[1]), number(&row[2])))
            })
            .collect()
    }

    fn behind(&mut self) -> BTreeMap<String, Vec<u8>> {
        contents(&shared(|shared| shared.mount.behind(&self.name)))
    }

    fn end(self) {
        let programs = self.owners.into_iter().map(|owner| owner.program);
        shared(|shared| {
            shared.idle.extend(programs);
            assert_eq!(shared.mount.store("tmp"), [""; 0], "left in .latchfs/tmp");
            assert_eq!(shared.mount.store("redo"), [""; 0], "left in .latchfs/redo");
        });
    }
}

const SIZE: Size = Size {
    cases: 20,
    steps: 50,
    shrink: 200,
};

/// One test at a time has the mount; it is taken away at its end, however that comes.
struct Alone(#[expect(dead_code)] MutexGuard<'static, ()>);

impl Alone {
    fn new() -> Self {
        static ONE: Mutex<()> = Mutex::new(());
        Self(ONE.lock().unwrap_or_else(|poison| poison.into_inner()))
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let shared = SHARED
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
            .take();
        drop(shared);
    }
}

#[test]
fn a_mount_does_what_the_model_of_its_promises_does() {
    let _alone = Alone::new();
    explore::<Mounted>("a mount", "scripts/test a_mount_does_what_the_model", &SIZE);
}

#[test]
fn the_comparison_of_a_mount_with_the_model_notices_flaws() {
    let _alone = Alone::new();
    // Those of which no wait without end comes.
    let flaws = [
        Flaw::TheKilledCommit,
        Flaw::ReadersFollowCommits,
        Flaw::SyncCommitsNothing,
    ];
    // It ends with the first that is noticed.
    let enough = Size { cases: 500, ..SIZE };
    let unnoticed = flaws
        .into_iter()
        .filter(|flaw| !notices::<Mounted>(*flaw, &enough));
    assert_eq!(unnoticed.collect::<Vec<_>>(), []);
}
