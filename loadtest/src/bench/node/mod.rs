//! What a container's reads cost on a node: layers as Headstart shows them, beside the same layers unpacked.
//!
//! In: a [`NodeBenchConfig`]. Out: a [`report::Report`]. Invariant: all ways show the same image, pulled by a real containerd, as
//! an overlay mount; every row is asked of all of them in each round, in an order that rotates, cold (nothing in the kernel's
//! caches) and then again warm; ratios are taken within a round. Whoever answers counts as much as asked: a walk that finds
//! fewer names is an error, not a quick walk.
//! Not here: first reads over a network (the playground), and other snapshotters (a directory of theirs may be given).

pub mod content;
pub mod memory;
pub mod report;
pub mod rows;
pub mod watch;
mod ways;

use std::path::PathBuf;
use std::time::Instant;

use serde::Deserialize;

use crate::playground::{Result, lab::Lab, measure, progress::Progress, proxy::Proxy, site::Site};
use content::Content;
use report::{Report, Sample};
use rows::{Row, Tree};
use watch::{Watch, load};

/// What is measured.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeBenchConfig {
    /// Of reads; 0: memory alone.
    pub rounds: usize,
    /// Small files of the image.
    pub files: usize,
    /// The large one.
    pub big_bytes: u64,
    /// Numbers of mounted layers at which the shim's memory is looked at.
    pub mounts: Vec<usize>,
    /// Further layers of as many files as the image, for what one costs in memory.
    pub wide_layers: usize,
    /// Directories where somebody else shows the same image, `NAME=DIR`.
    pub also: Vec<String>,
    pub json: Option<PathBuf>,
}

impl Default for NodeBenchConfig {
    fn default() -> Self {
        Self {
            rounds: 3,
            files: 60_000,
            big_bytes: 500 << 20,
            mounts: vec![1, 20, 200],
            wide_layers: 4,
            also: Vec::new(),
            json: None,
        }
    }
}

/// Builds everything, measures, and takes it down.
pub async fn run(config: &NodeBenchConfig, progress: &Progress) -> Result<Report> {
    let lab = Lab::open(&Site::of_this_executable()?, progress).await?;
    progress.step("making the images");
    let content = Content::new(config);
    let proxy = ways::proxy(&lab, &content, progress).await?;
    let mut report = Report::new(config);

    if config.rounds > 0 {
        read(&lab, &proxy, &content, config, progress, &mut report).await?;
    }
    progress.step("memory, by mounts");
    report.memory = memory::measure(&lab, &proxy, &content, config, progress).await?;
    Ok(report)
}

async fn read(
    lab: &Lab,
    proxy: &Proxy,
    content: &Content,
    config: &NodeBenchConfig,
    progress: &Progress,
    report: &mut Report,
) -> Result<()> {
    progress.step("pulling, and reading everything once");
    let ways = ways::open(lab, proxy, content, config, progress).await?;
    let tree = {
        let (path, files) = (ways[0].path.clone(), config.files);
        rows::blocking(move || Tree::of(&path, files)).await?
    };
    report.load.push(load());
    for round in 0..config.rounds {
        for row in Row::ALL {
            for i in 0..ways.len() {
                let way = &ways[(i + round) % ways.len()];
                progress.step(format!("round {}: {}, {}", round + 1, row.name(), way.name));
                for cold in [true, false] {
                    if cold {
                        measure::drop_page_cache();
                    }
                    let watch = Watch::begin(way.mount_device, way.pid);
                    let (tree, path, python) = (tree.clone(), way.path.clone(), way.python.clone());
                    let begun = Instant::now();
                    rows::blocking(move || row.ask(&tree, &path, &python)).await?;
                    let seconds = begun.elapsed().as_secs_f64();
                    report.add(row, &way.name, cold, Sample::new(seconds, &watch.end()));
                }
            }
        }
        report.load.push(load());
    }
    Ok(())
}
