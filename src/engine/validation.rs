//! What a version must be to become the file.
//!
//! A version that is not what its file's rule asks for is refused, and kept aside, unless the file
//! it would replace is just as wrong: a program may then go on as it did without latchfs. A file
//! that is new may be empty.

use super::Engine;
use super::io::length;
use super::transaction::Transaction;
use crate::backing::shadow::Shadow;
use crate::backing::{Errno, dir};
use crate::rules::Validation;
use crate::validate::{self, CheckError};
use rustix::fs::OFlags;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

/// Why a version must not become the file.
pub(super) struct Refusal {
    /// `EBADMSG` for what it is, `EIO` where that could not be found out.
    pub(super) errno: Errno,
    /// For the log.
    pub(super) reason: String,
}

/// Reads a file from its start, whatever offset others use it with.
struct Content<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

impl Engine {
    /// May what a transaction has written, `shadow`, become the file? Reads all of it.
    pub(super) fn validate(
        &self,
        transaction: &Transaction,
        shadow: &Shadow,
    ) -> Result<(), Refusal> {
        let validation = self.treatment_of_transaction(transaction).validate;
        if validation == Validation::None {
            return Ok(());
        }
        let file = &**shadow.file();
        match check(&validation, file) {
            Ok(()) => Ok(()),
            Err(CheckError::Invalid(invalid)) => {
                match self.was_valid(transaction, &validation) {
                    // It is new, or was empty.
                    None if length(file) == Ok(0) => Ok(()),
                    Some(false) => Ok(()),
                    None | Some(true) => Err(Refusal {
                        errno: Errno::BADMSG,
                        reason: format!("it is not {}: {invalid}", validation.wanted()),
                    }),
                }
            }
            Err(CheckError::Io(error)) => Err(Refusal {
                errno: Errno::IO,
                reason: format!("it could not be checked: {error}"),
            }),
        }
    }

    /// Is the file as it is now what it must be? `None` if there is none yet, or it is empty.
    fn was_valid(&self, transaction: &Transaction, validation: &Validation) -> Option<bool> {
        let (_, version) = self.version(transaction.inode).ok()?;
        let file = version.file();
        if length(&file) == Ok(0) {
            return None;
        }
        match validation {
            // What a program says is final.
            Validation::Command { .. } => Some(true),
            _ => Some(check(validation, &file).is_ok()),
        }
    }
}

fn check(validation: &Validation, file: &File) -> Result<(), CheckError> {
    let reopen = || Ok(dir::open_again(file, OFlags::RDONLY)?.into());
    validate::check(validation, Content { file, offset: 0 }, reopen)
}
