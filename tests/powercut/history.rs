//! What the workload has told, and what may be found after a power cut.
//!
//! The marks (NAME is a path below the root of the disk's own part: BACKING, or `bare/` for the controls):
//!
//! ```text
//! first NAME V R           it is there from the start
//! begin NAME V R           from here on it can be version V with R records after it
//! end NAME V R HOW         a call has returned that makes it so: `commit` (close or fsync of a writer),
//!                          `rewrite` (the same of a file that keeps its inode), `append` (close after
//!                          records), `fsync` (of an append descriptor)
//! moving TMP NAME V R      a rename is about to be called; moved: it has returned
//! removing NAME            an unlink; removed
//! syncing DIR              an fsync of a directory; synced
//! ```
//!
//! What a power cut at a place in the log may leave of a file: nothing older than the last that was
//! acknowledged for good by then, nothing that had not begun. What docs/semantics.md acknowledges for good
//! depends on the durability: see [`History::new`].

use crate::log::Entry;
use latchfs::config::Durability;
use std::collections::BTreeMap;

/// Where the controls work.
pub const BARE: &str = "bare/";

/// What a name can be: a version and the number of records after it; `None`: not there.
pub type State = Option<(u64, u64)>;

/// A file that gets a new state.
#[derive(Debug)]
struct Event {
    state: State,
    /// Where in the log it begins.
    begin: usize,
    /// Where the call had returned, if it did not make it durable itself: what makes the directory
    /// durable later makes this so, too.
    returned: Option<usize>,
    /// From where on it is there for good.
    durable: Option<usize>,
    /// It went to another name: to this event of that.
    moved_to: Option<(String, usize)>,
}

impl Event {
    fn new(state: State, begin: usize) -> Self {
        Self {
            state,
            begin,
            returned: None,
            durable: None,
            moved_to: None,
        }
    }
}

/// All that was told.
#[derive(Debug, Default)]
pub struct History {
    names: BTreeMap<String, Vec<Event>>,
    /// What made the entries of a directory durable: where it began, and where it had returned.
    settled: Vec<(String, usize, usize)>,
}

/// What is wrong with a file.
#[derive(Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It is something that it never was, or not yet.
    Unknown,
    /// It is something that it was before the last acknowledged state.
    Older,
    /// It is not there.
    Missing,
}

impl History {
    /// Reads the marks of a log. With durability `full` a close makes its version durable; with `rename`
    /// only an fsync does, of an append descriptor or of the directory; with `none`, nothing.
    pub fn new(log: &[Entry], durability: Durability) -> Self {
        let mut history = Self::default();
        for (at, entry) in log.iter().enumerate() {
            if let Entry::Mark(mark) = entry {
                let words: Vec<&str> = mark.split(' ').collect();
                history
                    .note(at, &words, durability)
                    .unwrap_or_else(|| panic!("not a mark: {mark:?}"));
            }
        }
        history.settle();
        history
    }

    fn note(&mut self, at: usize, words: &[&str], durability: Durability) -> Option<()> {
        let state =
            |v: &str, r: &str| -> Option<State> { Some(Some((v.parse().ok()?, r.parse().ok()?))) };
        match *words {
            ["first", name, v, r] => {
                let mut event = Event::new(state(v, r)?, 0);
                event.durable = Some(0);
                self.names.insert(name.to_owned(), vec![event]);
            }
            ["begin", name, v, r] => drop(self.begin(name, state(v, r)?, at)),
            ["end", name, v, r, how] => {
                let event = self.find(name, state(v, r)?)?;
                let begin = event.begin;
                event.returned = Some(at);
                // The controls acknowledge as if they were what latchfs is.
                let durability = match name.starts_with(BARE) {
                    true => Durability::Full,
                    false => durability,
                };
                let durable = match durability {
                    Durability::Full => true,
                    Durability::Rename => how == "fsync",
                    Durability::None => false,
                };
                event.durable = durable.then_some(at);
                if durability == Durability::Full && how == "commit" {
                    self.settled.push((directory(name).to_owned(), begin, at));
                }
            }
            ["moving", from, to, v, r] => {
                self.begin(to, state(v, r)?, at);
                let index = self.names[to].len() - 1;
                self.begin(from, None, at).moved_to = Some((to.to_owned(), index));
            }
            ["moved", from, to, v, r] => {
                self.find(to, state(v, r)?)?.returned = Some(at);
                self.find(from, None)?.returned = Some(at);
            }
            ["removing", name] => drop(self.begin(name, None, at)),
            ["removed", name] => self.find(name, None)?.returned = Some(at),
            ["syncing", dir] => self.settled.push((dir.to_owned(), at, usize::MAX)),
            ["synced", dir] => {
                let mut calls = self.settled.iter_mut().rev();
                calls.find(|call| call.0 == dir && call.2 == usize::MAX)?.2 = at;
            }
            _ => return None,
        }
        Some(())
    }

    fn begin(&mut self, name: &str, state: State, begin: usize) -> &mut Event {
        let events = self.names.entry(name.to_owned()).or_insert_with(|| {
            let mut absent = Event::new(None, 0);
            absent.durable = Some(0);
            vec![absent]
        });
        events.push(Event::new(state, begin));
        events.last_mut().expect("it was pushed")
    }

    fn find(&mut self, name: &str, state: State) -> Option<&mut Event> {
        let mut events = self.names.get_mut(name)?.iter_mut().rev();
        events.find(|event| event.state == state)
    }

    /// What returned before the directory was made durable is durable from then on.
    fn settle(&mut self) {
        for (name, events) in &mut self.names {
            let in_dir = |call: &&(String, usize, usize)| call.0 == directory(name);
            let calls: Vec<_> = self.settled.iter().filter(in_dir).collect();
            for event in events.iter_mut().filter(|event| event.durable.is_none()) {
                let Some(returned) = event.returned else {
                    continue;
                };
                let later = calls.iter().filter(|call| call.1 > returned);
                event.durable = later.map(|call| call.2).min().filter(|at| *at < usize::MAX);
            }
        }
    }

    /// Checks what was found after a power cut after so many entries of the log. Tells what is wrong, by
    /// name; names that were never told are not judged.
    pub fn check(&self, position: usize, found: &BTreeMap<String, State>) -> Vec<(String, Wrong)> {
        let mut wrong = Vec::new();
        for (name, events) in &self.names {
            let state = found.get(name).copied().flatten();
            if let Err(what) = self.check_one(events, position, state, found) {
                wrong.push((name.clone(), what));
            }
        }
        wrong
    }

    fn check_one(
        &self,
        events: &[Event],
        position: usize,
        state: State,
        found: &BTreeMap<String, State>,
    ) -> Result<(), Wrong> {
        let least = last(events, |event| {
            event.durable.is_some_and(|at| at < position)
        })
        .unwrap_or(0);
        // Nothing has begun: a file that is made later.
        let most = last(events, |event| event.begin < position).unwrap_or(0);
        let allowed = least..=most;
        let Some(index) = allowed.clone().rev().find(|at| events[*at].state == state) else {
            let before = events[..least].iter().any(|event| event.state == state);
            return Err(match (state, before) {
                (None, _) => Wrong::Missing,
                (_, true) => Wrong::Older,
                (_, false) => Wrong::Unknown,
            });
        };
        // Moved, and nowhere else it can be absent.
        let other = allowed.filter(|at| events[*at].state == state).count() > 1;
        if let (Some((to, least)), false) = (&events[index].moved_to, other) {
            let there = found.get(to).copied().flatten();
            let rest = &self.names[to][*least..];
            if !rest.iter().any(|event| event.state == there) {
                return Err(Wrong::Missing);
            }
        }
        Ok(())
    }

    /// What was told of a name at all?
    pub fn knows(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }
}

fn last(events: &[Event], what: impl Fn(&Event) -> bool) -> Option<usize> {
    events.iter().rposition(what)
}

fn directory(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(directory, _)| directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(marks: &[&str], durability: Durability) -> History {
        let entries = marks.iter().map(|mark| match *mark {
            "flush" => Entry::Flush,
            mark => Entry::Mark(mark.to_owned()),
        });
        History::new(&entries.collect::<Vec<_>>(), durability)
    }

    fn check(history: &History, position: usize, found: &[(&str, State)]) -> Vec<(String, Wrong)> {
        let found = found.iter().map(|(name, state)| (name.to_string(), *state));
        history.check(position, &found.collect())
    }

    const VERSION: &[&str] = &[
        "first a 0 0",
        "begin a 1 0",
        "flush",
        "end a 1 0 commit",
        "flush",
    ];

    #[test]
    fn an_acknowledged_version_may_not_be_lost_and_none_comes_before_it_began() {
        let full = history(VERSION, Durability::Full);
        for (position, version, wrong) in [
            (1, 0, None),
            (1, 1, Some(Wrong::Unknown)),
            (3, 0, None),
            (3, 1, None),
            (4, 0, Some(Wrong::Older)),
            (5, 1, None),
            (5, 2, Some(Wrong::Unknown)),
        ] {
            let found = check(&full, position, &[("a", Some((version, 0)))]);
            let wrong: Vec<_> = wrong.into_iter().map(|w| ("a".to_owned(), w)).collect();
            assert_eq!(found, wrong, "{position} {version}");
        }
        let missing = vec![("a".to_owned(), Wrong::Missing)];
        assert_eq!(check(&full, 1, &[]), missing);
        let rename = history(VERSION, Durability::Rename);
        assert_eq!(check(&rename, 5, &[("a", Some((0, 0)))]), []);
    }

    #[test]
    fn a_rename_is_durable_when_its_directory_is() {
        let marks = [
            "first d/a 0 0",
            "begin d/t 1 0",
            "end d/t 1 0 commit",
            "moving d/t d/a 1 0",
            "moved d/t d/a 1 0",
            "syncing d",
            "synced d",
        ];
        let history = history(&marks, Durability::Full);
        let old = [("d/a", Some((0, 0))), ("d/t", Some((1, 0)))];
        let new = [("d/a", Some((1, 0)))];
        let neither = [("d/a", Some((0, 0)))];
        assert_eq!(check(&history, 6, &old), []);
        assert_eq!(check(&history, 6, &new), []);
        let lost = vec![("d/t".to_owned(), Wrong::Missing)];
        assert_eq!(check(&history, 6, &neither), lost);
        assert_eq!(check(&history, 7, &new), []);
        assert_eq!(check(&history, 7, &old).len(), 2);
    }

    #[test]
    fn a_removed_file_stays_away_once_something_later_is_durable_in_its_directory() {
        let marks = [
            "begin a 1 0",
            "end a 1 0 commit",
            "removing a",
            "removed a",
            "begin b 1 0",
            "end b 1 0 commit",
        ];
        let history = history(&marks, Durability::Full);
        let b = ("b", Some((1, 0)));
        assert_eq!(check(&history, 4, &[("a", Some((1, 0)))]), []);
        assert_eq!(check(&history, 4, &[]), []);
        assert_eq!(check(&history, 6, &[b]), []);
        let back = vec![("a".to_owned(), Wrong::Older)];
        assert_eq!(check(&history, 6, &[("a", Some((1, 0))), b]), back);
    }
}
