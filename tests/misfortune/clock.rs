//! A clock that jumps: the daemon's own, by libfaketime, so that nobody else's does.

use crate::common::reliability::Row;
use crate::common::{LATCHFS, Mount, finish, kill, options, text, wait_until, wait_until_parked};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A mount whose daemon has a clock of its own.
struct Elsewhen {
    // In this order: the mount is taken away first.
    mount: Mount,
    _daemon: Daemon,
    clock: tempfile::NamedTempFile,
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        if !matches!(self.0.try_wait(), Ok(Some(_))) {
            kill(self.0.id(), "KILL");
            let _ = self.0.wait();
        }
    }
}

fn library() -> PathBuf {
    let output = finish(Command::new("dpkg").args(["-L", "libfaketime"]));
    let listed = text(&output.stdout);
    let library = listed
        .lines()
        .find(|line| line.ends_with("/libfaketimeMT.so.1"));
    library.expect("the package faketime").into()
}

impl Elsewhen {
    /// Mounts with the clock so many days away; options as `latchfs mount` has them.
    fn mount(mount: Mount, days: i64, options: &[&str]) -> Self {
        let clock = tempfile::NamedTempFile::new().expect("a file");
        let log = fs::File::create(mount.point().with_file_name("log")).expect("a log");
        let mut command = Command::new(LATCHFS);
        command
            .args(["mount", "-v", "--foreground"])
            .args(options)
            .arg(mount.backing())
            .arg(mount.point())
            .env("LD_PRELOAD", library())
            .env("FAKETIME_TIMESTAMP_FILE", clock.path())
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        set(clock.path(), days);
        let daemon = Daemon(command.spawn().expect("the daemon"));
        let elsewhen = Self {
            mount,
            _daemon: daemon,
            clock,
        };
        wait_until("it is mounted", || {
            elsewhen.mount.log().contains("mounted ")
        });
        elsewhen
    }

    fn jump(&self, days: i64) {
        set(self.clock.path(), days);
    }
}

/// Sets a clock so many days away from the true time.
fn set(clock: &Path, days: i64) {
    fs::write(clock, format!("{days:+}d\n")).expect("the clock");
}

fn rolled_back(mount: &Mount, content: &str) {
    let mut writer = mount.spawn_python(&format!(
        "f = open('f', 'w'); f.write('{content}'); f.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    ));
    writer.wait();
}

fn kept(mount: &Mount) -> usize {
    mount
        .store("kept")
        .iter()
        .filter(|name| name.ends_with(".data"))
        .count()
}

/// Has the daemon look for kept versions that are too old, as it does every hour.
fn prune(mount: &Mount) {
    let before = mount.log().matches("read again").count();
    kill(mount.daemon(), "HUP");
    wait_until("it has looked", || {
        mount.log().matches("read again").count() > before
    });
}

#[test]
fn waits_and_commits_do_not_notice_that_the_clock_jumps() {
    let elsewhen = Elsewhen::mount(options().unmounted(), 0, &["--lock-timeout=3s"]);
    let mount = &elsewhen.mount;
    mount.bash("echo old > f");
    for days in [400, -400, 30_000, -9_000, 0] {
        let mut holder = mount.spawn_python("f = open('f', 'r+'); say('holds'); hear()");
        holder.expect("holds");
        let waiter = mount.spawn_python(
            "began = time.monotonic()\n\
             try: open('f', 'w'); say('opened')\n\
             except OSError as e: say(errno.errorcode[e.errno], time.monotonic() - began >= 2.9)",
        );
        wait_until_parked(waiter.pid(), 1);
        elsewhen.jump(days);
        // Neither at once nor never.
        waiter.expect("ETIMEDOUT True");
        holder.tell("close");
        holder.succeed();
        mount.bash(&format!("echo {days} > f; cat f; echo more >> log"));
        assert_eq!(mount.read_behind("f"), format!("{days}\n"));
    }
    // The clock of the log did jump.
    let years: Vec<String> = mount
        .log()
        .lines()
        .filter_map(|l| Some(l.get(1..5)?.to_owned()))
        .collect();
    assert!(years.iter().any(|year| year > &years[0]), "{years:?}");
    assert_eq!(mount.store("tmp"), [""; 0]);
    mount.unmount();
    Row {
        fault: "the clock jumps while programs wait and commit",
        injected: "the daemon's clock set a year and decades forwards and backwards by libfaketime",
        cases: 5,
        violations: 0,
        command: "scripts/test clock_jumps",
    }
    .report();
}

#[test]
fn kept_versions_survive_a_clock_that_jumps_and_one_that_was_not_set() {
    let elsewhen = Elsewhen::mount(options().unmounted(), 0, &[]);
    let mount = &elsewhen.mount;
    mount.bash("echo old > f");
    rolled_back(mount, "first");
    wait_until("it is kept", || kept(mount) == 1);
    for days in [31, 30_000, -20_000, 0] {
        elsewhen.jump(days);
        prune(mount);
        assert_eq!(kept(mount), 1, "{days} days");
    }
    // A record from before the clock of its machine was set tells no age.
    let stale = |name: &str| {
        let touch = finish(
            Command::new("touch")
                .args(["-d", "1970-01-02"])
                .arg(mount.behind(".latchfs/kept").join(name)),
        );
        assert!(touch.status.success());
    };
    mount.store("kept").iter().for_each(|name| stale(name));
    prune(mount);
    assert_eq!(kept(mount), 1, "of 1970");
    // The control: what is as old as that by a clock that was right goes.
    let month = |name: &str| {
        let touch = finish(
            Command::new("touch")
                .args(["-d", "40 days ago"])
                .arg(mount.behind(".latchfs/kept").join(name)),
        );
        assert!(touch.status.success());
    };
    mount.store("kept").iter().for_each(|name| month(name));
    prune(mount);
    wait_until("it has gone", || kept(mount) == 0);
    mount.unmount();
    Row {
        fault: "the clock jumps, or was not set, and versions are kept",
        injected: "a jump by 31 days, to 2108 and to 1971 before the daemon removes what is too old; records of 1970",
        cases: 5,
        violations: 0,
        command: "scripts/test kept_versions_survive_a_clock",
    }
    .report();
}
