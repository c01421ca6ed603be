//! What every start of the demo container shares: binaries, image, upstream, and relays around it.
//!
//! In: the site, or a registry that is filled already; the links between the parts. Out: proxies and nodes on fresh state,
//! wired through counting relays.
//! Invariant: every byte between two of the parts passes a relay of ours, except a shim's and a node's gRPC on unix
//! sockets. Fields are dropped in order, the work directory last.
//! Not here: measuring ([`super::measure`]).

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
use crate::relay::{LinkShape, Relay, Wire};

/// What buildah may push: an image manifest of either family.
const MANIFEST_TYPES: &str =
    "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";

/// What is between the machines that the parts stand for.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Links {
    /// Between nodes and a proxy; everything a node asks of it shares one.
    pub node: LinkShape,
    /// Between the upstream and everybody else.
    pub upstream: LinkShape,
}

/// An image as the upstream has it.
#[derive(Clone, Debug)]
pub struct ImageFacts {
    /// As it is called in references: only a name to those who have a hosts.toml.
    pub registry: String,
    pub repository: String,
    pub tag: String,
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

    /// By which nodes and proxies ask for it.
    pub fn reference(&self) -> String {
        format!("{}/{}:{}", self.registry, self.repository, self.tag)
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
    /// The demo image; of a registry of others, the first.
    pub image: ImageFacts,
    pub binaries: Binaries,
    pub links: Links,
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
    /// The demo image, with nothing between the parts.
    pub async fn open(site: &Site, progress: &Progress) -> Result<Lab> {
        Lab::open_linked(site, Links::default(), progress).await
    }

    /// Checks tools, makes the work directory, builds the demo image unless cached, starts the upstream.
    pub async fn open_linked(site: &Site, links: Links, progress: &Progress) -> Result<Lab> {
        tools::require_root()?;
        tools::require(&[])?;
        let binaries = Binaries::in_dir(&site.profile_dir)?;
        let work = WorkDir::create()?;
        let storage = image::storage(site, &work, progress).await?;
        progress.step("starting the upstream registry");
        let upstream = Registry::start(&work, "upstream", &storage, true).await?;
        let lab = Lab::over(upstream, (recipe::REPOSITORY, recipe::TAG), binaries, links, work).await?;
        match lab.image.layers.len() {
            0..3 => Err(PlaygroundError::unexpected(
                "build an image of several layers",
                "it has fewer",
            )),
            _ => Ok(lab),
        }
    }

    /// Over a registry that has the image of this repository and tag.
    pub async fn over(
        upstream: Registry,
        image: (&str, &str),
        binaries: Binaries,
        links: Links,
        work: WorkDir,
    ) -> Result<Lab> {
        let wire = Wire::new(links.upstream);
        let relay = || Relay::on(&wire, upstream.address).map_err(PlaygroundError::io("start a relay"));
        let (proxy_link, direct_link) = (relay()?, relay()?);
        let image = image_facts(&upstream, image.0, image.1).await?;
        Ok(Lab {
            upstream,
            proxy_link,
            direct_link,
            image,
            binaries,
            links,
            work,
        })
    }

    /// What the upstream says of another image of its.
    pub async fn facts(&self, repository: &str, tag: &str) -> Result<ImageFacts> {
        image_facts(&self.upstream, repository, tag).await
    }

    /// A server on an empty data directory.
    pub async fn proxy(&self, name: &str) -> Result<RelayedProxy> {
        let upstream = self.proxy_link.url();
        let proxy = Proxy::start(&self.work, name, &self.binaries.server, (REGISTRY_NAME, &upstream)).await?;
        let wire = Wire::new(self.links.node);
        let relay = || Relay::on(&wire, proxy.address()).map_err(PlaygroundError::io("start a relay"));
        let (mirror_link, shim_link) = (relay()?, relay()?);
        Ok(RelayedProxy {
            proxy,
            mirror_link,
            shim_link,
        })
    }

    /// Asks the proxy for the image's manifest, as a first pull does, which makes it convert the layers; waits for none.
    pub async fn announce(&self, proxy: &RelayedProxy) -> Result<()> {
        self.announce_image(proxy, &self.image).await
    }

    /// The same, of any image.
    pub async fn announce_image(&self, proxy: &RelayedProxy, image: &ImageFacts) -> Result<()> {
        let path = format!("/v2/{}/manifests/{}?ns={REGISTRY_NAME}", image.repository, image.tag);
        let (status, body) = proxy.proxy.get(&path, MANIFEST_TYPES).await?;
        if !status.is_success() || BlobDigest::of(&body) != image.manifest {
            let why = format!("{status}: {}", String::from_utf8_lossy(&body));
            let what = format!("read the manifest of {} through the server", image.reference());
            return Err(PlaygroundError::unexpected(what, why));
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
pub async fn image_facts(upstream: &Registry, repository: &str, tag: &str) -> Result<ImageFacts> {
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
    let malformed = |e: serde_json::Error| PlaygroundError::unexpected(format!("read {repository}:{tag}"), e);
    let body = fetch(upstream, repository, &format!("manifests/{tag}")).await?;
    let manifest: Manifest = serde_json::from_slice(&body).map_err(malformed)?;
    let config = fetch(upstream, repository, &format!("blobs/{}", manifest.config.digest)).await?;
    let config: Config = serde_json::from_slice(&config).map_err(malformed)?;
    let layers: Vec<_> = manifest.layers.into_iter().map(|l| (l.digest, l.size)).collect();
    let diff_ids = config.rootfs.diff_ids;
    if layers.is_empty() || layers.len() != diff_ids.len() {
        let why = format!("it has {} layers and {} DiffIDs", layers.len(), diff_ids.len());
        return Err(PlaygroundError::unexpected(format!("read {repository}:{tag}"), why));
    }
    Ok(ImageFacts {
        registry: REGISTRY_NAME.to_owned(),
        repository: repository.to_owned(),
        tag: tag.to_owned(),
        manifest: BlobDigest::of(&body),
        config: manifest.config.digest,
        layers,
        diff_ids,
    })
}

async fn fetch(upstream: &Registry, repository: &str, what: &str) -> Result<bytes::Bytes> {
    let failed = |e: reqwest::Error| PlaygroundError::unexpected(format!("read {what} from the upstream"), e);
    let url = format!("{}/v2/{}/{what}", upstream.url(), repository);
    let client = reqwest::Client::builder().no_proxy().build().map_err(failed)?;
    let answer = client
        .get(url)
        .header(http::header::ACCEPT, MANIFEST_TYPES)
        .send()
        .await
        .map_err(failed)?;
    answer.error_for_status().map_err(failed)?.bytes().await.map_err(failed)
}
