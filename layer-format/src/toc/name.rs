//! A file's name.
//!
//! In: bytes, or a piece of a buffer with many names. Out: the bytes. Invariant: never changes.
//! Not here: what a name must not contain (`tree.rs`).
//!
//! Names of a decoded TOC share the buffer that they came in: a node decodes one while a container waits, and an allocation for each
//! of 60,000 was a sixth of that.

use std::fmt;
use std::ops::Deref;

use bytes::Bytes;

/// Bytes, not text.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Bytes);

impl Name {
    /// `piece` as a part of `whole`, which stays as long as any of its parts.
    pub(super) fn part(whole: &Bytes, piece: &[u8]) -> Self {
        Self(whole.slice_ref(piece))
    }
}

impl Deref for Name {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl From<&[u8]> for Name {
    fn from(bytes: &[u8]) -> Self {
        Self(Bytes::copy_from_slice(bytes))
    }
}

impl From<Vec<u8>> for Name {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
