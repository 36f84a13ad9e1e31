//! The shortest way through everything.

mod common;

use common::{User, options};

#[test]
fn a_file_written_through_the_mount_is_in_backing_after_close() {
    for user in [User::Root, User::Ordinary] {
        let mount = options().user(user).mount();
        mount.bash("echo hello > f");
        assert_eq!(mount.read_behind("f"), "hello\n");
        assert_eq!(mount.read("f"), "hello\n");
        mount.bash("{ echo a; sh -c 'echo b'; } > f");
        assert_eq!(mount.read("f"), "a\nb\n");
        mount.unmount();
    }
}
