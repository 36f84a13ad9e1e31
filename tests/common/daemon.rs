//! What the daemon holds and uses, as `/proc` tells.

use super::{DEADLINE, Mount};
use std::fs;
use std::time::{Duration, Instant};

impl Mount {
    /// How many descriptors the daemon has open.
    pub fn descriptors(&self) -> usize {
        let fds = fs::read_dir(format!("/proc/{}/fd", self.daemon()));
        fds.expect("its descriptors").count()
    }

    /// Waits until the daemon has no more descriptors open than so many.
    #[track_caller]
    pub fn wait_until_descriptors_are_back(&self, base: usize) {
        let end = Instant::now() + DEADLINE;
        while self.descriptors() > base {
            if Instant::now() > end {
                let fds = fs::read_dir(format!("/proc/{}/fd", self.daemon())).expect("its fds");
                let open: Vec<_> = fds.flatten().map(|fd| fs::read_link(fd.path())).collect();
                panic!("more than {base} descriptors: {open:?}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// KiB of memory of the daemon.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.daemon()));
        let status = status.expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.expect("a number").parse().expect("a number")
    }

    /// How long the daemon has had a processor so far.
    pub fn processor_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.daemon())).expect("its stat");
        // proc_pid_stat(5): the name is in brackets, utime and stime are fields 14 and 15.
        let fields = stat.rsplit(')').next().expect("fields").split_whitespace();
        let ticks: u64 = fields
            .skip(11)
            .take(2)
            .map(|ticks| ticks.parse::<u64>().expect("ticks"))
            .sum();
        Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
    }
}
