//! Which configuration file a mount has.

use super::file::{Configuration, ConfigurationError, parse_file, read};
use crate::backing::store::{DIRECTORY, read_file};
use crate::backing::{Dir, Errno};
use rustix::fs::FileType;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Its name in BACKING's `.latchfs`.
const NAME: &str = "config.toml";
/// Where it is for all mounts of a machine.
const FOR_ALL: &str = "/etc/latchfs.toml";

/// What applies to a mount of `root`, and the file it comes from: the one that was named, else
/// `.latchfs/config.toml` in BACKING, else `/etc/latchfs.toml`; the built-in rules if there is none.
///
/// A file in BACKING is believed only where nobody but this user (and root) can have written it: it
/// can name programs that the daemon runs. `backing` is for messages.
///
/// # Errors
/// A file that is there and can't be used.
pub fn find(
    named: Option<&Path>,
    root: &Dir,
    backing: &Path,
) -> Result<(Configuration, Option<PathBuf>), ConfigurationError> {
    if let Some(path) = named {
        return Ok((read(path)?, Some(path.to_owned())));
    }
    let path = backing.join(DIRECTORY).join(NAME);
    if let Some(text) = in_backing(root).map_err(|why| ConfigurationError::Unusable {
        path: path.clone(),
        why,
    })? {
        return Ok((parse_file(&text, &path)?, Some(path)));
    }
    let path = Path::new(FOR_ALL);
    match read(path) {
        Err(ConfigurationError::Unreadable(_, error))
            if error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok((Configuration::default(), None))
        }
        other => Ok((other?, Some(path.to_owned()))),
    }
}

/// The text of BACKING's own, if there is one.
fn in_backing(root: &Dir) -> Result<Option<String>, String> {
    let missing = |errno| matches!(errno, Errno::NOENT | Errno::NOTDIR);
    let readable = |errno: Errno| errno.to_string();
    let own = match root.open_dir(OsStr::new(DIRECTORY)) {
        Err(errno) if missing(errno) => return Ok(None),
        other => other.map_err(readable)?,
    };
    let file = match own.stat_at(OsStr::new(NAME)) {
        Err(errno) if missing(errno) => return Ok(None),
        other => other.map_err(readable)?,
    };
    if FileType::from_raw_mode(file.st_mode) != FileType::RegularFile {
        return Err(String::from("it is no regular file"));
    }
    let user = rustix::process::geteuid().as_raw();
    for stat in [&own.stat().map_err(readable)?, &file] {
        if stat.st_uid != user && stat.st_uid != 0 {
            let owner = stat.st_uid;
            return Err(format!("it, or its directory, belongs to user {owner}"));
        }
        if stat.st_mode & 0o022 != 0 {
            return Err(String::from(
                "others may write it, or its directory: chmod go-w",
            ));
        }
    }
    let text = read_file(&own, OsStr::new(NAME)).map_err(readable)?;
    String::from_utf8(text)
        .map(Some)
        .map_err(|_| String::from("it is not UTF-8"))
}
