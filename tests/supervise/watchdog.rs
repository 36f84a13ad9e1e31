//! A daemon that does not answer is found, and one that is only slow is left alone.

use crate::common::reliability::Row;
use crate::common::supervised::supervised;
use crate::common::{
    Mount, Running, Stopped, User, alive, finish, options, successful, wait_until,
};
use std::path::{Path, PathBuf};
use std::process::Command;

const BOTH: [User; 2] = [User::Root, User::Ordinary];

/// How often the mount has answered the watchdog.
fn answers(mount: &Mount) -> usize {
    let answers = format!("] {} answers\n", mount.point().display());
    mount.log().matches(&answers).count()
}

/// Waits until the watchdog has had so many more answers. Three times the time that the mount may be
/// silent are nine.
fn wait_for_answers(mount: &Mount, more: usize) {
    let before = answers(mount);
    wait_until("the watchdog has its answers", || {
        answers(mount) >= before + more
    });
}

#[test]
fn a_daemon_that_does_not_answer_is_found_told_and_replaced() {
    let mut replaced = 0;
    for user in BOTH {
        let mount = supervised(user).arg("--watchdog=2s").mount();
        mount.bash("echo x > f");
        wait_for_answers(&mount, 1);
        // Who asks for something gets an error, at last.
        let mut blocked = mount.spawn_python(
            "say('ready'); hear()\ntry: open('new', 'w'); say('opened')\nexcept OSError: say('failed')",
        );
        blocked.expect("ready");
        let daemon = mount.daemon();
        let stopped = Stopped::new(daemon);
        blocked.tell("go on");
        blocked.wait_until_blocked();
        mount.wait_for_restart(0);
        blocked.expect("failed");
        blocked.succeed();
        assert!(!alive(daemon));
        drop(stopped);
        let log = mount.log();
        assert!(
            log.contains(&format!("process {daemon}, has not answered for 2s")),
            "{log}"
        );
        for thread in ["latchfs", "fuser-0", "fuser-1", "walker", "signals"] {
            let told = format!(" {thread}: state T (stopped), waits in ");
            assert!(log.contains(&told), "{thread}: {log}");
        }
        if user == User::Root {
            assert!(log.contains("kernel stack: do_signal_stop"), "{log}");
        }
        assert_eq!(mount.bash("cat f"), "x\n");
        replaced += 1;
        mount.unmount();
    }
    Row {
        fault: "daemon hung",
        injected: "SIGSTOP of the daemon, with a program that waits for it",
        cases: replaced,
        violations: 0,
        command: "scripts/test a_daemon_that_does_not_answer_is_found_told_and_replaced",
    }
    .report();
}

#[test]
fn without_a_watchdog_nobody_looks() {
    let mount = supervised(User::Root).arg("--watchdog=off").mount();
    let watched = supervised(User::Root).arg("--watchdog=1s").mount();
    let daemon = mount.daemon();
    let stopped = Stopped::new(daemon);
    wait_for_answers(&watched, 6);
    assert!(alive(daemon));
    drop(stopped);
    assert_eq!(answers(&mount), 0);
    assert_eq!(mount.bash("echo x > f; cat f"), "x\n");
    mount.unmount();
    watched.unmount();
}

#[test]
fn neither_a_long_wait_nor_a_stopped_client_nor_a_slow_check_is_an_alarm() {
    for user in BOTH {
        let mount = supervised(user)
            .arg("--watchdog=2s")
            .arg("--lock-timeout=10m")
            .mount();
        let config = "[[rule]]\nmatch = \"slow\"\nvalidate_command = [\"sleep\", \"7\"]\n";
        std::fs::write(mount.behind(".latchfs/config.toml"), config).expect("write");
        let output = finish(
            mount
                .command(crate::common::LATCHFS)
                .arg("reload")
                .arg(mount.point()),
        );
        let reloaded = output.status.success();
        // Of root's file, an ordinary user's daemon reads all the same.
        assert!(reloaded, "{}", crate::common::text(&output.stderr));
        let (daemon, supervisor) = (mount.daemon(), mount.supervisor());
        let mut writer = mount.spawn_python(
            "f = open('f', 'w'); f.write('x'); f.flush(); say('open'); hear(); f.close()",
        );
        writer.expect("open");
        let mut reader = mount.spawn_python("say(open('f').read())");
        reader.wait_until_blocked();
        let mut second =
            mount.spawn_python("f = open('f', 'a+'); f.write('y'); f.close(); say('done')");
        second.wait_until_blocked();
        let mut checked = mount.spawn("sh", "echo x > slow; echo done");
        let stopped = Stopped::new(writer.pid());
        // Three times as long as a silent daemon would have.
        wait_for_answers(&mount, 9);
        checked.expect("done");
        drop(stopped);
        assert!(reader.is_silent() && second.is_silent());
        writer.tell("go on");
        writer.succeed();
        reader.hear();
        second.expect("done");
        for program in [&mut reader, &mut second, &mut checked] {
            program.succeed();
        }
        assert_eq!((mount.daemon(), mount.supervisor()), (daemon, supervisor));
        assert!(!mount.log().contains("has not answered"), "{}", mount.log());
        mount.unmount();
    }
}

/// An ext4 whose writes can be held up.
struct Disk {
    home: tempfile::TempDir,
    point: PathBuf,
}

impl Disk {
    fn new() -> Self {
        let home = tempfile::Builder::new()
            .prefix("latchfs-test-")
            .tempdir()
            .expect("a directory");
        let (image, point) = (home.path().join("image"), home.path().join("disk"));
        std::fs::create_dir(&point).expect("mkdir");
        let file = std::fs::File::create(&image).expect("an image");
        file.set_len(64 << 20).expect("its size");
        let disk = Self { home, point };
        disk.run("mkfs.ext4", &["-q", "-F"], &image);
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(&image).arg(&disk.point);
        successful("mount", &finish(&mut mount));
        disk
    }

    fn run(&self, program: &str, args: &[&str], path: &Path) {
        successful(program, &finish(Command::new(program).args(args).arg(path)));
    }

    fn freeze(&self) -> Frozen<'_> {
        self.run("fsfreeze", &["-f"], &self.point);
        Frozen(self)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.point).status();
        let _ = self.home;
    }
}

struct Frozen<'a>(&'a Disk);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let mut thaw = Command::new("fsfreeze");
        let _ = thaw.arg("-u").arg(&self.0.point).status();
    }
}

#[test]
fn a_disk_that_takes_long_is_no_alarm() {
    let disk = Disk::new();
    let backing = disk.point.join("backing");
    std::fs::create_dir(&backing).expect("mkdir");
    let mount = options()
        .backing(&backing)
        .arg("--supervise")
        .arg("--watchdog=5s")
        .mount();
    let daemon = mount.daemon();
    mount.bash("for n in $(seq 8); do echo old > f$n; done");
    // Opened before anything can hang: an open that takes too long may fail by itself.
    let mut writers: Vec<Running> = (1..=8)
        .map(|n| {
            let write = "say('ready'); hear(); f.write('new'); f.close(); say('done')";
            mount.spawn_python(&format!("f = open('f{n}', 'w'); {write}"))
        })
        .collect();
    for writer in &writers {
        writer.expect("ready");
    }
    let before = answers(&mount);
    // More than there are threads that take requests.
    let frozen = disk.freeze();
    for writer in &mut writers {
        writer.tell("go on");
    }
    wait_until("it is waited for, or answers all the same", || {
        mount.log().contains("it waits for the disk") || answers(&mount) > before + 9
    });
    assert!(alive(daemon));
    drop(frozen);
    for writer in &mut writers {
        writer.expect("done");
        writer.succeed();
    }
    wait_for_answers(&mount, 1);
    assert_eq!(mount.daemon(), daemon);
    assert_eq!(mount.restarts(), 0);
    mount.unmount();
}
