//! `/proc/TID/status` and, where it is safe, `/proc/PID/stat`.

use super::files::{self, fields, number};
use super::{Exit, Thread};
use std::borrow::Cow;
use std::time::{Duration, Instant};

/// What is of interest in `/proc/TID/status`; see proc_pid_status(5).
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Status {
    name: String,
    process: u32,
    parent: u32,
    /// Of the whole process, those included that are dead but not reaped.
    threads: u32,
    /// Real, effective, saved.
    uids: [u32; 3],
    gids: [u32; 3],
    groups: Vec<u32>,
    /// The `VmSize` line is there: the thread has an address space.
    has_memory: bool,
    /// It has ended, and its children are no longer its own.
    zombie: bool,
    /// `VmExe` is not zero: the code of the program is in place.
    has_code: bool,
    /// For the thread, or for its process.
    pending: u64,
    /// For the thread alone.
    own: u64,
    blocked: u64,
    ignored: u64,
}

/// Where a process stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// One of its threads at least has an address space.
    Alive,
    /// It is exiting or a zombie.
    Ending(Exit),
    Gone,
}

/// Reads the status of a thread. None if it is gone.
pub(super) fn read(tid: u32) -> Option<Status> {
    let text = files::slurp(format_args!("/proc/{tid}/status")).ok()?;
    Status::parse(&text)
}

/// Does a process live, be it that it is just exiting? Then its children are still its own.
pub(super) fn is_parent(process: u32) -> bool {
    read(process).is_some_and(|status| !status.zombie)
}

/// How long a process is asked how it is ending while no descriptor is left to do so.
const PATIENCE: Duration = Duration::from_secs(1);

/// The same as [`state`], tried again for a while if descriptors are wanting.
pub(super) fn state_patiently(process: u32) -> State {
    let end = Instant::now() + PATIENCE;
    loop {
        let told = files::completely(|| state(process));
        match told {
            Some(state) => return state,
            None if Instant::now() > end => return State::Gone,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Finds out whether a process is ending, and how.
pub(super) fn state(process: u32) -> State {
    let Some(status) = read(process) else {
        return State::Gone;
    };
    if status.has_memory || (status.threads > 1 && living_sibling(process).is_some()) {
        return State::Alive;
    }
    // No thread of it can be inside execve, so `stat` does not block.
    let Ok(stat) = files::slurp(format_args!("/proc/{process}/stat")) else {
        return State::Gone;
    };
    State::Ending(match exit_code(&stat) {
        // The kernel shows a zero to those it does not trust.
        Some(0) if !status.is_open_to_us() => Exit::Unknown,
        Some(code) => Exit::from_wait_status(code),
        None => Exit::Unknown,
    })
}

/// A thread that can be asked for what all threads of the process share. That is the first one,
/// unless it has ended before the others, as `pthread_exit` in `main` does.
pub(super) fn living_thread(process: u32) -> Option<(u32, Status)> {
    let status = read(process)?;
    if status.has_memory {
        Some((process, status))
    } else if status.threads > 1 {
        living_sibling(process)
    } else {
        None
    }
}

fn living_sibling(process: u32) -> Option<(u32, Status)> {
    let tasks = files::open(format!("/proc/{process}/task")).ok()?;
    files::find_number(tasks, |tid| {
        let status = read(tid).filter(|status| status.has_memory)?;
        Some((tid, status))
    })
    .ok()?
}

/// See [`super::Processes::locks_description`].
pub(super) fn locks_description(tid: u32) -> Option<bool> {
    let text = files::slurp(format_args!("/proc/{tid}/syscall")).ok()?;
    is_description_lock(&text)
}

/// Reads `/proc/TID/syscall` of a thread inside fcntl(2): the number of the call and its arguments,
/// of which the second is the command. Those of 32-bit programs have numbers of their own.
fn is_description_lock(text: &[u8]) -> Option<bool> {
    let mut words = text.split(u8::is_ascii_whitespace);
    let command = words.nth(2)?.strip_prefix(b"0x")?;
    match number::<i32>(command, 16)? {
        libc::F_OFD_GETLK | libc::F_OFD_SETLK | libc::F_OFD_SETLKW => Some(true),
        libc::F_GETLK | libc::F_SETLK | libc::F_SETLKW | 12..=14 => Some(false),
        _ => None,
    }
}

/// Field 52 of `/proc/PID/stat`, `exit_code`, in the form of `wait(2)`.
fn exit_code(stat: &[u8]) -> Option<i32> {
    // The second field is the name in parentheses. It may contain both spaces and parentheses,
    // but nothing after it does.
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    let field = stat[name_end + 1..]
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty())
        .nth(52 - 3)?;
    number(field, 10)
}

impl Status {
    /// None if the text lacks what every thread has, as that of one that vanishes may.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let mut status = Self::default();
        for (key, value) in fields(text) {
            match key {
                b"Name" => status.name = unescape(value.strip_prefix(b"\t").unwrap_or(value)),
                b"Tgid" => status.process = number(value, 10)?,
                b"State" => status.zombie = value.trim_ascii_start().starts_with(b"Z"),
                b"PPid" => status.parent = number(value, 10)?,
                b"Uid" => status.uids = ids(value)?,
                b"Gid" => status.gids = ids(value)?,
                b"Groups" => status.groups = numbers(value).collect::<Option<Vec<u32>>>()?,
                b"VmSize" => status.has_memory = true,
                b"VmExe" => status.has_code = number::<u64>(value, 10)? > 0,
                b"Threads" => status.threads = number(value, 10)?,
                b"SigPnd" => {
                    status.own = number(value, 16)?;
                    status.pending |= status.own;
                }
                b"ShdPnd" => status.pending |= number::<u64>(value, 16)?,
                b"SigBlk" => status.blocked = number(value, 16)?,
                b"SigIgn" => {
                    status.ignored = number(value, 16)?;
                    // The last line of interest.
                    break;
                }
                _ => {}
            }
        }
        (status.process != 0).then_some(status)
    }

    /// The thread is between the old program and the new one.
    pub(super) fn in_exec(&self) -> bool {
        self.has_memory && !self.has_code
    }

    pub(super) fn into_thread(self, tid: u32) -> Thread {
        Thread {
            tid,
            process: self.process,
            parent: self.parent,
            exiting: !self.has_memory,
            in_exec: self.in_exec(),
            interrupted: self.is_interrupted(),
            signalled: self.is_signalled(tid),
            groups: self.groups,
            name: self.name,
        }
    }

    fn is_interrupted(&self) -> bool {
        let kill = bit(libc::SIGKILL);
        self.pending & (kill | (!self.blocked & !self.ignored & !harmless())) != 0
    }

    /// See [`Thread::signalled`]; signal(7) and complete_signal() in kernel/signal.c.
    fn is_signalled(&self, tid: u32) -> bool {
        let first = self.threads == 1 || tid == self.process;
        let mine = if first { self.pending } else { self.own };
        let kill = self.pending & bit(libc::SIGKILL);
        kill | (mine & !self.blocked & !self.ignored) != 0
    }

    /// Whether the kernel shows us the process's exit code: the rule of ptrace(2) for
    /// `PTRACE_MODE_READ_FSCREDS`, with root taken for one who has `CAP_SYS_PTRACE`.
    fn is_open_to_us(&self) -> bool {
        let uid = rustix::process::geteuid();
        let gid = rustix::process::getegid();
        uid.is_root() || (self.uids == [uid.as_raw(); 3] && self.gids == [gid.as_raw(); 3])
    }
}

/// The place of a signal in the masks of `status`.
const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// The signals whose default action does not terminate (see signal(7)). They end no wait, caught or
/// not: a shell catches SIGCHLD, and on a local file system its open(2) never fails for it. The
/// handler runs when the open returns.
const fn harmless() -> u64 {
    bit(libc::SIGCHLD)
        | bit(libc::SIGCONT)
        | bit(libc::SIGURG)
        | bit(libc::SIGWINCH)
        | bit(libc::SIGSTOP)
        | bit(libc::SIGTSTP)
        | bit(libc::SIGTTIN)
        | bit(libc::SIGTTOU)
}

/// The first three of the numbers in a line.
fn ids(value: &[u8]) -> Option<[u32; 3]> {
    let mut numbers = numbers(value);
    let mut next = || numbers.next()?;
    Some([next()?, next()?, next()?])
}

/// The numbers in a line.
fn numbers(value: &[u8]) -> impl Iterator<Item = Option<u32>> {
    let words = value.split(u8::is_ascii_whitespace);
    words.filter(|w| !w.is_empty()).map(|w| number(w, 10))
}

/// Undoes what the kernel does to names: newline and backslash are escaped as in C.
fn unescape(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name);
    if !name.contains('\\') {
        return Cow::into_owned(name);
    }
    let mut plain = String::with_capacity(name.len());
    let mut chars = name.chars();
    while let Some(char) = chars.next() {
        plain.push(match char {
            '\\' => match chars.next() {
                Some('n') => '\n',
                Some(other) => other,
                None => '\\',
            },
            other => other,
        });
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interrupted(pending: u64, blocked: u64, ignored: u64) -> bool {
        let status = Status {
            pending,
            blocked,
            ignored,
            ..Status::default()
        };
        status.is_interrupted()
    }

    #[test]
    fn nothing_pending_interrupts_nothing() {
        assert!(!interrupted(0, 0, 0));
    }

    #[test]
    fn a_kill_interrupts_whatever_the_masks_say() {
        assert!(interrupted(bit(libc::SIGKILL), u64::MAX, u64::MAX));
    }

    #[test]
    fn a_signal_that_terminates_by_default_interrupts_unless_blocked_or_ignored() {
        for signal in [
            libc::SIGTERM,
            libc::SIGINT,
            libc::SIGUSR1,
            libc::SIGALRM,
            34,
            64,
        ] {
            let signal = bit(signal);
            assert!(interrupted(signal, 0, 0));
            assert!(!interrupted(signal, signal, 0));
            assert!(!interrupted(signal, 0, signal));
        }
    }

    #[test]
    fn a_signal_that_does_not_terminate_by_default_interrupts_nothing() {
        for signal in [
            libc::SIGCHLD,
            libc::SIGCONT,
            libc::SIGURG,
            libc::SIGWINCH,
            libc::SIGSTOP,
            libc::SIGTSTP,
            libc::SIGTTIN,
            libc::SIGTTOU,
        ] {
            assert!(!interrupted(bit(signal), 0, 0));
        }
    }

    #[test]
    fn any_signal_that_is_surely_for_the_thread_interrupts_a_call_that_is_made_again() {
        let child = bit(libc::SIGCHLD);
        let signalled = |own, shared, threads, tid| {
            let status = Status {
                pending: own | shared,
                own,
                threads,
                process: 7,
                ..Status::default()
            };
            status.is_signalled(tid)
        };
        assert!(signalled(child, 0, 3, 8));
        assert!(signalled(0, child, 1, 7));
        assert!(signalled(0, child, 3, 7));
        // It may be for any of the others.
        assert!(!signalled(0, child, 3, 8));
        assert!(signalled(0, bit(libc::SIGKILL), 3, 8));
        assert!(!signalled(0, 0, 1, 7));
    }

    #[test]
    fn the_command_of_a_call_of_fcntl_tells_the_two_kinds_of_locks_apart() {
        let text = |command: &str| format!("72 0x3 {command} 0x7ffe 0x0 0x0 0x0 0x7f 0x7f\n");
        for (command, kind) in [
            ("0x26", Some(true)),
            ("0x25", Some(true)),
            ("0x6", Some(false)),
            ("0x7", Some(false)),
            ("0xe", Some(false)),
            ("0x0", None),
        ] {
            assert_eq!(is_description_lock(text(command).as_bytes()), kind);
        }
        assert_eq!(is_description_lock(b"running\n"), None);
        assert_eq!(is_description_lock(b""), None);
    }

    #[test]
    fn a_status_is_read_line_by_line() {
        let text = b"Name:\ta\\\\b\\nc: d\nUmask:\t0022\nTgid:\t7\nPid:\t8\nPPid:\t9\n\
            Uid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nVmSize:\t    3060 kB\nVmExe:\t      20 kB\n\
            Threads:\t2\nSigPnd:\t0000000000000001\nShdPnd:\t8000000000000000\n\
            SigBlk:\t0000000000000002\nSigIgn:\t0000000000000003\nSigCgt:\t0000000000000004\n";
        let expected = Status {
            name: "a\\b\nc: d".to_owned(),
            process: 7,
            parent: 9,
            threads: 2,
            uids: [1, 2, 3],
            gids: [5, 6, 7],
            groups: vec![9, 10],
            has_memory: true,
            has_code: true,
            zombie: false,
            pending: 1 << 63 | 1,
            own: 1,
            blocked: 2,
            ignored: 3,
        };
        assert_eq!(Status::parse(text), Some(expected));
    }

    #[test]
    fn a_new_program_without_code_yet_is_inside_execve_and_a_zombie_is_not() {
        let in_exec = |text: &[u8]| Status::parse(text).map(|status| status.in_exec());
        let new = b"Tgid:\t7\nVmSize:\t 132 kB\nVmExe:\t       0 kB\n";
        assert_eq!(in_exec(new), Some(true));
        assert_eq!(in_exec(b"Tgid:\t7\nThreads:\t1\n"), Some(false));
    }

    #[test]
    fn a_text_that_is_no_status_is_refused() {
        assert_eq!(Status::parse(b""), None);
        assert_eq!(Status::parse(b"Name:\tx\nTgid:\tnone\n"), None);
    }

    #[test]
    fn the_exit_code_is_found_behind_any_name() {
        let rest = "X ".to_owned() + &(4..52).map(|n| format!("{n} ")).collect::<String>();
        for name in ["sh", "a) R 1 1", "((", "))", "a b c"] {
            let stat = format!("7 ({name}) {rest}139\n");
            assert_eq!(exit_code(stat.as_bytes()), Some(139), "{name}");
        }
        assert_eq!(exit_code(b"7 (sh) Z 1 2"), None);
        assert_eq!(exit_code(b""), None);
    }
}
