//! The scenarios: what is there, and what a program does to it, step by step.
//!
//! What each step leads to is found out in a bare directory.

use crate::program::Does;
use rustix::fs::{FallocateFlags, RenameFlags, Timespec, Timestamps, XattrFlags};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

/// A step of a program: from one state of the directory to the next, at once.
pub struct Step {
    pub does: Does,
    /// What has the same outcome in a bare directory.
    pub means: Does,
    /// What it leaves aside.
    pub aside: Option<&'static str>,
}

/// What has the same outcome anywhere.
const fn does(does: Does) -> Step {
    means(does, does)
}

/// What has on a mount the outcome of something else.
const fn means(means: Does, does: Does) -> Step {
    let aside = None;
    Step { does, means, aside }
}

/// What changes nothing on a mount, but leaves this aside.
const fn aside(content: &'static str, does: Does) -> Step {
    Step {
        does,
        means: |_| Ok(()),
        aside: Some(content),
    }
}

/// A program, and where it is at work.
pub struct Scenario {
    pub name: &'static str,
    /// Makes what is there before.
    pub prepare: fn(&Path) -> io::Result<()>,
    pub steps: &'static [Step],
}

/// The scenario of this name.
pub fn find(name: &str) -> &'static Scenario {
    let all = [COMMITS, IN_PLACE, APPENDING, NAMES, ASIDE, CONTROLS];
    let mut all = all.into_iter().flatten();
    all.find(|scenario| scenario.name == name)
        .expect("a scenario")
}

const OLD: &str = "the old version";

fn nothing(_: &Path) -> io::Result<()> {
    Ok(())
}

fn old(dir: &Path) -> io::Result<()> {
    fs::write(dir.join("f"), OLD)
}

fn linked(dir: &Path) -> io::Result<()> {
    old(dir)?;
    fs::hard_link(dir.join("f"), dir.join("g"))
}

fn log(dir: &Path) -> io::Result<()> {
    fs::write(dir.join("log"), "first\n")
}

/// A time that [`crate::tree`] compares.
fn times() -> Timestamps {
    let time = Timespec {
        tv_sec: 1_000_000_000,
        tv_nsec: 0,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

fn mode(mode: u32) -> fs::Permissions {
    fs::Permissions::from_mode(mode)
}

/// One version takes the place of another.
pub const COMMITS: &[Scenario] = &[
    Scenario {
        name: "create",
        prepare: nothing,
        steps: &[does(|p| p.save(">", "f", "new"))],
    },
    Scenario {
        name: "replace",
        prepare: old,
        steps: &[does(|p| p.save(">", "f", &"new".repeat(5000)))],
    },
    Scenario {
        name: "update",
        prepare: old,
        steps: &[does(|p| {
            p.open("+", "f")?.write_all_at(b"new", 4)?;
            p.close("f")
        })],
    },
    Scenario {
        name: "reserve",
        prepare: old,
        steps: &[does(|p| {
            let file = p.open("+", "f")?;
            rustix::fs::fallocate(file, FallocateFlags::empty(), 0, 9000)?;
            p.close("f")
        })],
    },
    Scenario {
        name: "fsync",
        prepare: old,
        steps: &[
            does(|p| {
                p.open(">", "f")?.write_all(b"half")?;
                p.file("f").sync_all()
            }),
            does(|p| {
                p.file("f").write_all(b", and all")?;
                p.close("f")
            }),
        ],
    },
    Scenario {
        name: "truncate",
        prepare: old,
        steps: &[
            does(|p| p.truncate("f", 5)),
            does(|p| {
                p.open("+", "f")?.set_len(9)?;
                p.close("f")
            }),
        ],
    },
    Scenario {
        name: "attributes of a version",
        prepare: old,
        steps: &[does(|p| {
            let file = p.open(">", "f")?;
            file.write_all(b"new")?;
            file.set_permissions(mode(0o640))?;
            rustix::fs::fsetxattr(&file, "user.mark", b"new", XattrFlags::empty())?;
            rustix::fs::futimens(&file, &times())?;
            p.close("f")
        })],
    },
];

/// Files that keep their inode.
pub const IN_PLACE: &[Scenario] = &[
    Scenario {
        name: "replace linked",
        prepare: linked,
        steps: &[does(|p| p.save(">", "f", &"new".repeat(5000)))],
    },
    Scenario {
        name: "update linked",
        prepare: linked,
        steps: &[does(|p| {
            let file = p.open("+", "g")?;
            file.write_all_at(b"new", 4)?;
            file.set_permissions(mode(0o640))?;
            p.close("g")
        })],
    },
    Scenario {
        name: "truncate linked",
        prepare: linked,
        steps: &[does(|p| p.truncate("f", 5))],
    },
];

/// Records.
pub const APPENDING: &[Scenario] = &[
    Scenario {
        name: "append",
        prepare: nothing,
        steps: &[
            does(|p| p.open(">>", "log").map(drop)),
            does(|p| p.file("log").write_all(b"one\n")),
            does(|p| p.file("log").write_all(b"two\n")),
            does(|p| p.file("log").sync_all()),
            does(|p| p.file("log").write_all(b"three\n")),
            does(|p| p.close("log")),
        ],
    },
    Scenario {
        name: "append to what is there",
        prepare: log,
        steps: &[
            does(|p| {
                p.open(">>", "log")?;
                p.file("log").write_all(b"one\n")
            }),
            does(|p| p.close("log")),
        ],
    },
    Scenario {
        name: "rotation by renaming",
        prepare: log,
        steps: &[
            does(|p| {
                p.open(">>", "log")?;
                p.file("log").write_all(b"one\n")
            }),
            does(|p| fs::rename(p.at("log"), p.at("log.1"))),
            does(|p| p.file("log").write_all(b"two\n")),
            does(|p| p.close("log")),
            does(|p| p.open(">>", "log").map(drop)),
            does(|p| p.file("log").write_all(b"three\n")),
            does(|p| p.close("log")),
        ],
    },
    Scenario {
        name: "rotation by copying",
        prepare: log,
        steps: &[
            does(|p| {
                p.open(">>", "log")?;
                p.file("log").write_all(b"one\n")
            }),
            does(|p| p.save(">", "log.1", "first\none\n")),
            does(|p| p.truncate("log", 0)),
            does(|p| p.file("log").write_all(b"two\n")),
            does(|p| p.close("log")),
        ],
    },
    Scenario {
        name: "append to what the same thread writes",
        prepare: log,
        steps: &[
            does(|p| p.open(">>", "log").map(drop)),
            means(
                |_| Ok(()),
                |p| {
                    p.open(">", "./log")?.write_all(b"new\n")?;
                    p.file("log").write_all(b"one\n")
                },
            ),
            means(
                |p| fs::write(p.at("log"), "new\none\n"),
                |p| p.close("./log"),
            ),
            does(|p| p.close("log")),
        ],
    },
    Scenario {
        name: "append to what another writes",
        prepare: log,
        steps: &[
            does(|p| p.open(">>", "log").map(drop)),
            means(
                |_| Ok(()),
                |p| {
                    let other = std::thread::scope(|scope| {
                        let update = scope.spawn(|| p.open("+", "./log")?.write_all_at(b"F", 0));
                        update.join()
                    });
                    other.expect("the other thread")
                },
            ),
            does(|p| p.file("log").write_all(b"one\n")),
            means(
                |p| fs::write(p.at("log"), "First\none\n"),
                |p| p.close("./log"),
            ),
            does(|p| p.file("log").write_all(b"two\n")),
            does(|p| p.close("log")),
        ],
    },
];

/// Names and attributes.
pub const NAMES: &[Scenario] = &[
    Scenario {
        name: "rename over",
        prepare: old,
        steps: &[
            does(|p| p.save(">", "f.tmp", "new")),
            does(|p| fs::rename(p.at("f.tmp"), p.at("f"))),
        ],
    },
    Scenario {
        name: "rename while it is written",
        prepare: old,
        steps: &[
            means(
                |p| fs::rename(p.at("f"), p.at("g")),
                |p| {
                    p.open(">", "f")?.write_all(b"new")?;
                    fs::rename(p.at("f"), p.at("g"))
                },
            ),
            means(|p| fs::write(p.at("g"), "new"), |p| p.close("f")),
        ],
    },
    Scenario {
        name: "create, rename over, close",
        prepare: old,
        steps: &[does(|p| {
            p.open(">", "f.tmp")?.write_all(b"new")?;
            fs::rename(p.at("f.tmp"), p.at("f"))?;
            p.close("f.tmp")
        })],
    },
    Scenario {
        name: "make and remove",
        prepare: old,
        steps: &[
            does(|p| fs::create_dir(p.at("d"))),
            does(|p| p.save(">", "d/f", "new")),
            does(|p| fs::hard_link(p.at("f"), p.at("d/g"))),
            does(|p| symlink("f", p.at("link"))),
            does(|p| fs::rename(p.at("d"), p.at("e"))),
            does(|p| fs::remove_file(p.at("e/f"))),
            does(|p| fs::remove_file(p.at("f"))),
            does(|p| fs::remove_file(p.at("e/g"))),
            does(|p| fs::remove_dir(p.at("e"))),
        ],
    },
    Scenario {
        name: "exchange",
        prepare: |dir| {
            old(dir)?;
            fs::write(dir.join("g"), "the other")
        },
        steps: &[does(|p| {
            use rustix::fs::{CWD, renameat_with};
            let (f, g) = (p.at("f"), p.at("g"));
            Ok(renameat_with(CWD, f, CWD, g, RenameFlags::EXCHANGE)?)
        })],
    },
    Scenario {
        name: "attributes",
        prepare: old,
        steps: &[
            does(|p| fs::set_permissions(p.at("f"), mode(0o640))),
            does(|p| std::os::unix::fs::chown(p.at("f"), Some(1), Some(1))),
            does(|p| {
                let (at, none) = (rustix::fs::CWD, rustix::fs::AtFlags::empty());
                Ok(rustix::fs::utimensat(at, p.at("f"), &times(), none)?)
            }),
            does(|p| {
                let flags = XattrFlags::empty();
                Ok(rustix::fs::setxattr(p.at("f"), "user.mark", b"new", flags)?)
            }),
            does(|p| Ok(rustix::fs::removexattr(p.at("f"), "user.mark")?)),
        ],
    },
    Scenario {
        name: "a direct file becomes a version",
        prepare: |dir| fs::write(dir.join("index"), OLD),
        steps: &[
            does(|p| p.open(">", "index.lock").map(drop)),
            does(|p| p.file("index.lock").write_all(b"new")),
            does(|p| p.close("index.lock")),
            does(|p| fs::rename(p.at("index.lock"), p.at("index"))),
        ],
    },
];

/// Must fail, by this errno.
fn fails(result: io::Result<()>, errno: i32) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(errno) => Ok(()),
        Err(error) => Err(error),
        Ok(()) => Err(io::Error::other("it did not fail")),
    }
}

/// Versions that do not become the file.
pub const ASIDE: &[Scenario] = &[
    Scenario {
        name: "refused",
        prepare: |dir| fs::write(dir.join("f.json"), "[1]"),
        steps: &[
            aside("[2", |p| fails(p.save(">", "f.json", "[2"), libc::EBADMSG)),
            does(|p| p.save(">", "f.json", "[3]")),
        ],
    },
    Scenario {
        name: "killed",
        prepare: old,
        steps: &[aside("half", |p| {
            p.sh("sh -c 'exec > f; printf half; kill -9 $$'; true")?;
            // The next writer has to wait until that is settled.
            p.open("+", "f")?;
            p.close("f")
        })],
    },
    Scenario {
        name: "detached",
        prepare: old,
        steps: &[
            means(
                |p| fs::remove_file(p.at("f")),
                |p| {
                    p.open(">", "f")?.write_all(b"new")?;
                    p.sh("rm f")
                },
            ),
            aside("new", |p| p.close("f")),
        ],
    },
];

/// Without the protection: what these leave must be found torn.
pub const CONTROLS: &[Scenario] = &[Scenario {
    name: "replace a direct file",
    prepare: |dir| fs::write(dir.join("f.db"), OLD),
    steps: &[does(|p| p.save(">", "f.db", "new"))],
}];
