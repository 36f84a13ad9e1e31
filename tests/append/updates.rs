//! Files that are appended to while another program writes a version of them: nobody waits, and no
//! record is lost or there twice.

use crate::common::{Mount, Running, as_each_user, finish, options};
use std::path::Path;
use std::process::{Command, Stdio};

/// A program that appends a line for each that it is told, by one descriptor.
fn appender(mount: &Mount) -> Running {
    mount.spawn_python(
        "f = os.open('f', os.O_RDWR | os.O_APPEND)\n\
         while line := hear():\n    os.write(f, line.encode() + b'\\n'); say('written')",
    )
}

fn append(log: &mut Running, line: &str) {
    log.tell(line);
    log.expect("written");
}

#[test]
fn records_do_not_wait_for_an_update_and_come_after_it() {
    as_each_user(|mount| {
        mount.run("sh", "echo start > f");
        let mut log = appender(mount);
        append(&mut log, "before");
        let mut editor = mount.spawn_python(
            "f = open('f', 'r+'); say('open'); hear(); text = f.read(); f.seek(0); say(len(text))\n\
             hear(); f.write(text.upper()); f.truncate(); f.flush(); say(os.fstat(f.fileno()).st_size)\n\
             hear(); f.close(); say('closed')",
        );
        editor.expect("open");
        append(&mut log, "during");
        // By another that opens it only now.
        mount.run("sh", "echo other >> f");
        assert_eq!(mount.read_behind("f"), "start\nbefore\nduring\nother\n");
        // An update is about what there was when it began.
        editor.tell("read");
        editor.expect("13");
        editor.tell("write");
        editor.expect("13");
        append(&mut log, "late");
        editor.tell("close");
        editor.expect("closed");
        let all = "START\nBEFORE\nduring\nother\nlate\n";
        assert_eq!(mount.read("f"), all);
        append(&mut log, "after");
        assert_eq!(mount.read_behind("f"), format!("{all}after\n"));
        log.succeed();
        editor.succeed();
    });
}

#[test]
fn what_was_appended_before_a_truncation_is_gone_and_what_came_later_stays() {
    as_each_user(|mount| {
        mount.run("sh", "echo start > f");
        let mut log = appender(mount);
        append(&mut log, "before");
        let mut writer = mount.spawn_python(
            "f = open('f', 'w'); say('open'); hear(); f.write('new\\n'); f.close(); say('closed')",
        );
        writer.expect("open");
        append(&mut log, "during");
        writer.tell("close");
        writer.expect("closed");
        assert_eq!(mount.read("f"), "new\nduring\n");
        append(&mut log, "after");
        assert_eq!(mount.read_behind("f"), "new\nduring\nafter\n");
        // A truncation by the handle itself.
        mount.python("f = open('f', 'a'); f.truncate(4); f.write('end\\n'); f.close()");
        append(&mut log, "more");
        assert_eq!(mount.read("f"), "new\nend\nmore\n");
        log.succeed();
        writer.succeed();
    });
}

#[test]
fn a_file_with_hard_links_is_rewritten_with_the_records_that_came_meanwhile() {
    as_each_user(|mount| {
        mount.run("sh", "echo start > f; ln f g");
        let mut log = appender(mount);
        for line in ["one", "two"] {
            let mut writer = mount.spawn_python(
                "f = open('g', 'w'); say('open'); hear(); f.write('new\\n'); f.close(); say('closed')",
            );
            writer.expect("open");
            append(&mut log, line);
            writer.tell("close");
            writer.expect("closed");
            assert_eq!(mount.read("f"), format!("new\n{line}\n"));
            assert_eq!(mount.read_behind("g"), format!("new\n{line}\n"));
            writer.succeed();
        }
        append(&mut log, "end");
        assert_eq!(mount.read("g"), "new\ntwo\nend\n");
        log.succeed();
    });
}

#[test]
fn an_fsync_commits_with_the_records_that_came_and_the_close_adds_those_that_came_since() {
    as_each_user(|mount| {
        for linked in [false, true] {
            mount.run("sh", "rm -f f g; echo start > f");
            if linked {
                mount.run("sh", "ln f g");
            }
            let mut log = appender(mount);
            let mut writer = mount.spawn_python(
                "f = os.open('f', os.O_RDWR); say('open')\n\
                 while line := hear():\n\
                 \x20   what, *text = line.split(' ', 1)\n\
                 \x20   if what == 'write': os.write(f, text[0].encode() + b'\\n')\n\
                 \x20   if what == 'sync': os.fsync(f)\n\
                 \x20   if what == 'read': say(os.pread(f, 100, 0).decode().replace('\\n', ','))\n\
                 \x20   say('done')\n\
                 os.close(f); say('closed')",
            );
            writer.expect("open");
            let ask = |writer: &mut Running, what: &str| {
                writer.tell(what);
                writer.expect("done");
            };
            ask(&mut writer, "write START");
            append(&mut log, "one");
            ask(&mut writer, "sync");
            assert_eq!(mount.read_behind("f"), "START\none\n");
            append(&mut log, "two");
            ask(&mut writer, "write more");
            // Its own version has only what it wrote itself.
            writer.tell("read");
            writer.expect("START,more,");
            writer.expect("done");
            append(&mut log, "three");
            ask(&mut writer, "sync");
            assert_eq!(mount.read_behind("f"), "START\nmore\none\ntwo\nthree\n");
            append(&mut log, "four");
            writer.tell("");
            writer.expect("closed");
            assert_eq!(mount.read("f"), "START\nmore\none\ntwo\nthree\nfour\n");
            log.succeed();
        }
    });
}

#[test]
fn records_stay_where_an_update_does_not_become_the_file() {
    as_each_user(|mount| {
        mount.run("sh", "echo start > f");
        let mut log = appender(mount);
        let write = "f = open('f', 'r+'); f.write('START'); f.flush(); say('open')\n\
                     try: hear(); f.close()\nexcept OSError as e: say(errno.errorcode[e.errno])";
        // Killed.
        let writer = mount.spawn_python(write);
        writer.expect("open");
        append(&mut log, "killed");
        writer.signal("KILL");
        drop(writer);
        append(&mut log, "after");
        assert_eq!(mount.read("f"), "start\nkilled\nafter\n");
        // Refused, because of a change behind the mount.
        let mut writer = mount.spawn_python(write);
        writer.expect("open");
        append(&mut log, "refused");
        std::fs::write(mount.behind("f"), "edited\n").expect("write");
        append(&mut log, "later");
        writer.tell("close");
        writer.expect("ESTALE");
        assert_eq!(mount.read("f"), "edited\nlater\n");
        // Its file was removed: what it wrote is kept, without the records.
        let mut writer = mount.spawn_python(write);
        writer.expect("open");
        append(&mut log, "gone");
        mount.run("sh", "rm f");
        writer.tell("close");
        writer.succeed();
        let kept = mount.store("kept");
        let newest = kept.iter().filter(|name| name.ends_with(".data"));
        let kept: Vec<String> = newest
            .map(|name| mount.read_behind(&format!(".latchfs/kept/{name}")))
            .collect();
        assert!(kept.contains(&String::from("STARTd\nlater\n")), "{kept:?}");
        log.succeed();
    });
}

#[test]
fn no_name_operation_waits_for_a_record() {
    let mount = options().arg("--lock-timeout=60s").mount();
    mount.run(
        "sh",
        "mkdir d; cd d; for f in a b c; do echo start > $f; done; echo x > new",
    );
    let mut log = mount.spawn_python(
        "os.chdir('d'); logs = [os.open(n, os.O_WRONLY | os.O_APPEND) for n in 'abc']\n\
         while hear():\n    for log in logs: os.write(log, b'record\\n')\n    say('written')",
    );
    let mut editor = mount.spawn_python(
        "os.chdir('d'); files = [open(n, 'r+') for n in 'abc']\n\
         for f in files: f.write('START'); f.flush()\n\
         say('open'); hear()\n\
         for f in files: f.close()\nsay('closed')",
    );
    editor.expect("open");
    log.tell("go");
    log.expect("written");
    mount.run(
        "sh",
        "cd d; timeout 30 sh -c 'mv new a; rm b; ls; mv c e; : > made'",
    );
    log.tell("go");
    log.expect("written");
    editor.tell("close");
    editor.expect("closed");
    assert_eq!(mount.read("d/a"), "x\n");
    assert_eq!(mount.read("d/e"), "START\nrecord\nrecord\n");
    log.succeed();
    editor.succeed();
    mount.unmount();
}

/// Appends numbered records with one descriptor, some with a new one each.
const APPENDER: &str = r#"
import os, sys
who, count = sys.argv[1], int(sys.argv[2])
kept = os.open("log", os.O_WRONLY | os.O_APPEND)
for n in range(count):
    fd = os.open("log", os.O_WRONLY | os.O_APPEND) if n % 7 == 0 else kept
    record = f"{who} {n} {'x' * (n % 50)}.\n".encode()
    assert os.write(fd, record) == len(record)
    if n % 31 == 0: os.fsync(fd)
    if fd != kept: os.close(fd)
"#;

/// Rewrites the log in place until nobody appends any more: what was a record has its first letter
/// made large, and so each is one still.
const UPDATER: &str = r##"
import os, random
while not os.path.exists("end"):
    seed = random.random()
    if os.fork():
        os.wait()
        continue
    with open("log", "r+b", buffering=0) as f:
        data = f.read()
        f.seek(0)
        f.write(data.replace(b"w", b"W"))
        if seed < 0.3: os.fsync(f.fileno())
        f.truncate()
        if seed > 0.8: os.kill(os.getpid(), 9)
    os._exit(0)
"##;

/// Takes what is there, and truncates the file by `>`.
const ROTATOR: &str = r##"
import os
taken = open("taken", "ab", buffering=0)
while not os.path.exists("end"):
    with open("log", "r+b", buffering=0) as f:
        taken.write(f.read())
        f.truncate(0)
        f.seek(0)
        f.write(b"# begin\n")
"##;

/// How many each of the eight appends.
const COUNT: usize = 200;

/// Is every record of all eight in `text`, once, whole, and in the order in which they were appended?
fn is_complete(text: &str) -> Result<(), String> {
    let mut next = [0; 8];
    for line in text.lines().filter(|line| *line != "# begin") {
        let mut fields = line.split(' ');
        let who = fields
            .next()
            .and_then(|w| w.get(1..)?.parse::<usize>().ok());
        let n = fields.next().and_then(|n| n.parse::<usize>().ok());
        let (Some(who), Some(n)) = (who, n) else {
            return Err(format!("not a record: {line:?}"));
        };
        if fields.next() != Some(&*format!("{}.", "x".repeat(n % 50))) {
            return Err(format!("not a record: {line:?}"));
        }
        if n != next[who] {
            let next = next[who];
            return Err(format!("record {n} of {who}, where {next} should be"));
        }
        next[who] += 1;
    }
    match next == [COUNT; 8] {
        true => Ok(()),
        false => Err(format!("lost: {next:?}")),
    }
}

/// Eight append in a directory while others write versions.
fn hammer(mount: &Mount, at: &Path, others: &[&str]) {
    let script = |script: &str, args: &[&str]| {
        let mut command = mount.command("python3");
        command.args(["-c", script]).args(args);
        command.current_dir(at).stdin(Stdio::null());
        command
    };
    let touch = |name: &str| {
        let made = finish(mount.command("touch").arg(at.join(name)));
        assert!(made.status.success(), "{made:?}");
    };
    touch("log");
    let count = COUNT.to_string();
    std::thread::scope(|scope| {
        let start = |mut command: Command| scope.spawn(move || finish(&mut command));
        let others: Vec<_> = others
            .iter()
            .map(|other| start(script(other, &[])))
            .collect();
        let appenders: Vec<_> = (0..8)
            .map(|who| start(script(APPENDER, &[&format!("w{who}"), &count])))
            .collect();
        let ends: Vec<_> = appenders.into_iter().map(|one| one.join()).collect();
        touch("end");
        let others = others.into_iter().map(|other| other.join());
        for end in ends.into_iter().chain(others) {
            let end = end.expect("it ends");
            assert!(end.status.success(), "{end:?}");
        }
    });
}

#[test]
fn eight_append_while_one_rewrites_the_log_and_no_record_is_lost_or_there_twice() {
    as_each_user(|mount| {
        hammer(mount, mount.point(), &[UPDATER]);
        assert_eq!(is_complete(&mount.read("log")), Ok(()));
        assert_eq!(is_complete(&mount.read_behind("log")), Ok(()));
    });
}

#[test]
fn eight_append_while_one_takes_the_log_away_and_another_rewrites_it_and_no_record_is_lost() {
    for linked in [false, true] {
        let mount = options().mount();
        if linked {
            mount.run("sh", ": > log; ln log other");
        }
        hammer(&mount, mount.point(), &[ROTATOR, UPDATER]);
        let all = mount.read("taken") + &mount.read("log");
        assert_eq!(is_complete(&all), Ok(()), "linked: {linked}");
        mount.unmount();
    }
}

// The control.
#[test]
fn the_same_programs_lose_records_in_a_bare_directory() {
    let mount = options().mount();
    hammer(&mount, mount.backing(), &[UPDATER]);
    let log = mount.read_behind("log");
    assert!(is_complete(&log).is_err(), "nothing was lost");
}

/// A descriptor to append by shows the same inode number as one of a version: it is no copy of that.
#[test]
fn close_commits_though_the_same_process_has_the_file_open_to_append() {
    as_each_user(|mount| {
        mount.run("sh", "echo old > f");
        let told = mount.python(
            "log = os.open('f', os.O_WRONLY | os.O_APPEND); os.write(log, b'before\\n')\n\
             late = 0\n\
             for n in range(200):\n\
             \x20   with open('f', 'w') as f: f.write(f'{n}\\n')\n\
             \x20   late += open(BEHIND).read() != f'{n}\\n'\n\
             print(late)"
                .replace("BEHIND", &format!("{:?}", mount.behind("f")))
                .as_str(),
        );
        assert_eq!(told.trim(), "0", "closes that returned before the commit");
    });
}
