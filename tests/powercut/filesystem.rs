//! The file systems that BACKING can be on: how they are made, mounted and checked.

use crate::common::{DEADLINE, finish, text, wait_until};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::ffi::CString;
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ext4,
    Xfs,
    Btrfs,
}

impl Kind {
    /// All.
    pub const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    /// Its name for mount(2).
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// The one that is called so.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// How large a disk is, in bytes: small, but as large as mkfs wants it.
    pub fn size(self) -> usize {
        let mib = match self {
            Self::Ext4 => 48,
            Self::Xfs => 64,
            Self::Btrfs => 160,
        };
        mib << 20
    }

    /// Makes it on a device.
    pub fn make(self, device: &Path) {
        let mut command = Command::new(format!("mkfs.{}", self.name()));
        match self {
            // All of it now, not by a thread of the kernel after the mount.
            Self::Ext4 => {
                command.args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"])
            }
            Self::Xfs => command.args(["-q", "-f", "--unsupported"]),
            Self::Btrfs => command.args(["-q", "-f", "-m", "single", "-d", "single"]),
        };
        command.arg(device);
        // mkfs.btrfs looks at what all loop devices are for, and fails if a mount of somebody else's has
        // just died below one.
        let mut said = String::new();
        let made = (0..10).any(|_| {
            let output = finish(&mut command);
            said = text(&output.stderr);
            output.status.success()
        });
        assert!(made, "{command:?}: {said}");
    }

    /// Mounts a device.
    ///
    /// # Errors
    /// What mount(2) says.
    pub fn mount(self, device: &Path, point: &Path) -> io::Result<()> {
        let options = match self {
            Self::Xfs => c"nouuid",
            Self::Ext4 | Self::Btrfs => c"",
        };
        let options: CString = options.to_owned();
        let flags = MountFlags::NOATIME;
        mount(device, point, self.name(), flags, &*options).map_err(io::Error::from)
    }

    /// What is wrong with the file system on a device that is not mounted.
    pub fn check(self, device: &Path) -> Option<String> {
        let (program, args): (_, &[&str]) = match self {
            Self::Ext4 => ("e2fsck", &["-f", "-n"]),
            Self::Xfs => ("xfs_repair", &["-n"]),
            Self::Btrfs => ("btrfs", &["check", "--readonly"]),
        };
        let output = finish(Command::new(program).args(args).arg(device));
        let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
        (!output.status.success()).then(|| format!("{program}: {}: {said}", output.status))
    }
}

/// Unmounts.
pub fn unmount_now(point: &Path) {
    let end = Instant::now() + DEADLINE;
    // For a moment somebody who looks at all mounts of the machine can have it open.
    loop {
        match unmount(point, UnmountFlags::empty()) {
            Ok(()) => return,
            Err(errno) => assert!(Instant::now() < end, "{}: {errno}", point.display()),
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// Waits until something is mounted at a directory.
pub fn wait_until_mounted(point: &Path) {
    let device = |path: &Path| rustix::fs::stat(path).map(|stat| stat.st_dev);
    let above = device(point.parent().expect("a directory above it"));
    wait_until(
        "it is mounted",
        || matches!((device(point), above), (Ok(here), Ok(above)) if here != above),
    );
}
