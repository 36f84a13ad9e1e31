//! Loop devices.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::common::DEADLINE;

// <linux/loop.h>
const LOOP_CLR_FD: libc::c_ulong = 0x4C01;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
/// The kernel takes the device away when nobody has it open: also if this process is killed.
const LO_FLAGS_AUTOCLEAR: u32 = 4;

#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

/// A loop device over a file; gone when it is dropped and nothing of it is mounted.
pub struct Loop {
    device: File,
    path: PathBuf,
}

impl Loop {
    /// Attaches a free device to a file.
    pub fn attach(file: &Path) -> Self {
        let backing = open(file).expect("the file of a loop device");
        let control = open(Path::new("/dev/loop-control")).expect("/dev/loop-control");
        let end = Instant::now() + DEADLINE;
        loop {
            match attach_once(&control, &backing) {
                Ok(attached) => return attached,
                Err(error) => assert!(Instant::now() < end, "no loop device: {error}"),
            }
            // Somebody else was faster, or the last device is not free yet.
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The device.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the block layer tells of its queue.
    pub fn queue(&self, what: &str) -> String {
        let name = self.path.file_name().expect("its name");
        let path = Path::new("/sys/block").join(name).join("queue").join(what);
        let told = std::fs::read_to_string(path).unwrap_or_default();
        told.trim().to_owned()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // SAFETY: an open loop device, and a request without an argument.
        unsafe { libc::ioctl(self.device.as_raw_fd(), LOOP_CLR_FD) };
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_CLOEXEC);
    options.open(path)
}

fn attach_once(control: &File, backing: &File) -> io::Result<Loop> {
    // SAFETY: a request without an argument.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    let path = PathBuf::from(format!("/dev/loop{number}"));
    let device = open(&path)?;
    // SAFETY: numbers only, for which zeros are values.
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.fd = backing.as_raw_fd() as u32;
    config.info.flags = LO_FLAGS_AUTOCLEAR;
    // SAFETY: the request reads a `loop_config`, which this is.
    match unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &config) } {
        0 => Ok(Loop { device, path }),
        _ => Err(io::Error::last_os_error()),
    }
}
