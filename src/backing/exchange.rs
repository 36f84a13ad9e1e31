//! Taking the place of a file only if it is still the one that was expected (S4).
//!
//! Between a look at a name and a rename over it, somebody may put another file there directly in
//! BACKING, and the rename would destroy that. So the version is exchanged with what has the name,
//! under a name in `.latchfs/tmp`, and what came out is looked at: the expected file is removed,
//! anything else is exchanged back.
//!
//! A crash may leave either of the three under that name, so it says what is what ([`Ticket`]): the
//! old version and our own are leftovers, and a stranger's file is kept aside ([`recover`]).
//!
//! [`recover`]: super::recover::recover

use super::shadow::{NamedTemp, Place, Shadow};
use super::store::Store;
use super::{Dir, Errno, Identity, Seen, Stamp, Stat, identity, stamp};
use rustix::fs::{FileType, RenameFlags};
use std::ffi::{OsStr, OsString};

/// How often files are exchanged to and fro before what is there is left there. Each time somebody
/// else has to be at work on the same name within microseconds.
const ROUNDS: usize = 64;

/// What became of an exchange.
#[derive(Debug)]
pub enum Exchanged {
    /// The version is the file.
    Done,
    /// It is, but it has taken the place of this.
    Instead(Stat),
    /// The name was something else's, as it was before.
    Refused {
        /// What: `None` if the name was free.
        found: Option<Stat>,
        /// A file of somebody else's that could not be put back, as its name was taken again: the
        /// name in `.latchfs/tmp` where it is.
        stray: Option<OsString>,
    },
}

/// The name in `.latchfs/tmp` of one exchange.
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The inode number of the version.
    own: u64,
    /// That of the file whose place it takes, and what that was like.
    old: u64,
    stamp: Stamp,
}

/// What a leftover of an exchange is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftover {
    /// The version on its way, or the old one that it replaced.
    Ours,
    /// Somebody else's. The version that was to take its place has this inode number.
    Strange(u64),
}

impl Ticket {
    fn new(own: &Stat, old: &Stat) -> Self {
        Self {
            own: own.st_ino,
            old: old.st_ino,
            stamp: stamp(old),
        }
    }

    fn name(&self, unique: &OsStr) -> OsString {
        let Self { own, old, stamp } = self;
        let Stamp { size, modified } = stamp;
        let mut name = unique.to_owned();
        name.push(format!(
            "-{own:x}-{old:x}-{size:x}-{:x}-{:x}",
            modified.0, modified.1
        ));
        name
    }

    /// What an earlier daemon meant by a name; `None` if it is not of an exchange.
    pub fn parse(name: &OsStr) -> Option<Self> {
        let mut parts = name.to_str()?.split('-').skip(1);
        let mut number = || u64::from_str_radix(parts.next()?, 16).ok();
        let ticket = Self {
            own: number()?,
            old: number()?,
            stamp: Stamp {
                size: number()?,
                // As `{:x}` writes it: negative ones by their bits.
                modified: (number()? as i64, u32::try_from(number()?).ok()?),
            },
        };
        parts.next().is_none().then_some(ticket)
    }

    /// What is under that name now?
    pub fn judge(&self, there: &Stat) -> Leftover {
        let old = there.st_ino == self.old && stamp(there) == self.stamp;
        match there.st_ino == self.own || old {
            true => Leftover::Ours,
            false => Leftover::Strange(self.own),
        }
    }
}

/// Does an exchange in this directory survive a power cut as a whole? Not on btrfs, where an fsync of another
/// file may bring half of it to the disk: then the name is gone, and what had it is a leftover of ours.
///
/// # Errors
/// As fstatfs(2).
pub fn is_safe_in(dir: &Dir) -> Result<bool, Errno> {
    const BTRFS_SUPER_MAGIC: u64 = 0x9123_683e;
    Ok(rustix::fs::fstatfs(dir)?.f_type as u64 != BTRFS_SUPER_MAGIC)
}

/// Makes a shadow the file `name` of `dir` if that is still what `expected` tells, in one step for
/// everyone who looks. With `anyway`, whatever it is unless a directory; the answer tells. Where the
/// file system can't exchange names, nothing is looked at. What was replaced is left to
/// [`Store::discard_what_is_left`].
///
/// # Errors
/// As renameat2(2).
pub fn replace_if(
    shadow: &Shadow,
    (dir, name): (&Dir, &OsStr),
    store: &Store,
    expected: &Stat,
    anyway: bool,
) -> Result<Exchanged, Errno> {
    let tmp = store.tmp();
    let own = rustix::fs::fstat(shadow.file())?;
    let temp = Ticket::new(&own, expected).name(&store.unique_name());
    shadow.name_in(tmp, &temp)?;
    let swap = || tmp.rename(&temp, dir, name, RenameFlags::EXCHANGE);
    let look = || tmp.stat_at(&temp);
    let place = &mut *shadow.place.lock();
    match swap() {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            tmp.rename(&temp, dir, name, RenameFlags::empty())?;
            place.leave();
            return Ok(Exchanged::Done);
        }
        Err(Errno::NOENT) => {
            let (found, stray) = (None, None);
            return Ok(Exchanged::Refused { found, stray });
        }
        other => other?,
    }
    // Whatever comes of it, what is there now is not the shadow.
    place.leave();
    let found = look().inspect_err(|_| {
        // What came out can't be told, so it goes back.
        if swap().is_ok() && look().is_ok_and(|back| is(&back, identity(&own))) {
            *place = Place::Temporary(NamedTemp::new(tmp, &temp));
        }
    })?;
    let directory = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
    let same = Seen::of(&found) == Seen::of(expected);
    if same || anyway && !directory {
        store.discard_later(temp);
        return Ok(match same {
            true => Exchanged::Done,
            false => Exchanged::Instead(found),
        });
    }
    // To be put back. What comes out then is what was put in last, unless somebody has taken the
    // name once more; that one is the newest, and goes back in its turn.
    let (mut inside, mut held) = (identity(&own), found);
    for _ in 0..ROUNDS {
        match swap() {
            Ok(()) => {}
            // Removed meanwhile: there is nothing newer than what is held.
            Err(_) => break,
        }
        let out = look()?;
        let last = std::mem::replace(&mut inside, identity(&held));
        held = out;
        if is(&held, last) {
            break;
        }
    }
    let ours = is(&held, identity(&own));
    if ours {
        *place = Place::Temporary(NamedTemp::new(tmp, &temp));
    }
    Ok(Exchanged::Refused {
        found: Some(found),
        stray: (!ours).then_some(temp),
    })
}

fn is(stat: &Stat, who: Identity) -> bool {
    identity(stat) == who
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    struct Scene {
        home: tempfile::TempDir,
        root: Dir,
        store: Store,
    }

    fn scene() -> Scene {
        let home = tempfile::tempdir().expect("a directory");
        let root = Dir::open_root(home.path()).expect("open");
        let store = Store::open(&root).expect("the store");
        Scene { home, root, store }
    }

    impl Scene {
        fn put(&self, name: &str, content: &str) -> Stat {
            fs::write(self.home.path().join(name), content).expect("write");
            self.root.stat_at(OsStr::new(name)).expect("stat")
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.home.path().join(name)).expect("read")
        }

        fn shadow(&self, content: &str) -> Shadow {
            use std::os::unix::fs::FileExt;
            let shadow = Shadow::create(&self.root, &self.store, 0o644).expect("a shadow");
            let written = shadow.file().write_all_at(content.as_bytes(), 0);
            written.expect("write");
            shadow
        }

        fn replace(&self, shadow: &Shadow, expected: &Stat) -> Exchanged {
            let file = (&self.root, OsStr::new("f"));
            let outcome = replace_if(shadow, file, &self.store, expected, false);
            self.store.discard_what_is_left();
            outcome.expect("an outcome")
        }

        fn leftovers(&self) -> usize {
            self.store.tmp().list().expect("a listing").len()
        }
    }

    #[test]
    fn what_was_expected_is_replaced_and_removed() {
        let scene = scene();
        let old = scene.put("f", "old");
        let shadow = scene.shadow("new");
        assert!(matches!(scene.replace(&shadow, &old), Exchanged::Done));
        assert_eq!((scene.read("f"), scene.leftovers()), ("new".into(), 0));
        drop(shadow);
        assert_eq!(scene.read("f"), "new");
    }

    #[test]
    fn what_was_not_is_put_back_and_the_version_can_still_be_kept() {
        let scene = scene();
        let old = scene.put("f", "old");
        scene.put("other", "another");
        fs::rename(scene.home.path().join("other"), scene.home.path().join("f")).expect("mv");
        let shadow = scene.shadow("new");
        let Exchanged::Refused { found, stray } = scene.replace(&shadow, &old) else {
            panic!("it was another file");
        };
        assert_eq!(found.map(|stat| stat.st_size), Some(7));
        assert_eq!((scene.read("f"), stray), ("another".into(), None));
        shadow.link(&scene.root, OsStr::new("kept")).expect("link");
        assert_eq!((scene.read("kept"), scene.leftovers()), ("new".into(), 0));
    }

    #[test]
    fn an_edited_file_and_a_removed_one_are_not_replaced() {
        let scene = scene();
        let old = scene.put("f", "old");
        scene.put("f", "older than that");
        let shadow = scene.shadow("new");
        let refused = scene.replace(&shadow, &old);
        assert!(matches!(refused, Exchanged::Refused { found: Some(_), .. }));
        assert_eq!(scene.read("f"), "older than that");
        fs::remove_file(scene.home.path().join("f")).expect("rm");
        let refused = scene.replace(&shadow, &old);
        assert!(matches!(refused, Exchanged::Refused { found: None, .. }));
        drop(shadow);
        assert_eq!(scene.leftovers(), 0);
    }

    #[test]
    fn a_ticket_tells_later_what_is_what() {
        let scene = scene();
        let old = scene.put("f", "old");
        let own = scene.put("own", "own");
        let other = scene.put("other", "old");
        let name = Ticket::new(&own, &old).name(OsStr::new("1a.2"));
        let ticket = Ticket::parse(&name).expect("it parses");
        assert_eq!(ticket, Ticket::new(&own, &old));
        assert_eq!(ticket.judge(&own), Leftover::Ours);
        assert_eq!(ticket.judge(&old), Leftover::Ours);
        assert_eq!(ticket.judge(&other), Leftover::Strange(own.st_ino));
        let mut ancient = old;
        ancient.st_mtime = -1;
        let name = Ticket::new(&own, &ancient).name(OsStr::new("1a.2"));
        let parsed = Ticket::parse(&name).expect("it parses");
        assert_eq!(parsed.judge(&ancient), Leftover::Ours);
        for other in ["1a.2", "1-2-3", "x", "1-2-3-4-5-6-7"] {
            assert_eq!(Ticket::parse(OsStr::new(other)), None, "{other}");
        }
    }
}
