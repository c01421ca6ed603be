//! The comparison the demo prints: the same container started four ways, each from cold.
//!
//! In: a lab, the number of rounds. Out: [`Comparison`], with every single start.
//! Invariant: each start has a fresh node; the order is the same in every round, so that drift of the machine hits all
//! ways alike; medians are over rounds.
//! Not here: printing ([`super::report`]).

use serde::Serialize;

use super::{
    Result,
    lab::Lab,
    measure::{self, Start},
    node::Pulls,
    progress::Progress,
};

/// The ways, in the order they are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    OrdinaryDirect,
    OrdinaryColdProxy,
    LazyColdProxy,
    LazyWarmProxy,
}

impl Way {
    pub const ALL: [Way; 4] = [
        Way::OrdinaryDirect,
        Way::OrdinaryColdProxy,
        Way::LazyColdProxy,
        Way::LazyWarmProxy,
    ];

    pub fn title(self) -> &'static str {
        match self {
            Way::OrdinaryDirect => "ordinary pull, upstream",
            Way::OrdinaryColdProxy => "ordinary pull, cold proxy",
            Way::LazyColdProxy => "lazy, cold proxy",
            Way::LazyWarmProxy => "lazy, warm proxy",
        }
    }
}

/// What converting the image took the server, once.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Ingest {
    /// Sum over layers.
    pub seconds: f64,
    pub cpu_seconds: f64,
    /// CPU of the whole server process up to then: fetching, serving and converting.
    pub server_cpu_seconds: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    pub image: String,
    pub layers: usize,
    pub compressed_bytes: u64,
    /// Sum of the layers' data spaces: file contents, padded to pages.
    pub uncompressed_bytes: u64,
    pub page_cache_dropped: bool,
    pub starts: Vec<(Way, Vec<Start>)>,
    pub ingests: Vec<Ingest>,
}

pub async fn run(lab: &Lab, rounds: usize, progress: &Progress) -> Result<Comparison> {
    let mut comparison = Comparison {
        image: super::node::image_reference(),
        layers: lab.image.layers.len(),
        compressed_bytes: lab.image.compressed_bytes(),
        uncompressed_bytes: 0,
        page_cache_dropped: measure::drop_page_cache(),
        starts: Way::ALL.iter().map(|w| (*w, Vec::new())).collect(),
        ingests: Vec::new(),
    };
    for round in 1..=rounds {
        let step = |way: Way| progress.step(format!("round {round} of {rounds}: {}", way.title()));
        let name = |way: usize| format!("node{round}{way}");

        step(Way::OrdinaryDirect);
        let node = lab.node(&name(0), Pulls::Ordinary, None).await?;
        comparison.starts[0].1.push(measure::start(lab, &node, None).await?);
        drop(node);

        step(Way::OrdinaryColdProxy);
        let proxy = lab.proxy(&format!("proxy{round}a")).await?;
        let node = lab.node(&name(1), Pulls::Ordinary, Some(&proxy)).await?;
        comparison.starts[1]
            .1
            .push(measure::start(lab, &node, Some(&proxy)).await?);
        drop((node, proxy));

        step(Way::LazyColdProxy);
        let proxy = lab.proxy(&format!("proxy{round}b")).await?;
        let node = lab.node(&name(2), Pulls::Lazy, Some(&proxy)).await?;
        comparison.starts[2]
            .1
            .push(measure::start(lab, &node, Some(&proxy)).await?);
        drop(node);
        let counters = proxy.proxy.counters().await?;
        comparison.ingests.push(Ingest {
            seconds: counters.sum("headstart_ingest_seconds_total", &[]),
            cpu_seconds: counters.sum("headstart_ingest_cpu_seconds_total", &[]),
            server_cpu_seconds: proxy.proxy.cpu().unwrap_or_default().as_secs_f64(),
        });
        if let Some(status) = proxy.proxy.image(&lab.image.manifest, 0).await? {
            comparison.uncompressed_bytes = status
                .layers
                .iter()
                .filter_map(|l| l.toc.as_ref())
                .map(|t| t.data_size)
                .sum();
        }

        step(Way::LazyWarmProxy);
        let node = lab.node(&name(3), Pulls::Lazy, Some(&proxy)).await?;
        comparison.starts[3]
            .1
            .push(measure::start(lab, &node, Some(&proxy)).await?);
    }
    Ok(comparison)
}
