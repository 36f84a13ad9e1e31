//! Processes from a script, for tests that drive the engine without a kernel.

use latchfs::owner::{Exit, ProcessWatch, Processes, Search, Thread};
use latchfs::sync::{Arc, Mutex};
use std::collections::{HashMap, HashSet};

/// What is known of them. Every thread is a process of its own, and alive unless it is said here how
/// it ended.
#[derive(Debug, Default)]
pub struct Script {
    /// Those that exit, and of which signal they died.
    pub ended: HashMap<u32, Option<i32>>,
    /// Those for which a signal is pending.
    pub interrupted: HashSet<u32>,
    /// How many descriptors that can write are open, by process and inode number.
    pub writers: HashMap<(u32, u64), u32>,
}

impl Script {
    /// A process has one more descriptor of a file, or one less.
    pub fn hold(&mut self, process: u32, inode: u64, more: bool) {
        let count = self.writers.entry((process, inode)).or_default();
        *count = if more { *count + 1 } else { *count - 1 };
        if *count == 0 {
            self.writers.remove(&(process, inode));
        }
    }
}

/// The script, shared with the engine.
#[derive(Clone, Debug, Default)]
pub struct Scripted(pub Arc<Mutex<Script>>);

impl Processes for Scripted {
    fn thread(&self, tid: u32) -> Option<Thread> {
        let script = self.0.lock();
        let interrupted = script.interrupted.contains(&tid);
        Some(Thread {
            tid,
            process: tid,
            parent: 1,
            name: String::from("test"),
            exiting: script.ended.contains_key(&tid),
            in_exec: false,
            interrupted,
            signalled: interrupted,
            groups: Vec::new(),
        })
    }

    fn exit(&self, process: u32) -> Exit {
        match self.0.lock().ended.get(&process) {
            Some(Some(signal)) => Exit::Signalled(*signal),
            Some(None) => Exit::Normal,
            None => Exit::Unknown,
        }
    }

    fn holds_open_for_writing(&self, process: u32, inode: u64) -> bool {
        self.0.lock().writers.contains_key(&(process, inode))
    }

    fn anyone_holds(&self, search: &Search) -> bool {
        let script = self.0.lock();
        let mut held = script.writers.keys();
        held.any(|&(process, inode)| {
            inode == search.inode && (search.shared || process == search.opener)
        })
    }

    fn holds_open(&self, process: u32, inode: u64, _device: Option<u64>) -> Option<bool> {
        Some(self.holds_open_for_writing(process, inode))
    }

    fn locks_description(&self, _tid: u32) -> Option<bool> {
        None
    }

    fn maps(&self, _process: u32, _inode: u64) -> bool {
        false
    }

    fn watch(&self, _process: u32) -> Option<ProcessWatch> {
        None
    }
}
