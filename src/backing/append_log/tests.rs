use super::*;
use proptest::prelude::*;
use std::path::Path;

const NO_END: u64 = u64::MAX;

fn content(length: u64) -> Vec<u8> {
    (0..length).map(|n| (n % 251) as u8 + 1).collect()
}

fn crc(bytes: &[u8], from: u64, to: u64) -> Result<u32, Errno> {
    Ok(crc32fast::hash(&bytes[from as usize..to as usize]))
}

/// What a log has of records that end at `ends`.
fn entries(bytes: &[u8], base: u64, ends: &[u64]) -> Vec<Entry> {
    let mut at = base;
    let mut entries = Vec::new();
    for &end in ends {
        let crc = crc32fast::hash(&bytes[at as usize..end as usize]);
        entries.push(Entry { end, crc });
        at = end;
    }
    entries
}

#[test]
fn an_entry_that_is_not_whole_says_nothing() {
    let entry = Entry { end: 77, crc: 5 };
    let bytes = entry.encode();
    assert_eq!(Entry::decode(&bytes), Some(entry));
    assert_eq!(Entry::decode(&bytes[..15]), None);
    assert_eq!(Entry::decode(&[0; 16]), None);
    for at in 0..16 {
        let mut damaged = bytes;
        damaged[at] ^= 1;
        assert_eq!(Entry::decode(&damaged), None, "byte {at}");
    }
}

#[test]
fn a_name_says_which_file_and_how_long_it_was() {
    for born in [None, Some((-5, 7)), Some((1_700_000_000, 999_999_999))] {
        let claim = Claim {
            ino: u64::MAX,
            born,
            base: 12,
        };
        let name = claim.name(OsStr::new("1f.3"));
        assert_eq!(Claim::parse(&name), Some(claim));
    }
    for name in ["", "x", "1_b2_3", "1_é_3_4_5", "1__3_4_5", "1_b2_3_4x_5"] {
        assert_eq!(Claim::parse(OsStr::new(name)), None, "{name}");
    }
}

#[test]
fn what_is_appended_behind_the_mount_is_left_alone() {
    let bytes = content(100);
    let known = entries(&bytes, 10, &[20, 30]);
    let find = |length, same_boot| {
        find_end(10, &known, length, same_boot, |from, to| {
            crc(&bytes, from, to)
        })
    };
    assert_eq!(find(30, true), Ok(End::Whole));
    assert_eq!(find(25, true), Ok(End::At(20)));
    assert_eq!(find(40, true), Ok(End::Foreign(30)));
    // After a power cut it may as well be a record of which the log did not reach the disk.
    assert_eq!(find(40, false), Ok(End::At(30)));
    // It was shortened: then it is not what the log speaks of.
    assert_eq!(find(5, true), Ok(End::Whole));
    assert_eq!(find(5, false), Ok(End::Whole));
}

#[test]
fn what_is_changed_in_the_middle_behind_the_mount_is_left_alone() {
    let mut bytes = content(100);
    let known = entries(&bytes, 10, &[20, 30, 40]);
    bytes[15] = 0;
    let found = find_end(10, &known, 40, true, |from, to| crc(&bytes, from, to));
    assert_eq!(found, Ok(End::Foreign(10)));
}

proptest! {
    /// Records go to a file and its log; then the power goes, and of each any part has reached the
    /// disk beyond what was made durable. What is left is whole, and has all that was durable.
    #[test]
    fn after_any_power_cut_the_file_ends_at_a_record(
        base in 0_u64..50,
        sizes in prop::collection::vec(1_u64..40, 1..20),
        durable in 0_usize..20,
        logged in 0_usize..20,
        reached in 0_u64..900,
        lost in prop::option::of(0_u64..900),
    ) {
        let mut at = base;
        let ends: Vec<u64> = sizes.iter().map(|size| { at += size; at }).collect();
        let all = at;
        let durable = durable.min(ends.len());
        let durable_end = if durable == 0 { base } else { ends[durable - 1] };
        let mut bytes = content(all);
        let known = entries(&bytes, base, &ends);
        // The log is durable before the file.
        let known = &known[..logged.clamp(durable, ends.len())];
        let length = reached.clamp(durable_end, all);
        // A page in the middle that did not get there.
        let hole = lost.filter(|at| (durable_end..length).contains(at)).unwrap_or(NO_END);
        if hole != NO_END {
            bytes[hole as usize] = 0;
        }
        let found = find_end(base, known, length, false, |from, to| crc(&bytes, from, to));
        let left = match found {
            Ok(End::Whole) => length,
            Ok(End::At(end)) => end,
            other => return Err(TestCaseError::fail(format!("{other:?}"))),
        };
        prop_assert!(left >= durable_end);
        prop_assert!(left == base || ends.contains(&left), "{left} is in the middle of a record");
        prop_assert!(left <= hole);
        // No whole record that the log knows is given up.
        let best = known.iter().map(|entry| entry.end).filter(|end| *end <= length.min(hole)).max();
        prop_assert_eq!(left, best.unwrap_or(base));
    }
}

fn scene() -> (tempfile::TempDir, Dir, Store) {
    let home = tempfile::tempdir().expect("a directory");
    let root = Dir::open_root(home.path()).expect("open");
    let store = Store::open(&root).expect("a store");
    (home, root, store)
}

/// A file with `old` in it, to which a daemon was appending when it died.
fn interrupted(home: &Path, store: &Store, old: &[u8], records: &[&[u8]]) -> AppendLog {
    let path = home.join("f");
    std::fs::write(&path, old).expect("write");
    let file = File::options()
        .append(true)
        .read(true)
        .open(&path)
        .expect("open");
    let mut log = AppendLog::begin(store, &file, &["f".into()], old.len() as u64).expect("a log");
    let mut end = old.len() as u64;
    for record in records {
        end += record.len() as u64;
        let crc = crc32fast::hash(record);
        log.announce(Entry { end, crc }).expect("announce");
        std::io::Write::write_all(&mut &file, record).expect("append");
        log.stays();
    }
    log
}

/// What recovery finds to do, twice: a look at it changes nothing.
fn trimmed(root: &Dir, store: &Store) -> Result<Vec<Trimmed>, Errno> {
    let (mut found, mut done) = (Vec::new(), Vec::new());
    let logs = store.append().list()?.len();
    trim(root, store.append(), None, &mut found)?;
    assert_eq!(store.append().list()?.len(), logs);
    trim(root, store.append(), Some(store), &mut done)?;
    assert_eq!(found, done);
    Ok(done)
}

#[test]
fn a_torn_tail_is_trimmed_wherever_the_file_was_renamed_to() {
    let (home, root, store) = scene();
    let log = interrupted(home.path(), &store, b"old ", &[b"one ", b"two "]);
    let three = Entry {
        end: 18,
        crc: crc32fast::hash(b"three "),
    };
    log.announce(three).expect("announce");
    std::fs::create_dir(home.path().join("d")).expect("mkdir");
    // Not by write(), which would make it another file.
    let file = File::options()
        .append(true)
        .open(home.path().join("f"))
        .expect("open");
    std::io::Write::write_all(&mut &file, b"thr").expect("append");
    std::fs::rename(home.path().join("f"), home.path().join("d/g")).expect("rename");
    let done = trimmed(&root, &store).expect("trim");
    let expected = Trimmed {
        path: "f".into(),
        length: 12,
        lost: 3,
        left: None,
    };
    assert_eq!(done, [expected]);
    assert_eq!(
        std::fs::read(home.path().join("d/g")).expect("read"),
        b"old one two "
    );
    assert!(store.append().list().expect("list").is_empty());
}

#[test]
fn a_whole_file_is_left_as_it_is_and_nothing_is_said() {
    let (home, root, store) = scene();
    interrupted(home.path(), &store, b"old ", &[b"one ", b"two "]);
    assert_eq!(trimmed(&root, &store), Ok(vec![]));
    assert_eq!(
        std::fs::read(home.path().join("f")).expect("read"),
        b"old one two "
    );
    assert!(store.append().list().expect("list").is_empty());
}

#[test]
fn another_file_that_took_the_name_is_not_trimmed() {
    let (home, root, store) = scene();
    interrupted(home.path(), &store, b"old ", &[b"one "]);
    std::fs::write(home.path().join("t"), "something else, and longer").expect("write");
    std::fs::rename(home.path().join("t"), home.path().join("f")).expect("rename");
    assert_eq!(trimmed(&root, &store), Ok(vec![]));
    let now = std::fs::read(home.path().join("f")).expect("read");
    assert_eq!(now, b"something else, and longer");
}

#[test]
fn of_a_log_that_never_reached_the_disk_its_name_counts() {
    let (home, root, store) = scene();
    interrupted(home.path(), &store, b"old ", &[b"one "]);
    let name = &store.append().list().expect("list")[0].name;
    std::fs::write(home.path().join(".latchfs/append").join(name), "").expect("write");
    let done = trimmed(&root, &store).expect("trim");
    assert_eq!((done[0].length, done[0].lost), (4, 4));
    assert_eq!(std::fs::read(home.path().join("f")).expect("read"), b"old ");
}

#[test]
fn a_shortened_log_knows_what_comes_after_it() {
    let (home, root, store) = scene();
    let mut log = interrupted(home.path(), &store, b"old ", &[b"one "]);
    let from = log.length();
    let file = File::open(home.path().join("f")).expect("open");
    let mut append = File::options()
        .append(true)
        .open(home.path().join("f"))
        .expect("open");
    std::io::Write::write_all(&mut append, b"two ").expect("append");
    log.announce(Entry {
        end: 12,
        crc: crc32fast::hash(b"two "),
    })
    .expect("announce");
    log.stays();
    log.shorten(&store, &file, &["f".into()], (8, from))
        .expect("shorten");
    assert_eq!(store.append().list().expect("list").len(), 1);
    std::io::Write::write_all(&mut append, b"thr").expect("append");
    log.announce(Entry {
        end: 18,
        crc: crc32fast::hash(b"three "),
    })
    .expect("announce");
    let done = trimmed(&root, &store).expect("trim");
    assert_eq!((done[0].length, done[0].lost), (12, 3));
}

#[test]
fn a_log_that_came_back_does_not_undo_what_a_later_one_knows() {
    let (home, root, store) = scene();
    interrupted(home.path(), &store, b"old ", &[b"one "]);
    let file = File::options()
        .append(true)
        .read(true)
        .open(home.path().join("f"))
        .expect("open");
    let mut later = AppendLog::begin(&store, &file, &["f".into()], 8).expect("a log");
    later
        .announce(Entry {
            end: 12,
            crc: crc32fast::hash(b"two "),
        })
        .expect("announce");
    std::io::Write::write_all(&mut &file, b"two ").expect("append");
    later.stays();
    assert_eq!(trimmed(&root, &store), Ok(vec![]));
    assert_eq!(
        std::fs::read(home.path().join("f")).expect("read"),
        b"old one two "
    );
}

#[test]
fn a_damaged_log_stops_nothing() {
    let (home, root, store) = scene();
    std::fs::write(home.path().join("f"), "x").expect("write");
    for (name, text) in [
        ("garbage", "x"),
        ("1_b2_3_4_5", "y"),
        ("9_u0_0_0_1", "latchap1\u{0}"),
    ] {
        std::fs::write(home.path().join(".latchfs/append").join(name), text).expect("write");
    }
    assert_eq!(trimmed(&root, &store), Ok(vec![]));
    assert!(store.append().list().expect("list").is_empty());
}

#[test]
fn what_was_edited_behind_a_dead_daemon_is_not_lost() {
    let (home, root, store) = scene();
    let path = home.path().join("f");
    let edited = b"edited, and shorter";
    interrupted(
        home.path(),
        &store,
        b"",
        &[b"one record, longer than the edit"],
    );
    std::fs::write(&path, edited).expect("write");
    // At once, as a record that was cut off by the daemon's death would be.
    let done = trimmed(&root, &store).expect("trim");
    assert_eq!((done[0].length, done[0].lost), (0, 19));
    let kept = store.keeper().kept().list().expect("a list");
    let [tail] = &*kept else { panic!("{kept:?}") };
    assert_eq!(tail.record.path, "/f.tail");
    let mut content = Vec::new();
    let mut data = store.keeper().kept().open(&tail.id).expect("open");
    data.read_to_end(&mut content).expect("read");
    assert_eq!(content, edited);
    assert_eq!(store.tmp().list().expect("a list").len(), 0);
    // Later: then it can be no record.
    interrupted(
        home.path(),
        &store,
        b"",
        &[b"one record, longer than the edit"],
    );
    std::fs::write(&path, edited).expect("write");
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
    let file = File::options().append(true).open(&path).expect("open");
    file.set_modified(later).expect("utimes");
    let done = trimmed(&root, &store).expect("trim");
    assert!(done[0].left.is_some(), "{done:?}");
    assert_eq!(std::fs::read(&path).expect("read"), edited);
}
