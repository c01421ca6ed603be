//! What mounted layers cost the daemon that shows them in memory and idle CPU, and how long they take to come.
//!
//! In: a proxy with images, and rivals with their forms of them. Out: [`Memory`]. Invariant: the daemon is a fresh process, and is looked
//! at after it was left alone for a while. Nobody reads anything, and nobody fetches what nobody reads: this is what mounts cost,
//! not what use costs.
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

/// Ours, by how layers are shown: who, the node's name, how it pulls.
const OURS: [(&str, &str, Pulls); 2] = [
    ("headstart, erofs", "memory-erofs", Pulls::Lazy),
    ("headstart, fuse", "memory-fuse", Pulls::LazyFuse),
];

/// Long enough for what a pull began to end, and for a look at idle CPU.
const LEFT_ALONE: Duration = Duration::from_secs(5);

/// A daemon at one number of mounts.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    pub who: &'static str,
    pub what: &'static str,
    pub layers: usize,
    pub rss_bytes: u64,
    /// Of one core.
    pub idle_cpu_percent: f64,
    /// To pull the layers that came last, a layer.
    pub mount_ms: Option<f64>,
}

/// What images are called where they are pulled: of small layers with their number up to there, then of one wide layer each.
struct Names {
    narrow: Vec<(String, usize)>,
    wide: Vec<String>,
}

pub(super) async fn measure(ground: &Ground<'_>, report: &mut Report) -> Result<()> {
    let (lab, proxy, content) = (ground.lab, ground.proxy, ground.content);
    let narrow = content.narrow.iter().map(|(r, _, layers)| (reference(r), *layers));
    let names = Names {
        narrow: narrow.collect(),
        wide: content.wide.iter().map(|(r, _)| reference(r)).collect(),
    };
    let (hosts, server) = ([proxy.url()], proxy.url());
    for (who, name, pulls) in OURS {
        let node = Node::start(&lab.work, name, pulls, &hosts, (&lab.binaries.shim, &server)).await?;
        mounts(ground, who, &node, &names, &mut report.memory).await?;
    }
    let Some((rivals, kinds)) = ground.rivals else {
        return Ok(());
    };
    for kind in kinds {
        let name = format!("memory-{}", kind.name());
        let outcome = async {
            let names = names_of(ground, rivals, *kind).await?;
            let node = rivals.node(&lab.work, *kind, &name, Background::Off).await?;
            mounts(ground, kind.name(), &node, &names, &mut report.memory).await
        };
        if let Err(error) = outcome.await {
            report.absent(&format!("{}, memory by mounts", kind.name()), error);
        }
    }
    Ok(())
}

async fn names_of(ground: &Ground<'_>, rivals: &Rivals, kind: Kind) -> Result<Names> {
    let (mut narrow, mut wide) = (Vec::new(), Vec::new());
    for (repository, _, layers) in &ground.content.narrow {
        narrow.push((rivals.facts(kind, repository).await?.reference(), *layers));
    }
    for (repository, _) in &ground.content.wide {
        wide.push(rivals.facts(kind, repository).await?.reference());
    }
    Ok(Names { narrow, wide })
}

async fn mounts(
    ground: &Ground<'_>,
    who: &'static str,
    node: &Node,
    names: &Names,
    out: &mut Vec<Memory>,
) -> Result<()> {
    out.push(look(node, who, "idle", 0, None).await);
    let mut since = (0, Duration::ZERO);
    for (name, layers) in &names.narrow {
        ground.progress.step(format!("memory: {who}, {layers} mounts"));
        let begun = Instant::now();
        node.pull_image(name).await?;
        since.1 += begun.elapsed();
        if ground.config.mounts.contains(layers) {
            let each = since.1.as_secs_f64() * 1e3 / (layers - since.0) as f64;
            out.push(look(node, who, "small layers", *layers, Some(each)).await);
            since = (*layers, Duration::ZERO);
        }
    }
    let narrow = names.narrow.last().map_or(0, |(_, layers)| *layers);
    for (at, name) in names.wide.iter().enumerate() {
        ground.progress.step(format!("memory: {who}, wide layer {}", at + 1));
        let begun = Instant::now();
        node.pull_image(name).await?;
        let took = begun.elapsed().as_secs_f64() * 1e3;
        out.push(look(node, who, "and a wide one", narrow + at + 1, Some(took)).await);
    }
    Ok(())
}

async fn look(node: &Node, who: &'static str, what: &'static str, layers: usize, mount_ms: Option<f64>) -> Memory {
    let pids: Vec<u32> = node.presenter().map(|(_, pid)| pid).into_iter().collect();
    tokio::time::sleep(LEFT_ALONE).await;
    let (begun, before) = (Instant::now(), usage::cpu(&pids));
    tokio::time::sleep(LEFT_ALONE).await;
    let used = usage::cpu(&pids).saturating_sub(before);
    Memory {
        who,
        what,
        layers,
        rss_bytes: usage::rss(&pids),
        idle_cpu_percent: 100.0 * used.as_secs_f64() / begun.elapsed().as_secs_f64(),
        mount_ms,
    }
}
