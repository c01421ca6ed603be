//! The subcommands: they look at a node and change nothing.
//!
//! In: arguments, the shim's configuration file. Out: text or JSON on standard output, an exit status.
//! Invariant: none of them needs the shim to run; what they need of it they ask over its admin socket.
//! Not here: what is checked ([`crate::doctor`]), what is told ([`crate::observe`]).

mod ask;
pub mod status;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;

use crate::config::Config;
use crate::doctor::{self, Places};
use crate::last_good;

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Checks this node's set-up and says what to change. Exit status 1 if something must be changed
    Doctor {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// containerd's configuration; without it the usual places are looked at, k3s's among them
        #[arg(long, value_name = "FILE")]
        containerd_config: Option<PathBuf>,
    },
    /// Shows what the running shim has: images, how much of each was fetched, and why pulls were not lazy
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs one. The configuration is that of the shim it is about.
pub fn run(command: &Command, config: Option<&Path>) -> ExitCode {
    let config_path = config.map(Path::to_owned).or_else(installed_config);
    let config = match Config::load(config_path.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("headstart-shim: failed to {error}");
            // What the shim runs with, if it runs.
            match last_good::of(config_path.as_deref(), &error.to_string()) {
                Some(config) => config,
                None => return ExitCode::FAILURE,
            }
        }
    };
    let done = match command {
        Command::Status { json } => status::run(&config, *json),
        Command::Doctor {
            json,
            containerd_config,
        } => doctor::run(&config, Places::of_this_machine(containerd_config.clone()), *json),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("headstart-shim: failed to {error}");
            ExitCode::FAILURE
        }
    }
}

/// Where the packages put it. A service is told; people forget.
fn installed_config() -> Option<PathBuf> {
    let path = PathBuf::from("/etc/headstart/shim.toml");
    path.exists().then_some(path)
}

pub use ask::{AskError, ask};
