//! Whether the index is believed.
//!
//! In: operations that failed, findings of an audit, another index that took its place. Out: why it is in doubt, and
//! whether it was believed all along since some moment. Invariant: it is in doubt before whoever met the error hears of
//! it, and so before anybody may take the error for a miss; a mark on the disk says so until the doubt is over.
//! Not here: what is done about it ([`crate::store::heal`]).

use std::fs::{self, File};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Index, IndexError, SUSPECT, is_damage};

/// What made the index doubtful.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// sled says that bytes are damaged.
    Corruption,
    /// Any other error of sled's: most often of the disk.
    Error,
    Panic,
    /// A row that does not parse.
    Row,
    /// An audit found it to be wrong.
    Audit,
}

impl Why {
    /// For metrics: see `REBUILD_REASON` there.
    pub fn name(self) -> &'static str {
        match self {
            Self::Corruption => "corruption",
            Self::Error => "error",
            Self::Panic => "panic",
            Self::Row => "row",
            Self::Audit => "audit",
        }
    }

    fn of(error: &IndexError) -> Self {
        match error {
            IndexError::Sled { source, .. } if is_damage(source) => Self::Corruption,
            IndexError::Panicked(_) => Self::Panic,
            IndexError::BadRow(_) => Self::Row,
            IndexError::Suspect => Self::Audit,
            _ => Self::Error,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Trust(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    doubt: Option<Why>,
    is_marked: bool,
    /// Of doubts that began or ended.
    count: u64,
}

impl Trust {
    fn state(&self) -> MutexGuard<'_, State> {
        // Plain values.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A moment in the life of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since(u64);

impl Index {
    pub(super) fn mark_suspect(&self, error: &IndexError) {
        let mut state = self.trust.state();
        if state.doubt.is_none() {
            state.doubt = Some(Why::of(error));
            state.count += 1;
            tracing::error!(%error, "the index failed; it is rebuilt from the packs");
        }
        if !state.is_marked {
            match fs::write(self.parent.join(SUSPECT), b"") {
                Ok(()) => state.is_marked = true,
                Err(error) => tracing::error!(%error, "failed to mark the index as suspect"),
            }
        }
    }

    /// It was found to be wrong.
    pub fn distrust(&self) {
        self.mark_suspect(&IndexError::Suspect);
    }

    /// Why it is not believed, if it is not.
    pub fn doubt(&self) -> Option<Why> {
        self.trust.state().doubt
    }

    /// An error while it is not believed.
    pub fn believed(&self) -> Result<(), IndexError> {
        match self.doubt() {
            Some(_) => Err(IndexError::Suspect),
            None => Ok(()),
        }
    }

    pub fn now(&self) -> Since {
        Since(self.trust.state().count)
    }

    /// An error if it is not believed, or was not at some moment since, or is another one: what was read of it then is
    /// nothing to delete by.
    pub fn believed_since(&self, since: Since) -> Result<(), IndexError> {
        self.believed()?;
        match self.now() == since {
            true => Ok(()),
            false => Err(IndexError::Suspect),
        }
    }

    /// Another one is in its place: the doubt is over for whoever asks, though not yet on the disk.
    pub(super) fn believe(&self) {
        let mut state = self.trust.state();
        (state.doubt, state.count) = (None, state.count + 1);
    }

    #[cfg(test)]
    pub(in crate::store) fn believe_for_a_test(&self) {
        self.believe();
        self.unmark().unwrap();
    }

    /// The same for an opening, if nothing happened meanwhile.
    pub(in crate::store) fn unmark(&self) -> io::Result<()> {
        let mut state = self.trust.state();
        if state.doubt.is_some() {
            return Ok(());
        }
        match fs::remove_file(self.parent.join(SUSPECT)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => state.is_marked = false,
        }
        File::open(&self.parent)?.sync_all()
    }
}
