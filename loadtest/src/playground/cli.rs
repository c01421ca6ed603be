//! `headstart-loadtest playground`: the command line of the demo.
//!
//! In: arguments, signals. Out: a table or JSON on standard output, and a page with plots in a file; progress on standard
//! error.
//! Invariant: SIGINT, SIGTERM and SIGHUP drop the work, and with it everything it started, before the process ends; a
//! second signal does not cut that short.
//! Not here: the work.

use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};

use super::{
    PlaygroundError, Result, keep,
    lab::{Lab, Links},
    progress::Progress,
    site::Site,
};
use crate::{
    coldstart::{self, Plan, Rig, Way, page, rivals, table},
    relay::LinkShape,
};

/// Exit status after a signal, as shells count: 128 + SIGINT.
pub const INTERRUPTED: u8 = 130;

/// Starts one real container by ordinary pulls and lazily, each from cold, and a second time; prints what it took.
///
/// Everything runs on loopback below one temporary directory: a registry, the server, the shim and a private
/// containerd. The system's own containerd is never touched. Needs root. The demo image is built once and kept in
/// target/playground.
#[derive(Clone, Debug, clap::Args)]
pub struct PlaygroundArgs {
    /// How often each way of starting is measured; the table shows medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub rounds: u16,
    /// Write the page with plots here. Default: playground/coldstart.html in the target directory.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Between nodes and proxy: lan (0.5 ms, 5 Gbit/s), wan (20 ms, 400 Mbit/s), none, or RTT_MS/MBIT.
    #[arg(long, default_value = "lan")]
    pub link: LinkShape,
    /// Between the upstream registry and everybody else.
    #[arg(long, default_value = "wan")]
    pub upstream_link: LinkShape,
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
    let links = Links {
        node: args.link,
        upstream: args.upstream_link,
    };
    let rig = Rig::of_demo(Lab::open_linked(&site, links, &progress).await?);
    if !args.no_compare {
        let plan = Plan {
            rounds: args.rounds.into(),
            // The others' programs, and the image in their forms, are not what somebody has who tries this.
            ways: Way::ALL.into_iter().filter(|w| !Way::RIVALS.contains(w)).collect(),
            full_read: false,
            timelines: true,
            peers: std::path::PathBuf::new(),
        };
        let mut report = coldstart::run(&rig, &plan, &progress).await?;
        report.absent.extend(rivals::left_out());
        progress.step("done");
        if args.json {
            let text = serde_json::to_string_pretty(&report);
            println!("{}", text.map_err(|e| PlaygroundError::unexpected("write JSON", e))?);
        } else {
            println!("\n{}", table::text(&report));
        }
        let html = args.html.unwrap_or_else(|| site.cache_dir.join("coldstart.html"));
        std::fs::write(&html, page::html(&report)).map_err(PlaygroundError::io(format!("write {}", html.display())))?;
        eprintln!("The plots are in {}", html.display());
        if !report.errors.is_empty() {
            return Err(PlaygroundError::unexpected(
                "start everything",
                format!("{} start(s) failed", report.errors.len()),
            ));
        }
    }
    if args.keep {
        keep::run(&rig.lab, &progress).await?;
    }
    Ok(())
}
