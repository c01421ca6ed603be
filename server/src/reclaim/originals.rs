//! Which originals go.
//!
//! In: what is kept, oldest first; budgets; what is pinned; what is a manifest. Out: victims in order.
//! Invariant: pinned ones never go on their own; manifests go for want of bytes only when no blob is left to go: they are
//! small, and a tag cannot be served offline without its manifest. Unfinished fetches count, but go only when nobody has
//! written to them for a while.
//! Not here: unlinking.

use std::collections::HashSet;

use headstart_layer_format::BlobDigest;

use crate::{
    config::Budgets,
    store::{StoreError, plan::Reason, usage::Kept},
};

/// An unfinished fetch that has not grown for this long has no fetch: one that stalls is given up much sooner.
pub const PARTIAL_IDLE_MS: u64 = 3_600_000;
/// Eviction goes on to this share of the budget, so that it does not start again with the next blob.
const LOW_PERCENT: u64 = 95;

/// What there is.
#[derive(Debug)]
pub struct Held<'a> {
    /// Least recently used first.
    pub kept: &'a [Kept],
    pub partials: &'a [Kept],
    pub pinned: &'a HashSet<BlobDigest>,
    pub now_ms: u64,
    /// Bytes that must go whatever the budget says.
    pub needed_bytes: u64,
}

/// One that goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Victim {
    pub digest: BlobDigest,
    pub bytes: u64,
    pub reason: Reason,
    pub partial: bool,
}

/// Chooses. `is_manifest` is asked only for candidates.
pub fn choose(
    held: &Held<'_>,
    budgets: &Budgets,
    is_manifest: impl Fn(&BlobDigest) -> Result<bool, StoreError>,
) -> Result<Vec<Victim>, StoreError> {
    let all = |list: &[Kept]| list.iter().map(|k| k.bytes).sum::<u64>();
    let total = all(held.kept) + all(held.partials);
    let over = if total > budgets.originals_bytes_max {
        total - budgets.originals_bytes_max / 100 * LOW_PERCENT
    } else {
        0
    };
    let mut out = Vec::new();
    let mut freed = 0;
    let mut go = |freed: &mut u64, kept: &Kept, reason, partial| {
        *freed += kept.bytes;
        let Kept { digest, bytes, .. } = *kept;
        out.push(Victim {
            digest,
            bytes,
            reason,
            partial,
        });
    };
    let expired =
        |kept: &Kept, ttl: Option<u64>| ttl.is_some_and(|ttl| kept.used_unix_ms.saturating_add(ttl) < held.now_ms);
    let mut manifests = Vec::new();
    for partial in held.partials {
        let short = freed < over || freed < held.needed_bytes;
        if expired(partial, Some(PARTIAL_IDLE_MS)) && (short || expired(partial, budgets.originals_ttl_ms)) {
            go(&mut freed, partial, Reason::Budget, true);
        }
    }
    for kept in held.kept.iter().filter(|kept| !held.pinned.contains(&kept.digest)) {
        let reason = if freed < held.needed_bytes {
            Reason::DiskFull
        } else {
            Reason::Budget
        };
        let old = expired(kept, budgets.originals_ttl_ms);
        let old_manifest = expired(kept, budgets.manifests_ttl_ms);
        let short = freed < over || freed < held.needed_bytes;
        if !(old || old_manifest || short) {
            // The rest was used later still.
            break;
        }
        if is_manifest(&kept.digest)? {
            if old_manifest {
                go(&mut freed, kept, Reason::Age, false);
            } else {
                manifests.push((kept, reason));
            }
        } else if old {
            go(&mut freed, kept, Reason::Age, false);
        } else if short {
            go(&mut freed, kept, reason, false);
        }
    }
    for (kept, reason) in manifests {
        if freed >= over && freed >= held.needed_bytes {
            break;
        }
        go(&mut freed, kept, reason, false);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(n: u8, bytes: u64, used_unix_ms: u64) -> Kept {
        Kept {
            digest: BlobDigest::of(&[n]),
            bytes,
            used_unix_ms,
        }
    }

    fn budgets(originals_bytes_max: u64) -> Budgets {
        Budgets {
            originals_bytes_max,
            chunks_bytes_max: u64::MAX,
            free_bytes_min: 0,
            originals_ttl_ms: None,
            manifests_ttl_ms: None,
            chunks_ttl_ms: None,
            refusals_max: u64::MAX,
            index_look_ms: 600_000,
            index_spare_bytes: u64::MAX,
        }
    }

    fn chosen(
        kept: &[Kept],
        pinned: &[u8],
        manifests: &[u8],
        budgets: &Budgets,
        needed_bytes: u64,
    ) -> Vec<(u64, Reason)> {
        let held = Held {
            kept,
            partials: &[],
            pinned: &pinned.iter().map(|n| BlobDigest::of(&[*n])).collect(),
            now_ms: 1000,
            needed_bytes,
        };
        let is_manifest = |d: &BlobDigest| Ok(manifests.iter().any(|n| BlobDigest::of(&[*n]) == *d));
        let victims = choose(&held, budgets, is_manifest).unwrap();
        victims.iter().map(|v| (v.bytes, v.reason)).collect()
    }

    #[test]
    fn the_least_recently_used_go_until_it_fits_pins_never_and_manifests_last() {
        let all = [kept(1, 101, 1), kept(2, 102, 2), kept(3, 103, 3), kept(4, 104, 4)];
        assert_eq!(chosen(&all, &[], &[], &budgets(410), 0), []);
        assert_eq!(chosen(&all, &[], &[], &budgets(400), 0), [(101, Reason::Budget)]);
        assert_eq!(chosen(&all, &[1], &[], &budgets(400), 0), [(102, Reason::Budget)]);
        assert_eq!(chosen(&all, &[], &[1], &budgets(400), 0), [(102, Reason::Budget)]);
        // Everything must go: blobs first, the manifest at the end, the pinned one stays.
        let order: Vec<_> = chosen(&all, &[2], &[1], &budgets(1), 0).iter().map(|v| v.0).collect();
        assert_eq!(order, [103, 104, 101]);
        assert_eq!(chosen(&all, &[], &[], &budgets(u64::MAX), 1), [(101, Reason::DiskFull)]);
    }

    #[test]
    fn age_counts_from_the_last_use_and_manifests_have_their_own() {
        let all = [kept(1, 101, 100), kept(2, 102, 100), kept(3, 103, 900)];
        let mut b = budgets(u64::MAX);
        b.originals_ttl_ms = Some(500);
        assert_eq!(chosen(&all, &[], &[1], &b, 0), [(102, Reason::Age)]);
        b.manifests_ttl_ms = Some(200);
        assert_eq!(chosen(&all, &[], &[1], &b, 0), [(101, Reason::Age), (102, Reason::Age)]);
    }
}
