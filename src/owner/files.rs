//! Reading `/proc` with few system calls.

use rustix::buffer::spare_capacity;
use rustix::fs::{CWD, Mode, OFlags, RawDir, openat};
use rustix::io::{Errno, read, retry_on_intr};
use std::cell::Cell;
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Opens a file to read.
pub(super) fn open(path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    open_at(CWD, path)
}

/// Opens a file beneath an open directory to read.
pub(super) fn open_at(dir: BorrowedFd<'_>, path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let opened = openat(dir, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    if let Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM) = opened {
        LACKING.set(true);
    }
    opened
}

thread_local! {
    /// Something could not be opened for lack of descriptors or memory.
    static LACKING: Cell<bool> = const { Cell::new(false) };
}

/// Reads what `read` does. None if something could not be opened for lack of descriptors, which must
/// not be taken for something that is not there.
pub(super) fn completely<T>(read: impl FnOnce() -> T) -> Option<T> {
    LACKING.set(false);
    let found = read();
    (!LACKING.get()).then_some(found)
}

/// Reads a file to its end, appending to `into`.
pub(super) fn read_to_end(fd: impl AsFd, into: &mut Vec<u8>) -> Result<(), Errno> {
    loop {
        // The reserve doubles the buffer, so a long file takes few reads.
        into.reserve(4096);
        if retry_on_intr(|| read(&fd, spare_capacity(into)))? == 0 {
            return Ok(());
        }
    }
}

/// Reads a whole file.
pub(super) fn slurp(path: impl fmt::Display) -> Result<Vec<u8>, Errno> {
    let mut text = Vec::new();
    read_to_end(open(path.to_string())?, &mut text)?;
    Ok(text)
}

/// Calls `visit` with the name of each entry of a directory that is a number, until it returns
/// something.
///
/// Fails like `getdents64(2)`.
pub(super) fn find_number<T>(
    dir: impl AsFd,
    mut visit: impl FnMut(u32) -> Option<T>,
) -> Result<Option<T>, Errno> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let number = std::str::from_utf8(entry.file_name().to_bytes())
            .ok()
            .and_then(|name| name.parse().ok());
        if let Some(found) = number.and_then(&mut visit) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The number in the first word of `text`, in base `radix`.
pub(super) fn number<T: TryFrom<u64>>(text: &[u8], radix: u32) -> Option<T> {
    let word = text
        .split(u8::is_ascii_whitespace)
        .find(|w| !w.is_empty())?;
    let number = u64::from_str_radix(std::str::from_utf8(word).ok()?, radix).ok()?;
    T::try_from(number).ok()
}

/// The lines of the form `key: value`, each as its key and what follows the colon.
pub(super) fn fields(text: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    text.split(|&byte| byte == b'\n').filter_map(|line| {
        let colon = line.iter().position(|&byte| byte == b':')?;
        Some((&line[..colon], &line[colon + 1..]))
    })
}
