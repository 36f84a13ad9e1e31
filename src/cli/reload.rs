//! `latchfs reload`: has a daemon read its configuration file again.

use rustix::process::{Pid, Signal};

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
    let pid = i32::try_from(daemon.pid).ok().and_then(Pid::from_raw);
    let told = pid.map(|pid| rustix::process::kill_process(pid, Signal::HUP));
    if let Some(Err(errno)) = told {
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
