//! The storm: N simulated nodes pull one image at once.
//!
//! In: a [`StormConfig`]. Out: a [`Report`]. Invariant: every byte counted was verified; a failure is counted, and ends
//! that node's round, not the storm; work in flight is bounded by nodes x blobs at once.
//! Not here: the command line, and starting a server.

mod config;
mod lazy;
mod registry;
mod report;

use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures_util::stream::{self, StreamExt};
use headstart_layer_format::BlobDigest;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

pub use config::{BLOBS_AT_ONCE_MAX, NODES_MAX, ROUNDS_MAX, StormConfig};
pub use registry::PullError;
pub use report::{Latencies, Report};

use registry::{Image, Registry};

use crate::corpus::Rng;

/// Runs to the end.
pub async fn run(config: StormConfig) -> Result<Report, String> {
    config.check()?;
    let config = Arc::new(config);
    let report = Arc::new(Mutex::new(Report {
        lazy: config.lazy,
        ..Report::default()
    }));
    // All nodes begin together: a rolling start would not be a storm.
    let ready = Arc::new(Barrier::new(config.nodes));
    let start = Instant::now();
    let mut nodes = JoinSet::new();
    for number in 0..config.nodes {
        let (config, report, ready) = (config.clone(), report.clone(), ready.clone());
        nodes.spawn(async move {
            ready.wait().await;
            for round in 0..config.rounds {
                node(&config, &report, (number * config.rounds + round) as u64).await;
            }
        });
    }
    while let Some(ended) = nodes.join_next().await {
        ended.map_err(|e| format!("a node panicked: {e}"))?;
    }
    let mut report = std::mem::take(&mut *report.lock().expect("no holder panics"));
    report.elapsed = start.elapsed();
    Ok(report)
}

/// One pull by one node, with connections of its own.
async fn node(config: &StormConfig, report: &Mutex<Report>, number: u64) {
    let start = Instant::now();
    let result = match Registry::new(config) {
        Ok(registry) => match registry.image(&config.reference).await {
            Ok(image) if config.lazy => pull_lazily(&registry, config, &image, report, number).await,
            Ok(image) => pull(&registry, config, &image, report).await,
            Err(e) => Err(e),
        },
        Err(e) => Err(e),
    };
    let mut report = report.lock().expect("no holder panics");
    match result {
        Ok(()) => report.image.record(start.elapsed()),
        Err(e) => report.failed(e.to_string()),
    }
}

/// Config first, then layers, some at once: containerd's order.
async fn pull(
    registry: &Registry,
    config: &StormConfig,
    image: &Image,
    report: &Mutex<Report>,
) -> Result<(), PullError> {
    let config_blob = registry.blob(&image.config).await?;
    report.lock().expect("no holder panics").transferred(config_blob);
    let mut layers = stream::iter(image.layers.clone())
        .map(|layer| async move { registry.blob(&layer).await })
        .buffer_unordered(config.blobs_at_once);
    while let Some(timing) = layers.next().await {
        report.lock().expect("no holder panics").transferred(timing?);
    }
    Ok(())
}

async fn pull_lazily(
    registry: &Registry,
    config: &StormConfig,
    image: &Image,
    report: &Mutex<Report>,
    number: u64,
) -> Result<(), PullError> {
    lazy::converted(registry, config, &image.manifest).await?;
    let mut rng = Rng::new(config.seed ^ (number << 32));
    for layer in &image.layers {
        let (toc, timing) = lazy::toc(registry, layer).await?;
        report.lock().expect("no holder panics").transferred(timing);
        let chosen = lazy::choose(&toc, config.lazy_fraction, &mut rng);
        chunks(registry, config, layer, chosen, report).await?;
    }
    Ok(())
}

async fn chunks(
    registry: &Registry,
    config: &StormConfig,
    layer: &BlobDigest,
    chosen: Vec<headstart_layer_format::toc::Chunk>,
    report: &Mutex<Report>,
) -> Result<(), PullError> {
    let mut fetches = stream::iter(chosen)
        .map(|chunk| async move { lazy::chunk(registry, layer, &chunk).await })
        .buffer_unordered(config.blobs_at_once);
    while let Some(timing) = fetches.next().await {
        report.lock().expect("no holder panics").transferred(timing?);
    }
    Ok(())
}
