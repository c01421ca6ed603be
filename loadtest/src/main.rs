//! `headstart-loadtest`: the command line.
//!
//! In: arguments. Out: the exit status of a subcommand.
//! Invariant: nothing but parsing and dispatch happens here.
//! Not here: the work of the subcommands (the library).

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use headstart_loadtest::playground;

/// Drives Headstart: the demo with a real container, and simulated nodes.
#[derive(Debug, Parser)]
#[command(name = "headstart-loadtest", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a real container by ordinary pulls and lazily, and compare.
    Playground(playground::cli::PlaygroundArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    match Args::parse().command {
        Command::Playground(args) => match playground::cli::run(args).await {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(playground::cli::INTERRUPTED),
            Err(error) => {
                eprintln!("headstart-loadtest: failed to {error}");
                ExitCode::FAILURE
            }
        },
    }
}
