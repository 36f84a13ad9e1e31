//! Random sequences of requests.
//!
//! `PROPTEST_CASES` says how many (64 if it does not).

use crate::kernel::Who;
use crate::ops::{Step, step};
use crate::player::Player;
use crate::scene::{Asked, Scene, Scripted, one_at_a_time};
use fuser::SessionACL;
use latchfs::config::Readers;
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestError, TestRunner};

/// Threads that there are not (no kernel gives numbers so high).
const NOWHERE: u32 = 4_200_000;

fn cases() -> u32 {
    let text = std::env::var("PROPTEST_CASES").ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(64)
}

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config {
        cases,
        max_shrink_iters: 2000,
        max_shrink_time: 60_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..Config::default()
    })
}

fn who(tid: u32, uid: u32) -> Who {
    Who { uid, gid: uid, tid }
}

/// Plays a sequence with made-up processes.
pub fn play_scripted(steps: &[Step], readers: Readers) -> Result<(), String> {
    let script = Scripted::default();
    let numbers = [(11, 10), (12, 10), (21, 20), (31, 30)];
    let threads = numbers.map(|(tid, process)| (NOWHERE + tid, NOWHERE + process));
    script.script().threads = threads.into_iter().collect();
    let mut people: Vec<Who> = threads.iter().map(|(tid, _)| who(*tid, 0)).collect();
    people[2].uid = 1000;
    // One that nobody knows, and one of another pid namespace.
    people.extend([who(NOWHERE + 99, 1000), who(0, 0)]);
    let scene = Scene::new(Asked::Script(script.clone()), readers, SessionACL::All);
    let mut player = Player::new(&scene, people, Some(script));
    steps.iter().for_each(|step| player.play(step));
    player.finish()?;
    scene.end()
}

/// Plays a sequence with real threads.
pub fn play_real(steps: &[Step]) -> Result<(), String> {
    let (send, tids) = std::sync::mpsc::channel();
    let waiters: Vec<_> = (0..3)
        .map(|_| {
            let send = send.clone();
            let (end, ended) = std::sync::mpsc::channel::<()>();
            let thread = std::thread::spawn(move || {
                let tid = rustix::thread::gettid().as_raw_nonzero().get();
                send.send(tid as u32).expect("somebody listens");
                let _ = ended.recv();
            });
            (end, thread)
        })
        .collect();
    let mut people: Vec<Who> = tids.iter().take(3).map(|tid| who(tid, 0)).collect();
    people.push(who(NOWHERE, 1000));
    let scene = Scene::new(Asked::Proc, Readers::Wait, SessionACL::All);
    let mut player = Player::new(&scene, people, None);
    steps.iter().for_each(|step| player.play(step));
    let played = player.finish().and_then(|()| scene.end());
    for (end, thread) in waiters {
        drop(end);
        let _ = thread.join();
    }
    played
}

/// Says what failed, and the sequence one step a line.
fn tell<T>(result: Result<(), TestError<T>>, steps: impl Fn(&T) -> &[Step]) {
    match result {
        Ok(()) => {}
        Err(TestError::Abort(reason)) => panic!("{reason}"),
        Err(TestError::Fail(reason, case)) => {
            let lines = steps(&case).iter().map(|step| format!("    {step:?},\n"));
            panic!("{reason}\n{}", lines.collect::<String>());
        }
    }
}

#[test]
fn no_sequence_of_requests_breaks_the_daemon() {
    let _one = one_at_a_time();
    let steps = proptest::collection::vec(step(), 1..150);
    let readers = prop_oneof![3 => Just(Readers::Wait), 1 => Just(Readers::Snapshot)];
    let result = runner(cases()).run(&(steps, readers), |(steps, readers)| {
        play_scripted(&steps, readers).map_err(TestCaseError::fail)
    });
    tell(result, |(steps, _)| steps);
}

#[test]
fn no_sequence_of_requests_of_real_threads_breaks_the_daemon() {
    let _one = one_at_a_time();
    let steps = proptest::collection::vec(step(), 1..150);
    let result = runner(cases() / 4 + 1).run(&steps, |steps| {
        play_real(&steps).map_err(TestCaseError::fail)
    });
    tell(result, |steps| steps);
}
