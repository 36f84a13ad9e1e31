//! The configuration file: TOML with settings for the whole mount, and `[[rule]]` tables.

use super::{Origin, Rule, Rules, Settings, Validation};
use bytesize::ByteSize;
use serde::{Deserialize, Deserializer, de::Error as _};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::Spanned;

use crate::config::{Durability, OnConflict, Readers, parse_duration};
use crate::rules::Policy;

/// How long a program of `validate_command` may take if nothing is said.
const VALIDATE_TIMEOUT: Duration = Duration::from_secs(10);
/// No configuration file is longer, in bytes.
const LONGEST: u64 = 1 << 20;

/// What a configuration file says.
#[derive(Debug, Default)]
pub struct Configuration {
    /// The rules: those of the file, then the built-in ones.
    pub rules: Rules,
    /// The longest an open waits.
    pub lock_timeout: Option<Duration>,
    /// What opens for reading do while a version is being written.
    pub readers: Option<Readers>,
    /// How much a commit waits for the disk.
    pub durability: Option<Durability>,
    /// What a commit does that meets a change made behind the mount's back.
    pub on_conflict: Option<OnConflict>,
    /// How long versions that did not become the file are kept.
    pub kept_max_age: Option<Duration>,
    /// How many bytes of them are kept.
    pub kept_max_size: Option<u64>,
}

/// Why a configuration file can't be used: one line that says where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// It can't be read.
    #[error("the configuration file {0} cannot be read: {1}")]
    Unreadable(PathBuf, std::io::Error),
    /// It must not be believed, or can't be read.
    #[error("the configuration file {path} cannot be used: {why}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// It is not what was expected.
    #[error("{path}:{line}: {text}: {problem}")]
    Wrong {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What stands there.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default, deserialize_with = "wait")]
    lock_timeout: Option<Duration>,
    readers: Option<Readers>,
    durability: Option<Durability>,
    on_conflict: Option<OnConflict>,
    #[serde(default, deserialize_with = "duration")]
    kept_max_age: Option<Duration>,
    #[serde(default, deserialize_with = "size")]
    kept_max_size: Option<u64>,
    #[serde(default)]
    rule: Vec<Spanned<Table>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(rename = "match")]
    globs: Spanned<Globs>,
    policy: Option<Policy>,
    validate: Option<Spanned<BuiltIn>>,
    validate_command: Option<Spanned<Vec<String>>>,
    #[serde(default, deserialize_with = "wait")]
    validate_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "wait")]
    lock_timeout: Option<Duration>,
    readers: Option<Readers>,
    durability: Option<Durability>,
    on_conflict: Option<OnConflict>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a glob, or a list of globs")]
enum Globs {
    One(String),
    Several(Vec<String>),
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum BuiltIn {
    Json,
    Jsonl,
    Csv,
    None,
}

/// A text, or a number that stands for itself.
#[derive(Deserialize)]
#[serde(untagged)]
enum Quantity {
    Text(String),
    Whole(i64),
    Part(f64),
    Other(toml::Value),
}

impl Quantity {
    fn text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Whole(number) => number.to_string(),
            Self::Part(number) => number.to_string(),
            Self::Other(value) => value.to_string(),
        }
    }
}

fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text = Quantity::deserialize(from)?.text();
    parse_duration(&text).map(Some).map_err(D::Error::custom)
}

fn size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let text = Quantity::deserialize(from)?.text();
    let size = text.parse::<ByteSize>();
    size.map(|size| Some(size.as_u64()))
        .map_err(|_| D::Error::custom("expected a size such as 500 MB, 2 GiB or a number of bytes"))
}

fn wait<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    match duration(from)? {
        Some(Duration::ZERO) => Err(D::Error::custom("the time must be longer than 0")),
        wait => Ok(wait),
    }
}

/// A problem, and where it is in the text.
struct Problem {
    at: usize,
    text: String,
}

/// Reads a configuration file.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn read(path: &Path) -> Result<Configuration, ConfigurationError> {
    let text =
        read_text(path).map_err(|error| ConfigurationError::Unreadable(path.to_owned(), error))?;
    parse_file(&text, path)
}

/// Reads a text file, and waits for nobody: the daemon that does has a mount to serve.
fn read_text(path: &Path) -> std::io::Result<String> {
    let mut options = std::fs::OpenOptions::new();
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = options.read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is no regular file"));
    }
    let mut text = String::new();
    file.take(LONGEST + 1).read_to_string(&mut text)?;
    match text.len() as u64 > LONGEST {
        true => Err(std::io::Error::other("it is too long")),
        false => Ok(text),
    }
}

/// Reads the text of a configuration file; `path` is for messages.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn parse_file(text: &str, path: &Path) -> Result<Configuration, ConfigurationError> {
    parse(text, path).map_err(|problem| {
        let before = text.get(..problem.at).unwrap_or(text);
        let line = before.matches('\n').count();
        ConfigurationError::Wrong {
            path: path.to_owned(),
            line: line + 1,
            text: text.lines().nth(line).unwrap_or_default().trim().to_owned(),
            problem: problem.text,
        }
    })
}

fn parse(text: &str, path: &Path) -> Result<Configuration, Problem> {
    let document: Document = toml::from_str(text).map_err(|error| Problem {
        at: error.span().map_or(0, |span| span.start),
        text: in_words(error.message()),
    })?;
    let mut rules = Vec::new();
    for table in document.rule {
        let line = text[..table.span().start].matches('\n').count() + 1;
        let origin = Origin::File(path.to_owned(), line);
        rules.push(rule(table.into_inner(), origin)?);
    }
    Ok(Configuration {
        rules: Rules::with_built_in(rules).map_err(|error| Problem {
            at: 0,
            text: error.to_string(),
        })?,
        lock_timeout: document.lock_timeout,
        readers: document.readers,
        durability: document.durability,
        on_conflict: document.on_conflict,
        kept_max_age: document.kept_max_age,
        kept_max_size: document.kept_max_size,
    })
}

/// What the parser says, in the words of a configuration file.
fn in_words(said: &str) -> String {
    match said {
        "invalid type: map, expected a sequence" => String::from("a rule begins with [[rule]]"),
        _ => said
            .replace('\n', ", ")
            .replace("expected a sequence", "expected a list: [\"...\", ...]"),
    }
}

fn rule(table: Table, origin: Origin) -> Result<Rule, Problem> {
    let at = table.globs.span().start;
    let globs = match table.globs.into_inner() {
        Globs::One(glob) => vec![glob],
        Globs::Several(globs) => globs,
    };
    if globs.is_empty() {
        let text = String::from("expected at least one glob");
        return Err(Problem { at, text });
    }
    for glob in &globs {
        if glob.is_empty() {
            let text = String::from("expected a glob; `*` matches every file");
            return Err(Problem { at, text });
        }
        if let Err(error) = super::compile(glob) {
            let text = format!("{glob} is no glob: {}", error.kind());
            return Err(Problem { at, text });
        }
    }
    if table.validate_timeout.is_some() && table.validate_command.is_none() {
        let text = String::from("validate_timeout is for a validate_command, and there is none");
        return Err(Problem { at, text });
    }
    let timeout = table.validate_timeout.unwrap_or(VALIDATE_TIMEOUT);
    let validate = match (table.validate, table.validate_command) {
        (Some(_), Some(command)) => {
            return Err(Problem {
                at: command.span().start,
                text: String::from("a rule has either validate or validate_command"),
            });
        }
        (None, Some(command)) if command.get_ref().is_empty() => {
            return Err(Problem {
                at: command.span().start,
                text: String::from("expected a program and its arguments"),
            });
        }
        (None, Some(command)) => Some(Validation::Command {
            command: command.into_inner(),
            timeout,
        }),
        (Some(built_in), None) => Some(match built_in.into_inner() {
            BuiltIn::Json => Validation::Json,
            BuiltIn::Jsonl => Validation::JsonLines,
            BuiltIn::Csv => Validation::Csv,
            BuiltIn::None => Validation::None,
        }),
        (None, None) => None,
    };
    let settings = Settings {
        policy: table.policy,
        validate,
        lock_timeout: table.lock_timeout,
        readers: table.readers,
        durability: table.durability,
        on_conflict: table.on_conflict,
    };
    if settings == Settings::default() {
        let text = String::from("the rule sets nothing");
        return Err(Problem { at, text });
    }
    Ok(Rule {
        globs,
        settings,
        origin,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Configuration {
        match parse(text, Path::new("test.toml")) {
            Ok(configuration) => configuration,
            Err(problem) => panic!("{}", problem.text),
        }
    }

    fn complaint(text: &str) -> String {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("config.toml");
        std::fs::write(&path, text).expect("write");
        let error = read(&path).expect_err("it is wrong").to_string();
        let prefix = format!("{}:", path.display());
        error.strip_prefix(&prefix).expect("the path").to_owned()
    }

    #[test]
    fn a_file_that_would_be_waited_for_or_never_ends_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let fifo = dir.path().join("fifo");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, mode, 0).expect("mkfifo");
        for path in [&*fifo, Path::new("/dev/zero"), dir.path()] {
            let said = read(path).expect_err("refused").to_string();
            assert!(said.contains("no regular file"), "{said}");
        }
        let long = dir.path().join("long");
        std::fs::write(&long, vec![b'#'; LONGEST as usize + 1]).expect("write");
        let said = read(&long).expect_err("refused").to_string();
        assert!(said.contains("too long"), "{said}");
    }

    #[test]
    fn a_file_sets_the_mount_and_has_rules() {
        let configuration = parsed(
            r#"
            lock_timeout = "30s"
            kept_max_size = "2 GiB"
            kept_max_age = 86400
            [[rule]]
            match = ["*.csv", "/raw/**"]
            validate = "csv"
            readers = "snapshot"
            [[rule]]
            match = "*.xml"
            validate_command = ["xmllint", "--noout", "-"]
            "#,
        );
        assert_eq!(configuration.lock_timeout, Some(Duration::from_secs(30)));
        assert_eq!(configuration.kept_max_size, Some(2 << 30));
        let of = |path: &str| configuration.rules.settings(Path::new(path));
        assert_eq!(of("raw/x.csv").validate, Some(Validation::Csv));
        assert_eq!(of("raw/x").readers, Some(Readers::Snapshot));
        assert_eq!(of("x.json").validate, Some(Validation::Json));
        let command = ["xmllint", "--noout", "-"].map(String::from).to_vec();
        let timeout = VALIDATE_TIMEOUT;
        assert_eq!(
            of("x.xml").validate,
            Some(Validation::Command { command, timeout })
        );
        let rules = configuration.rules.matching(Path::new("raw/x.csv"));
        assert_eq!(configuration.kept_max_age, Some(Duration::from_secs(86400)));
        let origin = Origin::File(PathBuf::from("test.toml"), 5);
        assert_eq!(rules[0].rule.origin, origin);
        assert_eq!(rules[0].glob, "*.csv");
    }

    #[test]
    fn a_rule_can_switch_a_built_in_one_off() {
        let rules = parsed("[[rule]]\nmatch = '*.json'\nvalidate = 'none'\n").rules;
        let settings = rules.settings(Path::new("a.json"));
        assert_eq!(settings.validate, Some(Validation::None));
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line_with_its_place_and_what_was_expected() {
        for (text, expected) in [
            (
                "[[rule]]\nmatch = '*'\npolicy = 'atomc'\n",
                "3: policy = 'atomc': unknown variant `atomc`, expected",
            ),
            (
                "[[rule]]\nmatch = '*'\npolcy = 'atomic'\n",
                "3: polcy = 'atomic': unknown field `polcy`, expected one of",
            ),
            (
                "lock_timeout = '0s'\n",
                "1: lock_timeout = '0s': the time must be longer",
            ),
            (
                "\nlock_timeout = 'x'\n",
                "2: lock_timeout = 'x': expected a time such as",
            ),
            (
                "[[rule]]\npolicy = 'direct'\n",
                "1: [[rule]]: missing field `match`",
            ),
            (
                "[[rule]]\nmatch = 7\n",
                "2: match = 7: expected a glob, or a list of globs",
            ),
            (
                "[[rule]]\nmatch = 'a[b'\n",
                "2: match = 'a[b': a[b is no glob: unclosed character class",
            ),
            (
                "[rule]\nmatch = 'a'\n",
                "1: [rule]: a rule begins with [[rule]]",
            ),
            (
                "[[rule]]\nmatch = ''\nvalidate = 'csv'\n",
                "2: match = '': expected a glob",
            ),
            (
                "[[rule]]\nmatch = 'a'\n",
                "2: match = 'a': the rule sets nothing",
            ),
            (
                "[[rule]]\nmatch = 'a'\nvalidate_timeout = '1s'\nvalidate = 'csv'\n",
                "2: match = 'a': validate_timeout is for",
            ),
            (
                "[[rule]]\nmatch = 'a'\nvalidate_command = 'xmllint'\n",
                "3: validate_command = 'xmllint': invalid type: string \"xmllint\", expected a list",
            ),
            (
                "lock_timeout = true\n",
                "1: lock_timeout = true: expected a time such as",
            ),
            (
                "kept_max_size = -1\n",
                "1: kept_max_size = -1: expected a size such as",
            ),
            (
                "[[rule]]\nmatch = []\n",
                "2: match = []: expected at least one glob",
            ),
            (
                "[[rule]]\nmatch = 'a'\nvalidate = 'json'\nvalidate_command = ['x']\n",
                "4: validate_command = ['x']: a rule has either",
            ),
            (
                "kept_max_size = 'much'\n",
                "1: kept_max_size = 'much': expected a size such as",
            ),
            ("lock_timeout = \n", "1: lock_timeout =: "),
        ] {
            let said = complaint(text);
            assert!(said.starts_with(expected), "{said}");
            assert!(!said.contains('\n'), "{said}");
        }
    }

    #[test]
    fn the_documents_have_every_key() {
        let text = include_str!("../../docs/configuration.md");
        let mut keys = 0;
        for unknown in ["zzz = 1\n", "[[rule]]\nmatch = '*'\nzzz = 1\n"] {
            let said = complaint(unknown);
            let (_, expected) = said.split_once("expected one of").expect("the keys");
            let all = expected.split('`').skip(1).step_by(2);
            for key in all.filter(|key| *key != "rule") {
                assert!(
                    text.contains(&format!("| `{key}`")) || text.contains(&format!(", `{key}`")),
                    "{key}"
                );
                keys += 1;
            }
        }
        assert!(keys > 12, "{keys}");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = read(Path::new("/nowhere/config.toml")).expect_err("it is missing");
        let error = error.to_string();
        assert!(error.starts_with("the configuration file /nowhere/config.toml cannot be read"));
    }
}
