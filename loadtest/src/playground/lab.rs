//! What every start of the demo container shares: binaries, image, upstream, and relays around it.
//!
//! In: the site. Out: proxies and nodes on fresh state, wired through counting relays.
//! Invariant: every byte between two of the parts passes a relay of ours, except a shim's and a node's gRPC on unix
//! sockets. Fields are dropped in order, the work directory last.
//! Not here: measuring ([`super::measure`]).

use std::path::Path;

use headstart_layer_format::{BlobDigest, ChainId, DiffId};

use super::{
    PlaygroundError, Result,
    binaries::Binaries,
    image,
    node::{Node, Pulls, REGISTRY_NAME},
    progress::Progress,
    proxy::Proxy,
    recipe,
    registry::Registry,
    site::Site,
    tools,
    workdir::WorkDir,
};
use crate::relay::{LinkShape, Relay};

/// What buildah may push: an image manifest of either family.
const MANIFEST_TYPES: &str =
    "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";

/// The image as the upstream has it.
#[derive(Clone, Debug)]
pub struct ImageFacts {
    pub manifest: BlobDigest,
    pub config: BlobDigest,
    /// Digest and compressed size, bottom first.
    pub layers: Vec<(BlobDigest, u64)>,
    /// Of the uncompressed layers, as the image config has them.
    pub diff_ids: Vec<DiffId>,
}

impl ImageFacts {
    pub fn compressed_bytes(&self) -> u64 {
        self.layers.iter().map(|(_, size)| size).sum()
    }

    /// Names the snapshot of the whole image; an image without layers does not get here.
    pub fn chain(&self) -> Option<ChainId> {
        ChainId::chain(&self.diff_ids).pop()
    }
}

#[derive(Debug)]
pub struct Lab {
    pub upstream: Registry,
    /// Between a proxy and the upstream.
    pub proxy_link: Relay,
    /// Between nodes and the upstream.
    pub direct_link: Relay,
    pub image: ImageFacts,
    pub binaries: Binaries,
    pub work: WorkDir,
}

/// A server with relays in front of it.
#[derive(Debug)]
pub struct RelayedProxy {
    pub proxy: Proxy,
    /// What containerd talks through.
    pub mirror_link: Relay,
    /// What the shim talks through.
    pub shim_link: Relay,
}

impl Lab {
    /// Checks tools, makes the work directory, builds the image unless cached, starts the upstream.
    pub async fn open(site: &Site, progress: &Progress) -> Result<Lab> {
        tools::require_root()?;
        tools::require(&[])?;
        let binaries = Binaries::in_dir(&site.profile_dir)?;
        let work = WorkDir::create()?;
        let storage = image::storage(site, &work, progress).await?;
        progress.step("starting the upstream registry");
        Lab::over(&storage, binaries, work).await
    }

    async fn over(storage: &Path, binaries: Binaries, work: WorkDir) -> Result<Lab> {
        let upstream = Registry::start(&work, "upstream", storage, true).await?;
        let relay = || Relay::start(upstream.address, LinkShape::default());
        let proxy_link = relay().await.map_err(PlaygroundError::io("start a relay"))?;
        let direct_link = relay().await.map_err(PlaygroundError::io("start a relay"))?;
        let image = image_facts(&upstream).await?;
        Ok(Lab {
            upstream,
            proxy_link,
            direct_link,
            image,
            binaries,
            work,
        })
    }

    /// A server on an empty data directory.
    pub async fn proxy(&self, name: &str) -> Result<RelayedProxy> {
        let upstream = self.proxy_link.url();
        let proxy = Proxy::start(&self.work, name, &self.binaries.server, (REGISTRY_NAME, &upstream)).await?;
        let relay = || Relay::start(proxy.address(), LinkShape::default());
        let mirror_link = relay().await.map_err(PlaygroundError::io("start a relay"))?;
        let shim_link = relay().await.map_err(PlaygroundError::io("start a relay"))?;
        Ok(RelayedProxy {
            proxy,
            mirror_link,
            shim_link,
        })
    }

    /// Asks the proxy for the image's manifest, as a first pull does, which makes it convert the layers; waits for none.
    pub async fn announce(&self, proxy: &RelayedProxy) -> Result<()> {
        let path = format!(
            "/v2/{}/manifests/{}?ns={REGISTRY_NAME}",
            recipe::REPOSITORY,
            recipe::TAG
        );
        let (status, body) = proxy.proxy.get(&path, MANIFEST_TYPES).await?;
        if !status.is_success() || BlobDigest::of(&body) != self.image.manifest {
            let why = format!("{status}: {}", String::from_utf8_lossy(&body));
            return Err(PlaygroundError::unexpected(
                "read the demo image's manifest through the server",
                why,
            ));
        }
        Ok(())
    }

    /// A node on empty state. Its registry hosts are the proxy, if any, and then the upstream.
    pub async fn node(&self, name: &str, pulls: Pulls, proxy: Option<&RelayedProxy>) -> Result<Node> {
        let mut hosts: Vec<String> = proxy.iter().map(|p| p.mirror_link.url()).collect();
        hosts.push(self.direct_link.url());
        let server = proxy.map(|p| p.shim_link.url()).unwrap_or_default();
        Node::start(&self.work, name, pulls, &hosts, (&self.binaries.shim, &server)).await
    }
}

/// Reads the image's manifest and config from the upstream.
async fn image_facts(upstream: &Registry) -> Result<ImageFacts> {
    #[derive(serde::Deserialize)]
    struct Descriptor {
        digest: BlobDigest,
        size: u64,
    }
    #[derive(serde::Deserialize)]
    struct Manifest {
        config: Descriptor,
        layers: Vec<Descriptor>,
    }
    #[derive(serde::Deserialize)]
    struct RootFs {
        diff_ids: Vec<DiffId>,
    }
    #[derive(serde::Deserialize)]
    struct Config {
        rootfs: RootFs,
    }
    let malformed = |e: serde_json::Error| PlaygroundError::unexpected("read the demo image", e);
    let body = fetch(upstream, &format!("manifests/{}", recipe::TAG)).await?;
    let manifest: Manifest = serde_json::from_slice(&body).map_err(malformed)?;
    let config: Config = serde_json::from_slice(&fetch(upstream, &format!("blobs/{}", manifest.config.digest)).await?)
        .map_err(malformed)?;
    let layers: Vec<_> = manifest.layers.into_iter().map(|l| (l.digest, l.size)).collect();
    let diff_ids = config.rootfs.diff_ids;
    if layers.len() < 3 || layers.len() != diff_ids.len() {
        let why = format!("it has {} layers and {} DiffIDs", layers.len(), diff_ids.len());
        return Err(PlaygroundError::unexpected("build an image of several layers", why));
    }
    Ok(ImageFacts {
        manifest: BlobDigest::of(&body),
        config: manifest.config.digest,
        layers,
        diff_ids,
    })
}

async fn fetch(upstream: &Registry, what: &str) -> Result<bytes::Bytes> {
    let failed = |e: reqwest::Error| PlaygroundError::unexpected(format!("read {what} from the upstream"), e);
    let url = format!("{}/v2/{}/{what}", upstream.url(), recipe::REPOSITORY);
    let client = reqwest::Client::builder().no_proxy().build().map_err(failed)?;
    let answer = client
        .get(url)
        .header(http::header::ACCEPT, MANIFEST_TYPES)
        .send()
        .await
        .map_err(failed)?;
    answer.error_for_status().map_err(failed)?.bytes().await.map_err(failed)
}
