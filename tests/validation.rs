//! A version that is not what its file must be does not become the file.

mod common;

use common::{Mount, Options, User, as_each_user, options, text};
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// Options with this configuration file, which lives as long as what is returned beside them.
fn with(content: &str) -> (Options, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
    let path = dir.path().join("latchfs.toml");
    fs::write(&path, content).expect("write");
    (options().arg(format!("--config={}", path.display())), dir)
}

/// Writes a file whole by Python, and says how that ended.
fn write(mount: &Mount, name: &str, content: &str) -> String {
    mount.python(&format!(
        "try:\n    f = open({name:?}, 'wb')\n    f.write({content:?}.encode())\n    f.close()\n\
         except OSError as e:\n    print(errno.errorcode[e.errno], end='')\n"
    ))
}

#[test]
fn a_version_that_is_no_json_is_refused_and_kept_aside() {
    as_each_user(|mount| {
        assert_eq!(write(mount, "a.json", "{\"n\": 1}"), "");
        assert_eq!(
            write(mount, "a.json", "{\"n\": 2,\n \"m\": tru}"),
            "EBADMSG"
        );
        assert_eq!(mount.read("a.json"), "{\"n\": 1}");
        assert_eq!(mount.read_behind("a.json"), "{\"n\": 1}");
        assert!(
            mount.log().contains("it is not valid JSON: line 2, column"),
            "{}",
            mount.log()
        );
        assert!(
            mount
                .store("kept")
                .iter()
                .any(|name| name.ends_with(".data"))
        );
        // Emptied, or with something after its end.
        assert_eq!(write(mount, "a.json", ""), "EBADMSG");
        assert_eq!(write(mount, "a.json", "{} {}"), "EBADMSG");
        assert_eq!(mount.read("a.json"), "{\"n\": 1}");
        // The next one is none the worse for it.
        assert_eq!(write(mount, "a.json", "[3]\n"), "");
        assert_eq!(mount.read_behind("a.json"), "[3]\n");
    });
}

#[test]
fn without_the_rule_the_same_is_committed() {
    // The negative control of the test above.
    let (options, _dir) = with("[[rule]]\nmatch = '*.json'\nvalidate = 'none'\n");
    let mount = options.mount();
    for content in ["{\"n\": 1}", "{\"n\": 2,\n \"m\": tru}", "", "{} {}"] {
        assert_eq!(write(&mount, "a.json", content), "");
        assert_eq!(mount.read_behind("a.json"), content);
    }
}

#[test]
fn a_new_file_that_is_no_json_does_not_come_to_be_unless_it_is_empty() {
    as_each_user(|mount| {
        assert_eq!(write(mount, "new.json", "{\"half\": "), "EBADMSG");
        assert!(!mount.path("new.json").exists());
        assert!(!mount.behind("new.json").exists());
        mount.bash("touch empty.json; : > made.json; cp empty.json copied.json");
        for name in ["empty.json", "made.json", "copied.json"] {
            assert_eq!(mount.read_behind(name), "", "{name}");
            assert_eq!(write(mount, name, ""), "");
            assert_eq!(write(mount, name, "nonsense"), "EBADMSG");
            assert_eq!(write(mount, name, "{}"), "");
        }
    });
}

#[test]
fn a_file_that_never_was_json_is_written_as_before() {
    as_each_user(|mount| {
        mount.bash(&format!(
            "echo // no JSON > {}",
            mount.behind("odd.json").display()
        ));
        assert_eq!(write(mount, "odd.json", "// still none"), "");
        assert_eq!(mount.read_behind("odd.json"), "// still none");
        assert_eq!(write(mount, "odd.json", "[]"), "");
        assert_eq!(write(mount, "odd.json", "// again"), "EBADMSG");
        // JSON with comments, by custom.
        assert_eq!(write(mount, "tsconfig.json", "// none"), "");
    });
}

#[test]
fn an_update_in_place_a_truncation_and_an_append_are_checked() {
    as_each_user(|mount| {
        mount.bash("printf '[1, 2]' > a.json");
        let out =
            mount.try_python("f = open('a.json', 'r+b', 0)\nf.seek(5)\nf.write(b'x')\nf.close()\n");
        assert!(text(&out.stderr).contains("EBADMSG") || text(&out.stderr).contains("Bad message"));
        let out = mount.try_python("os.truncate('a.json', 3)");
        assert!(
            text(&out.stderr).contains("Bad message"),
            "{}",
            text(&out.stderr)
        );
        let out = mount.try_python("f = open('a.json', 'ab', 0)\nf.write(b'x')\nf.close()\n");
        assert!(
            text(&out.stderr).contains("Bad message"),
            "{}",
            text(&out.stderr)
        );
        assert_eq!(mount.read_behind("a.json"), "[1, 2]");
        mount.python("f = open('a.json', 'r+b', 0)\nf.seek(4)\nf.write(b'7')\nf.close()\n");
        assert_eq!(mount.read_behind("a.json"), "[1, 7]");
    });
}

#[test]
fn an_fsync_of_half_a_document_fails_and_the_close_commits_the_whole() {
    as_each_user(|mount| {
        mount.bash("echo '{}' > a.json");
        let said = mount.python(
            "f = open('a.json', 'wb', 0)\nf.write(b'[1,')\n\
             try:\n    os.fsync(f.fileno())\nexcept OSError as e:\n    say(errno.errorcode[e.errno])\n\
             f.write(b'2]')\nos.fsync(f.fileno())\nsay('whole')\nf.write(b' ')\nf.close()\n",
        );
        assert_eq!(said, "EBADMSG\nwhole\n");
        assert_eq!(mount.read_behind("a.json"), "[1,2] ");
    });
}

#[test]
fn json_lines_and_csv_are_checked_by_rule() {
    let (options, _dir) = with(
        "[[rule]]\nmatch = '*.jsonl'\nvalidate = 'jsonl'\n[[rule]]\nmatch = '/data/**.csv'\nvalidate = 'csv'\n",
    );
    let mount = options.mount();
    mount.bash("mkdir data");
    assert_eq!(write(&mount, "a.jsonl", "{}\n[1]\n"), "");
    assert_eq!(write(&mount, "a.jsonl", "{}\n[1\n"), "EBADMSG");
    assert_eq!(write(&mount, "data/a.csv", "a,b\n1,2\n"), "");
    assert_eq!(write(&mount, "data/a.csv", "a,b\n1\n"), "EBADMSG");
    assert_eq!(write(&mount, "a.csv", "a,b\n1\n"), "");
    assert_eq!(mount.read_behind("a.jsonl"), "{}\n[1]\n");
    assert_eq!(mount.read_behind("data/a.csv"), "a,b\n1,2\n");
    assert!(mount.log().contains("/data/a.csv: "), "{}", mount.log());
}

#[test]
fn a_program_decides_what_is_committed() {
    let (options, _dir) = with(
        "[[rule]]\nmatch = '*.ini'\nvalidate_command = ['grep', '-q', '^good']\n\
         [[rule]]\nmatch = '*.slow'\nvalidate_command = ['sleep', '60']\nvalidate_timeout = '100ms'\n\
         [[rule]]\nmatch = '*.odd'\nvalidate_command = ['/nowhere/check']\n",
    );
    for user in [User::Root, User::Ordinary] {
        let mount = options.clone().user(user).mount();
        assert!(
            mount.log().contains("/nowhere/check, by which"),
            "{}",
            mount.log()
        );
        assert_eq!(write(&mount, "a.ini", "good = 1\n"), "");
        assert_eq!(write(&mount, "a.ini", "bad = 1\n"), "EBADMSG");
        assert_eq!(mount.read_behind("a.ini"), "good = 1\n");
        assert_eq!(write(&mount, "a.slow", "x"), "EBADMSG");
        assert!(mount.log().contains("sleep did not answer within 100ms"));
        assert_eq!(write(&mount, "a.odd", "x"), "EIO");
        assert!(mount.log().contains("/nowhere/check: No such file"));
        mount.bash("touch new.ini");
    }
}

#[test]
fn a_file_is_checked_by_the_name_that_it_gets() {
    let mount = common::mount();
    let mut writer = mount.spawn_python(
        "f = open('draft', 'w')\nsay('open')\nhear()\nf.write('no json')\n\
         try:\n    f.close()\nexcept OSError as e:\n    say(errno.errorcode[e.errno])\n",
    );
    writer.expect("open");
    mount.bash("mv draft final.json");
    writer.tell("go on");
    writer.expect("EBADMSG");
    writer.succeed();
    assert!(!mount.behind("final.json").exists());
}

#[test]
fn a_document_is_checked_in_memory_that_does_not_grow_with_it() {
    let mount = options().arg("--durability=none").mount();
    mount.python(
        "with open('big.json', 'wb') as f:\n    f.write(b'[')\n    part = b'[1234567,\"abcdefgh\"],' * 50000\n    \
         for _ in range(64):\n        f.write(part)\n    f.write(b'0]')\n",
    );
    assert!(mount.behind("big.json").metadata().expect("it").len() > 64 << 20);
    let status = fs::read_to_string(format!("/proc/{}/status", mount.daemon())).expect("status");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak: u64 = peak
        .and_then(|p| p.trim().strip_suffix(" kB"))
        .expect("a size")
        .parse()
        .expect("a number");
    assert!(peak < 48 << 10, "{peak} KiB");
}
