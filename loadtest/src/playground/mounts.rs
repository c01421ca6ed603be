//! Mounts below a directory.
//!
//! In: a directory, and `/proc/self/mountinfo`. Out: the mount points below it, or none any more.
//! Invariant: only what lies strictly below the directory is unmounted, deepest and latest first.
//! Not here: making mounts, but for one of a directory on itself.

use std::path::{Path, PathBuf};

use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};

/// Turns `\040` and the like, with which the kernel writes blanks, into bytes.
fn unescape(field: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let octal = bytes
            .get(i + 1..i + 4)
            .filter(|d| bytes[i] == b'\\' && d.iter().all(|c| (b'0'..b'8').contains(c)));
        match octal {
            Some(d) => {
                out.push(d.iter().fold(0_u8, |n, c| n.wrapping_mul(8).wrapping_add(c - b'0')));
                i += 4;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    std::ffi::OsString::from_vec(out).into()
}

/// Makes `dir` a mount of itself whose later mounts appear also in namespaces that were made from this one (as slaves), as
/// all of a host's do under systemd. Undone with the other mounts of the work directory.
pub fn share(dir: &Path) -> std::io::Result<()> {
    mount_bind(dir, dir)?;
    Ok(mount_change(dir, MountPropagationFlags::SHARED)?)
}

/// Undoes [`share`], if that was done, and what is mounted below.
pub fn unshare(dir: &Path) {
    unmount_below(dir);
    let _ = unmount(dir, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
}

/// Mount points strictly below `dir`, in the order they were mounted.
pub fn below(dir: &Path) -> Vec<PathBuf> {
    let info = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    info.lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .filter(|point| point != dir && point.starts_with(dir))
        .collect()
}

/// Device numbers of the FUSE mounts strictly below `dir`: minors, for FUSE has no major. Each once.
pub fn fuse_below(dir: &Path) -> Vec<u32> {
    let info = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut minors: Vec<u32> = info.lines().filter_map(|line| fuse_minor(line, dir)).collect();
    minors.sort_unstable();
    minors.dedup();
    minors
}

/// `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS... - TYPE SOURCE OPTIONS`
fn fuse_minor(line: &str, dir: &Path) -> Option<u32> {
    let (mount, system) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(2);
    let (device, point) = (fields.next()?, unescape(fields.nth(1)?));
    let of = system.split(' ').next()?;
    let is_wanted = (of == "fuse" || of.starts_with("fuse.")) && point != dir && point.starts_with(dir);
    if is_wanted {
        device.split_once(':')?.1.parse().ok()
    } else {
        None
    }
}

/// Unmounts everything below `dir`. A mount that is in use, or whose server is gone, is detached: it ends with its last
/// user. Returns what is still mounted.
pub fn unmount_below(dir: &Path) -> Vec<PathBuf> {
    // A mount may hide another on the same point, so one pass may not be enough.
    for _ in 0..16 {
        let points = below(dir);
        if points.is_empty() {
            break;
        }
        for point in points.iter().rev() {
            if unmount(point, UnmountFlags::NOFOLLOW).is_err() {
                let _ = unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
            }
        }
    }
    below(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_escapes_of_mountinfo_become_bytes() {
        assert_eq!(unescape(r"/a\040b\134c"), PathBuf::from(r"/a b\c"));
        assert_eq!(unescape(r"/plain\9"), PathBuf::from(r"/plain\9"));
    }

    #[test]
    fn only_fuse_mounts_below_count() {
        let minor = |line| fuse_minor(line, Path::new("/w"));
        assert_eq!(
            minor("40 30 0:77 / /w/snapshots/1/fs rw,nodev shared:9 - fuse.rawBridge stargz rw"),
            Some(77)
        );
        assert_eq!(minor("40 30 0:77 / /w/mnt rw - fuse headstart rw"), Some(77));
        assert_eq!(minor("40 30 0:77 / /w/mnt rw - overlay overlay rw"), None);
        assert_eq!(minor("40 30 0:77 / /other/mnt rw - fuse x rw"), None);
        assert_eq!(minor("40 30 0:77 / /w rw - fuse x rw"), None);
        assert_eq!(minor("of another kernel"), None);
    }

    #[test]
    fn the_directory_itself_and_its_namesakes_are_not_below_it() {
        assert!(below(Path::new("/proc")).iter().all(|p| p.starts_with("/proc/")));
        assert!(!below(Path::new("/")).is_empty());
    }
}
