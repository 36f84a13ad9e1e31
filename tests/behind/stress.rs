//! Somebody exchanges two files in BACKING as fast as possible while programs update one of them:
//! no content is lost.

use crate::common::Mount;
use crate::{BOTH, Rule, kept, ruled};
use std::collections::HashSet;
use std::fs;

/// Exchanges `f` and `other` until it is told to end.
const EXCHANGER: &str = "
import ctypes, select
libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, EXCHANGE = -100, 2
say('ready')
count = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    for _ in range(20):
        if libc.renameat2(AT_FDCWD, b'f', AT_FDCWD, b'other', EXCHANGE) == 0:
            count += 1
    time.sleep(0.0002)
say(count)
";

/// Updates `f`: reads what it is and writes something new, `count` times; says what it wrote over
/// what, and how that ended.
const UPDATER: &str = "
import random
def update(token):
    try:
        f = os.open('f', os.O_RDWR)
    except OSError as e:
        # The kernel looks a name up again once or twice; here it is another file each time.
        assert e.errno in (errno.EINTR, errno.ESTALE, errno.EBUSY), e
        return
    try:
        over = os.read(f, 100).decode()
        os.ftruncate(f, 0)
        os.pwrite(f, token.encode(), 0)
        if random.random() < 0.5:
            time.sleep(random.random() / 1000)
        else:
            time.sleep(0)
    finally:
        try:
            os.close(f)
            how = 'done'
        except OSError as e:
            how = errno.errorcode[e.errno]
    print(over, token, how)
for n in range(COUNT):
    update('%d-%d' % (os.getpid(), n))
";

/// Runs it; returns the contents that are nowhere, and how many updates were refused.
fn lost(mount: &Mount, count: usize) -> (Vec<String>, usize) {
    for name in ["f", "other"] {
        fs::write(mount.behind(name), name).expect("write");
        let owner = fs::metadata(mount.backing()).expect("stat");
        use std::os::unix::fs::{MetadataExt, chown};
        chown(mount.behind(name), Some(owner.uid()), Some(owner.gid())).expect("chown");
    }
    let backing = mount.backing().display();
    let mut exchanger = mount.spawn_python(&format!("os.chdir('{backing}')\n{EXCHANGER}"));
    exchanger.expect("ready");
    let script = UPDATER.replace("COUNT", &count.to_string());
    let output = std::thread::scope(|scope| {
        let run = || mount.python(&script);
        let updaters = [scope.spawn(run), scope.spawn(run)];
        updaters.map(|u| u.join().expect("an updater")).concat()
    });
    exchanger.tell("end");
    let exchanges: usize = exchanger.hear().parse().expect("a number");
    exchanger.succeed();
    assert!(exchanges > 100, "{exchanges}");

    let mut there: HashSet<String> = kept(mount).into_iter().collect();
    there.extend(["f", "other"].map(|name| mount.read_behind(name)));
    let mut written: HashSet<String> = ["f", "other"].map(String::from).into();
    let mut refused = 0;
    for line in output.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [over, token, how] = words[..] else {
            panic!("{line}");
        };
        written.insert(token.to_owned());
        match how {
            // Replaced by who had read it.
            "done" => drop(there.insert(over.to_owned())),
            "ESTALE" => refused += 1,
            other => panic!("{other}"),
        }
    }
    (written.difference(&there).cloned().collect(), refused)
}

#[test]
fn no_content_is_lost_while_files_are_exchanged_behind_the_mount() {
    for user in BOTH {
        let (_config, options) = ruled(Rule::Refuse, user);
        let mount = options.mount();
        let (lost, refused) = lost(&mount, 300);
        assert!(lost.is_empty(), "{lost:?}");
        assert!(refused > 0, "something was refused");
        assert_eq!(mount.store("tmp"), [""; 0]);
    }
}

#[test]
fn and_the_check_notices_when_commits_win() {
    let (_config, options) = ruled(Rule::Win, BOTH[0]);
    let mount = options.mount();
    assert!(!lost(&mount, 300).0.is_empty());
}
