//! What of a range its reader does not get before the blob's digest is verified.
//!
//! In: how far the bytes have come. Out: how far the reader may go.
//! Invariant: of what is withheld altogether no byte is given; of what is withheld at its end, never all of it.
//! Not here: where the bytes are ([`super::flight`]), and what is withheld from whom ([`super::blobs`]).

use std::ops::Range;

/// Bytes withheld from the end of a range until the digest is known to be right. One would do; a little more keeps a
/// client from believing that only its last packet was lost.
pub const HOLD_BACK: u64 = 64 << 10;

/// How much is withheld.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withheld {
    /// From a part of a blob that is not here nothing, unless it is the last part of it that is missing.
    Nothing,
    /// The end of every range.
    End,
    /// Every byte.
    All,
}

impl Withheld {
    /// Up to where a reader of `range` may go, of which what lies before `here` has come. `is_last`: the verdict is near, and
    /// the end of the range is that of the blob.
    pub fn limit(self, range: &Range<u64>, here: u64, is_last: impl FnOnce() -> bool) -> u64 {
        let but_the_end = here.min(range.end.saturating_sub(HOLD_BACK));
        match self {
            Self::All => range.start,
            Self::End => but_the_end,
            Self::Nothing if is_last() => but_the_end.max(range.start),
            Self::Nothing => here,
        }
    }
}
