//! `headstart-loadtest`: the load driver and the playground.
//!
//! In: the command line. Out: an exit code. Not here: everything else ([`cli`] and the library).

mod cli;

use std::process::ExitCode;

use clap::Parser;

#[tokio::main]
async fn main() -> ExitCode {
    cli::Cli::parse().run().await
}
