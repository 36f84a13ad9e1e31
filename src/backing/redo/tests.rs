//! What a failure leaves, at each step of a rewrite. The disk is made to fail by chattr(1): an inode
//! that is immutable can't be written, and a directory that is can't lose a name.

use super::*;
use crate::backing::recover::{look, recover};
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

struct Scene {
    home: tempfile::TempDir,
    root: Dir,
    store: Store,
}

/// Makes a file or directory immutable for as long as it lives.
struct Frozen(File);

impl Frozen {
    fn new(path: &Path) -> Self {
        let file = File::open(path).expect("open");
        set_immutable(&file, true);
        Self(file)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        set_immutable(&self.0, false);
    }
}

fn set_immutable(file: &File, on: bool) {
    let mut flags = ioctl_getflags(file).expect("flags");
    flags.set(IFlags::IMMUTABLE, on);
    ioctl_setflags(file, flags).expect("chattr, by root");
}

impl Scene {
    fn new(old: &str) -> Self {
        let home = tempfile::tempdir().expect("a directory");
        std::fs::write(home.path().join("f"), old).expect("write");
        let root = Dir::open_root(home.path()).expect("open");
        let store = Store::open(&root).expect("a store");
        Self { home, root, store }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.home.path().join(name)
    }

    fn read(&self) -> String {
        std::fs::read_to_string(self.path("f")).expect("read")
    }

    fn target(&self) -> File {
        let mut options = File::options();
        let opened = options.read(true).write(true).open(self.path("f"));
        opened.expect("open")
    }

    fn who(&self) -> Identity {
        identity(&rustix::fs::fstat(self.target()).expect("stat"))
    }

    /// Rewrites the file; `superseded` is called in between.
    fn rewrite(
        &self,
        content: &str,
        superseded: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<Rewritten, Errno> {
        let shadow = Shadow::create(&self.root, &self.store, 0o600)?;
        shadow
            .file()
            .write_all_at(content.as_bytes(), 0)
            .map_err(errno)?;
        let target = self.target();
        let rewrite = Rewrite {
            shadow: &shadow,
            target: &target,
            path: &["f".into()],
            own: &Own::default(),
            expected: Some(stamp(&rustix::fs::fstat(&target)?)),
        };
        super::rewrite(&self.store, &rewrite, superseded)
    }

    fn records(&self) -> usize {
        self.store.redo().list().expect("list").len()
    }

    /// A daemon that died is followed by a next one.
    fn recover(&self) -> Vec<Action> {
        let mut done = Vec::new();
        recover(&self.root, &self.store, &mut done).expect("recover");
        done
    }
}

#[test]
fn a_rewrite_leaves_no_record_and_owes_nothing() {
    let scene = Scene::new("old");
    assert_eq!(
        scene.rewrite("the new one", || Ok(())),
        Ok(Rewritten::Whole)
    );
    assert_eq!((scene.read().as_str(), scene.records()), ("the new one", 0));
    assert!(!scene.store.unfinished().has(scene.who()));
}

#[test]
fn a_rewrite_that_fails_before_the_inode_is_touched_leaves_no_record() {
    let scene = Scene::new("old");
    assert_eq!(scene.rewrite("new", || Err(Errno::IO)), Err(Errno::IO));
    // Somebody changes it behind the mount just then.
    let edited = || {
        std::fs::write(scene.path("f"), "theirs").map_err(errno)?;
        Err(Errno::STALE)
    };
    assert_eq!(scene.rewrite("new", edited), Err(Errno::STALE));
    assert_eq!((scene.read().as_str(), scene.records()), ("theirs", 0));
    assert!(!scene.store.unfinished().has(scene.who()));
    assert_eq!(scene.recover(), []);
}

#[test]
fn a_rewrite_that_fails_in_its_middle_is_finished_before_anything_else() {
    let scene = Scene::new("old");
    let (who, mut frozen) = (scene.who(), None);
    let failing = scene.rewrite("new", || {
        frozen = Some(Frozen::new(&scene.path("f")));
        Ok(())
    });
    assert_eq!(failing, Ok(Rewritten::Unfinished(Errno::PERM)));
    assert!(scene.store.unfinished().is_torn(who));
    assert_eq!(settle(&scene.store, who), Err(Errno::PERM));
    assert_eq!(scene.records(), 2);
    drop(frozen);
    assert_eq!(settle(&scene.store, scene.who()), Ok(()));
    assert_eq!((scene.read().as_str(), scene.records()), ("new", 0));
    assert!(!scene.store.unfinished().has(scene.who()));
}

#[test]
fn a_rewrite_that_failed_in_its_middle_is_finished_by_the_next_mount() {
    let scene = Scene::new("old");
    let mut frozen = None;
    let failing = scene.rewrite("new", || {
        frozen = Some(Frozen::new(&scene.path("f")));
        Ok(())
    });
    assert_eq!(failing, Ok(Rewritten::Unfinished(Errno::PERM)));
    drop(frozen);
    assert_eq!(scene.recover().len(), 1);
    assert_eq!((scene.read().as_str(), scene.records()), ("new", 0));
}

#[test]
fn a_record_that_can_not_be_removed_keeps_everything_else_out_of_the_inode() {
    let scene = Scene::new("old");
    let mut frozen = None;
    let first = scene.rewrite("first", || {
        frozen = Some(Frozen::new(&scene.path(".latchfs/redo")));
        Ok(())
    });
    // It is the file, and recovery would only make it that once more.
    assert_eq!(first, Ok(Rewritten::Whole));
    assert_eq!((scene.read().as_str(), scene.records()), ("first", 2));
    let unfinished = scene.store.unfinished();
    assert!(unfinished.has(scene.who()) && !unfinished.is_torn(scene.who()));
    assert_eq!(scene.rewrite("second", || Ok(())), Err(Errno::PERM));
    assert_eq!(scene.read(), "first");
    drop(frozen);
    assert_eq!(scene.rewrite("second", || Ok(())), Ok(Rewritten::Whole));
    assert_eq!(scene.recover(), []);
    assert_eq!(scene.read(), "second");
}

#[test]
fn of_several_records_for_one_inode_the_last_is_carried_out() {
    let scene = Scene::new("old");
    let who = scene.who();
    for (id, content) in [("a.9", "first"), ("a.10", "last"), ("9.ff", "long ago")] {
        let record = Record {
            path: vec![b"f".to_vec()],
            dev: who.dev,
            ino: who.ino,
            born: birth(scene.target()),
            own: Own::default(),
            time: 1,
        };
        let record = serde_json::to_vec(&record).expect("json");
        let redo = scene.path(".latchfs/redo");
        std::fs::write(redo.join(format!("{id}.data")), content).expect("write");
        std::fs::write(redo.join(format!("{id}.json")), record).expect("write");
    }
    let found = look(&scene.root).expect("a look");
    let done = scene.recover();
    assert_eq!(found, done);
    let finished = done.iter().filter(|a| a.kind == Kind::UpdateFinished);
    assert_eq!((finished.count(), done.len()), (1, 3));
    assert_eq!((scene.read().as_str(), scene.records()), ("last", 0));
}
