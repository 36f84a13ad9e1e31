//! W10: duplicated and inherited descriptors do not commit early.

mod common;

use common::{Mount, Running, as_each_user, wait_until};

/// Runs a shell script step by step: it calls `pause NAME`, and BACKING has to hold "old" at
/// every pause. In the end it has to hold `expected`, by one commit.
fn one_version(mount: &Mount, shell: &str, script: &str, pauses: usize, expected: &str) {
    mount.bash("echo old > f");
    let before = mount.commits("f");
    let pause = "pause() { echo pause >&8; read -r _ <&9; }\nexec 8>&1 9<&0\n";
    let mut program = mount.spawn(shell, &format!("{pause}{script}\necho done >&8; read -r _"));
    for _ in 0..pauses {
        program.expect("pause");
        assert_eq!(mount.read_behind("f"), "old\n", "{shell}: {script}");
        program.tell("go on");
    }
    program.expect("done");
    assert_eq!(mount.read_behind("f"), expected, "{shell}: {script}");
    assert_eq!(mount.commits("f"), before + 1, "{shell}: {script}");
    program.tell("end");
    program.succeed();
}

#[test]
fn several_commands_with_one_redirection_are_one_version() {
    as_each_user(|mount| {
        for shell in ["bash", "dash"] {
            for (script, pauses, expected) in [
                ("{ echo a; pause; echo b; } > f", 1, "a\nb\n"),
                (
                    "{ /bin/echo a; pause; /bin/echo b; pause; } > f",
                    2,
                    "a\nb\n",
                ),
                (
                    "{ /bin/echo a; (echo b; pause); sh -c 'echo c' | cat; } > f",
                    1,
                    "a\nb\nc\n",
                ),
                (
                    "for i in 1 2 3; do /bin/echo $i; pause; done > f",
                    3,
                    "1\n2\n3\n",
                ),
                ("(echo a; pause; /bin/echo b) > f", 1, "a\nb\n"),
                ("{ /bin/true; pause; /bin/echo a; } > f", 1, "a\n"),
                (
                    "{ echo out; pause; echo err >&2; } > f 2>&1",
                    1,
                    "out\nerr\n",
                ),
            ] {
                one_version(mount, shell, script, pauses, expected);
            }
        }
    });
}

#[test]
fn several_writes_to_a_descriptor_of_exec_are_one_version() {
    as_each_user(|mount| {
        for shell in ["bash", "dash"] {
            let script = "exec 3>f; echo 1 >&3; pause; echo 2 >&3; pause; /bin/echo 3 >&3; pause; \
                exec 3>&-";
            one_version(mount, shell, script, 3, "1\n2\n3\n");
            let script = "exec 3>f 4>&3; echo 1 >&3; exec 3>&-; pause; echo 2 >&4; exec 4>&-";
            one_version(mount, shell, script, 1, "1\n2\n");
        }
    });
}

#[test]
fn a_shell_that_exits_without_closing_commits_then() {
    as_each_user(|mount| {
        for shell in ["bash", "dash"] {
            let script = "exec 3>f; echo 1 >&3; echo 2 >&3; exit 1";
            let output = mount.try_run(shell, script);
            assert_eq!(output.status.code(), Some(1));
            assert_eq!(mount.read_behind("f"), "1\n2\n");
        }
    });
}

#[test]
fn a_background_command_that_outlives_the_shell_ends_the_version() {
    as_each_user(|mount| {
        for shell in ["bash", "dash"] {
            mount.bash("echo old > f");
            let before = mount.commits("f");
            let mut opener = mount.spawn(
                shell,
                "exec 3>f 9<&0; echo early >&3
                (read -r _ <&9; echo late >&3; read -r _ <&9; exit 0) &
                echo started $!; exit 0",
            );
            let started = opener.hear();
            let child: u32 = started
                .strip_prefix("started ")
                .expect("started")
                .parse()
                .expect("a pid");
            wait_until("the opener has exited", || !common::alive(opener.pid()));
            assert_eq!(mount.read_behind("f"), "old\n");
            opener.tell("write");
            // Its write is seen by nobody, so the next thing to hear of is its end.
            opener.tell("end");
            wait_until("the child has exited", || !common::alive(child));
            assert_eq!(mount.read_behind("f"), "early\nlate\n");
            assert_eq!(mount.commits("f"), before + 1);
        }
    });
}

/// Runs Python step by step, as [`one_version`]: with `f` open on "f", for replacing it.
fn steps(mount: &Mount, script: &str, expected: &str) {
    mount.bash("echo old > f");
    let before = mount.commits("f");
    let out = mount.python(&format!(
        r#"
def old():
    assert open("../backing/f").read() == "old\n"
def fork(work):
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return pid
f = os.open("f", os.O_WRONLY | os.O_TRUNC)
os.write(f, b"1")
{script}
assert open("../backing/f").read() == "{expected}", open("../backing/f").read()
print("good")
"#
    ));
    assert_eq!(out, "good\n");
    assert_eq!(mount.read("f"), expected);
    assert_eq!(mount.commits("f"), before + 1, "{script}");
}

#[test]
fn closing_a_duplicate_commits_nothing() {
    as_each_user(|mount| {
        let script = "d = os.dup(f); os.close(f); old(); os.write(d, b'2'); e = os.dup2(d, 77); \
            os.close(d); old(); os.write(e, b'3'); os.close(e)";
        steps(mount, script, "123");
        let script = "import fcntl\nd = fcntl.fcntl(f, fcntl.F_DUPFD_CLOEXEC, 100)\nos.close(d); \
            old(); os.write(f, b'2'); os.dup2(f, f); old(); os.close(f)";
        steps(mount, script, "12");
        let script = "os.set_inheritable(f, True)\nd = os.open(f'/proc/self/fd/{f}', os.O_WRONLY)\n\
            os.pwrite(d, b'2', 1); os.close(d); old(); os.close(f)";
        steps(mount, script, "12");
    });
}

#[test]
fn a_child_that_closes_its_inherited_copy_commits_nothing() {
    as_each_user(|mount| {
        let script = "pid = fork(lambda: os.close(f)); os.waitpid(pid, 0); old()\n\
            os.write(f, b'2'); os.close(f)";
        steps(mount, script, "12");
        // Also if it has written before.
        let script = "pid = fork(lambda: (os.write(f, b'2'), os.close(f))); os.waitpid(pid, 0); \
            old()\nos.write(f, b'3'); os.close(f)";
        steps(mount, script, "123");
    });
}

#[test]
fn a_child_that_exits_commits_nothing() {
    as_each_user(|mount| {
        let script = "for _ in range(10):\n    pid = fork(lambda: None); os.waitpid(pid, 0); old()\n\
            os.write(f, b'2'); os.close(f)";
        steps(mount, script, "12");
    });
}

#[test]
fn a_child_that_still_holds_a_copy_ends_the_version() {
    as_each_user(|mount| {
        let script = r#"
r, w = os.pipe()
def child():
    os.close(w)
    os.read(r, 1)
    os.write(f, b"3")
pid = fork(child)
os.write(f, b"2")
os.close(f)
old()
os.close(w)
os.waitpid(pid, 0)
"#;
        steps(mount, script, "123");
    });
}

#[test]
fn a_daemon_that_forked_twice_ends_the_version() {
    as_each_user(|mount| {
        let script = r#"
r, w = os.pipe()
done, finished = os.pipe()
def daemon():
    os.close(w)
    os.read(r, 1)
    os.write(f, b"2")
    os.write(f, b"3")
    os.close(f)
    os.write(finished, b"x")
def middle():
    os.setsid()
    fork(daemon)
pid = fork(middle)
os.waitpid(pid, 0)
old()
os.close(f)
old()
os.close(w)
assert os.read(done, 1)
"#;
        steps(mount, script, "123");
    });
}

#[test]
fn a_daemon_outlives_its_opener() {
    as_each_user(|mount| {
        mount.bash("echo old > f");
        let mut program = mount.spawn_python(
            r#"
f = os.open("f", os.O_WRONLY | os.O_TRUNC)
os.write(f, b"1")
if os.fork() == 0:
    if os.fork() == 0:
        say(os.getpid())
        hear()
        os.write(f, b"2")
        os.close(f)
        say("closed")
        hear()
    os._exit(0)
os.wait()
os._exit(0)
"#,
        );
        let _: u32 = program.hear().parse().expect("a pid");
        wait_until("the opener has exited", || !common::alive(program.pid()));
        assert_eq!(mount.read_behind("f"), "old\n");
        program.tell("write");
        program.expect("closed");
        assert_eq!(mount.read_behind("f"), "12");
        program.tell("end");
    });
}

#[test]
fn subprocesses_started_while_a_file_is_written_commit_nothing() {
    as_each_user(|mount| {
        for how in [
            "subprocess.run(['true'])",
            "subprocess.run(['true'], close_fds=False)",
            "subprocess.run(['true'], close_fds=False, pass_fds=())",
            "subprocess.run(['true'], pass_fds=(f,))",
            "subprocess.run('echo hello | cat', shell=True, stdout=subprocess.DEVNULL)",
            "subprocess.Popen(['true'], start_new_session=True).wait()",
            "os.system('true')",
            "os.popen('echo x').read()",
            "os.posix_spawn('/bin/true', ['true'], {})",
            "import multiprocessing as m; p = m.get_context('fork').Process(target=int); p.start(); p.join()",
        ] {
            steps(
                mount,
                &format!("{how}; old(); os.write(f, b'2'); os.close(f)"),
                "12",
            );
        }
    });
}

#[test]
fn a_with_block_with_a_subprocess_in_it_is_one_version() {
    as_each_user(|mount| {
        for close_fds in ["True", "False"] {
            mount.bash("echo old > f");
            mount.python(&format!(
                r#"
with open("f", "w") as f:
    f.write("1 ")
    f.flush()
    subprocess.run(["true"], close_fds={close_fds}, check=True)
    assert open("../backing/f").read() == "old\n"
    subprocess.run(["echo", "-n", "2 "], stdout=f, close_fds={close_fds}, check=True)
    assert open("../backing/f").read() == "old\n"
    f.write("3")
assert open("../backing/f").read() == "1 2 3"
"#
            ));
        }
    });
}

#[test]
fn a_program_that_is_executed_with_the_descriptor_goes_on_with_the_version() {
    as_each_user(|mount| {
        mount.bash(
            "echo old > f; exec 3>f; echo a >&3; exec sh -c 'cat ../backing/f >&3; echo b >&3'",
        );
        assert_eq!(mount.read_behind("f"), "a\nold\nb\n");
        mount.python(
            "os.dup2(os.open('f', os.O_WRONLY | os.O_TRUNC), 1); os.execlp('echo', 'echo', 'x')",
        );
        assert_eq!(mount.read_behind("f"), "x\n");
    });
}

#[test]
fn execve_with_a_close_on_exec_descriptor_commits_and_does_not_hang() {
    as_each_user(|mount| {
        for script in [
            // Python's descriptors are close-on-exec.
            "exec_it()",
            // With other threads, which execve ends.
            "for _ in range(8): threading.Thread(target=time.sleep, args=(600,)).start()\nexec_it()",
            // By a thread that is not the first.
            "thread = threading.Thread(target=exec_it)\nthread.start()\nthread.join()",
        ] {
            mount.bash("echo old > f");
            // Whoever reads /proc/PID/stat meanwhile must not hang, either.
            let seen = mount.python(&format!(
                r#"
def exec_it():
    os.execlp("sh", "sh", "-c", "cat ../backing/f; ps -e >/dev/null; cat f")
f = os.open("f", os.O_WRONLY | os.O_TRUNC)
os.write(f, b"new ")
{script}
"#
            ));
            assert_eq!(seen, "new new ", "{script}");
        }
    });
}

#[test]
fn a_hundred_execve_in_a_row_with_ps_beside_them_do_not_hang() {
    as_each_user(|mount| {
        let mut watcher = mount.spawn(
            "bash",
            "while read -rt 0.01 _; [ $? -gt 128 ]; do ps -ef >/dev/null; done",
        );
        mount.python(
            r#"
for turn in range(100):
    if os.fork() == 0:
        os.write(os.open("f", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), b"%d" % turn)
        os.execlp("true", "true")
    os.wait()
    assert open("../backing/f").read() == str(turn)
"#,
        );
        watcher.tell("stop");
        watcher.succeed();
    });
}

#[test]
fn a_descriptor_passed_over_a_socket_loses_nothing_silently() {
    // The receiver is no descendant of the opener. Either the version goes on with it, or its
    // write fails; what a write() reported as written is in the file.
    as_each_user(|mount| {
        for order in ["received first", "in flight"] {
            mount.bash("echo old > f; rm -f ../backing/s");
            let socket = mount.point().with_file_name("socket");
            let receiver = receiver(mount, &socket.to_string_lossy());
            let mut sender = mount.spawn_python(&format!(
                r#"
import socket
s = socket.socket(socket.AF_UNIX)
s.connect("{}")
f = os.open("f", os.O_WRONLY | os.O_TRUNC)
os.write(f, b"first ")
socket.send_fds(s, [b"x"], [f])
say("sent")
hear()
os.close(f)
say("closed")
hear()
"#,
                socket.display()
            ));
            sender.expect("sent");
            let mut receiver = receiver;
            if order == "received first" {
                receiver.tell("receive");
                receiver.expect("received");
                sender.tell("close");
                sender.expect("closed");
            } else {
                sender.tell("close");
                sender.expect("closed");
                receiver.tell("receive");
                receiver.expect("received");
            }
            receiver.tell("write");
            let written = receiver.hear();
            receiver.expect("closed");
            let expected = match &*written {
                "written" => "first second",
                _ => "first ",
            };
            wait_until("the last version is committed", || {
                mount.read_behind("f") != "old\n"
            });
            assert_eq!(mount.read("f"), expected, "{order}: {written}");
            drop(sender);
            std::fs::remove_file(&socket).expect("the socket");
        }
    });
}

fn receiver(mount: &Mount, socket: &str) -> Running {
    let receiver = mount.spawn_python(&format!(
        r#"
import socket
s = socket.socket(socket.AF_UNIX)
s.bind("{socket}")
s.listen()
say("listening")
c, _ = s.accept()
hear()
f = socket.recv_fds(c, 1, 1)[1][0]
say("received")
hear()
try:
    os.write(f, b"second")
    say("written")
except OSError as e:
    say(errno.errorcode[e.errno])
try: os.close(f)
except OSError: pass
say("closed")
hear()
"#
    ));
    receiver.expect("listening");
    receiver
}
