//! One run of the workload on a recording disk.

use crate::common::{DEADLINE, LATCHFS, finish, text, wait_until};
use crate::disk::Disk;
use crate::filesystem::{Kind, unmount_now, wait_until_mounted};
use crate::log::{Entry, Image};
use crate::loopdev::Loop;
use crate::place::{Place, child};
use latchfs::config::Durability;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A disk before the workload, and what was done to it.
pub struct Recording {
    pub kind: Kind,
    pub durability: Durability,
    pub base: Image,
    pub log: Vec<Entry>,
}

const WORKLOAD: &str = include_str!("workload.py");
/// The writers: what they do, and how many there are of each.
const WRITERS: &[(&str, usize)] = &[
    ("replace", 1),
    ("update", 1),
    ("mapped", 1),
    ("fsynced", 1),
    ("append", 1),
    ("appended", 1),
    ("renamed", 1),
    ("removed", 1),
    ("linked", 1),
    ("made", 1),
    ("shell", 1),
    ("shared", 10),
];
/// Those on the bare directory.
const CONTROLS: &[&str] = &["plain", "unsynced", "careful"];
/// How long all of them may take.
const LONGEST: Duration = Duration::from_secs(240);

/// Runs the workload, each writer for so many rounds.
pub fn record(
    place: &Place,
    disk: &Disk,
    what: (Kind, Durability),
    rounds: usize,
    seed: u64,
) -> Recording {
    let (kind, durability) = what;
    let device = Loop::attach(&disk.recorded());
    assert_eq!(device.queue("write_cache"), "write back");
    kind.make(device.path());
    let root = place.dir("recorded");
    kind.mount(device.path(), &root).expect("mount");
    let started = |name: &str, number: usize, rounds: usize, at: &Path| {
        let mut command = child("python3");
        command.arg("-B").arg("-c").arg(WORKLOAD).arg(name);
        for number in [number as u64, rounds as u64, seed] {
            command.arg(number.to_string());
        }
        command.arg(disk.marks()).current_dir(at);
        command.spawn().expect("python3")
    };
    wait_for("first", started("first", 0, 0, &root), DEADLINE);
    let base = disk.record();
    let point = place.dir("mount");
    let mut daemon = serve(place, &root.join("tree"), &point, durability);
    let few = rounds.div_ceil(4);
    let mut running = Vec::new();
    for (name, count) in WRITERS {
        let rounds = match *name {
            "shared" | "made" => few,
            _ => rounds,
        };
        for number in 0..*count {
            running.push((*name, started(name, number, rounds, &point)));
        }
    }
    // The controls go on until the others have ended.
    let controls: Vec<Child> = CONTROLS
        .iter()
        .map(|name| started(name, 0, rounds * 1000, &root))
        .collect();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _over = SetAtEnd(&over);
        // Somebody on every machine calls sync(2) now and then: what is half written gets on its way.
        scope.spawn(|| {
            let root = File::open(&root).expect("the root");
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(40));
                rustix::fs::syncfs(&root).expect("syncfs");
            }
        });
        let end = Instant::now() + LONGEST;
        for (name, child) in running {
            wait_for(name, child, end.saturating_duration_since(Instant::now()));
        }
    });
    for mut control in controls {
        let early = control.try_wait().expect("a control");
        assert!(early.is_none(), "a control has ended: {early:?}");
        control.kill().expect("kill");
        control.wait().expect("wait");
    }
    stop(&point, &mut daemon);
    unmount_now(&root);
    drop(device);
    let log = disk.stop();
    Recording {
        kind,
        durability,
        base,
        log,
    }
}

/// Set when it is dropped.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Mounts by `latchfs mount`, in the foreground, so that it ends with us.
pub fn serve(place: &Place, backing: &Path, point: &Path, durability: Durability) -> Child {
    let mut command = child(LATCHFS);
    command.args(["mount", "--foreground", "--lock-timeout=120s"]);
    command.arg(format!("--durability={}", word(durability)));
    command.arg("--log-file").arg(place.file("latchfs.log"));
    let daemon = command.arg(backing).arg(point).spawn().expect("latchfs");
    wait_until_mounted(point);
    daemon
}

/// Unmounts it.
pub fn stop(point: &Path, daemon: &mut Child) {
    let output = finish(Command::new(LATCHFS).arg("umount").arg(point));
    assert!(
        output.status.success(),
        "latchfs umount: {}",
        text(&output.stderr)
    );
    wait_until("the daemon has ended", || {
        daemon.try_wait().expect("wait").is_some()
    });
}

/// A durability as the command line has it.
pub fn word(durability: Durability) -> &'static str {
    match durability {
        Durability::Full => "full",
        Durability::Rename => "rename",
        Durability::None => "none",
    }
}

fn wait_for(name: &str, mut child: Child, longest: Duration) {
    let end = Instant::now() + longest;
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            assert!(status.success(), "the writer {name}: {status}");
            return;
        }
        assert!(Instant::now() < end, "the writer {name} did not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}
