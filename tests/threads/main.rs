//! The engine's threads under shuttle: many schedules of a few threads that open, wait, write, time out,
//! are interrupted. Without a kernel, with real files. Build: `cargo test --features shuttle --test threads`.
//! `LATCHFS_SCHEDULES=N` tries N schedules of each kind.

#[path = "../common/reliability.rs"]
mod reliability;
mod scene;
#[path = "../common/scripted.rs"]
mod scripted;

use latchfs::backing::Errno;
use latchfs::sync::faults::{self, Fault};
use reliability::Row;
use scene::{APPEND, READ, Scene, UPDATE, WRITE};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, MaxSteps, Runner, thread};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const NEVER: Duration = Duration::from_secs(3600);

fn config() -> Config {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    config.max_steps = MaxSteps::FailAfter(1_000_000);
    config
}

fn schedules() -> usize {
    let wanted = std::env::var("LATCHFS_SCHEDULES").ok();
    wanted.map_or(500, |n| n.parse().expect("a number"))
}

/// Tries schedules of `test`, half of them chosen at random, half with few changes of the thread.
fn explore(what: &str, test: fn()) {
    let schedules = schedules();
    let done = std::sync::Arc::new(AtomicU64::new(0));
    let run = |scheduler: Box<dyn Scheduler + Send>| {
        let done = done.clone();
        Runner::new(scheduler, config()).run(move || {
            test();
            done.fetch_add(1, Ordering::Relaxed);
        })
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        run(Box::new(RandomScheduler::new(schedules / 2)));
        run(Box::new(PctScheduler::new(3, schedules / 2)));
    }));
    Row {
        fault: &format!("unlucky schedules of threads: {what}"),
        injected: "the engine's locks, atomics and threads under shuttle, random and PCT",
        cases: done.load(Ordering::Relaxed) + u64::from(outcome.is_err()),
        violations: outcome.is_err().into(),
        command: "scripts/test threads",
    }
    .report();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Three count in one file, a fourth reads it.
fn counting() {
    let scene = Scene::new(NEVER);
    scene.put("f", "0");
    let writers: Vec<_> = (1..=3)
        .map(|tid| {
            let scene = scene.clone();
            thread::spawn(move || {
                let file = scene.open(tid, "f", WRITE).expect("nobody is killed");
                scene.enter("f");
                let count: u32 = scene.read(&file).parse().expect("a number");
                scene.write(tid, &file, &(count + 1).to_string());
                scene.leave("f");
                assert_eq!(scene.close(tid, file), Ok(()));
            })
        })
        .collect();
    let reader = {
        let scene = scene.clone();
        thread::spawn(move || {
            let mut last = 0;
            for _ in 0..2 {
                let file = scene.open(9, "f", READ).expect("it is there");
                let count = scene.read(&file).parse().expect("a whole version");
                scene.release(9, file);
                assert!(last <= count, "{count} after {last}");
                last = count;
            }
        })
    };
    writers
        .into_iter()
        .for_each(|t| t.join().expect("a writer"));
    reader.join().expect("a reader");
    scene.check_order("f");
    scene.end();
    assert_eq!(scene.behind("f"), "3");
}

/// One writes, others wait for it and are timed out, interrupted, or served.
fn leaving() {
    let scene = Scene::new(Duration::ZERO);
    scene.put("f", "old");
    let watcher = scene.watch();
    let threads: Vec<_> = (1..=4)
        .map(|tid| {
            let scene = scene.clone();
            thread::spawn(move || {
                let how = if tid == 3 { READ } else { UPDATE };
                if tid == 4 {
                    scene.interrupt(4);
                }
                match scene.open(tid, "f", how) {
                    Ok(file) if tid == 3 => {
                        let seen = scene.read(&file);
                        assert!(["old", "1", "2", "4"].contains(&&*seen), "{seen:?}");
                        scene.release(tid, file);
                    }
                    Ok(file) => {
                        scene.enter("f");
                        scene.write(tid, &file, &tid.to_string());
                        scene.leave("f");
                        assert_eq!(scene.close(tid, file), Ok(()));
                    }
                    Err(errno) => {
                        let allowed = match tid {
                            4 => [Errno::TIMEDOUT, Errno::INTR],
                            _ => [Errno::TIMEDOUT; 2],
                        };
                        assert!(allowed.contains(&errno), "{tid}: {errno}");
                    }
                }
            })
        })
        .collect();
    threads
        .into_iter()
        .for_each(|t| t.join().expect("a thread"));
    scene.stop(watcher);
    scene.end();
    assert!(["1", "2", "4"].contains(&&*scene.behind("f")));
}

/// Two write a file each and want that of the other; a third wants both, one by one.
fn circle() {
    let scene = Scene::new(NEVER);
    scene.put("f", "");
    scene.put("g", "");
    let refused = std::sync::Arc::new(AtomicU64::new(0));
    let both = std::sync::Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = [(1, "f", "g"), (2, "g", "f")]
        .into_iter()
        .map(|(tid, own, other)| {
            let (scene, refused, both) = (scene.clone(), refused.clone(), both.clone());
            thread::spawn(move || {
                let mine = scene
                    .open(tid, own, UPDATE)
                    .expect("it waits for one who waits not");
                match scene.open(tid, other, UPDATE) {
                    Ok(file) => {
                        both.fetch_add(1, Ordering::Relaxed);
                        assert_eq!(scene.close(tid, file), Ok(()));
                    }
                    Err(errno) => {
                        assert_eq!(errno, Errno::DEADLK);
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                }
                assert_eq!(scene.close(tid, mine), Ok(()));
            })
        })
        .collect();
    let third = {
        let scene = scene.clone();
        thread::spawn(move || {
            for name in ["f", "g"] {
                let file = scene
                    .open(3, name, UPDATE)
                    .expect("it holds nothing meanwhile");
                assert_eq!(scene.close(3, file), Ok(()));
            }
        })
    };
    threads
        .into_iter()
        .for_each(|t| t.join().expect("a thread"));
    third.join().expect("the third");
    assert!(
        refused.load(Ordering::Relaxed) <= 1,
        "one of a circle goes on"
    );
    assert!(both.load(Ordering::Relaxed) >= 1);
    scene.end();
}

/// A file is written and synced, while its name is taken away and made again, and others wait for it.
fn names() {
    let scene = Scene::new(NEVER);
    scene.put("f", "old");
    let file = scene.open(1, "f", WRITE).expect("it is there");
    let writer = {
        let scene = scene.clone();
        thread::spawn(move || {
            scene.write(1, &file, "one");
            assert_eq!(scene.sync(&file), Ok(()));
            scene.write(1, &file, "two");
            assert_eq!(scene.close(1, file), Ok(()));
        })
    };
    let mover = {
        let scene = scene.clone();
        thread::spawn(move || {
            scene.rename(2, "f", "g").expect("it is there");
            scene.unlink(2, "g").expect("it is there");
        })
    };
    let threads: Vec<_> = [(3, READ), (4, UPDATE)]
        .into_iter()
        .map(|(tid, how)| {
            let scene = scene.clone();
            thread::spawn(move || match scene.open(tid, "f", how) {
                Ok(file) if how == READ => {
                    let seen = scene.read(&file);
                    // The other empties it.
                    assert!(["old", "one", "two", ""].contains(&&*seen), "{seen:?}");
                    scene.release(tid, file);
                }
                Ok(file) => assert_eq!(scene.close(tid, file), Ok(())),
                Err(errno) => assert!([Errno::NOENT, Errno::INTR].contains(&errno), "{errno}"),
            })
        })
        .collect();
    writer.join().expect("the writer");
    mover.join().expect("the mover");
    threads
        .into_iter()
        .for_each(|t| t.join().expect("a thread"));
    scene.end();
    assert_eq!(scene.names(), [""; 0]);
}

/// A file with two names is written by one of them, which another file takes meanwhile; a third looks at
/// the other name.
fn links() {
    let scene = Scene::new(NEVER);
    scene.put("f", "old");
    scene.put("d/g", "another");
    scene.put_link("f", "d/f");
    for name in ["f", "d/f", "d/g"] {
        scene.look(9, name).expect("it is there");
    }
    let file = scene.open(1, "d/f", WRITE).expect("it is there");
    let writer = {
        let scene = scene.clone();
        thread::spawn(move || {
            scene.write(1, &file, "new");
            assert_eq!(scene.close(1, file), Ok(()));
        })
    };
    let mover = {
        let scene = scene.clone();
        thread::spawn(move || scene.rename(2, "d/g", "d/f").expect("it is there"))
    };
    let looker = {
        let scene = scene.clone();
        thread::spawn(move || {
            scene.look(3, "f").expect("it is there");
        })
    };
    writer.join().expect("the writer");
    mover.join().expect("the mover");
    looker.join().expect("who looks");
    scene.end();
    assert_eq!(scene.behind("f"), "new");
    assert_eq!(scene.behind("d/f"), "another");
}

/// Another file takes the name of one that somebody is about to write.
fn replacing() {
    let scene = Scene::new(NEVER);
    scene.put("f", "old");
    scene.put("g", "another");
    let writer = {
        let scene = scene.clone();
        thread::spawn(move || {
            let file = scene.open(1, "f", UPDATE).expect("there is always one");
            scene.write(1, &file, "new");
            assert_eq!(scene.close(1, file), Ok(()));
        })
    };
    let mover = {
        let scene = scene.clone();
        thread::spawn(move || scene.rename(2, "g", "f").expect("it is there"))
    };
    writer.join().expect("the writer");
    mover.join().expect("the mover");
    scene.end();
    assert!(["another", "new"].contains(&&*scene.behind("f")));
}

/// Two append to a file that a third updates, and a fourth follows.
fn appending() {
    let scene = Scene::new(NEVER);
    scene.put("f", "0");
    let appenders: Vec<_> = (1..=2)
        .map(|tid| {
            let scene = scene.clone();
            thread::spawn(move || {
                let file = scene.open(tid, "f", APPEND).expect("it is there");
                for _ in 0..2 {
                    scene.append(tid, &file, &tid.to_string());
                }
                assert_eq!(scene.close(tid, file), Ok(()));
            })
        })
        .collect();
    let writer = {
        let scene = scene.clone();
        thread::spawn(move || {
            let file = scene.open(3, "f", WRITE).expect("it is there");
            scene.write(3, &file, "3");
            assert_eq!(scene.close(3, file), Ok(()));
        })
    };
    appenders
        .into_iter()
        .for_each(|t| t.join().expect("an appender"));
    writer.join().expect("the writer");
    scene.end();
    let text = scene.behind("f");
    let count = |digit| text.matches(digit).count();
    assert_eq!((&text[..1], count('1'), count('2')), ("3", 2, 2), "{text}");
}

#[test]
fn writers_take_turns_in_the_order_they_came_whatever_the_schedule() {
    explore("writers of one file take turns", counting);
}

#[test]
fn every_waiter_ends_by_its_turn_its_time_or_a_signal_whatever_the_schedule() {
    explore("waiters time out and are interrupted", leaving);
}

#[test]
fn one_of_a_circle_is_refused_and_nobody_else_whatever_the_schedule() {
    explore("circles of waits", circle);
}

#[test]
fn a_file_that_loses_its_name_while_it_is_written_stops_nobody_whatever_the_schedule() {
    explore("names are taken away", names);
}

#[test]
fn a_hard_linked_file_that_loses_a_name_is_written_by_the_other_whatever_the_schedule() {
    explore("a hard link is taken away", links);
}

#[test]
fn an_open_to_write_succeeds_while_another_file_takes_the_name_whatever_the_schedule() {
    explore("a file is replaced while it is opened", replacing);
}

#[test]
fn records_get_in_before_and_after_an_update_whatever_the_schedule() {
    explore("records and an update", appending);
}

/// Does the search find that `fault` stops a thread for good, or spoils what it does?
fn is_noticed(fault: Option<Fault>, test: fn()) -> bool {
    faults::set(fault);
    let runner = Runner::new(RandomScheduler::new(100), config());
    let outcome = catch_unwind(AssertUnwindSafe(|| runner.run(test)));
    faults::set(None);
    outcome.is_err()
}

#[test]
fn lost_notifications_lost_work_and_a_lock_given_back_too_early_are_noticed() {
    assert!(is_noticed(Some(Fault::Notifications), || {
        let scene = Scene::new(NEVER);
        scene.put("f", "old");
        let file = scene.open(1, "f", WRITE).expect("it is there");
        scene.write(1, &file, "new");
        // Committed by a thread of the pool, for which end() waits.
        scene.release(1, file);
        scene.end();
    }));
    assert!(is_noticed(Some(Fault::Tasks), counting));
    assert!(is_noticed(Some(Fault::Tasks), leaving));
    assert!(is_noticed(None, || {
        // One that asks whether the file is free, and opens it afterwards: its lock is given back in
        // between.
        let scene = Scene::new(NEVER);
        let threads: Vec<_> = (1..=2)
            .map(|_| {
                let scene = scene.clone();
                thread::spawn(move || {
                    if scene.is_free("f") {
                        thread::yield_now();
                        scene.enter("f");
                        thread::yield_now();
                        scene.leave("f");
                    }
                })
            })
            .collect();
        threads
            .into_iter()
            .for_each(|t| t.join().expect("a thread"));
    }));
}
