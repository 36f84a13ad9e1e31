//! A directory mounted over itself (S3): every path keeps its name, and nothing gets beside the
//! mount by name.

use crate::common::{LATCHFS, Mount, User, alive, finish, kill, options, text, wait_until};
use crate::scene::{Scene, source_of};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;

const BOTH: [User; 2] = [User::Root, User::Ordinary];

/// A scene whose BACKING is its MOUNTPOINT, and the way beneath the mount.
struct InPlace {
    scene: Scene,
    dir: PathBuf,
    _held: File,
    beneath: PathBuf,
}

impl InPlace {
    fn new(user: User) -> Self {
        let name = OsStr::new("data");
        let scene = Scene::named(user, name, name);
        let held = File::open(&scene.backing).expect("the directory");
        let way = format!("/proc/{}/fd/{}", std::process::id(), held.as_raw_fd());
        Self {
            dir: scene.backing.clone(),
            scene,
            _held: held,
            beneath: way.into(),
        }
    }

    fn daemon(&self) -> u32 {
        let lock = fs::read_to_string(self.beneath.join(".latchfs/lock")).expect("the lock");
        let pid = lock.lines().next().expect("a line");
        pid.parse().expect("a pid")
    }

    fn beneath(&self, name: &str) -> String {
        fs::read_to_string(self.beneath.join(name)).expect("a file beneath the mount")
    }

    #[track_caller]
    fn latchfs(&self, args: &[&str]) {
        let output = self.scene.latchfs(args);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(text(&output.stderr), "");
    }

    /// A shell script of the user, at home in the scene.
    #[track_caller]
    fn sh(&self, script: &str) -> String {
        let mut command = self.scene.command("sh");
        let output = finish(command.args(["-ec", script]).stdin(Stdio::null()));
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    }

    fn is_mounted(&self) -> bool {
        source_of(&self.dir).is_some()
    }
}

#[test]
fn a_directory_mounted_in_place_keeps_every_name() {
    for user in BOTH {
        for args in [
            &["mount", "--log-file=log", "data"][..],
            &["mount", "--log-file=log", "data", "data"],
            &["mount", "--log-file=log", "./link/", "link/../data/."],
            &["mount", "--log-file=log", "link"],
            &["mount", "-o", "rw,lock_timeout=20s,log_file=log", "data"],
        ] {
            let at = InPlace::new(user);
            symlink("data", at.scene.dir.join("link")).expect("symlink");
            at.scene.make_dir(&at.dir.join("sub"));
            at.scene.make_file(&at.dir.join("sub/f"), "old\n");
            at.latchfs(args);
            assert_eq!(source_of(&at.dir).as_deref(), Some(at.dir.as_os_str()));
            let daemon = at.daemon();
            assert!(at.sh("stat -f data; ls -A data link").contains("sub"));
            assert!(!at.sh("ls -A data").contains(".latchfs"));
            at.sh("cat data/sub/f; echo new > data/sub/f; echo x > link/g; mv data/g data/h");
            assert_eq!(at.sh("cat link/sub/f data/h"), "new\nx\n");
            // Committed to the very directory beneath.
            assert_eq!(at.beneath("sub/f") + &at.beneath("h"), "new\nx\n");
            at.latchfs(&["umount", "link"]);
            wait_until("the daemon has ended", || !alive(daemon));
            at.scene.check_gone(daemon);
            assert_eq!(
                at.sh("ls -A data; cat data/sub/f"),
                ".latchfs\nh\nsub\nnew\n"
            );
        }
    }
}

#[test]
fn the_directory_one_stands_in_can_be_mounted_in_place() {
    for user in BOTH {
        let at = InPlace::new(user);
        at.scene.make_file(&at.dir.join("f"), "old\n");
        let mut shell = at.scene.command("sh");
        // The shell still stands beneath the mount then, and is told so.
        let script = "\"$0\" mount --log-file ../log . && echo direct > g && cd \"$PWD\" && \
                      echo new > f && cat f g && ls -A";
        shell.args(["-ec", script, LATCHFS]).current_dir(&at.dir);
        let output = finish(shell.stdin(Stdio::null()));
        assert_eq!(text(&output.stdout), "new\ndirect\nf\ng\n");
        let said = text(&output.stderr);
        let cd = format!("cd {}\n", at.dir.display());
        assert!(said.starts_with("latchfs: warning: "), "{said}");
        assert!(said.ends_with(&cd) && said.lines().count() == 1, "{said}");
        let daemon = at.daemon();
        at.latchfs(&["umount", "data"]);
        at.scene.check_gone(daemon);
    }
}

#[test]
fn a_directory_is_mounted_in_place_once() {
    for user in BOTH {
        let at = InPlace::new(user);
        at.scene.make_dir(&at.dir.join("sub"));
        at.scene.make_dir(&at.scene.dir.join("free"));
        symlink("data", at.scene.dir.join("link")).expect("symlink");
        at.latchfs(&["mount", "--log-file=log", "data"]);
        let daemon = at.daemon();
        let pid = format!("(pid {daemon})");
        for (args, code, words) in [
            (&["mount", "data"][..], 5, &*pid),
            (&["mount", "data", "data"], 5, &pid),
            (&["mount", "-f", "link"], 5, &pid),
            (&["mount", "data", "free"], 5, &pid),
            (&["recover", "data"], 5, &pid),
            (&["mount", "free", "data"], 4, "is already a latchfs mount"),
            (&["mount", "data/sub"], 3, "is inside the latchfs mount"),
            (
                &["mount", "free", "data/sub"],
                4,
                "is inside the latchfs mount",
            ),
            (&["umount", "data/sub"], 7, "is inside a latchfs mount"),
        ] {
            let output = at.scene.latchfs(args);
            at.scene.check_refusal(&output, code, words);
        }
        assert_eq!(at.scene.mounts(), std::slice::from_ref(&at.dir));
        assert_eq!(at.sh("echo x > data/f; cat data/f"), "x\n");
        assert_eq!(at.daemon(), daemon);
        at.latchfs(&["umount", "data"]);
        at.scene.check_gone(daemon);
    }
}

#[test]
fn a_log_file_in_the_directory_is_refused() {
    for user in BOTH {
        let at = InPlace::new(user);
        at.scene.refuses(
            &["mount", "--log-file=data/log", "data"],
            2,
            "inside the mount",
        );
        at.scene.refuses(
            &["mount", "--log-file=data/log", "data", "data"],
            2,
            "inside the mount",
        );
    }
}

#[test]
fn every_way_to_end_a_mount_in_place_shows_the_plain_directory() {
    for user in BOTH {
        for how in ["latchfs", "umount", "fusermount3", "TERM", "foreground"] {
            if (user, how) == (User::Ordinary, "umount") {
                continue;
            }
            let at = InPlace::new(user);
            let mut child = None;
            if how == "foreground" {
                let mut command = at.scene.command(LATCHFS);
                command.args(["mount", "-f", "--log-file=log", "data"]);
                child = Some(command.stdin(Stdio::null()).spawn().expect("latchfs"));
                wait_until("it is mounted", || at.is_mounted());
            } else {
                at.latchfs(&["mount", "--log-file=log", "data"]);
            }
            at.sh("for n in $(seq 50); do echo $n > data/f$n; done");
            let daemon = at.daemon();
            match how {
                "TERM" => kill(daemon, "TERM"),
                "umount" => drop(at.sh("umount data")),
                "fusermount3" => drop(at.sh("fusermount3 -u data")),
                _ => at.latchfs(&["umount", "data"]),
            }
            if let Some(child) = &mut child {
                assert!(child.wait().expect("wait").success());
            }
            at.scene.check_gone(daemon);
            let content = fs::read_to_string(at.dir.join("f50")).expect("f50");
            assert_eq!(content, "50\n", "{how}");
        }
    }
}

#[test]
fn a_killed_daemon_in_place_leaves_the_old_version_and_is_cleared_away() {
    for user in BOTH {
        let at = InPlace::new(user);
        at.latchfs(&["mount", "--log-file=log", "data"]);
        let script = "echo old > data/f; exec 3> data/f; echo half >&3; kill -9 \"$1\"; \
                      while kill -0 \"$1\" 2> /dev/null; do :; done; ! cat data/f";
        let daemon = at.daemon();
        let mut shell = at.scene.command("sh");
        shell.args(["-ec", script, "sh", &daemon.to_string()]);
        let output = finish(shell.stdin(Stdio::null()));
        let said = text(&output.stderr);
        assert!(said.contains("not connected"), "{said}");
        // The mount is dead, and nothing can be done beside it.
        for args in [&["mount", "data"][..], &["recover", "data"]] {
            let output = at.scene.latchfs(args);
            let said = text(&output.stderr);
            assert!(said.contains("latchfs umount"), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
        at.latchfs(&["umount", "data"]);
        assert!(!at.is_mounted());
        assert_eq!(fs::read_to_string(at.dir.join("f")).expect("f"), "old\n");
        at.latchfs(&["recover", "data"]);
        at.latchfs(&["mount", "--log-file=log", "data"]);
        assert_eq!(at.sh("cat data/f"), "old\n");
        let daemon = at.daemon();
        at.latchfs(&["umount", "data"]);
        at.scene.check_gone(daemon);
    }
}

/// What the documents warn of: only names lead into the mount.
#[test]
fn who_is_in_the_directory_before_it_is_mounted_stays_beside_the_mount() {
    for user in BOTH {
        let at = InPlace::new(user);
        at.scene.make_file(&at.dir.join("f"), "old\n");
        at.scene.make_file(&at.dir.join("log"), "one\n");
        let mut shell = at.scene.command("sh");
        let script = "exec 3>> log; \"$0\" mount --log-file ../daemon-log . 2> /dev/null; \
                      { echo half; cat \"$PWD/f\" > ../seen; echo whole; } > f; cat ../seen f; \
                      echo two >&3; cat \"$PWD/log\"";
        shell.args(["-ec", script, LATCHFS]).current_dir(&at.dir);
        let output = finish(shell.stdin(Stdio::null()));
        // The cat in the middle saw by name what the shell had written beside it: no version.
        let expected = "half\nhalf\nwhole\none\ntwo\n";
        assert_eq!(text(&output.stdout), expected, "{}", text(&output.stderr));
        // By its name it is a version, which nobody sees before it is whole.
        let seen = at.beneath.join("f");
        let script = "exec 3> data/f; echo other >&3; cp \"$1\" seen || :; exec 3>&-; cat data/f";
        let mut shell = at.scene.command("sh");
        shell.args(["-ec", script, "sh"]).arg(&seen);
        let output = finish(shell.stdin(Stdio::null()));
        assert_eq!(text(&output.stdout), "other\n");
        if user == User::Root {
            assert_eq!(at.sh("cat seen"), "half\nwhole\n");
        }
        let daemon = at.daemon();
        at.latchfs(&["umount", "data"]);
        at.scene.check_gone(daemon);
    }
}

/// Runs a script as root in a mount namespace of its own, where all mounts are private or shared.
fn in_namespace(at: &InPlace, propagation: &str, script: &str) -> String {
    let mut command = at.scene.command("unshare");
    command.args(["-m", "--propagation", propagation, "bash", "-ec", script]);
    let output = finish(command.arg(LATCHFS).stdin(Stdio::null()));
    assert!(
        output.status.success(),
        "{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

#[test]
fn a_bind_mount_from_before_leads_beside_the_mount_and_one_from_after_into_it() {
    let at = InPlace::new(User::Root);
    at.scene.make_file(&at.dir.join("f"), "old\n");
    for name in ["before", "after"] {
        at.scene.make_dir(&at.scene.dir.join(name));
    }
    let script = "mount --bind data before; $0 mount --log-file=log data; mount --bind data after; \
                  ls -A before after; \
                  exec 3> data/f; echo half >&3; cat before/f; \
                  (timeout 1 cat after/f || echo waits); exec 3>&-; cat after/f before/f; \
                  $0 recover after 2>&1 || echo $?; \
                  $0 umount after; test -e data/.latchfs; ls -A after; \
                  umount before";
    let said = in_namespace(&at, "private", script);
    let expected = "after:\nf\n\nbefore:\n.latchfs\nf\nold\nwaits\nhalf\nhalf\n";
    assert!(said.starts_with(expected), "{said}");
    assert!(
        said.contains("is served by latchfs") && said.contains("\n5\n"),
        "{said}"
    );
}

#[test]
fn a_mount_in_place_that_is_propagated_is_found_under_each_name() {
    let at = InPlace::new(User::Root);
    at.scene.make_file(&at.dir.join("f"), "old\n");
    at.scene.make_dir(&at.scene.dir.join("bound"));
    // The bind mount is a peer: what is mounted on either is mounted on both.
    let script = "mount --bind . bound; cd \"$PWD\"; $0 mount --log-file=log data; \
                  ls -A data bound/data; $0 mount bound/data 2>&1 || echo $?; \
                  $0 recover bound/data 2>&1 || echo $?; \
                  $0 umount bound/data; ls -A data";
    let said = in_namespace(&at, "shared", script);
    assert!(said.starts_with("bound/data:\nf\n\ndata:\nf\n"), "{said}");
    assert!(said.contains("already served in place"), "{said}");
    assert_eq!(said.matches("\n5\n").count(), 2, "{said}");
    assert!(said.ends_with(".latchfs\nf\n"), "{said}");
}

#[test]
fn read_only_in_place_leaves_the_directory_as_it_was() {
    for user in BOTH {
        let at = InPlace::new(user);
        at.scene.make_file(&at.dir.join("f"), "old\n");
        at.latchfs(&["mount", "-oro,log_file=log", "data"]);
        assert_eq!(at.sh("cat data/f; ! echo x 2> /dev/null > data/f"), "old\n");
        at.scene
            .check_refusal(&at.scene.latchfs(["mount", "data"]), 5, "already served");
        at.scene
            .check_refusal(&at.scene.latchfs(["recover", "data"]), 5, "is served by");
        at.latchfs(&["umount", "data"]);
        assert!(!at.is_mounted());
        assert_eq!(at.sh("ls -A data"), "f\n");
    }
}

#[test]
fn a_user_sees_that_a_mount_in_place_is_anothers() {
    let at = InPlace::new(User::Root);
    at.latchfs(&["mount", "-oallow_other", "--log-file=log", "data"]);
    let daemon = at.daemon();
    let other = Scene::new(User::Ordinary);
    for (command, code) in [("recover", 3), ("mount", 4), ("umount", 8)] {
        let output = other.latchfs([OsStr::new(command), at.dir.as_os_str()]);
        other.check_refusal(&output, code, "");
    }
    assert!(alive(daemon));
    at.latchfs(&["umount", "data"]);
    at.scene.check_gone(daemon);
}

#[test]
fn a_directory_in_place_whose_parent_is_renamed_is_still_found() {
    for user in BOTH {
        let at = InPlace::new(user);
        let (old, new) = (at.scene.dir.join("a"), at.scene.dir.join("b"));
        at.scene.make_dir(&old);
        at.scene.make_dir(&old.join("data"));
        at.latchfs(&["mount", "--log-file=log", "a/data"]);
        fs::rename(&old, &new).expect("mv");
        at.scene
            .check_refusal(&at.scene.latchfs(["recover", "b/data"]), 5, "is served by");
        at.sh("echo x > b/data/f");
        at.latchfs(&["umount", "b/data"]);
        assert_eq!(at.sh("cat b/data/f; ls -A b/data"), "x\n.latchfs\nf\n");
    }
}

#[test]
fn the_other_commands_find_what_is_beneath_a_mount_in_place() {
    for user in BOTH {
        let at = InPlace::new(user);
        at.latchfs(&["mount", "--log-file=log", "data"]);
        at.sh("mkdir data/d; echo '{}' > data/d/a.json; echo old > data/d/f");
        let script = "exec 3> data/d/f; echo precious >&3; rm data/d/f";
        at.sh(script);
        wait_until("it is kept", || {
            fs::read_dir(at.beneath.join(".latchfs/kept")).is_ok_and(|kept| kept.count() == 2)
        });
        let said = |args: &[&str]| {
            let output = at.scene.latchfs(args);
            assert!(
                output.status.success(),
                "{args:?}: {}",
                text(&output.stderr)
            );
            text(&output.stdout)
        };
        for path in ["data", "data/d", "data/d/../d/f"] {
            assert!(said(&["kept", "list", path]).contains("/d/f"), "{path}");
        }
        let entries = said(&["kept", "list", "--json", "data"]);
        let entries: serde_json::Value = serde_json::from_str(&entries).expect("JSON");
        let id = entries
            .pointer("/0/id")
            .or(entries.pointer("/versions/0/id"));
        let id = id
            .and_then(|id| id.as_str())
            .unwrap_or_else(|| panic!("{entries}"));
        said(&["kept", "restore", "data", id]);
        assert_eq!(at.sh("cat data/d/f"), "precious\n");
        assert_eq!(at.beneath("d/f"), "precious\n");
        assert!(said(&["rules", "data/d/new.json"]).contains("json"));
        said(&["check", "data/d"]);
        // A configuration file beneath the mount, which no path leads to, is read again.
        let config = at.beneath.join(".latchfs/config.toml");
        at.scene.make_file(
            &config,
            "[[rule]]\nmatch = \"*.dat\"\npolicy = \"direct\"\n",
        );
        said(&["reload", "data"]);
        assert!(said(&["rules", "data/x.dat"]).contains("direct"));
        let daemon = at.daemon();
        at.latchfs(&["umount", "data"]);
        at.scene.check_gone(daemon);
    }
}

/// Turns, privacy and versions, as in any mount; and, bare, the same workload tears.
#[test]
fn the_pipeline_of_the_demo_runs_in_place() {
    let pipeline = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/conformance.d/clients.d");
    let script = fs::read_to_string(pipeline.join("pipeline.sh")).expect("the pipeline");
    for user in BOTH {
        let mount: Mount = options().user(user).in_place().mount();
        let run = |at: &Path, protected: &str| {
            let mut command = mount.command("timeout");
            command.args(["50", "bash", "-ec", &script]).current_dir(at);
            command.env("PROTECTED", protected);
            finish(command.stdin(Stdio::null()))
        };
        let output = run(mount.point(), "1");
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "[11, 11, 11, 11, 11]\n");
        assert!(mount.commits("phase5_output.json") >= 11);
        mount.unmount();
    }
    let at = InPlace::new(User::Root);
    let mut command = at.scene.command("timeout");
    command.args(["50", "bash", "-ec", &script]);
    command.env("PROTECTED", "1").current_dir(&at.dir);
    let output = finish(command.stdin(Stdio::null()));
    assert!(!output.status.success(), "bare, it should have torn");
}
