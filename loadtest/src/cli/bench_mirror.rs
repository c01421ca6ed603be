//! `headstart-loadtest bench-mirror`.
//!
//! In: flags over `[bench]`. Out: the table on standard output, and as JSON if asked; exit code 1 if any answer was wrong.
//! Invariant: Ctrl-C ends it and everything it started. Not here: the benchmark itself.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use headstart_loadtest::bench::{self, BenchConfig};
use headstart_loadtest::playground::progress::Progress;

use super::bench::{finished, server_beside, show};

/// Compare the mirror with docker-registry (plain and proxy) and nginx over the same content.
///
/// Starts all of them on loopback, fills their caches, and asks for a manifest by digest and by tag, a 1 MiB and a
/// 64 MiB blob, over different numbers of connections, in interleaved rounds. Printed: rates, latencies, CPU seconds
/// and memory, and the ratios. Build with --release first.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// headstart-server's binary, as PATH or LABEL=PATH; may be repeated to compare builds. Default: beside this one.
    #[arg(long, value_name = "[LABEL=]PATH")]
    headstart: Vec<String>,
    /// Connections at once, one cell each.
    #[arg(long, value_delimiter = ',', value_name = "N,...")]
    connections: Vec<usize>,
    /// How often each cell is measured.
    #[arg(long)]
    rounds: Option<usize>,
    /// How long one cell is measured.
    #[arg(long)]
    cell_ms: Option<u64>,
    /// manifest-digest, manifest-tag, blob-small, blob-large. Default: all.
    #[arg(long, value_delimiter = ',', value_name = "WHAT,...")]
    only: Vec<String>,
    /// Peers to start beside the upstream: registry-proxy, nginx. Default: both.
    #[arg(long, value_delimiter = ',', value_name = "PEER,...")]
    peers: Vec<String>,
    /// Size of the small blob.
    #[arg(long)]
    blob_small_bytes: Option<u64>,
    /// Size of the large blob.
    #[arg(long)]
    blob_large_bytes: Option<u64>,
    /// Also write every sample as JSON to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl BenchArgs {
    fn over(self, mut config: BenchConfig) -> Result<BenchConfig, String> {
        fn list<T>(to: &mut Vec<T>, from: Vec<T>) {
            if !from.is_empty() {
                *to = from;
            }
        }
        list(&mut config.headstart, self.headstart);
        list(&mut config.connections, self.connections);
        list(&mut config.only, self.only);
        list(&mut config.peers, self.peers);
        config.rounds = self.rounds.unwrap_or(config.rounds);
        config.cell_ms = self.cell_ms.unwrap_or(config.cell_ms);
        config.blob_small_bytes = self.blob_small_bytes.unwrap_or(config.blob_small_bytes);
        config.blob_large_bytes = self.blob_large_bytes.unwrap_or(config.blob_large_bytes);
        config.json = self.json.or(config.json);
        if config.headstart.is_empty() {
            config.headstart = vec![server_beside()?.to_string_lossy().into_owned()];
        }
        if config.connections.contains(&0) || config.connections.is_empty() || config.rounds == 0 {
            return Err("connections and rounds must be at least 1".to_owned());
        }
        Ok(config)
    }
}

pub async fn run(args: BenchArgs, file: BenchConfig) -> Result<ExitCode, String> {
    let config = args.over(file)?;
    let progress = Progress::new();
    let report = finished(bench::run(&config, &progress)).await?;
    drop(progress);
    show(&report.table(), &report.json(), config.json.as_deref())?;
    Ok(match report.first_error() {
        None => ExitCode::SUCCESS,
        Some(error) => {
            eprintln!(
                "headstart-loadtest: {} wrong answers; the first: {error}",
                report.errors()
            );
            ExitCode::FAILURE
        }
    })
}
