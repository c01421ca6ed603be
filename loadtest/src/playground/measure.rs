//! One measured start: pull, create, ready; and what passed over the wires meanwhile.
//!
//! In: a node on fresh state, the relays, what is started and when it counts as ready. Out: [`Start`].
//! Invariant: times are of the whole call as a kubelet would see it; bytes are counted by relays, not by the programs
//! under test, except the chunk bytes, which only the server can tell apart.
//! Not here: which starts are compared (`coldstart`).

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use headstart_layer_format::api::LayerState;

use super::{
    Result,
    container::{Container, Run},
    lab::{ImageFacts, Lab, RelayedProxy},
    netns::NetNs,
    node::Node,
    ready::Ready,
    recipe,
    registry::Registry,
    sources::Sources,
};
use crate::relay::Relay;

/// Longest the demo container may take; a busy two-core machine needs seconds.
const DEMO_TIMEOUT: Duration = Duration::from_secs(120);

/// What is started.
#[derive(Clone, Debug)]
pub struct Subject {
    pub image: ImageFacts,
    /// Empty: what the image says.
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub ready: Ready,
    pub timeout: Duration,
}

impl Subject {
    pub fn demo(lab: &Lab) -> Subject {
        Subject {
            image: lab.image.clone(),
            args: recipe::COMMAND.iter().map(|a| (*a).to_owned()).collect(),
            env: Vec::new(),
            ready: Ready::Line(recipe::READY.to_owned()),
            timeout: DEMO_TIMEOUT,
        }
    }

    /// From create to ready, and its end: a container that would run on is ended.
    pub async fn run(&self, node: &Node, id: &str) -> Result<Duration> {
        let network = match self.ready.needs_network() {
            true => Some(NetNs::new()?),
            false => None,
        };
        let (reference, args) = (self.image.reference(), self.args.iter().map(String::as_str));
        let run = Run {
            reference: &reference,
            args: &args.collect::<Vec<_>>(),
            env: &self.env,
            network: network.as_ref().map(NetNs::path),
        };
        let mut container = Container::run(node, id, &run)?;
        let ready = self.ready.wait(&mut container, network.as_ref(), self.timeout).await?;
        // What prints a line and ends is let end, so that what follows does not overlap with it; a service goes on.
        if network.is_none() {
            let _ = tokio::time::timeout(Duration::from_secs(1), container.ended()).await;
        }
        Ok(ready)
    }
}

/// One start.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Start {
    pub pull_ms: f64,
    /// From create to the ready text.
    pub ready_ms: f64,
    pub total_ms: f64,
    /// To the node, from the proxy or from the registry, by the moment it was ready.
    pub node_bytes: u64,
    /// To the node, from the proxy: registry and chunk traffic together.
    pub proxy_bytes: u64,
    /// From the upstream, to the proxy or to the node.
    pub upstream_bytes: u64,
    /// Layer bytes the node received: whole blobs, or chunk frames.
    pub layer_bytes: u64,
    /// Layer bytes as they lie on the node, uncompressed; only for lazy starts.
    pub unpacked_bytes: Option<u64>,
    /// Of the chunks that had come by the moment it was ready; only for starts with our shim.
    pub sources: Option<Sources>,
    #[serde(skip)]
    pub begun: Option<Instant>,
}

/// Makes what is on disk be read from there again, where the kernel lets us. Without a `sync(2)` before it: that waits for
/// everybody's writes, cannot be interrupted, and what the starts read was synced when it was made.
pub fn drop_page_cache() -> bool {
    fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

/// What is run anew in each start.
const TOOLS: &[&str] = &["ctr", "runc", "containerd-shim-runc-v2"];
/// Read again at most: a proxy in a test has an image or two.
const WARMED_BYTES_MAX: u64 = 4 << 30;

/// Drops the page cache and reads again what other machines would have in theirs (the upstream's blobs, the proxy's store),
/// and the tools, which a node that runs containers has.
pub fn only_the_node_is_cold(lab: &Lab, proxy: Option<&RelayedProxy>, image: &ImageFacts) -> bool {
    only_cold(&lab.upstream, proxy, image, &[])
}

fn only_cold(upstream: &Registry, proxy: Option<&RelayedProxy>, image: &ImageFacts, more_tools: &[PathBuf]) -> bool {
    if !drop_page_cache() {
        return false;
    }
    let mut left = WARMED_BYTES_MAX;
    let tools = TOOLS.iter().filter_map(|t| super::tools::find(t));
    for tool in tools.chain(more_tools.iter().cloned()) {
        read_below(&tool, &mut left);
    }
    for (digest, _) in &image.layers {
        read_below(&upstream.blob(digest), &mut left);
    }
    if let Some(p) = proxy {
        read_below(p.proxy.data_dir(), &mut left);
    }
    true
}

/// A file, or all files in a directory and those below.
fn read_below(path: &Path, left: &mut u64) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    if meta.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            read_below(&entry.path(), left);
        }
    } else if let Ok(file) = File::open(path)
        && (meta.is_file() || meta.is_symlink())
    {
        *left -= io::copy(&mut file.take(*left), &mut io::sink()).unwrap_or(0);
    }
}

#[derive(Clone, Copy, Default)]
struct Wires {
    proxy: u64,
    upstream: u64,
    direct: u64,
    chunks: u64,
    blobs: u64,
}

async fn wires(lab: &Lab, direct: &Relay, proxy: Option<&RelayedProxy>) -> Result<Wires> {
    let direct = direct.traffic().down_bytes;
    let upstream = lab.proxy_link.traffic().down_bytes;
    let Some(p) = proxy else {
        return Ok(Wires {
            direct,
            upstream,
            ..Wires::default()
        });
    };
    let counters = p.proxy.counters().await?;
    let served = |route: &str| counters.sum("headstart_served_bytes_total", &[&format!("route=\"{route}\"")]) as u64;
    Ok(Wires {
        proxy: p.mirror_link.traffic().down_bytes + p.shim_link.traffic().down_bytes,
        upstream,
        direct,
        chunks: served("data") + served("chunks"),
        blobs: served("blobs"),
    })
}

/// The demo image: pulls, starts and waits for the container's end. `proxy` is the one the node uses, if any.
pub async fn start(lab: &Lab, node: &Node, proxy: Option<&RelayedProxy>) -> Result<Start> {
    start_of(lab, node, proxy, &Subject::demo(lab)).await
}

/// The same, of any image.
pub async fn start_of(lab: &Lab, node: &Node, proxy: Option<&RelayedProxy>, subject: &Subject) -> Result<Start> {
    start_from(lab, node, proxy, (&lab.upstream, &lab.direct_link), subject).await
}

/// The same, of an image in a registry that the node asks through a link of its own.
pub async fn start_from(
    lab: &Lab,
    node: &Node,
    proxy: Option<&RelayedProxy>,
    (registry, direct_link): (&Registry, &Relay),
    subject: &Subject,
) -> Result<Start> {
    let before = wires(lab, direct_link, proxy).await?;
    let sources = || node.shim.as_ref().and_then(|shim| shim.sources());
    let sources_before = sources().unwrap_or_default();
    only_cold(registry, proxy, &subject.image, node.runs_anew());
    let begun = Instant::now();
    node.pull_image(&subject.image.reference()).await?;
    let pull = begun.elapsed();
    let ready = subject.run(node, "first").await?;
    let total = pull + ready;
    let sources = sources().map(|now| now.since(&sources_before));
    let at_node = wires(lab, direct_link, proxy).await?;
    if let Some(p) = proxy {
        settle_image(p, &subject.image).await?;
    }
    let after = wires(lab, direct_link, proxy).await?;

    let direct = after.direct - before.direct;
    let layers = match proxy {
        // The config blob is a few kilobytes of it.
        Some(_) => (at_node.chunks - before.chunks) + (at_node.blobs - before.blobs) + direct,
        None => direct,
    };
    Ok(Start {
        pull_ms: ms(pull),
        ready_ms: ms(ready),
        total_ms: ms(total),
        node_bytes: (at_node.proxy - before.proxy) + (at_node.direct - before.direct),
        proxy_bytes: at_node.proxy - before.proxy,
        upstream_bytes: (after.upstream - before.upstream) + direct,
        layer_bytes: layers,
        unpacked_bytes: node.shim.as_ref().map(|s| s.disk_bytes()),
        sources,
        begun: Some(begun),
    })
}

/// Waits until the server has finished what the start made it begin, so that the upstream's bytes are all counted.
pub async fn settle(lab: &Lab, proxy: &RelayedProxy) -> Result<()> {
    settle_image(proxy, &lab.image).await
}

pub async fn settle_image(proxy: &RelayedProxy, image: &ImageFacts) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let status = proxy.proxy.image(&image.manifest, 10_000).await?;
        let busy = status.is_some_and(|s| {
            s.layers
                .iter()
                .any(|l| matches!(l.state, LayerState::Queued | LayerState::Converting))
        });
        if !busy || Instant::now() > deadline {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}
