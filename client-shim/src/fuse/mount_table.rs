//! What is mounted where, asked of the kernel alone.
//!
//! In: `/proc/self/mountinfo`. Out: mounts of this process's namespace. Invariant: no filesystem is asked anything, for the
//! one in question may be dead. Not here: mounting and unmounting.

use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub point: PathBuf,
    /// Major and minor number of the filesystem.
    pub device: (u32, u32),
    pub kind: String,
}

/// Every mount, in the order they were mounted.
pub fn mounts() -> io::Result<Vec<Mount>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(table.split(|&b| b == b'\n').filter_map(parse).collect())
}

/// The mount that a look at `path` would meet. Its last component is not looked at, its parent is.
pub fn top(path: &Path) -> io::Result<Option<Mount>> {
    let path = resolved(path)?;
    Ok(mounts()?.into_iter().rev().find(|m| m.point == path))
}

/// `canonicalize` would stat a dead mount; its parent is alive.
pub fn resolved(path: &Path) -> io::Result<PathBuf> {
    let Some((parent, name)) = path.parent().zip(path.file_name()) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the mount point has no parent",
        ));
    };
    std::fs::create_dir_all(parent)?;
    Ok(parent.canonicalize()?.join(name))
}

/// proc(5): id, parent, major:minor, root, mount point, options, further fields up to "-", type, ...
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&b| b == b' ');
    let (major, minor) = std::str::from_utf8(fields.nth(2)?).ok()?.split_once(':')?;
    let point = unescape(fields.nth(1)?);
    let kind = fields.skip_while(|f| *f != b"-").nth(1)?;
    Some(Mount {
        point,
        device: (major.parse().ok()?, minor.parse().ok()?),
        kind: String::from_utf8_lossy(kind).into_owned(),
    })
}

/// The kernel writes space, tab, newline and backslash as `\ooo`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| byte == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(escaped) => {
                out.push(escaped);
                rest = &tail[3..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    std::ffi::OsString::from_vec(out).into()
}

/// The FUSE handshake cannot raise read-ahead above 128 KiB; the mount's backing device, which has the filesystem's number, can.
pub fn set_readahead_of((major, minor): (u32, u32), kib: u32) -> io::Result<()> {
    std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), kib.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo_are_understood() {
        let line = br"36 35 0:77 / /mnt/a\040b rw,noatime master:1 propagate_from:2 - fuse headstart ro";
        let mount = parse(line).unwrap();
        assert_eq!(mount.point, Path::new("/mnt/a b"));
        assert_eq!((mount.device, &*mount.kind), ((0, 77), "fuse"));
        assert_eq!(parse(b"36 35 8:1 / /x rw - ext4 dev rw").unwrap().kind, "ext4");
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"36 35 8:1 / /x rw"), None);
        assert!(mounts().unwrap().iter().any(|m| m.point == Path::new("/")));
    }

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape(br"/a\040b\134c"), Path::new(r"/a b\c"));
        assert_eq!(unescape(br"/a\9"), Path::new(r"/a\9"));
    }
}
