//! `latchfs reload`: has a daemon read its configuration file again.

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::args::ReloadArgs;
use super::configured::Configured;
use super::exit::{Exit, Failure, shell_word};
use super::output::say;
use super::served;

/// Looks at the file first: the daemon would only log what is wrong with it.
pub(super) fn run(args: &ReloadArgs) -> Result<(), Failure> {
    let shown = shell_word(&args.path);
    let served = served::find(&args.path)?;
    let Some(daemon) = &served.daemon else {
        let message = format!("{shown} is not served by a latchfs: there is nothing to reload");
        return Err(Failure::new(Exit::NotMounted, message));
    };
    let configured = Configured::of(&served, None)?;
    if let Err(errno) = tell(daemon.pid) {
        let message = format!(
            "cannot tell the daemon of {shown}, process {}: {errno}; try again as its user or as root",
            daemon.pid
        );
        return Err(Failure::new(Exit::StillMounted, message));
    }
    match configured.path {
        Some(path) => say(format!("{} applies to later opens", path.display())),
        None => say("there is no configuration file: the built-in rules apply to later opens"),
    }
    Ok(())
}

/// Sends the signal to the process if that is a daemon still.
fn tell(pid: u32) -> Result<(), Errno> {
    let pid_of = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pidfd = pidfd_open(pid_of.ok_or(Errno::SRCH)?, PidfdFlags::empty())?;
    match served::mount_args(pid) {
        Some(_) => pidfd_send_signal(&pidfd, Signal::HUP),
        None => Err(Errno::SRCH),
    }
}
