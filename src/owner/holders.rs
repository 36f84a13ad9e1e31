//! Who holds a file: descriptors and mappings.

use super::files::{self, fields, number};
use super::{Search, status};
use rustix::fs::{AtFlags, CWD, statat};
use rustix::io::{Errno, read, retry_on_intr};
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};

/// Whether a process holds a descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Holds {
    Yes,
    No,
    /// It has no descriptors at all. It is exiting, or gone, or of somebody else's.
    Nothing,
}

/// How a descriptor has to be open to count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    Write,
    /// To write, but without `O_APPEND`.
    WriteAnywhere,
    Any,
}

/// See [`super::Processes::holds_open`].
pub(super) fn holds_at_all(process: u32, inode: u64, device: Option<u64>) -> Option<bool> {
    match holds(process, inode, device, Access::Any) {
        Holds::Yes => Some(true),
        Holds::No => Some(false),
        Holds::Nothing => match files::open(format!("/proc/{process}/fdinfo")) {
            Err(Errno::ACCESS | Errno::PERM) => {
                let alive = status::state(process) == status::State::Alive;
                (!alive).then_some(false)
            }
            _ => Some(false),
        },
    }
}

/// Looks for a descriptor of an inode number.
pub(super) fn holds(process: u32, inode: u64, device: Option<u64>, access: Access) -> Holds {
    let mut holds = Holds::Nothing;
    if let Ok(fdinfo) = files::open(format!("/proc/{process}/fdinfo")) {
        holds = holds_in(process, fdinfo, inode, device, access);
    }
    if holds == Holds::Nothing && has_siblings(process) {
        // The first thread may have ended before the others, who hold on to the descriptors.
        let sibling = status::living_thread(process).filter(|&(tid, _)| tid != process);
        if let Some((tid, _)) = sibling {
            if let Ok(fdinfo) = files::open(format!("/proc/{process}/task/{tid}/fdinfo")) {
                holds = holds_in(process, fdinfo, inode, device, access);
            }
        }
    }
    holds
}

/// Whether a process has more than one thread, dead ones included that are not reaped.
fn has_siblings(process: u32) -> bool {
    // An empty directory has two links; here each thread adds one.
    statat(CWD, format!("/proc/{process}/task"), AtFlags::empty())
        .is_ok_and(|stat| stat.st_nlink > 3)
}

fn holds_in(
    process: u32,
    fdinfo: OwnedFd,
    inode: u64,
    device: Option<u64>,
    access: Access,
) -> Holds {
    let mut any = false;
    let found = files::find_number(&fdinfo, |fd| {
        any = true;
        let mount = is_open(&fdinfo, fd, inode, access)?;
        device
            .is_none_or(|device| is_on(process, mount, device))
            .then_some(())
    });
    match (found, any) {
        (Ok(Some(())), _) => Holds::Yes,
        (_, true) => Holds::No,
        (_, false) => Holds::Nothing,
    }
}

/// If a descriptor is open on a file of that inode number, the mount it is of.
fn is_open(fdinfo: &OwnedFd, fd: u32, inode: u64, wanted: Access) -> Option<u64> {
    let mut name = [0; 10];
    let file = files::open_at(fdinfo.as_fd(), decimal(fd, &mut name)).ok()?;
    // The lines of interest come first and are shorter than this, whatever follows.
    let mut text = [0; 256];
    let length = retry_on_intr(|| read(&file, &mut text)).ok()?;
    describes(&text[..length], inode, wanted)
}

/// Is a mount of a process (by the id in `fdinfo`) of the file system with that device number? Yes
/// if that can't be told: a mount that was detached is in no table any more.
fn is_on(process: u32, mount: u64, device: u64) -> bool {
    let Ok(table) = files::slurp(format_args!("/proc/{process}/mountinfo")) else {
        return true;
    };
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let wanted = format!("{major}:{minor}");
    let line = table
        .split(|&byte| byte == b'\n')
        .find(|line| number::<u64>(line, 10) == Some(mount));
    // proc_pid_mountinfo(5): mount id, parent id, major:minor, ...
    line.and_then(|line| line.split(|&byte| byte == b' ').nth(2))
        .is_none_or(|found| found == wanted.as_bytes())
}

/// Writes a number without an allocation.
fn decimal(mut number: u32, digits: &mut [u8; 10]) -> &[u8] {
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &digits[start..];
        }
    }
}

/// Reads the text of `/proc/PID/fdinfo/N`; see proc_pid_fdinfo(5).
fn describes(text: &[u8], inode: u64, wanted: Access) -> Option<u64> {
    let (mut flags, mut ino, mut mount) = (None, None, None);
    for (key, value) in fields(text) {
        match key {
            b"flags" => flags = number::<u64>(value, 8),
            b"mnt_id" => mount = number::<u64>(value, 10),
            b"ino" => {
                ino = number::<u64>(value, 10);
                break;
            }
            _ => {}
        }
    }
    let flags = flags?;
    let access = flags & libc::O_ACCMODE as u64;
    let writes = access != libc::O_RDONLY as u64;
    let fits = match wanted {
        Access::Any => true,
        Access::Write => writes,
        Access::WriteAnywhere => writes && flags & libc::O_APPEND as u64 == 0,
    };
    let counts = fits && flags & libc::O_PATH as u64 == 0;
    mount.filter(|_| ino == Some(inode) && counts)
}

/// The descriptors that a search is for.
fn wanted(search: &Search) -> Access {
    match search.no_append {
        true => Access::WriteAnywhere,
        false => Access::Write,
    }
}

/// See [`super::Processes::anyone_holds`].
pub(super) fn anyone_holds(search: &Search) -> bool {
    match holds(search.opener, search.inode, search.device, wanted(search)) {
        Holds::Yes => true,
        // An exiting process shows no descriptors, but closes them before it loses its children.
        held if !search.shared && (held == Holds::No || status::is_parent(search.opener)) => {
            a_child_holds(search).unwrap_or_else(|| any_process_holds(search))
        }
        Holds::No | Holds::Nothing => any_process_holds(search),
    }
}

fn any_process_holds(search: &Search) -> bool {
    let myself = std::process::id();
    let found = find_process(|process| {
        let other = process != myself && process != search.opener;
        (other && holds(process, search.inode, search.device, wanted(search)) == Holds::Yes)
            .then_some(())
    });
    found.is_some()
}

fn find_process<T>(visit: impl FnMut(u32) -> Option<T>) -> Option<T> {
    let proc = files::open("/proc").ok()?;
    files::find_number(proc, visit).ok()?
}

/// Whether a child of the opener holds the file. None if its children can not be told, or one of
/// them is exiting: it may have handed the descriptor on to a child of its own before.
fn a_child_holds(search: &Search) -> Option<bool> {
    let mut exiting = false;
    for child in children(search.opener)? {
        match holds(child, search.inode, search.device, wanted(search)) {
            Holds::Yes => return Some(true),
            Holds::No => {}
            Holds::Nothing => exiting = true,
        }
    }
    (!exiting).then_some(false)
}

/// The living children of a process, in no particular order; those that it makes or that end
/// meanwhile may be missing. None if they can not be told.
fn children(process: u32) -> Option<Vec<u32>> {
    let directory = format!("/proc/{process}");
    let mut children = read_children(&directory).ok()?;
    // The kernel may skip a child when the one before it in the list is reaped during the read.
    // Two readings that agree have been spared that, but for a coincidence.
    for _ in 0..4 {
        if children.is_empty() {
            return Some(children);
        }
        let again = read_children(&directory).ok()?;
        if again == children {
            return Some(children);
        }
        children = again;
    }
    None
}

/// Reads `task/TID/children` of each thread in the `/proc/PID` that `directory` is.
///
/// Fails with ENOENT if the kernel was built without it (`CONFIG_PROC_CHILDREN`), and if a
/// thread ends meanwhile, because its children become those of another thread, which may have
/// been read already.
fn read_children(directory: &str) -> Result<Vec<u32>, Errno> {
    let tasks = files::open(format!("{directory}/task"))?;
    let mut text = Vec::new();
    let failed = files::find_number(&tasks, |tid| {
        files::open_at(tasks.as_fd(), &*format!("{tid}/children"))
            .and_then(|file| files::read_to_end(file, &mut text))
            .err()
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    Ok(text
        .split(u8::is_ascii_whitespace)
        .filter_map(|word| number(word, 10))
        .collect())
}

/// See [`super::Processes::maps`].
pub(super) fn maps(process: u32, inode: u64) -> bool {
    let Some((tid, status)) = status::living_thread(process) else {
        return false;
    };
    if status.in_exec() {
        return false;
    }
    let Ok(file) = files::open(format!("/proc/{tid}/maps")) else {
        return false;
    };
    let mut maps = BufReader::new(std::fs::File::from(file));
    let mut line = Vec::new();
    while maps
        .read_until(b'\n', &mut line)
        .is_ok_and(|length| length > 0)
    {
        if describes_a_shared_writable(&line, inode) {
            return true;
        }
        line.clear();
    }
    false
}

/// Reads a line of `/proc/PID/maps`: address, permissions, offset, device, inode, path; see
/// proc_pid_maps(5).
fn describes_a_shared_writable(line: &[u8], inode: u64) -> bool {
    let mut words = line
        .split(u8::is_ascii_whitespace)
        .filter(|w| !w.is_empty());
    let permissions = words.nth(1).unwrap_or_default();
    permissions.contains(&b'w')
        && permissions.contains(&b's')
        && words.nth(2).and_then(|word| number(word, 10)) == Some(inode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_counts_if_inode_and_access_mode_fit() {
        let fdinfo = |flags: &str| format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t31\nino:\t42\n");
        let look = |text: &str, inode, access| describes(text.as_bytes(), inode, access);
        for (flags, writer, open) in [
            ("0100000", false, true),
            ("0100001", true, true),
            ("0100002", true, true),
            ("02100001", true, true),
            ("010000000", false, false),
            ("010000002", false, false),
        ] {
            let text = fdinfo(flags);
            let (writes, opens) = (writer.then_some(31), open.then_some(31));
            assert_eq!(look(&text, 42, Access::Write), writes, "{flags}");
            assert_eq!(look(&text, 42, Access::WriteAnywhere), writes, "{flags}");
            assert_eq!(look(&text, 42, Access::Any), opens, "{flags}");
            assert_eq!(look(&text, 4, Access::Any), None, "{flags}");
        }
        let appends = fdinfo("0102001");
        assert_eq!(look(&appends, 42, Access::Write), Some(31));
        assert_eq!(look(&appends, 42, Access::WriteAnywhere), None);
        assert_eq!(look("", 42, Access::Any), None);
        assert_eq!(look("ino:\t42\n", 42, Access::Any), None);
    }

    #[test]
    fn a_mapping_counts_if_it_is_shared_and_writable() {
        let line = |perms: &str| format!("7f0-7f1 {perms} 00001000 fe:00 42   /a file w s 7\n");
        for (perms, counts) in [
            ("rw-s", true),
            ("-w-s", true),
            ("rw-p", false),
            ("r--s", false),
            ("r--p", false),
        ] {
            assert_eq!(
                describes_a_shared_writable(line(perms).as_bytes(), 42),
                counts
            );
            assert!(!describes_a_shared_writable(line(perms).as_bytes(), 7));
        }
        assert!(!describes_a_shared_writable(b"\n", 0));
    }

    #[test]
    fn children_are_those_of_all_threads() -> std::io::Result<()> {
        let process = tempfile::tempdir()?;
        for (tid, children) in [("10", "11 12 "), ("13", ""), ("14", "4000000 ")] {
            let task = process.path().join("task").join(tid);
            std::fs::create_dir_all(&task)?;
            std::fs::write(task.join("children"), children)?;
        }
        let mut children = read_children(&process.path().to_string_lossy())?;
        children.sort_unstable();
        assert_eq!(children, [11, 12, 4_000_000]);
        Ok(())
    }

    #[test]
    fn the_children_of_a_process_are_known_if_the_kernel_lists_them() -> std::io::Result<()> {
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "cat; :"])
            .stdin(std::process::Stdio::piped())
            .spawn()?;
        let listed = std::path::Path::new("/proc/thread-self/children").exists();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let mut found = None;
        while listed && found.is_none() && std::time::Instant::now() < end {
            found = children(shell.id()).and_then(|children| children.first().copied());
        }
        let parent = found
            .and_then(status::read)
            .map(|child| child.into_thread(0).parent);
        let untold = children(shell.id()).is_none();
        drop(shell.stdin.take());
        shell.wait()?;
        assert_eq!(parent, listed.then_some(shell.id()));
        assert_eq!(untold, !listed);
        Ok(())
    }

    #[test]
    fn numbers_are_written_in_decimal() {
        for number in [0, 9, 10, 1234, u32::MAX] {
            assert_eq!(decimal(number, &mut [0; 10]), number.to_string().as_bytes());
        }
    }
}
