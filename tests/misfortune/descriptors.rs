//! Very many open files, and too many.

use crate::common::reliability::Row;
use crate::common::{Mount, Running, options, text};
use std::fs;
use std::process::Command;

/// Sets the limits of the daemon's descriptors.
fn limit(mount: &Mount, descriptors: usize) {
    let mut prlimit = Command::new("prlimit");
    prlimit.arg(format!("--nofile={descriptors}:{descriptors}"));
    let output = prlimit
        .args(["--pid", &mount.daemon().to_string()])
        .output();
    let output = output.expect("prlimit");
    assert!(output.status.success(), "{}", text(&output.stderr));
}

const RAISE: &str = "
import resource
def raise_limit(count): resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))
def attempt(call, *args):
    try: return call(*args)
    except OSError as e: return errno.errorcode[e.errno]
";

#[test]
fn sixty_four_thousand_files_can_be_open() {
    let mount = options().arg("--durability=none").mount();
    limit(&mount, 200_000);
    for dir in 0..64 {
        fs::create_dir(mount.behind(&format!("d{dir}"))).expect("mkdir");
        for file in 0..1000 {
            fs::write(
                mount.behind(&format!("d{dir}/{file}")),
                format!("{dir} {file}"),
            )
            .expect("a file");
        }
    }
    mount.bash("cat d0/0; echo > f; rm f");
    let base = mount.descriptors();
    let mut reader = mount.spawn_python(&format!(
        "{RAISE}\nraise_limit(70_000)\n\
         names = [f'd{{d}}/{{n}}' for d in range(64) for n in range(1000)]\n\
         fds = [os.open(name, os.O_RDONLY) for name in names]\n\
         say(len(fds)); hear()\n\
         wrong = sum(os.pread(fd, 20, 0).decode() != name[1:].replace('/', ' ') for fd, name in zip(fds, names))\n\
         say(wrong); hear()\n\
         for fd in fds: os.close(fd)\n\
         say('closed'); hear()",
    ));
    reader.expect("64000");
    println!("the daemon has {} descriptors", mount.descriptors());
    // Others go on: old versions are read after new ones were written.
    mount.bash("for n in 1 2 3; do echo new > d$n/$n; cat d$n/$n; done");
    reader.tell("read");
    reader.expect("0");
    let writers = mount.python(&format!(
        "{RAISE}\nraise_limit(10_000)\n\
         fds = [os.open(f'd1/{{n}}', os.O_WRONLY | os.O_TRUNC) for n in range(500)]\n\
         fds += [os.open(f'new{{n}}', os.O_WRONLY | os.O_CREAT) for n in range(500)]\n\
         for n, fd in enumerate(fds): os.write(fd, b'written %d' % n)\n\
         for fd in fds: os.close(fd)\n\
         say(len(fds))",
    ));
    assert_eq!(writers, "1000\n");
    assert_eq!(mount.read_behind("d1/7"), "written 7");
    assert_eq!(mount.read_behind("new499"), "written 999");
    reader.tell("close");
    reader.expect("closed");
    mount.wait_until_descriptors_are_back(base + 64);
    reader.tell("end");
    reader.succeed();
    // The same, ended by a kill.
    let reader = open_many(&mount, 70_000);
    let opened: usize = reader.hear().parse().expect("a number");
    assert_eq!(opened, 64_000);
    reader.signal("KILL");
    mount.wait_until_descriptors_are_back(base + 64);
    mount.unmount();
    Row {
        fault: "64,000 open files",
        injected: "one program opens them to read, a thousand more are written meanwhile; closed, and killed",
        cases: 64_000 * 2 + 1000,
        violations: 0,
        command: "scripts/test sixty_four_thousand",
    }
    .report();
}

/// A program that opens files for reading until that fails, tells how many and the error, and holds
/// them.
fn open_many(mount: &Mount, limit: usize) -> Running {
    mount.spawn_python(&format!(
        "{RAISE}\nraise_limit({limit})\n\
         fds = []; failed = None\n\
         for d in sorted(os.listdir('.')):\n\
         \x20   if not os.path.isdir(d): continue\n\
         \x20   for n in range(1000):\n\
         \x20       fd = attempt(os.open, f'{{d}}/{{n}}', os.O_RDONLY)\n\
         \x20       if type(fd) is str: failed = fd; break\n\
         \x20       fds.append(fd)\n\
         \x20   if failed: break\n\
         say(len(fds)); say(failed)\n\
         while hear() == 'read': say(sum(os.pread(fd, 20, 0) == b'' for fd in fds))"
    ))
}

/// A mount with a thousand files in a directory, whose daemon can't have more than a few hundred
/// descriptors, all of which `open_many` uses up.
fn exhausted(mount: &Mount) -> Running {
    fs::create_dir(mount.behind("d")).expect("mkdir");
    for file in 0..1000 {
        fs::write(mount.behind(&format!("d/{file}")), "content").expect("a file");
    }
    mount.bash("echo old > f; cat f d/0");
    limit(mount, mount.descriptors() + 300);
    let hoarder = open_many(mount, 2000);
    let opened: usize = hoarder.hear().parse().expect("a number");
    let failed = hoarder.hear();
    assert!((100..300).contains(&opened), "{opened}");
    assert_eq!(failed, "EMFILE");
    hoarder
}

#[test]
fn a_daemon_without_descriptors_says_emfile_and_what_is_open_goes_on() {
    let mount = options().mount();
    mount.bash("echo old > g");
    let mut early = mount.spawn_python(&format!(
        "{RAISE}\n\
         f = os.open('g', os.O_WRONLY | os.O_TRUNC); say('open'); hear()\n\
         say(attempt(os.write, f, b'new')); say(attempt(os.close, f)); hear()"
    ));
    early.expect("open");
    let mut hoarder = exhausted(&mount);
    // Of who began before, the shadow can't be made any more.
    early.tell("write");
    let (wrote, closed) = (early.hear(), early.hear());
    match (wrote.as_str(), closed.as_str()) {
        ("3", "None") => assert_eq!(mount.read_behind("g"), "new"),
        ("EMFILE", "EMFILE") => assert_eq!(mount.read_behind("g"), "old\n"),
        other => panic!("{other:?}"),
    }
    hoarder.tell("read");
    hoarder.expect("0");
    let refused = mount.try_run("bash", "cat d/999");
    assert!(
        text(&refused.stderr).contains("Too many open files"),
        "{refused:?}"
    );
    // What needs none that stay is done all the same.
    mount.bash("mkdir e; mv e e2; rmdir e2; stat f; ls d | wc -l");
    hoarder.tell("end");
    hoarder.succeed();
    mount.bash("cat d/999; echo new > f; cat f; echo new > g");
    assert_eq!(mount.read_behind("f"), "new\n");
}

/// Who holds a file, and how its writer died, is asked of `/proc`, which takes descriptors, too: without
/// an answer, half a version would look finished.
#[test]
fn a_daemon_without_descriptors_still_tells_death_and_copies_from_an_end() {
    let mount = options().mount();
    mount.bash("echo old > killed; echo old > shared; echo old > mapped");
    let writer = |name: &str, rest: &str| {
        let writer = mount.spawn_python(&format!(
            "fd = os.open('{name}', os.O_RDWR | os.O_TRUNC); os.write(fd, b'half '); say('half')\n{rest}"
        ));
        writer.expect("half");
        writer
    };
    let mut killed = writer("killed", "hear()");
    let mut shared = writer(
        "shared",
        "hear(); copy = os.dup(fd); os.close(copy); say('closed'); hear(); os.write(fd, b'whole'); os.close(fd); say('end')",
    );
    let mut mapped = writer(
        "mapped",
        "os.ftruncate(fd, 4096); m = mmap.mmap(fd, 4096); m[:4] = b'HALF'; os.close(fd); say('mapped'); hear()",
    );
    mapped.expect("mapped");
    let mut hoarder = exhausted(&mount);
    // Others are opening files all the time.
    let storm = "for n in range(100000):\n    attempt(os.open, 'd/%d' % (n % 1000), os.O_RDONLY)";
    let storms: Vec<Running> = (0..2)
        .map(|_| mount.spawn_python(&format!("{RAISE}\nsay('storm')\n{storm}")))
        .collect();
    for storm in &storms {
        storm.expect("storm");
    }
    killed.signal("KILL");
    killed.wait();
    mapped.signal("KILL");
    mapped.wait();
    shared.tell("close the copy");
    shared.expect("closed");
    assert_eq!(mount.read_behind("shared"), "old\n", "committed too early");
    drop(storms);
    hoarder.tell("end");
    hoarder.succeed();
    shared.tell("write the rest");
    shared.expect("end");
    assert_eq!(mount.read("shared"), "half whole");
    assert_eq!(
        mount.read("killed"),
        "old\n",
        "half a version was committed"
    );
    assert_eq!(
        mount.read("mapped"),
        "old\n",
        "half a version was committed"
    );
}
