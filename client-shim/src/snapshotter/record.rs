//! One snapshot, as it is kept on disk (`snapshot.json`) and in memory.
//!
//! In: JSON text. Out: [`Record`]. Invariant: `name` is unique among snapshots; `parent` names a committed one; a lazy
//! snapshot is committed and has no `fs` directory.
//! Not here: where the file is and how it is replaced ([`super::disk`]).

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use headstart_layer_format::{BlobDigest, ChainId};
use serde::{Deserialize, Serialize};

use super::labels;

/// Version of `snapshot.json`; another one is set aside, not guessed at.
pub const RECORD_VERSION: u32 = 1;

/// Labels of a snapshot.
pub type Labels = BTreeMap<String, String>;

/// Number of a snapshot's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SnapshotId(pub u64);

/// What a snapshot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Read-only mount of its parent.
    View,
    /// Writable.
    Active,
    /// Immutable; may be a parent.
    Committed,
}

impl Kind {
    /// As containerd's filters spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

/// Nanoseconds since the epoch, saturating: fine until the year 2554.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimeNs(u64);

impl TimeNs {
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Seconds, and nanoseconds within the second.
    pub fn parts(self) -> (i64, i32) {
        let split = |n: u64| (n / 1_000_000_000, n % 1_000_000_000);
        let (s, ns) = split(self.0);
        (s.cast_signed(), ns as i32)
    }
}

/// What a snapshot itself occupies, its parents not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// Allocated bytes.
    pub size: u64,
    pub inodes: u64,
}

/// The layer that a lazy snapshot shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LazyLayer {
    /// Digest of the original, compressed blob.
    pub layer: BlobDigest,
    pub chain_id: ChainId,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub version: u32,
    pub id: SnapshotId,
    /// containerd's key while active, its name once committed.
    pub name: String,
    /// Empty: none.
    #[serde(default)]
    pub parent: String,
    pub kind: Kind,
    #[serde(default)]
    pub labels: Labels,
    pub created: TimeNs,
    pub updated: TimeNs,
    /// Measured when the snapshot was committed.
    #[serde(default)]
    pub usage: Usage,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lazy: Option<LazyLayer>,
}

impl Record {
    /// Whether other snapshots may stand on this one.
    pub fn is_committed(&self) -> bool {
        self.kind == Kind::Committed
    }

    /// The chain ID this snapshot unpacks, if it tells: a lazy one knows, containerd labels those it unpacks, and its
    /// metadata layer names them `<namespace>/<n>/<chain ID>`.
    pub fn chain_id(&self) -> Option<ChainId> {
        if let Some(lazy) = &self.lazy {
            return Some(lazy.chain_id);
        }
        if !self.is_committed() {
            return None;
        }
        let label = self.labels.get(labels::SNAPSHOT_REF).and_then(|l| l.parse().ok());
        label.or_else(|| self.name.rsplit('/').next().and_then(|tail| tail.parse().ok()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed(name: &str) -> Record {
        Record {
            version: RECORD_VERSION,
            id: SnapshotId(1),
            name: name.into(),
            parent: String::new(),
            kind: Kind::Committed,
            labels: Labels::new(),
            created: TimeNs::now(),
            updated: TimeNs::now(),
            usage: Usage::default(),
            lazy: None,
        }
    }

    #[test]
    fn chain_id_comes_from_the_label_or_the_namespaced_name() {
        let chain = ChainId::of(b"c");
        assert_eq!(committed(&format!("k8s.io/12/{chain}")).chain_id(), Some(chain));
        assert_eq!(committed(&chain.to_string()).chain_id(), Some(chain));
        assert_eq!(committed("default/3/my-base").chain_id(), None);
        let mut labelled = committed("default/3/my-base");
        labelled.labels.insert(labels::SNAPSHOT_REF.into(), chain.to_string());
        assert_eq!(labelled.chain_id(), Some(chain));
        labelled.kind = Kind::Active;
        assert_eq!(labelled.chain_id(), None);
    }

    #[test]
    fn json_round_trips_and_refuses_what_it_does_not_know() {
        let mut record = committed("a");
        record.lazy = Some(LazyLayer {
            layer: BlobDigest::of(b"l"),
            chain_id: ChainId::of(b"c"),
        });
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
        let newer = text.replacen('{', "{\"surprise\":1,", 1);
        assert!(serde_json::from_str::<Record>(&newer).is_err());
    }
}
