//! What is found after a power cut.

use crate::common::{LATCHFS, finish, text};
use crate::content::parse;
use crate::disk::Disk;
use crate::filesystem::unmount_now;
use crate::history::{BARE, History, State, Wrong};
use crate::log::Overlay;
use crate::loopdev::Loop;
use crate::place::Place;
use crate::recording::{Recording, serve, stop};
use latchfs::backing::Dir;
use latchfs::backing::recover::{Action, look, recover};
use latchfs::backing::store::Store;
use latchfs::config::Durability;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

/// How thoroughly to look.
#[derive(Clone, Copy, Debug, Default)]
pub struct Depth {
    /// Recover by the command, not by the library.
    pub command: bool,
    /// Serve it by a mount, and read through that.
    pub mount: bool,
    /// Have the file system's own tool look at it afterwards.
    pub fsck: bool,
    /// Print what is there before recovery.
    pub list: bool,
}

/// What is wrong after one power cut.
#[derive(Debug, Default)]
pub struct Found {
    /// What latchfs, or the file system below it, should not have let happen.
    pub wrong: Vec<String>,
    /// The same of the controls, by name: torn or gone; older than what was acknowledged.
    pub torn: Vec<String>,
    /// Older than acknowledged.
    pub older: Vec<String>,
    /// What recovery did.
    pub actions: Vec<String>,
}

/// Looks at disks.
pub struct Checker<'a> {
    pub place: &'a Place,
    pub disk: &'a Disk,
    pub recording: &'a Recording,
    pub history: &'a History,
}

impl Checker<'_> {
    /// Has the disk mounted, recovered and looked at, after so many entries of the log.
    pub fn look_at(&self, disk: Overlay, position: usize, depth: Depth) -> Found {
        let mut found = Found::default();
        self.disk.inner().state = disk;
        let device = Loop::attach(&self.disk.state());
        let root = self.place.dir("state");
        let kind = self.recording.kind;
        if let Err(error) = kind.mount(device.path(), &root) {
            found.wrong.push(format!("it can't be mounted: {error}"));
            return found;
        }
        let backing = root.join("tree");
        if depth.list {
            println!(
                "{}",
                text(&finish(Command::new("ls").arg("-laiR").arg(&backing)).stdout)
            );
        }
        let recovered = match depth.command {
            true => recover_by_command(&backing, &mut found),
            false => recover_by_library(&backing, &mut found),
        };
        if let Err(error) = recovered {
            found.wrong.push(format!("recovery failed: {error}"));
        }
        self.look_at_store(&backing, &mut found);
        let files = read_all(&backing, Path::new("")).into_iter();
        let bare = read_all(&root, Path::new("bare")).into_iter();
        let files: Files = files.chain(bare).collect();
        self.judge(&files, position, &mut found);
        if depth.mount {
            self.look_through_mount(&backing, &files, &mut found);
        }
        unmount_now(&root);
        if depth.fsck {
            found.wrong.extend(kind.check(device.path()));
        }
        found
    }

    fn look_at_store(&self, backing: &Path, found: &mut Found) {
        for name in ["tmp", "redo", "append"] {
            let entries = fs::read_dir(backing.join(".latchfs").join(name));
            for entry in entries.into_iter().flatten().flatten() {
                let left = entry.file_name();
                found.wrong.push(format!(
                    "left over: .latchfs/{name}/{}",
                    left.to_string_lossy()
                ));
            }
        }
    }

    fn judge(&self, files: &Files, position: usize, found: &mut Found) {
        let mut states: BTreeMap<String, State> = BTreeMap::new();
        // What the controls write to before they rename it, nobody has promised.
        let temporary = |name: &str| name.starts_with(BARE) && name.ends_with(".tmp");
        for (name, state) in files.iter().filter(|(name, _)| !temporary(name)) {
            match state {
                Ok(state) => drop(states.insert(name.clone(), *state)),
                Err(why) if name.starts_with(BARE) => found.torn.push(format!("{name}: {why}")),
                Err(why) if self.recording.durability != Durability::None => {
                    found.wrong.push(format!("{name} is torn: {why}"));
                }
                Err(_) => {}
            }
            if !self.history.knows(name) {
                found.wrong.push(format!("{name} is a stranger"));
            }
        }
        for (name, wrong) in self.history.check(position, &states) {
            // Torn: that was said.
            if matches!(files.get(&name), Some(Err(_))) {
                continue;
            }
            let state = states.get(&name);
            let what = format!("{name} is {state:?}: {wrong:?}");
            match (name.starts_with(BARE), wrong) {
                (true, Wrong::Older) => found.older.push(what),
                (true, _) => found.torn.push(what),
                // That promises nothing for power cuts.
                (false, _) if self.recording.durability == Durability::None => {}
                (false, _) => found.wrong.push(what),
            }
        }
        let both = [files.get("linked"), files.get("link")];
        if self.recording.durability != Durability::None && both[0] != both[1] {
            found.wrong.push(format!("two names of one file: {both:?}"));
        }
    }

    /// What a mount shows is what is there.
    fn look_through_mount(&self, backing: &Path, files: &Files, found: &mut Found) {
        let point = self.place.dir("mount");
        let mut daemon = serve(self.place, backing, &point, self.recording.durability);
        let mut seen = read_all(&point, Path::new(""));
        for (name, state) in files.iter().filter(|(name, _)| !name.starts_with(BARE)) {
            let here = seen.remove(name);
            if here.as_ref() != Some(state) {
                found
                    .wrong
                    .push(format!("{name} is {state:?}, and in the mount {here:?}"));
            }
        }
        let more = seen.keys().map(|name| format!("only in the mount: {name}"));
        found.wrong.extend(more);
        stop(&point, &mut daemon);
    }
}

/// What files hold, by their names.
type Files = BTreeMap<String, Result<State, String>>;

fn read_all(root: &Path, below: &Path) -> Files {
    let own = |entry: &walkdir::DirEntry| entry.file_name() != ".latchfs";
    let walk = walkdir::WalkDir::new(root.join(below)).into_iter();
    let mut files = Files::new();
    for entry in walk.filter_entry(own) {
        let entry = match entry {
            Ok(entry) if entry.file_type().is_file() => entry,
            Ok(_) => continue,
            Err(error) => {
                files.insert(format!("{error}"), Err(String::from("can't be looked at")));
                continue;
            }
        };
        let name = entry.path().strip_prefix(root).expect("below the root");
        let name = name.to_string_lossy().into_owned();
        let state = match fs::read(entry.path()) {
            Ok(bytes) => parse(&name, &bytes),
            Err(error) => Err(error.to_string()),
        };
        files.insert(name, state);
    }
    files
}

fn recover_by_library(backing: &Path, found: &mut Found) -> Result<(), String> {
    let root = Dir::open_root(backing).map_err(|errno| errno.to_string())?;
    let store = Store::open(&root).map_err(|error| error.to_string())?;
    let mut actions = Vec::new();
    let result = recover(&root, &store, &mut actions);
    found.actions.extend(actions.iter().map(named));
    result.map_err(|errno| errno.to_string())?;
    let again = look(&root).map_err(|errno| errno.to_string())?;
    if !again.is_empty() {
        let again: Vec<String> = again
            .iter()
            .map(|action| action.to_do().to_string())
            .collect();
        found
            .wrong
            .push(format!("a second recovery {}", again.join(", ")));
    }
    Ok(())
}

/// The kind of an action, as programs know it.
fn named(action: &Action) -> String {
    let kind = serde_json::to_value(action.kind).expect("its name");
    kind.as_str().expect("a name").to_owned()
}

fn recover_by_command(backing: &Path, found: &mut Found) -> Result<(), String> {
    for again in [false, true] {
        let mut command = Command::new(LATCHFS);
        let output = finish(command.args(["recover", "--json"]).arg(backing));
        if !output.status.success() {
            return Err(format!("{}: {}", output.status, text(&output.stderr)));
        }
        let report: serde_json::Value =
            serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
        let actions = report["actions"].as_array().ok_or("no actions")?;
        if again && !actions.is_empty() {
            found
                .wrong
                .push(format!("a second recovery did {actions:?}"));
        }
        let kinds = actions.iter().filter_map(|action| action["kind"].as_str());
        found.actions.extend(kinds.map(str::to_owned));
    }
    Ok(())
}
