//! The file that an EROFS mount takes its data from.
//!
//! In: a path. Out: how it is mounted. Invariant: what this process answers is never read directly: that would let the kernel cut a
//! read in two, nor ahead by more than one request. Not here: the mount itself (`erofs_tree.rs`, `replace.rs`), which files are read directly (`whole.rs`).

use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) path: PathBuf,
    /// Past the page cache of the filesystem below.
    pub(super) direct: bool,
    pub(super) readahead_kib: u32,
}

/// One read of the kernel must be one FUSE request, which is at most 1 MiB: of two, a killed reader leaves one undone, and
/// kernels before 7.0 take the short read for the end of the file and cache zeros (`whole.rs` has the releases).
const ASKED_READAHEAD_KIB_MAX: u32 = 1024;
/// Nobody waits for more than was wanted here. With 512, 500 MiB in order took 6 to 10 % longer than from ext4, cold and (in the
/// smaller pieces that the page cache has of it then) warm; more than 1024 won nothing.
const LOCAL_READAHEAD_KIB_MIN: u32 = 1024;

impl Device {
    /// A file of the FUSE mount.
    pub(super) fn asked(path: PathBuf, readahead_kib: u32) -> Self {
        Self {
            path,
            direct: false,
            readahead_kib: readahead_kib.min(ASKED_READAHEAD_KIB_MAX),
        }
    }

    /// A whole layer's own file.
    pub(super) fn local(path: PathBuf, direct: bool, readahead_kib: u32) -> Self {
        Self {
            path,
            direct,
            readahead_kib: readahead_kib.max(LOCAL_READAHEAD_KIB_MIN),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_ahead_is_one_request_of_ours_or_as_much_as_is_worth_it() {
        let asked = |kib| Device::asked(PathBuf::new(), kib).readahead_kib;
        let local = |kib| Device::local(PathBuf::new(), true, kib).readahead_kib;
        assert_eq!([32, 512, 1024, 4096].map(asked), [32, 512, 1024, 1024]);
        assert_eq!([32, 512, 1024, 4096].map(local), [1024, 1024, 1024, 4096]);
    }
}
