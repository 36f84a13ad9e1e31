//! Who has a file locked, or is writing it.

use crate::backing::Stat;
use crate::in_flight::{ATTRIBUTE, InFlight};
use std::fmt;
use std::fs::File;
use std::path::Path;
use std::time::Duration;

/// A process that has a file locked, or is writing it.
#[derive(Clone, Debug, PartialEq)]
pub struct Holder {
    /// The process.
    pub pid: u32,
    /// Its name, as far as it could be told.
    pub program: Option<String>,
    /// For how long, where a mount tells.
    pub since: Option<Duration>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.program {
            Some(program) => write!(f, "{program} (pid {})", self.pid),
            None => write!(f, "pid {}", self.pid),
        }
    }
}

/// Who is writing a file of a latchfs mount: `None` if nobody is, or it is in no mount.
pub(super) fn writer(path: &Path) -> Option<Holder> {
    let mut value = [0; 1024];
    let length = rustix::fs::getxattr(path, ATTRIBUTE, &mut value).ok()?;
    let told: InFlight = serde_json::from_slice(value.get(..length)?).ok()?;
    Some(Holder {
        pid: told.pid,
        program: Some(told.program),
        since: Duration::try_from_secs_f64(told.seconds).ok(),
    })
}

/// Who holds the exclusive flock(2) of an open file that could not be locked. The kernel tells of
/// local file systems only.
pub(super) fn locker(file: &File) -> Option<Holder> {
    let stat = rustix::fs::fstat(file).ok()?;
    let table = std::fs::read_to_string("/proc/locks").ok()?;
    let pid = locker_in(&table, &stat)?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    Some(Holder {
        pid,
        program: name.ok().map(|name| name.trim_end().to_owned()),
        since: None,
    })
}

/// `1: FLOCK  ADVISORY  WRITE 1234 08:01:131 0 EOF` (proc_locks(5)).
fn locker_in(table: &str, file: &Stat) -> Option<u32> {
    let device = format!(
        "{:02x}:{:02x}",
        rustix::fs::major(file.st_dev),
        rustix::fs::minor(file.st_dev)
    );
    let mut found = None;
    for line in table.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, "WRITE", pid, whose, ..] = words.as_slice() else {
            continue;
        };
        let Some((on, ino)) = whose.rsplit_once(':') else {
            continue;
        };
        if ino.parse() != Ok(file.st_ino) {
            continue;
        }
        let pid = pid.parse().ok().filter(|pid| *pid > 0);
        if on == device {
            return pid;
        }
        // Btrfs and overlays tell another device number here than by stat(2).
        found = found.or(pid);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_locks_is_read() {
        let mut stat = rustix::fs::stat("/").expect("the root");
        (stat.st_dev, stat.st_ino) = (rustix::fs::makedev(8, 0x1f), 131);
        let table = "1: POSIX  ADVISORY  WRITE 11 08:1f:131 0 EOF\n\
                     2: FLOCK  ADVISORY  READ  12 08:1f:131 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 13 08:1f:131 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 14 08:01:131 0 EOF\n\
                     5: FLOCK  ADVISORY  WRITE 15 08:1f:132 0 EOF\n\
                     nonsense\n";
        assert_eq!(locker_in(table, &stat), Some(14));
        let table = format!("{table}6: FLOCK  ADVISORY  WRITE 16 08:1f:131 0 EOF\n");
        assert_eq!(locker_in(&table, &stat), Some(16));
        stat.st_ino = 9;
        assert_eq!(locker_in(&table, &stat), None);
    }

    #[test]
    fn a_file_outside_of_a_mount_is_in_flight_nowhere() {
        assert_eq!(writer(Path::new("/proc/self/status")), None);
    }
}
