//! How the command refuses: exit codes and one-line errors that need no mount.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Two directories that could become a mount.
struct Scene {
    guard: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let guard = tempfile::tempdir().unwrap();
        for name in ["backing/sub", "point"] {
            fs::create_dir_all(guard.path().join(name)).unwrap();
        }
        fs::write(guard.path().join("file"), "").unwrap();
        Self { guard }
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_latchfs"))
            .args(args)
            .current_dir(self.guard.path())
            .output()
            .unwrap()
    }

    /// Runs the command, which must refuse with this code, in one line with these words, and leave
    /// everything as it is.
    #[track_caller]
    fn refuses(&self, args: &[&str], code: i32, words: &str) {
        let before = tree(self.guard.path());
        let output = self.run(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(
            stderr.starts_with("latchfs: ") && stderr.contains(words),
            "{stderr}"
        );
        assert_eq!(
            stderr.find('\n'),
            Some(stderr.len() - 1),
            "not one line: {stderr}"
        );
        assert_eq!(output.stdout, b"");
        assert_eq!(tree(self.guard.path()), before);
    }
}

/// All paths below a directory.
fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.append(&mut tree(&path));
        }
        found.push(path);
    }
    found.sort();
    found
}

#[test]
fn a_bad_command_line_exits_with_2() {
    let scene = Scene::new();
    scene.refuses(&[], 2, "requires a subcommand");
    scene.refuses(&["mount"], 2, "<BACKING>");
    scene.refuses(&["mount", "--bogus", "backing", "point"], 2, "--bogus");
    scene.refuses(
        &["mount", "-o", "ro,bogus", "backing", "point"],
        2,
        "mount option: bogus",
    );
    scene.refuses(
        &["mount", "--lock-timeout", "0", "backing", "point"],
        2,
        "longer than 0",
    );
    scene.refuses(
        &["mount", "-o", "auto_unmount", "backing", "point"],
        2,
        "allow_other",
    );
}

#[test]
fn a_log_file_that_cannot_be_had_exits_with_2() {
    let scene = Scene::new();
    for path in ["missing/log", "point/log", "backing"] {
        let args = ["mount", "--log-file", path, "backing", "point"];
        scene.refuses(
            &args,
            2,
            &format!(
                "the log file {}",
                if path == "backing" { "/" } else { path }
            ),
        );
    }
}

#[test]
fn a_bad_backing_exits_with_3() {
    let scene = Scene::new();
    scene.refuses(
        &["mount", "missing", "point"],
        3,
        "BACKING missing does not exist",
    );
    scene.refuses(
        &["mount", "file", "point"],
        3,
        "BACKING file is not a directory",
    );
}

#[test]
fn a_bad_mountpoint_exits_with_4() {
    let scene = Scene::new();
    scene.refuses(
        &["mount", "backing", "missing"],
        4,
        "MOUNTPOINT missing does not exist",
    );
    scene.refuses(
        &["mount", "backing", "file"],
        4,
        "MOUNTPOINT file is not a directory",
    );
    scene.refuses(&["mount", "backing", "backing/sub"], 4, "is inside BACKING");
    scene.refuses(
        &["mount", "backing/sub", "backing"],
        4,
        "is inside MOUNTPOINT",
    );
}

#[test]
fn unmounting_what_is_no_latchfs_mount_exits_with_7() {
    let scene = Scene::new();
    scene.refuses(&["umount", "point"], 7, "point is not a latchfs mount");
    scene.refuses(&["unmount", "missing"], 7, "missing is not a latchfs mount");
}

#[test]
fn help_and_version_go_to_stdout_and_list_the_exit_codes() {
    let scene = Scene::new();
    for args in [&["--help"][..], &["mount", "--help"], &["umount", "--help"]] {
        let output = scene.run(args);
        assert!(output.status.success());
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(
            help.contains("Exit codes:\n  0  done\n  1  internal failure"),
            "{help}"
        );
    }
    let output = scene.run(&["--version"]);
    assert!(output.status.success() && output.stdout.starts_with(b"latchfs "));
}
