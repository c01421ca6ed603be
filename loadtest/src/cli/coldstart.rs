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

#[cfg(test)]
mod tests {
    use headstart_loadtest::coldstart::Report;
    use headstart_loadtest::coldstart::report::{ImageFigures, Sample};
    use headstart_loadtest::playground::measure::Start;
    use headstart_loadtest::playground::report::median;
    use headstart_loadtest::playground::sources::Sources;
    use serde_json::Value;

    use super::*;

    /// Two rounds of two ways, no two numbers of which are the same.
    fn report() -> Report {
        let mut report = Report {
            rounds: 2,
            images: vec![ImageFigures {
                name: "app".to_owned(),
                layers: 3,
                compressed_bytes: 9_100_000,
                ..ImageFigures::default()
            }],
            absent: vec![(Way::Soci, "it is not there".to_owned())],
            ..Report::default()
        };
        for round in 1..=2 {
            for (way, ms) in [(Way::Local, 400.0), (Way::LazySecond, 700.0)] {
                let (pull_ms, ready_ms) = (ms * round as f64, ms * 3.0 + 110.0 * round as f64);
                let is_lazy = way.is_lazy();
                let start = Start {
                    pull_ms,
                    ready_ms,
                    total_ms: pull_ms + ready_ms,
                    node_bytes: ms as u64 * 10_000 * round as u64,
                    upstream_bytes: 3_300_000,
                    sources: is_lazy.then(|| Sources {
                        prefetched: 5_000_000 * round as u64,
                        on_demand: 1_200_000,
                        ..Sources::default()
                    }),
                    ..Start::default()
                };
                report.samples.push(Sample {
                    second_ms: Some(ms / 2.0),
                    read_bytes: is_lazy.then_some(6_100_000),
                    full_read_ms: is_lazy.then_some(9_900.0),
                    ..Sample::of("app", way, round, &start)
                });
            }
        }
        report
    }

    fn keys(value: &Value) -> Vec<&str> {
        let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        keys
    }

    #[test]
    fn the_file_has_every_start_and_its_medians_are_the_table() {
        let report = report();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.json");
        write_json(None, &report).unwrap();
        assert!(!path.exists());
        write_json(Some(&path), &report).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        assert!(text.ends_with("}\n"));
        let top = [
            "absent",
            "errors",
            "images",
            "links",
            "machine",
            "page_cache_dropped",
            "rounds",
            "samples",
        ];
        assert_eq!(keys(&json), top);
        assert_eq!(json["rounds"], 2);
        assert_eq!(json["images"][0]["compressed_bytes"], 9_100_000);
        assert_eq!(json["absent"][0], serde_json::json!(["soci", "it is not there"]));
        let samples = json["samples"].as_array().unwrap();
        assert_eq!(samples.len(), 4, "each start, not medians");
        let fields = [
            "cpu_busy",
            "declined",
            "full_read_ms",
            "image",
            "load_average",
            "node_bytes",
            "pull_ms",
            "read_bytes",
            "ready_ms",
            "round",
            "second_ms",
            "sources",
            "timeline",
            "total_ms",
            "upstream_bytes",
            "way",
        ];
        samples.iter().for_each(|sample| assert_eq!(keys(sample), fields));

        // From the file alone what the table says.
        let table = table::text(&report);
        for way in [Way::Local, Way::LazySecond] {
            let of_way = || samples.iter().filter(|s| s["way"] == way.name());
            let rounds: Vec<&Value> = of_way().map(|s| &s["round"]).collect();
            assert_eq!(rounds, [1, 2]);
            let figure = |name: &str| {
                let values: Vec<f64> = of_way().filter_map(|s| s[name].as_f64()).collect();
                (!values.is_empty()).then(|| median(values))
            };
            let row = table.lines().find(|l| l.starts_with(&format!("| {} ", way.title())));
            let cells: Vec<&str> = row.unwrap().split('|').map(str::trim).collect();
            let expected = [
                (2, table::seconds(figure("pull_ms"))),
                (3, table::seconds(figure("ready_ms"))),
                (4, table::seconds(figure("total_ms"))),
                (6, table::seconds(figure("second_ms"))),
                (7, table::seconds(figure("full_read_ms"))),
                (8, table::megabytes(figure("node_bytes"))),
                (9, table::megabytes(figure("read_bytes"))),
                (10, table::megabytes(figure("upstream_bytes"))),
            ];
            for (at, number) in expected {
                assert_eq!(cells[at], number, "column {at} of {way:?} in\n{table}");
            }
            let prefetched: Vec<f64> = of_way().filter_map(|s| s["sources"]["prefetched"].as_f64()).collect();
            let told = (!prefetched.is_empty()).then(|| table::megabytes(Some(median(prefetched))));
            let line = table.lines().find(|l| l.starts_with(&format!("  {}: ", way.title())));
            assert_eq!(line.is_some(), told.is_some());
            if let (Some(line), Some(told)) = (line, told) {
                assert!(
                    line.contains(&format!(": prefetched {told}, on demand 1.2, ")),
                    "{line}"
                );
            }
        }
    }
}
