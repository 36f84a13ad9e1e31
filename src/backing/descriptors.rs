//! How many descriptors are left.

use super::Errno;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, getrlimit};
use std::os::fd::{AsFd, AsRawFd, RawFd};

/// So many are left to what takes one for a moment: a commit that opens its directory to make it
/// durable, a look into `/proc`. Else those who have files open could not close them properly, once a
/// program has opened as many as there are.
const RESERVE: u64 = 128;

/// May a descriptor that is to stay open be made? `any` is some open descriptor.
///
/// # Errors
/// `EMFILE` if only those are left that are reserved.
pub fn check(any: impl AsFd) -> Result<(), Errno> {
    // The kernel gives the lowest number that is free, and to open a file takes two for a moment.
    let first = fcntl_dupfd_cloexec(&any, 0)?;
    staying(fcntl_dupfd_cloexec(&first, 0)?).map(drop)
}

/// What was opened to stay open, if it may. The same for what takes no more than that one descriptor, and
/// can be closed again.
///
/// # Errors
/// `EMFILE` if it is one of those that are reserved.
pub fn staying<T: AsFd>(opened: T) -> Result<T, Errno> {
    match may_stay(&opened) {
        true => Ok(opened),
        false => Err(Errno::MFILE),
    }
}

/// May this descriptor stay open?
pub fn may_stay(fd: impl AsFd) -> bool {
    let limit = getrlimit(Resource::Nofile).current;
    limit.is_none_or(|limit| is_below_reserve(fd.as_fd().as_raw_fd(), limit))
}

fn is_below_reserve(fd: RawFd, limit: u64) -> bool {
    u64::try_from(fd).is_ok_and(|fd| fd < limit - RESERVE.min(limit / 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_numbers_are_for_a_moment_only() {
        assert!(is_below_reserve(871, 1000) && !is_below_reserve(872, 1000));
        assert!(is_below_reserve(59, 80) && !is_below_reserve(60, 80));
        assert!(!is_below_reserve(0, 0));
    }
}
