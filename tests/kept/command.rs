//! `latchfs kept`: list, show, restore and purge, of a mount and of a BACKING that nobody serves.

use crate::common::{
    LATCHFS, Mount, User, as_each_user, finish, options, successful, test_user, text,
};
use crate::{kept, kill_writer, only};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Output, Stdio};

fn try_kept(mount: &Mount, args: &[&str]) -> Output {
    let mut command = mount.command(LATCHFS);
    command.arg("kept").args(args).current_dir("/");
    finish(command.stdin(Stdio::null()))
}

#[track_caller]
fn run(mount: &Mount, args: &[&str]) -> String {
    successful(&format!("latchfs kept {args:?}"), &try_kept(mount, args))
}

#[track_caller]
fn refused(mount: &Mount, args: &[&str], code: i32) -> String {
    let output = try_kept(mount, args);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

#[track_caller]
fn json(mount: &Mount, args: &[&str]) -> serde_json::Value {
    let said = run(mount, args);
    serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"))
}

fn shown(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// The ID of the newest kept version.
fn newest(mount: &Mount) -> String {
    let (record, _) = kept(mount).pop().expect("a version");
    record["id"].as_str().expect("an ID").to_owned()
}

/// Has a version of `f` detached: removed by another while it was written.
fn detach(mount: &Mount, content: &str) -> String {
    let mut writer = mount.spawn_python(&format!(
        "f = open('f', 'w'); f.write('{content}'); f.flush(); say('open'); hear(); f.close(); say('closed')"
    ));
    writer.expect("open");
    mount.bash("rm f");
    writer.tell("close");
    writer.expect("closed");
    newest(mount)
}

#[test]
fn kept_versions_are_listed_by_any_path_of_theirs() {
    as_each_user(|mount| {
        mount.bash("mkdir d; echo old > d/f");
        let point = shown(mount.point()).to_owned();
        let backing = shown(mount.backing()).to_owned();
        for path in [&point, &backing] {
            let said = run(mount, &["list", path]);
            assert_eq!(said, format!("{backing}: nothing is kept\n"));
            assert_eq!(
                json(mount, &["list", "--json", path]),
                serde_json::json!([])
            );
        }
        let pid = kill_writer(mount, "'d/f'", "b'x' * 5000");
        kill_writer(mount, "'g'", "b'y'");
        let ids: Vec<String> = kept(mount)
            .iter()
            .map(|(record, _)| record["id"].as_str().expect("an ID").to_owned())
            .collect();
        for path in [point.clone(), backing.clone()] {
            let said = run(mount, &["list", &path]);
            let lines: Vec<&str> = said.lines().collect();
            assert_eq!(lines.len(), 3, "{said}");
            let words: Vec<&str> = lines[1].split_whitespace().collect();
            assert_eq!(words[0], ids[0]);
            assert_eq!(words[2..5], ["4.9", "KiB", "rolled-back"], "{said}");
            assert_eq!(words[6..], [&format!("({pid})"), "/d/f"]);
            // The columns stand below one another.
            let column = |line: &str, word: &str| line.find(word).expect("the word");
            assert_eq!(column(lines[0], "PATH"), column(lines[1], "/d/f"));
            assert_eq!(column(lines[0], "WHY"), column(lines[2], "rolled-back"));

            // Below a path, only what is there.
            for (below, expected) in [("d", &ids[..1]), ("d/f", &ids[..1]), ("g", &ids[1..])] {
                let listed = json(mount, &["list", "--json", &format!("{path}/{below}")]);
                let listed: Vec<&str> = listed
                    .as_array()
                    .expect("a list")
                    .iter()
                    .map(|entry| entry["id"].as_str().expect("an ID"))
                    .collect();
                assert_eq!(listed, expected, "{below}");
            }
        }
        let listed = json(mount, &["list", "--json", &point]);
        let (record, _) = &kept(mount)[0];
        for key in [
            "id", "path", "time", "pid", "uid", "program", "kind", "reason", "size",
        ] {
            assert_eq!(listed[0][key], record[key], "{key}");
        }
        assert_eq!(listed[0]["mode"], "0644");
        // By default, of the current directory.
        let mut command = mount.command(LATCHFS);
        command.args(["kept", "list"]).current_dir(mount.path("d"));
        let said = successful("list", &finish(&mut command));
        assert_eq!(said.lines().count(), 2, "{said}");
    });
}

#[test]
fn names_that_would_act_on_a_terminal_are_shown_escaped() {
    let mount = options().mount();
    let name = r"b'a\nb\x1b[2J\xff'";
    kill_writer(&mount, name, "b'x'");
    let said = run(&mount, &["list", shown(mount.backing())]);
    assert!(said.contains(r"/a\nb\u{1b}[2J\xff"), "{said}");
    assert_eq!(said.lines().count(), 2, "{said}");
    let id = newest(&mount);
    let said = run(&mount, &["show", shown(mount.backing()), &id]);
    assert!(said.contains(r"/a\nb\u{1b}[2J\xff"), "{said}");
    // And such a file is restored, too.
    mount.python(&format!("os.unlink({name})"));
    run(&mount, &["restore", shown(mount.backing()), &id]);
    let said = mount.python(&format!("say(open({name}).read())"));
    assert_eq!(said, "x\n");
}

#[test]
fn one_is_shown_by_the_beginning_of_its_id() {
    as_each_user(|mount| {
        kill_writer(mount, "'f'", r"b'\x00\xff\n' * 100_000");
        let (record, bytes) = only(mount);
        let (id, point) = (record["id"].as_str().expect("an ID"), shown(mount.point()));
        let said = run(mount, &["show", point, &id[..2]]);
        let pid = record["pid"].to_string();
        let restore = format!("latchfs kept restore {} {id}", mount.backing().display());
        for part in [
            "/f",
            &pid,
            "rolled-back",
            "signal 9",
            "300000 bytes",
            "mode 0640",
            &restore,
        ] {
            assert!(said.contains(part), "{part} in {said}");
        }
        let shown = json(mount, &["show", "--json", point, id]);
        assert_eq!(
            (&shown["id"], &shown["size"]),
            (&id.into(), &300_000.into())
        );
        assert!(try_kept(mount, &["show", "--data", point, id]).stdout == bytes);
        // A reader that has seen enough is no failure.
        let script =
            format!("set -o pipefail; {LATCHFS} kept show --data {point} {id} | head -c 9 | wc -c");
        assert_eq!(mount.bash(&script), "9\n");
        let said = refused(mount, &["show", point, "nothing"], 10);
        assert!(said.contains("no kept version nothing"), "{said}");
        refused(mount, &["show", point, ""], 10);
        // Several that begin alike.
        let dir = mount.behind(".latchfs/kept");
        for other in ["77777777", "77778888"] {
            fs::write(dir.join(format!("{other}.data")), "").expect("write");
        }
        let said = refused(mount, &["show", point, "7777"], 10);
        assert!(said.contains("several"), "{said}");
    });
}

#[test]
fn a_version_is_restored_through_the_mount() {
    as_each_user(|mount| {
        mount.bash("mkdir d; echo old > d/f; chmod 600 d/f");
        kill_writer(mount, "'d/f'", "b'better' * 500_000");
        mount.bash("chmod 604 d/f");
        let id = newest(mount);
        let point = shown(mount.point());
        // A change of its mode counts as one of the file.
        let said = refused(mount, &["restore", point, &id], 10);
        assert!(said.contains("changed after"), "{said}");
        let said = run(mount, &["restore", "--force", point, &id]);
        assert!(said.contains("it stays kept"), "{said}");
        let whole = "better".repeat(500_000);
        assert!(mount.read("d/f") == whole);
        assert!(mount.read_behind("d/f") == whole);
        assert_eq!(
            mount.behind("d/f").metadata().expect("stat").mode() & 0o7777,
            0o604
        );
        assert_eq!(newest(mount), id);
        assert_eq!(mount.commits("d/f"), 2, "{}", mount.log());
        // A file that is gone is made again, with the mode of the version.
        mount.bash("rm d/f");
        run(mount, &["restore", shown(mount.backing()), &id[..4]]);
        assert!(mount.read("d/f") == whole);
        assert_eq!(
            mount.behind("d/f").metadata().expect("stat").mode() & 0o7777,
            0o600
        );
        // Without its directory it can't be.
        mount.bash("rm -r d");
        let said = refused(mount, &["restore", point, &id], 10);
        assert!(said.contains("directory is gone"), "{said}");
    });
}

#[test]
fn a_version_is_restored_where_nobody_serves_the_directory() {
    as_each_user(|mount| {
        mount.bash("mkdir d; echo old > d/f; ln d/f link");
        kill_writer(mount, "'d/f'", "b'better' * 500_000");
        mount.unmount();
        let (id, backing) = (newest(mount), shown(mount.backing()));
        run(mount, &["restore", backing, &id]);
        let whole = "better".repeat(500_000);
        // Under both its names.
        assert!(mount.read_behind("d/f") == whole);
        assert!(mount.read_behind("link") == whole);
        // Once more: now the file is newer than the version.
        let said = refused(mount, &["restore", backing, &id], 10);
        assert!(said.contains("changed after"), "{said}");
        for name in ["d/f", "link"] {
            fs::remove_file(mount.behind(name)).expect("rm");
        }
        run(mount, &["restore", "--json", backing, &id]);
        assert!(mount.read_behind("d/f") == whole);
        let stat = mount.behind("d/f").metadata().expect("stat");
        let uid = match mount.user() {
            User::Root => 0,
            User::Ordinary => test_user().0,
        };
        assert_eq!((stat.mode() & 0o7777, stat.uid()), (0o644, uid));
        assert_eq!(newest(mount), id);
        for dir in ["tmp", "redo"] {
            assert_eq!(mount.store(dir), [""; 0]);
        }
        mount.start();
        assert!(mount.read("d/f") == whole);
    });
}

#[test]
fn a_newer_file_or_another_is_not_replaced_without_force() {
    as_each_user(|mount| {
        mount.bash("echo old > f");
        let id = detach(mount, "detached");
        for served in [true, false] {
            if !served {
                mount.unmount();
            }
            let backing = shown(mount.backing());
            // Nothing has its name now.
            run(mount, &["restore", backing, &id]);
            assert_eq!(mount.read_behind("f"), "detached");
            // Now something has, and that the writer had never seen.
            let said = refused(mount, &["restore", backing, &id], 10);
            for part in ["another file", "--force", &id] {
                assert!(said.contains(part), "{said}");
            }
            fs::write(mount.behind("f"), "precious").expect("write");
            refused(mount, &["restore", backing, &id], 10);
            assert_eq!(mount.read_behind("f"), "precious");
            run(mount, &["restore", "--force", backing, &id]);
            assert_eq!(mount.read_behind("f"), "detached");
            fs::remove_file(mount.behind("f")).expect("rm");
        }
        mount.start();
    });
}

#[test]
fn a_version_written_to_another_file_of_the_mount_is_validated_there() {
    as_each_user(|mount| {
        mount.bash("echo '[1]' > good.json");
        kill_writer(mount, "'f'", "b'no json'");
        let (id, point) = (newest(mount), shown(mount.point()).to_owned());
        for to in [
            mount.path("good.json"),
            mount.behind("good.json"),
            mount.path("new.json"),
        ] {
            let said = refused(
                mount,
                &["restore", &point, &id, "--to", shown(&to), "--force"],
                10,
            );
            assert!(
                said.contains("is refused: the mount validates it"),
                "{said}"
            );
        }
        assert_eq!(mount.read_behind("good.json"), "[1]\n");
        assert!(!mount.behind("new.json").exists());
        let said = refused(mount, &["restore", &point, &id, "--to", &point], 10);
        assert!(said.contains("is a directory; name a file in it"), "{said}");
    });
}

#[test]
fn a_version_can_be_written_to_another_file() {
    as_each_user(|mount| {
        kill_writer(mount, "'f'", "b'bytes'");
        let (id, point) = (newest(mount), shown(mount.point()).to_owned());
        let home = mount.point().parent().expect("a parent").to_owned();
        let outside = home.join("out side");
        let inside = mount.path("inside");
        for to in [&outside, &inside] {
            let to = shown(to);
            run(mount, &["restore", &point, &id, "--to", to]);
            let look = format!("cat '{to}'; stat -c ' %a' '{to}'");
            assert_eq!(mount.bash(&look), "bytes 640\n");
            let said = refused(mount, &["restore", &point, &id, "--to", to], 10);
            assert!(said.contains("--force"), "{said}");
            mount.bash(&format!("echo other > '{to}'"));
            run(mount, &["restore", &point, &id, "--to", to, "--force"]);
            assert_eq!(mount.bash(&look), "bytes 640\n");
        }
        refused(mount, &["restore", &point, &id, "--to", "/nowhere/f"], 10);
        let names: Vec<_> = fs::read_dir(&home)
            .expect("a directory")
            .flatten()
            .map(|e| e.file_name())
            .collect();
        assert!(
            !names.iter().any(|n| n.to_string_lossy().starts_with('.')),
            "{names:?}"
        );
    });
}

#[test]
fn a_restore_waits_its_turn_and_leads_through_no_link() {
    as_each_user(|mount| {
        mount.bash("mkdir d; echo old > d/f");
        kill_writer(mount, "'d/f'", "b'kept'");
        let (id, point) = (newest(mount), shown(mount.point()));
        let mut writer = mount
            .spawn_python("f = open('d/f', 'r+'); say('open'); hear(); f.close(); say('closed')");
        writer.expect("open");
        let mut command = mount.command(LATCHFS);
        let mut waiting = command
            .args(["kept", "restore", point, &id])
            .stdout(Stdio::null())
            .spawn()
            .expect("it");
        crate::common::wait_until_parked(waiting.id(), 1);
        assert_eq!(mount.read_behind("d/f"), "old\n");
        writer.tell("close");
        writer.expect("closed");
        assert!(waiting.wait().expect("its end").success());
        assert_eq!(mount.read_behind("d/f"), "kept");
        // Whoever owns the directory must not lead root elsewhere.
        mount.bash("mv d away; mkdir ../trap; echo mine > ../trap/f; ln -s ../trap d");
        for served in [true, false] {
            if !served {
                mount.unmount();
            }
            let backing = shown(mount.backing());
            let said = refused(mount, &["restore", "--force", backing, &id], 10);
            assert!(said.contains("--to FILE"), "{said}");
            let trap = mount.point().with_file_name("trap").join("f");
            assert_eq!(fs::read_to_string(trap).expect("it"), "mine\n");
        }
        mount.start();
    });
}

#[test]
fn kept_versions_are_purged_by_id_by_age_or_all() {
    as_each_user(|mount| {
        for letter in ["a", "b", "c", "d", "e"] {
            kill_writer(mount, &format!("'{letter}'"), &format!("b'{letter}' * 10"));
        }
        let all = kept(mount);
        let id = |n: usize| all[n].0["id"].as_str().expect("an ID");
        let point = shown(mount.point());
        // A wrong one among them: nothing is removed.
        refused(mount, &["purge", point, id(0), "wrong"], 10);
        assert_eq!(kept(mount).len(), 5);
        let said = run(mount, &["purge", point, id(0), id(0)]);
        assert!(said.contains("1 kept version purged (10 B)"), "{said}");
        // By age, as the record tells it.
        let path = mount.behind(&format!(".latchfs/kept/{}.json", id(1)));
        let mut record: serde_json::Value =
            serde_json::from_slice(&fs::read(&path).expect("it")).expect("JSON");
        record["time"] = (record["time"].as_u64().expect("a time") - 7200).into();
        fs::write(&path, record.to_string()).expect("write");
        let said = json(mount, &["purge", "--json", point, "--older-than", "1h"]);
        assert_eq!(said, serde_json::json!({"purged": [id(1)], "bytes": 10}));
        // Only those of one file.
        run(mount, &["purge", "--all", &format!("{point}/c")]);
        let left: Vec<_> = kept(mount).into_iter().map(|(_, bytes)| bytes[0]).collect();
        assert_eq!(left, b"de");
        mount.unmount();
        run(mount, &["purge", "--all", shown(mount.backing())]);
        assert_eq!(mount.store("kept"), [""; 0]);
        mount.start();
        // Something has to be said.
        for args in [&["purge", point][..], &["purge", point, "x", "--all"]] {
            let said = refused(mount, args, 2);
            assert!(said.contains("see latchfs --help"), "{said}");
        }
    });
}

#[test]
fn damaged_and_foreign_entries_are_told_and_can_be_had_all_the_same() {
    as_each_user(|mount| {
        kill_writer(mount, "'f'", "b'whole'");
        let dir = mount.behind(".latchfs/kept");
        let put = |name: &str, content: &str| {
            fs::write(dir.join(name), content).expect("write");
            if mount.user() == User::Ordinary {
                let (uid, gid) = test_user();
                std::os::unix::fs::chown(dir.join(name), Some(uid), Some(gid)).expect("chown");
            }
        };
        put("norecord.data", "bytes");
        put("broken.data", "bytes");
        put("broken.json", "{\"path\": \"/f\", ");
        put("short.data", "byt");
        put(
            "short.json",
            r#"{"path":"/g","time":5,"pid":6,"program":"sh","reason":"x","size":5}"#,
        );
        put("old.data", "bytes");
        put(
            "old.json",
            r#"{"path":"/old","time":5,"pid":6,"program":"sh","reason":"x"}"#,
        );
        // Not ours.
        put("README", "");
        put("lonely.json", "{}");
        fs::create_dir(dir.join("dir.data")).expect("mkdir");
        std::os::unix::fs::symlink("/etc/passwd", dir.join("link.data")).expect("ln");
        let point = shown(mount.point());
        let listed = json(mount, &["list", "--json", point]);
        let listed = listed.as_array().expect("a list");
        assert_eq!(listed.len(), 5, "{listed:?}");
        for (id, flaw) in [
            ("norecord", "no-record"),
            ("broken", "damaged-record"),
            ("short", "other-size"),
        ] {
            let entry = listed.iter().find(|e| e["id"] == id).expect(id);
            assert_eq!(entry["flaw"], flaw);
            let said = run(mount, &["show", point, id]);
            assert!(said.contains("damaged:"), "{said}");
            assert!(
                try_kept(mount, &["show", "--data", point, id])
                    .stdout
                    .starts_with(b"byt")
            );
        }
        let said = run(mount, &["list", point]);
        assert_eq!(said.matches(" damaged ").count(), 3, "{said}");
        // Where it was to be is not known.
        for id in ["norecord", "broken"] {
            let said = refused(mount, &["restore", point, id], 10);
            assert!(said.contains("--to FILE"), "{said}");
        }
        let to = mount.point().with_file_name("out");
        run(mount, &["restore", point, "broken", "--to", shown(&to)]);
        assert_eq!(fs::read_to_string(to).expect("it"), "bytes");
        run(mount, &["restore", point, "old"]);
        assert_eq!(mount.read("old"), "bytes");
        run(mount, &["purge", "--all", point]);
        let left = mount.store("kept");
        assert_eq!(left, ["README", "dir.data", "link.data", "lonely.json"]);
    });
}

#[test]
fn kept_versions_are_open_to_the_user_of_the_daemon_and_to_root_only() {
    let mount = options().arg("-oallow_other").mount();
    kill_writer(&mount, "'f'", "b'secret'");
    let (uid, gid) = test_user();
    for path in [mount.point(), mount.backing()] {
        let mut command = std::process::Command::new(LATCHFS);
        std::os::unix::process::CommandExt::uid(&mut command, uid);
        std::os::unix::process::CommandExt::gid(&mut command, gid);
        command.args(["kept", "list"]).arg(path).current_dir("/");
        let output = finish(&mut command);
        assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
        assert!(!text(&output.stdout).contains("/f"));
    }
    // The mount does not show them to root, either.
    assert!(!mount.path(".latchfs").exists());
    let mount = options().user(User::Ordinary).mount();
    kill_writer(&mount, "'f'", "b'secret'");
    let mut command = std::process::Command::new(LATCHFS);
    command.args(["kept", "list"]).arg(mount.backing());
    let said = successful("list", &finish(&mut command));
    assert!(said.contains("/f"), "{said}");
}

#[test]
fn the_command_works_where_nothing_was_ever_kept() {
    let dir = tempfile::tempdir().expect("a directory");
    let mount = options().mount();
    let path = shown(dir.path());
    assert!(run(&mount, &["list", path]).contains("nothing is kept"));
    assert_eq!(fs::read_dir(path).expect("it").count(), 0);
    refused(&mount, &["list", "/does/not/exist/at/all"], 3);
    refused(&mount, &["purge", path, "x"], 10);
    assert!(run(&mount, &["purge", path, "--all"]).contains("0 kept versions purged"));
}

#[test]
fn the_command_in_the_log_gets_it_back() {
    as_each_user(|mount| {
        mount.bash("echo old > f");
        kill_writer(mount, "'f'", "b'what was lost'");
        let log = mount.log();
        let (_, command) = log
            .split_once("to get it back: latchfs ")
            .expect("a command");
        let command = command.lines().next().expect("a line");
        mount.bash(&format!("{LATCHFS} {command}"));
        assert_eq!(mount.read("f"), "what was lost");
    });
}

#[test]
fn what_was_refused_is_refused_again_and_can_be_had_elsewhere() {
    as_each_user(|mount| {
        mount.bash(r#"echo '{"good": 1}' > f.json"#);
        let said = mount.python(
            "f = open('f.json', 'w'); f.write('{\"half\": ')\n\
             try: f.close()\nexcept OSError as e: say(errno.errorcode[e.errno])",
        );
        assert_eq!(said, "EBADMSG\n");
        let (record, bytes) = only(mount);
        assert_eq!(record["kind"], "refused");
        assert_eq!(bytes, b"{\"half\": ");
        let reason = record["reason"].as_str().expect("a reason");
        assert!(reason.contains("line 1"), "{reason}");
        let id = record["id"].as_str().expect("an ID");
        for served in [true, false] {
            if !served {
                mount.unmount();
            }
            let backing = shown(mount.backing());
            let said = refused(mount, &["restore", backing, id], 10);
            assert!(said.contains("--to FILE"), "{said}");
            // The attempt is not kept once more.
            assert_eq!(only(mount), (record.clone(), bytes.clone()));
            assert_eq!(mount.read_behind("f.json"), "{\"good\": 1}\n");
            let to = mount.point().with_file_name(format!("half{served}"));
            run(mount, &["restore", backing, id, "--to", shown(&to)]);
            assert_eq!(fs::read(to).expect("it"), bytes);
        }
        mount.start();
    });
}

#[test]
fn of_a_mount_in_place_everything_works_by_its_one_path() {
    for user in [User::Root, User::Ordinary] {
        let mount = options().user(user).in_place().mount();
        mount.bash("mkdir d; echo old > d/f");
        kill_writer(&mount, "'d/f'", "b'kept'");
        let dir = shown(mount.point());
        let listed = json(&mount, &["list", "--json", dir]);
        assert_eq!(listed[0]["path"], "/d/f", "{listed}");
        let id = listed[0]["id"].as_str().expect("an ID").to_owned();
        assert_eq!(run(&mount, &["show", "--data", dir, &id]), "kept");
        run(&mount, &["restore", dir, &id]);
        assert_eq!(mount.read("d/f"), "kept");
        run(&mount, &["purge", dir, &id]);
        assert_eq!(
            json(&mount, &["list", "--json", dir]),
            serde_json::json!([])
        );
    }
}
