//! What mounted layers cost the shim in memory and idle CPU, and how long they take to come, by presentation.
//!
//! In: a proxy with images. Out: [`Memory`]. Invariant: the shim is a fresh process for each presentation, and is looked at after
//! it was left alone for a while. Nobody reads anything: this is what mounts cost, not what use costs.
//! Not here: reads.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::Ground;
use super::content::reference;
use super::report::Report;
use crate::bench::usage;
use crate::playground::{
    Result,
    node::{Node, Pulls},
};
use crate::rivals::{Background, Kind, Rivals};

const OURS: &str = "headstart";

/// Long enough for what a pull began to end, and for a look at idle CPU.
const LEFT_ALONE: Duration = Duration::from_secs(5);

/// A daemon at one number of mounts.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    /// How layers are shown: "erofs" or "fuse".
    pub shown_by: &'static str,
    pub what: String,
    pub layers: usize,
    pub rss_bytes: u64,
    /// Of one core.
    pub idle_cpu_percent: f64,
    /// To pull the layers that came last, a layer.
    pub mount_ms: Option<f64>,
}

/// How layers may be shown.
const WAYS: [(&str, Pulls); 2] = [("erofs", Pulls::Lazy), ("fuse", Pulls::LazyFuse)];

pub(super) async fn measure(
    lab: &Lab,
    proxy: &Proxy,
    content: &Content,
    config: &NodeBenchConfig,
    progress: &Progress,
) -> Result<Vec<Memory>> {
    let mut out = Vec::new();
    for (way, pulls) in WAYS {
        let hosts = [proxy.url()];
        let name = format!("memory-{way}");
        let node = Node::start(&lab.work, &name, pulls, &hosts, (&lab.binaries.shim, &proxy.url())).await?;
        out.push(look(way, &node, "idle", 0, None).await);
        let mut since = (0, Duration::ZERO);
        for (repository, _, layers) in &content.narrow {
            progress.step(format!("memory, {way}: {layers} mounts"));
            let begun = Instant::now();
            node.containerd.cri.pull(&reference(repository)).await?;
            since.1 += begun.elapsed();
            if config.mounts.contains(layers) {
                let each = since.1.as_secs_f64() * 1e3 / (layers - since.0) as f64;
                out.push(look(way, &node, "small layers", *layers, Some(each)).await);
                since = (*layers, Duration::ZERO);
            }
        }
        let narrow = content.narrow.last().map_or(0, |(_, _, layers)| *layers);
        for (at, (repository, _)) in content.wide.iter().enumerate() {
            progress.step(format!("memory, {way}: wide layer {}", at + 1));
            let begun = Instant::now();
            node.containerd.cri.pull(&reference(repository)).await?;
            let took = begun.elapsed().as_secs_f64() * 1e3;
            out.push(look(way, &node, "and a wide one", narrow + at + 1, Some(took)).await);
        }
    }
    Ok(())
}

async fn look(shown_by: &'static str, node: &Node, what: &str, layers: usize, mount_ms: Option<f64>) -> Memory {
    let pids: Vec<u32> = node.shim.iter().map(|s| s.process.pid()).collect();
    tokio::time::sleep(LEFT_ALONE).await;
    let (begun, before) = (Instant::now(), usage::cpu(&pids));
    tokio::time::sleep(LEFT_ALONE).await;
    let used = usage::cpu(&pids).saturating_sub(before);
    Memory {
        shown_by,
        what: what.to_owned(),
        layers,
        rss_bytes: usage::rss(&pids),
        idle_cpu_percent: 100.0 * used.as_secs_f64() / begun.elapsed().as_secs_f64(),
        mount_ms,
    }
}
