//! The ways in which the image is mounted.
//!
//! In: a lab, a proxy, rivals. Out: [`Way`]s, the plain one first, each with all its bytes on this machine's disk. Invariant: they are overlay mounts
//! of snapshots that a real containerd made; "through the shim" was mounted before its bytes came, and "layers complete" after. A rival has read
//! everything, and then nothing came for it for a while.
//! Not here: what is asked of them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headstart_layer_format::{BlobDigest, ChainId};

use super::content::{Content, REGISTRY, reference};
use super::report::Report;
use super::{Ground, rows};
use crate::bench::usage;
use crate::corpus::OCI_MANIFEST;
use crate::playground::{
    PlaygroundError, Result,
    lab::{ImageFacts, Lab},
    mounts,
    node::{MountedView, Node, Pulls, REGISTRY_NAME},
    progress::Progress,
    proxy::Proxy,
    recipe,
};
use crate::relay::Meter;
use crate::rivals::{Background, Kind, Rivals};

/// Longest that conversions, and then a shim's own round, may take.
const PATIENCE: Duration = Duration::from_secs(180);
/// What the shim says of a layer that needs it no more.
const SETTLED: &str = "layer-read-without-us";
/// So long must nothing come for a rival, and its daemon do next to nothing, until it counts as complete: what they fetch in the
/// background pauses for some seconds after each read.
const QUIET: Duration = Duration::from_secs(8);
const QUIET_CPU: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(super) struct Way {
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// An image with a python.
    pub(super) python: PathBuf,
    /// Devices of the FUSE mounts, and who serves them.
    pub(super) mounts: Vec<u32>,
    pub(super) pid: Option<u32>,
    /// Of a rival: what its registry has sent, and how much that was when it was complete.
    pub(super) rival: Option<(Meter, u64)>,
    /// The node goes with the last of its ways. Views first.
    _views: Vec<MountedView>,
    _node: Option<Arc<Node>>,
}

impl Way {
    pub(super) fn fetched_since_complete(&self) -> Option<u64> {
        let (meter, before) = self.rival.as_ref()?;
        Some(meter.traffic().down_bytes - before)
    }
}

/// A proxy of both registries that has converted every image.
pub(crate) async fn proxy(lab: &Lab, content: &Content, progress: &Progress) -> Result<Proxy> {
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

pub(super) async fn open(ground: &Ground<'_>, report: &mut Report) -> Result<Vec<Way>> {
    let (lab, proxy, content, progress) = (ground.lab, ground.proxy, ground.content, ground.progress);
    let (bench, python) = (content.image.chain_ids().pop(), lab.image.chain());
    let way = async |name: &str, node: &Arc<Node>| way(name, node, bench.as_ref(), python.as_ref()).await;
    let mut ways = Vec::new();
    let plain = Arc::new(node(lab, proxy, "plain", Pulls::Ordinary).await?);
    ways.push(way("unpacked", &plain).await?);
    for (name, pulls) in [("erofs", Pulls::Lazy), ("fuse", Pulls::LazyFuse)] {
        progress.step(format!("pulling lazily: {name}"));
        let node = Arc::new(node(lab, proxy, name, pulls).await?);
        let through = way(&format!("{name}, through the shim"), &node).await?;
        progress.step(format!("reading everything: {name}"));
        if let Some(shim) = &node.shim {
            let spaces = shim.root.join("mnt");
            rows::blocking(move || rows::read_spaces(&spaces)).await?;
        }
        ways.push(through);
        if pulls == Pulls::Lazy {
            settled(&node, lab.image.layers.len() + content.image.layers.len()).await?;
            ways.push(way(&format!("{name}, layers complete"), &node).await?);
        }
    }
    if let Some((rivals, kinds)) = ground.rivals {
        for kind in kinds {
            match rival(ground, rivals, *kind).await {
                Ok(way) => ways.push(way),
                Err(error) => report.absent(kind.name(), error),
            }
        }
    }
    for also in &ground.config.also {
        let (name, dir) = also
            .split_once('=')
            .ok_or_else(|| PlaygroundError::unexpected("understand a directory to compare with", also))?;
        ways.push(Way {
            name: name.to_owned(),
            path: dir.into(),
            python: ways[0].python.clone(),
            mounts: Vec::new(),
            pid: None,
            rival: None,
            _views: Vec::new(),
            _node: None,
        });
    }
    Ok(ways)
}

/// What the rival has of both images, all of it.
async fn rival(ground: &Ground<'_>, rivals: &Rivals, kind: Kind) -> Result<Way> {
    let (name, progress) = (kind.name(), ground.progress);
    progress.step(format!("pulling lazily: {name}"));
    let node = Arc::new(rivals.node(&ground.lab.work, kind, name, Background::On).await?);
    let mut chains = Vec::new();
    for repository in [super::content::IMAGE, recipe::REPOSITORY] {
        let facts: ImageFacts = rivals.facts(kind, repository).await?;
        node.pull_image(&facts.reference()).await?;
        chains.push(facts.chain());
    }
    let mut way = way(name, &node, chains[0].as_ref(), chains[1].as_ref()).await?;
    if way.mounts.is_empty() {
        return Err(PlaygroundError::unexpected(
            "mount an image lazily",
            "there is no FUSE mount",
        ));
    }
    progress.step(format!("reading everything: {name}"));
    let (bench, python) = (way.path.clone(), way.python.clone());
    rows::blocking(move || rows::read_files(&bench).and_then(|()| rows::read_files(&python))).await?;
    progress.step(format!("waiting until it has everything: {name}"));
    let meter = rivals.source(kind).1.meter();
    let pids: Vec<u32> = way.pid.into_iter().collect();
    let seen = || (meter.traffic().down_bytes, usage::cpu(&pids));
    let (begun, mut before) = (Instant::now(), seen());
    let complete = loop {
        tokio::time::sleep(QUIET).await;
        let now = seen();
        if now.0 == before.0 && now.1.saturating_sub(before.1) < QUIET_CPU {
            break now.0;
        }
        if begun.elapsed() > PATIENCE {
            return Err(PlaygroundError::unexpected(
                "wait until a rival has everything",
                "it goes on fetching",
            ));
        }
        before = now;
    };
    way.rival = Some((meter, complete));
    Ok(way)
}

async fn way(name: &str, node: &Arc<Node>, bench: Option<&ChainId>, python: Option<&ChainId>) -> Result<Way> {
    let no_layers = || PlaygroundError::unexpected("mount an image", "it has no layers");
    let (bench, python) = (bench.ok_or_else(no_layers)?, python.ok_or_else(no_layers)?);
    let key = name.replace(", ", "-").replace(' ', "-");
    let views = vec![
        node.mount_as_container(&format!("{key}-bench"), bench).await?,
        node.mount_as_container(&format!("{key}-python"), python).await?,
    ];
    let (mounts, pid) = match node.presenter() {
        Some((root, pid)) => (mounts::fuse_below(root), Some(pid)),
        None => (Vec::new(), None),
    };
    Ok(Way {
        name: name.to_owned(),
        path: views[0].path.clone(),
        python: views[1].path.clone(),
        mounts,
        pid,
        rival: None,
        _views: views,
        _node: Some(Arc::clone(node)),
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
