//! `headstart-loadtest coldstart` and `crowd`.
//!
//! In: flags. Out: the table on standard output; JSON and a page with plots in files. Exit code 1 if any start failed.
//! Invariant: Ctrl-C ends it and everything it started. Not here: the measuring.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use headstart_loadtest::coldstart::{
    self, ImageList, Plan, Rig, Way,
    crowd::{self, Wanted},
    page, table,
};
use headstart_loadtest::playground::{PlaygroundError, lab::Links, progress::Progress, site::Site};
use headstart_loadtest::relay::LinkShape;
use headstart_loadtest::rivals;

use super::bench::finished;

/// What both subcommands take.
#[derive(Debug, Args)]
pub struct Ground {
    /// The images: a TOML file (config/coldstart.toml describes the format). Default: the demo image alone.
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    /// Where the list's OCI layouts are. Default: where scripts/bench-images.sh puts them.
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Only these of the list.
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    only: Vec<String>,
    /// Between nodes and proxy: lan (0.5 ms, 5 Gbit/s), wan (20 ms, 400 Mbit/s), none, or RTT_MS/MBIT.
    #[arg(long, default_value = "lan")]
    link: LinkShape,
    /// Between the upstream registry and everybody else.
    #[arg(long, default_value = "wan")]
    upstream_link: LinkShape,
    /// Where the server's and the shim's binaries are, if not beside this program.
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
    /// Write everything as JSON to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Start real images in real containers, from cold, by every way there is, and compare the time until they are ready.
///
/// Each start has a fresh node (containerd, and the shim), a dropped page cache, and links with a delay and a rate. Rounds
/// are interleaved. Everything runs on loopback below a temporary directory. Needs root.
///
/// Example: headstart-loadtest coldstart --list config/coldstart.toml --only python,redis --rounds 3 --html out.html
#[derive(Debug, Args)]
pub struct ColdstartArgs {
    #[command(flatten)]
    ground: Ground,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Only these: upstream, mirror-cold, mirror-warm, local, local-cold, lazy-first, lazy-second, lazy-cold. Default: all.
    /// stargz, soci and nydus need what scripts/bench-peers.sh makes.
    #[arg(long, value_delimiter = ',', value_name = "WAY,...")]
    ways: Vec<Way>,
    /// Also pull and then read every file of the image, ordinarily and lazily.
    #[arg(long)]
    full_read: bool,
    /// Where scripts/bench-peers.sh put other snapshotters and their images.
    #[arg(long, value_name = "DIR")]
    peers: Option<PathBuf>,
    /// Write a page with plots to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Many simulated nodes start one image at once from one proxy, cold and then warm.
///
/// Each asks as containerd and the shim do: manifest, state, TOCs, then its chunks in one stream. Printed: p50 and p99 until
/// a node had all its bytes, the server's CPU seconds per GB, and what the upstream was asked for.
#[derive(Debug, Args)]
pub struct CrowdArgs {
    #[command(flatten)]
    ground: Ground,
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=crowd::NODES_MAX as i64))]
    nodes: u16,
    /// What each node wants: a file with a chunk's digest a line. Default: a share of the image.
    #[arg(long, value_name = "FILE", conflicts_with = "profile")]
    chunks: Option<PathBuf>,
    /// Or what a start of it needs: a real node starts it first, and the others ask for what the proxy has learnt.
    #[arg(long)]
    profile: bool,
    /// That share, 0 to 1.
    #[arg(long, default_value_t = 0.15)]
    fraction: f64,
    /// Chooses the share's chunks.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Ground {
    async fn rig(&self, progress: &Progress) -> Result<Rig, String> {
        let failed = |e: PlaygroundError| e.to_string();
        let mut site = Site::of_this_executable().map_err(failed)?;
        if let Some(dir) = &self.binaries {
            site.profile_dir = dir.clone();
        }
        let links = Links {
            node: self.link,
            upstream: self.upstream_link,
        };
        let Some(list) = &self.list else {
            if !self.only.is_empty() || self.images.is_some() {
                return Err("understand --only and --images without a --list".to_owned());
            }
            return Rig::demo(&site, links, progress).await.map_err(failed);
        };
        let list = ImageList::read(list).map_err(failed)?;
        let images = match (&self.images, std::env::var_os("HEADSTART_BENCH_IMAGES")) {
            (Some(images), _) => images.clone(),
            (None, Some(images)) => images.into(),
            (None, None) => site.cache_dir.with_file_name("bench-images"),
        };
        Rig::of_list(&site, &list, &self.only, &images, links, progress)
            .await
            .map_err(failed)
    }
}

pub async fn run(args: ColdstartArgs) -> Result<ExitCode, String> {
    let progress = Progress::new();
    let plan = Plan {
        rounds: args.rounds.into(),
        ways: if args.ways.is_empty() {
            Way::ALL.into()
        } else {
            args.ways
        },
        full_read: args.full_read,
        timelines: true,
        peers: rivals::directory(args.peers).map_err(|e| e.to_string())?,
    };
    let measuring = async {
        let rig = args.ground.rig(&progress).await?;
        coldstart::run(&rig, &plan, &progress).await.map_err(|e| e.to_string())
    };
    let report = finished(measuring).await?;
    drop(progress);
    print!("{}", table::text(&report));
    write_json(args.ground.json.as_deref(), &report)?;
    if let Some(path) = &args.html {
        write(path, &page::html(&report))?;
        println!("The plots are in {}", path.display());
    }
    Ok(if report.errors.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

pub async fn run_crowd(args: CrowdArgs) -> Result<ExitCode, String> {
    if !(0.0..=1.0).contains(&args.fraction) {
        return Err(format!("fraction is {}, not within 0 and 1", args.fraction));
    }
    let wanted = match &args.chunks {
        None if args.profile => Wanted::Profile,
        None => Wanted::Share {
            fraction: args.fraction,
            seed: args.seed,
        },
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|e| format!("reading {}: {e}", path.display()))?;
            Wanted::parse(&text).map_err(|e| format!("reading {}: {e}", path.display()))?
        }
    };
    let progress = Progress::new();
    let measuring = async {
        let rig = args.ground.rig(&progress).await?;
        let nodes = args.nodes.into();
        crowd::run(&rig, nodes, &wanted, &progress)
            .await
            .map_err(|e| e.to_string())
    };
    let report = finished(measuring).await?;
    drop(progress);
    print!("{}", report.table());
    write_json(args.ground.json.as_deref(), &report)?;
    Ok(ExitCode::SUCCESS)
}

fn write_json(path: Option<&Path>, report: &impl serde::Serialize) -> Result<(), String> {
    let Some(path) = path else { return Ok(()) };
    let text = serde_json::to_string_pretty(report).map_err(|e| format!("writing JSON: {e}"))?;
    write(path, &(text + "\n"))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|e| format!("writing {}: {e}", path.display()))
}
