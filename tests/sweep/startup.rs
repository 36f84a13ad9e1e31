//! A daemon that is killed before it serves, or when it is asked to end.

use crate::common::syscalls::Supervised;
use crate::common::{User, options};
use crate::points::{Swept, Watch, sweep};
use crate::report;
use std::fs;

#[test]
fn a_daemon_killed_at_any_point_of_its_start_or_end_is_dead_and_the_next_one_serves() {
    let mut swept = Swept::default();
    for user in [User::Root, User::Ordinary] {
        let what = format!("start and end, {user:?}");
        swept.add(sweep(&what, |target| {
            let mount = options().user(user).unmounted();
            fs::write(mount.behind("f"), "old").expect("a file");
            let watch = Watch::new(target);
            let mut daemon = Supervised::start(mount, {
                let watch = watch.clone();
                move |call| watch.decide(call)
            });
            daemon.is_served();
            daemon.process().terminate();
            // It ends: no thread of its waits for an answer that only it could give.
            let (mount, _) = daemon.wait();
            let run = watch.run();
            let started = mount.try_start();
            let verdict = match started.status.success() {
                true if mount.read("f") == "old" => Ok(()),
                true => Err("another content".into()),
                false => Err(format!("{started:?}")),
            };
            if started.status.success() {
                mount.unmount();
            }
            (run, verdict)
        }));
    }
    let test = "a_daemon_killed_at_any_point_of_its_start";
    let expected = ["mkdirat", "flock", "openat", "writev"];
    report("daemon killed, start and end", test, &swept, &expected);
}
