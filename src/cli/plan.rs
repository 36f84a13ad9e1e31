//! What `latchfs mount` is to do, made of the long options, `-o` and the defaults; and written
//! again as the command line of the daemon.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;

use super::args::MountArgs;
use super::checks::{self, Directories};
use super::exit::Failure;
use super::options::{MountOptions, escape};
use super::supervise::{DEFAULT_RESTART_PAUSE, DEFAULT_WATCHDOG};
use crate::config::{DEFAULT_UNMOUNT_TIMEOUT, MountConfig, Overrides};

/// A mount whose settings and directories have been checked.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) config: MountConfig,
    pub(super) foreground: bool,
    /// Absolute.
    pub(super) log_file: Option<PathBuf>,
    pub(super) verbose: u8,
    pub(super) supervise: Option<Supervision>,
}

/// How the daemon is looked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Supervision {
    /// How long it may answer nothing. `None`: for ever.
    pub(super) watchdog: Option<Duration>,
    /// The longest pause before a new one is started.
    pub(super) restart_pause: Duration,
}

impl Plan {
    /// Settles what was asked for, or says why it cannot be done. Changes nothing.
    pub(super) fn new(args: &MountArgs, verbose: u8) -> Result<Self, Failure> {
        let options = MountOptions::parse(&args.options)?;
        let mountpoint = args.mountpoint.as_deref();
        let directories = match args.replaces {
            // Checked before the first daemon was started. Now there is only a dead mount to be seen.
            Some(_) => Directories {
                backing: args.backing.clone(),
                mountpoint: mountpoint.unwrap_or(&args.backing).to_owned(),
            },
            None => checks::directories(&args.backing, mountpoint)?,
        };
        if let Some(source) = &options.source {
            check_source(source, &args.backing, &directories.backing)?;
        }
        let log_file = args.log_file.as_ref().or(options.log_file.as_ref());
        let log_file = log_file
            .map(|path| absolute_log_file(path, &directories))
            .transpose()?;
        let config_file = args.config.as_ref().or(options.config.as_ref());
        let config_file = config_file
            .map(|path| absolute_config_file(path, &directories))
            .transpose()?;
        let Directories {
            backing,
            mountpoint,
        } = directories;
        let config = MountConfig {
            backing,
            mountpoint,
            replaces: args.replaces,
            config: config_file,
            overrides: overrides(args, &options),
            unmount_timeout: unmount_timeout(args, &options),
            read_only: options.read_only,
            allow_other: options.allow_other,
            fuse_options: fuse_options(&options),
        };
        let foreground = args.foreground || options.foreground;
        Ok(Self {
            config,
            foreground,
            log_file,
            verbose,
            supervise: supervision(args, &options)?,
        })
    }

    /// The arguments that give the daemon this very plan. `ps` shows them, so they are plain.
    pub(super) fn daemon_args(&self) -> Vec<OsString> {
        let config = &self.config;
        let mut args: Vec<OsString> = vec!["mount".into(), "--as-daemon".into()];
        let mut long = |name: &str, value: &str| args.push(format!("--{name}={value}").into());
        let Overrides {
            lock_timeout,
            readers,
            durability,
            kept_max_age,
            kept_max_size,
        } = config.overrides;
        if let Some(time) = lock_timeout {
            long("lock-timeout", &seconds(time));
        }
        if let Some(readers) = readers {
            long("readers", &name_of(readers));
        }
        if let Some(durability) = durability {
            long("durability", &name_of(durability));
        }
        if let Some(time) = kept_max_age {
            long("kept-max-age", &seconds(time));
        }
        if let Some(bytes) = kept_max_size {
            long("kept-max-size", &bytes.to_string());
        }
        long("unmount-timeout", &seconds(config.unmount_timeout));
        if let Some(option) = self.mount_options() {
            long("options", &option);
        }
        let files = [
            ("--config=", &config.config),
            ("--log-file=", &self.log_file),
        ];
        for (option, path) in files {
            if let Some(path) = path {
                let mut arg = OsString::from(option);
                arg.push(path);
                args.push(arg);
            }
        }
        if self.foreground {
            args.push("--foreground".into());
        }
        if let Some(supervision) = &self.supervise {
            let watchdog = supervision.watchdog.unwrap_or_default();
            args.push("--supervise".into());
            args.push(format!("--watchdog={}", seconds(watchdog)).into());
            args.push(format!("--restart-pause={}", seconds(supervision.restart_pause)).into());
        }
        if let Some(id) = config.replaces {
            args.push(format!("--replaces={id}").into());
        }
        args.extend((0..self.verbose).map(|_| OsString::from("-v")));
        // After the dashes, a path that starts with one is no option.
        args.push("--".into());
        args.push(config.backing.clone().into());
        args.push(config.mountpoint.clone().into());
        args
    }

    fn mount_options(&self) -> Option<String> {
        let mut options: Vec<String> = Vec::new();
        if self.config.read_only {
            options.push("ro".to_owned());
        }
        if self.config.allow_other {
            options.push("allow_other".to_owned());
        }
        options.extend(self.config.fuse_options.iter().map(|option| escape(option)));
        (!options.is_empty()).then(|| options.join(","))
    }
}

/// What is said on a command line that a configuration file could say, too.
pub(super) fn overrides(args: &MountArgs, options: &MountOptions) -> Overrides {
    Overrides {
        lock_timeout: args.lock_timeout.or(options.lock_timeout),
        readers: args.readers.or(options.readers),
        durability: args.durability.or(options.durability),
        kept_max_age: args.kept_max_age.or(options.kept_max_age),
        kept_max_size: args.kept_max_size.or(options.kept_max_size),
    }
}

/// How long the daemon that was started with these arguments takes to unmount, at most.
pub(super) fn daemon_unmount_timeout(args: &MountArgs) -> Duration {
    let options = MountOptions::parse(&args.options).unwrap_or_default();
    unmount_timeout(args, &options)
}

fn supervision(args: &MountArgs, options: &MountOptions) -> Result<Option<Supervision>, Failure> {
    let watchdog = args.watchdog.or(options.watchdog);
    let restart_pause = args.restart_pause.or(options.restart_pause);
    if !args.supervise && !options.supervise {
        return match (watchdog, restart_pause) {
            (None, None) => Ok(None),
            _ => Err(Failure::usage(
                "--watchdog and --restart-pause need --supervise; add it",
            )),
        };
    }
    if options.auto_unmount {
        return Err(Failure::usage(
            "mount option auto_unmount takes a dead mount away, which --supervise replaces; leave \
             one out",
        ));
    }
    let watchdog = watchdog.unwrap_or(DEFAULT_WATCHDOG);
    Ok(Some(Supervision {
        watchdog: (!watchdog.is_zero()).then_some(watchdog),
        restart_pause: restart_pause.unwrap_or(DEFAULT_RESTART_PAUSE),
    }))
}

fn unmount_timeout(args: &MountArgs, options: &MountOptions) -> Duration {
    args.unmount_timeout
        .or(options.unmount_timeout)
        .unwrap_or(DEFAULT_UNMOUNT_TIMEOUT)
}

fn fuse_options(options: &MountOptions) -> Vec<String> {
    let mut words = options.kernel.clone();
    if options.allow_root {
        words.push("allow_root".to_owned());
    }
    if options.auto_unmount {
        words.push("auto_unmount".to_owned());
    }
    words
}

fn check_source(source: &Path, given: &Path, resolved: &Path) -> Result<(), Failure> {
    if source == given || source == resolved {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "mount option fsname={} cannot be had: by the name BACKING latchfs umount finds the \
         daemon; leave it out",
        source.display()
    )))
}

/// The daemon has another current directory, and must never wait for itself to read it again.
fn absolute_config_file(path: &Path, directories: &Directories) -> Result<PathBuf, Failure> {
    let unusable = |why: &dyn std::fmt::Display| {
        Failure::usage(format!("{} cannot be used: {why}", path.display()))
    };
    let absolute = std::path::absolute(path).map_err(|error| unusable(&error))?;
    // A file that is missing is for those to tell of who read it.
    if real_location(&absolute).is_ok_and(|real| real.starts_with(&directories.mountpoint)) {
        return Err(unusable(
            &"it would be inside the mount; choose a path outside MOUNTPOINT, or have it as \
              .latchfs/config.toml in BACKING and leave --config out",
        ));
    }
    Ok(absolute)
}

/// The daemon has another current directory, and must never wait for itself to write a message.
fn absolute_log_file(path: &Path, directories: &Directories) -> Result<PathBuf, Failure> {
    let unusable = |why: &dyn std::fmt::Display| {
        Failure::usage(format!(
            "the log file {} cannot be used: {why}",
            path.display()
        ))
    };
    let absolute = std::path::absolute(path).map_err(|error| unusable(&error))?;
    let real = real_location(&absolute).map_err(|error| unusable(&error))?;
    if real.starts_with(&directories.mountpoint) {
        return Err(unusable(
            &"it would be inside the mount; choose a path outside MOUNTPOINT",
        ));
    }
    Ok(real)
}

/// Where the file is, or will be, without symbolic links.
fn real_location(path: &Path) -> std::io::Result<PathBuf> {
    match (path.canonicalize(), path.parent(), path.file_name()) {
        (Ok(real), ..) => Ok(real),
        (Err(error), Some(parent), Some(name)) if error.kind() == std::io::ErrorKind::NotFound => {
            Ok(parent.canonicalize()?.join(name))
        }
        (Err(error), ..) => Err(error),
    }
}

/// In the one unit in which no duration loses anything.
fn seconds(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

pub(super) fn name_of(value: impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::args::{Cli, Command};
    use super::*;
    use crate::config::{Durability, Readers};
    use clap::Parser as _;
    use std::fs;

    struct Scene {
        _guard: tempfile::TempDir,
        dir: PathBuf,
    }

    impl Scene {
        fn new() -> Self {
            let guard = tempfile::tempdir().unwrap();
            let dir = guard.path().canonicalize().unwrap();
            fs::create_dir(dir.join("-backing, here")).unwrap();
            fs::create_dir(dir.join("point")).unwrap();
            Self { _guard: guard, dir }
        }

        fn plan(&self, args: &[&str]) -> Result<Plan, Failure> {
            let backing = self.dir.join("-backing, here");
            let point = self.dir.join("point");
            let args = args
                .iter()
                .map(OsString::from)
                .chain([backing.into(), point.into()]);
            plan(["mount".into()].into_iter().chain(args))
        }
    }

    fn plan(args: impl IntoIterator<Item = OsString>) -> Result<Plan, Failure> {
        let cli = Cli::try_parse_from(["latchfs".into()].into_iter().chain(args)).unwrap();
        let Command::Mount(mount) = &cli.command else {
            panic!("not mount")
        };
        Plan::new(mount, cli.verbose)
    }

    #[test]
    fn the_defaults_are_those_of_the_configuration() {
        let scene = Scene::new();
        let plan = scene.plan(&[]).unwrap();
        assert_eq!(plan.config.backing, scene.dir.join("-backing, here"));
        assert_eq!(plan.config.mountpoint, scene.dir.join("point"));
        assert_eq!(plan.config.unmount_timeout, DEFAULT_UNMOUNT_TIMEOUT);
        // Said by nobody: the configuration file may.
        assert_eq!(plan.config.overrides, Overrides::default());
        assert_eq!(plan.config.config, None);
        assert!(!plan.config.read_only && !plan.config.allow_other && !plan.foreground);
        assert_eq!(plan.config.fuse_options, [""; 0]);
        assert_eq!(plan.log_file, None);
    }

    #[test]
    fn a_long_option_wins_over_a_mount_option() {
        let scene = Scene::new();
        let list = "lock_timeout=1,readers=snapshot,durability=none,unmount_timeout=2,foreground";
        let plan = scene.plan(&["-o", list]).unwrap();
        assert_eq!(
            plan.config.overrides.lock_timeout,
            Some(Duration::from_secs(1))
        );
        assert_eq!(plan.config.overrides.readers, Some(Readers::Snapshot));
        assert_eq!(plan.config.overrides.durability, Some(Durability::None));
        assert_eq!(plan.config.unmount_timeout, Duration::from_secs(2));
        assert!(plan.foreground);
        let long = [
            "--lock-timeout=3",
            "--readers=wait",
            "--durability=full",
            "-o",
            list,
        ];
        let plan = scene.plan(&long).unwrap();
        assert_eq!(
            plan.config.overrides.lock_timeout,
            Some(Duration::from_secs(3))
        );
        assert_eq!(plan.config.overrides.readers, Some(Readers::Wait));
        assert_eq!(plan.config.overrides.durability, Some(Durability::Full));
        assert_eq!(plan.config.unmount_timeout, Duration::from_secs(2));
    }

    #[test]
    fn the_daemon_is_given_the_same_plan() {
        let scene = Scene::new();
        let log_file = scene.dir.join("log, file").display().to_string();
        let list = "ro,allow_other,auto_unmount,noexec,nosuid";
        let given = [
            "-o",
            list,
            "--lock-timeout=1.5",
            "-vv",
            "--log-file",
            &log_file,
            "--config",
            "relative.toml",
        ];
        let supervised = ["--supervise", "--watchdog=off", "-o", "restart_pause=2m"];
        for given in [&given[..], &supervised, &[]] {
            let first = scene.plan(given).unwrap();
            let second = plan(first.daemon_args()).unwrap();
            assert_eq!(format!("{first:?}"), format!("{second:?}"));
        }
    }

    #[test]
    fn what_belongs_to_supervision_needs_it() {
        let scene = Scene::new();
        let plan = scene.plan(&["-o", "supervise,watchdog=0"]).unwrap();
        let expected = Supervision {
            watchdog: None,
            restart_pause: DEFAULT_RESTART_PAUSE,
        };
        assert_eq!(plan.supervise, Some(expected));
        for (given, words) in [
            (&["--watchdog=5s"][..], "need --supervise"),
            (&["-o", "restart_pause=5s"], "need --supervise"),
            (
                &["--supervise", "-o", "auto_unmount,allow_other"],
                "leave one out",
            ),
        ] {
            let failure = scene.plan(given).unwrap_err();
            assert_eq!(failure.exit.code(), 2);
            assert!(failure.message.contains(words), "{}", failure.message);
        }
    }

    #[test]
    fn a_log_file_inside_the_mount_is_refused() {
        let scene = Scene::new();
        std::os::unix::fs::symlink("point", scene.dir.join("link")).unwrap();
        for name in ["point/log", "link/log"] {
            let path = scene.dir.join(name).display().to_string();
            let failure = scene.plan(&["--log-file", &path]).unwrap_err();
            assert_eq!(failure.exit.code(), 2);
            assert!(
                failure.message.contains("inside the mount"),
                "{}",
                failure.message
            );
        }
        let path = scene.dir.join("missing/log").display().to_string();
        let failure = scene.plan(&["--log-file", &path]).unwrap_err();
        assert!(
            failure.message.contains("cannot be used: No such file"),
            "{}",
            failure.message
        );
    }

    #[test]
    fn another_source_than_backing_is_refused() {
        let scene = Scene::new();
        let failure = scene.plan(&["-o", "fsname=else"]).unwrap_err();
        assert!(
            failure.message.contains("fsname=else cannot be had"),
            "{}",
            failure.message
        );
        let own = scene.dir.join("-backing, here").display().to_string();
        scene
            .plan(&["-o", &format!("fsname={}", escape(&own))])
            .unwrap();
    }
}
