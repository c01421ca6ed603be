//! Preheating: images fetched and converted before anybody asks.
//!
//! In: image references and platforms. Out: [`Event`]s; every image ends with `Done` or `Failed`.
//! Invariant: everything goes the ordinary way of a read, as the server itself; so fetches are shared with clients,
//! verified, and counted as uses. Images and blobs at once are bounded. Dropping the work cancels what has not begun; a
//! fetch under way goes on, as when a client leaves.
//! Not here: the fetch and the conversion (`read`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use headstart_layer_format::{BlobDigest, api::LayerState};
use http::HeaderValue;
use serde::Deserialize;
use tokio::sync::mpsc::Sender;

use super::{
    AdminError,
    api::{Event, Warm},
};
use crate::{
    app::App,
    read::{
        ReadError,
        accept::Accept,
        document::{is_foreign, is_index},
        layers::is_tar_layer,
        manifests::{Purpose, Request},
        platform::Platform,
    },
    store::facts::Source,
    upstream::{Caller, Reference, UpstreamError},
};

const IMAGES_AT_ONCE: usize = 4;
const BLOBS_AT_ONCE: usize = 4;
/// Manifests of one image that are warmed; and indexes below each other.
const MANIFESTS_MAX: usize = 256;
const DEPTH_MAX: usize = 4;
/// Progress is told this often.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// One conversion is waited for this long at a time, then how many are left is told.
const WAIT: Duration = Duration::from_secs(1);
/// A conversion that was not queued (the queue is full) is asked for this often.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// Tries of a blob that has no turn, or whose upstream wants fewer requests; and the longest pause between them.
const TURNS_MAX: u32 = 30;
const COME_BACK_MAX: Duration = Duration::from_secs(60);
/// Looks at whether fetched blobs were kept.
const KEPT_LOOKS: u32 = 25;
/// A conversion that the queue does not take is given up after so many tries: ten minutes.
const ASKED_MAX: u32 = 2_400;
/// Tries of a conversion that failed, which has a pause of its own before each.
const CONVERSION_TRIES: u32 = 20;

const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// Which manifests of an index.
#[derive(Clone, Debug)]
pub enum Platforms {
    All,
    These(Vec<Platform>),
}

impl Platforms {
    pub fn parse(warm: &Warm) -> Result<Self, AdminError> {
        if warm.all_platforms {
            return Ok(Self::All);
        }
        if warm.platforms.is_empty() {
            return Ok(Self::These(vec![Platform::own()]));
        }
        let parse = |text: &String| {
            let parts: Vec<&str> = text.split('/').collect();
            match parts[..] {
                [os, architecture] | [os, architecture, _] if !os.is_empty() && !architecture.is_empty() => {
                    Ok(Platform {
                        os: os.into(),
                        architecture: architecture.into(),
                        variant: parts.get(2).map(|v| (*v).to_owned()),
                    })
                }
                _ => Err(AdminError::Bad(format!(
                    "parse the platform {text:?}: it is not os/architecture"
                ))),
            }
        };
        Ok(Self::These(warm.platforms.iter().map(parse).collect::<Result<_, _>>()?))
    }

    fn want(&self, found: &Platform) -> bool {
        match self {
            Self::All => true,
            Self::These(list) => list.iter().any(|wanted| found.is(wanted)),
        }
    }
}

/// The fields of an index that matter.
#[derive(Deserialize)]
struct Index {
    manifests: Option<Vec<Child>>,
}

#[derive(Deserialize)]
struct Child {
    digest: BlobDigest,
    #[serde(rename = "mediaType", default)]
    media_type: String,
    platform: Option<Platform>,
}

pub async fn run(app: App, images: Vec<(String, Source, Reference)>, platforms: Platforms, events: Sender<Event>) {
    let platforms = &platforms;
    stream::iter(images)
        .for_each_concurrent(IMAGES_AT_ONCE, |(image, source, reference)| {
            let (app, events) = (app.clone(), events.clone());
            async move {
                let one = One {
                    app,
                    image: image.clone(),
                    source,
                    events: events.clone(),
                    bytes: Arc::default(),
                };
                let last = match one.warm(&reference, platforms).await {
                    Ok((bytes, refused)) => Event::Done { image, bytes, refused },
                    Err(error) => Event::Failed { image, error },
                };
                // Whoever listened may have gone.
                let _ = events.send(last).await;
            }
        })
        .await;
}

struct One {
    app: App,
    image: String,
    source: Source,
    events: Sender<Event>,
    bytes: Arc<AtomicU64>,
}

/// What an image needs.
#[derive(Default)]
struct Parts {
    blobs: Vec<BlobDigest>,
    layers: Vec<BlobDigest>,
    bytes: u64,
}

impl One {
    async fn warm(&self, reference: &Reference, platforms: &Platforms) -> Result<(u64, u64), String> {
        let parts = self.resolve(reference, platforms).await?;
        let image = || self.image.clone();
        let (blobs, bytes) = (parts.blobs.len() as u64, parts.bytes);
        self.tell(Event::Resolved {
            image: image(),
            blobs,
            bytes,
        })
        .await;
        let fetched = stream::iter(&parts.blobs)
            .map(Ok)
            .try_for_each_concurrent(BLOBS_AT_ONCE, |digest| self.fetch(digest));
        let told = async {
            loop {
                tokio::time::sleep(TELL_EVERY).await;
                let bytes = self.bytes.load(Ordering::Relaxed);
                self.tell(Event::Progress { image: image(), bytes }).await;
            }
        };
        tokio::select! {
            fetched = fetched => fetched?,
            () = told => {}
        }
        let bytes = self.bytes.load(Ordering::Relaxed);
        self.tell(Event::Progress { image: image(), bytes }).await;
        self.check_kept(&parts.blobs).await?;
        let refused = self.convert(&parts.layers).await?;
        Ok((bytes, refused))
    }

    /// The manifest, the wanted ones below it, and what they name.
    async fn resolve(&self, reference: &Reference, platforms: &Platforms) -> Result<Parts, String> {
        let mut manifests = Vec::new();
        let mut level = vec![reference.clone()];
        for _ in 0..DEPTH_MAX {
            let mut below = Vec::new();
            for reference in level {
                let (digest, bytes) = self.manifest(&reference).await?;
                let index: Index = serde_json::from_slice(&bytes).map_err(|e| format!("read the manifest: {e}"))?;
                let Some(children) = index.manifests else {
                    manifests.push(digest);
                    continue;
                };
                // An index in an index says nothing of its platform: what is below it does.
                let wanted = children.into_iter().filter(|child| match &child.platform {
                    _ if is_index(&child.media_type) => true,
                    Some(platform) => platforms.want(platform),
                    None => matches!(platforms, Platforms::All),
                });
                below.extend(wanted.map(|child| Reference::Digest(child.digest)));
                if below.len() + manifests.len() > MANIFESTS_MAX {
                    return Err(format!("read the index: it has more than {MANIFESTS_MAX} manifests"));
                }
            }
            level = below;
        }
        if !level.is_empty() {
            return Err("read the index: there are too many below each other".into());
        }
        if manifests.is_empty() {
            return Err("find the platform: the index has none of those asked for".into());
        }
        let store = self.app.store.clone();
        let facts = tokio::task::spawn_blocking(move || {
            let facts = manifests.iter().map(|digest| (*digest, store.manifest(digest)));
            let facts = facts.map(|(digest, fact)| match fact {
                Ok(Some(fact)) => Ok(fact),
                Ok(None) => Err(format!("read manifest {digest}: what it names could not be recorded")),
                Err(error) => Err(error.to_string()),
            });
            facts.collect::<Result<Vec<_>, _>>()
        });
        let facts = facts.await.map_err(|e| e.to_string())??;
        let mut parts = Parts::default();
        for fact in facts {
            // Foreign ones are where their URLs say, and nobody fetches them from here.
            let members = fact.members.iter().filter(|digest| !is_foreign(&fact, digest));
            parts.blobs.extend(members);
            let layers = fact.image.iter().flat_map(|image| &image.layers);
            for layer in layers.filter(|layer| is_tar_layer(&layer.media_type) && !is_foreign(&fact, &layer.digest)) {
                parts.bytes += layer.size;
                parts.layers.push(layer.digest);
            }
        }
        for list in [&mut parts.blobs, &mut parts.layers] {
            list.sort_unstable();
            list.dedup();
        }
        Ok(parts)
    }

    /// Whether what was fetched is here: a full disk lets bytes pass, and a small budget lets them go again.
    async fn check_kept(&self, blobs: &[BlobDigest]) -> Result<(), String> {
        let too_small = |missing: &str| {
            let all = blobs.len();
            format!("keep {missing} of {all} blobs: the disk or the budget of originals is too small")
        };
        // The eviction that this means may be still to come.
        if self.bytes.load(Ordering::Relaxed) > self.app.originals.bytes_max() {
            return Err(too_small("some"));
        }
        let missing = || blobs.iter().filter(|d| self.app.originals.kept(d).is_none()).count();
        // A blob gets its name just after its last byte was sent.
        for _ in 0..KEPT_LOOKS {
            if missing() == 0 {
                return Ok(());
            }
            tokio::time::sleep(TELL_EVERY).await;
        }
        Err(too_small(&missing().to_string()))
    }

    async fn manifest(&self, reference: &Reference) -> Result<(BlobDigest, bytes::Bytes), String> {
        let request = Request {
            purpose: Purpose::Look,
            source: self.source.clone(),
            caller: Caller::Server,
            reference: reference.clone(),
            accept: Accept::new(&[HeaderValue::from_static(MANIFESTS)]),
        };
        let manifests = &self.app.manifests;
        let found = manifests.get(&request).await;
        let found = found.map_err(|error| format!("read manifest {}: {error}", reference_text(reference)))?;
        manifests.given(&found, &Caller::Server);
        Ok((*found.digest(), found.bytes))
    }

    async fn fetch(&self, digest: &BlobDigest) -> Result<(), String> {
        let failed = |error: ReadError| format!("read blob {digest}: {error}");
        let mut turns = 0;
        let blob = loop {
            let opened = self.app.blobs.open(&self.source, &Caller::Server, digest).await;
            match opened.as_ref().err().and_then(come_back) {
                // A client is told to come back; so do we.
                Some(pause) if turns < TURNS_MAX => {
                    turns += 1;
                    tokio::time::sleep(pause).await;
                }
                _ => break opened.map_err(failed)?,
            }
        };
        if let Some(opened) = blob.on_disk() {
            self.bytes.fetch_add(opened.size(), Ordering::Relaxed);
            return Ok(());
        }
        let mut stream = std::pin::pin!(blob.stream(0..blob.size()));
        while let Some(bytes) = stream.try_next().await.map_err(failed)? {
            self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Until no layer is under way; how many were refused.
    async fn convert(&self, layers: &[BlobDigest]) -> Result<u64, String> {
        if !self.app.layers.converts() {
            return Ok(0);
        }
        let mut refused = 0;
        for (at, layer) in layers.iter().enumerate() {
            let (mut failures, mut asked) = (0, 0);
            loop {
                if self.app.is_stopping() {
                    return Err(format!("convert layer {layer}: the server is stopping"));
                }
                let status = self.app.layers.settle(layer, WAIT).await.map_err(|e| e.to_string())?;
                let state = status.as_ref().map_or(LayerState::Unknown, |s| s.state);
                match state {
                    LayerState::Ready => break,
                    LayerState::Refused => {
                        refused += 1;
                        break;
                    }
                    LayerState::Failed => {
                        failures += 1;
                        if failures > CONVERSION_TRIES {
                            let reason = status.and_then(|s| s.reason).unwrap_or_default();
                            return Err(format!("convert layer {layer}: {reason}"));
                        }
                        tokio::time::sleep(WAIT).await;
                    }
                    LayerState::Unknown => {
                        asked += 1;
                        if asked > ASKED_MAX {
                            return Err(format!("convert layer {layer}: the queue of conversions stays full"));
                        }
                        tokio::time::sleep(ASK_AGAIN).await;
                    }
                    LayerState::Queued | LayerState::Converting => {}
                }
                let left = (layers.len() - at) as u64;
                let image = self.image.clone();
                self.tell(Event::Converting { image, left }).await;
            }
        }
        Ok(refused)
    }

    async fn tell(&self, event: Event) {
        // Whoever listened may have gone; the work is dropped then.
        let _ = self.events.send(event).await;
    }
}

/// When to ask again; `None`: that is of no use.
fn come_back(error: &ReadError) -> Option<Duration> {
    match error {
        ReadError::Busy | ReadError::Upstream(UpstreamError::Busy) => Some(WAIT),
        ReadError::Upstream(UpstreamError::TooManyRequests { retry_after_secs }) => Some(
            retry_after_secs
                .map_or(WAIT, Duration::from_secs)
                .clamp(WAIT, COME_BACK_MAX),
        ),
        ReadError::Upstream(UpstreamError::Unavailable { retry_after_secs }) => {
            Some(Duration::from_secs(*retry_after_secs).clamp(WAIT, COME_BACK_MAX))
        }
        _ => None,
    }
}

fn reference_text(reference: &Reference) -> String {
    match reference {
        Reference::Tag(tag) => tag.as_str().to_owned(),
        Reference::Digest(digest) => digest.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_compared_as_clients_do() {
        let platform = |text: &str| {
            let mut parts = text.split('/').map(str::to_owned);
            Platform {
                os: parts.next().unwrap(),
                architecture: parts.next().unwrap(),
                variant: parts.next(),
            }
        };
        for (wanted, found, matches) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/x86_64", "linux/amd64", true),
            ("linux/arm64/v8", "linux/arm64", true),
            ("linux/arm64", "linux/arm64/v8", true),
            ("linux/arm/v7", "linux/arm", true),
            ("linux/arm/v6", "linux/arm/v7", false),
            ("linux/arm64/v9", "linux/arm64", false),
            ("windows/amd64", "linux/amd64", false),
        ] {
            let warm = Warm {
                platforms: vec![wanted.into()],
                ..Warm::default()
            };
            let platforms = Platforms::parse(&warm).unwrap();
            assert_eq!(platforms.want(&platform(found)), matches, "{wanted} {found}");
        }
    }
}
