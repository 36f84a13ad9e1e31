//! Rules of a configuration file, on real mounts.

mod common;

use common::{Mount, Options, User, kill, options, text, wait_until};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

/// Whether a file is used directly: what its writer has not closed yet is in BACKING.
fn is_direct(mount: &Mount, name: &str) -> bool {
    let behind = mount.behind(name);
    let seen = mount.bash(&format!(
        ": > {name}; exec 3>{name}; echo partly >&3; cat {} 2>/dev/null || true",
        behind.display()
    ));
    seen == "partly\n"
}

/// A directory for configuration files, of the user who mounts.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
        Self(dir)
    }

    fn write(&self, name: &str, content: &str) -> std::path::PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
        fs::write(&path, content).expect("write");
        path
    }

    /// Options of a mount with this configuration file.
    fn with(&self, content: &str) -> Options {
        let path = self.write("latchfs.toml", content);
        options().arg(format!("--config={}", path.display()))
    }
}

#[test]
fn rules_of_a_file_come_before_the_built_in_ones() {
    let home = Home::new();
    for user in [User::Root, User::Ordinary] {
        let mount = home
            .with(
                "[[rule]]\nmatch = '*.db'\npolicy = 'atomic'\n\
                 [[rule]]\nmatch = ['/cache/**', '*.live']\npolicy = 'direct'\n",
            )
            .user(user)
            .mount();
        mount.bash("mkdir cache other");
        for (name, direct) in [
            ("app.db", false),
            ("app.sqlite", true),
            ("cache/x", true),
            ("other/x.live", true),
            ("other/x", false),
        ] {
            assert_eq!(is_direct(&mount, name), direct, "{name}");
        }
    }
}

#[test]
fn the_configuration_is_found_in_its_places() {
    let rule = |name: &str| format!("[[rule]]\nmatch = '{name}'\npolicy = 'direct'\n");
    let home = Home::new();
    let own = home.write("backing/.latchfs/config.toml", &rule("in-backing"));
    fs::set_permissions(
        own.parent().expect(".latchfs"),
        PermissionsExt::from_mode(0o700),
    )
    .expect("chmod");
    let backing = home.0.path().join("backing");
    let mount = options().backing(&backing).mount();
    assert!(is_direct(&mount, "in-backing"));
    mount.unmount();
    let named = home
        .with(&rule("in-the-named-one"))
        .backing(&backing)
        .mount();
    assert!(is_direct(&named, "in-the-named-one"));
    assert!(!is_direct(&named, "in-backing"));
    let option = home.write("other.toml", &rule("in-the-option"));
    let option = options()
        .arg("-o")
        .arg(format!("config={}", option.display()));
    assert!(is_direct(&option.mount(), "in-the-option"));

    let everywhere = Path::new("/etc/latchfs.toml");
    assert!(
        !everywhere.exists(),
        "this test makes /etc/latchfs.toml, and it is there"
    );
    fs::write(everywhere, rule("in-etc-for-the-test-of-rules")).expect("write");
    let found = std::panic::catch_unwind(|| {
        let mount = options().mount();
        is_direct(&mount, "in-etc-for-the-test-of-rules")
    });
    fs::remove_file(everywhere).expect("rm");
    assert!(found.expect("a mount"));
}

/// What `latchfs mount` says that must refuse a configuration, and its exit code.
fn refused(config: &Path) -> (String, Option<i32>) {
    let home = Home::new();
    for name in ["backing", "point"] {
        fs::create_dir(home.0.path().join(name)).expect("mkdir");
    }
    let mut command = std::process::Command::new(common::LATCHFS);
    command.arg("mount").arg("--config").arg(config);
    command
        .args(["backing", "point"])
        .current_dir(home.0.path());
    let output = common::finish(&mut command);
    let left = fs::read_dir(home.0.path().join("backing")).expect("backing");
    assert_eq!(left.count(), 0, "nothing is made there");
    (text(&output.stderr), output.status.code())
}

#[test]
fn a_wrong_file_is_refused_in_one_line_and_nothing_is_mounted() {
    let home = Home::new();
    for (content, words) in [
        (
            "lock_timeout = '1s'\n[[rule]]\nmatch = '*'\npolicy = 'atomc'\n",
            ":4: policy = 'atomc': unknown variant `atomc`, expected one of `atomic`, `append`, `direct`",
        ),
        (
            "lock_timeuot = '1s'\n",
            ":1: lock_timeuot = '1s': unknown field `lock_timeuot`, expected",
        ),
        (
            "[[rule]]\nmatch = '[z'\n",
            ":2: match = '[z': [z is no glob: unclosed character class",
        ),
    ] {
        let path = home.write("wrong.toml", content);
        let (said, code) = refused(&path);
        let expected = format!("latchfs: {}{words}", path.display());
        assert!(said.starts_with(&expected), "{said}");
        assert_eq!(said.matches('\n').count(), 1, "{said}");
        assert_eq!(code, Some(9));
    }
    let (said, code) = refused(Path::new("/nowhere/latchfs.toml"));
    assert!(
        said.contains("/nowhere/latchfs.toml cannot be read: No such file"),
        "{said}"
    );
    assert_eq!(code, Some(9));
}

#[test]
fn a_file_that_others_may_write_is_not_believed() {
    let home = Home::new();
    let own = home.write("backing/.latchfs/config.toml", "readers = 'snapshot'\n");
    let base = own.parent().expect(".latchfs");
    fs::set_permissions(base, PermissionsExt::from_mode(0o700)).expect("chmod");
    fs::create_dir(home.0.path().join("point")).expect("mkdir");
    let try_mount = |words: &str| {
        let mut command = std::process::Command::new(common::LATCHFS);
        command
            .args(["mount", "backing", "point"])
            .current_dir(home.0.path());
        let output = common::finish(&mut command);
        assert!(
            text(&output.stderr).contains(words),
            "{}",
            text(&output.stderr)
        );
        assert_eq!(output.status.code(), Some(9));
    };
    fs::set_permissions(&own, PermissionsExt::from_mode(0o666)).expect("chmod");
    try_mount("others may write it");
    fs::set_permissions(&own, PermissionsExt::from_mode(0o644)).expect("chmod");
    chown(&own, Some(common::test_user().0), None).expect("chown");
    try_mount("belongs to user");
    // What a link leads to could be anybody's.
    fs::rename(&own, home.0.path().join("elsewhere.toml")).expect("mv");
    std::os::unix::fs::symlink("../../elsewhere.toml", &own).expect("ln");
    try_mount("it is no regular file");
}

/// Has the daemon read its configuration again, and waits until it has said this.
fn hang_up(mount: &Mount, words: &str) {
    let before = mount.log().matches(words).count();
    kill(mount.daemon(), "HUP");
    wait_until("it was read again", || {
        mount.log().matches(words).count() > before
    });
}

#[test]
fn a_reload_applies_to_later_opens() {
    let home = Home::new();
    let mount = home.with("").mount();
    assert!(!is_direct(&mount, "first"));
    let writer = mount.spawn_python(
        "f = open('kept', 'w', buffering=1)\nprint('partly', file=f)\nsay('open')\nhear()\n",
    );
    writer.expect("open");
    home.write("latchfs.toml", "[[rule]]\nmatch = '*'\npolicy = 'direct'\n");
    hang_up(&mount, "the configuration was read again");
    assert!(is_direct(&mount, "second"));
    assert!(is_direct(&mount, "first"));
    assert!(!mount.behind("kept").exists());
    writer.signal("KILL");
    home.write("latchfs.toml", "");
    hang_up(&mount, "the configuration was read again");
    assert!(!is_direct(&mount, "second"));
}

#[test]
fn a_wrong_file_changes_nothing_at_a_reload() {
    let home = Home::new();
    let mount = home
        .with("[[rule]]\nmatch = '*.x'\npolicy = 'direct'\n")
        .mount();
    home.write(
        "latchfs.toml",
        "[[rule]]\nmatch = '*.x'\npolicy = 'drect'\n",
    );
    hang_up(&mount, "the configuration stays as it was");
    assert!(
        mount
            .log()
            .contains(":3: policy = 'drect': unknown variant")
    );
    assert!(is_direct(&mount, "a.x"));
    assert!(!is_direct(&mount, "a.y"));
}

#[test]
fn a_file_can_have_a_lock_timeout_and_readers_of_its_own() {
    let home = Home::new();
    let mount = home
        .with(
            "[[rule]]\nmatch = 'quick'\nlock_timeout = '50ms'\n\
             [[rule]]\nmatch = 'seen'\nreaders = 'snapshot'\n",
        )
        .mount();
    mount.bash("for f in quick seen slow; do echo old > $f; done");
    let mut writer = mount.spawn_python(
        "fs = [open(n, 'w') for n in ('quick', 'seen', 'slow')]\nsay('open')\nhear()\n",
    );
    writer.expect("open");
    let out = mount.try_python("open('quick', 'r+')");
    assert!(
        text(&out.stderr).contains("TimeoutError"),
        "{}",
        text(&out.stderr)
    );
    assert!(mount.log().contains("timed out after 50ms"));
    let out = mount.try_python("open('quick')");
    assert!(
        text(&out.stderr).contains("TimeoutError"),
        "{}",
        text(&out.stderr)
    );
    assert_eq!(mount.bash("cat seen"), "old\n");
    // As long as the mount says.
    let mut reader = mount.spawn("bash", "cat slow");
    reader.wait_until_blocked();
    writer.tell("close");
    writer.succeed();
    reader.succeed();
}

#[test]
fn an_option_wins_over_the_file_and_a_rule_over_both() {
    let home = Home::new();
    let mount = home
        .with("lock_timeout = '60s'\n[[rule]]\nmatch = 'ruled'\nlock_timeout = '70ms'\n")
        .arg("--lock-timeout=40ms")
        .mount();
    let _writer = {
        let writer = mount
            .spawn_python("fs = [open(n, 'w') for n in ('ruled', 'plain')]\nsay('open')\nhear()\n");
        writer.expect("open");
        writer
    };
    for (name, words) in [("ruled", "after 70ms"), ("plain", "after 40ms")] {
        let out = mount.try_python(&format!("open('{name}', 'a')"));
        assert!(
            text(&out.stderr).contains("TimeoutError"),
            "{}",
            text(&out.stderr)
        );
        assert!(mount.log().contains(words), "{}", mount.log());
    }
}

/// How many fsyncs the daemon makes for a shell script.
fn fsyncs(mount: &Mount, script: &str) -> usize {
    let trace = mount.point().with_file_name("trace");
    let mut strace = std::process::Command::new("strace")
        .args(["-f", "-e", "trace=fsync,fdatasync,syncfs", "-o"])
        .arg(&trace)
        .args(["-p", &mount.daemon().to_string()])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("strace");
    let traced = || {
        let status = fs::read_to_string(format!("/proc/{}/status", mount.daemon()));
        status.is_ok_and(|status| !status.contains("TracerPid:\t0\n"))
    };
    wait_until("strace follows the daemon", traced);
    mount.bash(script);
    // Not SIGINT, by which it could stop the threads that it lets go.
    kill(strace.id(), "KILL");
    strace.wait().expect("strace");
    let trace = fs::read_to_string(&trace).expect("the trace");
    trace.lines().filter(|line| line.contains("sync(")).count()
}

#[test]
fn a_file_can_have_a_durability_of_its_own() {
    let home = Home::new();
    let mount = home
        .with(
            "durability = 'full'\n[[rule]]\nmatch = '*.tmp'\ndurability = 'none'\n\
             [[rule]]\nmatch = '*.mid'\ndurability = 'rename'\n",
        )
        .mount();
    mount.bash("for f in a.tmp a.mid a.dat; do echo old > $f; done");
    assert_eq!(fsyncs(&mount, "echo new > a.tmp"), 0);
    assert_eq!(fsyncs(&mount, "echo new > a.mid"), 1);
    assert_eq!(fsyncs(&mount, "echo new > a.dat"), 2);
}

/// Runs a command of latchfs, and returns how it ended and what it said.
fn latchfs(mount: &Mount, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = mount.command(common::LATCHFS);
    command.args(args).current_dir(mount.point());
    let output = common::finish(&mut command);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    (output.status.code(), out, err)
}

#[test]
fn the_rules_of_a_file_are_told_with_their_reasons() {
    let home = Home::new();
    for user in [User::Root, User::Ordinary] {
        let mount = home
            .with(
                "durability = 'rename'\n\n[[rule]]\nmatch = ['*.csv', '*.tsv']\nvalidate = 'csv'\n",
            )
            .arg("--readers=snapshot")
            .user(user)
            .mount();
        let file = home.0.path().join("latchfs.toml");
        let line_of = |path: &str, key: &str| {
            let (code, out, err) = latchfs(&mount, &["rules", path]);
            assert_eq!(code, Some(0), "{err}");
            let line = out.lines().find(|line| line.trim_start().starts_with(key));
            line.expect("the setting")
                .split_whitespace()
                .skip(1)
                .collect::<Vec<_>>()
                .join(" ")
        };
        let by_file = file.display().to_string();
        assert_eq!(
            line_of("x.tsv", "validate"),
            format!("csv {by_file}:3: rule for *.tsv")
        );
        assert_eq!(
            line_of("not/there.json", "validate"),
            "json built-in rule for *.json"
        );
        assert_eq!(line_of("app.db", "policy"), "direct built-in rule for *.db");
        assert_eq!(line_of("x", "policy "), "atomic default");
        assert_eq!(
            line_of("x", "policy_append"),
            "append default of opens with O_APPEND"
        );
        let (_, out, _) = latchfs(&mount, &["rules", "x.json"]);
        assert!(
            !out.contains("O_APPEND"),
            "what is validated is not appended to: {out}"
        );
        assert_eq!(line_of("x", "durability"), format!("rename {by_file}"));
        assert_eq!(line_of("x", "readers"), "snapshot option of latchfs mount");
        assert!(line_of("x", "lock_timeout").starts_with("30s option"));
        assert_eq!(line_of("x", "on_conflict"), "refuse default");
        // By its place in BACKING, too.
        let behind = mount.behind("a.json").display().to_string();
        assert_eq!(
            line_of(&behind, "validate"),
            "json built-in rule for *.json"
        );
        let (code, out, _) = latchfs(&mount, &["rules", "--json", "x.csv"]);
        assert_eq!(code, Some(0));
        let told: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!(told[0]["path"], "x.csv");
        assert_eq!(told[0]["settings"]["validate"]["value"], "csv");
    }
}

#[test]
fn reload_says_what_is_wrong_or_has_it_applied() {
    let home = Home::new();
    let mount = home.with("").mount();
    assert!(!is_direct(&mount, "a.x"));
    home.write(
        "latchfs.toml",
        "[[rule]]\nmatch = '*.x'\npolicy = 'drect'\n",
    );
    let (code, _, err) = latchfs(&mount, &["reload", "."]);
    assert!(
        err.contains(":3: policy = 'drect': unknown variant"),
        "{err}"
    );
    assert_eq!(code, Some(9));
    home.write(
        "latchfs.toml",
        "[[rule]]\nmatch = '*.x'\npolicy = 'direct'\n",
    );
    let (code, out, _) = latchfs(&mount, &["reload", "."]);
    assert!(out.contains("latchfs.toml applies to later opens"), "{out}");
    assert_eq!(code, Some(0));
    wait_until("it applies", || is_direct(&mount, "a.x"));
    mount.unmount();
    let mut command = mount.command(common::LATCHFS);
    let output = common::finish(command.arg("reload").arg(mount.point()));
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
}
