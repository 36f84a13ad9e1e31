//! Every request that a kernel makes, once, as it makes them; and the checks, which must be able to
//! fail.

use crate::kernel::{Args, Who, op};
use crate::scene::{Asked, CANARY, NOBODY, SECRET, Scene, Scripted, one_at_a_time};
use fuser::SessionACL;
use latchfs::config::Readers;
use std::fs;

const ME: Who = Who {
    uid: 0,
    gid: 0,
    tid: 4_200_011,
};

fn scene() -> Scene {
    scene_for(SessionACL::All)
}

fn scene_for(acl: SessionACL) -> Scene {
    let script = Scripted::default();
    script.script().threads.insert(ME.tid, ME.tid);
    Scene::new(Asked::Script(script), Readers::Wait, acl)
}

/// Asks, and expects success.
fn ok(scene: &Scene, opcode: u32, node: u64, args: Args) -> crate::kernel::Answer {
    let answer = scene.ask(opcode, node, ME, &args);
    assert_eq!(answer.errno, 0, "opcode {opcode}");
    answer
}

fn errno(scene: &Scene, opcode: u32, node: u64, args: Args) -> i32 {
    scene.ask(opcode, node, ME, &args).errno
}

fn look_up(scene: &Scene, parent: u64, name: &str) -> u64 {
    let answer = ok(scene, op::LOOKUP, parent, Args::new().name(name.as_bytes()));
    answer.entry().expect("an entry").node
}

fn forget(scene: &Scene, node: u64, times: u64) {
    scene
        .kernel
        .send(op::FORGET, node, NOBODY, &Args::new().u64(times));
}

fn release(scene: &Scene, opcode: u32, handle: u64) {
    ok(
        scene,
        opcode,
        1,
        Args::new().u64(handle).u32(0).u32(0).u64(0),
    );
}

fn read(scene: &Scene, handle: u64) -> Vec<u8> {
    let args = Args::new()
        .u64(handle)
        .u64(0)
        .u32(4096)
        .u32(0)
        .u64(0)
        .u64(0);
    ok(scene, op::READ, 1, args).body
}

fn write(scene: &Scene, handle: u64, text: &[u8]) {
    let args = Args::new()
        .u64(handle)
        .u64(0)
        .u32(text.len() as u32)
        .u32(0)
        .u64(0)
        .u64(0);
    ok(scene, op::WRITE, 1, args.bytes(text));
}

#[test]
fn every_request_works_once_and_leaves_nothing() {
    let _one = one_at_a_time();
    let scene = scene();
    let args = Args::new;
    let mut told: Vec<u64> = Vec::new();

    // A file from its creation to its removal.
    let create = args()
        .u32(libc::O_RDWR as u32)
        .u32(0o640)
        .u32(0)
        .u32(0)
        .name(b"n");
    let answer = ok(&scene, op::CREATE, 1, create);
    let (node, handle) = (
        answer.entry().expect("an entry").node,
        answer.created_handle(),
    );
    let handle = handle.expect("a handle");
    told.push(node);
    write(&scene, handle, b"hello");
    assert_eq!(read(&scene, handle), b"hello");
    ok(&scene, op::FSYNC, 1, args().u64(handle).u64(0));
    assert_eq!(fs::read(scene.backing().join("n")).expect("read"), b"hello");
    ok(
        &scene,
        op::FALLOCATE,
        1,
        args().u64(handle).u64(0).u64(100).u32(0).u32(0),
    );
    assert_eq!(
        errno(
            &scene,
            op::LSEEK,
            1,
            args().u64(handle).u64(0).u32(3).u32(0)
        ),
        0
    );
    ok(&scene, op::GETATTR, node, args().u32(0).u32(0).u64(0));
    assert_eq!(
        errno(&scene, op::IOCTL, 1, args().u64(handle).bytes(&[0; 24])),
        libc::ENOTTY
    );
    assert_eq!(
        errno(&scene, op::POLL, 1, args().u64(handle).bytes(&[0; 16])),
        libc::ENOSYS
    );
    ok(&scene, op::FLUSH, 1, args().u64(handle).u64(0).u64(1));
    release(&scene, op::RELEASE, handle);
    assert_eq!(
        fs::read(scene.backing().join("n")).expect("read").len(),
        100
    );

    // An update: OPEN, sent to look again, LOOKUP, OPEN.
    let f = look_up(&scene, 1, "g");
    let open = args().u32(libc::O_WRONLY as u32).u32(0);
    assert_eq!(errno(&scene, op::OPEN, f, open.clone()), libc::ESTALE);
    let private = look_up(&scene, 1, "g");
    assert_ne!(private, f);
    let handle = ok(&scene, op::OPEN, private, open)
        .handle()
        .expect("a handle");
    write(&scene, handle, b"updated");
    ok(&scene, op::FLUSH, 1, args().u64(handle).u64(0).u64(1));
    release(&scene, op::RELEASE, handle);
    let content = fs::read(scene.backing().join("g")).expect("read");
    assert!(content.starts_with(b"updatedggg"));
    let g = look_up(&scene, 1, "g");
    let handle = ok(&scene, op::OPEN, g, args().u64(0))
        .handle()
        .expect("a handle");
    assert!(read(&scene, handle).starts_with(b"updated"));
    release(&scene, op::RELEASE, handle);
    told.extend([f, private, g]);

    // Names.
    let d = look_up(&scene, 1, "d");
    told.push(d);
    for (opcode, args) in [
        (op::MKDIR, args().u32(0o755).u32(0).name(b"made")),
        (
            op::MKNOD,
            args()
                .u32(libc::S_IFIFO | 0o600)
                .u32(0)
                .u64(0)
                .name(b"fifo"),
        ),
        (op::SYMLINK, args().name(b"link").name(b"target")),
        (op::LINK, args().u64(g).name(b"hard")),
    ] {
        let answer = ok(&scene, opcode, d, args);
        told.push(answer.entry().expect("an entry").node);
    }
    let link = look_up(&scene, d, "link");
    told.push(link);
    assert_eq!(ok(&scene, op::READLINK, link, args()).body, b"target");
    ok(
        &scene,
        op::RENAME,
        d,
        args().u64(1).name(b"hard").name(b"hard2"),
    );
    ok(
        &scene,
        op::RENAME2,
        d,
        args().u64(d).u64(1).name(b"link").name(b"link2"),
    );
    ok(&scene, op::UNLINK, 1, args().name(b"hard2"));
    ok(&scene, op::RMDIR, d, args().name(b"made"));

    // Listings.
    let dir = ok(&scene, op::OPENDIR, 1, args().u64(0))
        .handle()
        .expect("a handle");
    let page = |opcode| args().u64(dir).u64(0).u32(4096).u32(opcode).u64(0).u64(0);
    let names = ok(&scene, op::READDIR, 1, page(0)).names();
    assert!(names.contains(&b"f".to_vec()) && !names.contains(&b".latchfs".to_vec()));
    for (name, entry) in ok(&scene, op::READDIRPLUS, 1, page(0)).entries() {
        assert_ne!(name, b".latchfs");
        told.extend(entry.map(|entry| entry.node));
    }
    ok(&scene, op::FSYNCDIR, 1, args().u64(dir).u64(0));
    release(&scene, op::RELEASEDIR, dir);

    // Attributes.
    let chmod = args()
        .u32(1)
        .u32(0)
        .bytes(&[0; 60])
        .u32(0o600)
        .bytes(&[0; 16]);
    let answer = ok(&scene, op::SETATTR, g, chmod);
    assert_eq!(answer.mode(), Some(libc::S_IFREG | 0o600));
    ok(
        &scene,
        op::SETXATTR,
        g,
        args().u32(1).u32(0).name(b"user.a").bytes(b"1"),
    );
    let value = ok(
        &scene,
        op::GETXATTR,
        g,
        args().u32(10).u32(0).name(b"user.a"),
    );
    assert_eq!(value.body, b"1");
    ok(&scene, op::LISTXATTR, g, args().u32(1000).u32(0));
    ok(&scene, op::REMOVEXATTR, g, args().name(b"user.a"));
    ok(&scene, op::STATFS, 1, args());
    ok(&scene, op::UNLINK, 1, args().name(b"n"));

    // Given back.
    let mut batch = args().u32(told.len() as u32).u32(0);
    for node in told {
        batch = batch.u64(node).u64(1);
    }
    scene.kernel.send(op::BATCH_FORGET, 0, NOBODY, &batch);
    scene.settle(|| {}).expect("rest");
    scene.check().expect("nothing is left");
    scene.end().expect("nothing is left");
}

#[test]
fn a_listing_with_attributes_fills_the_room_that_the_kernel_has() {
    let _one = one_at_a_time();
    let scene = scene();
    for number in 0..300 {
        fs::write(scene.backing().join(format!("d/file{number}")), "").expect("write");
    }
    let d = look_up(&scene, 1, "d");
    let dir = ok(&scene, op::OPENDIR, d, Args::new().u64(0))
        .handle()
        .expect("a handle");
    let mut told = vec![(d, 1)];
    for (room, least, most) in [
        (4096, 20, 27),
        (16_384, 80, 108),
        (262_144, 300, usize::MAX),
    ] {
        let args = Args::new().u64(dir).u64(0).u32(room).u32(0).u64(0).u64(0);
        let answer = ok(&scene, op::READDIRPLUS, d, args);
        assert!(answer.body.len() <= room as usize);
        let entries = answer.entries();
        assert!((least..=most).contains(&entries.len()), "{}", entries.len());
        told.extend(
            entries
                .iter()
                .filter_map(|(_, e)| Some((e.as_ref()?.node, 1))),
        );
    }
    release(&scene, op::RELEASEDIR, dir);
    for (node, times) in told {
        forget(&scene, node, times);
    }
    scene.settle(|| {}).expect("rest");
    scene.end().expect("nothing is left");
}

#[test]
fn no_name_leads_out_of_its_directory_or_into_the_store() {
    let _one = one_at_a_time();
    let scene = scene();
    let d = look_up(&scene, 1, "d");
    let name = |name: &str| Args::new().name(name.as_bytes());
    for bad in [
        "",
        ".",
        "..",
        "/",
        "d/f",
        "../canary",
        "../canary/f",
        "..//canary/f",
        "f/",
        "./f",
        ".latchfs/kept/0.data",
        "/etc/passwd",
    ] {
        for parent in [1, d] {
            let requests = [
                (op::LOOKUP, name(bad)),
                (op::UNLINK, name(bad)),
                (op::RMDIR, name(bad)),
                (op::MKDIR, Args::new().u64(0o755).name(bad.as_bytes())),
                (
                    op::MKNOD,
                    Args::new().u64(0o100644).u64(0).name(bad.as_bytes()),
                ),
                (op::SYMLINK, name(bad).name(b"target")),
                (
                    op::CREATE,
                    Args::new().u64(1 | 0o644 << 32).u64(0).name(bad.as_bytes()),
                ),
                (
                    op::RENAME,
                    Args::new().u64(1).name(bad.as_bytes()).name(b"moved"),
                ),
                (
                    op::RENAME,
                    Args::new().u64(1).name(b"f").name(bad.as_bytes()),
                ),
                (
                    op::RENAME2,
                    Args::new().u64(1).u64(2).name(b"f").name(bad.as_bytes()),
                ),
            ];
            for (opcode, args) in requests {
                let errno = errno(&scene, opcode, parent, args);
                assert_eq!(errno, libc::EINVAL, "opcode {opcode}, {bad:?} in {parent}");
            }
        }
    }
    forget(&scene, d, 1);
    scene.settle(|| {}).expect("rest");
    scene.check().expect("nothing happened");
}

#[test]
fn what_is_no_regular_file_is_never_opened() {
    let _one = one_at_a_time();
    let scene = scene();
    let path = scene.backing().join("device");
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    let (kind, null) = (
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::makedev(1, 3),
    );
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, null).expect("mknod");
    for name in ["d", "p", "device", "outf"] {
        let node = look_up(&scene, 1, name);
        for flags in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR | libc::O_TRUNC] {
            let open = Args::new().u32(flags as u32).u32(0);
            let errno = errno(&scene, op::OPEN, node, open);
            assert!(
                [libc::EISDIR, libc::ELOOP, libc::ENXIO].contains(&errno),
                "{name}: {errno}"
            );
        }
        forget(&scene, node, 1);
    }
    scene.settle(|| {}).expect("rest");
    scene.check().expect("nothing happened");
}

#[test]
fn requests_of_other_users_are_refused_by_the_daemon_itself_without_allow_other() {
    let _one = one_at_a_time();
    let other = Who {
        uid: 1000,
        gid: 1000,
        ..ME
    };
    let args = Args::new;
    let requests = [
        (op::LOOKUP, args().name(b"f")),
        (op::GETATTR, args().u64(0).u64(0)),
        (op::OPENDIR, args().u64(0)),
        (op::STATFS, args()),
        (op::MKDIR, args().u64(0o755).name(b"x")),
        (op::CREATE, args().u64(1).u64(0).name(b"y")),
        (op::UNLINK, args().name(b"f")),
        (op::LISTXATTR, args().u64(100)),
    ];
    for (acl, refused) in [(SessionACL::Owner, true), (SessionACL::All, false)] {
        let scene = scene_for(acl);
        for (opcode, args) in &requests {
            let errno = scene.ask(*opcode, 1, other, args).errno;
            assert_eq!(errno == libc::EACCES, refused, "opcode {opcode}: {errno}");
            assert!(!refused || scene.backing().join("f").exists());
        }
    }
}

#[test]
fn the_checks_of_a_hostile_sequence_see_what_they_look_for() {
    let _one = one_at_a_time();

    // A node id that is not given back, and a handle.
    let scene = scene();
    let f = look_up(&scene, 1, "f");
    let handle = ok(&scene, op::OPEN, f, Args::new().u64(0))
        .handle()
        .expect("a handle");
    let engine = scene.engine().clone();
    assert_eq!((engine.open_files(), engine.known()), (1, (2, 2)));
    assert!(
        scene
            .check()
            .expect_err("an open file")
            .contains("descriptors leaked")
    );
    release(&scene, op::RELEASE, handle);
    forget(&scene, f, 1);
    scene.settle(|| {}).expect("rest");
    scene.check().expect("nothing is left");
    // A reference to the engine, and a descriptor.
    assert!(scene.end().expect_err("it is held").contains("references"));
    drop(engine);

    // Something left in the store.
    let scene = self::scene();
    fs::write(scene.backing().join(".latchfs/tmp/left"), "").expect("write");
    assert!(
        scene
            .check()
            .expect_err("a leftover")
            .contains(".latchfs/tmp")
    );
    // Something outside that has changed.
    let canary = scene.backing().with_file_name("canary").join("f");
    fs::write(&canary, CANARY).expect("write");
    assert!(
        scene
            .check_outside()
            .expect_err("a write")
            .contains("canary/f")
    );
    drop(scene);

    // Content of the canary, and of the store, in an answer.
    for (marker, at) in [(CANARY, "outside"), (SECRET, "store")] {
        let scene = self::scene();
        fs::write(scene.backing().join("f"), marker).expect("write");
        let f = look_up(&scene, 1, "f");
        let handle = ok(&scene, op::OPEN, f, Args::new().u64(0))
            .handle()
            .expect("a handle");
        assert_eq!(read(&scene, handle), marker);
        assert!(scene.check_outside().expect_err("a read").contains(at));
    }
}
