//! The command line: what the subcommands do, and how they fail.
//!
//! A command either does what it was asked, or prints one line on stderr and exits with a code of
//! `exit::Exit`. Everything is checked before anything is changed.
//!
//! `mount` returns once the mount answers. It starts the command again as the daemon
//! (`daemon`), which tells the first process by a pipe how it went. With `--supervise` a process stays
//! between the two (`supervise`). Nothing here may touch a path inside a latchfs mount: its daemon
//! might not answer (`resolve`). Only `phases` does, as any program that reads files, and what
//! `supervise` starts to find just that out.

mod args;
mod check;
mod checks;
mod configured;
mod daemon;
mod exit;
mod kept;
mod logging;
mod mount;
mod mounts;
mod options;
mod output;
mod phases;
mod plan;
mod recover;
mod reload;
mod resolve;
mod rules;
mod served;
mod supervise;
mod umount;
mod values;

use std::panic::catch_unwind;
use std::process::ExitCode;

use clap::Parser as _;

use args::{Cli, Command};
use exit::{Exit, Failure, complain};

/// The whole of the `latchfs` command: reads the command line, acts, says how it went.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            complain(&args::complaint(&error));
            return Exit::Usage.into();
        }
        Err(help) => {
            // A reader that has seen enough of the help is no failure.
            let _ = help.print();
            return Exit::Done.into();
        }
    };
    // A panic has been logged by then, and exits like every other internal failure.
    let done = catch_unwind(|| run(&cli)).unwrap_or_else(|_| {
        let message = "internal error: latchfs panicked; please report it with the lines above";
        Err(Failure::new(Exit::Internal, message))
    });
    match done {
        Ok(()) => Exit::Done.into(),
        Err(Failure { exit, message }) => {
            complain(&message);
            exit.into()
        }
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    match &cli.command {
        Command::Mount(mount) => mount::run(mount, cli.verbose),
        Command::Umount(umount) => umount::run(umount, cli.verbose),
        Command::Kept(command) => kept::run(command),
        Command::Rules(rules) => rules::run(rules),
        Command::Reload(reload) => reload::run(reload),
        Command::Check(check) => check::run(check),
        Command::Recover(recover) => recover::run(recover),
        Command::Watchdog(command) => supervise::run_probe(command),
        Command::Phases(phases) => phases::run(phases),
    }
}
