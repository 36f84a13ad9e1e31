//! Very many open files, and too many.

use crate::common::reliability::Row;
use crate::common::{Mount, Running, options, text};
use std::fs;
use std::process::Command;

/// Sets the limits of the daemon's descriptors.
fn limit(mount: &Mount, descriptors: usize) {
    let mut prlimit = Command::new("prlimit");
    // The soft one only: to raise the hard one again takes a capability that root may lack.
    prlimit.arg(format!("--nofile={descriptors}:"));
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

/// What the daemon may have at most.
fn hard_limit(mount: &Mount) -> usize {
    let limits = fs::read_to_string(format!("/proc/{}/limits", mount.daemon()));
    let limits = limits.expect("its limits");
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let hard = line.and_then(|line| line.split_whitespace().nth(4));
    hard.expect("a limit").parse().expect("a number")
}

/// Opens all files of sixteen directories (as far as there are any) to read, until that fails; tells how
/// many and the error.
fn reader(mount: &Mount, first: usize) -> Running {
    mount.spawn_python(&format!(
        "{RAISE}\nraise_limit(17_000)\n\
         names = [f'd{{d}}/{{n}}' for d in range({first}, {first} + 16) if os.path.isdir(f'd{{d}}') for n in range(1000)]\n\
         fds = [0]\n\
         for name in names:\n\
         \x20   fds.append(attempt(os.open, name, os.O_RDONLY))\n\
         \x20   if type(fds[-1]) is str: break\n\
         error = fds.pop() if type(fds[-1]) is str else 'none'\n\
         del fds[0]; say(len(fds)); say(error); hear()\n\
         say(sum(os.pread(fd, 20, 0).decode() != name[1:].replace('/', ' ') for fd, name in zip(fds, names))); hear()\n\
         for fd in fds: os.close(fd)\n\
         say('closed'); hear()",
    ))
}

#[test]
fn sixty_four_thousand_files_can_be_open_or_the_program_gets_emfile() {
    let mount = options().arg("--durability=none").mount();
    // No more files than it takes to see the limit.
    let most = hard_limit(&mount);
    let dirs = (most / 1000 + 2).min(64);
    for dir in 0..dirs {
        fs::create_dir(mount.behind(&format!("d{dir}"))).expect("mkdir");
        for file in 0..1000 {
            let name = mount.behind(&format!("d{dir}/{file}"));
            fs::write(name, format!("{dir} {file}")).expect("a file");
        }
    }
    mount.bash("cat d0/0; echo > f; rm f");
    let base = mount.descriptors();
    let mut readers: Vec<Running> = (0..4).map(|n| reader(&mount, 16 * n)).collect();
    let told = readers.iter().map(|reader| {
        let opened: usize = reader.hear().parse().expect("a number");
        (opened, reader.hear())
    });
    let told: Vec<(usize, String)> = told.collect();
    let opened: usize = told.iter().map(|(opened, _)| opened).sum();
    println!("{opened} files are open, the daemon may have {most} descriptors");
    let refused = told.iter().filter(|(_, error)| error != "none");
    assert!(
        refused.clone().all(|(_, error)| error == "EMFILE"),
        "{told:?}"
    );
    if most > 66_000 {
        assert_eq!(opened, 64_000, "{told:?}");
    } else {
        assert!(opened > most - 1000 && refused.count() > 0, "{told:?}");
    }
    for reader in &mut readers {
        reader.tell("read");
        reader.expect("0");
    }
    // One closes its own, one is killed, and others write while two go on.
    for reader in &mut readers[..1] {
        reader.tell("close");
        reader.expect("closed");
    }
    readers[1].signal("KILL");
    readers[1].wait();
    let left = told[2].0 + told[3].0;
    mount.wait_until_descriptors_are_back(base + left + 64);
    let written = mount.python(&format!(
        "{RAISE}\nraise_limit(10_000)\n\
         fds = [os.open(f'd1/{{n}}', os.O_WRONLY | os.O_TRUNC) for n in range(500)]\n\
         fds += [os.open(f'new{{n}}', os.O_WRONLY | os.O_CREAT) for n in range(500)]\n\
         for n, fd in enumerate(fds): os.write(fd, b'written %d' % n)\n\
         for fd in fds: os.close(fd)\n\
         say(len(fds))",
    ));
    assert_eq!(written, "1000\n");
    assert_eq!(mount.read_behind("d1/7"), "written 7");
    assert_eq!(mount.read_behind("new499"), "written 999");
    drop(readers);
    // Directories stay open.
    mount.wait_until_descriptors_are_back(base + 64);
    mount.unmount();
    Row {
        fault: "64,000 open files",
        injected: "four programs open as many as the daemon may have; closed, and killed; a thousand are written meanwhile",
        cases: (opened + 1000) as u64,
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
         new = []\n\
         for n in range(20):\n\
         \x20   new.append(attempt(os.open, 'new%d' % n, os.O_CREAT | os.O_RDWR))\n\
         \x20   if type(new[-1]) is str: break\n\
         say(new[-1])\n\
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
    println!(
        "{opened} opened, the daemon has {} descriptors",
        mount.descriptors()
    );
    assert!((150..=300).contains(&opened), "{opened}");
    assert_eq!(failed, "EMFILE");
    // An open takes two for a moment, a shadow but one.
    hoarder.expect("EMFILE");
    hoarder
}

#[test]
fn a_daemon_without_descriptors_says_emfile_and_what_is_open_goes_on() {
    let mount = options().mount();
    mount.bash("echo old > g; echo old > h; echo old > i; ln i j");
    let begun = |name: &str, before: &str, then: &str| {
        let writer = mount.spawn_python(&format!(
            "{RAISE}\n\
             f = os.open('{name}', os.O_WRONLY); {before}; say('open'); hear()\n\
             say(attempt(lambda: {then})); say(attempt(os.close, f)); hear()"
        ));
        writer.expect("open");
        writer
    };
    let mut early = [
        ("g", begun("g", "0", "os.write(f, b'new\\n')")),
        ("h", begun("h", "os.write(f, b'new\\n')", "os.fsync(f)")),
        ("i", begun("i", "os.write(f, b'new\\n')", "os.fsync(f)")),
    ];
    let mut hoarder = exhausted(&mount);
    let refused = mount.try_run("bash", "cat d/999");
    assert!(
        text(&refused.stderr).contains("Too many open files"),
        "{refused:?}"
    );
    // Who began before is told, or done.
    for (name, writer) in &mut early {
        writer.tell("go on");
        let said = (writer.hear(), writer.hear());
        println!("{name}: {said:?}");
        let content = mount.read_behind(name);
        match (said.0.as_str(), said.1.as_str()) {
            ("None" | "4", "None") => assert_eq!(content, "new\n", "{name}"),
            ("None", "EMFILE") => panic!("{name}: {said:?}"),
            (_, "EMFILE") => assert_eq!(content, "old\n", "{name}: {said:?}"),
            _ => panic!("{name}: {said:?} {content}"),
        }
    }
    hoarder.tell("read");
    hoarder.expect("0");
    // What needs none that stay is done all the same.
    mount.bash("mkdir e; mv e e2; rmdir e2; stat f; ls d | wc -l");
    hoarder.tell("end");
    hoarder.succeed();
    mount.bash("cat d/999; echo new > f; cat f; echo new > g");
    assert_eq!(mount.read_behind("f"), "new\n");
    Row {
        fault: "the daemon has no descriptors left",
        injected: "a program opens files until EMFILE; three writers that began before go on",
        cases: 4,
        violations: 0,
        command: "scripts/test daemon_without_descriptors",
    }
    .report();
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
    // All but one, which is enough to see that somebody lives and too few to see what it holds.
    limit(&mount, mount.descriptors() + 1);
    shared.tell("close the copy");
    shared.expect("closed");
    assert_eq!(mount.read_behind("shared"), "old\n", "committed too early");
    killed.signal("KILL");
    killed.wait();
    mapped.signal("KILL");
    mapped.wait();
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
