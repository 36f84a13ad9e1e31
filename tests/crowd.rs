//! Several programs at one name, each doing its own: none meets an error that a bare directory would not give it,
//! and what a reader holds does not change.

mod common;

use common::{Mount, as_each_user};

/// Runs `NAME()` of each process for as long as the first takes; each says what it met beside "ok".
const CROWD: &str = r#"
import collections, random, threading
def crowd(first, *others):
    end, sides = os.pipe(), []
    for other in others:
        pid = os.fork()
        if pid == 0:
            os.close(end[1])
            over = threading.Event()
            threading.Thread(target=lambda: (os.read(end[0], 1), over.set()), daemon=True).start()
            met = collections.Counter()
            while not over.is_set():
                step(other, met)
            if met: say(other.__name__, dict(met))
            sys.stdout.flush(); os._exit(1 if met else 0)
        sides.append(pid)
    met = collections.Counter()
    for _ in range(STEPS):
        step(first, met)
        time.sleep(random.random() * .005)
    os.close(end[1])
    if met: say(first.__name__, dict(met))
    for pid in sides: os.waitpid(pid, 0)
def step(work, met):
    try:
        wrong = work()
        if wrong: met[wrong] += 1
    except OSError as e: met[errno.errorcode[e.errno]] += 1
STEPS = 200
"#;

fn nothing_is_met(mount: &Mount, programs: &str) {
    let said = mount.python(&format!("{CROWD}{programs}"));
    assert_eq!(said, "", "{}", mount.log());
}

#[test]
fn readers_beside_an_appender_and_a_rewriter_open_without_error() {
    as_each_user(|mount| {
        nothing_is_met(
            mount,
            "open('f', 'w').write('first\\n')\n\
             def rewriter():\n    with open('f', 'w') as f: f.write('new\\n' * 25)\n\
             def appender():\n    with open('f', 'a') as f: f.write('more\\n')\n    time.sleep(random.random() * .005)\n\
             def reader():\n    with open('f') as f: f.read(); time.sleep(random.random() * .005)\n\
             crowd(rewriter, appender, reader, reader)\n",
        );
    });
}

#[test]
fn a_reader_of_a_hard_linked_file_keeps_its_version_while_others_look_at_the_names() {
    as_each_user(|mount| {
        nothing_is_met(
            mount,
            "open('f', 'w').write('0' * 100); os.link('f', 'g')\n\
             def writer():\n    with open(random.choice('fg'), 'wb') as f: f.write(random.choice(b'abc').to_bytes(1, 'big') * random.choice([100, 300000]))\n\
             def looker(): os.stat('f'); os.stat('g')\n\
             def whole(fd): return os.pread(fd, 1 << 20, 0)\n\
             def reader():\n    \
                 with open(random.choice('fg'), 'rb') as f:\n        \
                     had = whole(f.fileno())\n        \
                     for _ in range(4):\n            \
                         time.sleep(random.random() * .004)\n            \
                         if whole(f.fileno()) != had: return 'changed'\n\
             crowd(writer, looker, reader, reader)\n",
        );
    });
}

#[test]
fn a_symbolic_link_that_is_replaced_leads_everyone_somewhere() {
    as_each_user(|mount| {
        nothing_is_met(
            mount,
            "for d in 'pq': os.mkdir(d); open(d + '/a', 'w').write(d)\n\
             os.symlink('p', 'current')\n\
             def flip():\n    os.symlink(random.choice('pq'), 't'); os.rename('t', 'current')\n\
             def reader(): open('current/a').close()\n\
             def link_reader(): os.readlink('current')\n\
             def looker(): os.stat('current/a')\n\
             crowd(flip, reader, link_reader, looker)\n",
        );
    });
}

#[test]
fn truncate_of_a_name_that_others_rename_over_is_done_or_finds_it_busy() {
    as_each_user(|mount| {
        nothing_is_met(
            mount,
            "open('f', 'w').write('x' * 100)\n\
             def saver():\n    with open('t', 'w') as f: f.write('y' * 50)\n    os.rename('t', 'f')\n\
             def truncater():\n    \
                 try: os.truncate('f', 7)\n    \
                 except OSError as e:\n        \
                     if e.errno != errno.EBUSY: raise\n\
             crowd(saver, truncater, truncater)\n",
        );
        assert!(!mount.log().contains("behind the mount"), "{}", mount.log());
    });
}
