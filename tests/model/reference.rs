//! What the file system promises (DESIGN.md, docs/semantics.md), as plain values in memory: the committed
//! content of each name, private versions of those who write, who waits and who is next. It knows
//! nothing of node ids, redirects, shadows and threads.

use crate::op::{Access, How, NAMES, OWNERS, Op};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};

/// What can be wrong with it, to see that the comparison would notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    LastComeFirstServed,
    ReadersSeeWhatIsBeingWritten,
    ReadersFollowCommits,
    EveryCloseCommits,
    TheKilledCommit,
    SyncCommitsNothing,
    SyncGivesTheFileAway,
    NoCircleIsSeen,
    EveryLongWaitIsACircle,
    RemovedFilesAreCommitted,
    WhoLosesTheFileWaitsOn,
}

pub const FLAWS: [Flaw; 11] = [
    Flaw::LastComeFirstServed,
    Flaw::ReadersSeeWhatIsBeingWritten,
    Flaw::ReadersFollowCommits,
    Flaw::EveryCloseCommits,
    Flaw::TheKilledCommit,
    Flaw::SyncCommitsNothing,
    Flaw::SyncGivesTheFileAway,
    Flaw::NoCircleIsSeen,
    Flaw::EveryLongWaitIsACircle,
    Flaw::RemovedFilesAreCommitted,
    Flaw::WhoLosesTheFileWaitsOn,
];

type Name = &'static str;
pub type Slot = usize;

/// How a call ended.
pub type Ended = Result<(), Errno>;

/// What a descriptor shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shows {
    Version(usize),
    Transaction(usize),
}

#[derive(Clone, Copy, Debug)]
struct Fd {
    shows: Shows,
    reads: bool,
    writes: bool,
}

#[derive(Clone, Debug)]
struct Version {
    bytes: Vec<u8>,
    /// Somebody has opened it to read it.
    read: bool,
}

#[derive(Clone, Debug, Default)]
struct File {
    /// The committed version, if there is one.
    current: Option<usize>,
    /// Who writes it.
    transaction: Option<usize>,
    /// Who waits, in the order they came.
    line: Vec<Waiting>,
}

#[derive(Clone, Debug)]
struct Transaction {
    owner: usize,
    file: usize,
    bytes: Vec<u8>,
    /// Since the last commit.
    changed: bool,
    detached: bool,
    ended: bool,
}

#[derive(Clone, Debug)]
struct Waiting {
    owner: usize,
    slot: Slot,
    name: Name,
    how: How,
    /// The version that was there when it came.
    found: Option<usize>,
}

#[derive(Clone, Debug, Default)]
struct Owner {
    fds: BTreeMap<Slot, Fd>,
    slots: Slot,
    waits: bool,
}

/// One step, as it is to be done: with the descriptor that an [`Op`] means.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// The descriptor that is used, closed, or copied.
    pub slot: Slot,
    /// The one that is made.
    pub new: Slot,
    /// How it ended; `None`: it waits.
    pub ended: Option<Ended>,
    /// Whose waits ended with it, and how: the owner and the descriptor.
    pub others: Vec<(usize, Slot, Ended)>,
    /// What happens next depends on who is faster.
    pub racy: bool,
    /// Somebody who waited has found that the name means another file by now.
    look_again: bool,
}

/// Everything.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    pub flaw: Option<Flaw>,
    versions: Vec<Version>,
    files: Vec<File>,
    transactions: Vec<Transaction>,
    owners: Vec<Owner>,
    /// What the mount shows.
    names: BTreeMap<Name, usize>,
    /// What BACKING has.
    behind: BTreeMap<Name, usize>,
    /// The last step.
    pub step: Step,
}

impl Reference {
    /// A directory with some files in it.
    pub fn new(files: &BTreeMap<Name, Vec<u8>>) -> Self {
        let mut new = Self {
            owners: vec![Owner::default(); OWNERS],
            ..Self::default()
        };
        for (name, bytes) in files {
            let version = new.version(bytes.clone());
            let file = new.file(Some(version));
            new.names.insert(name, file);
            new.behind.insert(name, file);
        }
        new
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    fn version(&mut self, bytes: Vec<u8>) -> usize {
        let read = false;
        self.versions.push(Version { bytes, read });
        self.versions.len() - 1
    }

    fn file(&mut self, current: Option<usize>) -> usize {
        self.files.push(File {
            current,
            ..File::default()
        });
        self.files.len() - 1
    }

    // What can be seen.

    /// Does an owner wait?
    pub fn waits(&self, owner: usize) -> bool {
        self.owners[owner].waits
    }

    /// Its descriptors: what each reads, if it may, and the size that it tells.
    pub fn descriptors(&self, owner: usize) -> BTreeMap<Slot, (Option<Vec<u8>>, u64)> {
        let fds = self.owners[owner].fds.iter();
        fds.map(|(slot, fd)| {
            let bytes = self.shown(fd.shows);
            (
                *slot,
                (fd.reads.then(|| bytes.to_vec()), bytes.len() as u64),
            )
        })
        .collect()
    }

    fn shown(&self, shows: Shows) -> &[u8] {
        match shows {
            Shows::Version(version) => &self.versions[version].bytes,
            Shows::Transaction(transaction) => &self.transactions[transaction].bytes,
        }
    }

    /// Size and number of links of each name, as an owner sees them, or a stranger.
    pub fn names(&self, who: Option<usize>) -> BTreeMap<Name, (u64, u64)> {
        let names = self.names.iter();
        names
            .map(|(name, id)| {
                let file = &self.files[*id];
                let count =
                    |names: &BTreeMap<Name, usize>| names.values().filter(|f| *f == id).count();
                let links = match file.current {
                    Some(_) => count(&self.behind),
                    None => count(&self.names),
                };
                let own = file
                    .transaction
                    .filter(|t| Some(self.transactions[*t].owner) == who);
                let size = match (own, file.current) {
                    (Some(own), _) => self.transactions[own].bytes.len(),
                    (None, Some(version)) => self.versions[version].bytes.len(),
                    (None, None) => 0,
                };
                (*name, (size as u64, links as u64))
            })
            .collect()
    }

    /// What BACKING holds.
    pub fn behind(&self) -> BTreeMap<Name, Vec<u8>> {
        let files = self.behind.iter();
        files
            .map(|(name, file)| {
                let version = self.files[*file].current.expect("it has content");
                (*name, self.versions[version].bytes.clone())
            })
            .collect()
    }

    // What can be done.

    /// Could this be done now, and is it sure what comes of it?
    pub fn allows(&self, op: &Op) -> bool {
        let owner = op.owner();
        let waits = self.owners[owner].waits;
        let fd = || self.fd(owner, op.descriptor()?).map(|(_, fd)| fd);
        let possible = match op {
            Op::Interrupt { .. } => waits,
            Op::Kill { .. } => true,
            _ if waits => false,
            Op::Open { name, how, .. } => {
                // A file that is made by an open for reading is there at once.
                !(how.create && how.access == Access::Read && self.names.contains_key(name))
            }
            Op::Write { .. } => fd().is_some_and(|fd| fd.writes),
            Op::Truncate { .. } => {
                fd().is_some_and(|fd| fd.writes && matches!(fd.shows, Shows::Transaction(_)))
            }
            Op::Dup { .. } | Op::Close { .. } | Op::Sync { .. } => fd().is_some(),
            Op::Link { from, .. } => self.names.get(from).is_none_or(|file| {
                // The kernel may be reading the version by itself; then a commit breaks the link.
                let current = self.files[*file].current;
                current.is_none_or(|version| !self.versions[version].read)
            }),
            Op::Rename { .. } | Op::Unlink { .. } | Op::Exit { .. } => true,
        };
        possible && !self.clone().apply(op).step.racy
    }

    fn fd(&self, owner: usize, number: usize) -> Option<(Slot, Fd)> {
        let fds = &self.owners[owner].fds;
        let place = number.checked_rem(fds.len())?;
        fds.iter().nth(place).map(|(slot, fd)| (*slot, *fd))
    }

    /// Does it.
    pub fn apply(mut self, op: &Op) -> Self {
        self.step = Step::default();
        let owner = op.owner();
        if let Some((slot, fd)) = op.descriptor().and_then(|n| self.fd(owner, n)) {
            self.step.slot = slot;
            self.use_descriptor(op, owner, slot, fd);
            return self;
        }
        let ended = match op {
            Op::Open { name, how, .. } => {
                let slot = self.slot(owner);
                self.step.new = slot;
                let waiting = Waiting {
                    owner,
                    slot,
                    name,
                    how: *how,
                    found: None,
                };
                self.open(waiting)
            }
            Op::Rename { from, to, .. } => Some(self.rename(from, to)),
            Op::Link { from, to, .. } => Some(self.link(from, to)),
            Op::Unlink { name, .. } => Some(self.unlink(name)),
            Op::Kill { .. } => {
                self.leave_line(owner);
                self.close_all(owner, true);
                Some(Ok(()))
            }
            Op::Exit { .. } => {
                self.close_all(owner, false);
                Some(Ok(()))
            }
            Op::Interrupt { .. } => {
                let slot = self.leave_line(owner);
                self.step.others.push((owner, slot, Err(Errno::INTR)));
                Some(Ok(()))
            }
            // Of a descriptor that is not there, because the reference is wrong on purpose.
            _ => Some(Err(Errno::BADF)),
        };
        self.step.ended = ended;
        let unsure = |(_, _, ended): &(usize, Slot, Ended)| *ended == Err(Errno::STALE);
        self.step.others.retain(|other| !unsure(other));
        self
    }

    fn use_descriptor(&mut self, op: &Op, owner: usize, slot: Slot, fd: Fd) {
        match op {
            Op::Write { offset, data, .. } => match fd.shows {
                Shows::Transaction(transaction) => {
                    let transaction = &mut self.transactions[transaction];
                    let end = offset + data.len();
                    if transaction.bytes.len() < end {
                        transaction.bytes.resize(end, 0);
                    }
                    transaction.bytes[*offset..end].copy_from_slice(data);
                    transaction.changed = true;
                }
                Shows::Version(_) => {}
            },
            Op::Truncate { length, .. } => {
                if let Shows::Transaction(transaction) = fd.shows {
                    self.transactions[transaction].bytes.resize(*length, 0);
                    self.transactions[transaction].changed = true;
                }
            }
            Op::Dup { .. } => {
                let new = self.slot(owner);
                self.step.new = new;
                self.owners[owner].fds.insert(new, fd);
            }
            Op::Sync { .. } => {
                if let Shows::Transaction(transaction) = fd.shows
                    && !self.has(Flaw::SyncCommitsNothing)
                {
                    self.commit(transaction);
                    if self.has(Flaw::SyncGivesTheFileAway) {
                        self.end(transaction);
                    }
                }
            }
            _ => self.close(owner, slot, false),
        }
        self.step.ended = Some(Ok(()));
    }

    fn slot(&mut self, owner: usize) -> Slot {
        self.owners[owner].slots += 1;
        self.owners[owner].slots
    }

    // Opening.

    /// Opens a file, or waits (`None`).
    fn open(&mut self, who: Waiting) -> Option<Ended> {
        let Waiting {
            owner, name, how, ..
        } = who;
        let Some(&file) = self.names.get(name) else {
            return Some(self.create(&who));
        };
        if how.create && how.exclusive {
            return Some(Err(Errno::EXIST));
        }
        let File {
            current,
            transaction,
            ..
        } = self.files[file];
        let writes = how.access != Access::Read;
        let Some(transaction) = transaction else {
            self.serve(&who, file);
            return Some(Ok(()));
        };
        if self.transactions[transaction].owner == owner {
            if how.truncate {
                self.transactions[transaction].bytes.clear();
                self.transactions[transaction].changed = true;
            }
            self.give(&who, Shows::Transaction(transaction));
            return Some(Ok(()));
        }
        match current {
            Some(version) if how.nonblocking && !writes => {
                let shows = match self.has(Flaw::ReadersSeeWhatIsBeingWritten) {
                    true => Shows::Transaction(transaction),
                    false => Shows::Version(version),
                };
                self.give(&who, shows);
                return Some(Ok(()));
            }
            _ if how.nonblocking => return Some(Err(Errno::AGAIN)),
            _ => {}
        }
        if self.closes_a_circle(transaction, owner) {
            return Some(Err(Errno::DEADLK));
        }
        self.owners[owner].waits = true;
        let found = current;
        self.files[file].line.push(Waiting { found, ..who });
        None
    }

    /// Nobody is in the way any more.
    fn serve(&mut self, who: &Waiting, file: usize) {
        let current = self.files[file].current.expect("who creates it writes it");
        if who.how.access == Access::Read {
            return self.give(who, Shows::Version(current));
        }
        let transaction = self.begin(who.owner, file);
        if who.how.truncate {
            self.transactions[transaction].changed = true;
        } else {
            self.transactions[transaction].bytes = self.versions[current].bytes.clone();
        }
        self.give(who, Shows::Transaction(transaction));
    }

    fn begin(&mut self, owner: usize, file: usize) -> usize {
        let transaction = self.transactions.len();
        self.transactions.push(Transaction {
            owner,
            file,
            bytes: Vec::new(),
            changed: false,
            detached: false,
            ended: false,
        });
        self.files[file].transaction = Some(transaction);
        transaction
    }

    fn create(&mut self, who: &Waiting) -> Ended {
        if !who.how.create {
            return Err(Errno::NOENT);
        }
        if who.how.access == Access::Read {
            let version = self.version(Vec::new());
            let file = self.file(Some(version));
            self.names.insert(who.name, file);
            self.behind.insert(who.name, file);
            self.give(who, Shows::Version(version));
            return Ok(());
        }
        let file = self.file(None);
        self.names.insert(who.name, file);
        let transaction = self.begin(who.owner, file);
        self.transactions[transaction].changed = true;
        self.give(who, Shows::Transaction(transaction));
        Ok(())
    }

    fn give(&mut self, who: &Waiting, shows: Shows) {
        if let Shows::Version(version) = shows {
            self.versions[version].read = true;
        }
        let fd = Fd {
            shows,
            reads: who.how.access != Access::Write,
            writes: who.how.access != Access::Read,
        };
        self.owners[who.owner].fds.insert(who.slot, fd);
    }

    /// Does who writes wait, directly or through others, for `owner`?
    fn closes_a_circle(&self, transaction: usize, owner: usize) -> bool {
        let mut reached = BTreeSet::from([self.transactions[transaction].owner]);
        let mut steps = 0;
        loop {
            let next = self.files.iter().filter(|file| {
                let mut line = file.line.iter();
                line.any(|waiting| reached.contains(&waiting.owner))
            });
            let holders = next.filter_map(|f| f.transaction.map(|t| self.transactions[t].owner));
            let more: BTreeSet<usize> = holders.filter(|h| !reached.contains(h)).collect();
            if more.is_empty() {
                break;
            }
            steps += 1;
            reached.extend(more);
        }
        match self.flaw {
            Some(Flaw::NoCircleIsSeen) => false,
            Some(Flaw::EveryLongWaitIsACircle) => steps > 0,
            _ => reached.contains(&owner),
        }
    }

    // Ends of transactions, and of waits.

    fn close(&mut self, owner: usize, slot: Slot, killed: bool) {
        let Some(fd) = self.owners[owner].fds.remove(&slot) else {
            return;
        };
        let Shows::Transaction(transaction) = fd.shows else {
            return;
        };
        let mut left = self.owners[owner].fds.values();
        let held = left.any(|fd| fd.writes && fd.shows == Shows::Transaction(transaction));
        if !fd.writes || (held && !self.has(Flaw::EveryCloseCommits)) {
            return;
        }
        if !killed || self.has(Flaw::TheKilledCommit) {
            self.commit(transaction);
        }
        self.end(transaction);
    }

    fn close_all(&mut self, owner: usize, killed: bool) {
        let slots: Vec<Slot> = self.owners[owner].fds.keys().copied().collect();
        for slot in slots {
            self.close(owner, slot, killed);
        }
    }

    /// What was written so far becomes the file.
    fn commit(&mut self, transaction: usize) {
        let Transaction {
            file,
            changed,
            detached,
            ended,
            ..
        } = self.transactions[transaction];
        if !changed || ended || (detached && !self.has(Flaw::RemovedFilesAreCommitted)) {
            return;
        }
        let bytes = self.transactions[transaction].bytes.clone();
        self.transactions[transaction].changed = false;
        let version = match self.files[file].current {
            Some(current) if self.has(Flaw::ReadersFollowCommits) => {
                self.versions[current].bytes = bytes;
                current
            }
            _ => self.version(bytes),
        };
        if detached {
            self.behind.entry(NAMES[0]).or_insert(file);
        }
        if self.files[file].current.replace(version).is_none() {
            let names = self.names.iter().filter(|(_, f)| **f == file);
            self.behind.extend(names.map(|(name, file)| (*name, *file)));
            for who in &mut self.files[file].line {
                who.found.get_or_insert(version);
            }
        }
    }

    /// A transaction is over, and what was not committed by now is gone.
    fn end(&mut self, transaction: usize) {
        let Transaction { file, detached, .. } = self.transactions[transaction];
        if std::mem::replace(&mut self.transactions[transaction].ended, true) {
            return;
        }
        // Descriptors of its owner that only read it are left with what it was.
        let bytes = self.transactions[transaction].bytes.clone();
        let left = match (self.files[file].current, detached) {
            (Some(current), false) if self.versions[current].bytes == bytes => current,
            _ => self.version(bytes),
        };
        for owner in &mut self.owners {
            for fd in owner.fds.values_mut() {
                if fd.shows == Shows::Transaction(transaction) {
                    fd.shows = Shows::Version(left);
                    self.versions[left].read = true;
                }
            }
        }
        if detached {
            return;
        }
        self.files[file].transaction = None;
        if self.files[file].current.is_some() {
            return self.hand_over(file);
        }
        // It never came to be: what had its names before is there again.
        self.names.retain(|_, f| *f != file);
        for (name, hidden) in &self.behind {
            self.names.entry(name).or_insert(*hidden);
        }
        self.dislodge(file);
    }

    /// All who wait to read are served, and then the first who waits to write.
    fn hand_over(&mut self, file: usize) {
        let line = std::mem::take(&mut self.files[file].line);
        let reads = |who: &Waiting| who.how.access == Access::Read;
        let (readers, writers): (Vec<_>, Vec<_>) = line.into_iter().partition(reads);
        self.files[file].line = writers;
        for who in readers {
            self.arrive(who, file);
        }
        while self.files[file].transaction.is_none() && !self.files[file].line.is_empty() {
            let line = &mut self.files[file].line;
            let turn = match self.flaw {
                Some(Flaw::LastComeFirstServed) => line.len() - 1,
                _ => 0,
            };
            let who = line.remove(turn);
            self.arrive(who, file);
        }
    }

    /// The turn of one who waited has come. The kernel walks to the name again, but to read what it
    /// came for.
    fn arrive(&mut self, who: Waiting, file: usize) {
        let stays = who.how.access == Access::Read && who.found == self.files[file].current;
        if !stays && self.names.get(who.name) != Some(&file) {
            return self.look_again(who);
        }
        self.owners[who.owner].waits = false;
        self.serve(&who, file);
        self.step.others.push((who.owner, who.slot, Ok(())));
    }

    /// The file that they wait for has lost its name: they look again.
    fn dislodge(&mut self, file: usize) {
        if self.has(Flaw::WhoLosesTheFileWaitsOn) {
            return;
        }
        for who in std::mem::take(&mut self.files[file].line) {
            self.look_again(who);
        }
    }

    fn look_again(&mut self, who: Waiting) {
        let (owner, slot) = (who.owner, who.slot);
        // Which of several is faster?
        self.step.racy |= self.step.look_again;
        self.step.look_again = true;
        self.owners[owner].waits = false;
        match self.open(who) {
            Some(ended) => self.step.others.push((owner, slot, ended)),
            // Somebody writes that file, too: EINTR is allowed then.
            None => self.step.racy = true,
        }
    }

    fn leave_line(&mut self, owner: usize) -> Slot {
        self.owners[owner].waits = false;
        let mut slot = 0;
        for file in &mut self.files {
            file.line.retain(|who| {
                if who.owner == owner {
                    slot = who.slot;
                }
                who.owner != owner
            });
        }
        slot
    }

    // Names.

    fn rename(&mut self, from: Name, to: Name) -> Ended {
        let Some(&file) = self.names.get(from) else {
            return Err(Errno::NOENT);
        };
        if self.names.get(to) == Some(&file) {
            return Ok(());
        }
        self.names.remove(from);
        // With it goes what it had been renamed over.
        self.behind.remove(from);
        let replaced = self.names.insert(to, file);
        if self.files[file].current.is_some() {
            self.behind.insert(to, file);
        }
        if let Some(replaced) = replaced {
            self.lost_a_name(replaced);
        }
        Ok(())
    }

    fn link(&mut self, from: Name, to: Name) -> Ended {
        let Some(&file) = self.names.get(from) else {
            return Err(Errno::NOENT);
        };
        if self.names.contains_key(to) {
            return Err(Errno::EXIST);
        }
        self.names.insert(to, file);
        if self.files[file].current.is_some() {
            self.behind.insert(to, file);
        }
        Ok(())
    }

    fn unlink(&mut self, name: Name) -> Ended {
        let Some(file) = self.names.remove(name) else {
            return Err(Errno::NOENT);
        };
        self.behind.remove(name);
        self.lost_a_name(file);
        Ok(())
    }

    /// Without a name, nothing of it is published.
    fn lost_a_name(&mut self, file: usize) {
        if self.names.values().any(|named| *named == file) {
            return;
        }
        if let Some(transaction) = self.files[file].transaction.take() {
            self.transactions[transaction].detached = true;
        }
        self.dislodge(file);
    }

    /// All owners end. Nobody waits any more by then: it would depend on who is faster.
    pub fn last_ops(&self) -> Vec<Op> {
        let waits = (0..OWNERS).filter(|owner| self.waits(*owner));
        let waiting = waits.map(|owner| Op::Interrupt { owner });
        let rest = (0..OWNERS).map(|owner| match owner {
            0 => Op::Kill { owner },
            _ => Op::Exit { owner },
        });
        waiting.chain(rest).collect()
    }
}

/// Some names and contents to begin with.
pub fn beginning(contents: [Option<&str>; NAMES.len()]) -> BTreeMap<Name, Vec<u8>> {
    let files = NAMES.into_iter().zip(contents);
    files
        .filter_map(|(name, content)| Some((name, content?.as_bytes().to_vec())))
        .collect()
}
