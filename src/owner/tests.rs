//! The real `/proc`, asked about real processes.

use super::*;
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// A python program that is told to go on by lines, and says how far it is by lines. It and what
/// it forked end when this is dropped.
struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

/// What every program can use. `hold` waits until the test is over: all the processes of a
/// program have the same standard input, which ends then.
const PRELUDE: &str = "
import ctypes, mmap, os, signal, sys, threading, time
path = sys.argv[1]
def say(*words): os.write(1, (' '.join(map(str, words)) + '\\n').encode())
def hold():
    while os.read(0, 1): pass
    os._exit(0)
def wait():
    while os.read(0, 1) not in (b'', b'\\n'): pass
";

impl Program {
    /// Starts a program and waits for its first line.
    fn start(path: &Path, source: &str) -> Result<(Self, String)> {
        let mut child = Command::new("python3")
            .arg("-c")
            .arg(format!("{PRELUDE}{source}"))
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        let mut program = Self {
            child,
            stdin,
            stdout,
        };
        let line = program.line()?;
        Ok((program, line))
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of its output.
    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        match self.stdout.read_line(&mut line)? {
            0 => Err("the program ended".into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }

    /// Lets it go on.
    fn go(&mut self) -> Result {
        use std::io::Write;
        Ok(self.stdin.as_mut().ok_or("no stdin")?.write_all(b"\n")?)
    }

    fn signal(&self, signal: i32) {
        // SAFETY: kill takes numbers only. The child is not reaped, so the number is its own.
        let result = unsafe { libc::kill(self.pid() as i32, signal) };
        assert_eq!(result, 0);
    }

    /// Stops it, and waits until it has stopped.
    fn stop(&self) {
        self.signal(libc::SIGSTOP);
        let mut status = 0;
        // SAFETY: waitpid writes to `status`, which outlives it.
        let pid = unsafe { libc::waitpid(self.pid() as i32, &mut status, libc::WUNTRACED) };
        assert_eq!(pid, self.pid() as i32);
        assert!(libc::WIFSTOPPED(status));
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[track_caller]
fn become_zombie(process: u32) {
    eventually("a zombie", || {
        Proc.thread(process).is_some_and(|thread| thread.exiting)
    });
}

/// A file, and what makes its number known.
fn file() -> Result<(tempfile::NamedTempFile, u64)> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), vec![0; 8192])?;
    let inode = file.as_file().metadata()?.ino();
    Ok((file, inode))
}

/// A file that this process itself holds no descriptor of.
fn closed_file() -> Result<(tempfile::TempPath, u64)> {
    let (file, inode) = file()?;
    Ok((file.into_temp_path(), inode))
}

fn search(inode: u64, opener: u32, shared: bool) -> Search {
    Search {
        device: None,
        inode,
        opener,
        shared,
        no_append: false,
    }
}

fn nowhere() -> &'static Path {
    Path::new("/nowhere")
}

// Threads

#[test]
fn a_thread_is_known_with_its_process_its_parent_and_its_name() -> Result {
    let name = "a) (b c";
    let (tid, thread) = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(|| {
            let tid = rustix::thread::gettid().as_raw_nonzero().get() as u32;
            (tid, Proc.thread(tid))
        })?
        .join()
        .map_err(|_| "panicked")?;
    let expected = Thread {
        tid,
        process: std::process::id(),
        parent: std::os::unix::process::parent_id(),
        name: name.to_owned(),
        exiting: false,
        in_exec: false,
        interrupted: false,
        signalled: false,
        groups: rustix::process::getgroups()?
            .into_iter()
            .map(rustix::process::Gid::as_raw)
            .collect(),
    };
    assert_ne!(tid, expected.process);
    assert_eq!(thread, Some(expected));
    Ok(())
}

#[test]
fn a_process_that_is_gone_is_nobody() -> Result {
    let mut child = Command::new("true").spawn()?;
    child.wait()?;
    let gone = child.id();
    assert_eq!(Proc.thread(gone), None);
    assert_eq!(Proc.exit(gone), Exit::Unknown);
    assert!(Proc.watch(gone).is_none());
    assert!(!Proc.holds_open_for_writing(gone, 1));
    assert!(!Proc.maps(gone, 1));
    for nobody in [0, u32::MAX] {
        assert_eq!(Proc.thread(nobody), None);
        assert!(Proc.watch(nobody).is_none());
    }
    Ok(())
}

// Signals

#[test]
fn a_pending_signal_that_is_caught_interrupts() -> Result {
    let (program, _) = Program::start(
        nowhere(),
        "signal.signal(signal.SIGUSR1, lambda *_: None); say('ready'); hold()",
    )?;
    let interrupted = || Proc.thread(program.pid()).is_some_and(|t| t.interrupted);
    program.stop();
    assert!(!interrupted());
    program.signal(libc::SIGUSR1);
    assert!(interrupted());
    Ok(())
}

#[test]
fn a_pending_signal_that_terminates_by_default_interrupts() -> Result {
    let (program, _) = Program::start(nowhere(), "say('ready'); hold()")?;
    program.stop();
    program.signal(libc::SIGWINCH);
    program.signal(libc::SIGCHLD);
    assert!(!Proc.thread(program.pid()).is_some_and(|t| t.interrupted));
    program.signal(libc::SIGTERM);
    assert!(Proc.thread(program.pid()).is_some_and(|t| t.interrupted));
    Ok(())
}

#[test]
fn a_pending_signal_that_is_blocked_does_not_interrupt() -> Result {
    let (mut program, _) = Program::start(
        nowhere(),
        "
signal.signal(signal.SIGTERM, lambda *_: None)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGWINCH])
os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGWINCH)
say('pending' if signal.SIGTERM in signal.sigpending() else 'lost')
wait()
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
say('delivered'); hold()",
    )
    .and_then(|(program, line)| match &*line {
        "pending" => Ok((program, line)),
        _ => Err(line.into()),
    })?;
    assert!(!Proc.thread(program.pid()).ok_or("gone")?.interrupted);
    program.go()?;
    assert_eq!(program.line()?, "delivered");
    assert!(!Proc.thread(program.pid()).ok_or("gone")?.interrupted);
    Ok(())
}

// Ends

#[test]
fn a_process_that_is_alive_has_no_exit() -> Result {
    let (program, _) = Program::start(nowhere(), "say('ready'); hold()")?;
    assert_eq!(Proc.exit(program.pid()), Exit::Unknown);
    let watch = Proc.watch(program.pid()).ok_or("no watch")?;
    assert_eq!(watch.exit(), None);
    Ok(())
}

#[test]
fn an_exit_is_normal_whatever_its_status_as_a_zombie_and_after() -> Result {
    for status in [0, 1, 9, 255] {
        let mut child = Command::new("sh")
            .args(["-c", &format!("exit {status}")])
            .spawn()?;
        let watch = Proc.watch(child.id()).ok_or("no watch")?;
        become_zombie(child.id());
        assert_eq!(Proc.exit(child.id()), Exit::Normal);
        assert_eq!(watch.exit(), Some(Exit::Normal));
        child.wait()?;
        assert_eq!(Proc.exit(child.id()), Exit::Unknown);
        assert_eq!(watch.exit(), Some(Exit::Normal));
    }
    Ok(())
}

#[test]
fn a_death_of_a_signal_is_told_as_a_zombie_and_after() -> Result {
    for signal in [libc::SIGKILL, libc::SIGSEGV, libc::SIGTERM, libc::SIGABRT] {
        let (mut program, _) = Program::start(
            nowhere(),
            "
threading.Thread(target=hold).start()
ctypes.CDLL(None).prctl(15, b'x) S 1 (', 0, 0, 0)
say('ready'); hold()",
        )?;
        let watch = Proc.watch(program.pid()).ok_or("no watch")?;
        program.signal(signal);
        // The first thread may be a zombie while the second is still on its way out.
        eventually("an end", || watch.exit().is_some());
        let name = Proc.thread(program.pid()).map(|thread| thread.name);
        assert_eq!(name.as_deref(), Some("x) S 1 ("));
        assert_eq!(Proc.exit(program.pid()), Exit::Signalled(signal));
        assert_eq!(watch.exit(), Some(Exit::Signalled(signal)));
        program.child.wait()?;
        assert_eq!(watch.exit(), Some(Exit::Signalled(signal)));
    }
    Ok(())
}

#[test]
fn a_process_of_many_threads_that_exits_from_any_of_them_ends_normally() -> Result {
    for from_main in [true, false] {
        let (mut program, _) = Program::start(
            nowhere(),
            &format!(
                "
for _ in range(20): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
def leave(): wait(); os._exit(3)
say('ready')
if {}: leave()
threading.Thread(target=leave, daemon=True).start()
time.sleep(1000)",
                if from_main { "True" } else { "False" }
            ),
        )?;
        let watch = Proc.watch(program.pid()).ok_or("no watch")?;
        program.go()?;
        eventually("an end", || watch.exit().is_some());
        assert_eq!(watch.exit(), Some(Exit::Normal));
        assert_eq!(Proc.exit(program.pid()), Exit::Normal);
        program.child.wait()?;
        assert_eq!(watch.exit(), Some(Exit::Normal));
    }
    Ok(())
}

#[test]
fn a_process_lives_on_and_holds_its_files_when_its_first_thread_has_ended() -> Result {
    let (path, inode) = closed_file()?;
    let (mut program, _) = Program::start(
        &path,
        &format!(
            "
fd = os.open(path, os.O_RDWR)
memory = mmap.mmap(fd, 4096)
threading.Thread(target=hold).start()
say('ready')
ctypes.CDLL(None).syscall({}, 0)",
            libc::SYS_exit
        ),
    )?;
    become_zombie(program.pid());
    let watch = Proc.watch(program.pid()).ok_or("no watch")?;
    assert_eq!(watch.exit(), None);
    assert_eq!(Proc.exit(program.pid()), Exit::Unknown);
    assert!(Proc.holds_open_for_writing(program.pid(), inode));
    assert!(Proc.maps(program.pid(), inode));
    program.signal(libc::SIGKILL);
    eventually("an end", || watch.exit().is_some());
    assert_eq!(watch.exit(), Some(Exit::Signalled(libc::SIGKILL)));
    program.child.wait()?;
    assert_eq!(watch.exit(), Some(Exit::Signalled(libc::SIGKILL)));
    Ok(())
}

#[test]
fn a_scripted_watch_says_what_the_script_says() {
    let watch = ProcessWatch::scripted(|| Some(Exit::Signalled(11)));
    assert_eq!(watch.exit(), Some(Exit::Signalled(11)));
    assert!(format!("{watch:?}").contains("scripted"));
}

// Descriptors

#[test]
fn a_descriptor_is_held_until_it_is_closed() -> Result {
    let (file, inode) = file()?;
    let myself = std::process::id();
    assert!(Proc.holds_open_for_writing(myself, inode));
    assert!(Proc.anyone_holds(&search(inode, myself, false)));
    let _path = file.into_temp_path();
    assert!(!Proc.holds_open_for_writing(myself, inode));
    // A child that another test is just starting has a copy until its execve.
    for shared in [false, true] {
        eventually("nobody holds it", || {
            !Proc.anyone_holds(&search(inode, myself, shared))
        });
    }
    Ok(())
}

#[test]
fn a_descriptor_to_read_or_to_name_the_file_does_not_count() -> Result {
    let (path, inode) = closed_file()?;
    let myself = std::process::id();
    let _read = File::open(&path)?;
    let _name = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(&path)?;
    assert!(!Proc.holds_open_for_writing(myself, inode));
    let write = OpenOptions::new().append(true).open(&path)?;
    assert!(Proc.holds_open_for_writing(myself, inode));
    drop(write);
    assert!(!Proc.holds_open_for_writing(myself, inode));
    Ok(())
}

#[test]
fn a_child_that_inherited_holds_when_the_opener_has_closed() -> Result {
    let (path, inode) = closed_file()?;
    let (mut program, _) = Program::start(
        &path,
        "
fd = os.open(path, os.O_WRONLY)
if os.fork() == 0:
    wait(); os.close(fd); say('closed'); hold()
os.close(fd); say('ready'); hold()",
    )?;
    // Either process may read the newline that is meant for the child; only it must.
    let shared = search(inode, program.pid(), true);
    let unshared = search(inode, program.pid(), false);
    assert!(!Proc.holds_open_for_writing(program.pid(), inode));
    assert!(Proc.anyone_holds(&unshared));
    assert!(Proc.anyone_holds(&shared));
    loop {
        program.go()?;
        let mut poll = [rustix::event::PollFd::new(
            program.stdout.get_ref(),
            rustix::event::PollFlags::IN,
        )];
        let timeout = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 10_000_000,
        };
        if rustix::event::poll(&mut poll, Some(&timeout))? > 0 {
            break;
        }
    }
    assert_eq!(program.line()?, "closed");
    assert!(!Proc.anyone_holds(&unshared));
    assert!(!Proc.anyone_holds(&shared));
    Ok(())
}

#[test]
fn a_child_started_by_a_shell_holds_what_it_was_redirected_to() -> Result {
    let (path, inode) = closed_file()?;
    let mut shell = Command::new("sh")
        .args(["-c", "{ echo ready; cat <&3 >/dev/null; } 3<&0 >\"$0\"; :"])
        .arg(&*path)
        .stdin(Stdio::piped())
        .spawn()?;
    eventually("the redirection", || {
        std::fs::read(&path).is_ok_and(|text| text == b"ready\n")
    });
    assert!(Proc.holds_open_for_writing(shell.id(), inode));
    assert!(Proc.anyone_holds(&search(inode, shell.id(), false)));
    drop(shell.stdin.take());
    shell.wait()?;
    assert!(!Proc.anyone_holds(&search(inode, shell.id(), false)));
    Ok(())
}

#[test]
fn a_grandchild_is_found_through_the_child_that_holds() -> Result {
    let (path, inode) = closed_file()?;
    let (program, _) = Program::start(
        &path,
        "
fd = os.open(path, os.O_WRONLY)
if os.fork() == 0:
    if os.fork() == 0: say('ready')
    hold()
os.close(fd); hold()",
    )?;
    eventually("the opener has closed", || {
        !Proc.holds_open_for_writing(program.pid(), inode)
    });
    assert!(Proc.anyone_holds(&search(inode, program.pid(), false)));
    Ok(())
}

#[test]
fn a_grandchild_is_found_when_the_child_was_seen_closing() -> Result {
    let (path, inode) = closed_file()?;
    let (program, _) = Program::start(
        &path,
        "
fd = os.open(path, os.O_WRONLY)
if os.fork() == 0:
    if os.fork() == 0: hold()
    os.close(fd); say('ready'); hold()
os.close(fd); hold()",
    )?;
    eventually("the opener has closed", || {
        !Proc.holds_open_for_writing(program.pid(), inode)
    });
    assert!(Proc.anyone_holds(&search(inode, program.pid(), true)));
    // The chain of holders is broken, which is why it matters to have seen the child closing.
    assert!(!Proc.anyone_holds(&search(inode, program.pid(), false)));
    Ok(())
}

#[test]
fn an_orphan_is_found_when_a_child_of_the_opener_is_a_zombie() -> Result {
    let (path, inode) = closed_file()?;
    let (program, _) = Program::start(
        &path,
        "
fd = os.open(path, os.O_WRONLY)
child = os.fork()
if child == 0:
    if os.fork() == 0: hold()
    os._exit(0)
os.close(fd); os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT); say('ready'); hold()",
    )?;
    assert!(Proc.anyone_holds(&search(inode, program.pid(), false)));
    Ok(())
}

#[test]
fn an_orphan_is_found_when_the_opener_is_a_zombie_or_gone() -> Result {
    let (path, inode) = closed_file()?;
    let (mut program, _) = Program::start(
        &path,
        "
fd = os.open(path, os.O_WRONLY)
if os.fork() == 0: say('ready'); hold()
os.read(0, 1); os._exit(0)",
    )?;
    // The newline goes to either of them. The child ignores it.
    eventually("the opener has ended", || {
        let _ = program.go();
        Proc.thread(program.pid())
            .is_none_or(|thread| thread.exiting)
    });
    let search = search(inode, program.pid(), false);
    assert!(Proc.anyone_holds(&search));
    program.child.wait()?;
    assert!(Proc.anyone_holds(&search));
    program.stdin = None;
    eventually("the orphan has ended", || !Proc.anyone_holds(&search));
    Ok(())
}

#[test]
fn the_calling_process_is_asked_only_as_the_opener() -> Result {
    let (_file, inode) = file()?;
    let (program, _) = Program::start(nowhere(), "say('ready'); hold()")?;
    // A child that another test is just starting has a copy until its execve.
    eventually("no other process holds it", || {
        !Proc.anyone_holds(&search(inode, program.pid(), true))
    });
    assert!(Proc.anyone_holds(&search(inode, std::process::id(), true)));
    Ok(())
}

// Mappings

#[test]
fn a_shared_writable_mapping_is_seen_until_it_is_gone_and_others_are_not() -> Result {
    let (path, inode) = closed_file()?;
    for (kind, counts) in [
        ("mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE", true),
        ("mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE", false),
        ("mmap.MAP_SHARED, mmap.PROT_READ", false),
    ] {
        // Python's mmap keeps a duplicate of the descriptor, so the descriptor would be seen too.
        let (mut program, _) = Program::start(
            &path,
            &format!(
                "
fd = os.open(path, os.O_RDWR)
memory = mmap.mmap(fd, 8192, {kind})
os.close(fd); say('ready'); wait()
memory.close(); say('closed'); hold()"
            ),
        )?;
        assert_eq!(Proc.maps(program.pid(), inode), counts, "{kind}");
        assert!(!Proc.maps(program.pid(), inode + 1));
        program.go()?;
        assert_eq!(program.line()?, "closed");
        assert!(!Proc.maps(program.pid(), inode));
    }
    Ok(())
}

// Locks

#[test]
fn a_descriptor_counts_as_open_however_it_is_open() -> Result {
    use std::os::unix::fs::MetadataExt;
    let file = tempfile::NamedTempFile::new()?;
    let (inode, device) = (file.as_file().metadata()?.ino(), None);
    let holder = |redirection: &str| {
        let mut shell = Command::new("sh");
        let script = format!("exec 9{redirection}; echo ready; read line");
        let mut child = shell
            .args(["-c", &script])
            .arg(file.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut ready = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().ok_or("no output")?, &mut ready)?;
        Ok::<_, Box<dyn std::error::Error>>(child)
    };
    for (redirection, holds) in [("<\"$0\"", true), (">\"$0\"", true), ("<&0", false)] {
        let mut child = holder(redirection)?;
        let seen = Proc.holds_open(child.id(), inode, device);
        drop(child.stdin.take());
        child.wait()?;
        assert_eq!(seen, Some(holds), "{redirection}");
        assert_eq!(Proc.holds_open(child.id(), inode, device), Some(false));
    }
    Ok(())
}

#[test]
fn a_thread_that_waits_for_a_lock_tells_which_kind() -> Result {
    let file = tempfile::NamedTempFile::new()?;
    let script = "import fcntl, os, struct, sys\n\
        path, command = sys.argv[1], int(sys.argv[2])\n\
        lock = struct.pack('hhxxxxqqixxxx', fcntl.F_WRLCK, 0, 0, 0, 0)\n\
        f = os.open(path, os.O_RDWR)\n\
        fcntl.fcntl(f, fcntl.F_OFD_SETLK, lock)\n\
        if os.fork() == 0:\n\
        \x20   os.close(f)\n\
        \x20   g = os.open(path, os.O_RDWR)\n\
        \x20   print(os.getpid(), flush=True)\n\
        \x20   fcntl.fcntl(g, command, lock)\n\
        \x20   os._exit(0)\n\
        sys.stdin.read()\n\
        os.close(f)\n\
        os.wait()\n";
    for (command, description) in [(libc::F_SETLKW, false), (libc::F_OFD_SETLKW, true)] {
        let mut program = Command::new("python3")
            .args(["-c", script])
            .arg(file.path())
            .arg(command.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let output = program.stdout.take().ok_or("no output")?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line)?;
        let waiter: u32 = line.trim().parse()?;
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let mut seen = None;
        while seen.is_none() && std::time::Instant::now() < end {
            seen = Proc.locks_description(waiter);
        }
        // It gets the lock when the program ends, and ends too.
        drop(program.stdin.take());
        program.wait()?;
        assert_eq!(seen, Some(description));
    }
    assert_eq!(Proc.locks_description(u32::MAX), None);
    Ok(())
}
