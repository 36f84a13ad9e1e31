//! `latchfs rules`: which rule gives a file what.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Serialize;

use super::args::RulesArgs;
use super::configured::Configured;
use super::exit::{Failure, complain, shell_word};
use super::output::{print_json, say};
use super::served::{self, Served};
use crate::rules::{Defaults, Matched, Origin, Settings, Validation};
use crate::show::printable;

/// One setting of a file.
#[derive(Debug, Serialize)]
struct Setting {
    value: String,
    /// Where it comes from.
    from: String,
}

/// A file, and all its settings.
#[derive(Debug, Serialize)]
struct Described {
    /// Within the mount.
    path: PathBuf,
    /// By their names in the configuration file.
    settings: BTreeMap<&'static str, Setting>,
}

/// Says for each path how it is treated, and why.
pub(super) fn run(args: &RulesArgs) -> Result<(), Failure> {
    let mut all: Vec<Described> = Vec::new();
    // Mostly they are all of one mount.
    let mut last: Option<(Configured, Served)> = None;
    let mut told = HashSet::new();
    for path in &args.paths {
        let served = served::find(path)?;
        let within = within(path, &served)?;
        if !served.is_known() && told.insert(served.backing.clone()) {
            complain(&format!(
                "{} was never mounted: what is in it is taken for files of a mount of it",
                printable(&served.backing)
            ));
        }
        let configured = match last.take() {
            Some((known, of)) if of.backing == served.backing && of.daemon == served.daemon => {
                known
            }
            _ => Configured::of(&served, args.by.config.as_deref())?,
        };
        all.push(describe(&within, &configured));
        last = Some((configured, served));
    }
    if args.by.json {
        return print_json(&all);
    }
    for Described { path, settings } in all {
        say(printable(Path::new("/").join(path)));
        for (name, Setting { value, from }) in settings {
            say(format!("  {name:<13} {value:<8}  {}", printable(from)));
        }
    }
    Ok(())
}

fn within(path: &Path, served: &Served) -> Result<PathBuf, Failure> {
    if served.rest.as_os_str().is_empty() {
        let message = format!(
            "{} is a directory to be mounted; name a file in it",
            shell_word(path)
        );
        return Err(Failure::usage(message));
    }
    Ok(served.rest.clone())
}

fn describe(path: &Path, configured: &Configured) -> Described {
    let matching = configured.file.rules.matching(path);
    let place = match &configured.path {
        Some(path) => path.display().to_string(),
        None => String::new(),
    };
    let first = |value: &dyn Fn(&Settings) -> Option<String>| {
        let mut rules = matching.iter();
        rules.find_map(|matched| {
            let value = value(&matched.rule.settings)?;
            let from = origin(matched);
            Some(Setting { value, from })
        })
    };
    let by_option = |value: Option<String>| {
        let from = String::from("option of latchfs mount");
        value.map(|value| Setting { value, from })
    };
    let by_file = |value: Option<String>| {
        let from = place.clone();
        value.map(|value| Setting { value, from })
    };
    let default = |value: String| Setting {
        value,
        from: String::from("default"),
    };
    let time = |time| humantime::format_duration(time).to_string();
    let (file, said) = (&configured.file, &configured.overrides);
    let built_in = Defaults::default();
    let mut settings = BTreeMap::new();
    let policy = first(&|s| s.policy.map(|policy| format!("{policy:?}").to_lowercase()));
    let unchecked = matches!(
        configured.file.rules.settings(path).validate,
        None | Some(Validation::None)
    );
    if policy.is_none() && unchecked {
        let value = String::from("append");
        let from = String::from("default of opens with O_APPEND");
        settings.insert("policy_append", Setting { value, from });
    }
    let policy = policy.unwrap_or_else(|| default(String::from("atomic")));
    settings.insert("policy", policy);
    settings.insert(
        "validate",
        first(&|s| s.validate.as_ref().map(check)).unwrap_or_else(|| default(String::from("none"))),
    );
    let mut of_mount = |name, ruled: Option<Setting>, option, in_file, built_in| {
        let setting = ruled
            .or_else(|| by_option(option))
            .or_else(|| by_file(in_file));
        settings.insert(name, setting.unwrap_or_else(|| default(built_in)));
    };
    of_mount(
        "lock_timeout",
        first(&|s| s.lock_timeout.map(time)),
        said.lock_timeout.map(time),
        file.lock_timeout.map(time),
        time(built_in.lock_timeout),
    );
    of_mount(
        "readers",
        first(&|s| s.readers.map(word)),
        said.readers.map(word),
        file.readers.map(word),
        word(built_in.readers),
    );
    of_mount(
        "durability",
        first(&|s| s.durability.map(word)),
        said.durability.map(word),
        file.durability.map(word),
        word(built_in.durability),
    );
    of_mount(
        "on_conflict",
        first(&|s| s.on_conflict.map(word)),
        None,
        file.on_conflict.map(word),
        word(built_in.on_conflict),
    );
    Described {
        path: path.to_owned(),
        settings,
    }
}

fn origin(matched: &Matched) -> String {
    let glob = matched.glob;
    match &matched.rule.origin {
        Origin::BuiltIn => format!("built-in rule for {glob}"),
        Origin::File(path, line) => format!("{}:{line}: rule for {glob}", path.display()),
    }
}

fn check(validation: &Validation) -> String {
    match validation {
        Validation::None => String::from("none"),
        Validation::Json => String::from("json"),
        Validation::JsonLines => String::from("jsonl"),
        Validation::Csv => String::from("csv"),
        Validation::Command { command, timeout } => {
            let timeout = humantime::format_duration(*timeout);
            format!("{} (within {timeout})", command.join(" "))
        }
    }
}

fn word(value: impl ValueEnum) -> String {
    super::plan::name_of(value)
}
