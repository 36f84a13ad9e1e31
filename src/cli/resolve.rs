//! Paths, resolved without ever asking a latchfs for anything.
//!
//! `canonicalize` asks every directory on the way, and hangs when one of them is a mount whose
//! daemon does not answer. This walk looks into the table of mounts before it touches a name.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::mounts::{Mount, MountTable};

/// As many symbolic links as the kernel follows in one path.
pub(super) const MAX_LINKS: u32 = 40;

/// Where a path leads.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Outside every latchfs: the path, absolute and free of symbolic links. Its last name was
    /// seen to exist.
    Outside(PathBuf),
    /// At the root of a latchfs mount.
    Root(Mount),
    /// Into a latchfs mount, with the way from its root, which was not looked at: it may have `..`
    /// and symbolic links in it.
    Inside(Mount, PathBuf),
}

/// Resolves `path`, relative to the current directory.
pub(super) fn resolve(path: &Path, mounts: &MountTable) -> io::Result<Place> {
    resolve_from(&std::env::current_dir()?, path, mounts)
}

/// Resolves `path`, relative to `base`, an absolute path free of symbolic links.
pub(super) fn resolve_from(base: &Path, path: &Path, mounts: &MountTable) -> io::Result<Place> {
    if path.as_os_str().is_empty() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let mut todo = components(path);
    if path.is_relative() {
        let mut from_root = components(base);
        from_root.append(&mut todo);
        todo = from_root;
    }
    let mut here = PathBuf::from("/");
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            here.pop();
            continue;
        }
        let next = here.join(&name);
        if let Some(mount) = mounts.mounted_at(&next).filter(|mount| mount.is_latchfs()) {
            let mount = mount.clone();
            return Ok(if todo.is_empty() {
                Place::Root(mount)
            } else {
                Place::Inside(mount, todo.iter().collect())
            });
        }
        if next.symlink_metadata()?.is_symlink() {
            links += 1;
            if links > MAX_LINKS {
                return Err(rustix::io::Errno::LOOP.into());
            }
            let target = next.read_link()?;
            if target.is_absolute() {
                here = PathBuf::from("/");
            }
            let mut target = components(&target);
            target.append(&mut todo);
            todo = target;
        } else {
            here = next;
        }
    }
    Ok(Place::Outside(here))
}

/// The names of a path, `..` among them, without `.` and the leading slash.
pub(super) fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter(|component| matches!(component, Component::Normal(_) | Component::ParentDir))
        .map(|component| component.as_os_str().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A directory, canonical, and a table in which `mounted` below it is a latchfs.
    fn scene() -> (tempfile::TempDir, PathBuf, MountTable) {
        let guard = tempfile::tempdir().unwrap();
        let dir = guard.path().canonicalize().unwrap();
        fs::create_dir_all(dir.join("a/b")).unwrap();
        fs::create_dir(dir.join("mounted")).unwrap();
        fs::write(dir.join("file"), "").unwrap();
        symlink("a/b", dir.join("to_b")).unwrap();
        symlink(dir.join("mounted"), dir.join("to_mount")).unwrap();
        symlink("loop", dir.join("loop")).unwrap();
        let line = format!(
            "1 0 0:1 / {}/mounted rw - fuse.latchfs /x rw\n",
            dir.display()
        );
        (guard, dir, MountTable::parse(line.as_bytes()))
    }

    #[test]
    fn links_and_dots_are_followed_as_canonicalize_does() {
        let (_guard, dir, mounts) = scene();
        for path in ["a/b", "to_b", "to_b/..", "./a//../a/./b/", "file", "."] {
            let expected = dir.join(path).canonicalize().unwrap();
            let place = resolve_from(&dir, Path::new(path), &mounts).unwrap();
            assert_eq!(place, Place::Outside(expected), "{path}");
        }
        assert_eq!(resolve(&dir, &mounts).unwrap(), Place::Outside(dir));
    }

    #[test]
    fn a_latchfs_is_seen_by_every_way_to_it() {
        let (_guard, dir, mounts) = scene();
        for path in ["mounted", "to_mount", "a/../mounted", "mounted/"] {
            let place = resolve_from(&dir, Path::new(path), &mounts).unwrap();
            assert!(
                matches!(place, Place::Root(mount) if mount.id == 1),
                "{path}"
            );
        }
        for path in ["mounted/below", "to_mount/does/not/matter"] {
            let place = resolve_from(&dir, Path::new(path), &mounts).unwrap();
            assert!(
                matches!(place, Place::Inside(mount, _) if mount.id == 1),
                "{path}"
            );
        }
    }

    #[test]
    fn a_path_that_leads_nowhere_is_an_error() {
        let (_guard, dir, mounts) = scene();
        let kind = |path: &str| {
            resolve_from(&dir, Path::new(path), &mounts)
                .unwrap_err()
                .kind()
        };
        assert_eq!(kind("missing"), io::ErrorKind::NotFound);
        assert_eq!(kind(""), io::ErrorKind::NotFound);
        assert_eq!(kind("file/below"), io::ErrorKind::NotADirectory);
        let error = resolve_from(&dir, Path::new("loop"), &mounts).unwrap_err();
        assert_eq!(
            error.raw_os_error(),
            Some(rustix::io::Errno::LOOP.raw_os_error())
        );
    }
}
