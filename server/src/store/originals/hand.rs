//! Originals at hand: those that stay open, small ones in memory, and which are known to be what their names say.
//!
//! In: a digest. Out: its open file, or its bytes; whether anybody in this process knows what is in the file.
//! Invariant: an original that goes is closed, and none of its bytes stay ([`Hand::forget`]). A file is intact if this process wrote it,
//! or has compared it, and nobody has doubted it since; it is the file that is, by its inode number, and not the name.
//! Not here: the files ([`super`]), the comparison ([`crate::store::intact`]), when it is made (`read/recheck.rs`).

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    sync::Arc,
};

use bytes::Bytes;
use headstart_layer_format::BlobDigest;

use super::Originals;
use crate::store::{hasher::BlobHasher, hot::Hot, opened::Opened, usage::now_ms};

/// Originals that stay open: a small part of what a process may have open, and of the connections that come with them.
const OPEN_MAX: usize = 256;

/// Memory for small originals, some thousand manifests.
const VERIFIED_BYTES_MAX: usize = 16 << 20;

/// See the file's comment.
#[derive(Debug)]
pub(super) struct Hand {
    open: Hot<BlobDigest, Arc<Opened>>,
    /// Small ones that were verified.
    verified: Hot<BlobDigest, Bytes>,
}

impl Default for Hand {
    fn default() -> Self {
        Self {
            open: Hot::new(OPEN_MAX),
            verified: Hot::new(VERIFIED_BYTES_MAX),
        }
    }
}

impl Hand {
    /// Its file was taken away.
    pub(super) fn forget(&self, digest: &BlobDigest) {
        self.open.forget(digest);
        self.verified.forget(digest);
    }
}

/// Answer of [`Originals::read_verified`].
#[derive(Debug, PartialEq, Eq)]
pub enum Stored {
    Found(Vec<u8>),
    Miss,
    TooLarge(u64),
    Damaged,
}

impl Originals {
    /// As [`Originals::get`]; the file stays open for those who come next, if it is known to be intact.
    pub fn open_file(&self, digest: &BlobDigest) -> io::Result<Option<Arc<Opened>>> {
        if self.0.hand.open.get(digest).is_some_and(|open| open.is_doubted()) {
            self.0.usage.mark_intact(digest, 0);
            self.0.hand.open.forget(digest);
        }
        let ticket = self.0.hand.open.ticket();
        let Some((file, _)) = self.get(digest)? else {
            return Ok(None);
        };
        let opened = Arc::new(Opened::new(file)?);
        if self.is_intact(digest, &opened) {
            self.0.hand.open.keep(ticket, *digest, opened.clone(), 1);
        }
        Ok(Some(opened))
    }

    /// Whether this process wrote the file, or has compared it with its digest.
    pub fn is_intact(&self, digest: &BlobDigest, opened: &Opened) -> bool {
        !opened.is_doubted() && self.0.usage.is_intact(digest, opened.inode(), opened.size())
    }

    /// It has been compared.
    pub fn mark_intact(&self, digest: &BlobDigest, opened: &Opened) {
        // Whoever renamed it may not have got the name synced, or somebody put it there: nobody counts it yet.
        let is_there = || fs::metadata(self.path(digest)).is_ok_and(|m| m.ino() == opened.inode());
        if self.kept(digest).is_none() && is_there() {
            self.0.usage.add(digest, opened.size(), now_ms());
        }
        self.0.usage.mark_intact(digest, opened.inode());
    }

    /// An original that is open already. No disk is touched. Counts as a use.
    pub fn file_at_hand(&self, digest: &BlobDigest) -> Option<Arc<Opened>> {
        let opened = self.0.hand.open.get(digest)?;
        // Somebody else may have taken it away: whoever comes now gets what the path says.
        let stat = rustix::fs::fstat(&**opened.file()).ok();
        let is_other = stat.is_none_or(|s| s.st_nlink == 0 || u64::try_from(s.st_size) != Ok(opened.size()));
        if is_other || opened.is_doubted() {
            // Cut or unreadable, it may be the same file still.
            self.0.usage.mark_intact(digest, 0);
            self.0.hand.open.forget(digest);
            return None;
        }
        self.used(digest, opened.size());
        Some(opened)
    }

    /// A small original that was verified when it was read. No disk is touched. Counts as a use.
    pub fn bytes_at_hand(&self, digest: &BlobDigest) -> Option<Bytes> {
        let bytes = self.0.hand.verified.get(digest)?;
        self.used(digest, bytes.len() as u64);
        Some(bytes)
    }

    /// The whole of a small original, verified once more. Damage is a miss, and the damaged file goes away.
    pub fn read_verified(&self, digest: &BlobDigest, size_max: u64) -> io::Result<Stored> {
        let Some((mut file, size)) = self.get(digest)? else {
            return Ok(Stored::Miss);
        };
        if size > size_max {
            return Ok(Stored::TooLarge(size));
        }
        let ticket = self.0.hand.verified.ticket();
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        file.read_to_end(&mut bytes)?;
        if BlobHasher::matches(digest, &bytes) {
            let kept = Bytes::copy_from_slice(&bytes);
            self.0.hand.verified.keep(ticket, *digest, kept, bytes.len());
            Ok(Stored::Found(bytes))
        } else {
            self.remove(digest)?;
            Ok(Stored::Damaged)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parent;
    use super::*;

    #[test]
    fn a_file_is_intact_until_it_is_doubted_also_one_that_nobody_counted() {
        let dir = tempfile::tempdir().unwrap();
        let originals = Originals::open(dir.path()).unwrap();
        originals.scan(|| true).unwrap();
        let digest = BlobDigest::of(b"abc");
        let path = originals.path(&digest);
        fs::create_dir_all(parent(&path)).unwrap();
        fs::write(&path, b"abc").unwrap();
        let open = || originals.open_file(&digest).unwrap().unwrap();
        assert!(!originals.is_intact(&digest, &open()) && originals.file_at_hand(&digest).is_none());
        originals.mark_intact(&digest, &open());
        assert!(originals.is_intact(&digest, &open()) && originals.kept(&digest).is_some());
        // Whoever met an error had the file that is kept open; whoever comes next opens it anew.
        originals.file_at_hand(&digest).unwrap().doubt();
        assert!(!originals.is_intact(&digest, &open()));
        // What is gone is not counted again.
        let gone = open();
        originals.remove(&digest).unwrap();
        originals.mark_intact(&digest, &gone);
        assert!(originals.kept(&digest).is_none());
    }

    #[test]
    fn damage_is_a_miss_and_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let originals = Originals::open(dir.path()).unwrap();
        let digest = BlobDigest::of(b"abc");
        originals.put(&digest, b"abc").unwrap();
        fs::write(originals.path(&digest), b"abd").unwrap();
        assert_eq!(originals.read_verified(&digest, 9).unwrap(), Stored::Damaged);
        assert_eq!(originals.read_verified(&digest, 9).unwrap(), Stored::Miss);
    }
}
