//! Thousands who wait for one file: `LATCHFS_TEST_WAITERS=10000` has as many (one thousand otherwise).

use crate::common::reliability::Row;
use crate::common::{Mount, Running, options, wait_until};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Processes of forty threads each, one after the other: the next one begins when all of the last
/// one wait. At the end each thread tells `BATCH WHAT RESULT`: the count a writer has found and raised,
/// what a reader has read, or an error.
const CROWD: &str = "
threading.stack_size(64 << 10)
def wait(kind, results):
    try:
        fd = os.open('f', os.O_RDONLY if kind == 'reader' else os.O_RDWR)
        found = int(os.pread(fd, 20, 0))
        if kind == 'writer': os.pwrite(fd, b'%d' % (found + 1), 0)
        os.close(fd)
    except OSError as e: found = errno.errorcode[e.errno]
    results.append((kind, found))
def parked():
    # In the OPEN itself: a LOOKUP before it waits for an answer, too, but has no place in the queue.
    count = 0
    for tid in os.listdir('/proc/self/task'):
        with open(f'/proc/self/task/{tid}/stack') as f: stack = f.read()
        count += 'request_wait' in stack and 'lookup' not in stack and 'revalidate' not in stack
    return count
def stay_parked():
    for look in range(10):
        if parked() < THREADS: return False
        time.sleep(0.002)
    return True
def batch(number, out):
    results = []
    kinds = ['writer' if n % 5 == 0 else 'reader' for n in range(THREADS)]
    threads = [threading.Thread(target=wait, args=(kind, results)) for kind in kinds]
    for thread in threads: thread.start()
    end = time.monotonic() + 50
    while UNTIL_PARKED and time.monotonic() < end:
        if stay_parked(): break
    else:
        if UNTIL_PARKED: os.write(out, b'0 late 0\\n')
    os.write(out, b'%d parked 0\\n' % number)
    for thread in threads: thread.join()
    text = ''.join(f'{number} {kind} {found}\\n' for kind, found in results)
    os.write(out, text.encode())
for number in range(BATCHES):
    out, hears = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(out)
        batch(number, hears)
        os._exit(0)
    os.close(hears)
    children = globals().setdefault('children', {})
    children[pid] = out
    assert os.read(out, 100) == b'%d parked 0\\n' % number
say('all are there')
for pid, out in children.items(): say('pid', pid)
say('.')
for pid, out in children.items():
    with open(out) as f:
        for line in f: say(line.strip())
    os.waitpid(pid, 0)
say('.')
";

struct Crowd {
    program: Running,
    pids: Vec<u32>,
}

impl Crowd {
    fn new(mount: &Mount, batches: usize, threads: usize, until_parked: &str) -> Self {
        let program = mount.spawn_python(&format!(
            "BATCHES, THREADS, UNTIL_PARKED = {batches}, {threads}, {until_parked}\n{CROWD}"
        ));
        program.expect("all are there");
        let lines = std::iter::from_fn(|| Some(program.hear()).filter(|line| line != "."));
        let pids = lines
            .map(|line| line["pid ".len()..].parse().expect("a pid"))
            .collect();
        Self { program, pids }
    }

    /// What each has got: batch, kind, result.
    fn ends(&self) -> Vec<(usize, String, String)> {
        let lines = std::iter::from_fn(|| Some(self.program.hear()).filter(|line| line != "."));
        lines
            .map(|line| {
                let words: Vec<&str> = line.split(' ').collect();
                let number = words[0].parse().expect("a batch");
                (number, words[1].to_owned(), words[2].to_owned())
            })
            .collect()
    }
}

fn holder(mount: &Mount) -> Running {
    mount.bash("echo 0 > f");
    // It leaves a version, which is the one that its readers get (R1).
    let script = "fd = os.open('f', os.O_RDWR); os.write(fd, b'0'); say('holds'); hear()";
    let holder = mount.spawn_python(script);
    holder.expect("holds");
    holder
}

#[test]
fn thousands_who_wait_for_one_file_are_all_served_in_order() {
    const THREADS: usize = 40;
    let waiters = std::env::var("LATCHFS_TEST_WAITERS").ok();
    let batches = waiters.map_or(25, |number| {
        number.parse::<usize>().expect("a number") / THREADS
    });
    let mount = options()
        .arg("--lock-timeout=300s")
        .arg("--durability=none")
        .mount();
    // Once, so that what is needed once is there.
    mount.bash("echo 0 > f; cat f");
    let (base, memory) = (mount.descriptors(), mount.memory());
    let mut holder = holder(&mount);
    let crowd = Crowd::new(&mount, batches, THREADS, "True");
    assert!(
        mount.descriptors() < base + 20,
        "a waiter takes descriptors"
    );

    let (began, used) = (Instant::now(), mount.processor_time());
    // W3, also now: those who are killed are gone.
    let killed = crowd.pids.iter().rev().take(2);
    let gone = killed.inspect(|pid| crate::common::kill(**pid, "KILL"));
    for pid in gone {
        wait_until("the killed waiters are gone", || {
            !crate::common::alive(*pid)
        });
    }
    while began.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(50));
    }
    let share = (mount.processor_time() - used).as_secs_f64() / began.elapsed().as_secs_f64();
    println!("with so many waiters the daemon takes {share:.2} of a processor");
    assert!(share < 0.5, "waiting takes {share} of a processor");

    let began = Instant::now();
    holder.tell("close");
    holder.succeed();
    let ends = crowd.ends();
    println!("all were served within {:?}", began.elapsed());
    let served = (batches - 2) * THREADS;
    assert_eq!(ends.len(), served, "some are lost");
    let mut order = BTreeMap::new();
    let mut late = 0;
    for (batch, kind, result) in &ends {
        let found: usize = result
            .parse()
            .unwrap_or_else(|_| panic!("{kind}: {result}"));
        match kind.as_str() {
            "writer" => assert!(order.insert(found, *batch).is_none(), "two found {found}"),
            // They waited for the holder only.
            _ => late += usize::from(found > 0),
        }
    }
    assert_eq!(
        late, 0,
        "readers that waited for other writers than the first"
    );
    let writers = served / 5;
    assert_eq!(order.len(), writers);
    assert_eq!(mount.read("f"), writers.to_string());
    assert!(
        order.values().is_sorted(),
        "writers were served out of order: {order:?}"
    );
    mount.wait_until_descriptors_are_back(base);
    wait_until("its memory is given back", || {
        mount.memory() < memory + 20 * 1024
    });
    mount.unmount();
    Row {
        fault: "thousands of waiters on one file",
        injected: "processes of 40 threads open a file that is being written, 80 are killed meanwhile",
        cases: (batches * THREADS) as u64,
        violations: 0,
        command: "LATCHFS_TEST_WAITERS=10000 scripts/test thousands_who_wait",
    }
    .report();
}

#[test]
fn of_a_crowd_that_waits_in_vain_each_gets_etimedout() {
    let mount = options().arg("--lock-timeout=2s").mount();
    let base = mount.descriptors();
    let mut holder = holder(&mount);
    let crowd = Crowd::new(&mount, 50, 40, "False");
    let ends = crowd.ends();
    assert_eq!(ends.len(), 2000);
    let other = ends.iter().find(|(_, _, result)| result != "ETIMEDOUT");
    assert_eq!(other, None);
    let pid = holder.pid();
    let told = format!("pid {pid} (python3) is writing it");
    assert_eq!(mount.log().matches(&told).count(), 2000);
    holder.tell("close");
    holder.succeed();
    mount.bash("echo new > f");
    mount.wait_until_descriptors_are_back(base);
}
