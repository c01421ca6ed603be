//! What is known of a layer's bytes as a whole, as small files beside them.
//!
//! In: verdicts. Out: the same after a restart. Invariant: a mark speaks of one TOC, and one that is damaged or of another
//! TOC is no mark. Not here: who comes to the verdict (`cache/diff_id.rs`), and what follows from it.
//!
//! `verified`: all bytes were here once and gave the DiffID. `quarantined`: they gave another, though each chunk was right, so
//! the TOC lies. `lent`: the kernel reads the data file by itself, so no byte of it may go while this boot lasts.

use std::io;
use std::path::Path;

use crate::atomic_file;
use headstart_layer_format::TocDigest;

/// A TOC digest or a boot's id, in text.
const FILE_SIZE_MAX: u64 = 100;
const LENT: &str = "lent";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Verified,
    Quarantined,
}

impl Mark {
    fn file(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Quarantined => "quarantined",
        }
    }

    pub(super) fn set(self, dir: &Path, toc: &TocDigest) -> io::Result<()> {
        atomic_file::replace(dir, self.file(), toc.to_string().as_bytes())
    }

    pub(super) fn is_set(self, dir: &Path, toc: &TocDigest) -> bool {
        read(&dir.join(self.file())).is_some_and(|text| text == toc.to_string().as_bytes())
    }
}

/// Not made durable: power loss ends every mount too.
pub(super) fn lend(dir: &Path) -> io::Result<()> {
    std::fs::write(dir.join(LENT), read(Path::new(BOOT_ID)).unwrap_or_default())
}

/// The data file is another from now on.
pub(super) fn forget_lent(dir: &Path) -> io::Result<()> {
    match std::fs::remove_file(dir.join(LENT)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Mounts outlive the process that made them, but no boot.
pub(super) fn is_lent(dir: &Path) -> bool {
    let lent = read(&dir.join(LENT));
    lent.is_some() && lent == read(Path::new(BOOT_ID))
}

fn read(path: &Path) -> Option<Vec<u8>> {
    atomic_file::read_bounded(path, FILE_SIZE_MAX).ok()
}
