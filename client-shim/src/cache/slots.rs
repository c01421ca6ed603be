//! Slot numbers: a layer's short name below the mount.
//!
//! In: nothing. Out: a number never given before on this node. Invariant: the counter on disk is ahead of every number
//! given out, so neither a crash nor a restart repeats one (the kernel caches names of the mount without an end). It is moved
//! many numbers at a time: a pull does not wait for the disk once for each layer.
//! Not here: which layer has which slot (`cache/meta.rs`).

use crate::atomic_file;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

const FILE: &str = "next_slot";
/// A u32 in decimal and a newline.
const FILE_SIZE_MAX: u64 = 11;
/// Slot 0 is the mount's own directories.
const FIRST: u32 = 1;
/// Numbers that a restart may leave out.
const AT_ONCE: u32 = 64;

#[derive(Debug)]
pub(super) struct Slots {
    dir: PathBuf,
    next: Mutex<Next>,
}

#[derive(Debug)]
struct Next {
    slot: u32,
    /// What the disk says.
    stored: u32,
}

impl Slots {
    /// `used_max` is the largest slot in use: a lost or damaged counter starts behind it.
    pub(super) fn open(dir: &Path, used_max: u32) -> Self {
        let stored = atomic_file::read_bounded(&dir.join(FILE), FILE_SIZE_MAX)
            .ok()
            .and_then(|b| std::str::from_utf8(&b).ok()?.trim().parse().ok())
            .unwrap_or(FIRST);
        let slot = stored.max(used_max.saturating_add(1)).max(FIRST);
        let slots = Self {
            dir: dir.to_owned(),
            next: Mutex::new(Next { slot, stored: slot }),
        };
        // Now, when no pull waits for it. If it cannot be, the first number says so.
        let _ = slots.reserve(&mut slots.lock());
        slots
    }

    fn lock(&self) -> MutexGuard<'_, Next> {
        self.next.lock().unwrap_or_else(|p| p.into_inner())
    }

    fn reserve(&self, next: &mut Next) -> io::Result<()> {
        let stored = next.slot.saturating_add(AT_ONCE);
        atomic_file::replace(&self.dir, FILE, format!("{stored}\n").as_bytes())?;
        next.stored = stored;
        Ok(())
    }

    pub(super) fn take(&self) -> io::Result<u32> {
        let mut next = self.lock();
        let slot = next.slot;
        let after = slot
            .checked_add(1)
            .ok_or_else(|| io::Error::other("all slot numbers are used up"))?;
        if after > next.stored {
            self.reserve(&mut next)?;
        }
        next.slot = after;
        Ok(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_comes_twice_whenever_the_process_ends() {
        let dir = tempfile::tempdir().unwrap();
        let mut last = 0;
        for taken in [1, 63, 64, 65, 2] {
            // Each of these ends without a word.
            let slots = Slots::open(dir.path(), 0);
            for _ in 0..taken {
                let slot = slots.take().unwrap();
                assert!(slot > last, "{slot} after {last}");
                last = slot;
            }
        }
        assert!(last < 12 * AT_ONCE);
        // A lost counter starts behind what is in use.
        std::fs::remove_file(dir.path().join(FILE)).unwrap();
        assert_eq!(Slots::open(dir.path(), last).take().unwrap(), last + 1);
    }
}
