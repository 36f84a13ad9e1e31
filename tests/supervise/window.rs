//! While a daemon is being replaced, nothing that programs make gets past the mount.

use crate::common::reliability::Row;
use crate::common::supervised::{is_everything_in_place, supervised};
use crate::common::{LATCHFS, Mount, Running, User, options, wait_until};
use std::fs;
use std::path::Path;

/// Makes files by their paths as fast as it can, and says of which file system they are: "past" if it
/// is that of the argument, and their names.
const CREATOR: &str = "import os, sys\n\
    home, who, beneath = sys.argv[1], sys.argv[2], int(sys.argv[3])\n\
    n = made = past = failed = 0\n\
    while True:\n\
    \x20   n += 1\n\
    \x20   name = f'{who}-{n}'\n\
    \x20   try: fd = os.open(f'{home}/{name}', os.O_CREAT | os.O_EXCL | os.O_WRONLY)\n\
    \x20   except OSError: failed += 1; continue\n\
    \x20   try:\n\
    \x20       if os.fstat(fd).st_dev == beneath: print('past', name, flush=True)\n\
    \x20       os.write(fd, b'x')\n\
    \x20   except OSError: failed += 1\n\
    \x20   try: os.close(fd)\n\
    \x20   except OSError: failed += 1\n\
    \x20   if n % 64 == 0: print('made', n - failed, flush=True)\n";

fn creators(mount: &Mount) -> Vec<Running> {
    use std::os::unix::fs::MetadataExt;
    let beneath = fs::metadata(mount.backing()).expect("BACKING").dev();
    let start = |who: &str| {
        let mut command = mount.command("python3");
        command.args(["-c", CREATOR]).arg(mount.point());
        Running::new(command.args([who, &beneath.to_string()]))
    };
    vec![start("a"), start("b")]
}

/// Kills the daemon so often while files are being made, and waits after each until `settled` says so
/// of the number of kills. Returns which went past the mount.
fn past(mount: &Mount, kills: usize, settled: impl Fn(usize) -> bool) -> Vec<String> {
    let mut creators = creators(mount);
    let mut past = Vec::new();
    for kill in 1..=kills {
        for creator in &creators {
            while let Some(("past", name)) = creator.hear().split_once(' ') {
                past.push(name.to_owned());
            }
        }
        mount.kill_daemon();
        wait_until("all is told", || settled(kill));
    }
    for creator in &mut creators {
        creator.signal("KILL");
        creator.wait();
        while let Some(line) = creator.heard() {
            past.extend(line.strip_prefix("past ").map(str::to_owned));
        }
    }
    past
}

/// What is in the directory that the mount covers, seen past it.
fn beneath(mount: &Mount) -> Vec<String> {
    let home = mount.point().parent().expect("a directory");
    let script = "mount --bind \"$0\" /mnt && ls -A /mnt/mnt";
    let mut command = std::process::Command::new("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-ec", script]);
    let output = crate::common::finish(command.arg(home));
    let said = crate::common::successful("ls", &output);
    said.lines().map(str::to_owned).collect()
}

#[test]
fn nothing_that_is_made_while_the_daemon_dies_lands_beneath() {
    for in_place in [false, true] {
        let options = supervised(User::Root);
        let mount = if in_place {
            options.in_place()
        } else {
            options
        }
        .mount();
        let past = past(&mount, 20, |_| true);
        let mut violations = past.len();
        if !in_place {
            violations += beneath(&mount).len();
        }
        Row {
            fault: if in_place {
                "daemon killed while files are made, in place (supervised, root)"
            } else {
                "daemon killed while files are made (supervised, root)"
            },
            injected: "kill -9 of the daemon 20 times, with 2 programs that create files",
            cases: 20,
            violations: violations as u64,
            command: "scripts/test nothing_that_is_made_while_the_daemon_dies_lands_beneath",
        }
        .report();
        assert_eq!(violations, 0, "{past:?}");
        mount.unmount();
    }
}

/// What the documents say: fusermount3 leaves a moment. What is made then is told.
#[test]
fn what_lands_beneath_an_ordinary_users_mount_is_told() {
    if is_everything_in_place() {
        // Then what is beneath is BACKING, and can be seen.
        return;
    }
    let mount = supervised(User::Ordinary).mount();
    let past = past(&mount, 10, |kills| {
        mount.log().matches("no more was made beneath").count() >= kills
    });
    println!("{} files were made beneath, in 10 moments", past.len());
    let beneath = beneath(&mount);
    for name in past.iter().chain(&beneath) {
        let told = format!("{name} was made in the directory beneath");
        assert!(mount.log().contains(&told), "{name}");
    }
    assert!(past.iter().all(|name| beneath.contains(name)));
    mount.unmount();
    for name in beneath {
        fs::remove_file(mount.path(&name)).expect("it is there");
    }
}

/// The control: where a dead mount is taken away first, files do land beneath.
#[test]
fn and_the_check_notices_files_that_do() {
    let mount = options().user(User::Root).mount();
    let creators = creators(&mount);
    creators[0].hear();
    mount.crash();
    wait_until("a file is made past the mount", || {
        creators[0].hear().starts_with("past ")
    });
    drop(creators);
    assert!(
        fs::read_dir(Path::new(mount.point()))
            .expect("list")
            .count()
            > 0
    );
}

/// Linux before 6.5 can't put a mount beneath another. The directory beneath can be seen for a moment
/// then, which the log says.
#[test]
fn where_mounts_cannot_be_exchanged_the_next_one_takes_the_place_all_the_same() {
    let mount = supervised(User::Root).mount();
    mount.bash("echo x > f");
    mount.unmount();
    let mut command = mount.command("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=move_mount"]);
    command.args(["-e", "inject=move_mount:error=EINVAL:when=1", LATCHFS]);
    command.args(["mount", "-f", "--supervise", "--restart-pause=20ms"]);
    command
        .arg("--log-file")
        .arg(mount.point().with_file_name("log"));
    command.arg(mount.backing()).arg(mount.point());
    let mut traced = Running::new(&mut command);
    wait_until("it is mounted", || {
        mount.log().matches("supervising").count() == 2
    });
    for _ in 0..3 {
        mount.kill_daemon();
        assert_eq!(mount.bash("cat f"), "x\n");
    }
    let told = "the directory beneath can be seen for a moment";
    assert_eq!(mount.log().matches(told).count(), 3, "{}", mount.log());
    mount.unmount();
    traced.succeed();
}
