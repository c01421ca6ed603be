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
    read::{ReadError, accept::Accept, layers::is_tar_layer},
    store::facts::Source,
    upstream::{Caller, Reference},
};

const IMAGES_AT_ONCE: usize = 4;
const BLOBS_AT_ONCE: usize = 4;
/// Manifests of one index that are warmed.
const PLATFORMS_MAX: usize = 256;
/// Progress is told this often.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// One conversion is waited for this long at a time, then how many are left is told.
const WAIT: Duration = Duration::from_secs(1);
/// A conversion that was not queued (the queue is full) is asked for this often.
const ASK_AGAIN: Duration = Duration::from_millis(250);
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

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    #[serde(default)]
    pub variant: Option<String>,
}

impl Platforms {
    pub fn parse(warm: &Warm) -> Result<Self, AdminError> {
        if warm.all_platforms {
            return Ok(Self::All);
        }
        if warm.platforms.is_empty() {
            let architecture = match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            };
            return Ok(Self::These(vec![Platform {
                os: "linux".into(),
                architecture: architecture.into(),
                variant: None,
            }]));
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
            Self::These(list) => list.iter().any(|wanted| {
                (&wanted.os, &wanted.architecture) == (&found.os, &found.architecture)
                    && wanted
                        .variant
                        .as_ref()
                        .is_none_or(|v| Some(v) == found.variant.as_ref())
            }),
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
        let refused = self.convert(&parts.layers).await?;
        Ok((bytes, refused))
    }

    /// The manifest, the wanted ones below it, and what they name.
    async fn resolve(&self, reference: &Reference, platforms: &Platforms) -> Result<Parts, String> {
        let root = self.manifest(reference).await?;
        let index: Index = serde_json::from_slice(&root.1).map_err(|e| format!("read the manifest: {e}"))?;
        let mut manifests = vec![root.0];
        if let Some(children) = index.manifests {
            manifests.clear();
            let wanted = children.iter().filter(|child| match &child.platform {
                Some(platform) => platforms.want(platform),
                None => matches!(platforms, Platforms::All),
            });
            for child in wanted.take(PLATFORMS_MAX) {
                manifests.push(self.manifest(&Reference::Digest(child.digest)).await?.0);
            }
            if manifests.is_empty() {
                return Err("find the platform: the index has none of those asked for".into());
            }
        }
        let store = self.app.store.clone();
        let facts = tokio::task::spawn_blocking(move || {
            let facts = manifests.iter().map(|digest| store.manifest(digest));
            facts.collect::<Result<Vec<_>, _>>()
        });
        let facts = facts.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        let mut parts = Parts::default();
        for fact in facts.into_iter().flatten() {
            let layers = fact.image.into_iter().flat_map(|image| image.layers);
            for layer in layers.filter(|layer| is_tar_layer(&layer.media_type)) {
                parts.bytes += layer.size;
                parts.layers.push(layer.digest);
            }
            parts.blobs.extend(fact.members);
        }
        for list in [&mut parts.blobs, &mut parts.layers] {
            list.sort_unstable();
            list.dedup();
        }
        Ok(parts)
    }

    async fn manifest(&self, reference: &Reference) -> Result<(BlobDigest, bytes::Bytes), String> {
        let accept = Accept::new(&[HeaderValue::from_static(MANIFESTS)]);
        let manifests = &self.app.manifests;
        let found = manifests.get(&self.source, &Caller::Server, reference, &accept).await;
        let found = found.map_err(|error| format!("read manifest {}: {error}", reference_text(reference)))?;
        Ok((found.digest, found.bytes))
    }

    async fn fetch(&self, digest: &BlobDigest) -> Result<(), String> {
        let failed = |error: ReadError| format!("read blob {digest}: {error}");
        let blobs = &self.app.blobs;
        let blob = blobs
            .open(&self.source, &Caller::Server, digest)
            .await
            .map_err(failed)?;
        if let Some((_, size)) = blob.on_disk() {
            self.bytes.fetch_add(size, Ordering::Relaxed);
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
        let mut refused = 0;
        for (at, layer) in layers.iter().enumerate() {
            let mut failures = 0;
            loop {
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
                    LayerState::Unknown => tokio::time::sleep(ASK_AGAIN).await,
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

fn reference_text(reference: &Reference) -> String {
    match reference {
        Reference::Tag(tag) => tag.as_str().to_owned(),
        Reference::Digest(digest) => digest.to_string(),
    }
}
