//! What the one who supervises does by other processes, since it may hang: asking the mount, and
//! looking at a daemon that does not answer.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::super::args::WatchdogCommand;
use super::super::daemon::poll_in;
use super::super::exit::{Exit, Failure};
use super::watchdog::helper;
use crate::backing::proc_path;
use crate::fuse::replace::pin;
use crate::in_flight::ALIVE;

/// As long as a daemon is looked at.
const LOOK: Duration = Duration::from_secs(10);
/// As many lines of it go into the log.
const MOST_LINES: usize = 500;
const MOST_BYTES: usize = 256 * 1024;
/// Programs that show what a process is at in its own code, the cheaper one first.
const DEBUGGERS: [(&str, &[&str]); 2] = [
    ("eu-stack", &["-p"]),
    (
        "gdb",
        &[
            "-nx",
            "-batch",
            "-ex",
            "thread apply all backtrace 30",
            "-p",
        ],
    ),
];

/// Does what such a process is for.
pub(in super::super) fn run(command: &WatchdogCommand) -> Result<(), Failure> {
    match command {
        WatchdogCommand::Probe { id, mountpoint } => probe(*id, mountpoint),
        WatchdogCommand::Stacks { pid } => stacks(*pid),
    }
    .map_err(|error| Failure::new(Exit::Internal, error.to_string()))
}

fn probe(id: u64, mountpoint: &Path) -> io::Result<()> {
    let root = pin(mountpoint, id)?;
    // From here on it is the daemon that is waited for.
    say("asking");
    // Any answer will do.
    let _ = rustix::fs::getxattr(proc_path(root.as_fd()), ALIVE, &mut [0_u8; 1]);
    Ok(())
}

/// One line for each thread, from `/proc`; then what a debugger says, if there is one.
fn stacks(pid: u32) -> io::Result<()> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let read = |name: &str| {
            let text = fs::read_to_string(task.path().join(name)).unwrap_or_default();
            text.trim().to_owned()
        };
        let status = read("status");
        let mut lines = status.lines();
        let state = lines.find_map(|line| line.strip_prefix("State:"));
        let syscall = read("syscall");
        let frames: Vec<String> = read("stack").lines().filter_map(frame).collect();
        say(&format!(
            "thread {} {}: state {}, waits in {}, system call {}, kernel stack: {}",
            task.file_name().to_string_lossy(),
            read("comm"),
            state.unwrap_or("?").trim(),
            or_unknown(&read("wchan")),
            or_unknown(syscall.split(' ').next().unwrap_or_default()),
            or_unknown(&frames.join(" < ")),
        ));
    }
    for (program, args) in DEBUGGERS {
        let mut command = Command::new(program);
        command.args(args).arg(pid.to_string());
        // Nothing of it may go to the network, or read the directory of the user.
        command.env("DEBUGINFOD_URLS", "").stdin(Stdio::null());
        // It comes back only if there is no such program.
        let _ = command.exec();
    }
    Ok(())
}

/// `[<0>] fuse_dev_do_read+0x5a4/0x8f0` is `fuse_dev_do_read`.
fn frame(line: &str) -> Option<String> {
    let name = line.split_whitespace().nth(1)?;
    Some(name.split('+').next()?.to_owned())
}

fn or_unknown(text: &str) -> &str {
    if text.is_empty() { "?" } else { text }
}

fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Does a thread of the process wait for a disk, as far as the kernel tells?
pub(super) fn waits_for_disk(pid: u32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    tasks.flatten().any(|task| {
        // This file can be read whatever the process is at.
        let status = fs::read_to_string(task.path().join("status"));
        status.is_ok_and(|status| status.contains("\nState:\tD"))
    })
}

/// Logs what every thread of a process is at, as far as it can be found out in time.
pub(super) fn log_stacks(pid: u32) {
    if let Err(error) = try_log_stacks(pid) {
        log::error!("what process {pid} is at can't be told: {error}");
    }
}

fn try_log_stacks(pid: u32) -> io::Result<()> {
    let (mut command, output) = helper()?;
    // In a group of its own, with the debugger and what that starts.
    command.arg("stacks").arg(pid.to_string()).process_group(0);
    let mut child = command.spawn()?;
    drop(command);
    let said = read_in_time(output.into())?;
    let helper = Pid::from_child(&child);
    let _ = kill_process_group(helper, Signal::KILL);
    // It ends now, unless it hangs in the kernel.
    if let Ok(pidfd) = pidfd_open(helper, PidfdFlags::empty()) {
        if let Ok([true]) = poll_in([Some(pidfd.as_fd())], Some(Duration::from_secs(1))) {
            let _ = child.wait();
        }
    }
    let said = String::from_utf8_lossy(&said);
    let lines = said.lines().filter(|line| !line.trim().is_empty());
    for line in lines.take(MOST_LINES) {
        log::error!("process {pid}: {}", line.trim_end());
    }
    Ok(())
}

fn read_in_time(mut output: File) -> io::Result<Vec<u8>> {
    let end = Instant::now() + LOOK;
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    while said.len() < MOST_BYTES {
        let left = end.saturating_duration_since(Instant::now());
        match poll_in([Some(output.as_fd())], Some(left))? {
            [true] => match output.read(&mut buffer)? {
                0 => break,
                length => said.extend_from_slice(&buffer[..length]),
            },
            [false] if left.is_zero() => {
                said.extend_from_slice(b"\n(no more in time)\n");
                break;
            }
            [false] => {}
        }
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_of_a_kernel_stack_is_its_function() {
        let line = "[<0>] fuse_dev_do_read+0x5a4/0x8f0 [fuse]";
        assert_eq!(frame(line).as_deref(), Some("fuse_dev_do_read"));
        assert_eq!(frame(""), None);
    }
}
