//! Ordinary pulls while many images are converted: how much slower they are, and what memory the conversions take.
//!
//! In: a [`BusyConfig`]. Out: a [`Report`]. Invariant: every blob is at the mirror before the clock starts, so that nothing but
//! the conversions is beside the pulls; a cell counts as "beside conversions" only if some were under way before and
//! after it. In the end every layer must be ready, and the pulled blob must be what it was.
//! A machine's mood changes in seconds, so each cell beside conversions has one alone before and after it: of a second mirror
//! that converts nothing, while the first is frozen with all its conversions. What counts is the median of such threes; that
//! the two mirrors are alike is seen before, when neither converts.
//! Not here: what one conversion costs ([`super::ingest`]).

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use headstart_layer_format::{
    BlobDigest,
    api::{ImageStatus, LayerState},
    routes,
};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::{
    cell::{self, Sample},
    content::Asked,
    peers,
    report::{number, plain_table},
    usage,
};
use crate::{
    corpus::{Compression, Dialect, LayerBuilder, Meta, Rng, SyntheticImage, SyntheticLayer},
    origin::{Auth, Origin},
    playground::{PlaygroundError, Result, ports, progress::Progress, report::median, workdir::WorkDir},
};

const REPOSITORY: &str = "bench/busy";
/// Until all layers are ready, on a loaded machine.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(600);
/// Between two looks at the memory.
const LOOK: Duration = Duration::from_millis(10);
/// Share of a layer that is one large file; the rest are small ones.
const LARGE_SHARE: usize = 2;
const SMALL_FILE: u64 = 20_000;

/// What is measured.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BusyConfig {
    /// headstart-server's binary.
    pub headstart: PathBuf,
    /// Images that are converted at once.
    pub images: usize,
    pub layers: usize,
    /// Of each layer, before compression.
    pub layer_bytes: usize,
    /// What is pulled over and over.
    pub blob_bytes: usize,
    pub connections: usize,
    pub cell_ms: u64,
    /// Cells of each mirror before the conversions.
    pub solo_cells: usize,
    /// More than this above what it has without conversions is an error.
    pub memory_bytes_max: u64,
    /// Lines for the mirror's [ingest].
    pub ingest: String,
    pub json: Option<PathBuf>,
}

impl Default for BusyConfig {
    fn default() -> Self {
        Self {
            headstart: PathBuf::new(),
            images: 20,
            layers: 3,
            layer_bytes: 16 << 20,
            blob_bytes: 64 << 20,
            connections: 4,
            cell_ms: 500,
            solo_cells: 6,
            memory_bytes_max: 256 << 20,
            ingest: String::new(),
            json: None,
        }
    }
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub images: usize,
    pub layers: usize,
    /// Of all layers, before compression.
    pub layer_bytes: u64,
    /// Of the second mirror and of the one that will convert, by turns, before it does.
    pub before: Vec<[Sample; 2]>,
    /// Of the second mirror, around each of `beside`: one more than those.
    pub solo: Vec<Sample>,
    /// Of the one that converts.
    pub beside: Vec<Sample>,
    /// From the first manifest until every layer was ready, without the time that it was frozen.
    pub convert_seconds: f64,
    pub idle_bytes: u64,
    pub peak_bytes: u64,
    pub memory_bytes_max: u64,
}

pub async fn run(config: &BusyConfig, progress: &Progress) -> Result<Report> {
    let work = WorkDir::create()?;
    let origin = Origin::start(Auth::Anonymous);
    progress.step("making the images");
    let mut seed = 0;
    let mut images = Vec::new();
    for i in 0..config.images {
        let layers = (0..config.layers).map(|_| {
            seed += 1;
            layer(seed, config.layer_bytes)
        });
        let image = SyntheticImage::new(Default::default(), layers.collect());
        image.push(&origin, REPOSITORY, &format!("image-{i}"));
        images.push(image);
    }
    let body = Bytes::from(Rng::new(u64::MAX).bytes(config.blob_bytes));
    let blob = origin.add_blob(REPOSITORY, body.clone());
    let asked = Asked {
        name: "blob",
        path: format!("/v2/{REPOSITORY}/blobs/{blob}"),
        body,
    };
    progress.step("filling the mirrors");
    let mut mirror = start(&work, "mirror", config, &origin).await?;
    let mut second = start(&work, "second", config, &origin).await?;
    get(second.address, &asked.path).await?;
    let blobs = images
        .iter()
        .flat_map(|i| i.layers.iter().map(|l| l.digest).chain([i.config_digest]));
    for digest in blobs.chain([blob]) {
        get(mirror.address, &format!("/v2/{REPOSITORY}/blobs/{digest}")).await?;
    }
    peers::settle(std::slice::from_ref(&mirror)).await;
    peers::settle(std::slice::from_ref(&second)).await;

    progress.step("pulls alone");
    let length = Duration::from_millis(config.cell_ms);
    let cell = async |peer: &peers::Peer| cell::measure(peer, &asked, config.connections, length).await;
    let mut before = Vec::new();
    for _ in 0..config.solo_cells {
        before.push([cell(&second).await?, cell(&mirror).await?]);
    }
    let pids = usage::family(mirror.process.pid());
    let idle_bytes = usage::memory(&pids);

    progress.step("pulls beside conversions");
    let peak = Peak::watch(pids);
    let (mut solo, mut beside) = (vec![cell(&second).await?], Vec::new());
    let (begun, mut frozen_for) = (Instant::now(), Duration::ZERO);
    for image in &images {
        get(
            mirror.address,
            &format!("/v2/{REPOSITORY}/manifests/{}", image.manifest_digest),
        )
        .await?;
    }
    let convert_seconds = loop {
        if begun.elapsed() > SETTLE_TIMEOUT {
            return Err(PlaygroundError::unexpected("convert the images", "it takes too long"));
        }
        let was_ready = ready(mirror.address, &images).await?;
        let sample = cell(&mirror).await?;
        let is_ready = ready(mirror.address, &images).await?;
        let converted_for = begun.elapsed() - frozen_for;
        // A short run may end within its first cell, which is then better than none.
        if !is_ready || (beside.is_empty() && !was_ready) {
            beside.push(sample);
            let (frozen, since) = (Frozen::new(mirror.process.pid())?, Instant::now());
            solo.push(cell(&second).await?);
            drop(frozen);
            frozen_for += since.elapsed();
        }
        if is_ready {
            break converted_for.as_secs_f64();
        }
    };
    let peak_bytes = peak.end();
    let again = get(mirror.address, &asked.path).await?;
    if BlobDigest::of(&again) != blob {
        return Err(PlaygroundError::unexpected("pull the blob again", "it has other bytes"));
    }
    mirror.process.stop();
    second.process.stop();
    let errors = before
        .iter()
        .flatten()
        .chain(&solo)
        .chain(&beside)
        .find_map(|sample: &Sample| sample.first_error.clone());
    if let Some(error) = errors {
        return Err(PlaygroundError::unexpected("pull the blob", error));
    }
    Ok(Report {
        images: config.images,
        layers: config.images * config.layers,
        layer_bytes: (config.images * config.layers * config.layer_bytes) as u64,
        before,
        solo,
        beside,
        convert_seconds,
        idle_bytes,
        peak_bytes,
        memory_bytes_max: config.memory_bytes_max,
    })
}

async fn start(work: &WorkDir, name: &str, config: &BusyConfig, origin: &Origin) -> Result<peers::Peer> {
    if !config.headstart.is_file() {
        return Err(PlaygroundError::BinaryMissing(config.headstart.clone()));
    }
    let address = ports::free()?;
    let data_dir = toml::Value::from(work.dir(format!("{name}.data"))?.to_string_lossy().into_owned());
    let text = format!(
        "listen = \"{address}\"\ndata_dir = {data_dir}\ndefault_upstream = \"bench.test\"\n\
         [ingest]\n{}\n[log]\nfilter = \"warn\"\n\
         [[upstreams]]\nname = \"bench.test\"\nurl = \"{}\"\n",
        config.ingest,
        origin.url()
    );
    let mut command = Command::new(&config.headstart);
    command.arg("--config").arg(work.write(format!("{name}.toml"), &text)?);
    peers::spawn(work, name.into(), command, address, routes::READYZ).await
}

/// Text in files small and large, as programs are.
fn layer(seed: u64, bytes: usize) -> SyntheticLayer {
    let mut rng = Rng::new(seed);
    let mut layer = LayerBuilder::new(Dialect::Pax);
    let large = bytes / LARGE_SHARE;
    layer.file(format!("large-{seed}"), Meta::mode(0o644), rng.text(large));
    let mut left = bytes - large;
    for i in 0.. {
        let len = (1 + rng.below(SMALL_FILE) as usize).min(left);
        if len == 0 {
            break;
        }
        layer.file(format!("small-{seed}-{i}"), Meta::mode(0o644), rng.text(len));
        left -= len;
    }
    layer.finish(Compression::Gzip)
}

async fn get(address: SocketAddr, path: &str) -> Result<Bytes> {
    let what = format!("get {path}");
    let failed = |e: reqwest::Error| PlaygroundError::unexpected(what.clone(), e);
    let client = reqwest::Client::builder().no_proxy().build().map_err(failed)?;
    let answer = client.get(format!("http://{address}{path}")).send().await;
    let answer = answer.and_then(reqwest::Response::error_for_status).map_err(failed)?;
    answer.bytes().await.map_err(failed)
}

/// Whether every layer is; one that never will be is an error.
async fn ready(mirror: SocketAddr, images: &[SyntheticImage]) -> Result<bool> {
    let what = "read the state of an image";
    for image in images {
        let status = get(mirror, &routes::image(&image.manifest_digest)).await?;
        let status: ImageStatus = serde_json::from_slice(&status).map_err(|e| PlaygroundError::unexpected(what, e))?;
        for layer in status.layers {
            match layer.state {
                LayerState::Ready => {}
                LayerState::Refused | LayerState::Failed => {
                    let reason = layer.reason.unwrap_or_default();
                    return Err(PlaygroundError::unexpected("convert a layer", reason));
                }
                _ => return Ok(false),
            }
        }
    }
    Ok(true)
}

/// The most memory that was in use at a look.
struct Peak {
    bytes: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Peak {
    fn watch(pids: Vec<u32>) -> Self {
        let (bytes, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (bytes, ended) = (Arc::clone(&bytes), Arc::clone(&ended));
            move || {
                while !ended.load(Ordering::Relaxed) {
                    bytes.fetch_max(usage::memory(&pids), Ordering::Relaxed);
                    std::thread::sleep(LOOK);
                }
            }
        });
        Self { bytes, ended, thread }
    }

    fn end(self) -> u64 {
        self.ended.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
        self.bytes.load(Ordering::Relaxed)
    }
}

/// A process that is stopped, and goes on when this is dropped.
struct Frozen(Pid);

impl Frozen {
    fn new(pid: u32) -> Result<Self> {
        let unknown = || PlaygroundError::unexpected("freeze the mirror", "it has no process");
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(unknown)?;
        kill_process(pid, Signal::STOP).map_err(|error| PlaygroundError::unexpected("freeze the mirror", error))?;
        Ok(Self(pid))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // It has been there all the time.
        let _ = kill_process(self.0, Signal::CONT);
    }
}

fn rate(sample: &Sample) -> f64 {
    sample.bytes as f64 / sample.seconds / 1e6
}

impl Report {
    /// Throughput of pulls beside conversions, by that of pulls alone just before and after.
    pub fn kept(&self) -> f64 {
        let around = self.solo.iter().zip(self.solo.iter().skip(1));
        median(
            around
                .zip(&self.beside)
                .map(|((a, b), beside)| rate(beside) * 2.0 / (rate(a) + rate(b))),
        )
    }

    /// Throughput of the mirror that will convert, by that of the other, while neither does.
    pub fn likeness(&self) -> f64 {
        median(self.before.iter().map(|[second, mirror]| rate(mirror) / rate(second)))
    }

    /// What the conversions added.
    pub fn memory_bytes(&self) -> u64 {
        self.peak_bytes.saturating_sub(self.idle_bytes)
    }

    pub fn is_within_memory(&self) -> bool {
        self.memory_bytes() <= self.memory_bytes_max
    }

    pub fn table(&self) -> String {
        let mut table = plain_table(&["pulls", "cells", "MB/s", "p50 ms", "p99 ms", "server CPU s/s"]);
        for (name, samples) in [("alone", &self.solo), ("beside conversions", &self.beside)] {
            let of = |f: fn(&Sample) -> Option<f64>| number(median(samples.iter().filter_map(f)));
            table.add_row([
                name.to_owned(),
                samples.len().to_string(),
                number(median(samples.iter().map(rate))),
                of(|s| s.p50_ms),
                of(|s| s.p99_ms),
                of(|s| Some(s.cpu_seconds / s.seconds)),
            ]);
        }
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        format!(
            "{} images, {} layers, {:.0} MiB unpacked, converted in {:.1} s.\n{table}\n\
             Pulls keep {:.0} % of their throughput (before conversions: {:.0} %). Memory: {:.0} MiB idle, {:.0} MiB more at most (bound: {:.0} MiB).\n",
            self.images,
            self.layers,
            mib(self.layer_bytes),
            self.convert_seconds,
            100.0 * self.kept(),
            100.0 * self.likeness(),
            mib(self.idle_bytes),
            mib(self.memory_bytes()),
            mib(self.memory_bytes_max),
        )
    }
}
