//! What an earlier daemon may have left, made by hand, is put right and logged.

use crate::common::{Mount, User, options, text};
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

pub const BOTH: [User; 2] = [User::Root, User::Ordinary];

/// Gives what the test made to the user who mounts.
pub fn give(mount: &Mount, path: &Path) {
    let owner = mount.backing().metadata().expect("stat");
    chown(path, Some(owner.uid()), Some(owner.gid())).expect("chown");
}

pub fn put(mount: &Mount, name: &str, content: &str) {
    let path = mount.behind(".latchfs").join(name);
    fs::write(&path, content).expect("write");
    give(mount, &path);
}

/// A redo record for a file of BACKING, and the version beside it.
pub fn put_redo(mount: &Mount, id: &str, name: &str, content: &str) {
    let stat = mount.behind(name).metadata().expect("stat");
    let path: Vec<Vec<u8>> = name
        .split('/')
        .map(|part| part.as_bytes().to_vec())
        .collect();
    let record = format!(
        r#"{{"path":{path:?},"dev":{},"ino":{},"time":1}}"#,
        stat.dev(),
        stat.ino()
    );
    put(mount, &format!("redo/{id}.data"), content);
    put(mount, &format!("redo/{id}.json"), &record);
}

/// What the log says was put right, all of it before the mount served.
pub fn put_right(mount: &Mount) -> Vec<String> {
    let log = mount.log();
    let last = log
        .rfind("latchfs::fuse::session] serving")
        .expect("it serves");
    let before = log[..last].rfind("is unmounted").unwrap_or(0);
    assert!(!log[last..].contains("WARN"), "{log}");
    let warnings = log[before..last]
        .lines()
        .filter(|line| line.contains("WARN"));
    warnings.map(str::to_owned).collect()
}

#[test]
fn a_leftover_of_a_commit_is_removed() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("echo x > f");
        mount.unmount();
        put(&mount, "tmp/123.4", "half a version");
        put(&mount, "tmp/anything", "");
        mount.start();
        assert_eq!(mount.store("tmp"), [""; 0]);
        let said = put_right(&mount);
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(
            said.iter().any(|line| line.contains("tmp/123.4")),
            "{said:?}"
        );
        assert_eq!(mount.bash("ls -A; cat f"), "f\nx\n");
    }
}

/// The name of an exchange in `.latchfs/tmp`: which version takes the place of which file.
fn ticket(version: &fs::Metadata, old: &fs::Metadata) -> String {
    format!(
        "1a.2-{:x}-{:x}-{:x}-{:x}-{:x}",
        version.ino(),
        old.ino(),
        old.size(),
        old.mtime(),
        old.mtime_nsec()
    )
}

#[test]
fn an_exchange_that_was_interrupted_leaves_nothing_but_what_is_not_latchfs_own() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("mkdir d; echo version > d/f; echo old > old; echo theirs > theirs");
        mount.unmount();
        let stat = |name: &str| mount.behind(name).metadata().expect("stat");
        let name = ticket(&stat("d/f"), &stat("old"));
        // The old version, which the new one has replaced.
        let leave = |file: &str| {
            let to = mount.behind(".latchfs/tmp").join(&name);
            fs::rename(mount.behind(file), to).expect("mv");
        };
        leave("old");
        mount.start();
        assert_eq!(mount.store("tmp"), [""; 0]);
        assert_eq!(mount.store("kept"), [""; 0]);
        mount.unmount();
        // What somebody put in its place in that moment.
        leave("theirs");
        mount.start();
        assert_eq!(mount.store("tmp"), [""; 0]);
        let said = put_right(&mount);
        assert!(
            said.iter().any(|line| line.contains("in the place of d/f")),
            "{said:?}"
        );
        let kept = mount.store("kept");
        assert_eq!(kept.len(), 2, "{kept:?}");
        let data = kept
            .iter()
            .find(|name| name.ends_with(".data"))
            .expect("the file");
        assert_eq!(
            mount.read_behind(&format!(".latchfs/kept/{data}")),
            "theirs\n"
        );
        assert_eq!(
            mount.bash("ls -A . d; cat d/f"),
            ".:\nd\n\nd:\nf\nversion\n"
        );
    }
}

pub fn chmod(path: &std::path::Path, mode: u32) {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
    fs::set_permissions(path, mode).expect("chmod");
}

#[test]
fn an_interrupted_rewrite_is_finished() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("mkdir 'a dir'; echo old > 'a dir/f'; ln 'a dir/f' g; chmod 640 g");
        mount.unmount();
        put_redo(&mount, "1.0", "a dir/f", "the new version\n");
        // The version has the attributes that the file is to have.
        chmod(&mount.behind(".latchfs/redo/1.0.data"), 0o640);
        // As a crash in the middle of it leaves the file.
        fs::write(mount.behind("g"), "the n").expect("write");
        mount.start();
        assert_eq!(mount.store("redo"), [""; 0]);
        assert_eq!(mount.store("kept"), [""; 0]);
        let said = put_right(&mount);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(
            said[0].contains("finished the interrupted update of a dir/f"),
            "{said:?}"
        );
        assert_eq!(
            mount.bash("cat g 'a dir/f'; stat -c '%h %a' g"),
            "the new version\nthe new version\n2 640\n"
        );
        // Once is enough.
        mount.unmount();
        mount.start();
        assert_eq!(put_right(&mount), [""; 0]);
    }
}

#[test]
fn an_interrupted_rewrite_of_a_read_only_file_is_finished() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("echo old > f; ln f g; chmod 444 f");
        mount.unmount();
        put_redo(&mount, "1.0", "f", "new\n");
        chmod(&mount.behind(".latchfs/redo/1.0.data"), 0o444);
        mount.start();
        assert_eq!(mount.bash("cat g; stat -c '%h %a' g"), "new\n2 444\n");
    }
}

#[test]
fn a_rewrite_of_a_file_that_is_no_longer_there_is_kept_aside() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("echo old > f; echo other > h");
        mount.unmount();
        put_redo(&mount, "1.0", "f", "new\n");
        fs::rename(mount.behind("h"), mount.behind("f")).expect("mv");
        mount.start();
        assert_eq!(mount.store("redo"), [""; 0]);
        assert_eq!(mount.store("kept").len(), 2);
        let data = mount
            .store("kept")
            .into_iter()
            .find(|name| name.ends_with(".data"));
        let data = mount.behind(".latchfs/kept").join(data.expect("the bytes"));
        assert_eq!(fs::read_to_string(data).expect("the bytes"), "new\n");
        let said = put_right(&mount);
        assert!(said.len() == 1 && said[0].contains("kept"), "{said:?}");
        assert_eq!(mount.bash("cat f"), "other\n");
    }
}

#[test]
fn an_interrupted_rewrite_of_a_file_that_was_renamed_is_finished() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("mkdir -p a/b x; echo old > a/b/f; ln a/b/f x/g; echo other > h");
        mount.unmount();
        put_redo(&mount, "1.0", "a/b/f", "new\n");
        fs::rename(mount.behind("a"), mount.behind("x/c")).expect("mv");
        mount.start();
        assert_eq!(mount.store("redo"), [""; 0]);
        assert_eq!(mount.bash("cat x/c/b/f x/g h"), "new\nnew\nother\n");
    }
}

#[test]
fn a_rewrite_is_not_done_to_another_file_that_got_the_inode_number() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("echo restored > f");
        mount.unmount();
        put_redo(&mount, "1.0", "f", "new\n");
        let record = mount.behind(".latchfs/redo/1.0.json");
        let text = fs::read_to_string(&record).expect("the record");
        let other = text.replace(r#","time""#, r#","born":[1,0],"time""#);
        assert_ne!(text, other);
        fs::write(&record, other).expect("write");
        mount.start();
        assert_eq!(mount.store("kept").len(), 2);
        assert_eq!(mount.bash("cat f"), "restored\n");
    }
}

#[test]
fn a_record_never_leads_out_of_backing() {
    use std::os::unix::fs::symlink;
    let mount = options().mount();
    let outside = mount.backing().with_file_name("outside");
    fs::create_dir(&outside).expect("mkdir");
    fs::write(outside.join("f"), "not ours\n").expect("write");
    mount.unmount();
    symlink(&outside, mount.behind("d")).expect("symlink");
    put_redo(&mount, "1.0", "d/f", "overwritten\n");
    put_redo(&mount, "2.0", "../outside/f", "overwritten\n");
    put(&mount, "redo/3.0.json", "no JSON");
    put(&mount, "redo/3.0.data", "whose?");
    mount.start();
    let content = fs::read_to_string(outside.join("f")).expect("the file");
    assert_eq!(content, "not ours\n");
    assert_eq!(mount.store("redo"), [""; 0]);
}

#[test]
fn a_damaged_record_does_not_stop_a_mount() {
    for (name, content) in [
        ("1.json", ""),
        ("2.json", "{}"),
        ("3.data", "x"),
        ("4.json", "{\"path\":[]"),
    ] {
        let mount = options().mount();
        mount.bash("echo x > f");
        mount.unmount();
        put(&mount, &format!("redo/{name}"), content);
        let output = mount.try_start();
        assert!(output.status.success(), "{name}: {}", text(&output.stderr));
        assert_eq!(mount.store("redo"), [""; 0], "{name}");
        assert_eq!(mount.read("f"), "x\n");
    }
}

#[test]
fn data_without_a_record_is_removed() {
    let mount = options().mount();
    mount.bash("echo x > f");
    mount.unmount();
    put(&mount, "redo/1.0.data", "never announced");
    mount.start();
    assert_eq!(mount.store("redo"), [""; 0]);
    assert_eq!(put_right(&mount).len(), 1);
    assert_eq!(mount.read("f"), "x\n");
}

#[test]
fn kept_versions_stay_over_mounts() {
    let mount = options().mount();
    mount.bash("echo old > f");
    let mut writer = mount.spawn_python(
        "f = open('f', 'w'); f.write('precious'); f.flush(); say('open'); hear(); f.close(); say('closed')",
    );
    writer.expect("open");
    mount.bash("rm f");
    writer.tell("close");
    writer.expect("closed");
    let kept = mount.store("kept");
    assert_eq!(kept.len(), 2);
    mount.unmount();
    mount.start();
    mount.crash();
    mount.start();
    assert_eq!(mount.store("kept"), kept);
}
