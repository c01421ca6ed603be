//! `headstart-loadtest bench-first-byte`.
//!
//! In: flags over `[first_byte]`. Out: the table on standard output, and every time as JSON if asked.
//! Invariant: Ctrl-C ends it and everything it started. Not here: the benchmark itself.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use headstart_loadtest::bench::first_byte::{self, FirstByteConfig};
use headstart_loadtest::playground::progress::Progress;

use super::bench::{finished, server_beside, show};

/// Compare the time to the first byte of a cold blob through the mirror with that of its upstream.
///
/// Starts an upstream and the mirror on loopback, and asks for new blobs at either in turn: with nothing else to do, and
/// while the mirror converts an image (half a minute of it by default). Then the same with a docker-registry as the
/// upstream. Build with --release first.
#[derive(Debug, Args)]
pub struct FirstByteArgs {
    /// headstart-server's binary. Default: beside this one.
    #[arg(long, value_name = "PATH")]
    headstart: Option<PathBuf>,
    /// How long the upstream takes to its head, in milliseconds, one situation each.
    #[arg(long, value_delimiter = ',', value_name = "MS,...")]
    upstream_delay_ms: Vec<u64>,
    /// Leave out the situation with a docker-registry as the upstream.
    #[arg(long)]
    no_registry: bool,
    /// Blobs in each situation.
    #[arg(long)]
    rounds: Option<usize>,
    /// Other caching proxies to compare with: nginx, registry-proxy; "none" for none.
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Pause between two blobs.
    #[arg(long)]
    pause_ms: Option<u64>,
    #[arg(long)]
    blob_bytes: Option<usize>,
    /// Layers that are converted meanwhile.
    #[arg(long)]
    ingest_layers: Option<usize>,
    #[arg(long)]
    ingest_layer_bytes: Option<usize>,
    /// Also write every time as JSON to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub async fn run(args: FirstByteArgs, mut config: FirstByteConfig) -> Result<ExitCode, String> {
    if let Some(path) = args.headstart {
        config.headstart = path;
    }
    if config.headstart.as_os_str().is_empty() {
        config.headstart = server_beside()?;
    }
    if !args.upstream_delay_ms.is_empty() {
        config.upstream_delay_ms = args.upstream_delay_ms;
    }
    if !args.peers.is_empty() {
        config.peers = args.peers.into_iter().filter(|peer| peer != "none").collect();
    }
    config.registry &= !args.no_registry;
    config.rounds = args.rounds.unwrap_or(config.rounds);
    config.pause_ms = args.pause_ms.unwrap_or(config.pause_ms);
    config.blob_bytes = args.blob_bytes.unwrap_or(config.blob_bytes);
    config.ingest_layers = args.ingest_layers.unwrap_or(config.ingest_layers);
    config.ingest_layer_bytes = args.ingest_layer_bytes.unwrap_or(config.ingest_layer_bytes);
    config.json = args.json.or(config.json);
    if config.rounds == 0 || config.ingest_layers == 0 || config.blob_bytes == 0 {
        return Err("rounds, layers and bytes must be at least 1".to_owned());
    }
    let progress = Progress::new();
    let report = finished(first_byte::run(&config, &progress)).await?;
    drop(progress);
    show(&report.table(), &report, config.json.as_deref())?;
    Ok(ExitCode::SUCCESS)
}
