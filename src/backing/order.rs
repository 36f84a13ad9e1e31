//! Content that reaches the disk before the name that leads to it.
//!
//! A version must be on the disk before a rename makes it the file, or a power cut could leave the name
//! and not the content. fsync(2) does that, and so commits the journal of the file system once more than
//! the fsync of the directory will. Where there is one journal, which commits what was changed in the order
//! it was changed, it is enough to wait until the content has reached the device (sync_file_range(2)): blocks
//! and length of the file are in the journal by then, before the rename or with it, and the commit that
//! makes the rename durable flushes the device's cache first. The manual page warns that the call by itself
//! makes nothing durable; it is not asked to here. `tests/powercut` cuts the power in between.
//!
//! So it is on ext4 (a writeback ends when its extents are in the journal, `ext4_end_io_end`) and XFS
//! (`xfs_end_ioend`), with their journal on the same device as the content. Everywhere else: fsync.

use super::Errno;
use crate::sync::Mutex;
use rustix::fs::{fstat, fstatfs, fsync, major, minor};
use std::collections::HashMap;
use std::ffi::c_uint;
use std::fs::{self, File};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;

const EXT4_SUPER_MAGIC: u64 = 0xef53;
const XFS_SUPER_MAGIC: u64 = 0x5846_5342;

/// Which file systems commit in order, by device.
#[derive(Debug, Default)]
pub struct Order(Mutex<HashMap<u64, bool>>);

impl Order {
    /// Waits until a rename of the file can't reach the disk before its content. Nothing is durable then
    /// that would not be without it: the fsync of the directory is what makes both so.
    ///
    /// # Errors
    /// As fsync(2): `EIO`, `ENOSPC`, `EDQUOT`. The content is not to be trusted then, nor tried again.
    pub fn before_rename(&self, file: &File) -> Result<(), Errno> {
        let stat = fstat(file)?;
        let known = self.0.lock().get(&stat.st_dev).copied();
        let ordered = match known {
            Some(ordered) => ordered,
            None => {
                let ordered = commits_in_order(file, stat.st_dev);
                self.0.lock().insert(stat.st_dev, ordered);
                ordered
            }
        };
        match ordered.then(|| write_out(file)) {
            None | Some(Err(Errno::NOSYS)) => fsync(file),
            Some(result) => result,
        }
    }
}

/// Begins to write out what was written to a range of a file, and does not wait for it (but where the device
/// takes no more). What goes wrong is told to who waits for all of it.
pub fn begin_write_out(file: &File, range: Range<u64>) {
    let _ = sync_range(file, range, libc::SYNC_FILE_RANGE_WRITE);
}

fn write_out(file: &File) -> Result<(), Errno> {
    let all = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // No length: to the end.
    sync_range(file, 0..0, all)
}

fn sync_range(file: &File, range: Range<u64>, flags: c_uint) -> Result<(), Errno> {
    let (Ok(start), Ok(length)) = (range.start.try_into(), (range.end - range.start).try_into())
    else {
        return Err(Errno::INVAL);
    };
    // SAFETY: a plain system call on a descriptor that is open for as long as `file` is borrowed.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), start, length, flags) };
    match result {
        0 => Ok(()),
        _ => Err(super::shadow::errno(std::io::Error::last_os_error())),
    }
}

fn commits_in_order(file: &File, device: u64) -> bool {
    let number = format!("{}:{}", major(device), minor(device));
    match fstatfs(file).map(|fs| fs.f_type as u64) {
        Ok(EXT4_SUPER_MAGIC) => has_own_journal(&number),
        Ok(XFS_SUPER_MAGIC) => {
            let table = fs::read_to_string("/proc/self/mountinfo");
            table.is_ok_and(|table| is_on_one_device(&table, &number))
        }
        _ => false,
    }
}

/// Has the file system on this device a journal in it (ext4's is inode 8)?
fn has_own_journal(number: &str) -> bool {
    let device = fs::read_link(Path::new("/sys/dev/block").join(number));
    let name = device.ok().and_then(|path| {
        let name = path.file_name()?.to_str()?;
        Some(format!("/proc/fs/jbd2/{name}-8"))
    });
    name.is_some_and(|name| Path::new(&name).is_dir())
}

/// Has the mounted file system of this device neither log nor data on a second one (xfs(5))? `table`: as
/// /proc/self/mountinfo.
fn is_on_one_device(table: &str, number: &str) -> bool {
    let mut lines = table.lines().filter(|line| {
        let mut fields = line.split(' ');
        fields.nth(2) == Some(number)
    });
    lines.next().is_some_and(|line| {
        let options = line.rsplit(' ').next().unwrap_or_default();
        let mut options = options.split(',');
        options.all(|option| !option.starts_with("logdev=") && !option.starts_with("rtdev="))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
        22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        40 22 7:0 / /mnt/one rw - xfs /dev/loop0 rw,attr2,inode64,logbufs=8,noquota\n\
        41 22 7:1 / /mnt/log rw - xfs /dev/loop1 rw,attr2,logdev=/dev/loop3,noquota\n\
        42 22 7:2 / /mnt/real rw - xfs /dev/loop2 rw,rtdev=/dev/loop4\n";

    #[test]
    fn a_file_system_with_its_log_or_data_on_a_second_device_is_told_from_others() {
        assert!(is_on_one_device(TABLE, "7:0"));
        assert!(!is_on_one_device(TABLE, "7:1"));
        assert!(!is_on_one_device(TABLE, "7:2"));
    }

    #[test]
    fn a_file_system_that_is_not_in_the_table_is_not_believed() {
        assert!(!is_on_one_device(TABLE, "7:9"));
        assert!(!is_on_one_device("", "7:0"));
        assert!(!has_own_journal("0:0"));
    }

    #[test]
    fn content_is_written_out_or_synced_wherever_a_file_lies() {
        let order = Order::default();
        for directory in ["/tmp", "/dev/shm", "/var/tmp"] {
            let file = tempfile::tempfile_in(directory).expect(directory);
            fs::write(format!("/proc/self/fd/{}", file.as_raw_fd()), "content").expect("written");
            assert_eq!(order.before_rename(&file), Ok(()), "{directory}");
            assert_eq!(write_out(&file), Ok(()), "{directory}");
        }
    }

    #[test]
    fn what_cannot_be_synced_is_an_error() {
        let null = File::open("/dev/null").expect("/dev/null");
        assert!(write_out(&null).is_err());
    }
}
