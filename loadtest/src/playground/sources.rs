//! Where the chunks on a node came from.
//!
//! In: what our shim counts (`client-shim/METRICS.md`). Out: [`Sources`], of the time between two readings.
//! Invariant: the parts of what servers sent add up to what they sent, unless the shim counts otherwise than it says.
//! Not here: asking it ([`super::shim`]), bytes on the wire ([`crate::relay`]: those include heads, TOCs and configs).

use serde::{Deserialize, Serialize};

use super::proxy::Counters;

/// Bytes of chunks, as they were sent: compressed, but for `copied`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    /// By the stream of a profile.
    pub prefetched: u64,
    /// Because a reader waited for them, with what its window read ahead.
    pub on_demand: u64,
    /// Because they lie near what a start of which nothing is known has read.
    pub explored: u64,
    /// While nobody waited for anything.
    pub filled: u64,
    /// Of whole blobs, from the image's registry.
    pub original: u64,
    /// From other layers of the node, uncompressed; nobody sent those.
    pub copied: u64,
}

impl Sources {
    pub fn of(counters: &Counters) -> Sources {
        let sum = |name: &str, labels: &[&str]| counters.sum(&format!("headstart_shim_{name}_total"), labels) as u64;
        let sent = sum("fetched_bytes", &["source=\"server\""]);
        let (prefetched, filled) = (sum("prefetch_bytes", &[]), sum("fill_bytes", &[]));
        let explored = sum("explored_bytes", &[]);
        Sources {
            prefetched,
            on_demand: sent.saturating_sub(prefetched + filled + explored),
            explored,
            filled,
            original: sum("fetched_bytes", &["source=\"original\""]),
            copied: sum("near_bytes", &[]),
        }
    }

    /// What was counted after `earlier`.
    pub fn since(&self, earlier: &Sources) -> Sources {
        let less = |part: fn(&Sources) -> u64| part(self).saturating_sub(part(earlier));
        Sources {
            prefetched: less(|s| s.prefetched),
            on_demand: less(|s| s.on_demand),
            explored: less(|s| s.explored),
            filled: less(|s| s.filled),
            original: less(|s| s.original),
            copied: less(|s| s.copied),
        }
    }

    /// Each with its name, for people.
    pub fn named(&self) -> [(&'static str, u64); 6] {
        [
            ("prefetched", self.prefetched),
            ("on demand", self.on_demand),
            ("explored", self.explored),
            ("background fill", self.filled),
            ("from the registry itself", self.original),
            ("copied from other layers", self.copied),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_servers_sent_is_split_by_what_it_was_for() {
        let counters = |more: u64| {
            let lines = [
                ("fetched_bytes_total{source=\"server\"}", 1_000 + more),
                ("fetched_bytes_total{source=\"original\"}", 7),
                ("prefetch_bytes_total", 600 + more),
                ("prefetch_late_bytes_total", 9),
                ("explored_bytes_total", 50),
                ("fill_bytes_total", 30),
                ("near_bytes_total", 11),
                ("near_chunks_total", 2),
            ];
            let text = lines.map(|(name, value)| format!("headstart_shim_{name} {value}\n"));
            Sources::of(&Counters::parse(&text.concat()))
        };
        let first = counters(0);
        let expected = Sources {
            prefetched: 600,
            on_demand: 320,
            explored: 50,
            filled: 30,
            original: 7,
            copied: 11,
        };
        assert_eq!(first, expected);
        let after = counters(100).since(&first);
        let expected = Sources {
            prefetched: 100,
            ..Sources::default()
        };
        assert_eq!(after, expected);
    }
}
