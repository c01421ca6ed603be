//! What a container's reads cost on a node: layers as Headstart shows them, beside the same layers unpacked.
//!
//! In: a [`NodeBenchConfig`]. Out: a [`report::Report`]. Invariant: all ways show the same image, pulled by a real containerd, as
//! an overlay mount; every row is asked of all of them in each round, in an order that rotates, cold (nothing in the kernel's
//! caches) and then again warm; ratios are taken within a round. Whoever answers counts as much as asked: a walk that finds
//! fewer names is an error, not a quick walk.
//! Other lazy snapshotters that were asked for are measured beside it; one that cannot be had, or fails, is named in the report.
//! Not here: first reads over a network (the playground).

pub mod content;
pub(crate) mod forms;
pub mod memory;
pub mod report;
pub mod rows;
pub mod watch;
pub(crate) mod ways;

use std::path::PathBuf;
use std::time::Instant;

use serde::Deserialize;

use crate::playground::{Result, lab::Lab, measure, progress::Progress, proxy::Proxy, recipe, site::Site};
use crate::relay::LinkShape;
use crate::rivals::{self, Kind, Rivals};
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
    /// Numbers of mounted layers at which a daemon's memory is looked at.
    pub mounts: Vec<usize>,
    /// Further layers of as many files as the image, for what one costs in memory.
    pub wide_layers: usize,
    /// Directories where somebody else shows the same image, `NAME=DIR`.
    pub also: Vec<String>,
    /// Other lazy snapshotters, with the same image in their form.
    pub rivals: Vec<Kind>,
    /// Where `scripts/bench-peers.sh` has put their programs.
    pub peers: Option<PathBuf>,
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
            rivals: Vec::new(),
            peers: None,
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
    let rivals = others(&lab, &content, config, progress, &mut report).await?;
    let ground = Ground {
        lab: &lab,
        proxy: &proxy,
        content: &content,
        config,
        rivals: rivals.as_ref(),
        progress,
    };
    if config.rounds > 0 {
        read(&ground, &mut report).await?;
    }
    progress.step("memory, by mounts");
    memory::measure(&ground, &mut report).await?;
    Ok(report)
}

/// What everything is measured on.
struct Ground<'a> {
    lab: &'a Lab,
    proxy: &'a Proxy,
    content: &'a Content,
    config: &'a NodeBenchConfig,
    rivals: Option<&'a (Rivals, Vec<Kind>)>,
    progress: &'a Progress,
}

/// The rivals that were asked for and can be had; the report names the others.
async fn others(
    lab: &Lab,
    content: &Content,
    config: &NodeBenchConfig,
    progress: &Progress,
    report: &mut Report,
) -> Result<Option<(Rivals, Vec<Kind>)>> {
    if config.rivals.is_empty() {
        return Ok(None);
    }
    let dir = rivals::directory(config.peers.clone())?;
    let mut kinds = Vec::new();
    for kind in Kind::OF_ANY_IMAGE.iter().filter(|kind| config.rivals.contains(kind)) {
        match kind.why_not(&dir) {
            Some(why) => report.absent(kind.name(), why),
            None => kinds.push(*kind),
        }
    }
    if kinds.is_empty() {
        return Ok(None);
    }
    let started = async {
        let wanted = wanted(lab, content, config);
        let storage = forms::make(lab, &wanted, &kinds, "forms", &dir, progress).await?;
        Rivals::start(&lab.work, LinkShape::default(), &dir, &storage).await
    };
    match started.await {
        Ok(rivals) => Ok(Some((rivals, kinds))),
        Err(error) => {
            for kind in kinds {
                report.absent(kind.name(), &error);
            }
            Ok(None)
        }
    }
}

/// Images that are needed in the forms of others.
fn wanted(lab: &Lab, content: &Content, config: &NodeBenchConfig) -> Vec<forms::Wanted> {
    let mut wanted = Vec::new();
    if config.rounds > 0 {
        wanted.push(forms::Wanted::of_content(content, content::IMAGE));
        wanted.push(forms::Wanted {
            from: lab.upstream.address.to_string(),
            repository: recipe::REPOSITORY.to_owned(),
            tag: recipe::TAG,
            is_ours: false,
        });
    }
    let narrow = content.narrow.iter().map(|(repository, _, _)| repository);
    let wide = content.wide.iter().map(|(repository, _)| repository);
    wanted.extend(narrow.chain(wide).map(|r| forms::Wanted::of_content(content, r)));
    wanted
}

async fn read(ground: &Ground<'_>, report: &mut Report) -> Result<()> {
    let (config, progress) = (ground.config, ground.progress);
    progress.step("pulling, and reading everything once");
    let mut ways = ways::open(ground, report).await?;
    let tree = {
        let (path, files) = (ways[0].path.clone(), config.files);
        rows::blocking(move || Tree::of(&path, files)).await?
    };
    report.load.push(load());
    for round in 0..config.rounds {
        for row in Row::ALL {
            let mut failed = Vec::new();
            for i in 0..ways.len() {
                let way = &ways[(i + round) % ways.len()];
                progress.step(format!("round {}: {}, {}", round + 1, row.name(), way.name));
                match ask(row, &tree, way, report).await {
                    Err(error) if way.rival.is_some() => failed.push((way.name.clone(), error)),
                    outcome => outcome?,
                }
            }
            // It does not come back: what it would say of other rows is not to be trusted.
            for (name, error) in failed {
                report.absent(&format!("{name}, from round {} on", round + 1), error);
                ways.retain(|way| way.name != name);
            }
        }
        report.load.push(load());
    }
    for way in &ways {
        if let Some(bytes) = way.fetched_since_complete().filter(|bytes| *bytes > 0) {
            report.notes.push(format!(
                "{}: {bytes} bytes came from its registry while it was read, although everything had been read before",
                way.name
            ));
        }
    }
    Ok(())
}

/// Cold, then warm.
async fn ask(row: Row, tree: &Tree, way: &ways::Way, report: &mut Report) -> Result<()> {
    for cold in [true, false] {
        if cold {
            measure::drop_page_cache();
        }
        let watch = Watch::begin(&way.mounts, way.pid);
        let (tree, path, python) = (tree.clone(), way.path.clone(), way.python.clone());
        let begun = Instant::now();
        rows::blocking(move || row.ask(&tree, &path, &python)).await?;
        let seconds = begun.elapsed().as_secs_f64();
        report.add(row, &way.name, cold, Sample::new(seconds, &watch.end()));
    }
    Ok(())
}
