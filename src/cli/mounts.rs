//! The table of mounts, from `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
//!
//! Asking this table, unlike stat(2), never talks to a filesystem, so it never hangs on one whose
//! daemon does not answer.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// The filesystem type of every latchfs mount.
const FS_TYPE: &[u8] = b"fuse.latchfs";

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) id: u64,
    pub(super) parent: u64,
    /// Names the superblock: all bind mounts of one filesystem share it.
    pub(super) device: String,
    pub(super) point: PathBuf,
    pub(super) fs_type: Vec<u8>,
    /// For latchfs: BACKING.
    pub(super) source: PathBuf,
    /// The `user_id=` of a FUSE mount: who mounted it, and may unmount it with fusermount3.
    pub(super) owner: Option<u32>,
}

impl Mount {
    pub(super) fn is_latchfs(&self) -> bool {
        self.fs_type == FS_TYPE
    }

    /// `36 35 0:52 /root /point rw,noatime shared:1 - fuse.latchfs /backing rw,user_id=0`
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let id = number(fields.next()?)?;
        let parent = number(fields.next()?)?;
        let device = std::str::from_utf8(fields.next()?).ok()?.to_owned();
        let _root = fields.next()?;
        let point = unescape(fields.next()?);
        // The per-mount options, then optional fields of any number up to a lone dash.
        fields.find(|field| *field == b"-")?;
        let fs_type = fields.next()?.to_vec();
        let source = unescape(fields.next()?);
        let owner = fields.next().and_then(|options| {
            let mut options = options.split(|byte| *byte == b',');
            let owner = options.find_map(|option| option.strip_prefix(b"user_id="))?;
            number(owner)
        });
        Some(Self {
            id,
            parent,
            device,
            point,
            fs_type,
            source,
            owner,
        })
    }
}

/// All mounts that this process sees.
#[derive(Clone, Debug, Default)]
pub(super) struct MountTable {
    mounts: Vec<Mount>,
    ids: HashSet<u64>,
}

impl MountTable {
    /// Reads the table as it is now.
    pub(super) fn read() -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read("/proc/self/mountinfo")?))
    }

    /// Lines that cannot be parsed are left out: the kernel writes none.
    pub(super) fn parse(table: &[u8]) -> Self {
        let mounts: Vec<Mount> = table
            .split(|byte| *byte == b'\n')
            .filter_map(Mount::parse)
            .collect();
        let ids = mounts.iter().map(|mount| mount.id).collect();
        Self { mounts, ids }
    }

    /// The mount that a walk of the kernel to `path` (absolute, free of symbolic links) ends on if
    /// one is mounted exactly there: the topmost one, and none that a later mount over a parent
    /// directory hides.
    pub(super) fn mounted_at(&self, path: &Path) -> Option<&Mount> {
        let mut prefixes: Vec<&Path> = path.ancestors().collect();
        prefixes.reverse();
        let mut current: Option<&Mount> = None;
        for prefix in prefixes {
            while let Some(next) = self.mounted_on(current, prefix) {
                current = Some(next);
            }
        }
        current.filter(|mount| mount.point == path)
    }

    /// The mount at `point` whose parent is `parent`; with no parent, one that this table knows no
    /// parent of (the root, or in a chroot whatever is mounted below it).
    fn mounted_on(&self, parent: Option<&Mount>, point: &Path) -> Option<&Mount> {
        self.mounts.iter().find(|mount| {
            mount.point == point
                && match parent {
                    Some(parent) => mount.parent == parent.id && mount.id != parent.id,
                    None => mount.parent == mount.id || !self.ids.contains(&mount.parent),
                }
        })
    }

    /// The mount with this id.
    pub(super) fn by_id(&self, id: u64) -> Option<&Mount> {
        self.mounts.iter().find(|mount| mount.id == id)
    }

    /// Whether this very mount is still in the table.
    pub(super) fn contains(&self, mount: &Mount) -> bool {
        // The kernel uses ids and device numbers again at once, so alone they would not do. The
        // mountpoint says nothing: it changes when a directory above it is renamed.
        let identity = |mount: &Mount| (mount.id, mount.device.clone(), mount.source.clone());
        self.mounts
            .iter()
            .any(|other| identity(other) == identity(mount))
    }

    /// A latchfs mount whose BACKING lies strictly above or below this directory.
    pub(super) fn latchfs_around(&self, backing: &Path) -> Option<&Mount> {
        let mut mounts = self.mounts.iter().filter(|mount| mount.is_latchfs());
        mounts.find(|mount| {
            let other = &mount.source;
            other != backing && (backing.starts_with(other) || other.starts_with(backing))
        })
    }

    /// All mounts of the filesystem that this is a mount of: bind mounts, and the copies that mount
    /// propagation makes (mount_namespaces(7)).
    pub(super) fn of_same_filesystem<'a>(
        &'a self,
        mount: &'a Mount,
    ) -> impl Iterator<Item = &'a Mount> {
        self.mounts
            .iter()
            .filter(|other| other.device == mount.device)
    }

    /// Whether it covers its own BACKING.
    pub(super) fn is_in_place(&self, mount: &Mount) -> bool {
        self.of_same_filesystem(mount)
            .any(|other| other.is_latchfs() && other.point == other.source)
    }

    /// Where this BACKING is shown: the mount of this device, if that is known, since BACKING may go
    /// by another name there.
    pub(super) fn latchfs_of(&self, backing: &Path, device: Option<&str>) -> Option<&Mount> {
        self.mounts.iter().find(|mount| {
            mount.is_latchfs()
                && device.map_or(mount.source == backing, |device| mount.device == device)
        })
    }
}

fn number<N: std::str::FromStr>(field: &[u8]) -> Option<N> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Undoes the octal escapes (`\040` for a space) that keep a field in one piece.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] if first == b'\\' => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => bytes.push(first),
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:5 / /proc rw,nosuid shared:2 master:3 - proc proc rw
40 22 0:52 / /mnt/with\\040space rw,nosuid,nodev - fuse.latchfs /data/a\\134b\\011c rw,user_id=1000,group_id=1000
41 22 0:53 / /mnt/stack rw - fuse.latchfs /one rw,user_id=0,group_id=0
42 41 0:54 / /mnt/stack rw - fuse.latchfs /two rw,user_id=0,group_id=0
43 22 0:55 / /hidden/below rw - fuse.latchfs /three rw,user_id=0
44 22 0:56 / /hidden rw - tmpfs tmpfs rw
45 22 0:57 / /again rw - fuse.latchfs /one rw,user_id=0
46 22 0:54 / /bind rw - fuse.latchfs /two rw,user_id=0
garbage
";

    #[test]
    fn fields_are_found_behind_any_number_of_optional_ones() {
        let table = MountTable::parse(TABLE);
        let root = table.mounted_at(Path::new("/")).unwrap();
        assert_eq!(
            (root.id, root.fs_type.as_slice(), root.owner),
            (22, &b"ext4"[..], None)
        );
        let proc = table.mounted_at(Path::new("/proc")).unwrap();
        assert_eq!((proc.id, proc.is_latchfs()), (30, false));
        assert_eq!(table.mounts.len(), 9);
    }

    #[test]
    fn octal_escapes_are_undone() {
        let table = MountTable::parse(TABLE);
        let mount = table.mounted_at(Path::new("/mnt/with space")).unwrap();
        assert!(mount.is_latchfs());
        assert_eq!(mount.source, Path::new("/data/a\\b\tc"));
        assert_eq!(mount.owner, Some(1000));
        assert_eq!(unescape(b"tail\\04"), Path::new("tail\\04"));
    }

    #[test]
    fn the_topmost_of_stacked_mounts_is_found() {
        let table = MountTable::parse(TABLE);
        assert_eq!(table.mounted_at(Path::new("/mnt/stack")).unwrap().id, 42);
    }

    #[test]
    fn a_mount_hidden_under_another_is_not_found() {
        let table = MountTable::parse(TABLE);
        assert_eq!(table.mounted_at(Path::new("/hidden/below")), None);
        assert_eq!(table.mounted_at(Path::new("/hidden")).unwrap().id, 44);
    }

    #[test]
    fn a_directory_that_is_no_mountpoint_is_not_found() {
        let table = MountTable::parse(TABLE);
        assert_eq!(table.mounted_at(Path::new("/mnt")), None);
        assert_eq!(table.mounted_at(Path::new("/mnt/stack/sub")), None);
    }

    #[test]
    fn mounts_are_found_in_a_chroot_whose_root_is_no_mount() {
        let table = MountTable::parse(
            b"50 9 0:5 / /proc rw - proc proc rw\n51 9 0:6 / /m rw - fuse.latchfs /b rw\n",
        );
        assert_eq!(table.mounted_at(Path::new("/m")).unwrap().id, 51);
        assert_eq!(table.mounted_at(Path::new("/")), None);
    }

    #[test]
    fn the_filesystems_of_one_backing_are_told_by_their_devices() {
        let table = MountTable::parse(TABLE);
        let of = |backing: &str, device| table.latchfs_of(Path::new(backing), device);
        assert_eq!(of("/one", Some("0:57")).unwrap().id, 45);
        assert_eq!(of("/two", None).unwrap().id, 42);
        assert_eq!(of("/renamed", Some("0:57")).unwrap().id, 45);
        assert_eq!(of("/renamed", None), None);
        assert_eq!(of("/one", Some("0:99")), None);
        let bound = of("/two", None).unwrap();
        let all: Vec<u64> = table.of_same_filesystem(bound).map(|m| m.id).collect();
        assert_eq!(all, [42, 46]);
    }

    #[test]
    fn a_mount_over_its_own_backing_is_in_place_wherever_it_is_bound() {
        let table = MountTable::parse(
            b"1 0 0:1 / /data rw - fuse.latchfs /data rw\n\
              2 0 0:1 / /bind rw - fuse.latchfs /data rw\n\
              3 0 0:2 / /m rw - fuse.latchfs /b rw\n",
        );
        for (point, expected) in [("/data", true), ("/bind", true), ("/m", false)] {
            let mount = table.mounted_at(Path::new(point)).unwrap();
            assert_eq!(table.is_in_place(mount), expected, "{point}");
        }
    }

    #[test]
    fn the_running_system_has_a_proc() {
        let table = MountTable::read().unwrap();
        assert_eq!(
            table.mounted_at(Path::new("/proc")).unwrap().fs_type,
            b"proc"
        );
    }
}
