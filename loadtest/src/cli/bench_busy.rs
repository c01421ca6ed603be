//! `headstart-loadtest bench-busy`.
//!
//! In: flags over `[busy]`. Out: the table on standard output, and as JSON if asked; exit code 1 if memory is over its bound.
//! Invariant: Ctrl-C ends it and everything it started. Not here: the benchmark itself.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use headstart_loadtest::bench::busy::{self, BusyConfig};
use headstart_loadtest::playground::progress::Progress;

use super::bench::{finished, server_beside, show};

/// Pull a blob over and over, alone and while the mirror converts many images at once.
///
/// Told: how much of their throughput the pulls keep, and the memory that conversions take. Build with --release first.
#[derive(Debug, Args)]
pub struct BusyArgs {
    /// headstart-server's binary. Default: beside this one.
    #[arg(long, value_name = "PATH")]
    headstart: Option<PathBuf>,
    /// Images that are converted at once.
    #[arg(long)]
    images: Option<usize>,
    /// Layers of each.
    #[arg(long)]
    layers: Option<usize>,
    /// Bytes of each, before compression.
    #[arg(long)]
    layer_bytes: Option<usize>,
    /// Size of what is pulled.
    #[arg(long)]
    blob_bytes: Option<usize>,
    /// Pulls at once.
    #[arg(long)]
    connections: Option<usize>,
    #[arg(long)]
    cell_ms: Option<u64>,
    /// Memory that the conversions may add.
    #[arg(long)]
    memory_bytes_max: Option<u64>,
    /// Lines for the mirror's [ingest], to compare settings.
    #[arg(long, value_name = "TOML")]
    ingest: Option<String>,
    /// Also write every sample as JSON to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub async fn run(args: BusyArgs, mut config: BusyConfig) -> Result<ExitCode, String> {
    if let Some(path) = args.headstart {
        config.headstart = path;
    }
    if config.headstart.as_os_str().is_empty() {
        config.headstart = server_beside()?;
    }
    config.images = args.images.unwrap_or(config.images);
    config.layers = args.layers.unwrap_or(config.layers);
    config.layer_bytes = args.layer_bytes.unwrap_or(config.layer_bytes);
    config.blob_bytes = args.blob_bytes.unwrap_or(config.blob_bytes);
    config.connections = args.connections.unwrap_or(config.connections);
    config.cell_ms = args.cell_ms.unwrap_or(config.cell_ms);
    config.memory_bytes_max = args.memory_bytes_max.unwrap_or(config.memory_bytes_max);
    config.ingest = args.ingest.unwrap_or(config.ingest);
    config.json = args.json.or(config.json);
    if [
        config.images,
        config.layers,
        config.layer_bytes,
        config.blob_bytes,
        config.connections,
    ]
    .contains(&0)
    {
        return Err("images, layers, bytes and connections must be at least 1".to_owned());
    }
    let progress = Progress::new();
    let report = finished(busy::run(&config, &progress)).await?;
    drop(progress);
    show(&report.table(), &report, config.json.as_deref())?;
    Ok(match report.is_within_memory() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
