//! What `headstart-shim status` shows, as the running shim sends it.
//!
//! In: snapshots, layers. Out: [`Status`], JSON both ways. Invariant: an image is what ends a chain of committed
//! snapshots, or what a container stands on; a field may come, none changes its meaning.
//! Not here: the text for people ([`crate::cli::status`]).

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use headstart_layer_format::BlobDigest;
use serde::{Deserialize, Serialize};

use super::pulls::Pull;
use crate::layers::{LayerProgress, NodeStatus};
use crate::profile::ImagePrefetch;
use crate::snapshotter::labels;
use crate::snapshotter::record::{Kind, Record};
use crate::snapshotter::waits::Waiting;

/// Seconds since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(pub u64);

impl Moment {
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    pub fn age_secs(self) -> u64 {
        Self::now().0.saturating_sub(self.0)
    }
}

impl From<SystemTime> for Moment {
    fn from(at: SystemTime) -> Self {
        Self(at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs())
    }
}

/// A running shim.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub started_at: Moment,
    pub up_secs: u64,
    /// Starts on this root directory, this one included.
    pub starts: u64,
    pub root_dir: PathBuf,
    pub socket: PathBuf,
    pub servers: Vec<String>,
    /// Why the configuration file is not used, but the last one that was good.
    #[serde(default)]
    pub config_refused: Option<String>,
    /// Why nothing can be lazy on this node now: a value of the log field `lazy_declined`.
    pub obstacle: Option<String>,
    /// "erofs" or "fuse".
    pub presentation: Option<String>,
    /// Calls of containerd since the start.
    pub calls: u64,
    pub resident_bytes: u64,
    pub snapshots: Snapshots,
    pub images: Vec<Image>,
    /// Pulls that stand still until a server has converted their image, the longest first.
    #[serde(default)]
    pub waiting: Vec<Waiting>,
    /// Newest first.
    pub pulls: Vec<Pull>,
    /// Images that were prepared lately, newest first.
    #[serde(default)]
    pub prefetches: Vec<ImagePrefetch>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshots {
    pub lazy: u64,
    pub unpacked: u64,
    pub active: u64,
    pub views: u64,
}

impl Snapshots {
    pub fn of(records: &[Arc<Record>]) -> Self {
        let mut count = Self::default();
        for record in records {
            *match (record.kind, &record.lazy) {
                (Kind::Committed, Some(_)) => &mut count.lazy,
                (Kind::Committed, None) => &mut count.unpacked,
                (Kind::Active, _) => &mut count.active,
                (Kind::View, _) => &mut count.views,
            } += 1;
        }
        count
    }
}

/// An image, or what several have in common and a container uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// As [`Pull::image`]; of the pull that made its top snapshot.
    pub image: String,
    /// Of its top snapshot.
    pub chain_id: Option<String>,
    pub layers_lazy: u32,
    pub layers_unpacked: u32,
    /// Of the lazy ones, those that are not shown: no container starts on them until a server has them again.
    #[serde(default)]
    pub layers_unavailable: u32,
    /// Of the lazy layers.
    pub chunks: u64,
    pub chunks_present: u64,
    pub disk_bytes: u64,
    /// Writable snapshots on it.
    pub containers: u32,
    pub layers: Vec<Layer>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    pub digest: BlobDigest,
    /// "erofs" or "fuse"; nothing while its tree is made.
    #[serde(default)]
    pub shown_by: Option<String>,
    /// Why it is not shown as the node's others are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    pub chunks: u32,
    pub chunks_present: u32,
    pub disk_bytes: u64,
    /// Compressed, of the chunks that containers have read through this process.
    #[serde(default)]
    pub read_bytes: u64,
}

/// The images among `records`, by name.
pub fn images(records: &[Arc<Record>], lazy: Option<&NodeStatus>) -> Vec<Image> {
    let by_name: HashMap<&str, &Record> = records.iter().map(|r| (r.name.as_str(), &**r)).collect();
    let progress: HashMap<BlobDigest, &LayerProgress> =
        lazy.iter().flat_map(|l| &l.layers).map(|l| (l.digest, l)).collect();
    let committed = || records.iter().filter(|r| r.is_committed());
    let below: HashSet<&str> = committed().map(|r| r.parent.as_str()).collect();
    let mut containers: HashMap<&str, u32> = HashMap::new();
    for record in records.iter().filter(|r| r.kind == Kind::Active) {
        *containers.entry(record.parent.as_str()).or_default() += 1;
    }
    let is_image = |r: &&Arc<Record>| !below.contains(r.name.as_str()) || containers.contains_key(r.name.as_str());
    let mut images: Vec<Image> = committed()
        .filter(is_image)
        .map(|top| {
            let mut image = Image {
                image: name(top),
                chain_id: top.chain_id().map(|c| c.to_string()),
                layers_lazy: 0,
                layers_unpacked: 0,
                layers_unavailable: 0,
                chunks: 0,
                chunks_present: 0,
                disk_bytes: 0,
                containers: containers.get(top.name.as_str()).copied().unwrap_or(0),
                layers: Vec::new(),
            };
            let mut next = Some(&**top);
            // A parent is older than its child, so this ends.
            while let Some(record) = next {
                image.add(record, &progress);
                next = by_name.get(record.parent.as_str()).copied();
            }
            image.layers.reverse();
            image
        })
        .collect();
    images.sort_by(|a, b| (&a.image, &a.chain_id).cmp(&(&b.image, &b.chain_id)));
    images
}

impl Image {
    fn add(&mut self, record: &Record, progress: &HashMap<BlobDigest, &LayerProgress>) {
        let Some(lazy) = &record.lazy else {
            self.layers_unpacked += 1;
            self.disk_bytes += record.usage.size;
            return;
        };
        self.layers_lazy += 1;
        let Some(layer) = progress.get(&lazy.layer) else {
            self.layers_unavailable += 1;
            return;
        };
        self.chunks += u64::from(layer.chunks);
        self.chunks_present += u64::from(layer.chunks_present);
        self.disk_bytes += layer.disk_bytes;
        self.layers.push(Layer {
            digest: layer.digest,
            shown_by: layer.how.as_ref().map(|how| how.by.into()),
            why: layer.how.as_ref().and_then(|how| Some(how.why.as_ref()?.to_string())),
            chunks: layer.chunks,
            chunks_present: layer.chunks_present,
            disk_bytes: layer.disk_bytes,
            read_bytes: layer.read_bytes,
        });
    }
}

fn name(top: &Record) -> String {
    let label = |names: &[&str]| names.iter().find_map(|n| top.labels.get(*n)).cloned();
    label(&labels::IMAGE_REF)
        .or_else(|| label(&labels::MANIFEST_DIGEST))
        .or_else(|| label(&[labels::HEADSTART_MANIFEST]))
        .or_else(|| top.chain_id().map(|c| c.to_string()))
        .unwrap_or_else(|| top.name.clone())
}
