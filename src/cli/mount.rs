//! `latchfs mount`: in the foreground, in the background, and as the daemon of the latter.

use std::path::Path;

use super::args::MountArgs;
use super::daemon::{self, Reporter};
use super::exit::{Exit, Failure, complain, shell_word};
use super::logging::{self, Destination};
use super::plan::Plan;
use super::supervise;
use crate::config::MountConfig;
use crate::fuse::session::{News, ServeError, ServeErrorKind, serve};

/// Does what the command line asks for.
pub(super) fn run(args: &MountArgs, verbose: u8) -> Result<(), Failure> {
    if args.as_daemon {
        return run_as_daemon(args, verbose);
    }
    let plan = Plan::new(args, verbose)?;
    if let Some(path) = &plan.log_file {
        // The daemon opens it again. Here a failure still finds the user's terminal.
        logging::open_log_file(path)?;
    }
    if plan.foreground {
        run_in_foreground(plan)
    } else {
        run_in_background(&plan)
    }
}

fn run_in_foreground(plan: Plan) -> Result<(), Failure> {
    let destination = match &plan.log_file {
        Some(path) => Destination::File(logging::open_log_file(path)?),
        None => Destination::Stderr,
    };
    logging::start(destination, plan.verbose);
    if let Some(supervision) = plan.supervise {
        let bypass = bypass_warning(&plan.config);
        let ready = || {
            if let Some(warning) = &bypass {
                log::warn!("{warning}");
            }
        };
        return supervise::run(&plan, supervision, ready);
    }
    daemon::take_name();
    let config = plan.config.clone();
    let bypass = bypass_warning(&plan.config);
    let tell = |news| {
        if news == News::Ready {
            log::info!("mounted {}", describe(&plan.config));
            if let Some(warning) = &bypass {
                log::warn!("{warning}");
            }
        }
    };
    serve(config, tell).map_err(|error| failure(&error, &plan.config))
}

fn run_in_background(plan: &Plan) -> Result<(), Failure> {
    daemon::start(plan)?;
    if let Some(warning) = bypass_warning(&plan.config) {
        complain(&format!("warning: {warning}"));
    }
    if plan.log_file.is_none() && !logging::has_syslog() {
        complain("warning: there is no syslog here, so messages are lost; use --log-file PATH");
    }
    Ok(())
}

/// A mount in place is only seen by path: what stands in the directory already goes on beside it.
fn bypass_warning(config: &MountConfig) -> Option<String> {
    let here = std::env::current_dir().ok()?;
    (config.backing == config.mountpoint && here.starts_with(&config.mountpoint)).then(|| {
        let here = shell_word(&here);
        format!("this shell is still in the directory beneath the mount; enter it: cd {here}")
    })
}

/// Whatever happens here is told to the process that started the daemon, as long as it listens.
fn run_as_daemon(args: &MountArgs, verbose: u8) -> Result<(), Failure> {
    let reporter = Reporter::start(args);
    let done = serve_as_daemon(args, verbose, &reporter);
    if let Err(failure) = &done {
        log::error!("{}", failure.message);
        reporter.failed(failure);
    }
    log::logger().flush();
    done
}

fn serve_as_daemon(args: &MountArgs, verbose: u8, reporter: &Reporter) -> Result<(), Failure> {
    let plan = Plan::new(args, verbose)?;
    let destination = match &plan.log_file {
        Some(path) => Destination::File(logging::open_log_file(path)?),
        None if plan.foreground => Destination::Stderr,
        None => Destination::Syslog,
    };
    logging::start(destination, verbose);
    if let Some(supervision) = plan.supervise {
        return supervise::run(&plan, supervision, || reporter.ready());
    }
    daemon::take_name();
    let config = plan.config.clone();
    let tell = |news| match news {
        News::Uncovered => reporter.uncovered(),
        News::Ready => {
            log::info!("mounted {}", describe(&plan.config));
            reporter.ready();
        }
    };
    serve(config, tell).map_err(|error| failure(&error, &plan.config))?;
    log::info!("unmounted {}", describe(&plan.config));
    Ok(())
}

pub(super) fn describe(config: &MountConfig) -> String {
    format!(
        "{} on {}",
        config.backing.display(),
        config.mountpoint.display()
    )
}

fn failure(error: &ServeError, config: &MountConfig) -> Failure {
    let kind = error.kind();
    let mut message = error.to_string();
    if kind == ServeErrorKind::Mount {
        if let Some(hint) = refusal_hint(config) {
            message = format!("{}; {hint}", message.trim_end());
        }
    }
    Failure::new(Exit::from(kind), message)
}

/// What to do about a refused mount, by what is usually the reason.
fn refusal_hint(config: &MountConfig) -> Option<&'static str> {
    let root = rustix::process::geteuid().is_root();
    let device = Path::new("/dev/fuse");
    if !device.exists() {
        return Some(
            "there is no /dev/fuse: load the kernel module (modprobe fuse), or let the container \
             have it (--device /dev/fuse)",
        );
    }
    let asks = |name: &str| config.fuse_options.iter().any(|option| option == name);
    if (!root || asks("auto_unmount")) && !is_installed("fusermount3") {
        return Some("fusermount3 is missing: install the package fuse3");
    }
    if root {
        return None;
    }
    if (config.allow_other || asks("allow_root")) && !user_allow_other() {
        return Some(
            "to let others in, add the line user_allow_other to /etc/fuse.conf, or leave \
             allow_other and allow_root out",
        );
    }
    use rustix::fs::Access;
    if rustix::fs::access(device, Access::READ_OK | Access::WRITE_OK).is_err() {
        return Some("/dev/fuse is closed to this user: chmod 0666 /dev/fuse, as udev would do");
    }
    None
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // fuser looks there too, whatever PATH says.
    let fixed = ["/bin".into(), "/sbin".into()];
    std::env::split_paths(&path)
        .chain(fixed)
        .any(|dir| dir.join(program).is_file())
}

fn user_allow_other() -> bool {
    std::fs::read_to_string("/etc/fuse.conf")
        .is_ok_and(|text| text.lines().any(|line| line.trim() == "user_allow_other"))
}
