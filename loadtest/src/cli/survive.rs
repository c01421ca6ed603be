//! `headstart-loadtest survive`.
//!
//! In: flags. Out: the table on standard output, and as JSON if asked.
//! Invariant: what readers get is reported, and is no error of this program. Not here: the kills themselves.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use headstart_loadtest::playground::progress::Progress;
use headstart_loadtest::rivals::Kind;
use headstart_loadtest::survival::{self, Blow, SurvivalConfig};

use super::bench::{finished, show};

/// Kills the daemons of lazy snapshotters with -9 under readers of a mounted image, and counts what the readers get.
///
/// Headstart's shim under both presentations, and beside it the daemons of others. As root.
#[derive(Debug, Args)]
pub struct SurviveArgs {
    /// Kills of each.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// What is killed: the node's daemon, or its server (for the others their registry), which is back after 3 s.
    #[arg(long, default_value = "daemon", value_name = "daemon|server")]
    kill: Blow,
    /// Other lazy snapshotters: stargz, soci. They need what scripts/bench-peers.sh makes.
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    rivals: Vec<Kind>,
    /// Where scripts/bench-peers.sh put their programs.
    #[arg(long, value_name = "DIR")]
    peers: Option<PathBuf>,
    /// Small files of the image.
    #[arg(long, default_value_t = 2000)]
    files: usize,
    /// Size of its large file.
    #[arg(long, default_value_t = 128 << 20)]
    big_bytes: u64,
    /// Also write everything as JSON to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub async fn run(args: SurviveArgs) -> Result<ExitCode, String> {
    if args.rounds == 0 || args.files == 0 || args.big_bytes < args.rounds as u64 * (1 << 20) {
        return Err("there must be rounds, files, and 1 MiB of the large file for each round".to_owned());
    }
    let config = SurvivalConfig {
        rounds: args.rounds,
        blow: args.kill,
        rivals: args.rivals,
        peers: args.peers,
        files: args.files,
        big_bytes: args.big_bytes,
    };
    let progress = Progress::new();
    let report = finished(survival::run(&config, &progress)).await?;
    drop(progress);
    show(&report.table(), &report, args.json.as_deref())?;
    Ok(ExitCode::SUCCESS)
}
