//! What is checked before anything is changed: can these two directories become a mount at all?

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::exit::{Exit, Failure, shell_word};
use super::mounts::{Mount, MountTable};
use super::resolve::{Place, resolve};
use super::served::daemon_of;

/// The two directories of a mount, absolute and free of symbolic links.
#[derive(Debug)]
pub(super) struct Directories {
    pub(super) backing: PathBuf,
    pub(super) mountpoint: PathBuf,
}

/// Checks the two directories as given, and returns them resolved. With no mountpoint, BACKING is
/// to be mounted in place.
pub(super) fn directories(
    backing: &Path,
    mountpoint: Option<&Path>,
) -> Result<Directories, Failure> {
    let mounts = MountTable::read().map_err(|error| {
        let message = format!("cannot read /proc/self/mountinfo: {error}; is /proc mounted?");
        Failure::new(Exit::Internal, message)
    })?;
    let backing = check_backing(backing, &mounts)?;
    let mountpoint = match mountpoint {
        Some(given) => check_mountpoint(given, &mounts)?,
        None => backing.clone(),
    };
    check_apart(&backing, &mountpoint)?;
    Ok(Directories {
        backing,
        mountpoint,
    })
}

fn check_backing(given: &Path, mounts: &MountTable) -> Result<PathBuf, Failure> {
    let fail = |what: String| Failure::new(Exit::Backing, what);
    let unusable = |error| fail(cannot_be_used("BACKING", given, &error));
    let path = match resolve(given, mounts).map_err(unusable)? {
        Place::Outside(path) => path,
        Place::Root(mount) if mounts.is_in_place(&mount) => {
            return Err(mounted_in_place(given, &mount, mounts));
        }
        Place::Root(mount) | Place::Inside(mount, _) => {
            return Err(fail(format!(
                "BACKING {} is inside the latchfs mount at {}; give the directory behind that \
                 mount, or another one",
                given.display(),
                mount.point.display()
            )));
        }
    };
    if path.to_str().is_none() {
        // The table of mounts has to name it, and fuser takes text for that.
        let what = "its path is not UTF-8, which the table of mounts can't show; rename it";
        return Err(fail(format!(
            "BACKING {} cannot be used: {what}",
            given.display()
        )));
    }
    if let Some(mount) = mounts.latchfs_around(&path) {
        return Err(Failure::new(
            Exit::Busy,
            format!(
                "BACKING {} and {}, which is mounted at {}, contain one another, and two daemons \
                 would not know of each other; unmount that one first",
                given.display(),
                mount.source.display(),
                mount.point.display()
            ),
        ));
    }
    // A stat first: to open a FIFO would wait for a writer.
    if !fs::metadata(&path).map_err(unusable)?.is_dir() {
        return Err(unusable(io::ErrorKind::NotADirectory.into()));
    }
    // And opening it finds a directory that may not be read.
    File::open(&path).map_err(unusable)?;
    Ok(path)
}

fn check_mountpoint(given: &Path, mounts: &MountTable) -> Result<PathBuf, Failure> {
    let fail = |what: String| Failure::new(Exit::Mountpoint, what);
    let unusable = |error| fail(cannot_be_used("MOUNTPOINT", given, &error));
    let path = match resolve(given, mounts).map_err(unusable)? {
        Place::Outside(path) => path,
        Place::Root(mount) => return Err(fail(already_mounted(given, &mount, mounts))),
        Place::Inside(mount, _) => {
            return Err(fail(format!(
                "MOUNTPOINT {} is inside the latchfs mount at {}; choose a directory outside it",
                given.display(),
                mount.point.display()
            )));
        }
    };
    if !fs::metadata(&path).map_err(unusable)?.is_dir() {
        return Err(unusable(io::ErrorKind::NotADirectory.into()));
    }
    Ok(path)
}

/// What to say of a BACKING that lies beneath a mount of itself.
fn mounted_in_place(given: &Path, mount: &Mount, mounts: &MountTable) -> Failure {
    match daemon_of(mount, mounts) {
        Some(pid) => Failure::new(
            Exit::Busy,
            format!(
                "{} is already served in place by another latchfs (pid {pid}); to unmount that one, \
                 run: latchfs umount {}",
                given.display(),
                shell_word(given)
            ),
        ),
        None => Failure::new(Exit::Mountpoint, already_mounted(given, mount, mounts)),
    }
}

fn already_mounted(given: &Path, mount: &Mount, mounts: &MountTable) -> String {
    let (point, word) = (given.display(), shell_word(given));
    match daemon_of(mount, mounts) {
        Some(_) => format!(
            "MOUNTPOINT {point} is already a latchfs mount, of {}; choose another directory, or \
             run: latchfs umount {word}",
            mount.source.display()
        ),
        // The daemon of another user looks the same from here, so this does not say "dead".
        None => format!(
            "MOUNTPOINT {point} already holds a latchfs mount, of {}, whose daemon is \
             not to be seen from here (it is read-only, another user's, or dead); to take it away, \
             run: latchfs umount {word}",
            mount.source.display()
        ),
    }
}

/// Refuses a mount that would show itself inside itself, or hide what it stands on.
fn check_apart(backing: &Path, mountpoint: &Path) -> Result<(), Failure> {
    let fail = |what: String| Err(Failure::new(Exit::Mountpoint, what));
    let (back, point) = (backing.display(), mountpoint.display());
    if mountpoint == Path::new("/") {
        return fail(
            "/ cannot be a MOUNTPOINT: programs that run already would not see the mount"
                .to_owned(),
        );
    }
    if is_same(backing, mountpoint) {
        return Ok(());
    }
    if is_inside(mountpoint, backing) {
        return fail(format!(
            "MOUNTPOINT {point} is inside BACKING {back}; choose a MOUNTPOINT outside it"
        ));
    }
    if is_inside(backing, mountpoint) {
        return fail(format!(
            "BACKING {back} is inside MOUNTPOINT {point}, and the mount would hide it; choose \
             another MOUNTPOINT"
        ));
    }
    Ok(())
}

/// Whether `path` is below `dir`, be it by another name: a mount inside a bind mount of BACKING may
/// well appear in BACKING, too (shared subtrees, mount_namespaces(7)).
fn is_inside(path: &Path, dir: &Path) -> bool {
    path.ancestors()
        .skip(1)
        .any(|ancestor| is_same(ancestor, dir))
}

fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    one == other
        || match (identity(one), identity(other)) {
            (Ok(one), Ok(other)) => one == other,
            // What may not be looked at is no directory of ours.
            _ => false,
        }
}

/// What is wrong with a directory, and what to do about it.
fn cannot_be_used(role: &str, given: &Path, error: &io::Error) -> String {
    let (path, word) = (given.display(), shell_word(given));
    match error.kind() {
        io::ErrorKind::NotFound => {
            format!("{role} {path} does not exist; create it first: mkdir -p {word}")
        }
        io::ErrorKind::NotADirectory => {
            format!("{role} {path} is not a directory; give the path of a directory")
        }
        io::ErrorKind::PermissionDenied => format!(
            "{role} {path} may not be read: permission denied; run latchfs as a user who may, or \
             change its permissions"
        ),
        // The fixed name is that of the error text: ENOTCONN.
        io::ErrorKind::NotConnected => format!(
            "{role} {path} holds a dead FUSE mount (transport endpoint is not connected); clear \
             it away with: fusermount3 -u {word}"
        ),
        _ => format!("{role} {path} cannot be used: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Scene {
        _guard: tempfile::TempDir,
        dir: PathBuf,
    }

    impl Scene {
        fn new() -> Self {
            let guard = tempfile::tempdir().unwrap();
            let dir = guard.path().canonicalize().unwrap();
            for name in ["backing/sub", "point"] {
                fs::create_dir_all(dir.join(name)).unwrap();
            }
            fs::write(dir.join("file"), "").unwrap();
            Self { _guard: guard, dir }
        }

        fn check(&self, backing: &str, mountpoint: &str) -> Result<Directories, Failure> {
            directories(&self.dir.join(backing), Some(&self.dir.join(mountpoint)))
        }

        fn refuses(&self, backing: &str, mountpoint: &str, exit: Exit, words: &str) {
            let failure = self.check(backing, mountpoint).unwrap_err();
            assert_eq!(failure.exit, exit, "{}", failure.message);
            assert!(failure.message.contains(words), "{}", failure.message);
            assert!(!failure.message.contains('\n'));
        }
    }

    #[test]
    fn two_directories_apart_are_accepted_and_resolved() {
        let scene = Scene::new();
        symlink("backing", scene.dir.join("link")).unwrap();
        fs::write(scene.dir.join("point/not_empty"), "").unwrap();
        let found = scene.check("link", "backing/../point").unwrap();
        assert_eq!(found.backing, scene.dir.join("backing"));
        assert_eq!(found.mountpoint, scene.dir.join("point"));
    }

    #[test]
    fn a_directory_whose_name_only_starts_the_same_is_no_parent() {
        let scene = Scene::new();
        fs::create_dir(scene.dir.join("backing2")).unwrap();
        scene.check("backing", "backing2").unwrap();
        scene.check("backing2", "backing").unwrap();
    }

    #[test]
    fn a_missing_directory_is_refused() {
        let scene = Scene::new();
        scene.refuses(
            "missing",
            "point",
            Exit::Backing,
            "does not exist; create it",
        );
        scene.refuses(
            "backing",
            "missing",
            Exit::Mountpoint,
            "does not exist; create it",
        );
    }

    #[test]
    fn a_file_is_refused() {
        let scene = Scene::new();
        scene.refuses("file", "point", Exit::Backing, "BACKING");
        scene.refuses("file", "point", Exit::Backing, "is not a directory");
        scene.refuses("backing", "file", Exit::Mountpoint, "is not a directory");
        scene.refuses("backing", "file/x", Exit::Mountpoint, "is not a directory");
    }

    #[test]
    fn directories_that_are_not_apart_are_refused() {
        let scene = Scene::new();
        symlink("backing/sub", scene.dir.join("link")).unwrap();
        scene.refuses(
            "backing",
            "backing/sub",
            Exit::Mountpoint,
            "is inside BACKING",
        );
        scene.refuses("backing", "link", Exit::Mountpoint, "is inside BACKING");
        scene.refuses("backing/sub", "backing", Exit::Mountpoint, "would hide it");
    }

    #[test]
    fn a_directory_may_be_mounted_in_place() {
        let scene = Scene::new();
        symlink("backing", scene.dir.join("link")).unwrap();
        let backing = scene.dir.join("backing");
        for point in ["backing", "link", "point/../backing"] {
            let found = scene.check("backing", point).unwrap();
            assert_eq!(
                (found.backing, found.mountpoint),
                (backing.clone(), backing.clone())
            );
        }
        let found = directories(&scene.dir.join("link"), None).unwrap();
        assert_eq!(
            (found.backing, found.mountpoint),
            (backing.clone(), backing)
        );
        let failure = check_apart(Path::new("/"), Path::new("/")).unwrap_err();
        assert_eq!(failure.exit, Exit::Mountpoint, "{}", failure.message);
    }

    #[test]
    fn a_directory_mounted_in_place_is_not_mounted_again() {
        let scene = Scene::new();
        let dir = scene.dir.join("backing");
        let shown = dir.display();
        let line = format!("1 0 0:1 / {shown} rw - fuse.latchfs {shown} rw\n");
        let failure = check_backing(&dir, &MountTable::parse(line.as_bytes())).unwrap_err();
        // Nobody serves this made-up mount.
        assert_eq!(failure.exit, Exit::Mountpoint);
        assert!(
            failure.message.contains("latchfs umount"),
            "{}",
            failure.message
        );
    }

    #[test]
    fn a_latchfs_mount_is_refused_on_either_side() {
        let scene = Scene::new();
        let point = scene.dir.join("point");
        let line = format!("1 0 0:1 / {} rw - fuse.latchfs /none rw\n", point.display());
        let mounts = MountTable::parse(line.as_bytes());
        let refused = |failure: Failure, exit, words: &str| {
            assert_eq!(failure.exit, exit);
            assert!(failure.message.contains(words), "{}", failure.message);
        };
        let failure = check_mountpoint(&point, &mounts).unwrap_err();
        refused(failure, Exit::Mountpoint, "latchfs umount");
        let failure = check_mountpoint(&point.join("below"), &mounts).unwrap_err();
        refused(failure, Exit::Mountpoint, "is inside the latchfs mount at");
        let failure = check_backing(&point, &mounts).unwrap_err();
        refused(failure, Exit::Backing, "is inside the latchfs mount at");
    }

    #[test]
    fn every_reason_says_what_to_do() {
        let words = |kind: io::ErrorKind| cannot_be_used("BACKING", Path::new("/x"), &kind.into());
        assert!(words(io::ErrorKind::NotConnected).contains("fusermount3 -u /x"));
        assert!(words(io::ErrorKind::PermissionDenied).contains("run latchfs as a user who may"));
    }
}
