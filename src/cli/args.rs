//! The command line, as clap reads it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser, Subcommand};

use super::exit;
use super::phases::PhasesArgs;
use super::values::{any_duration, duration_or_off, positive_duration, size};
use crate::config::{Durability, Readers};

/// A filesystem that gives unmodified programs atomic, locked file updates.
#[derive(Debug, Parser)]
#[command(
    name = "latchfs",
    version,
    after_help = exit::help_table(),
    // `--help` names what there is; an extra subcommand for it would only be noise.
    disable_help_subcommand = true,
    // One line says what is missing; the help is there for who asks.
    arg_required_else_help = false
)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,

    /// Log more: -v debug messages, -vv everything. The environment variable RUST_LOG wins.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(super) verbose: u8,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show the files of BACKING at MOUNTPOINT, with atomic, locked updates
    ///
    /// Returns once the mount answers, and leaves a daemon behind that serves it.
    #[command(after_help = exit::help_table())]
    Mount(MountArgs),

    /// Finish what is in flight and unmount MOUNTPOINT
    ///
    /// Returns once the daemon is gone. A mount whose daemon has died is cleared away.
    #[command(alias = "unmount", after_help = exit::help_table())]
    Umount(UmountArgs),

    /// Versions that could not become the file: list, show, restore, purge
    ///
    /// Refused, rolled back, detached and conflicting versions are kept in BACKING/.latchfs/kept, which
    /// is open to the user whose daemon serves BACKING, and to root.
    #[command(subcommand, after_help = exit::help_table())]
    Kept(KeptCommand),

    /// Say how files are treated, and by which rule
    #[command(after_help = exit::help_table())]
    Rules(RulesArgs),

    /// Have the daemon read its configuration file again
    ///
    /// What has changed applies to later opens. A file that is wrong changes nothing.
    #[command(after_help = exit::help_table())]
    Reload(ReloadArgs),

    /// Find the documents that are not what they must be
    ///
    /// Reads every file of which a rule says what it must be (built in: *.json must be JSON), and
    /// tells the line and the column where it goes wrong. Waits for nobody: of a file that is being
    /// written, it reads the last version.
    #[command(after_help = exit::help_table())]
    Check(CheckArgs),

    /// Put right what a killed daemon left in BACKING, and say what was done
    ///
    /// The next mount does the same by itself before it serves, unless it is read-only.
    #[command(after_help = exit::help_table())]
    Recover(RecoverArgs),

    /// What the one who supervises does by another process, which may hang.
    #[command(subcommand, hide = true)]
    Watchdog(WatchdogCommand),

    /// Tell how far the five phases of an analysis are in DIR
    ///
    /// Each is missing, in flight (and by whom), valid, or invalid (and where). The exit code is 0 only
    /// if all five are valid.
    #[command(after_help = exit::help_table())]
    Phases(PhasesArgs),
}

#[derive(Debug, Subcommand)]
pub(super) enum WatchdogCommand {
    /// Has the mount with this id answer a request
    #[command(hide = true)]
    Probe { id: u64, mountpoint: PathBuf },

    /// Says what every thread of a process is at
    #[command(hide = true)]
    Stacks { pid: u32 },
}

/// PATH is BACKING, the mountpoint, or something below either, which then limits it to versions of
/// that file or directory. Of an ID its beginning is enough.
#[derive(Debug, Subcommand)]
pub(super) enum KeptCommand {
    /// Which versions are kept: when, how large, why, and of which file
    #[command(after_help = exit::help_table())]
    List {
        /// BACKING, the mountpoint, or something below either
        #[arg(default_value = ".")]
        path: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },

    /// All that is known of one, or its bytes
    #[command(after_help = exit::help_table())]
    Show {
        /// BACKING, the mountpoint, or something below either
        path: PathBuf,
        /// Its ID, or as much of it as no other begins with
        id: String,
        /// Write the bytes to standard output
        #[arg(long, conflicts_with = "json")]
        data: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },

    /// Make one the file again, through the mount if there is one; it stays kept until it is purged
    ///
    /// A file that was changed since, or has the name of one that was removed, is not replaced
    /// without --force. It keeps its owner and mode; one that is made gets those of the version.
    #[command(after_help = exit::help_table())]
    Restore(KeptRestoreArgs),

    /// Remove some, or all
    #[command(after_help = exit::help_table())]
    Purge(KeptPurgeArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct KeptRestoreArgs {
    /// BACKING, the mountpoint, or something below either
    pub(super) path: PathBuf,
    /// Its ID, or as much of it as no other begins with
    pub(super) id: String,
    /// Write it to this file, not to where it was meant for
    #[arg(long, value_name = "FILE")]
    pub(super) to: Option<PathBuf>,
    /// Replace also a newer file
    #[arg(long)]
    pub(super) force: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, clap::Args)]
#[command(
    group(clap::ArgGroup::new("which").required(true).multiple(false)),
    override_usage = "latchfs kept purge [OPTIONS] <PATH> <ID...|--older-than <TIME>|--all>"
)]
pub(super) struct KeptPurgeArgs {
    /// BACKING, the mountpoint, or something below either
    pub(super) path: PathBuf,
    /// Their IDs, or as much of each as no other begins with
    #[arg(group = "which")]
    pub(super) ids: Vec<String>,
    /// Those kept longer ago than this: 7d, 12h
    #[arg(long, value_name = "TIME", value_parser = any_duration, group = "which")]
    pub(super) older_than: Option<Duration>,
    /// All of them
    #[arg(long, group = "which")]
    pub(super) all: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// What the commands that apply the rules of a mount have in common.
#[derive(Debug, clap::Args)]
pub(super) struct ByRules {
    /// Apply this configuration file, not that of the daemon
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,

    /// Write JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct RulesArgs {
    /// Files, by their paths in the mount or in BACKING. They need not exist.
    #[arg(required = true)]
    pub(super) paths: Vec<PathBuf>,

    #[command(flatten)]
    pub(super) by: ByRules,
}

#[derive(Debug, clap::Args)]
pub(super) struct ReloadArgs {
    /// MOUNTPOINT, BACKING or something inside
    pub(super) path: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// Files and directories, in a mount or elsewhere
    #[arg(default_value = ".")]
    pub(super) paths: Vec<PathBuf>,

    #[command(flatten)]
    pub(super) by: ByRules,
}

#[derive(Debug, clap::Args)]
pub(super) struct RecoverArgs {
    /// The directory that was mounted
    pub(super) backing: PathBuf,

    /// Only say what would be done, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,

    /// Say it as one JSON object: backing, dry_run, and actions, each with kind, path and detail
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct MountArgs {
    /// The directory whose files are shown. Work on them through the mount only.
    pub(super) backing: PathBuf,

    /// An existing directory, outside BACKING, to show them at [default: BACKING, in place: every path
    /// keeps its name]
    pub(super) mountpoint: Option<PathBuf>,

    /// Stay in the foreground, and log to stderr
    #[arg(short, long)]
    pub(super) foreground: bool,

    /// Mount options, separated by commas; `\,` is a comma in a value
    ///
    /// The usual ones: ro, rw, allow_other, allow_root, auto_unmount, nosuid, suid, nodev, dev,
    /// noexec, exec, noatime, atime, sync, async, dirsync; default_permissions is always on. And
    /// the long options of this command: lock_timeout=10s, readers=snapshot, durability=rename,
    /// unmount_timeout=10s, kept_max_age=30d, kept_max_size=1GiB, config=FILE, log_file=PATH, foreground, supervise, watchdog=30s, restart_pause=30s. A long option wins over one given here.
    #[arg(short = 'o', long = "options", value_name = "OPT[,OPT...]")]
    pub(super) options: Vec<OsString>,

    /// The configuration file: settings and rules (docs/configuration.md) [default:
    /// BACKING/.latchfs/config.toml, then /etc/latchfs.toml]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,

    /// How long an open waits for its turn, at most: 10s, 1m 30s, 500ms; a number is seconds
    /// [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = positive_duration)]
    pub(super) lock_timeout: Option<Duration>,

    /// What an open for reading does while a new version is being written [default: wait]
    #[arg(long, value_name = "HOW")]
    pub(super) readers: Option<Readers>,

    /// How much of a commit is on disk when close() returns [default: full]
    #[arg(long, value_name = "LEVEL")]
    pub(super) durability: Option<Durability>,

    /// How long versions that could not become the file are kept [default: 30d]
    #[arg(long, value_name = "TIME", value_parser = any_duration)]
    pub(super) kept_max_age: Option<Duration>,

    /// How much of the disk they may take: 500M, 2 GiB; a number is bytes [default: 1 GiB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(super) kept_max_size: Option<u64>,

    /// How long an unmount lets transactions in flight finish before it rolls them back
    /// [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = any_duration)]
    pub(super) unmount_timeout: Option<Duration>,

    /// Append log messages to this file, not to syslog (in the foreground: not to stderr)
    #[arg(long, value_name = "PATH")]
    pub(super) log_file: Option<PathBuf>,

    /// When the daemon dies, start another one that mounts again
    ///
    /// A second process, latchfs-superv, looks after the daemon for that, and ends with it.
    #[arg(long)]
    pub(super) supervise: bool,

    /// With --supervise: replace a daemon that has not answered for this time; 0 or off: never
    /// [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = duration_or_off)]
    pub(super) watchdog: Option<Duration>,

    /// With --supervise: the longest pause before a daemon that dies again and again is started
    /// [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = any_duration)]
    pub(super) restart_pause: Option<Duration>,

    /// Set by the command on the processes that it starts.
    #[arg(long, hide = true)]
    pub(super) as_daemon: bool,

    /// Set by the one who supervises: the id of the dead mount at MOUNTPOINT. BACKING is the current
    /// directory then.
    #[arg(long, hide = true)]
    pub(super) replaces: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub(super) struct UmountArgs {
    /// Where the filesystem is mounted
    pub(super) mountpoint: PathBuf,

    /// How long to wait for the daemon to finish and exit [default: the mount's unmount timeout and
    /// 5s more]
    #[arg(long, value_name = "TIME", value_parser = any_duration)]
    pub(super) timeout: Option<Duration>,
}

/// Turns what clap says about a bad command line into one line.
pub(super) fn complaint(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let words: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    let words = words.join(" ");
    let words = words.strip_prefix("error: ").unwrap_or(&words);
    format!("{words}; see latchfs --help")
}

#[cfg(test)]
mod tests {
    use super::super::supervise::{DEFAULT_RESTART_PAUSE, DEFAULT_WATCHDOG};
    use super::*;
    use crate::config::{DEFAULT_LOCK_TIMEOUT, DEFAULT_UNMOUNT_TIMEOUT};
    use clap::CommandFactory as _;

    fn complaint_about(args: &[&str]) -> String {
        complaint(&Cli::try_parse_from(args).unwrap_err())
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_defaults_in_the_help_are_the_real_ones() {
        let help = Cli::command()
            .find_subcommand_mut("mount")
            .unwrap()
            .render_help()
            .to_string();
        let words: Vec<&str> = help.split_whitespace().collect();
        let help = words.join(" ");
        for (text, default) in [
            ("for its turn", DEFAULT_LOCK_TIMEOUT),
            ("rolls them back", DEFAULT_UNMOUNT_TIMEOUT),
            ("has not answered", DEFAULT_WATCHDOG),
            ("the longest pause", DEFAULT_RESTART_PAUSE),
        ] {
            let said = help[help.find(text).unwrap()..]
                .split(['[', ']'])
                .nth(1)
                .unwrap();
            assert_eq!(
                said,
                format!("default: {}", humantime::format_duration(default))
            );
        }
    }

    #[test]
    fn the_documents_have_every_option() {
        let text = include_str!("../../docs/configuration.md");
        let mut command = Cli::command();
        command.build();
        let commands = command.get_subcommands();
        let commands: Vec<_> = commands
            .flat_map(|c| c.get_subcommands().chain([c]))
            .collect();
        let all = commands.iter().flat_map(|c| c.get_arguments());
        for option in all.filter(|option| !option.is_hide_set()) {
            let Some(long) = option.get_long().filter(|long| *long != "help") else {
                continue;
            };
            assert!(text.contains(&format!("`--{long}")), "--{long}");
        }
    }

    #[test]
    fn a_bad_command_line_gets_one_line() {
        let line = complaint_about(&["latchfs", "mount", "--wrong", "a", "b"]);
        assert!(
            line.starts_with("unexpected argument '--wrong' found"),
            "{line}"
        );
        let line = complaint_about(&["latchfs", "mount"]);
        assert!(line.contains("not provided: <BACKING>"), "{line}");
        let line = complaint_about(&["latchfs", "mount", "a", "b", "--lock-timeout", "0"]);
        assert!(line.contains("must be longer than 0"), "{line}");
        let line = complaint_about(&["latchfs", "mount", "a", "b", "--readers", "maybe"]);
        assert!(line.contains("[possible values: wait, snapshot]"), "{line}");
        let line = complaint_about(&["latchfs"]);
        assert!(line.contains("requires a subcommand"), "{line}");
        for line in [complaint_about(&["latchfs", "wrong"]), line] {
            assert!(!line.contains('\n'));
            assert!(line.ends_with("; see latchfs --help"));
        }
    }

    #[test]
    fn verbosity_is_counted_before_and_after_the_subcommand() {
        let cli = Cli::try_parse_from(["latchfs", "umount", "-vv", "m"]).unwrap();
        assert_eq!(cli.verbose, 2);
        let cli = Cli::try_parse_from(["latchfs", "-v", "unmount", "m"]).unwrap();
        assert_eq!(cli.verbose, 1);
        assert!(matches!(cli.command, Command::Umount(_)));
    }
}
