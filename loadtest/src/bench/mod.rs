//! The mirror against its peers: Debian's docker-registry (plain, and as a proxy) and nginx over the same files, on
//! loopback, in one run.
//!
//! In: a [`BenchConfig`]. Out: a [`report::Report`]: every sample, medians and ratios.
//! Invariant: all peers hold the same bytes, checked by digest before and after the timed part, and are measured
//! interleaved, cell by cell, in rounds, with the order rotated: on a noisy machine only ratios within a run mean
//! anything. CPU time is the kernel's account of each server's processes; on loopback that includes the delivery of
//! packets to the client, the same for all.
//! Not here: cold caches (but see [`first_byte`]), TLS, and real clients.

pub mod alone;
pub mod busy;
pub mod cell;
pub mod content;
pub mod first_byte;
pub mod http;
pub mod ingest;
pub mod node;
pub mod peers;
pub mod report;
pub mod usage;

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::playground::{Result, progress::Progress, workdir::WorkDir};

/// What is measured, and how long.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BenchConfig {
    /// Binaries of headstart-server, each as `PATH` or `LABEL=PATH`; several compare builds.
    pub headstart: Vec<String>,
    pub connections: Vec<usize>,
    /// How often each cell is measured.
    pub rounds: usize,
    /// How long one cell is measured.
    pub cell_ms: u64,
    /// Content to ask for: any of `manifest-digest`, `manifest-tag`, `blob-small`, `blob-large`; empty means all.
    pub only: Vec<String>,
    /// Peers beside Headstart: any of `registry`, `registry-proxy`, `nginx`.
    pub peers: Vec<String>,
    pub blob_small_bytes: u64,
    pub blob_large_bytes: u64,
    pub json: Option<PathBuf>,
}

impl Default for BenchConfig {
    fn default() -> Self {
        Self {
            headstart: Vec::new(),
            connections: vec![1, 16, 64, 256],
            rounds: 3,
            cell_ms: 2_000,
            only: Vec::new(),
            peers: ["registry", "registry-proxy", "nginx"].map(str::to_owned).into(),
            blob_small_bytes: 1 << 20,
            blob_large_bytes: 64 << 20,
            json: None,
        }
    }
}

/// Builds everything, measures, and takes it down.
pub async fn run(config: &BenchConfig, progress: &Progress) -> Result<report::Report> {
    let work = WorkDir::create()?;
    progress.step("making the content");
    let content = content::Content::new(config.blob_small_bytes, config.blob_large_bytes);
    progress.step("starting the servers");
    let mut peers = peers::start(&work, config, &content).await?;
    progress.step("filling their caches");
    for peer in &peers {
        peer.check(&content).await?;
    }
    peers::settle(&peers).await;
    let cell = Duration::from_millis(config.cell_ms);
    let mut report = report::Report::new(&peers, config);
    for round in 0..config.rounds {
        for asked in content.asked() {
            if !config.only.is_empty() && !config.only.iter().any(|only| only == asked.name) {
                continue;
            }
            for &connections in &config.connections {
                progress.step(format!(
                    "round {}: {}, {connections} connections",
                    round + 1,
                    asked.name
                ));
                // Another order each round: whoever comes after a heavy neighbour inherits its heat.
                for i in 0..peers.len() {
                    let peer = &peers[(i + round) % peers.len()];
                    let sample = cell::measure(peer, asked, connections, cell).await?;
                    report.add(&peer.label, asked.name, connections, sample);
                }
            }
        }
    }
    progress.step("checking the bytes again");
    for peer in &peers {
        peer.check(&content).await?;
    }
    for peer in &mut peers {
        peer.process.stop();
    }
    Ok(report)
}
