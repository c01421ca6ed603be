//! `headstart-loadtest bench-ingest`.
//!
//! In: flags over `[ingest]`. Out: the table on standard output, and as JSON if asked.
//! Invariant: nothing is measured while something else of it runs. Not here: the benchmark itself.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use headstart_loadtest::bench::ingest::{self, IngestBenchConfig};
use headstart_loadtest::playground::progress::Progress;

use super::bench::{server_beside, show};

/// Compare what converting an image's layers costs: ours, `gzip -dc | sha256sum`, and other commands.
///
/// Wall and CPU time, memory, and bytes on disk, in interleaved rounds. scripts/bench-ingest.sh makes real images and knows the
/// peers. Build with --release first.
#[derive(Debug, Args)]
pub struct BenchIngestArgs {
    /// The layers, in gzip, bottom first.
    #[arg(value_name = "FILE")]
    layers: Vec<PathBuf>,
    /// headstart-server's binary, as PATH or LABEL=PATH; may be repeated to compare builds. Default: beside this one.
    #[arg(long, value_name = "[LABEL=]PATH")]
    headstart: Vec<String>,
    /// A command for `sh -e`, which gets the layers as arguments and an empty directory as $OUT. May be repeated.
    #[arg(long = "peer", value_name = "NAME=COMMAND")]
    peers: Vec<String>,
    #[arg(long)]
    rounds: Option<usize>,
    /// Also write every sample as JSON to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub async fn run(args: BenchIngestArgs, mut config: IngestBenchConfig) -> Result<ExitCode, String> {
    if !args.layers.is_empty() {
        config.layers = args.layers;
    }
    if !args.headstart.is_empty() {
        config.headstart = args.headstart;
    }
    if config.headstart.is_empty() {
        config.headstart = vec![server_beside()?.display().to_string()];
    }
    config.peers.extend(args.peers);
    config.rounds = args.rounds.unwrap_or(config.rounds);
    config.json = args.json.or(config.json);
    if config.rounds == 0 || config.layers.is_empty() {
        return Err("there must be layers, and at least 1 round".to_owned());
    }
    let json = config.json.clone();
    let work = tokio::task::spawn_blocking(move || ingest::run(&config, &Progress::new()));
    let report = tokio::select! {
        report = work => report.map_err(|e| e.to_string())?.map_err(|e| format!("failed to {e}"))?,
        _ = tokio::signal::ctrl_c() => return Err("interrupted".to_owned()),
    };
    show(&report.table(), &report, json.as_deref())?;
    Ok(ExitCode::SUCCESS)
}
