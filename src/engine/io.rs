//! Read, write and their kin on open handles.

use super::append::Appender;
use super::direct::{DirectFile, clear_privileges};
use super::lookup::Listing;
use super::transaction::{Phase, Transaction};
use super::version::{KernelFile, Version};
use super::{Caller, Done, Engine};
use crate::backing::kept::is_lack_of_room;
use crate::backing::shadow::{self, Shadow, errno};
use crate::backing::{Errno, descriptors};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, OnceLock};
use log::warn;
use rustix::fs::{FallocateFlags, SeekFrom};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// The most bytes of a base that an event thread copies itself.
const COPY_INLINE: u64 = 64 * 1024;
/// A transaction that has written more than this has its writes done by the pool: the kernel makes
/// a process that fills the page cache wait for the disk, and an event thread must not.
const WRITE_INLINE: u64 = 8 << 20;

/// An open handle.
#[derive(Debug)]
pub enum Handle {
    /// Of a committed version.
    Reader {
        /// Which.
        version: Arc<Version>,
        /// Keeps what the kernel reads it by.
        kernel: OnceLock<KernelFile>,
        /// Its closes are told of.
        flush: bool,
    },
    /// Of a transaction.
    Transaction {
        /// Which.
        transaction: Arc<Transaction>,
        /// May it be written?
        writable: bool,
        /// Its closes are not told of, or one has been.
        flushed: AtomicBool,
    },
    /// Of a file of BACKING itself.
    Direct(Arc<DirectFile>),
    /// With `O_APPEND`, of a file that grows by records.
    Append(Arc<Appender>),
    /// Of a directory.
    Directory(Arc<Listing>),
}

impl Handle {
    /// Of a committed version; `flush`: its closes are told of.
    pub fn reader(version: Arc<Version>, flush: bool) -> Self {
        Self::Reader {
            version,
            kernel: OnceLock::new(),
            flush,
        }
    }

    /// Of a transaction; `flush`: its closes are told of, and it is counted as not closed yet.
    pub fn transaction(transaction: Arc<Transaction>, writable: bool, flush: bool) -> Self {
        Self::Transaction {
            transaction,
            writable,
            flushed: AtomicBool::new(!flush),
        }
    }
}

/// What a handle reads and writes.
enum Target {
    Version(Arc<Version>),
    Transaction(Arc<Transaction>, bool),
    Direct(Arc<DirectFile>),
    Append(Arc<Appender>),
}

/// What a handle reads.
struct Source {
    file: Arc<File>,
    /// What it must not see more of than there is of this, in whole records.
    version: Option<Arc<Version>>,
    /// Where its content ends, though the file may go on.
    limit: Option<u64>,
    /// The version that a transaction which has written nothing shows.
    base: Option<Arc<Version>>,
}

impl Source {
    /// How many of `size` bytes at `offset` there are to be seen.
    fn visible(&self, offset: u64, size: u64) -> Result<u64, Errno> {
        let end = match &self.version {
            Some(version) if version.growth().is_some() => Some(version.length()?),
            _ => self.limit,
        };
        Ok(end.map_or(size, |end| end.saturating_sub(offset).min(size)))
    }

    /// What `look` finds in it.
    fn seen<T>(&self, mut look: impl FnMut(&File) -> Result<T, Errno>) -> Result<T, Errno> {
        match self.version.as_ref().or(self.base.as_ref()) {
            Some(version) => version.seen(look),
            None => look(&self.file),
        }
    }
}

/// What may be written through a handle.
enum Written {
    Transaction(Arc<Transaction>),
    Direct(Arc<DirectFile>),
    Append(Arc<Appender>),
}

/// Where the bytes of a write(2) go, and how.
#[derive(Clone, Copy, Debug, Default)]
pub struct Placement {
    /// Where, in bytes from the start.
    pub offset: u64,
    /// The handle has `O_APPEND`: at the end of the file, wherever that is.
    pub append: bool,
    /// It comes from a mapping.
    pub mapped: bool,
    /// The kernel wants set-user-id and capabilities gone.
    pub drop_privileges: bool,
}

impl Engine {
    fn target(&self, handle: u64) -> Result<Target, Errno> {
        match self.handles.get(&handle).as_deref() {
            Some(Handle::Reader { version, .. }) => Ok(Target::Version(version.clone())),
            Some(Handle::Transaction {
                transaction,
                writable,
                ..
            }) => Ok(Target::Transaction(transaction.clone(), *writable)),
            Some(Handle::Direct(direct)) => Ok(Target::Direct(direct.clone())),
            Some(Handle::Append(appender)) => Ok(Target::Append(appender.clone())),
            _ => Err(Errno::BADF),
        }
    }

    /// What a handle writes, if it may.
    fn written(&self, handle: u64) -> Result<Written, Errno> {
        match self.target(handle)? {
            Target::Transaction(transaction, true) => Ok(Written::Transaction(transaction)),
            Target::Direct(direct) if direct.writable => Ok(Written::Direct(direct)),
            Target::Append(appender) => Ok(Written::Append(appender)),
            _ => Err(Errno::BADF),
        }
    }

    /// The file a handle reads from; `None` if its content is empty.
    fn readable(&self, handle: u64) -> Result<Option<Source>, Errno> {
        let plain = |file, limit, base| Source {
            file,
            version: None,
            limit,
            base,
        };
        let of_version = |version: Arc<Version>| Source {
            version: Some(version.clone()),
            ..plain(version.file(), None, None)
        };
        Ok(match self.target(handle)? {
            Target::Version(version) => Some(of_version(version)),
            Target::Direct(direct) => Some(plain(direct.file.clone(), None, None)),
            Target::Append(appender) if appender.readable => {
                let last = appender.version();
                match self.version_to_append(appender.inode, Some(last.clone())) {
                    // It is just being replaced.
                    Err(Errno::STALE) => Some(of_version(last)),
                    version => Some(of_version(version?)),
                }
            }
            Target::Append(_) => return Err(Errno::BADF),
            Target::Transaction(transaction, _) => {
                let inner = transaction.inner.lock();
                let base = inner.base.clone().filter(|_| inner.shadow.is_none());
                let content = inner.content();
                content.map(|content| plain(content.file, content.limit, base))
            }
        })
    }

    /// Keeps what the kernel reads a version by for as long as the handle is open.
    pub fn attach(&self, handle: u64, file: KernelFile) {
        if let Some(Handle::Reader { kernel, .. }) = self.handles.get(&handle).as_deref() {
            let _ = kernel.set(file);
        }
    }

    /// read(2), at most `size` bytes. Where it would have to wait for the disk, a thread of the
    /// pool does it.
    ///
    /// # Errors
    /// `EIO`; `EBADF` for a handle that is none.
    pub fn read(self: &Arc<Self>, handle: u64, offset: u64, size: u32, done: Done<Vec<u8>>) {
        let source = match self.readable(handle) {
            // No file is so long, and the place after the last byte read must be a number, too.
            Ok(Some(_)) if offset.checked_add(size.into()).is_none() => {
                return done(Ok(Vec::new()));
            }
            Ok(Some(source)) => source,
            Ok(None) => return done(Ok(Vec::new())),
            Err(errno) => return done(Err(errno)),
        };
        let size = match source.visible(offset, size.into()) {
            Ok(size) => size,
            Err(errno) => return done(Err(errno)),
        };
        let mut buffer = vec![0; size as usize];
        match source.seen(|file| Ok(read_cached(file, &mut buffer, offset))) {
            Ok(Some(read)) => {
                buffer.truncate(read);
                done(Ok(buffer));
            }
            _ => self.spawn(move |_| {
                let read = source.seen(|file| read_full(file, &mut buffer, offset));
                done(read.map(|read| {
                    buffer.truncate(read);
                    buffer
                }));
            }),
        }
    }

    /// write(2).
    ///
    /// # Errors
    /// `ENOSPC`, `EDQUOT`, `EIO`: after any of them the transaction can't be committed (W8).
    pub fn write(
        self: &Arc<Self>,
        caller: Caller,
        handle: u64,
        placement: Placement,
        data: &[u8],
        done: Done<u32>,
    ) {
        let transaction = match self.written(handle) {
            Ok(Written::Transaction(transaction)) => transaction,
            Ok(Written::Direct(direct)) => {
                let before = direct
                    .written
                    .fetch_add(data.len() as u64, Ordering::Relaxed);
                if before < WRITE_INLINE {
                    match self.write_direct(&direct, placement, data) {
                        Err(errno) if is_lack_of_room(errno) => {}
                        other => return done(other),
                    }
                }
                let data = data.to_vec();
                return self.spawn(move |engine| {
                    let to = (&*direct.file, &direct.who);
                    let write = || engine.write_direct(&direct, placement, &data);
                    done(engine.with_room(to, data.len() as u64, write));
                });
            }
            Ok(Written::Append(appender)) => {
                return self.append(caller, appender, placement, data, done);
            }
            Err(errno) => return done(Err(errno)),
        };
        let process = self.process_of(&transaction, caller);
        let write = Write {
            tid: caller.tid,
            process,
            placement,
        };
        if self.is_quick(&transaction) {
            match self.write_to(&transaction, &write, data, None) {
                // To make room may take long.
                Err(errno) if is_lack_of_room(errno) => {}
                other => return done(other),
            }
        }
        let data = data.to_vec();
        self.spawn(move |engine| {
            let room = Some(data.len() as u64);
            done(engine.write_to(&transaction, &write, &data, room));
        });
    }

    /// The process of a thread that writes; asked of `/proc` only when it is another than before.
    fn process_of(&self, transaction: &Transaction, caller: Caller) -> Option<u32> {
        if caller.tid == 0 {
            return None;
        }
        if caller.tid == transaction.writer.tid {
            return Some(transaction.writer.process);
        }
        if let Some((tid, process)) = transaction.inner.lock().last_writer
            && tid == caller.tid
        {
            return Some(process);
        }
        self.processes.thread(caller.tid).map(|t| t.process)
    }

    /// May an event thread change the content itself?
    fn is_quick(&self, transaction: &Transaction) -> bool {
        let (written, base) = {
            let inner = transaction.inner.lock();
            if inner.writable().is_some() {
                return inner.written < WRITE_INLINE;
            }
            (inner.written, inner.content())
        };
        let length = base.map_or(Ok(0), |content| content.length());
        written < WRITE_INLINE && length.is_ok_and(|length| length <= COPY_INLINE)
    }

    fn write_to(
        self: &Arc<Self>,
        transaction: &Arc<Transaction>,
        write: &Write,
        data: &[u8],
        room: Option<u64>,
    ) -> Result<u32, Errno> {
        let result = self.modify(transaction, room, |shadow| {
            if write.placement.drop_privileges {
                transaction.drop_privileges()?;
            }
            let file = shadow.file();
            file.write_all_at(data, write.placement.offset)
                .map_err(errno)
        });
        let mut inner = transaction.inner.lock();
        match write.process {
            Some(process) => inner.wrote(write.tid, process),
            None => inner.dirty = true,
        }
        inner.written += data.len() as u64;
        result?;
        let end = write.placement.offset.saturating_add(data.len() as u64);
        let piece = inner.ahead.piece(end);
        drop(inner);
        if let Some(piece) = piece {
            self.write_out(transaction, piece);
        }
        Ok(data.len() as u32)
    }

    /// Does something to a transaction's shadow, making it first if there is none; an error of it
    /// spoils the transaction (W8). `room`: how many bytes it needs, for which kept versions make way,
    /// which blocks; an event thread says `None`, and a lack of room then spoils nothing yet.
    pub(super) fn modify(
        &self,
        transaction: &Arc<Transaction>,
        room: Option<u64>,
        mut work: impl FnMut(&Shadow) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let errno = loop {
            match (self.attempt(transaction, &mut work)?, room) {
                (Ok(()), _) => return Ok(()),
                (Err(errno), None) if is_lack_of_room(errno) => return Err(errno),
                (Err(errno), Some(bytes)) if self.make_room_for(transaction, errno, bytes) => {}
                (Err(errno), _) => break errno,
            }
        };
        if spoils(errno) {
            transaction.inner.lock().failed.get_or_insert(errno);
        }
        Err(errno)
    }

    /// The same, once. The inner result is that of the work.
    ///
    /// # Errors
    /// `EIO` if the transaction takes no more.
    fn attempt(
        &self,
        transaction: &Arc<Transaction>,
        work: &mut impl FnMut(&Shadow) -> Result<(), Errno>,
    ) -> Result<Result<(), Errno>, Errno> {
        let payer = &transaction.writer.credentials;
        let shadow = self.approved(payer, || self.materialize(transaction));
        let _writing = transaction.writing.read();
        let (phase, still) = {
            let inner = transaction.inner.lock();
            (inner.phase, inner.writable())
        };
        if !matches!(phase, Phase::Open | Phase::Pending) {
            warn!(
                "{}: a write by pid {} ({}) came after the last close was seen; it is refused",
                self.path_of(transaction.inode),
                transaction.writer.process,
                transaction.writer.program
            );
            return Err(Errno::IO);
        }
        // fsync(2) may have published the shadow since; that is rare enough to fail the write
        // over to a new shadow by hand.
        match (shadow, still) {
            (Err(errno), _) => Ok(Err(errno)),
            (Ok(_), Some(shadow)) => Ok(self.approved(payer, || work(&shadow))),
            (Ok(_), None) => {
                drop(_writing);
                self.attempt(transaction, work)
            }
        }
    }

    /// The shadow of a transaction, made from its base if there is none that can be written.
    pub(super) fn materialize(&self, transaction: &Arc<Transaction>) -> Result<Arc<Shadow>, Errno> {
        if let Some(shadow) = transaction.inner.lock().writable() {
            return Ok(shadow);
        }
        let _copying = transaction.copying.lock();
        let (from, attributes) = {
            let inner = transaction.inner.lock();
            if let Some(shadow) = inner.writable() {
                return Ok(shadow);
            }
            let attributes = inner.shadow.as_ref().map(|s| s.file().clone());
            (inner.content(), attributes)
        };
        let store = self.store()?;
        let (key, mode) = (transaction.inode, 0o600);
        let made = self.at_place(key, |dir, name, identity| {
            let shadow = Shadow::create_for(dir, store, mode)?;
            let base = dir.pin(name, identity)?;
            let stat = rustix::fs::fstat(&base)?;
            match &attributes {
                // After fsync(2): the writer's own shadow has what the writer set.
                Some(own) => shadow::copy_attributes(own, &rustix::fs::fstat(own)?, shadow.file())?,
                None => shadow::copy_attributes(&base, &stat, shadow.file())?,
            }
            Ok((shadow, Some(stat)))
        });
        let (shadow, stat) = match made {
            Ok(made) => made,
            // It has lost its name, or its first fsync(2) is just giving it one; or its directory is
            // not there any more.
            Err(Errno::STALE | Errno::NOENT | Errno::NOTDIR) => {
                let shadow = Shadow::create(store.tmp(), store, mode)?;
                let replaced = transaction.inner.lock().replaced;
                match (&attributes, replaced) {
                    (Some(own), _) => {
                        let stat = rustix::fs::fstat(own)?;
                        shadow::copy_attributes(own, &stat, shadow.file())?;
                    }
                    (None, Some(stat)) => {
                        shadow::copy_owner(&stat, shadow.file())?;
                        crate::backing::dir::chmod(shadow.file(), stat.st_mode)?;
                    }
                    (None, None) => {}
                }
                (shadow, None)
            }
            Err(errno) => return Err(errno),
        };
        descriptors::staying(&**shadow.file())?;
        if let Some(from) = from {
            shadow::clone_content(&from.file, shadow.file(), from.length()?)?;
        }
        let shadow = Arc::new(shadow);
        let mut inner = transaction.inner.lock();
        if inner.privileges_dropped {
            shadow::drop_privileges(shadow.file(), &transaction.writer.credentials)?;
        }
        inner.shadow = Some(shadow.clone());
        inner.published = false;
        inner.attributes_of = stat;
        Ok(shadow)
    }

    /// Makes a transaction's content empty, without copying what it was.
    pub(super) fn truncate_to_nothing(&self, transaction: &Arc<Transaction>) -> Result<(), Errno> {
        let _writing = transaction.writing.read();
        let shadow = {
            let mut inner = transaction.inner.lock();
            if !matches!(inner.phase, Phase::Open | Phase::Pending) {
                // Its shadow is, or is about to be, a committed version.
                return Err(Errno::IO);
            }
            inner.dirty = true;
            inner.base = None;
            if inner.published {
                inner.published = false;
                inner.shadow = None;
            }
            inner.shadow.clone()
        };
        shadow.map_or(Ok(()), |shadow| rustix::fs::ftruncate(shadow.file(), 0))
    }

    /// ftruncate(2) of a transaction; blocks for as long as copying its base takes.
    pub(super) fn truncate_to(
        &self,
        transaction: &Arc<Transaction>,
        size: u64,
    ) -> Result<(), Errno> {
        if size == 0 {
            return self.truncate_to_nothing(transaction);
        }
        self.modify(transaction, Some(0), |shadow| {
            rustix::fs::ftruncate(shadow.file(), size)
        })?;
        transaction.inner.lock().dirty = true;
        Ok(())
    }

    /// fallocate(2).
    ///
    /// # Errors
    /// `EOPNOTSUPP` where BACKING has no such mode; `ENOSPC`.
    pub fn allocate(
        self: &Arc<Self>,
        caller: Caller,
        handle: u64,
        offset: u64,
        length: u64,
        mode: i32,
        done: Done<()>,
    ) {
        let written = match self.written(handle) {
            Ok(written) => written,
            Err(errno) => return done(Err(errno)),
        };
        let mode = FallocateFlags::from_bits_retain(mode as u32);
        if let Written::Append(appender) = written {
            return self.take_turn(appender.inode, move |engine, turn| {
                let result = engine.allocate_appended(&appender, (mode, offset, length));
                drop(turn);
                done(result);
            });
        }
        self.spawn(move |engine| {
            let transaction = match written {
                Written::Transaction(transaction) => transaction,
                Written::Direct(direct) => {
                    let cleared = clear_privileges(&direct.file, &direct.who);
                    let allocate = || rustix::fs::fallocate(&direct.file, mode, offset, length);
                    let approved = || engine.approved(&direct.who, allocate);
                    let to = (&*direct.file, &direct.who);
                    return done(cleared.and_then(|()| engine.with_room(to, length, approved)));
                }
                Written::Append(_) => return done(Err(Errno::BADF)),
            };
            let result = engine.modify(&transaction, Some(length), |shadow| {
                if caller.uid != 0 {
                    transaction.drop_privileges()?;
                }
                rustix::fs::fallocate(shadow.file(), mode, offset, length)
            });
            if result.is_ok() {
                transaction.inner.lock().dirty = true;
            }
            done(result);
        });
    }

    /// lseek(2) with `SEEK_DATA` or `SEEK_HOLE`.
    ///
    /// # Errors
    /// `ENXIO` beyond the end; `EINVAL` for another `whence`.
    pub fn seek(&self, handle: u64, offset: i64, whence: i32) -> Result<u64, Errno> {
        let Some(source) = self.readable(handle)? else {
            return Err(Errno::NXIO);
        };
        let offset = u64::try_from(offset).map_err(|_| Errno::NXIO)?;
        let visible = source.visible(offset, u64::MAX)?;
        if visible == 0 {
            return Err(Errno::NXIO);
        }
        let file = source.file;
        let found = match whence {
            libc::SEEK_DATA => rustix::fs::seek(&file, SeekFrom::Data(offset)),
            libc::SEEK_HOLE => rustix::fs::seek(&file, SeekFrom::Hole(offset)),
            _ => Err(Errno::INVAL),
        }?;
        match found - offset {
            // Within what is not to be seen yet.
            beyond if beyond >= visible && whence == libc::SEEK_DATA => Err(Errno::NXIO),
            beyond => Ok(offset + beyond.min(visible)),
        }
    }

    /// copy_file_range(2): at most `length` bytes, the number copied in the answer.
    ///
    /// # Errors
    /// As write(2).
    pub fn copy_range(
        self: &Arc<Self>,
        caller: Caller,
        (from, from_offset): (u64, u64),
        (to, to_offset): (u64, u64),
        length: u64,
        done: Done<u32>,
    ) {
        let both = self
            .readable(from)
            .and_then(|file| Ok((file, self.written(to)?)));
        let (source, written) = match both {
            Ok((Some(source), written)) => (source, written),
            Ok((None, _)) => return done(Ok(0)),
            Err(errno) => return done(Err(errno)),
        };
        // The answer has 32 bits.
        let length = match source.visible(from_offset, length.min(1 << 30)) {
            Ok(length) => usize::try_from(length).unwrap_or(1 << 30),
            Err(errno) => return done(Err(errno)),
        };
        let source = source.file;
        let copy = move |to: &File| {
            let (mut off_in, mut off_out) = (from_offset, to_offset);
            let (off_in, off_out) = (Some(&mut off_in), Some(&mut off_out));
            rustix::fs::copy_file_range(&source, off_in, to, off_out, length)
        };
        let transaction = match written {
            Written::Transaction(transaction) => transaction,
            Written::Direct(direct) => {
                return self.spawn(move |engine| {
                    let cleared = clear_privileges(&direct.file, &direct.who);
                    let (to, room) = ((&*direct.file, &direct.who), length as u64);
                    let copied =
                        cleared.and_then(|()| engine.with_room(to, room, || copy(&direct.file)));
                    done(copied.map(|copied| copied as u32));
                });
            }
            // As copy_file_range(2) says of a descriptor with O_APPEND.
            Written::Append(_) => return done(Err(Errno::BADF)),
        };
        let process = self.process_of(&transaction, caller);
        self.spawn(move |engine| {
            let mut copied = 0;
            let result = engine.modify(&transaction, Some(length as u64), |shadow| {
                if caller.uid != 0 {
                    transaction.drop_privileges()?;
                }
                copied = copy(shadow.file())?;
                Ok(())
            });
            if copied > 0 {
                let mut inner = transaction.inner.lock();
                inner.dirty = true;
                if let Some(process) = process {
                    inner.wrote(caller.tid, process);
                }
            }
            done(result.map(|()| copied as u32));
        });
    }

    /// Opens a directory's listing.
    ///
    /// # Errors
    /// As opendir(3) on BACKING.
    pub fn open_dir(&self, node: super::NodeId) -> Result<u64, Errno> {
        let key = self.state.lock().tree.inode_of(node).ok_or(Errno::STALE)?.0;
        let dir = match self.dir(key) {
            Ok(dir) => Some(dir),
            // Removed, and still somebody's current directory.
            Err(Errno::NOENT) if self.is_nameless(key) => None,
            Err(errno) => return Err(errno),
        };
        let listing = Listing::new(key, dir);
        Ok(self.add_handle(Handle::Directory(Arc::new(listing))))
    }

    pub(super) fn is_nameless(&self, key: super::Key) -> bool {
        let state = self.state.lock();
        state.tree.inode(key).is_none_or(|i| i.names.is_empty())
    }

    /// The listing of a directory handle.
    pub(super) fn listing(&self, handle: u64) -> Result<Arc<Listing>, Errno> {
        match self.handles.get(&handle).as_deref() {
            Some(Handle::Directory(listing)) => Ok(listing.clone()),
            _ => Err(Errno::BADF),
        }
    }

    /// Closes a directory's listing.
    pub fn release_dir(&self, handle: u64) {
        let directory = |_: &u64, handle: &Handle| matches!(handle, Handle::Directory(_));
        self.handles.remove_if(&handle, directory);
    }

    /// fsync(2) of a directory: its entries are durable.
    pub fn sync_dir(self: &Arc<Self>, handle: u64, done: Done<()>) {
        match self.listing(handle) {
            Ok(listing) => self.spawn(move |_| done(listing.sync())),
            Err(errno) => done(Err(errno)),
        }
    }
}

/// Does an error leave a transaction that can't be committed (W8)? Not where nothing was to be
/// stored: a mode that BACKING lacks, a range that is wrong; the program sees it and may go on.
fn spoils(errno: Errno) -> bool {
    !matches!(
        errno,
        Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::XDEV | Errno::FBIG
    )
}

/// Who writes where, to a transaction.
struct Write {
    tid: u32,
    process: Option<u32>,
    placement: Placement,
}

/// The length of a file in bytes.
pub(super) fn length(file: &File) -> Result<u64, Errno> {
    Ok(rustix::fs::fstat(file)?.st_size as u64)
}

/// Reads what is in the page cache; `None` if something is not.
fn read_cached(file: &File, buffer: &mut [u8], offset: u64) -> Option<usize> {
    use rustix::io::{IoSliceMut, ReadWriteFlags};
    let mut read = 0;
    while read < buffer.len() {
        let mut rest = [IoSliceMut::new(&mut buffer[read..])];
        let at = offset + read as u64;
        match rustix::io::preadv2(file, &mut rest, at, ReadWriteFlags::NOWAIT) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(_) => return None,
        }
    }
    Some(read)
}

fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(errno(e)),
        }
    }
    Ok(read)
}
