//! What a comparison found: every start, and what is needed to read it.
//!
//! In: samples as they come. Out: medians by image and way; serde makes the JSON of it.
//! Invariant: nothing is thrown away but timelines: of each image and way the one of the start nearest to the median total
//! is kept, because one is drawn.
//! Not here: the table ([`super::table`]) and the page ([`super::page`]).

use serde::Serialize;

use super::{load::Machine, timeline::Timeline, way::Way};
use crate::playground::{lab::Links, measure::Start, report::median, sources::Sources};

#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub machine: Machine,
    pub links: Links,
    pub rounds: usize,
    pub page_cache_dropped: bool,
    pub images: Vec<ImageFigures>,
    pub samples: Vec<Sample>,
    /// Ways that were asked for and could not be run at all, with the reason.
    pub absent: Vec<(Way, String)>,
    /// Single starts that failed.
    pub errors: Vec<Failure>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct ImageFigures {
    pub name: String,
    pub reference: String,
    pub ready: String,
    pub layers: usize,
    pub compressed_bytes: u64,
    /// Bytes of chunks that the image has and what nodes ran before it has not.
    pub new_chunk_bytes: Option<u64>,
    /// What converting it once took, the server's whole CPU, and as the server accounts it.
    pub server_cpu_s: Option<f64>,
    pub ingest_cpu_s: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    pub image: String,
    pub way: Way,
    pub round: usize,
    pub why: String,
}

/// One start.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    pub image: String,
    pub way: Way,
    /// From 1.
    pub round: usize,
    pub pull_ms: f64,
    pub ready_ms: f64,
    pub total_ms: f64,
    /// Another container on the same node.
    pub second_ms: Option<f64>,
    /// To the node by the moment it was ready, from proxy or registry.
    pub node_bytes: u64,
    /// Compressed size of the chunks that the container read of our shim by then.
    pub read_bytes: Option<u64>,
    /// Where the chunks came from that our shim had by then.
    pub sources: Option<Sources>,
    /// From the upstream, to whomever, in the end.
    pub upstream_bytes: u64,
    /// Pulling, and then reading every file, on another fresh node.
    pub full_read_ms: Option<f64>,
    /// Layers that the shim declined to show lazily.
    pub declined: usize,
    /// Of the machine, before; and the share of its CPUs that was busy during the start.
    pub load_average: f64,
    pub cpu_busy: f64,
    pub timeline: Option<Timeline>,
}

impl Sample {
    /// What a start tells of itself.
    pub fn of(image: &str, way: Way, round: usize, start: &Start) -> Sample {
        Sample {
            image: image.to_owned(),
            way,
            round,
            pull_ms: start.pull_ms,
            ready_ms: start.ready_ms,
            total_ms: start.total_ms,
            second_ms: None,
            node_bytes: start.node_bytes,
            read_bytes: None,
            sources: start.sources,
            upstream_bytes: start.upstream_bytes,
            full_read_ms: None,
            declined: 0,
            load_average: 0.0,
            cpu_busy: 0.0,
            timeline: None,
        }
    }
}

impl Report {
    pub fn of<'a>(&'a self, image: &'a str, way: Way) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |s| s.image == image && s.way == way)
    }

    /// `None` when it was never measured.
    pub fn median(&self, image: &str, way: Way, figure: impl Fn(&Sample) -> f64) -> Option<f64> {
        let values: Vec<f64> = self.of(image, way).map(figure).collect();
        (!values.is_empty()).then(|| median(values))
    }

    /// The same, of a figure that not every start has.
    pub fn median_some(&self, image: &str, way: Way, figure: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        let values: Vec<f64> = self.of(image, way).filter_map(figure).collect();
        (!values.is_empty()).then(|| median(values))
    }

    /// Medians of each source, by its name; `None` if no start of it told.
    pub fn sources(&self, image: &str, way: Way) -> Option<Vec<(&'static str, f64)>> {
        let names = Sources::default().named().map(|(name, _)| name);
        let each = names.into_iter().enumerate().map(|(at, name)| {
            let median = self.median_some(image, way, |s| Some(s.sources?.named()[at].1 as f64))?;
            Some((name, median))
        });
        each.collect()
    }

    /// Ways that were measured, in their order.
    pub fn ways(&self) -> Vec<Way> {
        let is_there = |way: &Way| self.samples.iter().any(|s| s.way == *way);
        Way::ALL.into_iter().filter(is_there).collect()
    }

    /// What the project promises: a quarter more than the same image unpacked, and 0.15 s.
    pub fn goal_ms(&self, image: &str) -> Option<f64> {
        let local = self.median(image, Way::Local, |s| s.total_ms)?;
        Some(local * 1.25 + 150.0)
    }

    /// Lowest and highest load average.
    pub fn load(&self) -> (f64, f64) {
        let all = || self.samples.iter().map(|s| s.load_average);
        (all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max))
    }

    /// Forgets the timelines that nobody will draw.
    pub fn keep_one_timeline_each(&mut self) {
        let images: Vec<String> = self.images.iter().map(|i| i.name.clone()).collect();
        for image in &images {
            for way in self.ways() {
                let Some(middle) = self.median(image, way, |s| s.total_ms) else {
                    continue;
                };
                let mut these: Vec<&mut Sample> = self
                    .samples
                    .iter_mut()
                    .filter(|s| s.image == *image && s.way == way)
                    .collect();
                these.sort_by(|a, b| (a.total_ms - middle).abs().total_cmp(&(b.total_ms - middle).abs()));
                for sample in these.into_iter().skip(1) {
                    sample.timeline = None;
                }
            }
        }
    }
}
