//! The command line of `headstart-loadtest`.
//!
//! In: arguments, and a TOML file with a section for each subcommand that has settings. Out: a subcommand with its configuration.
//! Invariant: flags win over the file, the file over the defaults; unknown keys are errors.
//! Not here: what the subcommands do.

mod bench;
mod bench_busy;
mod bench_first_byte;
mod bench_ingest;
mod bench_mirror;
mod bench_node;
mod coldstart;
mod storm;
mod survive;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde::Deserialize;

use headstart_loadtest::bench::{
    BenchConfig, busy::BusyConfig, first_byte::FirstByteConfig, ingest::IngestBenchConfig, node::NodeBenchConfig,
};
use headstart_loadtest::playground;
use headstart_loadtest::storm::StormConfig;

/// Load driver and playground of Headstart.
///
/// Simulates nodes that pull an image through a Headstart server (or any registry), verifies every byte, and prints
/// throughput and latencies.
#[derive(Debug, Parser)]
#[command(name = "headstart-loadtest", version)]
pub struct Cli {
    /// TOML file with a section [storm]; flags win over it.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

/// One variant a subcommand.
#[derive(Debug, Subcommand)]
enum Command {
    BenchBusy(bench_busy::BusyArgs),
    BenchFirstByte(bench_first_byte::FirstByteArgs),
    BenchIngest(bench_ingest::BenchIngestArgs),
    BenchMirror(bench_mirror::BenchArgs),
    BenchNode(bench_node::NodeArgs),
    Coldstart(coldstart::ColdstartArgs),
    Crowd(coldstart::CrowdArgs),
    /// Start a real container by ordinary pulls and lazily, and compare.
    Playground(playground::cli::PlaygroundArgs),
    Storm(storm::StormArgs),
    Survive(survive::SurviveArgs),
}

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FileConfig {
    pub bench: BenchConfig,
    pub busy: BusyConfig,
    pub first_byte: FirstByteConfig,
    pub ingest: IngestBenchConfig,
    pub node: NodeBenchConfig,
    pub storm: StormConfig,
}

impl FileConfig {
    fn read(path: Option<&Path>) -> Result<Self, String> {
        let Some(path) = path else {
            return Ok(Self::default());
        };
        let text = std::fs::read_to_string(path).map_err(|e| format!("reading {}: {e}", path.display()))?;
        toml::from_str(&text).map_err(|e| format!("parsing {}: {e}", path.display()))
    }
}

impl Cli {
    pub async fn run(self) -> ExitCode {
        let result = match FileConfig::read(self.config.as_deref()) {
            Ok(file) => match self.command {
                Command::Playground(args) => playground(args).await,
                Command::Coldstart(args) => coldstart::run(args).await,
                Command::Crowd(args) => coldstart::run_crowd(args).await,
                Command::BenchBusy(args) => bench_busy::run(args, file.busy).await,
                Command::BenchFirstByte(args) => bench_first_byte::run(args, file.first_byte).await,
                Command::BenchIngest(args) => bench_ingest::run(args, file.ingest).await,
                Command::BenchMirror(args) => bench_mirror::run(args, file.bench).await,
                Command::BenchNode(args) => bench_node::run(args, file.node).await,
                Command::Storm(args) => storm::run(args, file.storm).await,
                Command::Survive(args) => survive::run(args).await,
            },
            Err(e) => Err(e),
        };
        match result {
            Ok(code) => code,
            Err(e) => {
                eprintln!("headstart-loadtest: {e}");
                ExitCode::FAILURE
            }
        }
    }
}

async fn playground(args: playground::cli::PlaygroundArgs) -> Result<ExitCode, String> {
    match playground::cli::run(args).await {
        Ok(true) => Ok(ExitCode::SUCCESS),
        Ok(false) => Ok(ExitCode::from(playground::cli::INTERRUPTED)),
        Err(error) => Err(format!("failed to {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_parse_and_unknown_keys_do_not() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        let file: FileConfig = toml::from_str("[storm]\nnodes = 3\n").unwrap();
        assert_eq!((file.storm.nodes, file.storm.rounds), (3, 1));
        assert!(toml::from_str::<FileConfig>("[storm]\nnode = 3\n").is_err());
        assert!(toml::from_str::<FileConfig>("[strom]\n").is_err());
    }
}
