//! Many append at once: every record is whole, none is lost, and readers see nothing else.

use crate::common::{Mount, as_each_user, finish, options};
use std::path::Path;

/// Appenders of records that carry their own length and checksum.
const APPENDER: &str = r#"
import os, random, sys, zlib
name, who, count, how = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
random.seed(who)
fd = os.open(name, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if how == "append" else 0), 0o644)
for n in range(count):
    # Mostly short, as in logs; up to 20,000 bytes.
    size = random.choice([random.randint(10, 200), random.randint(10, 20000)])
    head = f"{who} {n} ".encode()
    body = bytes([97 + (n + who) % 26]) * (size - 10)
    rest = head + body
    record = rest + b" %08x\n" % zlib.crc32(rest)
    if how != "append":
        os.lseek(fd, 0, os.SEEK_END)
    assert os.write(fd, record) == len(record)
os.close(fd)
"#;

/// Reads a growing file to its end and checks every record; says how many there are of each writer,
/// and leaves with 1 at the first that is none, or if some are missing once the writers are done.
const READER: &str = r#"
import os, sys, time, zlib
name, writers, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
fd = os.open(name, os.O_RDONLY)
next_of, rest = [0] * writers, b""
while sum(next_of) < writers * count:
    done = os.path.exists("done")
    data = os.read(fd, 262144)
    if not data:
        # What there is, is whole.
        if rest:
            sys.exit(f"half a record at the end: {rest[:40]!r}")
        if done:
            break
        time.sleep(0.001)
        continue
    *lines, rest = (rest + data).split(b"\n")
    for line in lines:
        head, crc = line[:-9], line[-8:]
        if crc != b"%08x" % zlib.crc32(head):
            sys.exit(f"not a record: {line[:40]!r}...{line[-20:]!r}")
        who, n = map(int, head.split(b" ")[:2])
        if n != next_of[who]:
            sys.exit(f"record {n} of {who}, where {next_of[who]} should be")
        next_of[who] += 1
if next_of != [count] * writers:
    sys.exit(f"lost: {next_of}")
"#;

/// Eight processes append while two read; what the readers say.
fn storm(mount: &Mount, at: &Path, how: &str, count: usize) -> Vec<bool> {
    let start = |script: &str, args: &[&str]| {
        let mut command = mount.command("python3");
        command.args(["-c", script]).args(args).current_dir(at);
        command.stdin(std::process::Stdio::null());
        command
    };
    let count = count.to_string();
    let made = finish(mount.command("touch").arg(at.join("log")));
    assert!(made.status.success());
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| start(READER, &["log", "8", &count]))
            .map(|mut reader| scope.spawn(move || finish(&mut reader)))
            .collect();
        let writers: Vec<_> = (0..8)
            .map(|who: usize| start(APPENDER, &["log", &who.to_string(), &count, how]))
            .map(|mut writer| scope.spawn(move || finish(&mut writer)))
            .collect();
        let ends: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        let done = finish(mount.command("touch").arg(at.join("done")));
        for output in ends
            .into_iter()
            .map(|end| end.expect("it ends"))
            .chain([done])
        {
            assert!(output.status.success(), "{output:?}");
        }
        let ends = readers
            .into_iter()
            .map(|reader| reader.join().expect("it ends"));
        ends.map(|output| {
            eprintln!("{}", String::from_utf8_lossy(&output.stderr));
            output.status.success()
        })
        .collect()
    })
}

#[test]
fn eight_processes_append_ten_thousand_records_each_and_readers_see_whole_ones_only() {
    let mount = options().mount();
    assert_eq!(storm(&mount, mount.point(), "append", 10_000), [true, true]);
    // The same from the start, once all is done.
    let mut reader = mount.command("python3");
    reader.args(["-c", READER, "log", "8", "10000"]);
    let output = finish(reader.current_dir(mount.backing()));
    assert!(output.status.success(), "{output:?}");
    mount.unmount();
}

#[test]
fn an_ordinary_users_mount_appends_whole_records_too() {
    as_each_user(|mount| {
        assert_eq!(storm(mount, mount.point(), "append", 500), [true, true]);
    });
}

// The control: without O_APPEND the same programs lose records in a bare directory.
#[test]
fn the_same_processes_lose_records_in_a_bare_directory_without_o_append() {
    let mount = options().mount();
    let readers = storm(&mount, mount.backing(), "seek", 500);
    assert!(readers.contains(&false), "nothing was lost");
}
