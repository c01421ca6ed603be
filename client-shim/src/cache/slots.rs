//! Slot numbers: a layer's short name below the mount.
//!
//! In: nothing. Out: a number never given before on this node. Invariant: the counter on disk is ahead of every number
//! given out, so neither a crash nor a restart repeats one (the kernel caches names of the mount without an end).
//! Not here: which layer has which slot (`cache/meta.rs`).

use crate::atomic_file;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

const FILE: &str = "next_slot";
/// A u32 in decimal and a newline.
const FILE_SIZE_MAX: u64 = 11;
/// Slot 0 is the mount's own directories.
const FIRST: u32 = 1;

#[derive(Debug)]
pub(super) struct Slots {
    dir: PathBuf,
    next: Mutex<u32>,
}

impl Slots {
    /// `used_max` is the largest slot in use: a lost or damaged counter starts behind it.
    pub(super) fn open(dir: &Path, used_max: u32) -> Self {
        let stored = atomic_file::read_bounded(&dir.join(FILE), FILE_SIZE_MAX)
            .ok()
            .and_then(|b| std::str::from_utf8(&b).ok()?.trim().parse().ok())
            .unwrap_or(FIRST);
        Self {
            dir: dir.to_owned(),
            next: Mutex::new(stored.max(used_max.saturating_add(1)).max(FIRST)),
        }
    }

    pub(super) fn take(&self) -> io::Result<u32> {
        let mut next = self.next.lock().unwrap_or_else(|p| p.into_inner());
        let slot = *next;
        let after = slot
            .checked_add(1)
            .ok_or_else(|| io::Error::other("all slot numbers are used up"))?;
        atomic_file::replace(&self.dir, FILE, format!("{after}\n").as_bytes())?;
        *next = after;
        Ok(slot)
    }
}
