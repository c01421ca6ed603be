//! Rows of the index whose truth is not in the packs: where a room of its own keeps objects, it keeps its list here.
//!
//! In: keys and values of that room. Out: the same, after a restart. Invariant: none but the index's own: rows may be lost
//! (a crash before sled's flush, a rebuild), and whoever wrote them finds that out from its objects.
//! Not here: the objects (`profile/`).

use super::index::RawRow;
use super::{Store, StoreError};

impl Store {
    /// Every note.
    pub fn notes(&self) -> Result<Vec<RawRow>, StoreError> {
        Ok(self.inner.index.notes()?)
    }

    /// Writes a note, or removes it.
    pub fn set_note(&self, key: &[u8], value: Option<&[u8]>) -> Result<(), StoreError> {
        Ok(self.inner.index.set_note(key, value)?)
    }
}
