//! Layers and their conversion: what state one is in, and getting it to ready.
//!
//! In: served manifests, and requests for layers. Out: [`LayerStatus`]. Invariant: nobody waits without a limit, and
//! nothing that is ready, refused or under way is queued again; where conversions are switched off, nothing is, and a layer
//! that is neither ready nor refused is as unknown as one that was never served. One that is refused only for now is queued
//! again when that is over. What a restart forgets (queued, converting, failed) is
//! simply unconverted; the next request queues it.
//! Not here: the workers ([`super::conversion`]), the conversion itself (`ingest`). Whether an image may use a layer
//! (media type, DiffID) is the image's question: see `read/images.rs`.

use std::sync::Arc;
use std::time::Duration;

use headstart_layer_format::api::{LayerState, LayerStatus};
use headstart_layer_format::{BlobDigest, DiffId};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, field::Empty};

use super::blobs::Blobs;
use super::conversion::{Job, Queue};
use crate::ingest::IngestConfig;
use crate::metrics::Metrics;
use crate::store::facts::{ConfigFact, ImageFact, LayerFact, ManifestFact};
use crate::store::hot::Hot;
use crate::store::refusal::Allowance;
use crate::store::{LayerRecord, Store, StoreError};
use crate::telemetry::Cause;
use crate::upstream::Caller;

/// Image configs are some kilobytes; the history of a huge one some hundred.
const CONFIG_SIZE_MAX: u64 = 8 << 20;
/// Served manifests whose config has not been read yet; further ones are looked at when they are served again.
const MANIFESTS_MAX: usize = 1024;
/// A manifest that left nothing to do is not looked at again for this long: looking costs more than serving it. Short,
/// because eviction may undo a conversion.
const SETTLED_FOR: Duration = Duration::from_secs(1);
/// Manifests that this is remembered of.
const SETTLED_MAX: usize = 4096;
/// Configs read at the same time.
const CONFIG_READS_MAX: usize = 8;

/// Layer media types whose content is a tar that we may fetch. Foreign and non-distributable ones come from elsewhere.
const TAR_LAYERS: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// Whether a descriptor of this type names a layer that can be converted. The format itself is told by its bytes.
pub fn is_tar_layer(media_type: &str) -> bool {
    TAR_LAYERS.contains(&media_type)
}

/// Clones share one queue; the workers end when the last is dropped.
#[derive(Clone, Debug)]
pub struct Layers {
    queue: Arc<Queue>,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    blobs: Blobs,
    config: IngestConfig,
    manifests: Arc<Semaphore>,
    config_reads: Semaphore,
    /// Served manifests that leave nothing to do, and when that was seen.
    settled: Hot<BlobDigest, Instant>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// The part of an image config that is read.
#[derive(Deserialize)]
struct ImageConfig {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<DiffId>,
}

impl Inner {
    fn allowance(&self) -> Allowance {
        self.config.allowance(self.store.bytes_max())
    }
}

impl Layers {
    /// Starts the workers. To be called on a Tokio runtime, which they use to open blobs.
    pub fn new(store: Store, blobs: Blobs, config: IngestConfig, metrics: Metrics) -> Layers {
        store.observe(metrics.clone());
        store.heal_index();
        let queue = Queue::start(store.clone(), blobs.clone(), config.clone(), metrics);
        Layers {
            queue: Arc::new(queue),
            inner: Arc::new(Inner {
                store,
                blobs,
                config,
                manifests: Arc::new(Semaphore::new(MANIFESTS_MAX)),
                config_reads: Semaphore::new(CONFIG_READS_MAX),
                settled: Hot::new(SETTLED_MAX),
                tasks: TaskTracker::new(),
                stop: CancellationToken::new(),
            }),
        }
    }

    /// Whether layers are converted at all.
    pub fn converts(&self) -> bool {
        self.inner.config.enabled
    }

    /// Whether a blob that a manifest names will be fetched for what is done here once the manifest is given. Blocks briefly.
    pub fn fetches(&self, fact: &ManifestFact, blob: &BlobDigest) -> Result<bool, StoreError> {
        let Some(image) = fact.image.as_ref().filter(|_| self.inner.config.enabled) else {
            return Ok(false);
        };
        if image.config == *blob {
            return Ok(self.inner.store.diff_ids(&fact.digest)?.is_none());
        }
        let is_layer = |layer: &&LayerFact| layer.digest == *blob && is_tar_layer(&layer.media_type);
        if image.layers.iter().find(is_layer).is_none() {
            return Ok(false);
        }
        let record = self.inner.store.layer(blob)?;
        Ok(record.is_none_or(|record| !record.is_settled(&self.inner.allowance())))
    }

    /// A manifest was verified, recorded and is being given to a client: queue its layers, learn its DiffIDs. What has to be
    /// fetched for that is fetched from the manifest's source on behalf of `caller`. Does not block.
    pub fn manifest_served(&self, fact: &ManifestFact, caller: &Caller) {
        if !self.inner.config.enabled || fact.image.is_none() {
            return;
        }
        let settled = self.inner.settled.get(&fact.digest);
        if self.inner.stop.is_cancelled() || settled.is_some_and(|at| at.elapsed() < SETTLED_FOR) {
            return;
        }
        let Ok(permit) = Arc::clone(&self.inner.manifests).try_acquire_owned() else {
            tracing::warn!(manifest = %fact.digest, "too many new manifests; its layers are converted when asked for");
            return;
        };
        let Some(image) = fact.image.clone() else { return };
        let (layers, fact, caller) = (self.clone(), fact.clone(), caller.clone());
        let stop = self.inner.stop.clone();
        let span = tracing::error_span!(parent: None, "learn image", request_id = Empty, manifest = %fact.digest);
        let span = Cause::here().of(span);
        let learning = async move {
            let _permit = permit;
            let (settled, ticket) = (&layers.inner.settled, layers.inner.settled.ticket());
            let nothing_to_do = layers.queue_image(&fact, &image, &caller).await;
            match layers.learn_config(&fact, &image, &caller).await {
                Ok(()) if nothing_to_do => settled.keep(ticket, fact.digest, Instant::now(), 1),
                Ok(()) => {}
                Err(reason) => {
                    tracing::warn!(manifest = %fact.digest, reason, "failed to learn DiffIDs from the image config");
                }
            }
        };
        let learning = stop.run_until_cancelled_owned(learning.instrument(span));
        self.inner.tasks.spawn(learning);
    }

    /// Whether every layer is ready or refused already.
    async fn queue_image(&self, fact: &ManifestFact, image: &ImageFact, caller: &Caller) -> bool {
        let mut settled = true;
        let place = self.queue.image();
        let mut layers: Vec<_> = image.layers.iter().filter(|l| is_tar_layer(&l.media_type)).collect();
        // As the queue has them: an idle worker takes the first that comes.
        layers.sort_by_key(|layer| layer.size);
        for layer in layers {
            let job = Job {
                layer: layer.digest,
                image: place,
                source: Some(fact.source.clone()),
                caller: caller.clone(),
                size: Some(layer.size),
                cause: Cause::here(),
            };
            let layers = self.clone();
            let queued = tokio::task::spawn_blocking(move || layers.ensure(job)).await;
            let status = match queued {
                Ok(Ok(status)) => status,
                Ok(Err(error)) => {
                    tracing::error!(%error, layer = %layer.digest, "failed to queue a layer");
                    None
                }
                Err(_) => None,
            };
            settled &= status.is_some_and(|s| matches!(s.state, LayerState::Ready | LayerState::Refused));
        }
        settled
    }

    async fn learn_config(&self, fact: &ManifestFact, image: &ImageFact, caller: &Caller) -> Result<(), String> {
        let (store, manifest) = (self.inner.store.clone(), fact.digest);
        let known = tokio::task::spawn_blocking(move || store.diff_ids(&manifest)).await;
        if known.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?.is_some() {
            return Ok(());
        }
        let _permit = self.inner.config_reads.acquire().await.map_err(|e| e.to_string())?;
        let bytes = self
            .inner
            .blobs
            .read_small(&fact.source, caller, &image.config, CONFIG_SIZE_MAX)
            .await;
        let bytes = bytes.map_err(|e| e.to_string())?;
        // Where, and not what: the message would quote the image's own words, megabytes of them if it likes.
        let config: ImageConfig = serde_json::from_slice(&bytes)
            .map_err(|e| format!("it is no image config: line {}, column {}", e.line(), e.column()))?;
        if config.rootfs.diff_ids.len() != image.layers.len() {
            return Err("it lists another number of layers than the manifest".into());
        }
        let learnt = ConfigFact {
            manifest: fact.digest,
            diff_ids: config.rootfs.diff_ids,
        };
        let store = self.inner.store.clone();
        let recorded = tokio::task::spawn_blocking(move || store.record_config(&learnt)).await;
        recorded.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
    }

    /// State now, without starting anything. `None`: nothing recorded, and no source to fetch it from. Blocks briefly.
    pub fn status(&self, layer: &BlobDigest) -> Result<Option<LayerStatus>, StoreError> {
        // The queue first: a conversion publishes before it leaves the queue, so one of the two knows.
        if let Some(status) = self.queue.status(layer) {
            return Ok(Some(status));
        }
        let mut status = unknown(layer);
        let record = self.inner.store.layer(layer)?;
        let is_settled = record.as_ref().is_some_and(|r| r.is_settled(&self.inner.allowance()));
        // A refusal that is over says less than how the latest try ended.
        if let Some(failed) = self.queue.failed(layer).filter(|_| !is_settled) {
            return Ok(Some(failed));
        }
        match record {
            Some(LayerRecord::Ready { diff_id, toc }) => {
                status.state = LayerState::Ready;
                status.diff_id = Some(diff_id);
                status.toc = Some(toc);
            }
            Some(LayerRecord::Refused { reason, .. }) => {
                status.state = LayerState::Refused;
                status.reason = Some(reason);
            }
            Some(LayerRecord::Unconverted) | None => {
                if self.inner.store.sources(layer)?.is_empty() {
                    return Ok(None);
                }
            }
        }
        Ok(Some(status))
    }

    /// Queues a layer unless it is settled, under way, or failed a moment ago; its state afterwards.
    fn ensure(&self, job: Job) -> Result<Option<LayerStatus>, StoreError> {
        let layer = job.layer;
        if !self.inner.config.enabled {
            let status = self.status(&layer)?;
            return Ok(status.filter(|s| matches!(s.state, LayerState::Ready | LayerState::Refused)));
        }
        match self.status(&layer)? {
            None if job.source.is_none() => Ok(None),
            Some(status)
                if status.state == LayerState::Refused
                    && self.queue.may_retry(&layer)
                    && self.is_refused_no_more(&layer)? =>
            {
                let queued = self.queue.push(job);
                // While there is no room, it stays what it was.
                Ok(Some(if queued.state == LayerState::Unknown {
                    status
                } else {
                    queued
                }))
            }
            // It may move up.
            Some(status) if status.state == LayerState::Queued => Ok(Some(self.queue.push(job))),
            Some(status)
                if status.state != LayerState::Unknown
                    && !(status.state == LayerState::Failed && self.queue.may_retry(&layer)) =>
            {
                Ok(Some(status))
            }
            _ => Ok(Some(self.queue.push(job))),
        }
    }

    fn is_refused_no_more(&self, layer: &BlobDigest) -> Result<bool, StoreError> {
        let record = self.inner.store.layer(layer)?;
        Ok(record.is_some_and(|record| !record.is_settled(&self.inner.allowance())))
    }

    /// Queues the layer when it is unconverted and a source is recorded, waits until it is ready, refused or failed or
    /// `wait` is over, and returns the state then.
    pub async fn settle(&self, layer: &BlobDigest, wait: Duration) -> Result<Option<LayerStatus>, StoreError> {
        self.settle_of(self.next_image(), layer, None, wait).await
    }

    /// For [`Layers::settle_of`]: the layers of one image have one number.
    pub fn next_image(&self) -> u64 {
        self.queue.image()
    }

    /// The same for a layer of an image, whose manifest says its `size`.
    pub async fn settle_of(
        &self,
        image: u64,
        layer: &BlobDigest,
        size: Option<u64>,
        wait: Duration,
    ) -> Result<Option<LayerStatus>, StoreError> {
        let deadline = Instant::now() + wait;
        let mut changed = self.queue.changes();
        loop {
            changed.mark_unchanged();
            let layers = self.clone();
            let job = Job {
                layer: *layer,
                image,
                source: None,
                caller: Caller::Server,
                size,
                cause: Cause::here(),
            };
            let now = tokio::task::spawn_blocking(move || layers.ensure(job)).await;
            let status = match now {
                Ok(status) => status?,
                // The runtime is ending.
                Err(_) => return Ok(None),
            };
            let under_way = status
                .as_ref()
                .is_some_and(|s| matches!(s.state, LayerState::Queued | LayerState::Converting));
            if !under_way || Instant::now() >= deadline {
                return Ok(status);
            }
            let next = tokio::time::timeout_at(deadline, changed.changed()).await;
            if matches!(next, Ok(Err(_))) {
                return Ok(status);
            }
        }
    }

    /// Ends running conversions (what they stored so far is reused) and waits a little for their threads.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        self.queue.shutdown().await;
    }
}

/// A status that says nothing.
pub(super) fn unknown(layer: &BlobDigest) -> LayerStatus {
    LayerStatus {
        digest: *layer,
        state: LayerState::Unknown,
        reason: None,
        diff_id: None,
        chain_id: None,
        media_type: None,
        size: None,
        converted: None,
        toc: None,
    }
}
