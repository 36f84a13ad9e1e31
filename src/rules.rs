//! Which files get what: rules chosen by a file's path within the mount.
//!
//! For each setting the first rule that matches and sets it wins; what no rule sets is as the mount
//! has it. The rules of the configuration file ([`file`]) come first, then the built-in ones.

pub mod file;
pub mod find;
mod treatment;

pub use treatment::{Defaults, Treatment};

use crate::config::{Durability, OnConflict, Readers};
use globset::{Glob, GlobSet, GlobSetBuilder};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How a file is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Writers take turns, and a version becomes the file when it is closed.
    #[default]
    Atomic,
    /// Every write with `O_APPEND` is a record that becomes part of the file at once.
    Append,
    /// Opened as it is in BACKING: every write is seen by everyone at once.
    Direct,
}

/// What a version must be to become the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Validation {
    /// Anything.
    None,
    /// One JSON document.
    Json,
    /// A JSON document in every line.
    JsonLines,
    /// CSV, every record with as many fields as the first.
    Csv,
    /// What a program accepts that is given the version on its standard input: it exits with 0.
    Command {
        /// The program and its arguments.
        command: Vec<String>,
        /// How long it may take.
        timeout: Duration,
    },
}

impl Validation {
    /// What it asks for, in words.
    pub fn wanted(&self) -> &str {
        match self {
            Self::None => "anything",
            Self::Json => "valid JSON",
            Self::JsonLines => "valid JSON in every line",
            Self::Csv => "valid CSV",
            Self::Command { .. } => "accepted",
        }
    }
}

/// What the rules say of a file; `None` where they say nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// How it is treated.
    pub policy: Option<Policy>,
    /// What its versions must be.
    pub validate: Option<Validation>,
    /// The longest an open of it waits.
    pub lock_timeout: Option<Duration>,
    /// What an open for reading does while a version of it is being written.
    pub readers: Option<Readers>,
    /// How much a commit of it waits for the disk.
    pub durability: Option<Durability>,
    /// What a commit does that meets a change made behind the mount's back.
    pub on_conflict: Option<OnConflict>,
}

/// Where a rule comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// latchfs itself.
    BuiltIn,
    /// A configuration file, and the line in it.
    File(PathBuf, usize),
}

/// One rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// What it matches: globs as gitignore(5) has them. One without a slash matches the last
    /// component of a path, one with a slash the whole path from the root of the mount.
    pub globs: Vec<String>,
    /// What it sets.
    pub settings: Settings,
    /// Where it comes from.
    pub origin: Origin,
}

/// A rule that matches a path.
#[derive(Clone, Copy, Debug)]
pub struct Matched<'a> {
    /// The rule.
    pub rule: &'a Rule,
    /// The first of its globs that matches.
    pub glob: &'a str,
}

/// What the rules below call lock files, and are data all the same.
const LOCKFILES_OF_PACKAGE_MANAGERS: &[&str] = &[
    "Cargo.lock",
    "Gemfile.lock",
    "Pipfile.lock",
    "Podfile.lock",
    "bun.lock",
    "composer.lock",
    "deno.lock",
    "flake.lock",
    "mix.lock",
    "pdm.lock",
    "poetry.lock",
    "pubspec.lock",
    "uv.lock",
    "yarn.lock",
];

/// Files that several programs hold open and change at once, or that mean something only as long
/// as they are open.
const SHARED: &[&str] = &[
    // Locks and pid files.
    "*.lock",
    "*.lck",
    "*.lockfile",
    ".lock",
    "lock",
    "LOCK",
    "lockfile",
    ".cargo-lock",
    ".package-cache*",
    "*.pid",
    // Databases: SQLite with its companions, LMDB, Berkeley DB, TDB, Firebird.
    "*.db",
    "*.db3",
    "*.sqlite",
    "*.sqlite3",
    "*.s3db",
    "*.sdb",
    "*-journal",
    "*-wal",
    "*-shm",
    "*.mdb",
    "*.bdb",
    "*.tdb",
    "*.fdb",
    "__db.[0-9]*",
    // Disk images.
    "*.img",
    "*.qcow2",
    "*.vdi",
    "*.vmdk",
    // Editors' swap files.
    ".*.sw[a-z]",
    "*.swp",
    // Sockets, and what takes their place.
    "*.sock",
    "*.socket",
];

/// JSON by name, but with comments by custom, or of packages that bring broken ones on purpose, for
/// their tests.
const UNCHECKED_JSON: &[&str] = &[
    "tsconfig.json",
    "tsconfig.*.json",
    "jsconfig.json",
    "devcontainer.json",
    ".eslintrc.json",
    "**/.vscode/*.json",
    "**/node_modules/**",
    "**/site-packages/**",
];

/// An ordered list of rules.
#[derive(Clone, Debug)]
pub struct Rules {
    matcher: GlobSet,
    /// Which rule each glob of the matcher belongs to, and which of its globs it is.
    origins: Vec<(usize, usize)>,
    rules: Vec<Rule>,
}

impl Default for Rules {
    /// The built-in rules: lock files, pid files, databases, disk images and editors' swap files
    /// are direct, and what is called JSON must be.
    fn default() -> Self {
        // A test makes these very rules, so this can't fail elsewhere.
        Self::with_built_in(Vec::new()).unwrap_or_else(|_| Self::all_atomic())
    }
}

fn built_in() -> [Rule; 4] {
    let rule = |globs: &[&str], settings| Rule {
        globs: globs.iter().map(|glob| String::from(*glob)).collect(),
        settings,
        origin: Origin::BuiltIn,
    };
    let policy = |policy| Settings {
        policy: Some(policy),
        ..Settings::default()
    };
    let validate = |validation| Settings {
        validate: Some(validation),
        ..Settings::default()
    };
    [
        rule(LOCKFILES_OF_PACKAGE_MANAGERS, policy(Policy::Atomic)),
        rule(SHARED, policy(Policy::Direct)),
        rule(UNCHECKED_JSON, validate(Validation::None)),
        rule(&["*.json"], validate(Validation::Json)),
    ]
}

/// A glob of a rule, ready to match.
fn compile(glob: &str) -> Result<Glob, globset::Error> {
    match glob.contains('/') {
        true => Glob::new(glob.trim_start_matches('/')),
        false => Glob::new(&format!("**/{glob}")),
    }
}

impl Rules {
    /// Rules, the first the most important.
    ///
    /// # Errors
    /// A glob that is none.
    pub fn new(rules: Vec<Rule>) -> Result<Self, globset::Error> {
        let mut matcher = GlobSetBuilder::new();
        let mut origins = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            for (number, glob) in rule.globs.iter().enumerate() {
                matcher.add(compile(glob)?);
                origins.push((index, number));
            }
        }
        let matcher = matcher.build()?;
        Ok(Self {
            matcher,
            origins,
            rules,
        })
    }

    /// The same, with the built-in rules after them.
    ///
    /// # Errors
    /// As [`Rules::new`].
    pub fn with_built_in(mut rules: Vec<Rule>) -> Result<Self, globset::Error> {
        rules.extend(built_in());
        Self::new(rules)
    }

    /// No rules: every file is atomic.
    pub fn all_atomic() -> Self {
        Self {
            matcher: GlobSet::empty(),
            origins: Vec::new(),
            rules: Vec::new(),
        }
    }

    /// The rules that match a path relative to the root of the mount, in order.
    pub fn matching(&self, path: &Path) -> Vec<Matched<'_>> {
        let mut globs = self.matcher.matches(path);
        globs.sort_unstable();
        let mut matched: Vec<Matched<'_>> = Vec::new();
        let mut last = None;
        for (rule, glob) in globs.into_iter().map(|glob| self.origins[glob]) {
            if last != Some(rule) {
                last = Some(rule);
                let rule = &self.rules[rule];
                let glob = &rule.globs[glob];
                matched.push(Matched { rule, glob });
            }
        }
        matched
    }

    /// The programs that they have versions checked by.
    pub fn programs(&self) -> impl Iterator<Item = &str> {
        let commands = self
            .rules
            .iter()
            .filter_map(|rule| match &rule.settings.validate {
                Some(Validation::Command { command, .. }) => command.first(),
                _ => None,
            });
        commands.map(String::as_str)
    }

    /// What they say of a file.
    pub fn settings(&self, path: &Path) -> Settings {
        let mut all = Settings::default();
        for Matched { rule, .. } in self.matching(path) {
            let settings = &rule.settings;
            all.policy = all.policy.or(settings.policy);
            all.validate = all.validate.or_else(|| settings.validate.clone());
            all.lock_timeout = all.lock_timeout.or(settings.lock_timeout);
            all.readers = all.readers.or(settings.readers);
            all.durability = all.durability.or(settings.durability);
            all.on_conflict = all.on_conflict.or(settings.on_conflict);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy_in(rules: &Rules, path: &str) -> Policy {
        let settings = rules.settings(Path::new(path));
        settings.policy.unwrap_or_default()
    }

    fn policy(path: &str) -> Policy {
        policy_in(&Rules::default(), path)
    }

    fn rule(glob: &str, policy: Policy) -> Rule {
        let settings = Settings {
            policy: Some(policy),
            ..Settings::default()
        };
        Rule {
            globs: vec![glob.to_owned()],
            settings,
            origin: Origin::File(PathBuf::from("test"), 1),
        }
    }

    #[test]
    fn the_built_in_rules_are_all_valid() {
        let rules = Rules::with_built_in(Vec::new()).expect("all are globs");
        assert_eq!(rules.rules.len(), built_in().len());
        assert_eq!(Rules::default().rules.len(), built_in().len());
    }

    #[test]
    fn the_documents_list_every_built_in_rule() {
        let text = include_str!("../docs/semantics.md");
        let all = LOCKFILES_OF_PACKAGE_MANAGERS.iter();
        for glob in all.chain(SHARED).chain(UNCHECKED_JSON) {
            assert!(text.contains(&format!("`{glob}`")), "{glob}");
        }
    }

    #[test]
    fn databases_locks_pid_files_and_swap_files_are_direct() {
        for path in [
            "app.db",
            "deep/down/app.sqlite3",
            "app.sqlite3-wal",
            "app.db-shm",
            "history-journal",
            ".git/index.lock",
            "target/debug/.cargo-lock",
            "run/daemon.pid",
            "env/data.mdb",
            "disk.img",
            ".report.txt.swp",
            ".report.txt.swo",
            "run/app.sock",
        ] {
            assert_eq!(policy(path), Policy::Direct, "{path}");
        }
    }

    #[test]
    fn what_only_looks_like_them_is_atomic() {
        for path in [
            "final_rankings.json",
            "Cargo.lock",
            "web/yarn.lock",
            "app.db.bak",
            "app.db/notes.txt",
            "clock",
            "pid",
            "dbase.csv",
        ] {
            assert_eq!(policy(path), Policy::Atomic, "{path}");
        }
    }

    #[test]
    fn what_is_called_json_is_checked_but_for_what_is_none_by_custom() {
        let rules = Rules::default();
        let checked =
            |path: &str| rules.settings(Path::new(path)).validate == Some(Validation::Json);
        for path in ["final_rankings.json", "deep/down/package.json"] {
            assert!(checked(path), "{path}");
        }
        for path in [
            "tsconfig.json",
            "web/tsconfig.app.json",
            ".vscode/settings.json",
            "web/node_modules/resolve/test/malformed/package.json",
            "node_modules/x/package.json",
            "a.geojson",
        ] {
            assert!(!checked(path), "{path}");
        }
    }

    #[test]
    fn the_first_rule_that_matches_wins() {
        let rules = Rules::new(vec![
            rule("/safe/**", Policy::Atomic),
            rule("*.log", Policy::Direct),
            rule("logs/*", Policy::Direct),
        ])
        .expect("globs");
        let policy = |path: &str| policy_in(&rules, path);
        assert_eq!(policy("safe/a.log"), Policy::Atomic);
        assert_eq!(policy("unsafe/a.log"), Policy::Direct);
        assert_eq!(policy("logs/a"), Policy::Direct);
        assert_eq!(policy("deep/logs/a"), Policy::Atomic);
    }

    #[test]
    fn what_a_rule_does_not_set_a_later_one_may() {
        let slow = Settings {
            lock_timeout: Some(Duration::from_secs(60)),
            ..Settings::default()
        };
        let globs = vec![String::from("*.json")];
        let origin = Origin::File(PathBuf::from("test"), 1);
        let rules = Rules::with_built_in(vec![Rule {
            globs,
            settings: slow,
            origin,
        }])
        .expect("globs");
        let settings = rules.settings(Path::new("a.json"));
        assert_eq!(settings.lock_timeout, Some(Duration::from_secs(60)));
        assert_eq!(settings.validate, Some(Validation::Json));
        assert_eq!(settings.policy, None);
    }

    #[test]
    fn without_rules_every_file_is_atomic() {
        assert_eq!(policy_in(&Rules::all_atomic(), "a.db"), Policy::Atomic);
    }
}
