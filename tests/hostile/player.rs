//! Plays a sequence of requests, and keeps the books that a kernel keeps.

use crate::kernel::{Answer, Args, Told, Who, op};
use crate::ops::{Behind, Handle, Node, Op, Step};
use crate::scene::{NOBODY, Scene, Scripted};
use rustix::fs::{AtFlags, CWD, FileType, Mode, RenameFlags};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// What an answer may bring.
#[derive(Clone, Copy, Debug)]
enum Brings {
    Nothing,
    /// A node id.
    Entry,
    /// A handle.
    File,
    /// A directory handle.
    Directory,
    Both,
    Entries,
}

/// A kernel's books.
pub struct Player<'a> {
    scene: &'a Scene,
    script: Option<Scripted>,
    threads: Vec<Who>,
    /// How often each node id was given.
    given: BTreeMap<u64, u64>,
    forgotten: Vec<u64>,
    /// Open handles, and whether they are directories.
    open: Vec<(u64, bool)>,
    released: Vec<u64>,
    /// Answered, or not yet.
    asked: Vec<u64>,
    waiting: Vec<(u64, Brings)>,
    unanswered: Vec<u64>,
}

/// How long a step waits for its answer. Some opens wait for others.
const PATIENCE: Duration = Duration::from_millis(15);
/// How long any answer may take.
const LONG: Duration = Duration::from_secs(8);

impl<'a> Player<'a> {
    pub fn new(scene: &'a Scene, threads: Vec<Who>, script: Option<Scripted>) -> Self {
        Self {
            scene,
            script,
            threads,
            given: BTreeMap::new(),
            forgotten: Vec::new(),
            open: Vec::new(),
            released: Vec::new(),
            asked: Vec::new(),
            waiting: Vec::new(),
            unanswered: Vec::new(),
        }
    }

    pub fn play(&mut self, step: &Step) {
        let who = self.threads[step.who as usize % self.threads.len()];
        if self.act(who, &step.op) {
            return;
        }
        let closed = match step.op {
            Op::Release(handle) => Some((self.handle(handle), false)),
            Op::ReleaseDir(handle) => Some((self.handle(handle), true)),
            _ => None,
        };
        let (opcode, node, args, brings) = self.request(&step.op);
        let mut args = args;
        // A request that is cut may still be whole, but means another thing. (That two of these have
        // all of their data, fuser 0.18 asserts.)
        let whole = [op::WRITE, op::SETXATTR, op::FORGET, op::BATCH_FORGET];
        let cut = step.cut.filter(|_| !whole.contains(&opcode));
        if let Some(cut) = cut {
            args.0.truncate(args.0.len().min(cut as usize));
        }
        let unique = self.scene.kernel.send(opcode, node, who, &args);
        if matches!(opcode, op::FORGET | op::BATCH_FORGET) {
            self.unanswered.push(unique);
            return;
        }
        self.asked.push(unique);
        self.waiting.push((unique, brings));
        if !step.hurry {
            self.scene.kernel.wait(unique, PATIENCE);
        }
        self.harvest();
        if let Some(handle) = closed.filter(|_| step.cut.is_none()) {
            self.close_book(handle);
        }
    }

    /// The other kind of release closes nothing.
    fn close_book(&mut self, handle: (u64, bool)) {
        self.open.retain(|open| *open != handle);
        self.released.push(handle.0);
    }

    /// What is no request.
    fn act(&mut self, who: Who, op: &Op) -> bool {
        match op {
            Op::Behind(what) => behind(self.scene.backing(), what),
            Op::Dying(..) | Op::Interrupted(..) | Op::Held(..) => {
                if let Some(script) = &self.script {
                    let mut script = script.script();
                    match op {
                        Op::Dying(yes) => {
                            let process = script.threads.get(&who.tid).copied().unwrap_or(0);
                            match yes {
                                true => script.dying.insert(process),
                                false => script.dying.remove(&process),
                            };
                        }
                        Op::Interrupted(true) => drop(script.interrupted.insert(who.tid)),
                        Op::Interrupted(false) => drop(script.interrupted.remove(&who.tid)),
                        Op::Held(held, mapped) => {
                            script.held = *held;
                            script.mapped = *mapped;
                        }
                        _ => {}
                    }
                }
            }
            _ => return false,
        }
        true
    }

    /// Takes in the answers that have come.
    fn harvest(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        for (unique, brings) in waiting {
            match self.scene.kernel.wait(unique, Duration::ZERO) {
                Some(answer) => self.take(&answer, brings),
                None => self.waiting.push((unique, brings)),
            }
        }
    }

    fn take(&mut self, answer: &Answer, brings: Brings) {
        if answer.errno != 0 {
            return;
        }
        let told = match brings {
            Brings::Nothing => vec![],
            Brings::Entry => answer.entry().into_iter().collect(),
            Brings::File | Brings::Directory => {
                let directory = matches!(brings, Brings::Directory);
                self.open.extend(answer.handle().map(|h| (h, directory)));
                vec![]
            }
            Brings::Both => {
                self.open
                    .extend(answer.created_handle().map(|h| (h, false)));
                answer.entry().into_iter().collect()
            }
            Brings::Entries => {
                let told = answer.entries().into_iter().filter_map(|(_, told)| told);
                told.collect()
            }
        };
        for Told { node, .. } in told {
            *self.given.entry(node).or_default() += 1;
        }
    }

    fn node(&self, node: Node) -> u64 {
        match node {
            Node::Root => 1,
            Node::Given(n) => match self.given.len() {
                0 => 1,
                len => *self.given.keys().nth(n as usize % len).expect("in range"),
            },
            Node::Forgotten(n) => match self.forgotten.len() {
                0 => 0,
                len => self.forgotten[n as usize % len],
            },
            Node::Number(n) => n,
        }
    }

    fn handle(&self, handle: Handle) -> u64 {
        match handle {
            Handle::Open(n) => match self.open.len() {
                0 => 0,
                len => self.open[n as usize % len].0,
            },
            Handle::Released(n) => match self.released.len() {
                0 => 0,
                len => self.released[n as usize % len],
            },
            Handle::Number(n) => n,
        }
    }

    /// Takes `times` of a node id out of the books.
    fn forget(&mut self, node: u64, times: u64) {
        let Some(count) = self.given.get_mut(&node) else {
            return;
        };
        *count = count.saturating_sub(times);
        if *count == 0 {
            self.given.remove(&node);
            self.forgotten.push(node);
        }
    }

    fn request(&mut self, op: &Op) -> (u32, u64, Args, Brings) {
        use Brings::{Both, Directory, Entries, Entry, File, Nothing};
        let args = Args::new();
        match op {
            Op::Lookup(n, name) => (op::LOOKUP, self.node(*n), args.name(&name.0), Entry),
            Op::Forget(n, times) => {
                let node = self.node(*n);
                self.forget(node, *times);
                (op::FORGET, node, args.u64(*times), Nothing)
            }
            Op::BatchForget(all) => {
                let mut args = args.u32(all.len() as u32).u32(0);
                for (n, times) in all {
                    let node = self.node(*n);
                    self.forget(node, *times);
                    args = args.u64(node).u64(*times);
                }
                (op::BATCH_FORGET, 0, args, Nothing)
            }
            Op::GetAttr(n, h) => {
                let args = args.u32(1).u32(0).u64(self.handle(*h));
                (op::GETATTR, self.node(*n), args, Nothing)
            }
            Op::SetAttr {
                node,
                handle,
                valid,
                size,
                mode,
                owner,
                times,
            } => {
                let args = args.u32(*valid).u32(0).u64(self.handle(*handle)).u64(*size);
                let args = args.u64(0).u64(times.0 as u64).u64(times.1 as u64).u64(0);
                let args = args.u32(999_999_999).u32(0).u32(0).u32(*mode).u32(0);
                let args = args.u32(owner.0).u32(owner.1).u32(0);
                (op::SETATTR, self.node(*node), args, Nothing)
            }
            Op::ReadLink(n) => (op::READLINK, self.node(*n), args, Nothing),
            Op::SymLink(n, name, to) => (
                op::SYMLINK,
                self.node(*n),
                args.name(&name.0).name(&to.0),
                Entry,
            ),
            Op::MkNod(n, name, mode, rdev) => {
                let args = args.u32(*mode).u32(*rdev).u32(0).u32(0).name(&name.0);
                (op::MKNOD, self.node(*n), args, Entry)
            }
            Op::MkDir(n, name, mode) => {
                let args = args.u32(*mode).u32(0).name(&name.0);
                (op::MKDIR, self.node(*n), args, Entry)
            }
            Op::Unlink(n, name) => (op::UNLINK, self.node(*n), args.name(&name.0), Nothing),
            Op::RmDir(n, name) => (op::RMDIR, self.node(*n), args.name(&name.0), Nothing),
            Op::Rename(n, name, m, to, None) => {
                let args = args.u64(self.node(*m)).name(&name.0).name(&to.0);
                (op::RENAME, self.node(*n), args, Nothing)
            }
            Op::Rename(n, name, m, to, Some(flags)) => {
                let args = args.u64(self.node(*m)).u32(*flags).u32(0);
                let args = args.name(&name.0).name(&to.0);
                (op::RENAME2, self.node(*n), args, Nothing)
            }
            Op::Link(n, m, name) => {
                let args = args.u64(self.node(*n)).name(&name.0);
                (op::LINK, self.node(*m), args, Entry)
            }
            Op::Open(n, flags) => (op::OPEN, self.node(*n), args.u32(*flags).u32(0), File),
            Op::Create(n, name, flags, mode) => {
                let args = args.u32(*flags).u32(*mode).u32(0).u32(0).name(&name.0);
                (op::CREATE, self.node(*n), args, Both)
            }
            Op::Read(h, offset, size) => {
                let args = args.u64(self.handle(*h)).u64(*offset).u32(*size);
                let args = args.u32(0).u64(0).u32(0).u32(0);
                (op::READ, 1, args, Nothing)
            }
            Op::Write(h, offset, size, flags) => {
                let size = (*size).min(300_000);
                let args = args.u64(self.handle(*h)).u64(*offset).u32(size);
                let args = args.u32(*flags).u64(0).u32(0).u32(0);
                (
                    op::WRITE,
                    1,
                    args.bytes(&vec![b'w'; size as usize]),
                    Nothing,
                )
            }
            Op::Flush(h) => {
                let args = args.u64(self.handle(*h)).u64(0).u64(7);
                (op::FLUSH, 1, args, Nothing)
            }
            Op::Release(h) => {
                let args = args.u64(self.handle(*h)).u32(0).u32(0).u64(0);
                (op::RELEASE, 1, args, Nothing)
            }
            Op::FSync(h) => (op::FSYNC, 1, args.u64(self.handle(*h)).u64(0), Nothing),
            Op::Fallocate(h, offset, length, mode) => {
                let args = args.u64(self.handle(*h)).u64(*offset).u64(*length);
                (op::FALLOCATE, 1, args.u32(*mode).u32(0), Nothing)
            }
            Op::Lseek(h, offset, whence) => {
                let args = args.u64(self.handle(*h)).u64(*offset).u32(*whence).u32(0);
                (op::LSEEK, 1, args, Nothing)
            }
            Op::CopyRange(h, offset, to, to_offset, length) => {
                let args = args.u64(self.handle(*h)).u64(*offset).u64(1);
                let args = args.u64(self.handle(*to)).u64(*to_offset).u64(*length);
                (op::COPY_FILE_RANGE, 1, args.u64(0), Nothing)
            }
            Op::OpenDir(n) => (op::OPENDIR, self.node(*n), args.u32(0).u32(0), Directory),
            Op::ReadDir(h, offset, size) => {
                (op::READDIR, 1, self.read_args(*h, *offset, *size), Nothing)
            }
            Op::ReadDirPlus(h, offset, size) => (
                op::READDIRPLUS,
                1,
                self.read_args(*h, *offset, *size),
                Entries,
            ),
            Op::ReleaseDir(h) => {
                let args = args.u64(self.handle(*h)).u32(0).u32(0).u64(0);
                (op::RELEASEDIR, 1, args, Nothing)
            }
            Op::FSyncDir(h) => (op::FSYNCDIR, 1, args.u64(self.handle(*h)).u64(0), Nothing),
            Op::StatFs => (op::STATFS, 1, args, Nothing),
            Op::SetXattr(n, name, size, flags) => {
                let size = (*size).min(200_000);
                let args = args.u32(size).u32(*flags).name(&name.0);
                let args = args.bytes(&vec![1; size as usize]);
                (op::SETXATTR, self.node(*n), args, Nothing)
            }
            Op::GetXattr(n, name, size) => {
                let args = args.u32(*size).u32(0).name(&name.0);
                (op::GETXATTR, self.node(*n), args, Nothing)
            }
            Op::ListXattr(n, size) => (
                op::LISTXATTR,
                self.node(*n),
                args.u32(*size).u32(0),
                Nothing,
            ),
            Op::RemoveXattr(n, name) => {
                (op::REMOVEXATTR, self.node(*n), args.name(&name.0), Nothing)
            }
            Op::Lock {
                opcode,
                node,
                handle,
                range,
                kind,
                flags,
            } => {
                let args = args.u64(self.handle(*handle)).u64(11);
                let args = args.u64(range.0).u64(range.1).u32(*kind).u32(77);
                (*opcode, self.node(*node), args.u32(*flags).u32(0), Nothing)
            }
            Op::Access(n) => (op::ACCESS, self.node(*n), args.u32(7).u32(0), Nothing),
            Op::Interrupt(n) => {
                let unique = match self.asked.len() {
                    0 => 0,
                    len => self.asked[*n as usize % len],
                };
                (op::INTERRUPT, 0, args.u64(unique), Nothing)
            }
            Op::Bmap(n) => (
                op::BMAP,
                self.node(*n),
                args.u64(0).u32(512).u32(0),
                Nothing,
            ),
            Op::Ioctl(h) => {
                let args = args.u64(self.handle(*h)).u32(0).u32(0x5401).u64(0);
                (op::IOCTL, 1, args.u32(0).u32(0), Nothing)
            }
            Op::Poll(h) => {
                let args = args.u64(self.handle(*h)).u64(1).u32(1).u32(1);
                (op::POLL, 1, args, Nothing)
            }
            Op::Unknown(opcode, bytes) => (*opcode, 1, args.bytes(bytes), Nothing),
            Op::Dying(..) | Op::Interrupted(..) | Op::Held(..) | Op::Behind(_) => {
                unreachable!("no request")
            }
        }
    }

    fn read_args(&self, handle: Handle, offset: u64, size: u32) -> Args {
        // fuser makes the buffer at once.
        let size = size.min(1 << 20);
        let args = Args::new().u64(self.handle(handle)).u64(offset).u32(size);
        args.u32(0).u64(0).u32(0).u32(0)
    }

    /// Gives everything back, and checks that nothing stays.
    pub fn finish(&mut self) -> Result<(), String> {
        if let Some(script) = &self.script {
            let mut script = script.script();
            script.dying.clear();
            script.interrupted.clear();
            (script.held, script.mapped) = (false, false);
        }
        let scene = self.scene;
        loop {
            self.give_back();
            scene.settle(|| self.give_back())?;
            // An answer may still be on its way, and bring something.
            for unique in &self.asked {
                if scene.kernel.wait(*unique, LONG).is_none() {
                    return Err(format!("no answer to request {unique}"));
                }
            }
            self.harvest();
            if self.open.is_empty() && self.given.is_empty() {
                break;
            }
        }
        for unique in &self.asked {
            let count = scene.kernel.count(*unique);
            if count != 1 {
                return Err(format!("{count} answers to request {unique}"));
            }
        }
        if let Some(unique) = self.unanswered.iter().find(|u| scene.kernel.count(**u) > 0) {
            return Err(format!("an answer to FORGET, request {unique}"));
        }
        scene.check()
    }

    fn give_back(&mut self) {
        self.harvest();
        for (handle, directory) in std::mem::take(&mut self.open) {
            let opcode = if directory {
                op::RELEASEDIR
            } else {
                op::RELEASE
            };
            let args = Args::new().u64(handle).u32(0).u32(0).u64(0);
            self.asked
                .push(self.scene.kernel.send(opcode, 1, NOBODY, &args));
        }
        // Whoever was sent to look again looks for something else.
        for who in self.threads.clone() {
            let args = Args::new().name(b"nowhere to be found");
            let unique = self.scene.kernel.send(op::LOOKUP, 1, who, &args);
            self.asked.push(unique);
            self.scene.kernel.wait(unique, PATIENCE);
        }
        for (node, times) in std::mem::take(&mut self.given) {
            let args = Args::new().u64(times);
            self.unanswered
                .push(self.scene.kernel.send(op::FORGET, node, NOBODY, &args));
        }
    }
}

/// Does something in BACKING directly. What can't be done is left.
fn behind(backing: PathBuf, what: &Behind) {
    let at = |name: &str| backing.join(name);
    let remove = |name: &str| {
        let path = at(name);
        match path.symlink_metadata() {
            Ok(stat) if stat.is_dir() => drop(std::fs::remove_dir_all(path)),
            _ => drop(std::fs::remove_file(path)),
        }
    };
    match what {
        Behind::Remove(name) => remove(name),
        Behind::LinkOut(name) => {
            remove(name);
            let to = if *name == "d" {
                "../canary"
            } else {
                "../canary/f"
            };
            let _ = std::os::unix::fs::symlink(to, at(name));
        }
        Behind::Write(name) => {
            remove(name);
            let _ = std::fs::write(at(name), "changed behind the mount");
        }
        Behind::MakeDir(name) => {
            remove(name);
            let _ = std::fs::create_dir(at(name));
        }
        Behind::Fifo(name) => {
            remove(name);
            let mode = Mode::from_raw_mode(0o666);
            let _ = rustix::fs::mknodat(CWD, at(name), FileType::Fifo, mode, 0);
        }
        Behind::Exchange(a, b) => {
            let _ = rustix::fs::renameat_with(CWD, at(a), CWD, at(b), RenameFlags::EXCHANGE);
        }
        Behind::HardLink(a, b) => {
            let _ = rustix::fs::linkat(CWD, at(a), CWD, at(b), AtFlags::empty());
        }
    }
}
