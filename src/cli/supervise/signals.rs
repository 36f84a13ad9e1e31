//! Signals as descriptors that can be waited for.

use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

/// What was asked for by signals.
pub(super) struct Signals {
    stop: UnixStream,
    reload: UnixStream,
}

impl Signals {
    /// Has SIGTERM, SIGINT and SIGHUP arrive here from now on.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            stop: register(&[SIGTERM, SIGINT])?,
            reload: register(&[SIGHUP])?,
        })
    }

    /// To be read when the end was asked for.
    pub(super) fn stop(&self) -> BorrowedFd<'_> {
        self.stop.as_fd()
    }

    /// To be read when the configuration is to be read again.
    pub(super) fn reload(&self) -> BorrowedFd<'_> {
        self.reload.as_fd()
    }

    /// How often the end was asked for since the last look.
    pub(super) fn stops(&self) -> usize {
        drain(&self.stop)
    }

    /// Was a reload asked for since the last look?
    pub(super) fn reloads(&self) -> bool {
        drain(&self.reload) > 0
    }
}

fn register(signals: &[i32]) -> io::Result<UnixStream> {
    let (hear, tell) = UnixStream::pair()?;
    hear.set_nonblocking(true)?;
    for signal in signals {
        pipe::register(*signal, tell.try_clone()?)?;
    }
    Ok(hear)
}

fn drain(mut stream: &UnixStream) -> usize {
    let mut bytes = [0; 64];
    stream.read(&mut bytes).unwrap_or_default()
}
