//! What a directory holds, and whether it holds what it may.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// One file, as far as it is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    mode: u32,
    owner: (u32, u32),
    /// Of files only.
    links: u64,
    /// The time of modification, if somebody has set it: those the scenarios set are in the past.
    time: Option<i64>,
    attribute: Option<Vec<u8>>,
    /// The bytes of a file, or where a symbolic link leads.
    content: Vec<u8>,
}

/// A directory but for the store of latchfs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree(BTreeMap<PathBuf, Entry>);

impl Tree {
    /// Looks at it.
    pub fn of(dir: &Path) -> Self {
        let mut found = BTreeMap::new();
        let mut todo = vec![dir.to_owned()];
        while let Some(at) = todo.pop() {
            for entry in fs::read_dir(&at).expect("list") {
                let path = entry.expect("an entry").path();
                if path == dir.join(".latchfs") {
                    continue;
                }
                let stat = path.symlink_metadata().expect("stat");
                let kind = stat.file_type();
                if kind.is_dir() {
                    todo.push(path.clone());
                }
                let mut buffer = [0; 64];
                let attribute = rustix::fs::lgetxattr(&path, "user.mark", &mut buffer[..]);
                let entry = Entry {
                    mode: stat.mode(),
                    owner: (stat.uid(), stat.gid()),
                    links: if kind.is_dir() { 0 } else { stat.nlink() },
                    time: Some(stat.mtime()).filter(|time| *time < 1_500_000_000),
                    attribute: attribute.ok().map(|length| buffer[..length].to_vec()),
                    content: if kind.is_file() {
                        fs::read(&path).expect("read")
                    } else if kind.is_symlink() {
                        fs::read_link(&path)
                            .expect("link")
                            .as_os_str()
                            .as_bytes()
                            .to_vec()
                    } else {
                        vec![]
                    },
                };
                found.insert(path.strip_prefix(dir).expect("inside").to_owned(), entry);
            }
        }
        Self(found)
    }

    /// Is it this state, but for files that may be torn, and files that are being appended to and hold
    /// what they held `before` and a part of the next record?
    fn is(&self, state: &Self, may: &MayBe, (before, after): (&Self, &Self)) -> bool {
        let same_names = self.0.keys().eq(state.0.keys());
        same_names
            && self.0.iter().all(|(path, found)| {
                found == &state.0[path]
                    || may.torn.contains(path)
                    || may.growing && {
                        let part = |tree: &Self, whole: fn(&[u8], &[u8]) -> bool| {
                            let entry = tree.0.get(path);
                            entry.is_some_and(|entry| whole(&found.content, &entry.content))
                        };
                        part(before, |found, before| found.starts_with(before))
                            && part(after, |found, after| after.starts_with(found))
                    }
            })
    }

    /// Is it one of two neighbouring states?
    pub fn check(&self, before: &Self, after: &Self, may: &MayBe) -> Result<(), String> {
        let pair = (before, after);
        if self.is(before, may, pair) || self.is(after, may, pair) {
            return Ok(());
        }
        Err(format!("{self}\nis neither {before}\nnor {after}"))
    }
}

impl std::fmt::Display for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (path, entry) in &self.0 {
            let Entry {
                mode,
                links,
                time,
                attribute,
                content,
                ..
            } = entry;
            let beginning = String::from_utf8_lossy(&content[..content.len().min(12)]);
            let length = content.len();
            write!(
                f,
                "{} [{mode:o} x{links} {time:?} {attribute:?} {length}: {beginning:?}] ",
                path.display()
            )?;
        }
        Ok(())
    }
}

/// What need not be whole before recovery.
#[derive(Debug, Default)]
pub struct MayBe {
    /// Files that are being rewritten in place: a record with their whole version is in the store.
    torn: BTreeSet<PathBuf>,
    /// Some file is being appended to: its log is in the store.
    growing: bool,
}

impl MayBe {
    /// What a store allows for.
    pub fn by_store_of(backing: &Path) -> Self {
        let mut torn = BTreeSet::new();
        for name in store(backing, "redo") {
            if !name.ends_with(".json") {
                continue;
            }
            let record = fs::read(backing.join(".latchfs/redo").join(&name)).expect("a record");
            let record: serde_json::Value = serde_json::from_slice(&record).expect("JSON");
            let inode = record["ino"].as_u64().expect("an inode");
            let data = backing
                .join(".latchfs/redo")
                .join(name.replace(".json", ".data"));
            assert!(data.exists(), "a record without its version");
            torn.extend(Tree::of(backing).0.into_keys().filter(|path| {
                let stat = backing.join(path).symlink_metadata();
                stat.is_ok_and(|stat| stat.ino() == inode)
            }));
        }
        let growing = !store(backing, "append").is_empty();
        Self { torn, growing }
    }
}

/// What lies in a directory of the store; nothing if there is none.
pub fn store(backing: &Path, name: &str) -> Vec<String> {
    let entries = fs::read_dir(backing.join(".latchfs").join(name));
    let entries = entries.into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// The contents of the kept versions. Each must have its bytes and its record.
pub fn kept(backing: &Path) -> Result<Vec<Vec<u8>>, String> {
    let names = store(backing, "kept");
    let ids = names.iter().filter_map(|name| name.strip_suffix(".json"));
    let dir = backing.join(".latchfs/kept");
    let mut found = Vec::new();
    for id in ids {
        let record = fs::read(dir.join(format!("{id}.json"))).map_err(|e| e.to_string())?;
        serde_json::from_slice::<serde_json::Value>(&record).map_err(|e| e.to_string())?;
        found.push(fs::read(dir.join(format!("{id}.data"))).map_err(|e| e.to_string())?);
    }
    if names.len() != 2 * found.len() {
        return Err(format!("kept without bytes or without record: {names:?}"));
    }
    found.sort();
    Ok(found)
}
