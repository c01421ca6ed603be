//! The ways in which the image is mounted.
//!
//! In: a lab, a proxy. Out: [`Way`]s, the plain one first, each with all its bytes on this machine's disk. Invariant: they are overlay mounts
//! of snapshots that a real containerd made; "through the shim" was mounted before its bytes came, and "layers complete" after.
//! Not here: what is asked of them.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use headstart_layer_format::{BlobDigest, ChainId};

use super::content::{Content, REGISTRY, reference};
use super::{NodeBenchConfig, rows};
use crate::corpus::OCI_MANIFEST;
use crate::playground::{
    PlaygroundError, Result,
    lab::Lab,
    node::{MountedView, Node, Pulls, REGISTRY_NAME},
    progress::Progress,
    proxy::Proxy,
    recipe,
};

/// Longest that conversions, and then a shim's own round, may take.
const PATIENCE: Duration = Duration::from_secs(180);
/// What the shim says of a layer that needs it no more.
const SETTLED: &str = "layer-read-without-us";

#[derive(Debug)]
pub(super) struct Way {
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// An image with a python.
    pub(super) python: PathBuf,
    /// Of the FUSE mount, and who serves it.
    pub(super) mount_device: Option<u64>,
    pub(super) pid: Option<u32>,
    /// The node goes with the last of its ways. Views first.
    _views: Vec<MountedView>,
    _node: Option<std::sync::Arc<Node>>,
}

/// A proxy of both registries that has converted every image.
pub(super) async fn proxy(lab: &Lab, content: &Content, progress: &Progress) -> Result<Proxy> {
    let quoted = |s: &str| toml::Value::from(s).to_string();
    let upstream = |name: &str, url: &str| format!("[[upstreams]]\nname = {}\nurl = {}\n", quoted(name), quoted(url));
    let rest = format!(
        "default_upstream = {}\n{}{}",
        quoted(REGISTRY_NAME),
        upstream(REGISTRY_NAME, &lab.upstream.url()),
        upstream(REGISTRY, &content.origin.url()),
    );
    let proxy = Proxy::start_configured(&lab.work, "proxy", &lab.binaries.server, &rest).await?;
    progress.step("converting the images");
    let bench = [(super::content::IMAGE, content.image.manifest_digest)].into_iter();
    let narrow = content.narrow.iter().map(|(r, i, _)| (r.as_str(), i.manifest_digest));
    let wide = content.wide.iter().map(|(r, i)| (r.as_str(), i.manifest_digest));
    for (repository, manifest) in bench.chain(narrow).chain(wide) {
        converted(&proxy, REGISTRY, repository, super::content::TAG, manifest).await?;
    }
    converted(
        &proxy,
        REGISTRY_NAME,
        recipe::REPOSITORY,
        recipe::TAG,
        lab.image.manifest,
    )
    .await?;
    Ok(proxy)
}

async fn converted(proxy: &Proxy, registry: &str, repository: &str, tag: &str, manifest: BlobDigest) -> Result<()> {
    let path = format!("/v2/{repository}/manifests/{tag}?ns={registry}");
    let accept = format!("{OCI_MANIFEST}, application/vnd.docker.distribution.manifest.v2+json");
    proxy.get(&path, &accept).await?;
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        let status = proxy.image(&manifest, 5_000).await?;
        if status.is_some_and(|s| s.is_ready()) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(PlaygroundError::unexpected(
        "convert the images",
        format!("{repository} is not ready"),
    ))
}

/// A node that has pulled both images, through the proxy alone.
async fn node(lab: &Lab, proxy: &Proxy, name: &str, pulls: Pulls) -> Result<Node> {
    let hosts = [proxy.url()];
    let node = Node::start(&lab.work, name, pulls, &hosts, (&lab.binaries.shim, &proxy.url())).await?;
    node.pull().await?;
    node.containerd.cri.pull(&reference(super::content::IMAGE)).await?;
    Ok(node)
}

pub(super) async fn open(
    lab: &Lab,
    proxy: &Proxy,
    content: &Content,
    config: &NodeBenchConfig,
    progress: &Progress,
) -> Result<Vec<Way>> {
    let mut ways = Vec::new();
    let plain = std::sync::Arc::new(node(lab, proxy, "plain", Pulls::Ordinary).await?);
    ways.push(way("unpacked", lab, content, &plain).await?);
    for (name, pulls) in [("erofs", Pulls::Lazy), ("fuse", Pulls::LazyFuse)] {
        progress.step(format!("pulling lazily: {name}"));
        let node = std::sync::Arc::new(node(lab, proxy, name, pulls).await?);
        let through = way(&format!("{name}, through the shim"), lab, content, &node).await?;
        progress.step(format!("reading everything: {name}"));
        if let Some(shim) = &node.shim {
            let spaces = shim.root.join("mnt");
            rows::blocking(move || rows::read_spaces(&spaces)).await?;
        }
        ways.push(through);
        if pulls == Pulls::Lazy {
            settled(&node, lab.image.layers.len() + content.image.layers.len()).await?;
            ways.push(way(&format!("{name}, layers complete"), lab, content, &node).await?);
        }
    }
    for also in &config.also {
        let (name, dir) = also
            .split_once('=')
            .ok_or_else(|| PlaygroundError::unexpected("understand a directory to compare with", also))?;
        ways.push(Way {
            name: name.to_owned(),
            path: dir.into(),
            python: ways[0].python.clone(),
            mount_device: None,
            pid: None,
            _views: Vec::new(),
            _node: None,
        });
    }
    Ok(ways)
}

async fn way(name: &str, lab: &Lab, content: &Content, node: &std::sync::Arc<Node>) -> Result<Way> {
    let chain = |c: Option<ChainId>| c.ok_or_else(|| PlaygroundError::unexpected("mount an image", "it has no layers"));
    let bench = chain(content.image.chain_ids().pop())?;
    let python = chain(lab.image.chain())?;
    let key = name.replace(", ", "-").replace(' ', "-");
    let views = vec![
        node.mount_as_container(&format!("{key}-bench"), &bench).await?,
        node.mount_as_container(&format!("{key}-python"), &python).await?,
    ];
    let shim = node.shim.as_ref();
    Ok(Way {
        name: name.to_owned(),
        path: views[0].path.clone(),
        python: views[1].path.clone(),
        mount_device: shim.and_then(|s| Some(std::fs::metadata(s.root.join("mnt")).ok()?.dev())),
        pid: shim.map(|s| s.process.pid()),
        _views: views,
        _node: Some(std::sync::Arc::clone(node)),
    })
}

/// Waits until the shim says of every layer that it needs it no more.
async fn settled(node: &Node, layers: usize) -> Result<()> {
    let begun = Instant::now();
    let count = || {
        let log = node.shim.as_ref().map(|s| s.log_text()).unwrap_or_default();
        log.matches(SETTLED).count()
    };
    while count() < layers {
        if begun.elapsed() > PATIENCE {
            let why = format!("{} of {layers} layers are", count());
            return Err(PlaygroundError::unexpected("wait until layers are complete", why));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
