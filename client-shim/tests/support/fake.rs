//! A lazy side whose every answer is scripted and every call counted.
//!
//! In: images and faults. Out: a [`LazyLayers`]. Invariant: `present` makes a real directory, so that mounts of it work.
//! Not here: the network, FUSE, chunks.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use headstart_layer_format::{
    BlobDigest, ChainId, DiffId,
    api::{ChainStatus, ImageStatus, LayerState, LayerStatus},
};
use headstart_shim::snapshotter::decline::DeclineReason;
use headstart_shim::snapshotter::lazy::{LazyError, LazyLayers};
use headstart_shim::snapshotter::record::Usage;

#[derive(Clone, Debug)]
pub struct FakeNode(Arc<Mutex<Script>>);

#[derive(Debug, Default)]
pub struct Script {
    root: PathBuf,
    pub images: HashMap<BlobDigest, ImageStatus>,
    /// Answers of `image` take this long.
    pub image_delay: Duration,
    /// No server answers.
    pub unreachable: bool,
    /// `admit`, `present` and `present_known` fail for these.
    pub broken: HashSet<BlobDigest>,
    pub obstacle: Option<DeclineReason>,
    /// Layers that write below a directory they have no entry for, and that some layer below them describes.
    pub implied: HashSet<BlobDigest>,
    /// DiffIDs that TOCs claim, where it is not the image's.
    pub toc_diff_ids: HashMap<BlobDigest, DiffId>,
    pub shown: HashSet<BlobDigest>,
    /// Admitted layers are shown so much later.
    pub show_delay: Duration,
    /// Those.
    pub coming: HashSet<BlobDigest>,
    pub released: Vec<BlobDigest>,
    pub image_calls: usize,
    pub chain_calls: usize,
    pub present_calls: usize,
}

/// An image of the script.
#[derive(Clone, Debug)]
pub struct FakeImage {
    pub manifest: BlobDigest,
    /// Bottom first.
    pub layers: Vec<BlobDigest>,
    pub chain: Vec<ChainId>,
}

impl FakeImage {
    pub fn chain_text(&self, i: usize) -> String {
        self.chain[i].to_string()
    }
}

impl FakeNode {
    pub fn new(root: &Path) -> Self {
        let script = Script {
            root: root.to_owned(),
            ..Script::default()
        };
        Self(Arc::new(Mutex::new(script)))
    }

    pub fn script(&self) -> MutexGuard<'_, Script> {
        self.0.lock().unwrap()
    }

    /// Calls of `image` and of `chain` so far.
    pub fn questions(&self) -> (usize, usize) {
        let script = self.script();
        (script.image_calls, script.chain_calls)
    }

    /// Adds an image whose layers are named by `layers` (equal names: equal layers).
    pub fn add_image(&self, name: &str, layers: &[&str], state: LayerState) -> FakeImage {
        let diff_ids: Vec<_> = layers.iter().map(|l| DiffId::of(l.as_bytes())).collect();
        self.add_image_of(name, &diff_ids, layers, state)
    }

    pub fn add_image_of(&self, name: &str, diff_ids: &[DiffId], layers: &[&str], state: LayerState) -> FakeImage {
        let digests: Vec<_> = layers
            .iter()
            .map(|l| BlobDigest::of(format!("gz {l}").as_bytes()))
            .collect();
        let status = |(digest, diff_id): (&BlobDigest, &DiffId)| LayerStatus {
            digest: *digest,
            state,
            reason: None,
            diff_id: Some(*diff_id),
            chain_id: None,
            media_type: None,
            size: None,
            converted: None,
            toc: None,
        };
        let image = FakeImage {
            manifest: BlobDigest::of(name.as_bytes()),
            layers: digests.clone(),
            chain: ChainId::chain(diff_ids),
        };
        let status = ImageStatus {
            manifest_digest: image.manifest,
            config_digest: BlobDigest::of(b"config"),
            layers: digests.iter().zip(diff_ids).map(status).collect(),
            profile: None,
        };
        self.script().images.insert(image.manifest, status);
        image
    }

    pub fn set_state(&self, image: &FakeImage, layer: usize, state: LayerState) {
        self.script().images.get_mut(&image.manifest).unwrap().layers[layer].state = state;
    }

    /// Where a layer is shown.
    pub fn lowerdir(&self, layer: &BlobDigest) -> PathBuf {
        self.script().root.join(&layer.hex()[..12])
    }

    fn diff_id(&self, layer: &BlobDigest) -> Result<DiffId, LazyError> {
        let script = self.script();
        if script.broken.contains(layer) {
            return Err(LazyError::new("scripted failure"));
        }
        let layers = script.images.values().flat_map(|i| &i.layers);
        let of_image = layers.filter(|l| l.digest == *layer).find_map(|l| l.diff_id);
        let claimed = script.toc_diff_ids.get(layer).copied().or(of_image);
        claimed.ok_or_else(|| LazyError::new("not of any image"))
    }

    fn show(&self, layer: &BlobDigest) -> Result<PathBuf, LazyError> {
        self.diff_id(layer)?;
        let lowerdir = self.lowerdir(layer);
        std::fs::create_dir_all(&lowerdir).map_err(LazyError::new)?;
        self.script().shown.insert(*layer);
        Ok(lowerdir)
    }
}

impl LazyLayers for FakeNode {
    fn obstacle(&self) -> Option<DeclineReason> {
        self.script().obstacle
    }

    async fn image(&self, manifest: &BlobDigest, _wait_ms: u64) -> Result<Option<ImageStatus>, LazyError> {
        let delay = {
            let mut script = self.script();
            script.image_calls += 1;
            script.image_delay
        };
        tokio::time::sleep(delay).await;
        let script = self.script();
        if script.unreachable {
            return Err(LazyError::new("scripted: nobody there"));
        }
        Ok(script.images.get(manifest).cloned())
    }

    async fn chain(&self, chain: &ChainId) -> Result<Option<ChainStatus>, LazyError> {
        let mut script = self.script();
        script.chain_calls += 1;
        if script.unreachable {
            return Err(LazyError::new("scripted: nobody there"));
        }
        let found = script.images.values().find_map(|image| {
            let diff_ids: Vec<_> = image.layers.iter().map(|l| l.diff_id.unwrap()).collect();
            let at = ChainId::chain(&diff_ids).iter().position(|c| c == chain)?;
            Some(ChainStatus {
                chain_id: *chain,
                layer_digest: image.layers[at].digest,
                diff_id: diff_ids[at],
                images: vec![image.manifest_digest],
                image: None,
            })
        });
        Ok(found)
    }

    async fn admit(&self, layer: &BlobDigest, _deadline: Instant) -> Result<DiffId, LazyError> {
        self.script().present_calls += 1;
        let diff_id = self.diff_id(layer)?;
        let show_delay = self.script().show_delay;
        if show_delay.is_zero() {
            self.show(layer)?;
            return Ok(diff_id);
        }
        self.script().coming.insert(*layer);
        let (node, layer) = (self.clone(), *layer);
        tokio::spawn(async move {
            tokio::time::sleep(show_delay).await;
            let shown = node.show(&layer);
            node.script().coming.remove(&layer);
            shown
        });
        Ok(diff_id)
    }

    async fn shown(&self, layer: &BlobDigest) -> Option<PathBuf> {
        while self.script().coming.contains(layer) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.present_known(layer).ok()
    }

    async fn present(&self, layer: &BlobDigest, deadline: Instant) -> Result<PathBuf, LazyError> {
        self.script().present_calls += 1;
        while self.script().coming.contains(layer) {
            if Instant::now() >= deadline {
                return Err(LazyError::new("scripted: still on its way"));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.show(layer)
    }

    fn implied_conflict(&self, stack: &[BlobDigest], over_unpacked: bool) -> Option<String> {
        let top = stack.last()?;
        let hit = self.script().implied.contains(top) && (stack.len() > 1 || over_unpacked);
        hit.then(|| "home/app".to_owned())
    }

    fn present_known(&self, layer: &BlobDigest) -> Result<PathBuf, LazyError> {
        if !self.script().shown.contains(layer) {
            return Err(LazyError::new("not on this node"));
        }
        self.show(layer)
    }

    fn known(&self) -> Vec<BlobDigest> {
        self.script().shown.iter().copied().collect()
    }

    async fn release(&self, layer: &BlobDigest) {
        let mut script = self.script();
        script.shown.remove(layer);
        script.released.push(*layer);
    }

    fn usage(&self, layer: &BlobDigest) -> Option<Usage> {
        let shown = self.script().shown.contains(layer);
        shown.then_some(Usage { size: 4096, inodes: 7 })
    }
}
