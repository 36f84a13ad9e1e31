//! What is known of system calls: which can't matter to a disk, and where the others have their
//! descriptors and paths.

use libc::c_long;

/// Calls that neither change nor reveal anything on a disk. Every other one is stopped at, also one
/// that nobody has heard of: this list is what stands in the code, so that a call that is new in
/// latchfs needs nobody to remember it here.
pub const EXCLUDED: &[c_long] = &[
    // Time and waiting.
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_restart_syscall,
    // Memory; but not msync.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_membarrier,
    // Signals.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_kill,
    libc::SYS_tgkill,
    libc::SYS_pidfd_send_signal,
    // Processes and threads, and who they are.
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_pidfd_open,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setgroups,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setsid,
    libc::SYS_setpgid,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_umask,
    libc::SYS_unshare,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_getrusage,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_getrandom,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    // Descriptors themselves: what they stand for stays as it is.
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_pipe2,
    libc::SYS_eventfd2,
    // Sockets. (A child sends the descriptor that it is watched through over one.)
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pipe,
];

/// Where a call has a file.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// A descriptor.
    Fd(usize),
    /// A path.
    Path(usize),
    /// A directory's descriptor, and a path from there (the next argument).
    At(usize),
}

use Arg::{At, Fd, Path};

macro_rules! known {
    ($($(#[$meta:meta])? $number:ident: $($arg:expr),*;)*) => {
        &[$($(#[$meta])? (libc::$number, stringify!($number), &[$($arg),*]),)*]
    };
}

/// The calls whose arguments are known, by number and name (with `SYS_` before it).
const KNOWN: &[(c_long, &str, &[Arg])] = known! {
    SYS_read: Fd(0);
    SYS_readv: Fd(0);
    SYS_pread64: Fd(0);
    SYS_preadv: Fd(0);
    SYS_preadv2: Fd(0);
    SYS_write: Fd(0);
    SYS_writev: Fd(0);
    SYS_pwrite64: Fd(0);
    SYS_pwritev: Fd(0);
    SYS_pwritev2: Fd(0);
    SYS_sendfile: Fd(0), Fd(1);
    SYS_copy_file_range: Fd(0), Fd(2);
    SYS_splice: Fd(0), Fd(2);
    SYS_vmsplice: Fd(0);
    SYS_tee: Fd(0), Fd(1);
    SYS_lseek: Fd(0);
    SYS_ioctl: Fd(0);
    SYS_flock: Fd(0);
    SYS_fsync: Fd(0);
    SYS_fdatasync: Fd(0);
    SYS_syncfs: Fd(0);
    SYS_sync_file_range: Fd(0);
    SYS_ftruncate: Fd(0);
    SYS_fallocate: Fd(0);
    SYS_fadvise64: Fd(0);
    SYS_readahead: Fd(0);
    SYS_fstat: Fd(0);
    SYS_fstatfs: Fd(0);
    SYS_fchmod: Fd(0);
    SYS_fchown: Fd(0);
    SYS_fchdir: Fd(0);
    SYS_fsetxattr: Fd(0);
    SYS_fgetxattr: Fd(0);
    SYS_flistxattr: Fd(0);
    SYS_fremovexattr: Fd(0);
    SYS_getdents64: Fd(0);
    SYS_statfs: Path(0);
    SYS_truncate: Path(0);
    SYS_chdir: Path(0);
    SYS_setxattr: Path(0);
    SYS_getxattr: Path(0);
    SYS_listxattr: Path(0);
    SYS_removexattr: Path(0);
    SYS_lsetxattr: Path(0);
    SYS_lgetxattr: Path(0);
    SYS_llistxattr: Path(0);
    SYS_lremovexattr: Path(0);
    SYS_execve: Path(0);
    SYS_mount: Path(0), Path(1);
    SYS_umount2: Path(0);
    SYS_openat: At(0);
    SYS_openat2: At(0);
    SYS_newfstatat: At(0);
    SYS_statx: At(0);
    SYS_faccessat: At(0);
    SYS_faccessat2: At(0);
    SYS_readlinkat: At(0);
    SYS_mkdirat: At(0);
    SYS_mknodat: At(0);
    SYS_unlinkat: At(0);
    SYS_symlinkat: At(1);
    SYS_linkat: At(0), At(2);
    SYS_renameat: At(0), At(2);
    SYS_renameat2: At(0), At(2);
    SYS_fchmodat: At(0);
    SYS_fchmodat2: At(0);
    SYS_fchownat: At(0);
    SYS_utimensat: At(0);
    SYS_name_to_handle_at: At(0);
    SYS_getcwd: ;
    SYS_msync: ;
    SYS_sync: ;
    #[cfg(target_arch = "x86_64")]
    SYS_open: Path(0);
    #[cfg(target_arch = "x86_64")]
    SYS_access: Path(0);
    #[cfg(target_arch = "x86_64")]
    SYS_stat: Path(0);
    #[cfg(target_arch = "x86_64")]
    SYS_lstat: Path(0);
    #[cfg(target_arch = "x86_64")]
    SYS_readlink: Path(0);
    #[cfg(target_arch = "x86_64")]
    SYS_mkdir: Path(0);
    #[cfg(target_arch = "x86_64")]
    SYS_rmdir: Path(0);
    #[cfg(target_arch = "x86_64")]
    SYS_unlink: Path(0);
    #[cfg(target_arch = "x86_64")]
    SYS_rename: Path(0), Path(1);
    #[cfg(target_arch = "x86_64")]
    SYS_link: Path(0), Path(1);
    #[cfg(target_arch = "x86_64")]
    SYS_chmod: Path(0);
    #[cfg(target_arch = "x86_64")]
    SYS_chown: Path(0);
};

/// A call's name and where its files are, if it is a known one.
pub fn known(number: c_long) -> Option<(&'static str, &'static [Arg])> {
    let mut calls = KNOWN.iter();
    let (_, name, args) = calls.find(|(known, ..)| *known == number)?;
    Some((&name["SYS_".len()..], args))
}
