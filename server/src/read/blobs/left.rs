//! What an earlier fetch of a blob has left.
//!
//! In: an upstream and a digest. Out: whether there is any of it; whether there is all of what is wanted.
//! Invariant: only looks; nothing is asked for, and nothing is believed but whole units that the map marks.
//! Not here: going on with it ([`crate::read::opening`]), and its removal ([`crate::read::sweep`]).

use std::ops::Range;

use headstart_layer_format::BlobDigest;

use super::{Blobs, ReadError};
use crate::{
    read::{
        blocking::blocking,
        wants::{Resolved, Wants},
    },
    store::facts::Source,
};

impl Blobs {
    /// Whether an earlier fetch from this upstream has left some of the blob. Blocks briefly.
    pub(in crate::read) fn has_left(&self, source: &Source, digest: &BlobDigest) -> bool {
        let originals = &self.yard().originals;
        !originals.is_surely_new(digest, &source.upstream) && originals.partial_path(digest, &source.upstream).exists()
    }

    /// Whether every part that is wanted was left here, of a blob that is known to be the repository's: nobody needs the
    /// upstream for it. Not of what comes to the whole, which has an end that nobody can have verified.
    pub(super) async fn has_left_all_of(
        &self,
        source: &Source,
        digest: &BlobDigest,
        wants: &Wants,
    ) -> Result<bool, ReadError> {
        if wants.is_whole() || !self.has_left(source, digest) {
            return Ok(false);
        }
        let (inner, source, digest, wants) = (self.0.clone(), source.clone(), *digest, wants.clone());
        let found = blocking(move || {
            let Some((size, left)) = inner.yard.originals.left(&digest, &source.upstream)? else {
                return Ok(false);
            };
            Ok(is_all_of(&wants, size, &left) && inner.store.is_member(&source, &digest)?)
        });
        found.await
    }
}

/// `left`: ascending, disjoint, not touching.
fn is_all_of(wants: &Wants, size: u64, left: &[Range<u64>]) -> bool {
    let is_here = |range: &Range<u64>| left.iter().any(|l| l.start <= range.start && range.end <= l.end);
    !wants.covers(size)
        && match wants.resolve(size) {
            Resolved::One(range) => is_here(&range),
            Resolved::Several(ranges) => ranges.iter().all(is_here),
            Resolved::Whole | Resolved::Unsatisfiable => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{read::wants::Spec, store::units::UNIT};

    #[test]
    fn a_part_is_left_when_every_byte_of_it_is() {
        let (size, left) = (5 * UNIT, [0..2 * UNIT, 3 * UNIT..4 * UNIT]);
        let from = |first, last| Spec::From { first, last };
        for (specs, is_left) in [
            (vec![from(5, Some(2 * UNIT - 1))], true),
            (vec![from(5, Some(2 * UNIT))], false),
            (vec![from(2 * UNIT - 1, Some(3 * UNIT))], false),
            (vec![from(3 * UNIT, Some(3 * UNIT)), from(0, Some(0))], true),
            (
                vec![from(3 * UNIT, Some(3 * UNIT)), from(2 * UNIT, Some(2 * UNIT))],
                false,
            ),
            (vec![from(3 * UNIT, None)], false),
            (vec![Spec::Suffix(1)], false),
            (vec![from(size, None)], false),
        ] {
            assert_eq!(
                is_all_of(&Wants::Ranges(specs.clone()), size, &left),
                is_left,
                "{specs:?}"
            );
        }
        assert!(!is_all_of(&Wants::Whole, size, &left));
        // What comes to the whole waits for the verdict.
        let nearly = Wants::Ranges(vec![from(1, Some(UNIT - 1))]);
        assert!(!is_all_of(&nearly, UNIT, std::slice::from_ref(&(0..UNIT))));
    }
}
