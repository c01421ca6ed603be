//! Modification times in inodes of half the size.
//!
//! In: a tree's times, and what the kernel makes of such inodes. Out: the image's time, and what an inode says besides it.
//! Invariant: what is said makes exactly the inode's time again, or nothing is said; equal trees have equal times.
//! Not here: what else a short inode has no room for (`format.rs`), which kernel it is (`presentation/probe.rs`).

use std::cmp::Reverse;
use std::collections::HashMap;

use headstart_layer_format::toc::{Mtime, Tree};

/// What the kernel takes as the time of a short inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShortTimes {
    /// The image's. Before 6.15.
    Common,
    /// So many seconds after the image's.
    Own,
}

/// Different times that are counted: layers have thousands at most.
const COUNTED_MAX: usize = 1 << 16;
/// Half of what an inode has room for: 68 years before the most common time, and as many after it.
const REACH_SECS: i64 = 1 << 31;

/// The image's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Epoch {
    pub(super) secs: i64,
    pub(super) nanos: u32,
    short: ShortTimes,
}

impl Epoch {
    pub(super) fn of(tree: &Tree, short: ShortTimes) -> Self {
        let mut counts: HashMap<(i64, u32), u32> = HashMap::new();
        // Neighbours are mostly alike.
        for alike in tree.inodes().chunk_by(|a, b| a.mtime == b.mtime) {
            let Mtime { secs, nanos } = alike[0].mtime;
            if counts.len() < COUNTED_MAX || counts.contains_key(&(secs, nanos)) {
                *counts.entry((secs, nanos)).or_default() += alike.len() as u32;
            }
        }
        if short == ShortTimes::Own {
            // Seconds may differ, and nanoseconds may not.
            let mut alike: HashMap<u32, u32> = HashMap::new();
            for ((_, nanos), count) in &counts {
                *alike.entry(*nanos).or_default() += count;
            }
            let most = alike.into_iter().max_by_key(|(nanos, count)| (*count, Reverse(*nanos)));
            counts.retain(|(_, nanos), _| most.is_some_and(|(most, _)| most == *nanos));
        }
        let common = counts.into_iter().max_by_key(|(time, count)| (*count, Reverse(*time)));
        let (secs, nanos) = common.map_or((0, 0), |(time, _)| time);
        let secs = match short {
            ShortTimes::Common => secs,
            ShortTimes::Own => secs.saturating_sub(REACH_SECS),
        };
        Self { secs, nanos, short }
    }

    /// What a short inode says so that its time is this, if it can.
    pub(super) fn until(&self, time: Mtime) -> Option<u32> {
        let secs = u32::try_from(time.secs.checked_sub(self.secs)?).ok()?;
        let reached = secs == 0 || self.short == ShortTimes::Own;
        (reached && time.nanos == self.nanos).then_some(secs)
    }
}

#[cfg(test)]
mod tests {
    use headstart_layer_format::toc::{Entry, EntryId, Inode, InodeId, Kind, Name};

    use super::*;

    fn tree(times: &[(i64, u32)]) -> Tree {
        let inode = |&(secs, nanos): &(i64, u32)| Inode {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Mtime { secs, nanos },
            xattrs: Vec::new(),
            kind: Kind::Fifo,
        };
        let mut inodes: Vec<Inode> = times.iter().map(inode).collect();
        inodes[0].kind = Kind::Directory {
            opaque: false,
            implied: false,
        };
        let entry = |at: usize| Entry {
            parent: EntryId::ROOT,
            name: match at {
                0 => Name::default(),
                _ => format!("{at:04}").into_bytes().into(),
            },
            inode: InodeId(at as u32),
        };
        Tree::new((0..times.len()).map(entry).collect(), inodes).unwrap()
    }

    #[test]
    fn what_is_said_makes_the_same_time_again_or_nothing_is_said() {
        const NOW: i64 = 1_700_000_000;
        let times = [
            (NOW, 5),
            (NOW, 5),
            (NOW + 1, 5),
            (NOW, 6),
            (0, 5),
            (NOW + REACH_SECS - 1, 5),
            (NOW + REACH_SECS, 5),
            (NOW - REACH_SECS, 5),
            (NOW - REACH_SECS - 1, 5),
            (i64::MIN, 5),
            (i64::MAX, 5),
        ];
        for (short, expected) in [
            (ShortTimes::Common, [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            (ShortTimes::Own, [1, 1, 1, 0, 1, 1, 0, 1, 0, 0, 0]),
        ] {
            let epoch = Epoch::of(&tree(&times), short);
            for (&(secs, nanos), expected) in times.iter().zip(expected) {
                let said = epoch.until(Mtime { secs, nanos });
                assert_eq!(said.is_some(), expected == 1, "{short:?} {secs} {nanos}");
                if let Some(said) = said {
                    assert_eq!((epoch.secs + i64::from(said), epoch.nanos), (secs, nanos));
                }
            }
        }
    }

    #[test]
    fn seconds_that_all_differ_do_not_give_way_to_a_time_that_is_there_twice() {
        let tree = tree(&[(5, 7), (5, 7), (1, 0), (2, 0), (3, 0)]);
        assert_eq!(Epoch::of(&tree, ShortTimes::Own).nanos, 0);
        assert_eq!(Epoch::of(&tree, ShortTimes::Common).nanos, 7);
    }

    #[test]
    fn times_at_the_edges_and_ties_are_no_accidents() {
        for secs in [i64::MIN, i64::MAX] {
            let epoch = Epoch::of(&tree(&[(secs, 0)]), ShortTimes::Own);
            let said = epoch.until(Mtime { secs, nanos: 0 }).unwrap();
            assert_eq!(epoch.secs + i64::from(said), secs);
        }
        let tied = tree(&[(9, 0), (3, 1), (7, 2)]);
        for _ in 0..20 {
            let epoch = Epoch::of(&tied, ShortTimes::Common);
            assert_eq!((epoch.secs, epoch.nanos), (3, 1), "the least of them");
        }
    }
}
