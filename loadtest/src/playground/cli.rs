//! `headstart-loadtest playground`: the command line of the demo.
//!
//! In: arguments, signals. Out: a table or JSON on standard output; progress on standard error.
//! Invariant: SIGINT, SIGTERM and SIGHUP drop the work, and with it everything it started, before the process ends; a
//! second signal does not cut that short.
//! Not here: the work.

use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};

use super::{PlaygroundError, Result, compare, keep, lab::Lab, progress::Progress, report, site::Site};

/// Exit status after a signal, as shells count: 128 + SIGINT.
pub const INTERRUPTED: u8 = 130;

/// Starts one real container by ordinary pulls and lazily, each from cold, and prints what it took.
///
/// Everything runs on loopback below one temporary directory: a registry, the server, the shim and a private
/// containerd. The system's own containerd is never touched. Needs root. The demo image is built once and kept in
/// target/playground.
#[derive(Clone, Debug, clap::Args)]
pub struct PlaygroundArgs {
    /// How often each way of starting is measured; the table shows medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub rounds: u16,
    /// Leave a playground running afterwards, and say how to use it. Ctrl-C ends it.
    #[arg(long)]
    pub keep: bool,
    /// With --keep: do not measure first.
    #[arg(long, requires = "keep")]
    pub no_compare: bool,
    /// Print JSON, with every single start, instead of the table.
    #[arg(long)]
    pub json: bool,
    /// Where the server's and the shim's binaries are, if not beside this program.
    #[arg(long, value_name = "DIR")]
    pub binaries: Option<PathBuf>,
}

/// Runs the command. `Ok(false)` after a signal.
pub async fn run(args: PlaygroundArgs) -> Result<bool> {
    let mut signals = Vec::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        signals.push(signal(kind).map_err(PlaygroundError::io("listen for signals"))?);
    }
    let any_signal = async {
        let waits = signals.iter_mut().map(|s| Box::pin(s.recv()));
        futures_util::future::select_all(waits).await;
    };
    tokio::select! {
        // The work future is dropped, and cleans up, before select! returns.
        result = work(args) => result.map(|()| true),
        () = any_signal => {
            eprintln!("\nstopping, and removing what was started");
            Ok(false)
        }
    }
}

async fn work(args: PlaygroundArgs) -> Result<()> {
    let progress = Progress::new();
    let mut site = Site::of_this_executable()?;
    if let Some(dir) = args.binaries {
        site.profile_dir = dir;
    }
    let lab = Lab::open(&site, &progress).await?;
    if !args.no_compare {
        let comparison = compare::run(&lab, args.rounds.into(), &progress).await?;
        progress.step("done");
        if args.json {
            println!("{}", report::json(&comparison));
        } else {
            println!("\n{}", report::table(&comparison));
        }
    }
    if args.keep {
        keep::run(&lab, &progress).await?;
    }
    Ok(())
}
