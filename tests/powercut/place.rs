//! Where a run happens: a directory, and a mount namespace of its own. All that is mounted in it goes
//! with the process, however that ends, and the loop devices with it.

use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The directory of a run.
pub struct Place {
    home: tempfile::TempDir,
}

impl Place {
    /// Makes it, and takes this thread out of the machine's mount namespace; the threads and processes
    /// that it starts come with it.
    pub fn new() -> Self {
        // SAFETY: no descriptors are unshared.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.expect("unshare: are you root?");
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).expect("a namespace of our own");
        let builder = tempfile::Builder::new()
            .prefix("latchfs-powercut-")
            .tempdir();
        let place = Self {
            home: builder.expect("a temporary directory"),
        };
        place.set_boot("before");
        mount_bind(place.file("boot_id"), BOOT_ID).expect("a boot id of our own");
        place
    }

    /// A directory in it, made where it is missing.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.file(name);
        fs::create_dir_all(&path).expect("mkdir");
        path
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// From here on the machine has been started anew: recovery takes a power cut for something else
    /// than the death of a daemon.
    pub fn restart(&self) {
        self.set_boot("after");
    }

    fn set_boot(&self, id: &str) {
        fs::write(self.file("boot_id"), format!("{id}\n")).expect("the boot id");
    }
}

/// A program that dies with the thread that starts it.
pub fn child(program: &str) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    // SAFETY: one system call.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    command
}
