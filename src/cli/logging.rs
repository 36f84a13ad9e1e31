//! Where log messages go: stderr in the foreground; syslog, or a file, in the background.
//!
//! Which messages are kept is env_logger's matter in every case: `RUST_LOG`, or `-v`.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::panic::PanicHookInfo;
use std::path::Path;

use env_logger::{Builder, Env, Target, WriteStyle};
use log::{Level, Log, Metadata, Record};
use syslog::{Facility, Formatter3164, LoggerBackend};

use super::exit::Failure;
use crate::sync::Mutex;

/// Where the messages of this process go.
pub(super) enum Destination {
    Stderr,
    File(File),
    Syslog,
}

/// Starts logging, panics included.
pub(super) fn start(destination: Destination, verbose: u8) {
    let mut builder = Builder::from_env(Env::default().default_filter_or(default_filter(verbose)));
    builder.format_timestamp_millis();
    let to_stderr = matches!(destination, Destination::Stderr);
    let logger = match destination {
        Destination::Stderr => builder.build(),
        Destination::File(file) => builder
            .target(Target::Pipe(Box::new(file)))
            .write_style(WriteStyle::Never)
            .build(),
        Destination::Syslog => {
            let filter = builder.build();
            let most = filter.filter();
            install(Box::new(Syslog::new(filter)), most);
            log_panics(to_stderr);
            return;
        }
    };
    let most = logger.filter();
    install(Box::new(logger), most);
    log_panics(to_stderr);
}

fn install(logger: Box<dyn Log>, most: log::LevelFilter) {
    // It fails if there is a logger already, as when tests call this twice. That one does as well.
    if log::set_boxed_logger(logger).is_ok() {
        log::set_max_level(most);
    }
}

fn default_filter(verbose: u8) -> &'static str {
    // fuser tells of every request in debug messages, so only the last level has them.
    match verbose {
        0 => "warn,latchfs=info",
        1 => "warn,latchfs=debug",
        _ => "info,latchfs=trace,fuser=debug",
    }
}

/// Opens a log file for appending. Readable by its group, as is usual for logs, but not by all:
/// the messages have names of files.
pub(super) fn open_log_file(path: &Path) -> Result<File, Failure> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o640);
    options.open(path).map_err(|error| {
        let path = path.display();
        Failure::usage(format!(
            "cannot open the log file {path}: {error}; give another --log-file"
        ))
    })
}

/// Has every panic logged with its place, whatever becomes of the thread.
fn log_panics(to_stderr: bool) {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        log::error!("{}", describe_panic(panic));
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            log::error!("backtrace: {backtrace}");
        }
        // A daemon that is not ready yet has its stderr read by the process that started it.
        if !to_stderr || !log::log_enabled!(Level::Error) {
            default(panic);
        }
    }));
}

fn describe_panic(panic: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("without a name");
    let payload = panic.payload();
    let what = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    match panic.location() {
        Some(place) => format!("internal error: thread {name} panicked at {place}: {what}"),
        None => format!("internal error: thread {name} panicked: {what}"),
    }
}

/// Whether a syslog daemon listens here.
pub(super) fn has_syslog() -> bool {
    connect().is_ok()
}

type Connection = syslog::Logger<LoggerBackend, Formatter3164>;

fn connect() -> syslog::Result<Connection> {
    let formatter = Formatter3164 {
        facility: Facility::LOG_DAEMON,
        hostname: None,
        process: "latchfs".to_owned(),
        pid: std::process::id(),
    };
    let connection = syslog::unix(formatter)?;
    // A syslog daemon may write its own files through this very mount: never wait for it.
    match &connection.backend {
        LoggerBackend::Unix(socket) => socket.set_nonblocking(true),
        LoggerBackend::UnixStream(stream) => stream.get_ref().set_nonblocking(true),
        LoggerBackend::Udp(..) | LoggerBackend::Tcp(..) => Ok(()),
    }
    .map_err(syslog::Error::Io)?;
    Ok(connection)
}

/// Sends what env_logger's filter lets through to the syslog daemon. A message that it does not
/// take at once is lost: the filesystem is not held up for it.
struct Syslog {
    filter: env_logger::Logger,
    connection: Mutex<Option<Connection>>,
}

impl Syslog {
    fn new(filter: env_logger::Logger) -> Self {
        Self {
            filter,
            connection: Mutex::new(connect().ok()),
        }
    }
}

impl Log for Syslog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.filter.matches(record) {
            return;
        }
        let mut connection = self.connection.lock();
        if let Some(open) = connection.as_mut() {
            match send(open, record) {
                Ok(()) => return,
                Err(error) if is_full(&error) => return,
                Err(_) => {}
            }
        }
        // The daemon has been restarted since, or has come up only now.
        *connection = connect().ok();
        if let Some(open) = connection.as_mut() {
            // Nobody is left to tell.
            let _ = send(open, record);
        }
    }

    fn flush(&self) {}
}

fn send(connection: &mut Connection, record: &Record<'_>) -> syslog::Result<()> {
    match record.level() {
        Level::Error => connection.err(record.args()),
        Level::Warn => connection.warning(record.args()),
        Level::Info => connection.info(record.args()),
        Level::Debug | Level::Trace => connection.debug(record.args()),
    }
}

fn is_full(error: &syslog::Error) -> bool {
    matches!(error, syslog::Error::Write(cause) if cause.kind() == io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;

    fn keeps(verbose: u8, target: &str, level: Level) -> bool {
        let logger = Builder::new()
            .parse_filters(default_filter(verbose))
            .build();
        logger.enabled(&Metadata::builder().target(target).level(level).build())
    }

    #[test]
    fn verbosity_chooses_the_default_filter() {
        assert!(keeps(0, "latchfs::engine", Level::Info));
        assert!(!keeps(0, "latchfs::engine", Level::Debug));
        assert!(keeps(0, "fuser", Level::Warn));
        assert!(!keeps(0, "fuser", Level::Info));
        assert!(keeps(1, "latchfs::engine", Level::Debug));
        assert!(!keeps(1, "fuser::session", Level::Info));
        assert!(keeps(2, "latchfs::engine", Level::Trace));
        assert!(keeps(2, "fuser::session", Level::Debug));
    }

    #[test]
    fn a_log_file_is_appended_to_and_not_for_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for line in ["one\n", "two\n"] {
            open_log_file(&path)
                .unwrap()
                .write_all(line.as_bytes())
                .unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o027, 0);
    }

    #[test]
    fn a_log_file_that_cannot_be_opened_is_a_usage_error() {
        let failure = open_log_file(Path::new("/proc/nowhere/log")).unwrap_err();
        assert_eq!(failure.exit.code(), 2);
        assert!(
            failure
                .message
                .contains("cannot open the log file /proc/nowhere/log")
        );
    }
}
