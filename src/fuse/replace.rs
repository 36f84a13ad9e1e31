//! Taking the place of a mount whose daemon has died.
//!
//! The dead mount stays until the new one can be seen in its place: meanwhile every access fails, and
//! nothing that a program writes lands in the directory beneath. root makes the new mount without a
//! place (fsmount(2)), puts it beneath the dead one (move_mount(2), Linux 6.5) and takes that away,
//! so that no path leads past both at any moment. An ordinary user has fusermount3 only, which mounts
//! over no FUSE mount: there the dead one has to go first.
//!
//! Mounts are told by their ids: whatever else is mounted there is left alone. Nothing here sends a
//! request to a mount.

use super::session::options;
use crate::backing::{Errno, proc_path};
use crate::config::MountConfig;
use fuser::MountOption;
use log::{debug, warn};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
};
use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime};

/// When the directory beneath is looked at once more.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// A mount that is nowhere to be seen yet.
pub(super) struct Unplaced(OwnedFd);

/// Makes a mount, and the descriptor by which its requests are answered.
///
/// # Errors
/// `EPERM` if that is not for this user, or not allowed here.
pub(super) fn make(config: &MountConfig, root_mode: u32) -> Result<(OwnedFd, Unplaced), Errno> {
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, value: &str| fsconfig_set_string(&context, key, value);
    set("source", &config.backing.to_string_lossy())?;
    set("subtype", "latchfs")?;
    set("fd", &device.as_raw_fd().to_string())?;
    set("rootmode", &format!("{root_mode:o}"))?;
    set("user_id", &rustix::process::getuid().to_string())?;
    set("group_id", &rustix::process::getgid().to_string())?;
    let options = options(config);
    if options.acl != fuser::SessionACL::Owner {
        fsconfig_set_flag(&context, "allow_other")?;
    }
    // As mount(2) by fuser has it.
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    for option in &options.mount_options {
        match option {
            MountOption::DefaultPermissions => fsconfig_set_flag(&context, "default_permissions")?,
            MountOption::RO => {
                fsconfig_set_flag(&context, "ro")?;
                attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
            }
            MountOption::Sync => fsconfig_set_flag(&context, "sync")?,
            MountOption::DirSync => fsconfig_set_flag(&context, "dirsync")?,
            MountOption::Dev => attributes -= MountAttrFlags::MOUNT_ATTR_NODEV,
            MountOption::Suid => attributes -= MountAttrFlags::MOUNT_ATTR_NOSUID,
            MountOption::NoExec => attributes |= MountAttrFlags::MOUNT_ATTR_NOEXEC,
            MountOption::NoAtime => attributes |= MountAttrFlags::MOUNT_ATTR_NOATIME,
            // What is so by default, and the source and type from above.
            _ => {}
        }
    }
    fsconfig_create(&context)?;
    let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    Ok((device, Unplaced(mount)))
}

impl Unplaced {
    /// The device number of the mount.
    pub(super) fn device(&self) -> Result<u64, Errno> {
        device(&self.0, "")
    }

    /// Puts it in the place of the dead mount with this id. Where the kernel can't do that in one
    /// step, `uncovers` is called right before the directory beneath can be seen for a moment.
    ///
    /// # Errors
    /// `ESTALE` if something else is mounted there. The dead mount may be gone then.
    pub(super) fn put(
        &self,
        point: &Path,
        dead: u64,
        uncovers: impl FnOnce(),
    ) -> Result<(), Errno> {
        let dead = pin(point, dead)?;
        let from = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        let over = from | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        let beneath = over | MoveMountFlags::MOVE_MOUNT_BENEATH;
        match move_mount(&self.0, "", &dead, "", beneath) {
            Ok(()) => detach(&dead),
            Err(errno) => {
                warn!(
                    "{}: the kernel can't exchange mounts here ({errno}): the directory beneath can \
                     be seen for a moment",
                    point.display()
                );
                uncovers();
                detach(&dead)?;
                move_mount(&self.0, "", CWD, point, from)
            }
        }
    }
}

/// The device number of the mount that a path leads into.
pub(super) fn device_of(point: &Path) -> Result<u64, Errno> {
    device(CWD, point)
}

fn device(dir: impl AsFd, path: impl rustix::path::Arg) -> Result<u64, Errno> {
    // A request to our own mount would never let a killed daemon end: its thread would wait for an
    // answer that nobody gives, with the descriptor that has to be closed for that.
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(dir, path, flags, StatxFlags::MNT_ID)?;
    Ok(rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor))
}

/// Holds the root of the mount with this id, which must be what is to be seen at `point`.
///
/// # Errors
/// `ESTALE` if it is another.
pub fn pin(point: &Path, id: u64) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(point, flags, Mode::empty())?;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()));
    let info = info.map_err(|_| Errno::IO)?;
    let mut lines = info.lines();
    let found = lines.find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    (found == Some(id)).then_some(fd).ok_or(Errno::STALE)
}

/// Takes the mount with this id away from `point`; what is open in it stays open.
///
/// # Errors
/// `ESTALE` if something else is to be seen there; `EPERM`, also if fusermount3 fails.
pub fn take_away(point: &Path, id: u64) -> Result<(), Errno> {
    match detach(&pin(point, id)?) {
        Err(Errno::PERM) => fusermount(point).map_err(|error| {
            warn!("can't run fusermount3 to unmount: {error}");
            Errno::PERM
        }),
        other => other,
    }
}

/// The directory that a mountpoint is, as long as nothing is mounted there.
pub(super) struct Uncovered {
    directory: std::fs::File,
    since: SystemTime,
}

impl Uncovered {
    /// To be called right after it was uncovered, at `since`.
    pub(super) fn new(point: &Path, since: SystemTime) -> io::Result<Self> {
        let directory = std::fs::File::open(point)?;
        Ok(Self { directory, since })
    }

    /// It is covered again: what was made in it meanwhile is told, since nobody would find it. Once
    /// more a little later: who was on the way into it makes its file there all the same.
    pub(super) fn covered(self, point: &Path) -> io::Result<()> {
        let mut told = HashSet::new();
        self.tell(point, &mut told);
        let point = point.to_owned();
        let builder = thread::Builder::new().name(String::from("beneath"));
        let later = builder.spawn(move || {
            thread::sleep(SECOND_LOOK);
            self.tell(&point, &mut told);
            debug!("{}: no more was made beneath", point.display());
        });
        later.map(drop)
    }

    fn tell(&self, point: &Path, told: &mut HashSet<OsString>) {
        // The times of files come from a clock that only ticks.
        let since = self.since.checked_sub(Duration::from_millis(20));
        let Ok(entries) = std::fs::read_dir(proc_path(self.directory.as_fd())) else {
            return;
        };
        for entry in entries.flatten() {
            let made = entry.metadata().and_then(|found| found.created());
            if made.is_ok_and(|made| Some(made) >= since) && told.insert(entry.file_name()) {
                warn!(
                    "{}: {} was made in the directory beneath, while the mount was away",
                    point.display(),
                    entry.file_name().to_string_lossy()
                );
            }
        }
    }
}

fn detach(root: &OwnedFd) -> Result<(), Errno> {
    rustix::mount::unmount(proc_path(root.as_fd()), UnmountFlags::DETACH)
}

/// What an ordinary user has in place of umount(2).
pub(super) fn fusermount(point: &Path) -> io::Result<()> {
    let mut command = Command::new("fusermount3");
    let status = command.args(["-u", "-q", "-z", "--"]).arg(point).status()?;
    match status.success() {
        true => Ok(()),
        false => Err(io::Error::other(status.to_string())),
    }
}
