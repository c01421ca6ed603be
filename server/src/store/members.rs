//! One digest in many repositories: a base layer may be in thousands.
//!
//! In: memberships. Out: no more than [`REPOSITORIES_MAX`] of a digest, when facts are too many. Invariant: those that were confirmed
//! last stay, and those that say where to fetch it from. What went is asked of the upstream again, once.
//! Not here: memberships of what is gone ([`super::forget`]), which also says when there are too many.

use std::collections::{HashMap, HashSet};

use headstart_layer_format::BlobDigest;

use super::facts::Source;
use super::forget::AT_ONCE;
use super::index::{RawRow, member_row};
use super::learned::SOURCES_MAX;
use super::{Store, StoreError, keys};

/// Memberships of one digest that are kept when facts have too much of the budget, pinned or not.
pub const REPOSITORIES_MAX: usize = 1000;
/// Rows read from the index at a time.
const ROWS_A_STEP: usize = 512;

/// A membership that may go: its row, and whose it is.
struct Candidate {
    day: u16,
    source: Source,
    row: RawRow,
}

impl Store {
    /// Forgets memberships of digests that are in too many repositories; how many went. `None`: told to stop.
    pub(super) fn forget_crowds(&self, go_on: &dyn Fn() -> bool) -> Result<Option<u64>, StoreError> {
        let mut counts: HashMap<BlobDigest, usize> = HashMap::new();
        let counted = self.each_member(go_on, |_, digest, _| *counts.entry(digest).or_default() += 1)?;
        counts.retain(|_, count| *count > REPOSITORIES_MAX);
        if counted.is_none() || counts.is_empty() {
            return Ok(counted.map(|()| 0));
        }
        let mut crowds: HashMap<BlobDigest, Vec<Candidate>> = HashMap::new();
        let listed = self.each_member(go_on, |source, digest, row| {
            if counts.contains_key(&digest) {
                let day = member_row(&row.1).map_or(0, |(_, day)| day);
                crowds.entry(digest).or_default().push(Candidate { day, source, row });
            }
        })?;
        if listed.is_none() {
            return Ok(None);
        }
        let mut going = Vec::new();
        for (digest, mut crowd) in crowds {
            let fetched_from: HashSet<Source> = self.inner.index.sources(&digest, SOURCES_MAX)?.into_iter().collect();
            crowd.sort_unstable_by_key(|of| (fetched_from.contains(&of.source), of.day));
            crowd.truncate(crowd.len().saturating_sub(REPOSITORIES_MAX));
            going.extend(crowd.into_iter().map(|of| (digest, of)));
        }
        let mut rows_count = 0;
        for some in going.chunks(AT_ONCE) {
            let mut gone = Vec::new();
            rows_count += self.forgetting(|_, rows, _| {
                for (digest, Candidate { source, row, .. }) in some {
                    // Not one that was confirmed meanwhile.
                    if self.inner.index.is_row(&row.0, &row.1)? {
                        rows.forget(row.0.clone());
                        rows.forget(keys::source(digest, source));
                        gone.push(&row.0);
                    }
                }
                Ok(())
            })?;
            for key in gone {
                self.inner.at_hand.members.forget(key.as_slice());
            }
            if !go_on() {
                return Ok(None);
            }
        }
        // Each has the way back beside it.
        Ok(Some(rows_count / 2))
    }

    fn each_member(
        &self,
        go_on: &dyn Fn() -> bool,
        mut visit: impl FnMut(Source, BlobDigest, RawRow),
    ) -> Result<Option<()>, StoreError> {
        let mut after = vec![keys::MEMBER];
        loop {
            let page = self.inner.index.rows_after(&after, ROWS_A_STEP)?;
            let Some((last, _)) = page.last() else {
                return Ok(Some(()));
            };
            after.clone_from(last);
            for row in page {
                if row.0.first() != Some(&keys::MEMBER) {
                    return Ok(Some(()));
                }
                if let Some((source, digest)) = row.0.get(1..).and_then(keys::member_from) {
                    visit(source, digest, row);
                }
            }
            if !go_on() {
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::facts::Membership;
    use crate::store::forget::Here;
    use crate::store::learned::Fact;

    fn source(n: usize) -> Source {
        Source {
            upstream: "u".into(),
            repository: format!("r{n:05}"),
        }
    }

    /// All of them pinned: there was nothing that could go, and nothing that bounded them.
    #[test]
    fn of_a_digest_in_too_many_repositories_those_confirmed_longest_ago_go() {
        const MORE: usize = 50;
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (base, other) = (BlobDigest::of(b"base"), BlobDigest::of(b"other"));
        for n in 0..REPOSITORIES_MAX + MORE {
            store.add_member(&source(n), &base).unwrap();
        }
        store.add_member(&source(0), &other).unwrap();
        // As if those in the middle had been confirmed long ago, and one of them today again.
        let again = source(500);
        for n in 480..480 + MORE + 1 {
            let key = keys::member(&source(n), &base);
            store.inner.index.set_row(&key, Some(&[1, 9, 0])).unwrap();
        }
        store.add_member(&again, &base).unwrap();
        let here = Here {
            pinned: [base, other].into(),
            ..Here::default()
        };
        store.forget_facts(1, &here, &|| true).unwrap().unwrap();
        let left: Vec<usize> = (0..REPOSITORIES_MAX + MORE)
            .filter(|n| store.is_member(&source(*n), &base).unwrap())
            .collect();
        assert_eq!(left.len(), REPOSITORIES_MAX);
        assert!(
            left.contains(&500) && !left.contains(&480) && !left.contains(&530),
            "{left:?}"
        );
        assert!(store.is_member(&source(0), &other).unwrap());
        assert!(!store.sources(&base).unwrap().is_empty());
    }

    /// A row was read, and written again for the day, whatever had become of it in between.
    #[test]
    fn a_confirmation_changes_nothing_that_was_said_meanwhile() {
        const ROUNDS: usize = 3000;
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let digest = |n: usize| BlobDigest::of(&n.to_le_bytes());
        // Known from a manifest, confirmed long ago.
        for n in 0..ROUNDS {
            let key = keys::member(&source(0), &digest(n));
            store.inner.index.set_row(&key, Some(&[0, 9, 0])).unwrap();
        }
        let barrier = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..ROUNDS {
                    barrier.wait();
                    store.inner.index.confirm_member(&source(0), &digest(n)).unwrap();
                }
            });
            for n in 0..ROUNDS {
                barrier.wait();
                if n % 2 == 0 {
                    let (source, digest) = (source(0), digest(n));
                    store.append_fact(&Fact::Member { source, digest }).unwrap();
                } else {
                    let key = keys::member(&source(0), &digest(n));
                    store.inner.index.set_row(&key, None).unwrap();
                }
            }
        });
        for n in 0..ROUNDS {
            let known = store.inner.index.member(&source(0), &digest(n)).unwrap();
            let expected = (n % 2 == 0).then_some(Membership::Served);
            assert_eq!(known, expected, "{n}");
        }
    }
}
