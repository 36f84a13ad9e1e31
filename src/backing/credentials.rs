//! Acting for a user of the mount: who owns what is made, whose quota is charged, whose rights
//! count.
//!
//! What is changed here belongs to the thread, not to the process (the system calls, not the
//! functions of the C library, which change all threads), and is changed back before the call
//! returns.

use super::Errno;
use rustix::fs::Mode;
use rustix::process::{Gid, getgroups, umask};
use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, capabilities, set_capabilities, set_thread_groups,
    unshare_unsafe,
};
use std::cell::Cell;

/// A user, as the kernel judges access to files; see credentials(7).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// The file system user.
    pub uid: u32,
    /// The file system group.
    pub gid: u32,
    /// The supplementary groups; `None`: not asked for.
    pub groups: Option<Vec<u32>>,
}

impl Credentials {
    /// Is the user in this group?
    pub fn is_in(&self, group: u32) -> bool {
        let groups = self.groups.as_deref().unwrap_or_default();
        self.gid == group || groups.contains(&group)
    }
}

/// What of root's powers is put away where the kernel has judged, on the mount, that the caller
/// may do this: going beyond quotas and into the blocks reserved for root.
pub const APPROVED: CapabilitySet = CapabilitySet::SYS_RESOURCE;
/// The same, and the kernel decides about set-group-id as for the user.
pub const APPROVED_BUT_SETGID: CapabilitySet = APPROVED.union(CapabilitySet::FSETID);
/// All of root's powers: the user's own rights count.
pub const NOTHING: CapabilitySet = CapabilitySet::all();

/// Does `work` as `who`, without the capabilities in `without`. Root keeps all of them.
///
/// Only a daemon of root's may call it.
///
/// # Errors
/// `EPERM` if this process may not act for others; what `work` says.
pub fn acting_as<T>(
    who: &Credentials,
    without: CapabilitySet,
    work: impl FnOnce() -> Result<T, Errno>,
) -> Result<T, Errno> {
    let without = match who.uid {
        0 => CapabilitySet::empty(),
        _ => without,
    };
    let _back = Back::after_becoming(who, without)?;
    work()
}

/// What the thread was; dropped, it is that again.
struct Back {
    uid: u32,
    gid: u32,
    groups: Option<Vec<Gid>>,
    capabilities: CapabilitySets,
}

impl Back {
    fn after_becoming(who: &Credentials, without: CapabilitySet) -> Result<Self, Errno> {
        let capabilities = capabilities(None)?;
        let mut back = Self {
            uid: set_fs_uid(u32::MAX),
            gid: set_fs_gid(u32::MAX),
            groups: None,
            capabilities,
        };
        if let Some(groups) = &who.groups {
            let own = getgroups()?;
            let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
            set_thread_groups(&groups)?;
            back.groups = Some(own);
        }
        set_fs_gid(who.gid);
        set_fs_uid(who.uid);
        if (set_fs_uid(u32::MAX), set_fs_gid(u32::MAX)) != (who.uid, who.gid) {
            return Err(Errno::PERM);
        }
        // Leaving uid 0 takes the file system's capabilities away; here it is said which stay.
        set_capabilities(
            None,
            CapabilitySets {
                effective: capabilities.effective - without,
                ..capabilities
            },
        )?;
        Ok(back)
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        set_fs_uid(self.uid);
        set_fs_gid(self.gid);
        let restored = set_capabilities(None, self.capabilities)
            .and_then(|()| self.groups.as_deref().map_or(Ok(()), set_thread_groups));
        let is = (set_fs_uid(u32::MAX), set_fs_gid(u32::MAX));
        if restored.is_err() || is != (self.uid, self.gid) {
            // The next request would be served with somebody else's rights.
            log::error!("bug: a thread could not become root again; the daemon ends");
            std::process::abort();
        }
    }
}

/// setfsuid(2) of this thread; returns the one before. An id that is none changes nothing.
fn set_fs_uid(uid: u32) -> u32 {
    // SAFETY: it takes a number, and touches no memory.
    unsafe { libc::setfsuid(uid) as u32 }
}

/// setfsgid(2) of this thread; returns the one before.
fn set_fs_gid(gid: u32) -> u32 {
    // SAFETY: as above.
    unsafe { libc::setfsgid(gid) as u32 }
}

/// Does `work`, which makes a file, with a umask(2). The file system of BACKING decides whether it
/// counts: not where the directory has a default ACL (acl(5)).
///
/// # Errors
/// `EPERM` if a sandbox forbids unshare(2); what `work` says.
pub fn with_umask<T>(mask: u32, work: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    thread_local! {
        /// This thread shares its umask with no other.
        static ALONE: Cell<bool> = const { Cell::new(false) };
    }
    struct Restore(Mode);
    impl Drop for Restore {
        fn drop(&mut self) {
            umask(self.0);
        }
    }
    if !ALONE.get() {
        // SAFETY: no descriptors are unshared; the current directory, which is, is not used.
        unsafe { unshare_unsafe(UnshareFlags::FS) }?;
        ALONE.set(true);
    }
    let _restore = Restore(umask(Mode::from_raw_mode(mask & 0o777)));
    work()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn umask_now() -> u32 {
        let now = umask(Mode::empty());
        umask(now);
        now.as_raw_mode()
    }

    #[test]
    fn a_umask_counts_in_one_thread_and_only_meanwhile() {
        let thread = std::thread::spawn(|| {
            let before = umask_now();
            let within = with_umask(0o027, || {
                let elsewhere = std::thread::spawn(|| 1).join();
                assert!(elsewhere.is_ok());
                Ok(umask_now())
            });
            assert_eq!((within, umask_now()), (Ok(0o027), before));
        });
        let here = umask_now();
        thread.join().expect("the thread");
        assert_eq!(umask_now(), here);
    }

    #[test]
    fn a_thread_that_acted_for_a_user_is_itself_again_also_after_a_panic() {
        if !rustix::process::geteuid().is_root() {
            // Nothing to lose, and nothing that could be tried.
            return;
        }
        let before = (capabilities(None), getgroups());
        let who = Credentials {
            uid: 12345,
            gid: 54321,
            groups: Some(vec![7, 8]),
        };
        let seen = acting_as(&who, NOTHING, || {
            let ids = (set_fs_uid(u32::MAX), set_fs_gid(u32::MAX));
            Ok((ids, capabilities(None)?.effective, getgroups()?))
        });
        let groups = [7, 8].map(Gid::from_raw).to_vec();
        assert_eq!(seen, Ok(((12345, 54321), CapabilitySet::empty(), groups)));
        let panicked = std::panic::catch_unwind(|| acting_as::<()>(&who, APPROVED, || panic!()));
        assert!(panicked.is_err());
        assert_eq!((set_fs_uid(u32::MAX), set_fs_gid(u32::MAX)), (0, 0));
        assert_eq!((capabilities(None), getgroups()), before);
    }
}
