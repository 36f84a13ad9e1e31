//! Which files get what: rules chosen by a file's path within the mount, the first match wins.

use globset::{Glob, GlobSet, GlobSetBuilder};
use std::path::Path;

/// How a file is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Policy {
    /// Writers take turns, and a version becomes the file when it is closed.
    #[default]
    Atomic,
    /// Opened as it is in BACKING: every write is seen by everyone at once.
    Direct,
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
];

/// An ordered list of rules.
#[derive(Clone, Debug)]
pub struct Rules {
    globs: GlobSet,
    /// The policy of each glob.
    policies: Vec<Policy>,
}

impl Default for Rules {
    /// The built-in rules: lock files, pid files, databases, disk images and editors' swap files
    /// are direct.
    fn default() -> Self {
        let atomic = LOCKFILES_OF_PACKAGE_MANAGERS.iter();
        let direct = SHARED.iter();
        let rules = atomic
            .map(|glob| (*glob, Policy::Atomic))
            .chain(direct.map(|glob| (*glob, Policy::Direct)));
        // A test makes these very rules, so this can't fail elsewhere.
        Self::new(rules).unwrap_or_else(|_| Self::all_atomic())
    }
}

impl Rules {
    /// Rules from globs as gitignore(5) has them: one without a slash matches the last component
    /// of a path, one with a slash the whole path from the root of the mount.
    ///
    /// # Errors
    /// A glob that is none.
    pub fn new<'a>(
        rules: impl IntoIterator<Item = (&'a str, Policy)>,
    ) -> Result<Self, globset::Error> {
        let mut globs = GlobSetBuilder::new();
        let mut policies = Vec::new();
        for (glob, policy) in rules {
            let anywhere;
            let pattern = if glob.contains('/') {
                glob.trim_start_matches('/')
            } else {
                anywhere = format!("**/{glob}");
                &anywhere
            };
            globs.add(Glob::new(pattern)?);
            policies.push(policy);
        }
        let globs = globs.build()?;
        Ok(Self { globs, policies })
    }

    /// No rules: every file is atomic.
    pub fn all_atomic() -> Self {
        Self {
            globs: GlobSet::empty(),
            policies: Vec::new(),
        }
    }

    /// The policy of a file, by its path relative to the root of the mount.
    pub fn policy(&self, path: &Path) -> Policy {
        let first = self.globs.matches(path).into_iter().min();
        let policy = first.and_then(|index| self.policies.get(index));
        policy.copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(path: &str) -> Policy {
        Rules::default().policy(Path::new(path))
    }

    #[test]
    fn the_built_in_rules_are_all_valid() {
        let rules = SHARED.iter().map(|glob| (*glob, Policy::Direct));
        let rules = Rules::new(rules).expect("all are globs");
        assert_eq!(rules.policies.len(), SHARED.len());
        let built_in = SHARED.len() + LOCKFILES_OF_PACKAGE_MANAGERS.len();
        assert_eq!(Rules::default().policies.len(), built_in);
    }

    #[test]
    fn the_documents_list_every_built_in_rule() {
        let text = include_str!("../docs/semantics.md");
        for glob in LOCKFILES_OF_PACKAGE_MANAGERS.iter().chain(SHARED) {
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
    fn the_first_rule_that_matches_wins() {
        let rules = Rules::new([
            ("/safe/**", Policy::Atomic),
            ("*.log", Policy::Direct),
            ("logs/*", Policy::Direct),
        ])
        .expect("globs");
        let policy = |path: &str| rules.policy(Path::new(path));
        assert_eq!(policy("safe/a.log"), Policy::Atomic);
        assert_eq!(policy("unsafe/a.log"), Policy::Direct);
        assert_eq!(policy("logs/a"), Policy::Direct);
        assert_eq!(policy("deep/logs/a"), Policy::Atomic);
    }

    #[test]
    fn without_rules_every_file_is_atomic() {
        assert_eq!(
            Rules::all_atomic().policy(Path::new("a.db")),
            Policy::Atomic
        );
    }
}
