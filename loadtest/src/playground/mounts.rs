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
    fn the_directory_itself_and_its_namesakes_are_not_below_it() {
        assert!(below(Path::new("/proc")).iter().all(|p| p.starts_with("/proc/")));
        assert!(!below(Path::new("/")).is_empty());
    }
}
