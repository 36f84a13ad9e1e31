//! What the log says: one warning for each transaction that did not become the file.

use crate::common::{Mount, User, as_each_user, finish, options, wait_until};
use crate::scene::Scene;
use std::fs;
use std::process::Stdio;

/// The warnings of a mount's log.
fn warnings(mount: &Mount) -> Vec<String> {
    let log = mount.log();
    let lines = log.lines().filter(|line| line.contains("WARN"));
    lines.map(str::to_owned).collect()
}

/// There must be exactly one warning, with these words.
#[track_caller]
fn one_warning(mount: &Mount, words: &[&str]) {
    wait_until("there is a warning", || !warnings(mount).is_empty());
    let warnings = warnings(mount);
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    for word in words {
        assert!(warnings[0].contains(word), "{word:?} in {}", warnings[0]);
    }
}

#[test]
fn a_transaction_rolled_back_is_one_warning() {
    as_each_user(|mount| {
        mount.bash("mkdir d; echo old > 'd/the file'");
        let mut writer = mount.spawn_python(
            "f = open('d/the file', 'w'); f.write('x'); f.flush(); say('open'); hear()",
        );
        writer.expect("open");
        writer.signal("KILL");
        writer.wait();
        let pid = format!("pid {} ", writer.pid());
        one_warning(
            mount,
            &["/d/the file", &pid, "python3", "rolled back", "signal 9"],
        );
        assert_eq!(mount.read("d/the file"), "old\n");
    });
}

#[test]
fn an_open_that_timed_out_is_one_warning() {
    for user in [User::Root, User::Ordinary] {
        let mount = options().user(user).arg("--lock-timeout=200ms").mount();
        mount.bash("mkdir d; echo old > d/f");
        let writer = mount.spawn_python("f = open('d/f', 'w'); say('open'); hear()");
        writer.expect("open");
        let reader = mount.try_run("bash", "echo $$; exec cat d/f");
        assert!(!reader.status.success());
        let pid = crate::common::text(&reader.stdout);
        let (waiter, holder) = (format!("pid {} ", pid.trim()), writer.pid().to_string());
        one_warning(
            &mount,
            &["/d/f", &waiter, "cat", "timed out", &holder, "python3"],
        );
    }
}

#[test]
fn a_detached_transaction_is_one_warning() {
    as_each_user(|mount| {
        mount.bash("mkdir d; echo old > d/f");
        let mut writer = mount.spawn_python(
            "f = open('d/f', 'w'); f.write('new'); f.flush(); say('open'); hear(); f.close(); say('closed')",
        );
        writer.expect("open");
        mount.bash("rm d/f");
        writer.tell("close");
        writer.expect("closed");
        let pid = format!("pid {} ", writer.pid());
        one_warning(
            mount,
            &[
                "/d/f",
                &pid,
                "python3",
                "its name was removed",
                "latchfs kept restore ",
            ],
        );
    });
}

#[test]
fn ordinary_work_is_no_warning() {
    as_each_user(|mount| {
        mount.bash(
            "mkdir d; cd d; echo a > a; cp a b; mv b a; ln a c; echo x >> c; sed -i s/x/y/ c; \
             sort -o a a; rm a; cat c; touch new; : > empty; chmod 600 c; cd ..; cp -a d e; \
             rm -r d e",
        );
        // A program that removes what it is writing itself, as for a temporary file.
        mount
            .python("f = open('gone', 'w'); f.write('x'); f.flush(); os.unlink('gone'); f.close()");
        assert_eq!(warnings(mount), [""; 0]);
    });
}

/// Mounts with a filter, has a writer killed, and returns the log.
fn log_with(filter: Option<&str>, options: &[&str]) -> String {
    let scene = Scene::new(User::Root);
    let mut command = scene.command(crate::common::LATCHFS);
    command.args(["mount", "--log-file=log"]).args(options);
    match filter {
        Some(filter) => command.env("RUST_LOG", filter),
        None => command.env_remove("RUST_LOG"),
    };
    let output = finish(command.args(["backing", "point"]).stdin(Stdio::null()));
    assert!(output.status.success());
    let script =
        "echo x > point/f; bash -c 'exec 3> point/f; echo half >&3; kill -KILL $$'; cat point/f";
    let output = finish(scene.command("sh").args(["-c", script]));
    assert_eq!(crate::common::text(&output.stdout), "x\n");
    scene.unmount();
    fs::read_to_string(scene.dir.join("log")).expect("the log")
}

#[test]
fn rust_log_and_v_choose_what_is_logged() {
    let plain = log_with(None, &[]);
    assert!(plain.contains("WARN") && plain.contains("INFO"), "{plain}");
    assert!(!plain.contains("DEBUG"), "{plain}");
    let verbose = log_with(None, &["-v"]);
    assert!(
        verbose.contains("DEBUG") && verbose.contains("committed"),
        "{verbose}"
    );
    let errors = log_with(Some("error"), &["-v"]);
    assert_eq!(errors, "");
    let debug = log_with(Some("latchfs=debug"), &[]);
    assert!(
        debug.contains("DEBUG") && debug.contains("committed"),
        "{debug}"
    );
    let warnings = log_with(Some("warn"), &["-vv"]);
    assert!(
        !warnings.is_empty() && warnings.lines().all(|line| line.contains("WARN")),
        "{warnings}"
    );
}

#[test]
fn a_log_file_is_appended_to_and_closed_to_others() {
    use std::os::unix::fs::PermissionsExt;
    let scene = Scene::new(User::Ordinary);
    for _ in 0..2 {
        scene.mount(&["-o", "log_file=log"]);
        scene.unmount();
    }
    let log = fs::read_to_string(scene.dir.join("log")).expect("the log");
    assert_eq!(log.matches(" serving ").count(), 2, "{log}");
    let mode = scene
        .dir
        .join("log")
        .metadata()
        .expect("stat")
        .permissions();
    assert_eq!(mode.mode() & 0o007, 0);
}
