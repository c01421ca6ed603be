//! Files of the operator that may change while we run.
//!
//! In: a path. Out: its bytes, bounded, and a stamp by which a change shows.
//! Invariant: messages name the file and never what is in it.
//! Not here: what the files mean.

use std::{io::Read as _, os::unix::fs::MetadataExt as _, path::Path};

/// A file as it was: equal stamps, equal content (as far as clocks go; a replaced file has another inode).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp(Option<(u64, u64, i64, i64)>);

impl Stamp {
    pub(super) fn of(file: &Path) -> Self {
        let meta = std::fs::metadata(file).ok();
        Self(meta.map(|m| (m.ino(), m.len(), m.mtime(), m.mtime_nsec())))
    }
}

pub(super) fn read_bounded(file: &Path, size_max: u64) -> Result<Vec<u8>, String> {
    let failed = |e: std::io::Error| format!("{}: {e}", file.display());
    let opened = std::fs::File::open(file).map_err(failed)?;
    let mut bytes = Vec::new();
    opened.take(size_max + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > size_max {
        return Err(format!("{}: too large", file.display()));
    }
    Ok(bytes)
}
