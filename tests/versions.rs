//! What has been opened for reading stays as it was (R2), is read at native speed (R4), and is
//! always one whole version.

mod common;

use common::{
    Mount, Stopped, User, as_each_user, blocked_threads, drop_caches, options, text, wait_until,
    wait_until_parked,
};
use std::process::Command;

const BOTH: [User; 2] = [User::Root, User::Ordinary];

#[test]
fn a_reader_keeps_its_version_over_ten_commits() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.python("open('f', 'w').write('0' * 300_000)");
        let mut reader = mount.spawn_python(
            "f = open('f', 'rb', buffering=0)\nfresh = open('f', 'rb')\n\
             half = f.read(150_000)\n\
             shared = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\n\
             private = mmap.mmap(f.fileno(), 0, flags=mmap.MAP_PRIVATE)\n\
             untouched = mmap.mmap(fresh.fileno(), 0, prot=mmap.PROT_READ)\n\
             whole = b'0' * 300_000\n\
             def check():\n    \
                 assert os.fstat(f.fileno()).st_size == 300_000\n    \
                 assert os.lseek(f.fileno(), 0, os.SEEK_END) == 300_000\n    \
                 assert os.pread(f.fileno(), 400_000, 0) == whole, 'pread'\n    \
                 assert shared[:] == whole, 'a shared mapping'\n    \
                 assert private[:] == whole, 'a private mapping'\n    \
                 assert shared.size() == 300_000\n\
             check()\nsay('open')\n\
             for n in range(1, 11):\n    hear()\n    check()\n    \
                 new = open('f', 'rb').read()\n    \
                 assert new == str(n).encode() * (n * 50_000), (n, new[:10], len(new))\n    \
                 say('checked')\n\
             os.lseek(f.fileno(), 150_000, os.SEEK_SET)\n\
             assert half + os.read(f.fileno(), 400_000) == whole, 'read'\n\
             # Not read before the first commit, by either way.\n\
             assert untouched[:] == whole, 'a mapping that was not touched'\n\
             assert fresh.read() == whole, 'a file that was not read'\nsay('done')\n",
        );
        reader.expect("open");
        for n in 1..=10 {
            mount.python(&format!("open('f', 'w').write('{n}' * ({n} * 50_000))"));
            if n % 3 == 0 {
                drop_caches();
            }
            reader.tell("check");
            reader.expect("checked");
        }
        reader.expect("done");
        reader.succeed();
    }
}

#[test]
fn a_reader_keeps_its_version_when_the_file_is_truncated_or_written_in_place() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("yes old | head -c 100000 > f");
        let mut reader = mount.spawn_python(
            "f = open('f', 'rb')\nm = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\nsay('open')\n\
             while hear() == 'check':\n    \
                 say(m[:] == f.read() == b'old\\n' * 25_000, os.fstat(f.fileno()).st_size)\n    \
                 f.seek(0)\n",
        );
        reader.expect("open");
        for script in [
            "truncate -s 5000 f",
            "printf xxx | dd of=f conv=notrunc status=none",
            "echo more >> f",
            ": > f",
            "cp /bin/sh f",
            "rm f",
        ] {
            mount.bash(script);
            reader.tell("check");
            reader.expect("True 100000");
        }
    }
}

/// A program that has `f` open, of 2 MiB of which nothing is cached, and reads it when told.
const BIG: usize = 2 << 20;

#[test]
fn as_root_the_kernel_reads_a_version_without_the_daemon() {
    let mount = options().mount();
    mount.python(&format!(
        "open('f', 'wb').write(bytes(range(256)) * ({BIG} // 256))"
    ));
    let mut reader = mount.spawn_python(&format!(
        "fd = os.open('f', os.O_RDONLY)\nm = mmap.mmap(fd, 0, prot=mmap.PROT_READ)\nsay('open')\n\
         hear()\nwhole = bytes(range(256)) * ({BIG} // 256)\n\
         say(os.pread(fd, {BIG}, 0) == whole)\nhear()\nsay(m[:] == whole)\nhear()\n"
    ));
    reader.expect("open");
    drop_caches();
    let stopped = Stopped::new(mount.daemon());
    reader.tell("read");
    reader.expect("True");
    reader.tell("read by the mapping");
    reader.expect("True");
    drop(stopped);
    reader.succeed();
}

#[test]
fn as_an_ordinary_user_a_version_is_read_again_without_the_daemon() {
    let mount = options().user(User::Ordinary).mount();
    mount.python(&format!(
        "open('f', 'wb').write(bytes(range(256)) * ({BIG} // 256))"
    ));
    let mut reader = mount.spawn_python(&format!(
        "whole = bytes(range(256)) * ({BIG} // 256)\n\
         assert open('f', 'rb').read() == whole\n\
         while hear():\n    fd = os.open('f', os.O_RDONLY)\n    say('open')\n    \
             hear()\n    say(os.pread(fd, {BIG}, 0) == whole)\n    os.close(fd)\n"
    ));
    // What another handle had read is still cached, although the file was closed meanwhile. A second after
    // the open, the kernel asks for the size first: then once more.
    let without_the_daemon = (0..10).any(|_| {
        reader.tell("open");
        reader.expect("open");
        let stopped = Stopped::new(mount.daemon());
        reader.tell("read");
        let mut said = None;
        wait_until("it has read, or asks the daemon", || {
            said = reader.try_hear();
            said.is_some() || blocked_threads(reader.pid()) > 0
        });
        drop(stopped);
        let alone = said.is_some();
        assert_eq!(said.unwrap_or_else(|| reader.hear()), "True");
        alone
    });
    assert!(without_the_daemon, "it asked the daemon each time");
    reader.succeed();
}

#[test]
fn a_descriptor_of_an_old_version_reopens_as_that_version() {
    for user in BOTH {
        let mount = options().user(user).mount();
        let script = "echo old > f; exec 3< f; echo new > f; rm -f g; \
             cat /dev/fd/3 /proc/self/fd/3; cat < /dev/fd/3; cat /dev/stdin <&3; cat f; cat <&3";
        assert_eq!(mount.bash(script), "old\nold\nold\nold\nnew\nold\n");
        let script = "fd = os.open('f', os.O_RDONLY)\n\
             for n in range(10):\n    open('f', 'w').write(str(n))\n    \
                 say(open(f'/proc/self/fd/{fd}').read().strip())\n";
        assert_eq!(mount.python(script), "new\n".repeat(10));
    }
}

#[test]
fn a_descriptor_of_the_current_version_reopens_as_that_version() {
    for user in BOTH {
        let mount = options().user(user).mount();
        let script = "echo a > f; cat /dev/stdin < f; exec 3< f; cat /dev/fd/3; \
             python3 -c 'print(open(\"/dev/fd/3\").read(), end=\"\")'";
        assert_eq!(mount.bash(script), "a\na\na\n");
    }
}

#[test]
fn output_through_dev_stdout_and_dev_stderr_is_part_of_the_version() {
    for user in BOTH {
        let mount = options().user(user).mount();
        let bare = mount.point().with_file_name("bare");
        std::fs::create_dir(&bare).expect("mkdir");
        for script in [
            "echo hi | cat > /dev/stdout",
            "bash -c 'echo hi > /dev/stdout'",
            "bash -c 'echo hi | tee /dev/stderr 2>&1 >/dev/null'",
            "echo hi | tee /dev/stdout",
            "echo one; bash -c 'echo two >> /dev/stdout'; echo three",
            "echo one; bash -c 'echo two > /dev/stdout'; echo three",
            "python3 -c 'open(\"/dev/stdout\", \"a\").write(\"hi\\n\")'",
        ] {
            mount.bash(&format!("{{ {script}; }} > f"));
            let status = Command::new("bash")
                .args(["-c", &format!("{{ {script}; }} > f")])
                .current_dir(&bare)
                .status();
            assert!(status.expect("bash").success());
            let expected = std::fs::read_to_string(bare.join("f")).expect("f");
            assert_eq!(mount.read_behind("f"), expected, "{script}");
        }
        mount.bash("echo error | tee /dev/stderr 2> e > o");
        assert_eq!(mount.read("e") + &mount.read("o"), "error\nerror\n");
    }
}

#[test]
fn a_program_that_was_just_written_can_be_executed() {
    for user in BOTH {
        let mount = options().user(user).mount();
        let script = "set -e; for n in $(seq 50); do \
               printf '#!/bin/sh\\necho %s\\n' $n > script; chmod +x script; ./script; \
               cp /bin/true binary; ./binary; \
             done";
        let expected: String = (1..=50).map(|n| format!("{n}\n")).collect();
        assert_eq!(mount.bash(script), expected);
    }
}

#[test]
fn a_program_that_is_being_written_is_executed_when_it_is_whole() {
    for user in BOTH {
        let mount = options().user(user).mount();
        let mut writer = mount.spawn(
            "bash",
            "exec 3> script; chmod 755 script; printf '#!/bin/sh\\necho one\\n' >&3; echo half; \
             read -r; printf 'echo two\\n' >&3; exec 3>&-; echo closed; read -r",
        );
        writer.expect("half");
        let runner = mount.spawn("sh", "echo ready; exec ./script");
        runner.expect("ready");
        wait_until_parked(runner.pid(), 1);
        writer.tell("go on");
        writer.expect("closed");
        runner.expect("one");
        runner.expect("two");
    }
}

// As everywhere: cp over a running program is refused, cp --remove-destination and mv are not.
#[test]
fn a_running_program_can_be_replaced_and_goes_on_as_it_was() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("cp /bin/cat program; cp program again");
        let mut old = mount.spawn("sh", "exec ./program");
        old.tell("before");
        old.expect("before");
        let refused = mount.try_run("bash", "cp /bin/echo program");
        assert!(text(&refused.stderr).contains("Text file busy"));
        mount.bash("cp /bin/echo new; mv new program");
        assert_eq!(mount.bash("./program after"), "after\n");
        mount.bash("cp --remove-destination /bin/echo program");
        assert_eq!(mount.bash("./program after"), "after\n");
        drop_caches();
        old.tell("still cat");
        old.expect("still cat");
        old.succeed();
    }
}

/// One writer, two readers, a thousand overwrites of a JSON document that is stamped at its head
/// and at its tail. Prints how many reads were whole, were torn, and how many versions were seen.
const STAMPS: &str = r#"
OVERWRITES = 1000
def write():
    for n in range(1, OVERWRITES + 1):
        with open('doc', 'w') as f:
            json.dump({'head': n, 'body': ['x' * 50] * (200 + n % 7 * 100), 'tail': n}, f)
def read(out):
    whole = torn = 0
    seen, last = set(), 0
    while last < OVERWRITES:
        with open('doc') as f:
            text = f.read()
        try:
            doc = json.loads(text)
            n = doc['head']
            ok = n == doc['tail'] and len(doc['body']) == 200 + n % 7 * 100
            assert not ok or n >= last, 'it went back'
            last = n if ok else last
        except ValueError:
            ok = False
        whole, torn = whole + ok, torn + (not ok)
        seen.add(last)
    os.write(out, f'{whole} {torn} {len(seen)}\n'.encode())
open('doc', 'w').write(json.dumps({'head': 0, 'body': ['x' * 50] * 200, 'tail': 0}))
r, w = os.pipe()
readers = []
for _ in range(2):
    pid = os.fork()
    if pid == 0:
        read(w)
        os._exit(0)
    readers.append(pid)
write()
assert all(os.waitpid(pid, 0)[1] == 0 for pid in readers)
os.close(w)
results = [[int(n) for n in line.split()] for line in os.fdopen(r)]
assert len(results) == 2
say(*map(sum, zip(*results)))
"#;

/// Whole reads, torn reads, versions seen.
fn stamps(output: &str) -> (u64, u64, u64) {
    let numbers: Vec<u64> = output
        .split_whitespace()
        .map(|word| word.parse().expect("a number"))
        .collect();
    (numbers[0], numbers[1], numbers[2])
}

fn stamps_in(mount: &Mount, before: &str) -> (u64, u64, u64) {
    stamps(&mount.python(&format!("{before}\n{STAMPS}")))
}

#[test]
fn no_read_during_a_thousand_overwrites_is_torn() {
    for user in BOTH {
        let mount = options().user(user).mount();
        let (whole, torn, seen) = stamps_in(&mount, "");
        assert_eq!(torn, 0, "torn reads, of {whole}");
        assert!(whole >= 1000, "only {whole} reads of {seen} versions");
        assert!(seen >= 100, "only {seen} versions were seen");
    }
}

// Else the test above would prove nothing.
#[test]
fn the_same_readers_see_torn_documents_in_a_bare_directory() {
    let mount = options().mount();
    let bare = mount.point().with_file_name("bare");
    let enter = format!("os.mkdir('{0}'); os.chdir('{0}')", bare.display());
    let (whole, torn, _) = stamps_in(&mount, &enter);
    assert!(torn > 0, "{whole} whole reads, and none torn");
}

#[test]
fn a_descriptor_by_o_path_opens_the_present_version() {
    as_each_user(|mount| {
        mount.python(
            "open('f', 'w').write('old')\nfd = os.open('f', os.O_PATH)\n\
             path = f'/proc/self/fd/{fd}'\nassert open(path).read() == 'old'\n\
             for n in range(3):\n    open('f', 'w').write(f'new {n}, longer')\n    \
             assert open(path).read() == f'new {n}, longer'\n",
        );
    });
}

#[test]
fn what_a_writer_read_beside_its_version_stays_when_the_file_is_rewritten_in_place() {
    as_each_user(|mount| {
        let mut writer = mount.spawn_python(
            "w = os.open('f', os.O_RDWR | os.O_CREAT); r = os.open('f', os.O_RDONLY)\n\
             os.link('f', 'second'); os.write(w, b'mine'); os.close(w); say('closed'); hear()\n\
             say(os.pread(r, 10, 0) == b'mine', os.fstat(r).st_size)",
        );
        writer.expect("closed");
        mount.bash(": > f");
        writer.tell("read");
        writer.expect("True 4");
        writer.succeed();
    });
}
