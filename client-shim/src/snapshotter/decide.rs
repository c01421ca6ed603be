//! Lazy or not: asked once per image, remembered for its other layers.
//!
//! In: a [`LayerIdentity`]. Out: the [`Target`] to present, or a [`Decline`]. Invariant: concurrent callers for one image
//! share one question and one wait; after a decline the image's other layers do not wait again; every memory is bounded
//! and fades.
//! Not here: what an answer means ([`super::image`]), acting on it ([`super::adopt`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use headstart_layer_format::{
    BlobDigest, ChainId,
    api::{ChainStatus, ImageStatus},
};
use moka::sync::Cache;
use tokio::sync::OnceCell;

use super::decline::{Decline, DeclineReason};
use super::image::{LazyImage, Target};
use super::labels::LayerIdentity;
use super::lazy::{LazyError, LazyLayers};
use super::outlook::Outlook;
use super::waits::Waits;
use crate::config::SnapshotterConfig;

/// Images decided upon at one time: pulls in progress on one node are tens.
const IMAGES_MAX: u64 = 512;
/// Chains remembered as unknown: [`IMAGES_MAX`] images of 20 layers.
const CHAINS_MAX: u64 = 10_240;
/// A server learns of an image while it serves the manifest and the config, and containerd may come here a moment
/// before it has written that down.
const UNKNOWN_RETRY: Duration = Duration::from_millis(200);
const UNKNOWN_RETRIES: u32 = 5;
/// A pull prepares its bottom layer once. So when one is asked for this long after a decline, it is for a new pull, and
/// the server may know better by now; concurrent pulls of one image are closer together.
const NEW_PULL: Duration = Duration::from_secs(1);

/// Somebody who looks at a wait sees what was so this long ago.
const WAIT_PIECE: Duration = Duration::from_secs(2);

/// Told of an image when it is decided to be lazy.
pub type Ready<'a> = dyn Fn(&ImageStatus) + Send + Sync + 'a;

type Verdict = Result<Arc<LazyImage>, Decline>;

/// A verdict, and when it was reached.
#[derive(Debug)]
struct Dated<T> {
    value: T,
    at: Instant,
}

impl<T> Dated<T> {
    fn now(value: T) -> Self {
        Self {
            value,
            at: Instant::now(),
        }
    }
}

type ImageCell = Arc<OnceCell<Dated<Verdict>>>;

/// The decisions of this node.
#[derive(Clone, Debug)]
pub struct Decisions {
    images: Cache<BlobDigest, ImageCell>,
    /// Chains whose image could not even be found out. A chain above one of them is not asked for: a server that knows
    /// an image knows all its chains.
    chains: Cache<ChainId, Arc<Dated<Decline>>>,
    wait: Duration,
    no_server_memory: Duration,
    waits: Waits,
}

impl Decisions {
    pub fn new(config: &SnapshotterConfig) -> Self {
        let idle = Duration::from_millis(config.decision_idle_ms);
        Self {
            images: Cache::builder().max_capacity(IMAGES_MAX).time_to_idle(idle).build(),
            chains: Cache::builder().max_capacity(CHAINS_MAX).time_to_idle(idle).build(),
            wait: Duration::from_millis(config.prepare_wait_ms),
            waits: Waits::default(),
            no_server_memory: Duration::from_millis(config.no_server_memory_ms),
        }
    }

    /// Pulls that wait for servers now.
    pub fn waits(&self) -> &Waits {
        &self.waits
    }

    /// The layer to present for `identity` on a parent with chain ID `parent`, and its image's manifest.
    pub async fn target<B: LazyLayers>(
        &self,
        backend: &B,
        identity: &LayerIdentity,
        parent: Option<&ChainId>,
        ready: &Ready<'_>,
    ) -> Result<(BlobDigest, Target), Decline> {
        let manifest = match identity.manifest.or_else(|| self.known_image(&identity.chain_id)) {
            Some(manifest) => manifest,
            None => self.image_of_chain(backend, &identity.chain_id, parent, ready).await?,
        };
        let image = self.image(backend, &manifest, parent.is_none(), ready).await?;
        let target = image.target(&identity.chain_id, identity.layer.as_ref(), parent)?;
        Ok((manifest, target))
    }

    /// Makes the image's other layers decline too.
    pub fn decline(&self, manifest: BlobDigest, decline: Decline) {
        let cell = OnceCell::new_with(Some(Dated::now(Err(decline))));
        self.images.insert(manifest, Arc::new(cell));
    }

    /// An image decided to be lazy that contains `chain`.
    fn known_image(&self, chain: &ChainId) -> Option<BlobDigest> {
        let lazy =
            |cell: &ImageCell| matches!(cell.get(), Some(Dated { value: Ok(image), .. }) if image.contains(chain));
        let found = self.images.iter().find(|(_, cell)| lazy(cell));
        found.map(|(manifest, _)| *manifest)
    }

    async fn image<B: LazyLayers>(
        &self,
        backend: &B,
        manifest: &BlobDigest,
        bottom: bool,
        ready: &Ready<'_>,
    ) -> Verdict {
        let stale = |cell: &ImageCell| match cell.get() {
            Some(Dated { value: Err(d), at }) => self.is_over(d, *at, bottom),
            _ => false,
        };
        if self.images.get(manifest).is_some_and(|cell| stale(&cell)) {
            self.images.invalidate(manifest);
        }
        let cell = self.images.get_with(*manifest, ImageCell::default);
        let verdict = cell.get_or_init(|| async {
            let verdict = self.ask_image(backend, manifest, ready).await;
            Dated::now(verdict.map(Arc::new))
        });
        verdict.await.value.clone()
    }

    async fn ask_image<B: LazyLayers>(
        &self,
        backend: &B,
        manifest: &BlobDigest,
        ready: &Ready<'_>,
    ) -> Result<LazyImage, Decline> {
        let status = retry_unknown(|| self.converted(backend, manifest)).await;
        let status = status.map_err(|e| Decline::new(DeclineReason::NoServer, e))?;
        let unknown = || Decline::new(DeclineReason::UnknownImage, "no server has served this manifest");
        let status = status.ok_or_else(unknown)?;
        let image = LazyImage::from_status(manifest, &status)?;
        ready(&status);
        Ok(image)
    }

    /// The image once all of it is ready, or cannot be, or is waited for no longer; a piece of that time at a go, so that somebody
    /// who looks sees how far it is.
    async fn converted<B: LazyLayers>(
        &self,
        backend: &B,
        manifest: &BlobDigest,
    ) -> Result<Option<ImageStatus>, LazyError> {
        let begun = Instant::now();
        let mut outlook = Outlook::new(self.wait, begun);
        let mut wait = None;
        loop {
            let asked = Instant::now();
            let piece = outlook.time_left(asked).min(WAIT_PIECE);
            let status = backend.image(manifest, piece.as_millis() as u64).await?;
            let Some(image) = status.as_ref().filter(|image| !image.is_ready()) else {
                return Ok(status);
            };
            // A server that answers sooner has said all that it will.
            if piece.is_zero() || asked.elapsed() < piece / 2 {
                return Ok(status);
            }
            let wait = wait.get_or_insert_with(|| self.waits.begin(manifest, begun));
            let now = Instant::now();
            if !outlook.sees(&wait.told(image), now) || outlook.time_left(now).is_zero() {
                return Ok(status);
            }
        }
    }

    async fn image_of_chain<B: LazyLayers>(
        &self,
        backend: &B,
        chain: &ChainId,
        parent: Option<&ChainId>,
        ready: &Ready<'_>,
    ) -> Result<BlobDigest, Decline> {
        let answer = match [Some(chain), parent]
            .into_iter()
            .flatten()
            .find_map(|c| self.declined(c, parent.is_none()))
        {
            Some(decline) => Err(decline),
            None => ask_chain(backend, chain).await,
        };
        let answer = answer.map(|(manifest, status)| {
            self.settled(&manifest, status, ready);
            manifest
        });
        answer.inspect_err(|decline| {
            self.chains.insert(*chain, Arc::new(Dated::now(decline.clone())));
        })
    }

    /// Spares the question about an image that the answer about a chain has told of, if all of it is ready.
    fn settled(&self, manifest: &BlobDigest, status: Option<ImageStatus>, ready: &Ready<'_>) {
        let Some(status) = status.filter(|_| !self.images.contains_key(manifest)) else {
            return;
        };
        if let Ok(image) = LazyImage::from_status(manifest, &status) {
            let cell = OnceCell::new_with(Some(Dated::now(Ok(Arc::new(image)))));
            self.images.insert(*manifest, Arc::new(cell));
            ready(&status);
        }
    }

    fn declined(&self, chain: &ChainId, bottom: bool) -> Option<Decline> {
        let dated = self.chains.get(chain)?;
        (!self.is_over(&dated.value, dated.at, bottom)).then(|| dated.value.clone())
    }

    /// Whether a decline is to be believed no longer. Servers come back, so that none answered holds for a short time;
    /// every other decline holds for the pull that met it. `bottom`: the layer has none below it.
    fn is_over(&self, decline: &Decline, at: Instant, bottom: bool) -> bool {
        let age = at.elapsed();
        match decline.reason {
            DeclineReason::NoServer => age >= self.no_server_memory,
            _ => bottom && age >= NEW_PULL,
        }
    }
}

/// The image to ask about, or to ask no more about.
async fn ask_chain<B: LazyLayers>(backend: &B, chain: &ChainId) -> Result<(BlobDigest, Option<ImageStatus>), Decline> {
    let status = retry_unknown(|| backend.chain(chain)).await;
    let status: Option<ChainStatus> = status.map_err(|e| Decline::new(DeclineReason::NoServer, e))?;
    let status = status.filter(|s| s.chain_id == *chain);
    // Latest first: most likely the one whose manifest containerd has just fetched.
    let image = status.and_then(|s| Some((*s.images.first()?, s.image)));
    image.ok_or_else(|| {
        Decline::new(
            DeclineReason::UnknownImage,
            "no server has served an image with this chain ID",
        )
    })
}

async fn retry_unknown<T, F>(mut ask: impl FnMut() -> F) -> Result<Option<T>, LazyError>
where
    F: Future<Output = Result<Option<T>, LazyError>>,
{
    for _ in 0..UNKNOWN_RETRIES {
        if let Some(known) = ask().await? {
            return Ok(Some(known));
        }
        tokio::time::sleep(UNKNOWN_RETRY).await;
    }
    ask().await
}
