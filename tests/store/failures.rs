//! What a disk that fails in the middle of something leaves, while the mount goes on.

use crate::common::failing::Failing;
use crate::common::options;
use crate::recovery::BOTH;

const SAVE: &str = "try:\n    f = open('f', 'w'); f.write('the new version'); f.close(); say('saved')\n\
                    except OSError as e: say(errno.errorcode[e.errno])";
const READ: &str = "try: say(open('g').read())\n\
                    except OSError as e: say(errno.errorcode[e.errno])";

#[test]
fn a_rewrite_that_fails_in_its_middle_is_finished_by_the_next_open() {
    for user in BOTH {
        let mount = options().user(user).mount();
        // Of nothing, no copy is made for readers.
        mount.bash(": > f; ln f g");
        let failing = Failing::new(&mount, "copy_file_range:error=EIO");
        assert_eq!(mount.python(SAVE), "EIO\n");
        // Nobody sees the half of it.
        assert_eq!(mount.python(READ), "EIO\n");
        assert_eq!(mount.store("redo").len(), 2);
        drop(failing);
        assert_eq!(mount.python(READ), "the new version\n");
        assert_eq!(mount.read_behind("g"), "the new version");
        assert_eq!(mount.store("redo"), [""; 0]);
        // And what is appended then stays.
        mount.bash("printf ' and more' >> f");
        mount.crash();
        mount.start();
        assert_eq!(mount.read("g"), "the new version and more");
        mount.unmount();
    }
}

#[test]
fn a_rewrite_that_fails_in_its_middle_is_finished_by_an_unmount() {
    let mount = options().mount();
    mount.bash(": > f; ln f g");
    let failing = Failing::new(&mount, "copy_file_range:error=EIO");
    assert_eq!(mount.python(SAVE), "EIO\n");
    drop(failing);
    mount.unmount();
    assert_eq!(mount.read_behind("g"), "the new version");
}

#[test]
fn a_record_that_can_not_be_removed_undoes_nothing_that_comes_later() {
    for user in BOTH {
        let mount = options().user(user).mount();
        mount.bash("printf old > f; ln f g");
        let failing = Failing::new(&mount, "unlinkat:error=EIO");
        assert_eq!(mount.python(SAVE), "saved\n");
        assert_eq!(mount.python(READ), "the new version\n");
        assert_eq!(mount.store("redo").len(), 2);
        // Recovery would undo it.
        assert!(!mount.try_run("sh", "printf ' lost' >> f").status.success());
        drop(failing);
        mount.bash("printf ' and more' >> f");
        assert_eq!(mount.store("redo"), [""; 0]);
        mount.crash();
        mount.start();
        assert_eq!(mount.read("g"), "the new version and more");
        mount.unmount();
    }
}
