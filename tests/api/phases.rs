//! `latchfs phases`, in a plain directory and in a mount.

use crate::common::{LATCHFS, Running, finish, mount, text};
use crate::in_both;
use crate::python::{HOLD, python};
use latchfs::Phase;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const COMPLETE: i32 = 0;
const NO_DIRECTORY: i32 = 3;
const INCOMPLETE: i32 = 11;

fn phases(dir: &Path, options: &[&str]) -> Output {
    let mut command = Command::new(LATCHFS);
    finish(
        command
            .arg("phases")
            .arg(dir)
            .args(options)
            .stdin(Stdio::null()),
    )
}

/// The document, and the exit code.
fn document(dir: &Path) -> (Value, Option<i32>) {
    let output = phases(dir, &["--json"]);
    let value = serde_json::from_slice(&output.stdout).expect("a document");
    (value, output.status.code())
}

fn states(document: &Value) -> Vec<String> {
    let phases = document["phases"].as_array().expect("a list").iter();
    phases
        .map(|phase| phase["state"].as_str().expect("a state").to_owned())
        .collect()
}

fn save(dir: &Path, phase: Phase) {
    latchfs::save_analysis_phase_safe(dir, phase, &json!({"of": phase.name()})).expect("saved");
}

#[test]
fn each_phase_is_missing_in_flight_valid_or_invalid() {
    in_both(|dir| {
        let (nothing, code) = document(dir);
        assert_eq!(
            (states(&nothing), code),
            (vec!["missing".to_owned(); 5], Some(INCOMPLETE))
        );
        assert_eq!(nothing["complete"], json!(false));
        save(dir, Phase::StockUniverse);
        // Not through the rules of the mount, which would refuse it.
        let wrong = dir.join("wrong");
        fs::write(&wrong, "{\n  \"a\" 1}").expect("written");
        fs::rename(&wrong, dir.join("technical_analysis.json")).expect("renamed");
        fs::write(dir.join("fundamental_analysis.json"), "").expect("written");
        save(dir, Phase::SentimentAnalysis);
        let mut other = python(HOLD, &[&dir.join("sentiment_analysis.json")]);
        other.expect("locked");
        let (found, code) = document(dir);
        let expected = ["valid", "invalid", "invalid", "in_flight", "missing"];
        assert_eq!(
            (states(&found), code),
            (expected.map(str::to_owned).to_vec(), Some(INCOMPLETE))
        );
        let list = &found["phases"];
        assert_eq!(list[0]["file"], json!("stock_universe.json"));
        assert_eq!(list[0]["size"], json!(29));
        assert!(list[0]["age"].as_f64().expect("an age") < 100.0);
        let error = &list[1]["error"];
        assert_eq!(
            (&error["line"], &error["column"]),
            (&json!(2), &json!(7)),
            "{error}"
        );
        assert_eq!(list[4]["size"], Value::Null);
        let output = text(&phases(dir, &[]).stdout);
        assert!(
            output.contains("line 2, column 7: expected `:`"),
            "{output}"
        );
        other.tell("");
        other.expect("unlocked");
        other.succeed();
        assert!(!latchfs::is_analysis_complete(dir).expect("looked"));
        Phase::ALL.into_iter().for_each(|phase| save(dir, phase));
        let (all, code) = document(dir);
        assert_eq!((&all["complete"], code), (&json!(true), Some(COMPLETE)));
        assert!(latchfs::is_analysis_complete(dir).expect("looked"));
    });
}

#[test]
fn who_holds_the_lock_on_a_phase_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    save(dir.path(), Phase::StockUniverse);
    let mut other = python(HOLD, &[&dir.path().join("stock_universe.json")]);
    other.expect("locked");
    let (found, _) = document(dir.path());
    let expected = json!({"pid": other.pid(), "program": "python3", "seconds": null});
    assert_eq!(found["phases"][0]["in_flight"], expected);
    let output = text(&phases(dir.path(), &[]).stdout);
    assert!(
        output.contains(&format!("by python3 (pid {})", other.pid())),
        "{output}"
    );
    other.tell("");
    other.expect("unlocked");
    other.succeed();
}

/// Writes a file of a mount, and closes it when it hears a line.
fn writer(path: &Path) -> Running {
    python(
        "file = open(path, 'w')\nfile.write('{}')\nfile.flush()\nsay('open')\n\
         sys.stdin.readline()\nfile.close()\nsay('closed')\nsys.stdin.readline()\n",
        &[path],
    )
}

#[test]
fn a_mount_tells_who_is_writing_a_phase_and_lists_no_attribute_for_it() {
    let mount = mount();
    save(mount.point(), Phase::StockUniverse);
    let names = ["stock_universe.json", "final_rankings.json"];
    let mut writers = names.map(|name| writer(&mount.path(name)));
    for writer in &writers {
        writer.expect("open");
    }
    let (found, code) = document(mount.point());
    assert_eq!(code, Some(INCOMPLETE));
    for (at, writer) in [(0, &writers[0]), (4, &writers[1])] {
        let phase = &found["phases"][at];
        assert_eq!(phase["state"], json!("in_flight"));
        assert_eq!(phase["in_flight"]["pid"], json!(writer.pid()));
        assert_eq!(phase["in_flight"]["program"], json!("python3"));
        assert!(phase["in_flight"]["seconds"].as_f64().expect("a time") < 100.0);
    }
    for name in names {
        let mut list = [0; 1024];
        let length = rustix::fs::listxattr(mount.path(name), &mut list).expect("listxattr");
        let list = String::from_utf8_lossy(&list[..length]);
        assert!(!list.contains("latchfs"), "{list}");
    }
    for writer in &mut writers {
        writer.tell("");
        writer.expect("closed");
        writer.succeed();
    }
    let (found, _) = document(mount.point());
    assert_eq!(
        states(&found),
        ["valid", "missing", "missing", "missing", "valid"]
    );
    assert_eq!(found["phases"][0]["in_flight"], Value::Null);
}

#[test]
fn wait_returns_when_the_analysis_is_complete() {
    in_both(|dir| {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(LATCHFS);
        command.args(["phases", "--wait=50s", "--json"]).arg(dir);
        let mut waiting = Running::new(command.process_group(0));
        Phase::ALL.into_iter().for_each(|phase| save(dir, phase));
        waiting.expect("{");
        waiting.succeed();
    });
}

#[test]
fn a_pipeline_that_knows_nothing_of_latchfs_is_waited_for() {
    let mount = mount();
    let mut command = Command::new(LATCHFS);
    command
        .arg("phases")
        .arg(mount.point())
        .args(["--wait", "50"]);
    let waiting = std::thread::spawn(move || finish(command.stdin(Stdio::null())));
    let pipeline = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/pipeline.py");
    let output = finish(Command::new("python3").arg(pipeline).arg(mount.point()));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let output = waiting.join().expect("the waiting one");
    assert_eq!(
        output.status.code(),
        Some(COMPLETE),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_wait_that_is_over_and_a_directory_that_is_not_there_have_exit_codes() {
    let dir = tempfile::tempdir().expect("a directory");
    let output = phases(dir.path(), &["--wait", "100ms"]);
    assert_eq!(output.status.code(), Some(INCOMPLETE));
    let said = text(&output.stderr);
    assert!(
        said.contains("not complete in time: stock_universe, "),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
    let output = phases(&dir.path().join("nowhere"), &[]);
    assert_eq!(
        output.status.code(),
        Some(NO_DIRECTORY),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn the_example_of_the_command_runs() {
    let dir = tempfile::tempdir().expect("a directory");
    Phase::ALL
        .into_iter()
        .for_each(|phase| save(dir.path(), phase));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/phases.sh");
    let bin = Path::new(LATCHFS).parent().expect("its directory");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("sh");
    command.arg(script).arg(dir.path());
    command.env("PATH", format!("{}:{path}", bin.display()));
    let output = finish(command.stdin(Stdio::null()));
    let said = text(&output.stdout);
    assert!(
        output.status.success() && said.ends_with("complete: true\n"),
        "{said}"
    );
}
