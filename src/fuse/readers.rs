//! How many event threads wait for requests.
//!
//! The kernel wakes one waiting thread for each request. Between two requests of one program the thread that
//! answered the last one is on its way to read the next, on the same processor, and gets that at once; but if
//! another one waits, that is woken for nothing, on a processor that was idle. On a virtual machine this is an
//! interrupt by way of the host, and the program pays for it: 14 us measured, where the whole round trip takes 7.
//! A program that writes makes many requests one after the other, and its closes are work for the pool, so
//! meanwhile one thread waits and the other rests. (Programs that only read fare better with both, on
//! such machines.)
//!
//! Nobody depends on the one that waits: the other looks every [`REST`] whether requests are left
//! lying.

use super::wire::Device;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::thread;
use std::time::Duration;

/// How long an event thread rests before it looks again: what a request may have to wait for if the other
/// thread is at a system call that takes long.
const REST: Duration = Duration::from_millis(4);

/// The event threads of a session.
#[derive(Debug)]
pub(super) struct Readers {
    /// Where their requests come from.
    device: Device,
    /// Requests of programs that write, so far.
    written: AtomicU64,
    /// One rests.
    resting: AtomicBool,
}

impl Readers {
    pub(super) fn new(device: Device) -> Self {
        Self {
            device,
            written: AtomicU64::new(0),
            resting: AtomicBool::new(false),
        }
    }

    /// The calling event thread is done with a request of a program that writes. It rests if no other does and
    /// no request waits for it, as long as more of them come and are taken.
    pub(super) fn rest(&self) {
        let mut before = self.written.fetch_add(1, Ordering::Relaxed) + 1;
        let resting = || self.resting.load(Ordering::Relaxed);
        if resting() || self.are_left() || self.resting.swap(true, Ordering::Relaxed) {
            return;
        }
        loop {
            thread::sleep(REST);
            let now = self.written.load(Ordering::Relaxed);
            if now == before || self.are_left() {
                break;
            }
            before = now;
        }
        self.resting.store(false, Ordering::Relaxed);
    }

    /// Do requests wait that nobody takes? So, too, if the session has ended.
    fn are_left(&self) -> bool {
        let Some(device) = self.device.get() else {
            return true;
        };
        let mut device = [PollFd::new(device, PollFlags::IN)];
        !matches!(poll(&mut device, Some(&Timespec::default())), Ok(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::{Arc, OnceLock, mpsc};
    use std::io::Write;

    const DEADLINE: Duration = Duration::from_secs(20);

    /// Readers of a pipe, and its other end.
    fn readers() -> (Arc<Readers>, std::io::PipeWriter) {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let device: Device = Arc::new(OnceLock::from(std::os::fd::OwnedFd::from(reader)));
        (Arc::new(Readers::new(device)), writer)
    }

    /// Has a thread rest; what is returned hears when it is done.
    fn rest(readers: &Arc<Readers>) -> mpsc::Receiver<()> {
        let (done, told) = mpsc::channel();
        let readers = readers.clone();
        thread::spawn(move || {
            readers.rest();
            done.send(())
        });
        told
    }

    /// Has others write until a thread is done; false if it was not in time.
    fn write_until(readers: &Readers, told: &mpsc::Receiver<()>, limit: Duration) -> bool {
        let end = std::time::Instant::now() + limit;
        while std::time::Instant::now() < end {
            readers.written.fetch_add(1, Ordering::Relaxed);
            if told.recv_timeout(REST / 8).is_ok() {
                return true;
            }
        }
        false
    }

    #[test]
    fn a_thread_that_rests_is_back_when_nobody_writes_any_more() {
        let (readers, _writer) = readers();
        assert_eq!(rest(&readers).recv_timeout(DEADLINE), Ok(()));
        assert!(!readers.resting.load(Ordering::Relaxed));
    }

    #[test]
    fn a_thread_that_rests_is_back_when_a_request_is_left_lying() {
        let (readers, mut writer) = readers();
        let told = rest(&readers);
        assert!(!write_until(&readers, &told, REST * 8), "nothing was left");
        writer.write_all(b"a request").expect("written");
        assert!(write_until(&readers, &told, DEADLINE));
    }

    #[test]
    fn one_thread_at_a_time_rests() {
        let (readers, _writer) = readers();
        readers.resting.store(true, Ordering::Relaxed);
        // No thread of its own: this would not end while others write.
        readers.rest();
        assert!(readers.resting.load(Ordering::Relaxed));
    }

    #[test]
    fn nobody_rests_while_requests_wait_or_when_the_session_has_ended() {
        let (readers, mut writer) = readers();
        assert!(!readers.are_left());
        writer.write_all(b"a request").expect("written");
        readers.rest();
        drop(writer);
        readers.rest();
        assert!(readers.are_left() && !readers.resting.load(Ordering::Relaxed));
    }
}
