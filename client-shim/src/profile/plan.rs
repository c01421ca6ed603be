//! What of a profile is fetched.
//!
//! In: a profile, the TOCs it speaks of, the layers of this node. Out: a [`Plan`]: what is here, what is near by, what to ask
//! for. Invariant: a profile is followed only in layers whose TOC here is the one it counts in (a layer that was converted
//! again has another); what is asked for is within the node's own bounds, in the profile's order; whatever the profile says,
//! it names chunks of the image or nothing.
//! Not here: how much of it is asked for at a time (`profile/parts.rs`), asking (`profile/stream.rs`).

use std::sync::Arc;

use headstart_layer_format::TocDigest;
use headstart_layer_format::profile::Profile;
use headstart_layer_format::toc::Chunk;

use super::config::PrefetchConfig;
use crate::cache::Layer;
use crate::fetch::ChunkSink as _;

/// A chunk to ask for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its position in the profile.
    pub at: usize,
    pub layer: Arc<Layer>,
    pub chunk: Chunk,
}

#[derive(Debug, Default)]
pub struct Plan {
    /// Chunks that the profile names, whether the image has them or not.
    pub positions: usize,
    /// In the profile's order.
    pub wanted: Vec<Wanted>,
    /// Compressed bytes of these, by this node's TOCs.
    pub bytes: u64,
    /// Other layers of this node seem to have these.
    pub near: Vec<Wanted>,
    /// Chunks that the profile names and the image has.
    pub chunks: usize,
    /// Those that are over the node's bounds.
    pub over: usize,
}

impl Plan {
    /// `layers`: the image's, bottom first; `tocs`: of the answer that had the profile. `None`: it speaks of other
    /// TOCs throughout.
    pub fn of(
        profile: &Profile,
        tocs: &[Option<TocDigest>],
        layers: &[Arc<Layer>],
        config: &PrefetchConfig,
    ) -> Option<Self> {
        let is_ours = |(layer, toc): (&Arc<Layer>, &Option<TocDigest>)| *toc == Some(*layer.contents().toc_digest());
        let ours: Vec<bool> = layers.iter().zip(tocs).map(is_ours).collect();
        if layers.len() != tocs.len() || !ours.contains(&true) {
            return None;
        }
        let image_bytes = layers.iter().map(|l| l.contents().chunks().blob_size()).sum();
        let allowance = config.allowance(image_bytes);
        let mut plan = Self::default();
        for (at, (position, index)) in profile.positions().enumerate() {
            plan.positions = at + 1;
            let is_ours = ours.get(position as usize) == Some(&true);
            let layer = layers.get(position as usize).filter(|_| is_ours);
            let found = layer.and_then(|l| Some((l, l.contents().chunks().chunk(index)?)));
            let Some((layer, chunk)) = found else {
                continue;
            };
            plan.chunks += 1;
            let wanted = Wanted {
                at,
                layer: Arc::clone(layer),
                chunk,
            };
            if layer.file().has(index) {
                continue;
            }
            if layer.file().is_near(index) {
                plan.near.push(wanted);
            } else if plan.bytes.saturating_add(chunk.frame.len) > allowance {
                plan.over += 1;
            } else {
                plan.bytes += chunk.frame.len;
                plan.wanted.push(wanted);
            }
        }
        Some(plan)
    }
}
