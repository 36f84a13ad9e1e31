//! Logs as programs write and rotate them.

use crate::common::{as_each_user, finish, options};
use std::fs;

const LOGGER: &str = r#"
import logging, logging.handlers, sys
handler = logging.FileHandler("app.log")
log = logging.getLogger(); log.addHandler(handler)
for n in range(400):
    log.warning("%s message %d %s", sys.argv[1], n, "x" * (n * 7 % 3000))
"#;

#[test]
fn no_line_of_several_processes_that_log_by_pythons_logging_is_lost() {
    as_each_user(|mount| {
        std::thread::scope(|scope| {
            for who in 0..4 {
                let mut logger = mount.command("python3");
                logger
                    .args(["-c", LOGGER, &who.to_string()])
                    .current_dir(mount.point());
                scope.spawn(move || {
                    let output = finish(&mut logger);
                    assert!(output.status.success(), "{output:?}");
                });
            }
        });
        let log = mount.read("app.log");
        for who in 0..4 {
            let own: Vec<&str> = log
                .lines()
                .filter(|l| l.starts_with(&format!("{who} ")))
                .collect();
            assert_eq!(own.len(), 400);
            for (n, line) in own.iter().enumerate() {
                let x = "x".repeat(n * 7 % 3000);
                assert_eq!(*line, format!("{who} message {n} {x}"));
            }
        }
    });
}

/// A program that writes numbered lines to a log that it keeps open, until it is told to stop; and
/// logrotate meanwhile. Returns all that is in the log and its predecessors, oldest first.
fn rotated(how: &str) -> Vec<String> {
    let mount = options().mount();
    let mut program = mount.spawn_python(
        "import select\nf = open('app.log', 'ab', buffering=0); n = 0; say('open')\n\
         while not select.select([sys.stdin], [], [], 0)[0]:\n\
         \x20   f.write(b'line %d\\n' % n); n += 1\n\
         \x20   if os.path.exists('reopen'):\n\
         \x20       os.unlink('reopen'); f = open('app.log', 'ab', buffering=0)\n\
         say(n)",
    );
    program.expect("open");
    let conf = mount.backing().with_file_name("rotate.conf");
    let log = mount.path("app.log");
    fs::write(
        &conf,
        format!(
            "{} {{\n rotate 9\n {how}\n nocompress\n su root root\n }}\n",
            log.display()
        ),
    )
    .expect("write");
    for _ in 0..3 {
        let before = fs::metadata(&log).expect("stat").len();
        crate::common::wait_until("it has written more", || {
            fs::metadata(&log).is_ok_and(|now| now.len() > before + 1000)
        });
        let mut rotate = mount.command("/usr/sbin/logrotate");
        let state = conf.with_extension("state");
        let output = finish(rotate.arg("-f").arg("-s").arg(state).arg(&conf));
        assert!(output.status.success(), "{output:?}");
        if how.contains("create") {
            fs::write(mount.path("reopen"), "").expect("write");
            crate::common::wait_until("it has opened the new log", || {
                !mount.path("reopen").exists()
            });
        }
    }
    program.tell("stop");
    let written: usize = program.hear().parse().expect("a number");
    program.succeed();
    let mut lines = Vec::new();
    for name in ["app.log.3", "app.log.2", "app.log.1", "app.log"] {
        lines.extend(mount.read(name).lines().map(str::to_owned));
    }
    assert_eq!(lines.last(), Some(&format!("line {}", written - 1)));
    mount.unmount();
    lines
}

#[test]
fn logrotate_that_creates_a_new_log_loses_nothing() {
    let lines = rotated("create 640 root root");
    for (n, line) in lines.iter().enumerate() {
        assert_eq!(*line, format!("line {n}"));
    }
}

#[test]
fn logrotate_that_copies_and_truncates_leaves_whole_lines() {
    // What is written between its copy and its truncation is lost, as everywhere.
    let lines = rotated("copytruncate");
    let numbers = lines.iter().map(|line| {
        let number = line
            .strip_prefix("line ")
            .and_then(|n| n.parse::<u64>().ok());
        number.unwrap_or_else(|| panic!("not a line: {line:?}"))
    });
    assert!(numbers.is_sorted());
}
