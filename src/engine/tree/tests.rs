//! The table against a naive model: a kernel that looks up and forgets, and a BACKING in which
//! files are made, linked, renamed, replaced and removed.

use super::*;
use crate::engine::transaction::{Phase, Writer};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRng, TestRunner};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const DEVICE: u64 = 7;
const ROOT_NUMBER: u64 = 2;
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// A place: a file of the model that is a directory, and a name in it.
type Place = (usize, &'static str);

#[derive(Clone, Debug)]
enum Step {
    /// A lookup; makes the file first if there is none.
    Look(usize, usize, FileType),
    /// A lookup behind which the name was moved in BACKING.
    MoveBehind(usize, usize, usize, usize),
    Remove(usize, usize),
    Rename(usize, usize, usize, usize),
    Link(usize, usize, usize),
    /// An open for writing, which makes a file if there is none.
    Write(usize, usize),
    Commit(usize),
    Abort(usize),
    /// The last handle of a transaction that has ended goes.
    Release(usize),
    Pin(usize),
    Unpin(usize),
    Forget(usize, u64),
}

/// What the model can have wrong: the comparison has to notice each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    NumbersFollowVersions,
    NumbersAreForgotten,
    ForgottenFilesStay,
    ChildrenKeepNoDirectory,
    TransactionsKeepNothing,
    PinsKeepNothing,
    OtherLinksAreForgotten,
    RemovedNamesStay,
    CommitsKeepTheNodeId,
    WritersNodesAreLost,
}

/// A file of the model.
struct File {
    kind: FileType,
    /// Its number in BACKING (its shadow's, while it is being created); `None` when it is gone.
    ino: Option<u64>,
    names: BTreeSet<Place>,
    /// Its number as programs see it, from when it was first seen.
    number: Option<u64>,
    /// What the table calls it, while it is known.
    key: Option<Key>,
    current: Option<NodeId>,
    known_names: BTreeSet<Place>,
    transaction: Option<Arc<Transaction>>,
    pins: Vec<NodeId>,
}

struct World {
    tree: Tree,
    files: Vec<File>,
    /// What the kernel holds: whose node id, and how often it was told of it.
    kernel: BTreeMap<NodeId, (usize, u64)>,
    keys: BTreeSet<Key>,
    /// Transactions that have ended, and their files.
    ended: Vec<(usize, Arc<Transaction>)>,
    version: Arc<Version>,
    flaw: Option<Flaw>,
}

impl World {
    fn new(flaw: Option<Flaw>) -> Self {
        let content = std::fs::File::open("/dev/null").expect("/dev/null");
        let root = File {
            ino: Some(ROOT_NUMBER),
            number: Some(ROOT_NUMBER),
            key: Some(ROOT),
            current: Some(ROOT_NODE),
            ..File::new(FileType::Directory)
        };
        Self {
            tree: Tree::new(identity(ROOT_NUMBER)),
            files: vec![root],
            kernel: BTreeMap::from([(ROOT_NODE, (0, 1))]),
            keys: BTreeSet::from([ROOT]),
            ended: Vec::new(),
            version: Version::new(Arc::new(content), false),
            flaw,
        }
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    /// A directory that the kernel knows, and a name in it.
    fn place(&self, dir: usize, name: usize) -> Place {
        let known = |file: &usize| {
            let file = &self.files[*file];
            let exists = file.ino.is_some() && file.kind == FileType::Directory;
            exists && file.current.is_some_and(|c| self.kernel.contains_key(&c))
        };
        let dirs: Vec<usize> = (0..self.files.len()).filter(known).collect();
        (dirs[dir % dirs.len()], NAMES[name % NAMES.len()])
    }

    fn at(&self, place: Place) -> Option<usize> {
        let has = |file: &File| file.names.contains(&place);
        self.files.iter().position(has)
    }

    fn key(&self, file: usize) -> Key {
        self.files[file].key.expect("it is known")
    }

    /// BACKING uses the lowest number that is free, like most file systems.
    fn free_number(&self) -> u64 {
        let used = |n: &u64| self.files.iter().any(|file| file.ino == Some(*n));
        (ROOT_NUMBER..).find(|n| !used(n)).expect("a number")
    }

    fn is_empty(&self, dir: usize) -> bool {
        let inside = |file: &File| file.names.iter().any(|place| place.0 == dir);
        !self.files.iter().any(inside)
    }

    /// Is a directory the other or somewhere in it?
    fn is_in(&self, dir: usize, above: usize) -> bool {
        let up = |dir: &usize| Some(self.files[*dir].names.first()?.0);
        std::iter::successors(Some(dir), up).any(|dir| dir == above)
    }

    fn looked_up(&mut self, file: usize, node: NodeId) {
        self.tree.looked_up(node);
        self.kernel.entry(node).or_insert((file, 0)).1 += 1;
    }

    /// The kernel's LOOKUP.
    fn look(&mut self, place: Place) -> Result<usize, String> {
        let file = self.at(place).expect("a file");
        let dir = self.key(place.0);
        let created = self.files[file].key.and_then(|key| self.tree.inode(key));
        let key = match self.files[file].ino {
            Some(ino) if !created.is_some_and(Inode::is_provisional) => {
                let kind = self.files[file].kind;
                self.tree.found(identity(ino), kind, dir, place.1.as_ref())
            }
            _ => self.key(file),
        };
        self.learn(file, key)?;
        self.files[file].known_names.insert(place);
        for other in &mut self.files {
            let own = other.names.contains(&place);
            other.known_names.retain(|known| own || *known != place);
        }
        if self.files[file].names.len() == 1 || self.has(Flaw::OtherLinksAreForgotten) {
            self.files[file].known_names = BTreeSet::from([place]);
        }
        if self.files[file].names.len() == 1 {
            self.tree.keep_only(key, dir, place.1.as_ref());
        }
        let current = self.files[file].current.expect("a node id");
        self.looked_up(file, current);
        Ok(file)
    }

    /// Notes what the table tells of a file that it may not have known.
    fn learn(&mut self, file: usize, key: Key) -> Result<(), String> {
        let inode = self.tree.inode(key).ok_or("not in the table")?;
        let (reported, current) = (inode.reported, inode.current);
        match self.files[file].key {
            Some(known) if known != key => return Err(format!("{known:?} is {key:?} now")),
            Some(_) => {}
            None if !self.keys.insert(key) => return Err(format!("{key:?} was used before")),
            None => self.files[file].current = Some(current),
        }
        self.files[file].key = Some(key);
        self.files[file].number.get_or_insert(reported);
        Ok(())
    }

    fn remove(&mut self, place: Place) -> Result<(), String> {
        let file = self.look(place)?;
        if !self.is_empty(file) || self.files[file].transaction.is_some() {
            return Ok(());
        }
        self.files[file].names.remove(&place);
        if !self.has(Flaw::RemovedNamesStay) {
            self.files[file].known_names.remove(&place);
        }
        if self.files[file].names.is_empty() {
            let old = self.files[file].ino.take().expect("a number");
            self.tree.vacate(identity(old));
            self.tree.removed(self.key(file));
        }
        let dir = self.key(place.0);
        self.tree.detach(dir, place.1.as_ref());
        Ok(())
    }

    fn rename(&mut self, from: Place, to: Place) -> Result<(), String> {
        let file = self.look(from)?;
        let over = self.at(to);
        let dir = |file: usize| self.files[file].kind == FileType::Directory;
        if over == Some(file) || self.is_in(to.0, file) || over.is_some_and(dir) {
            return Ok(());
        }
        if over.is_some() {
            self.remove(to)?;
            if self.at(to).is_some() {
                return Ok(());
            }
        }
        let (key, old, new) = (self.key(file), self.key(from.0), self.key(to.0));
        self.tree.attach(key, new, to.1.as_ref());
        self.tree.detach(old, from.1.as_ref());
        let file = &mut self.files[file];
        for names in [&mut file.names, &mut file.known_names] {
            names.remove(&from);
            names.insert(to);
        }
        Ok(())
    }

    /// A transaction of a file that has none.
    fn begin(&mut self, file: usize, key: Key) {
        let node = self.tree.reserve_node();
        let writer = Writer {
            tid: 1,
            process: 1,
            program: String::new(),
            credentials: Default::default(),
        };
        let (number, phase) = (self.tree.inode(key).map_or(0, |i| i.reported), Phase::Open);
        let transaction = Transaction::new(
            node,
            key,
            number,
            writer,
            Arc::default(),
            Duration::ZERO,
            phase,
        );
        self.tree.add_transaction(&transaction);
        self.files[file].transaction = Some(transaction);
        self.looked_up(file, node);
    }

    fn write(&mut self, place: Place) -> Result<(), String> {
        if self.at(place).is_some() {
            let file = self.look(place)?;
            let regular = self.files[file].kind == FileType::RegularFile;
            if regular && self.files[file].transaction.is_none() {
                self.begin(file, self.key(file));
            }
            return Ok(());
        }
        let file = self.add(FileType::RegularFile, place);
        let shadow = identity(self.free_number());
        let dir = self.key(place.0);
        let key = self.tree.provisional(shadow, dir, place.1.as_ref());
        self.learn(file, key)?;
        self.files[file].known_names.insert(place);
        // Its shadow has the number until it is published.
        self.files[file].ino = Some(shadow.ino);
        self.begin(file, key);
        Ok(())
    }

    fn add(&mut self, kind: FileType, place: Place) -> usize {
        let mut file = File::new(kind);
        file.names.insert(place);
        self.files.push(file);
        self.files.len() - 1
    }

    fn commit(&mut self, file: usize, transaction: &Arc<Transaction>) {
        let key = self.key(file);
        let creating = self.tree.inode(key).is_some_and(Inode::is_provisional);
        if !creating {
            let shadow = self.free_number();
            let old = self.files[file].ino.replace(shadow).expect("a number");
            self.tree.vacate(identity(old));
        }
        let ino = self.files[file].ino.expect("a number");
        let current = self.files[file].current;
        self.tree.published(key, identity(ino), &self.version);
        if self.has(Flaw::NumbersFollowVersions) {
            self.files[file].number = Some(ino);
        }
        let now = self.tree.inode(key).map(|inode| inode.current);
        if !self.has(Flaw::CommitsKeepTheNodeId) {
            assert_eq!(
                now == current,
                creating,
                "a version has a node id of its own"
            );
            self.files[file].current = now;
        }
        self.tree.transaction_ended(transaction);
    }

    fn abort(&mut self, file: usize, transaction: &Transaction) {
        let key = self.key(file);
        if self.tree.inode(key).is_some_and(Inode::is_provisional) {
            for (dir, name) in std::mem::take(&mut self.files[file].names) {
                let dir = self.key(dir);
                self.tree.detach(dir, name.as_ref());
            }
            self.files[file].known_names.clear();
            self.files[file].ino = None;
        }
        self.tree.transaction_ended(transaction);
    }

    fn end(&mut self, nth: usize, commit: bool) {
        let writing = |file: &usize| self.files[*file].transaction.is_some();
        let all: Vec<usize> = (0..self.files.len()).filter(writing).collect();
        let Some(file) = nth.checked_rem(all.len()).map(|n| all[n]) else {
            return;
        };
        if let Some(transaction) = self.files[file].transaction.take() {
            match commit {
                true => self.commit(file, &transaction),
                false => self.abort(file, &transaction),
            }
            self.ended.push((file, transaction));
        }
    }

    fn release(&mut self, nth: usize) {
        let Some(nth) = nth.checked_rem(self.ended.len()) else {
            return;
        };
        let (file, transaction) = self.ended.swap_remove(nth);
        self.tree.keep_node(&transaction);
        let file = &mut self.files[file];
        let Some(current) = file.current.filter(|_| file.key == Some(transaction.inode)) else {
            return;
        };
        let on_the_way = match current == first_node(transaction.inode) {
            true => !file.pins.is_empty(),
            false => file.pins.contains(&current),
        };
        let known = |node| self.kernel.contains_key(&node);
        let lost = self.flaw == Some(Flaw::WritersNodesAreLost);
        if known(transaction.node) && !known(current) && !on_the_way && !lost {
            file.current = Some(transaction.node);
        }
    }

    fn forget(&mut self, nth: usize, times: u64) {
        // Not the root: the kernel never does.
        let Some(nth) = nth.checked_rem(self.kernel.len() - 1) else {
            return;
        };
        let (node, (file, told)) = self.kernel.iter().nth(nth + 1).expect("a node id");
        let (node, file, told) = (*node, *file, *told);
        let times = times.min(told);
        self.tree.forget(node, times);
        match told - times {
            0 => drop(self.kernel.remove(&node)),
            left => drop(self.kernel.insert(node, (file, left))),
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        match *step {
            Step::Look(dir, name, kind) => {
                let place = self.place(dir, name);
                if self.at(place).is_none() {
                    let file = self.add(kind, place);
                    self.files[file].ino = Some(self.free_number());
                }
                self.look(place)?;
            }
            Step::MoveBehind(dir, name, other, to) => {
                let (from, to) = (self.place(dir, name), self.place(other, to));
                if let (Some(file), None) = (self.at(from), self.at(to))
                    && self.files[file].kind == FileType::RegularFile
                    && self.files[file].transaction.is_none()
                {
                    self.files[file].names.remove(&from);
                    self.files[file].names.insert(to);
                    self.look(to)?;
                    self.tree.detach(self.key(from.0), from.1.as_ref());
                    self.files[file].known_names.remove(&from);
                }
            }
            Step::Remove(dir, name) => {
                let place = self.place(dir, name);
                if self.at(place).is_some() {
                    self.remove(place)?;
                }
            }
            Step::Rename(dir, name, other, to) => {
                let (from, to) = (self.place(dir, name), self.place(other, to));
                if self.at(from).is_some() {
                    self.rename(from, to)?;
                }
            }
            Step::Link(nth, dir, name) => {
                let to = self.place(dir, name);
                let known = |file: &usize| {
                    let file = &self.files[*file];
                    let plain = file.kind == FileType::RegularFile && !file.names.is_empty();
                    plain && file.key.is_some() && file.transaction.is_none()
                };
                let all: Vec<usize> = (0..self.files.len()).filter(known).collect();
                if let (Some(n), None) = (nth.checked_rem(all.len()), self.at(to)) {
                    let file = all[n];
                    self.files[file].names.insert(to);
                    self.files[file].known_names.insert(to);
                    let (key, dir) = (self.key(file), self.key(to.0));
                    self.tree.attach(key, dir, to.1.as_ref());
                }
            }
            Step::Write(dir, name) => self.write(self.place(dir, name))?,
            Step::Commit(nth) => self.end(nth, true),
            Step::Abort(nth) => self.end(nth, false),
            Step::Release(nth) => self.release(nth),
            Step::Pin(nth) => {
                let held: Vec<_> = self.kernel.iter().map(|(id, (f, _))| (*id, *f)).collect();
                let (node, file) = held[nth % held.len()];
                self.tree.pin(self.key(file), node);
                self.files[file].pins.push(node);
            }
            Step::Unpin(nth) => {
                let pinned = |file: &usize| !self.files[*file].pins.is_empty();
                let all: Vec<usize> = (0..self.files.len()).filter(pinned).collect();
                if let Some(n) = nth.checked_rem(all.len()) {
                    let node = self.files[all[n]].pins.pop().expect("a pin");
                    self.tree.unpin(self.key(all[n]), node);
                }
            }
            Step::Forget(nth, times) => self.forget(nth, times),
        }
        Ok(())
    }

    /// What nobody needs is not known any more: neither the file nor its names.
    fn settle(&mut self) {
        let held: BTreeSet<usize> = self.kernel.values().map(|(file, _)| *file).collect();
        loop {
            let parents = |file: &File| file.known_names.iter().map(|place| place.0).collect();
            let parents: Vec<Vec<usize>> = self.files.iter().map(parents).collect();
            let parents: BTreeSet<usize> = parents.into_iter().flatten().collect();
            let unneeded = (1..self.files.len()).find(|file| {
                let (this, file) = (*file, &self.files[*file]);
                let writes = file.transaction.is_some() && !self.has(Flaw::TransactionsKeepNothing);
                let pinned = !file.pins.is_empty() && !self.has(Flaw::PinsKeepNothing);
                let holds = parents.contains(&this) && !self.has(Flaw::ChildrenKeepNoDirectory);
                let needed = held.contains(&this) || writes || pinned || holds;
                file.key.is_some() && !needed && !self.has(Flaw::ForgottenFilesStay)
            });
            let Some(file) = unneeded else {
                break;
            };
            if self.has(Flaw::NumbersAreForgotten) {
                self.files[file].number = self.files[file].ino;
            }
            self.files[file].key = None;
            self.files[file].current = None;
            self.files[file].known_names.clear();
        }
    }

    fn check(&self) -> Result<(), String> {
        let tree = &self.tree;
        for (node, (file, _)) in &self.kernel {
            let known = tree.inode_of(*node).map(|(key, _)| key);
            if known != self.files[*file].key {
                return Err(format!("{node:?} is {known:?}"));
            }
        }
        let mut numbers = BTreeSet::new();
        for file in &self.files {
            if let Some(number) = file.number.filter(|_| file.ino.is_some())
                && !numbers.insert(number)
            {
                return Err(format!("two files have number {number}"));
            }
            let Some(key) = file.key else {
                continue;
            };
            let inode = tree.inode(key).ok_or(format!("{key:?} is not known"))?;
            let told = (Some(inode.reported), Some(inode.current));
            if told != (file.number, file.current) {
                return Err(format!("{inode:?} has another number or node id"));
            }
            if inode.names.len() != file.known_names.len() {
                return Err(format!("{inode:?}: its names are {:?}", file.known_names));
            }
            for (dir, name) in &file.known_names {
                let dir = self.files[*dir].key.ok_or("a name in no directory")?;
                if tree.child(dir, name.as_ref()) != Some(key) {
                    return Err(format!("{name} is not {key:?}"));
                }
            }
            let mine = file.transaction.as_ref().map(|t| t.node);
            if inode.transaction.as_ref().map(|t| t.node) != mine {
                return Err(format!("{inode:?}: its transaction is {mine:?}"));
            }
            if let Some(node) = mine
                && tree.alive(node).0.is_none()
            {
                return Err(format!("{node:?} is no transaction"));
            }
        }
        let writing = self.files.iter().filter(|f| f.transaction.is_some());
        let known = self.files.iter().filter(|f| f.key.is_some());
        let names = self.files.iter().map(|f| f.known_names.len());
        let expected = (known.count(), names.sum(), writing.count());
        let actual = (
            tree.inodes.len(),
            tree.children.len(),
            tree.in_flight().len(),
        );
        match actual == expected {
            true => Ok(()),
            false => Err(format!("{actual:?} entries, expected {expected:?}")),
        }
    }
}

impl File {
    fn new(kind: FileType) -> Self {
        Self {
            kind,
            ino: None,
            names: BTreeSet::new(),
            number: None,
            key: None,
            current: None,
            known_names: BTreeSet::new(),
            transaction: None,
            pins: Vec::new(),
        }
    }
}

fn identity(ino: u64) -> Identity {
    Identity { dev: DEVICE, ino }
}

/// Takes the table and the model through the same steps. In the end everything is let go.
fn compare(steps: &[Step], flaw: Option<Flaw>) -> Result<(), String> {
    let mut world = World::new(flaw);
    let take = |world: &mut World, step: &Step| {
        world.step(step)?;
        world.settle();
        world.check().map_err(|e| format!("after {step:?}: {e}"))
    };
    for step in steps {
        take(&mut world, step)?;
    }
    while world.files.iter().any(|file| file.transaction.is_some()) {
        take(&mut world, &Step::Commit(0))?;
    }
    while world.files.iter().any(|file| !file.pins.is_empty()) {
        take(&mut world, &Step::Unpin(0))?;
    }
    while world.kernel.len() > 1 {
        take(&mut world, &Step::Forget(0, u64::MAX))?;
    }
    let tree = world.tree;
    let left = (tree.sizes(), tree.children.len(), tree.identities.len());
    let more = (tree.in_flight.len(), tree.provisional.len());
    match left == ((1, 1), 0, 1) && more == (0, 0) {
        true => Ok(()),
        false => Err(format!("left over: {left:?} {more:?}")),
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let any = any::<usize>;
    let kind = prop_oneof![
        2 => Just(FileType::RegularFile),
        1 => Just(FileType::Directory),
    ];
    let step = prop_oneof![
        6 => (any(), any(), kind).prop_map(|(dir, name, kind)| Step::Look(dir, name, kind)),
        1 => (any(), any(), any(), any()).prop_map(|(a, b, c, d)| Step::MoveBehind(a, b, c, d)),
        2 => (any(), any()).prop_map(|(dir, name)| Step::Remove(dir, name)),
        2 => (any(), any(), any(), any()).prop_map(|(a, b, c, d)| Step::Rename(a, b, c, d)),
        1 => (any(), any(), any()).prop_map(|(file, dir, name)| Step::Link(file, dir, name)),
        4 => (any(), any()).prop_map(|(dir, name)| Step::Write(dir, name)),
        3 => any().prop_map(Step::Commit),
        1 => any().prop_map(Step::Abort),
        2 => any().prop_map(Step::Release),
        1 => any().prop_map(Step::Pin),
        1 => any().prop_map(Step::Unpin),
        6 => (any(), 1..4_u64).prop_map(|(nth, times)| Step::Forget(nth, times)),
    ];
    proptest::collection::vec(step, 0..60)
}

fn config() -> Config {
    Config {
        cases: 500,
        failure_persistence: None,
        ..Config::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_table_knows_what_a_naive_model_knows(steps in steps()) {
        compare(&steps, None).map_err(TestCaseError::fail)?;
    }
}

#[test]
fn the_comparison_with_the_model_notices_every_flaw() {
    for flaw in [
        Flaw::NumbersFollowVersions,
        Flaw::NumbersAreForgotten,
        Flaw::ForgottenFilesStay,
        Flaw::ChildrenKeepNoDirectory,
        Flaw::TransactionsKeepNothing,
        Flaw::PinsKeepNothing,
        Flaw::OtherLinksAreForgotten,
        Flaw::RemovedNamesStay,
        Flaw::CommitsKeepTheNodeId,
        Flaw::WritersNodesAreLost,
    ] {
        let config = Config {
            max_shrink_iters: 0,
            ..config()
        };
        let rng = TestRng::deterministic_rng(config.rng_algorithm);
        let result = TestRunner::new_with_rng(config, rng).run(&steps(), |steps| {
            compare(&steps, Some(flaw)).map_err(TestCaseError::fail)
        });
        assert!(matches!(result, Err(TestError::Fail(..))), "{flaw:?}");
    }
}

#[test]
fn a_writers_node_id_is_the_files_unless_the_kernel_knows_the_other() {
    for (known, pinned) in [(false, false), (true, false), (false, true)] {
        let mut world = World::new(None);
        let place = (0, "a");
        world.write(place).expect("a file being created");
        let transaction = world.files[1].transaction.clone().expect("a transaction");
        world.end(0, true);
        let (key, first) = (transaction.inode, first_node(transaction.inode));
        if known {
            world.tree.looked_up(first);
        }
        if pinned {
            world.tree.pin(key, first);
        }
        world.tree.keep_node(&transaction);
        let current = world.tree.inode(key).expect("an inode").current;
        let expected = match known || pinned {
            true => first,
            false => transaction.node,
        };
        assert_eq!(current, expected, "known: {known}, pinned: {pinned}");
        let alive = world.tree.alive(current).1;
        assert!(alive.is_some_and(|open| Arc::ptr_eq(&open, &world.version)));
    }
}

#[test]
fn directories_moved_into_each_other_behind_the_mount_make_no_circle() {
    let mut tree = Tree::new(identity(ROOT_NUMBER));
    let dir = FileType::Directory;
    let a = tree.found(identity(10), dir, ROOT, "a".as_ref());
    tree.looked_up(first_node(a));
    let b = tree.found(identity(11), dir, a, "b".as_ref());
    tree.looked_up(first_node(b));
    // Now b is in the root and a is in b, and the kernel looks up a in b first.
    assert_eq!(tree.found(identity(10), dir, b, "a".as_ref()), a);
    tree.keep_only(a, b, "a".as_ref());
    assert_eq!(tree.path(a), None, "where b is, is not known");
    assert_eq!(tree.found(identity(11), dir, ROOT, "b".as_ref()), b);
    tree.keep_only(b, ROOT, "b".as_ref());
    assert_eq!(tree.path(a).expect("a path"), ["b", "a"]);
}

#[test]
fn an_inode_that_was_never_written_takes_little_memory() {
    let inode = size_of::<Inode>();
    assert!(inode <= 144, "{inode} bytes");
}
