//! The kernel's side: a seccomp filter that hands every system call of interest to the process that
//! listens (seccomp_unotify(2)).

use super::table::EXCLUDED;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// The filter: notifies of everything but [`EXCLUDED`].
pub fn filter() -> Vec<libc::sock_filter> {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: code.try_into().expect("16 bits"),
        jt: 0,
        jf: 0,
        k,
    };
    let number = std::mem::offset_of!(libc::seccomp_data, nr);
    let number = number.try_into().expect("an offset");
    let mut program = vec![statement(
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        number,
    )];
    for excluded in EXCLUDED {
        let mut jump = statement(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            (*excluded).try_into().expect("a number of a call"),
        );
        jump.jf = 1;
        program.push(jump);
        program.push(statement(libc::BPF_RET, libc::SECCOMP_RET_ALLOW));
    }
    program.push(statement(libc::BPF_RET, libc::SECCOMP_RET_USER_NOTIF));
    program
}

/// Puts the calling process under the filter, and sends the listener's descriptor over `socket`.
/// Needs `CAP_SYS_ADMIN`. A signal that does not kill has to wait until a call is answered, so that none
/// is told of twice. For the time between fork and exec: allocates nothing.
pub fn install(filter: &[libc::sock_filter], socket: &UnixStream) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: filter.len().try_into().expect("a short filter"),
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the program points to as many statements as it says, which the kernel copies; it
    // changes none.
    let listener = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
            &raw const program,
        )
    };
    if listener < 0 {
        return Err(io::Error::last_os_error());
    }
    let listener = i32::try_from(listener).expect("a descriptor");
    // SAFETY: the kernel has just made it, for nobody else. It is closed on exec.
    let listener = unsafe { BorrowedFd::borrow_raw(listener) };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    let fds = [listener];
    if !message.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    let byte = [IoSlice::new(b"!")];
    sendmsg(socket, &byte, &mut message, SendFlags::empty())?;
    Ok(())
}

/// The listener's end.
pub struct Listener(OwnedFd);

impl Listener {
    /// Waits for the descriptor from a child; none if that ended before it was under the filter.
    pub fn receive(socket: &UnixStream) -> io::Result<Option<Self>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut message = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let into = &mut [IoSliceMut::new(&mut byte)];
        recvmsg(socket, into, &mut message, RecvFlags::CMSG_CLOEXEC)?;
        let fd = message.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        Ok(fd.map(Self))
    }

    /// The next call that somebody waits in; none once nobody is under the filter any more.
    pub fn next(&self) -> io::Result<Option<libc::seccomp_notif>> {
        loop {
            let mut fds = [PollFd::from_borrowed_fd(self.0.as_fd(), PollFlags::IN)];
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => continue,
                polled => polled?,
            };
            if !fds[0].revents().contains(PollFlags::IN) {
                return Ok(None);
            }
            // SAFETY: numbers only, for which zeros are right; the kernel demands them.
            let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
            // SAFETY: the kernel writes one such struct to where the pointer leads.
            let got = unsafe {
                libc::ioctl(
                    self.0.as_raw_fd(),
                    libc::SECCOMP_IOCTL_NOTIF_RECV,
                    &raw mut call,
                )
            };
            if got == 0 {
                return Ok(Some(call));
            }
            match io::Error::last_os_error() {
                // Killed in the meantime.
                error if error.raw_os_error() == Some(libc::ENOENT) => {}
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            }
        }
    }

    /// Lets the call be done.
    pub fn go_on(&self, id: u64) -> io::Result<()> {
        let flags = u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).expect("32 bits");
        self.answer(libc::seccomp_notif_resp {
            id,
            val: 0,
            error: 0,
            flags,
        })
    }

    /// Has the call fail, without being done.
    pub fn fail(&self, id: u64, errno: i32) -> io::Result<()> {
        self.answer(libc::seccomp_notif_resp {
            id,
            val: 0,
            error: -errno,
            flags: 0,
        })
    }

    fn answer(&self, mut answer: libc::seccomp_notif_resp) -> io::Result<()> {
        // SAFETY: the kernel reads one such struct from where the pointer leads.
        let done = unsafe {
            libc::ioctl(
                self.0.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_SEND,
                &raw mut answer,
            )
        };
        match io::Error::last_os_error() {
            _ if done == 0 => Ok(()),
            // Killed in the meantime, or a signal made it begin again.
            error if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            error => Err(error),
        }
    }
}

/// Makes the calling process another user's for good. For the time between fork and exec.
pub fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: these calls take numbers, and an empty list.
    let results = unsafe {
        [
            libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()),
            libc::syscall(libc::SYS_setgid, gid),
            libc::syscall(libc::SYS_setuid, uid),
        ]
    };
    match results {
        [0, 0, 0] => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
