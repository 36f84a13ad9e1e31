//! Changes made directly in BACKING, behind the mount's back (S4): noticed by commits and by
//! lookups, and never overwritten silently.

#[path = "../common/mod.rs"]
mod common;

mod commit;
mod lookup;
mod own;
mod stress;

use common::{Mount, Options, User, options};
use std::fs;

const BOTH: [User; 2] = [User::Root, User::Ordinary];

/// The two rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Refuse,
    Win,
}

/// How to mount with one of them; the configuration file lives as long as the first of the pair.
fn ruled(rule: Rule, user: User) -> (tempfile::NamedTempFile, Options) {
    use std::io::Write;
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    let word = match rule {
        Rule::Refuse => "refuse",
        Rule::Win => "win",
    };
    writeln!(file, "on_conflict = \"{word}\"").expect("write");
    fs::set_permissions(
        file.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o644),
    )
    .expect("chmod");
    let arg = format!("--config={}", file.path().display());
    (file, options().user(user).arg(arg))
}

/// Runs a script as the user who mounts, in BACKING.
fn behind(mount: &Mount, script: &str) {
    let mut command = mount.command("bash");
    command.arg("-euc").arg(script).current_dir(mount.backing());
    let output = common::finish(command.stdin(std::process::Stdio::null()));
    common::successful(&format!("behind: {script}"), &output);
}

/// What is kept aside: the contents.
fn kept(mount: &Mount) -> Vec<String> {
    let names = mount.store("kept");
    let data = names.iter().filter(|name| name.ends_with(".data"));
    let path = |name: &String| mount.behind(".latchfs/kept").join(name);
    let mut all: Vec<_> = data
        .map(|name| fs::read_to_string(path(name)).expect("a kept version"))
        .collect();
    all.sort();
    all
}
