//! `headstart-loadtest bench-node`.
//!
//! In: flags over `[node]`. Out: the tables on standard output, and as JSON if asked.
//! Invariant: nothing is measured while something else of it runs. Not here: the benchmark itself.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use headstart_loadtest::bench::node::{self, NodeBenchConfig};
use headstart_loadtest::playground::progress::Progress;
use headstart_loadtest::rivals::Kind;

use super::bench::{finished, show};

/// Reads of a container from lazily mounted layers, beside the same layers unpacked, and beside other lazy snapshotters.
///
/// Walks, stats, misses, opens, a python's imports, and reads of a large file, cold and warm, with FUSE requests and daemon
/// CPU; memory by mounts. As root; build with --release first.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// Rounds of reads; 0 for memory alone.
    #[arg(long)]
    rounds: Option<usize>,
    /// Small files of the image.
    #[arg(long)]
    files: Option<usize>,
    /// Size of its large file.
    #[arg(long)]
    big_bytes: Option<u64>,
    /// Numbers of mounted layers at which a daemon's memory is looked at.
    #[arg(long, value_delimiter = ',')]
    mounts: Option<Vec<usize>>,
    /// Further layers of as many files, for what one costs in memory.
    #[arg(long)]
    wide_layers: Option<usize>,
    /// A directory where somebody else shows the same image. May be repeated.
    #[arg(long, value_name = "NAME=DIR")]
    also: Vec<String>,
    /// Other lazy snapshotters, with the same images in their forms: stargz, soci. They need what scripts/bench-peers.sh makes.
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    rivals: Vec<Kind>,
    /// Where scripts/bench-peers.sh put their programs.
    #[arg(long, value_name = "DIR")]
    peers: Option<PathBuf>,
    /// Also write every sample as JSON to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub async fn run(args: NodeArgs, mut config: NodeBenchConfig) -> Result<ExitCode, String> {
    config.rounds = args.rounds.unwrap_or(config.rounds);
    config.files = args.files.unwrap_or(config.files);
    config.big_bytes = args.big_bytes.unwrap_or(config.big_bytes);
    config.mounts = args.mounts.unwrap_or(config.mounts);
    config.wide_layers = args.wide_layers.unwrap_or(config.wide_layers);
    config.also.extend(args.also);
    config.rivals.extend(args.rivals);
    config.peers = args.peers.or(config.peers);
    config.json = args.json.or(config.json);
    if config.files == 0 || config.big_bytes < 1 << 20 {
        return Err("there must be files, and a large file of at least 1 MiB".to_owned());
    }
    let progress = Progress::new();
    let report = finished(node::run(&config, &progress)).await?;
    drop(progress);
    show(&report.table(), &report, config.json.as_deref())?;
    Ok(ExitCode::SUCCESS)
}
