//! `convert`: layer blobs from files into a store, without a server.
//!
//! In: files. Out: what each conversion took, and what became of the layer. Invariant: the conversion is the server's own,
//! digests verified and everything synced; without `--data-dir` the store is a temporary one and goes with the process.
//! Not here: the conversion (`ingest`), originals and manifests: a server whose store this was fetches those itself.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use headstart_layer_format::BlobDigest;
use serde::Serialize;

use super::{CliError, local::LocalBlob, show, usage};
use crate::{
    config::Config,
    ingest::{ConvertError, Failure, Ingest, Progress, Rank, Refusal},
    store::{LayerRecord, Store, refusal::Allowance},
};

/// Converts layer blobs from files, without a server: to measure, or to prepare a store.
///
/// Prints what each took. FILE is a layer as a registry has it (gzip, zstd or plain tar), for instance below blobs/sha256 of
/// an OCI layout. The server that uses DIR must be stopped; afterwards it has the layers ready.
#[derive(Debug, Args)]
pub struct Arguments {
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Keeps what is converted in this data directory. Left out: a temporary store, for the figures alone.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Layers at the same time (the server's default is 4). With 1, memory is told for each layer.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: u8,
    /// Above ingest.zstd_level.
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-7..=22))]
    zstd_level: Option<i32>,
    /// Above ingest.compress_threads.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    compress_threads: Option<u8>,
    #[arg(long)]
    json: bool,
    /// A server's configuration, for its [ingest] and pack size.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    layers: Vec<Layer>,
    total: Total,
}

#[derive(Clone, Debug, Serialize)]
struct Layer {
    file: PathBuf,
    digest: BlobDigest,
    state: State,
    /// Why it is refused or failed.
    reason: Option<String>,
    wall_ms: u64,
    cpu_ms: u64,
    /// Of the whole process meanwhile; only where one layer is converted at a time.
    peak_rss_bytes: Option<u64>,
    compressed_bytes: u64,
    tar_bytes: u64,
    /// Of bodies, padded.
    data_bytes: u64,
    chunk_count: u64,
    new_chunk_bytes: u64,
    reused_chunk_bytes: u64,
    /// Frames of the new chunks.
    stored_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Ready,
    /// The store had it.
    Already,
    Refused,
    Failed,
}

/// From the first layer's begin to the last one's end, index flushed.
#[derive(Debug, Serialize)]
struct Total {
    wall_ms: u64,
    /// Of the process.
    cpu_ms: u64,
    peak_rss_bytes: Option<u64>,
    compressed_bytes: u64,
    tar_bytes: u64,
    new_chunk_bytes: u64,
    reused_chunk_bytes: u64,
    /// By which the packs grew: frames, TOCs, heads of records.
    stored_bytes: u64,
}

pub async fn run(arguments: Arguments, above: Option<&Path>) -> Result<(), CliError> {
    let config = Config::load(arguments.config.as_deref().or(above))?;
    let json = arguments.json;
    let stop = Arc::new(Stop::default());
    let mut work = tokio::task::spawn_blocking({
        let stop = Arc::clone(&stop);
        move || convert_all(&arguments, config, &stop)
    });
    let report = tokio::select! {
        report = &mut work => report??,
        _ = tokio::signal::ctrl_c() => {
            stop.stop();
            // The temporary store goes when it has ended.
            let _ = work.await?;
            return Err(CliError::Interrupted);
        }
    };
    match json {
        true => show::json(&report)?,
        false => print(&report)?,
    }
    let bad = |layer: &&Layer| matches!(layer.state, State::Refused | State::Failed);
    let (failed, count) = (report.layers.iter().filter(bad).count(), report.layers.len());
    if failed > 0 {
        return Err(CliError::NotConverted { failed, count });
    }
    Ok(())
}

/// Reaches conversions that run, and those that are about to.
#[derive(Debug, Default)]
struct Stop {
    stopping: AtomicBool,
    running: Mutex<Vec<Progress>>,
}

impl Stop {
    fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.iter().for_each(|progress| progress.cancel());
    }

    fn begin(&self, time_max: Duration) -> Progress {
        let progress = Progress::new(time_max);
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|one| !one.is_last());
        running.push(progress.clone());
        if self.stopping.load(Ordering::SeqCst) {
            progress.cancel();
        }
        progress
    }
}

fn convert_all(arguments: &Arguments, config: Config, stop: &Stop) -> Result<Report, CliError> {
    let mut ingest = config.ingest.clone();
    ingest.zstd_level = arguments.zstd_level.unwrap_or(ingest.zstd_level);
    ingest.compress_threads = arguments.compress_threads.map_or(ingest.compress_threads, usize::from);
    let mut blobs: Vec<LocalBlob> = Vec::new();
    let mut seen = HashSet::new();
    for file in &arguments.files {
        let blob = LocalBlob::of(file)?;
        // Images repeat their empty layer.
        if seen.insert(blob.digest) {
            blobs.push(blob);
        }
    }
    let temporary = match &arguments.data_dir {
        Some(_) => None,
        None => Some(tempfile::tempdir().map_err(|error| CliError::File {
            what: "make a directory in",
            path: std::env::temp_dir(),
            error,
        })?),
    };
    let dir = arguments.data_dir.as_deref().or(temporary.as_ref().map(|t| t.path()));
    let dir = dir.unwrap_or(Path::new(""));
    let error = |error| CliError::File {
        what: "use the data directory",
        path: dir.to_owned(),
        error,
    };
    std::fs::create_dir_all(dir).map_err(error)?;
    let budgets = config.cache.budgets(dir).map_err(error)?;
    let store = Store::open_with(dir, budgets.pack_size_max())?;

    let allowance = ingest.allowance(budgets.chunks_bytes_max);
    let ingest = Ingest::start(&ingest, |_| {}).map_err(|error| CliError::Threads { error })?;
    let (packs, cpu, started) = (store.pack_bytes(), usage::cpu(), Instant::now());
    let peak = AtomicU64::new(0);
    let next = AtomicUsize::new(0);
    let done: Vec<OnceLock<Layer>> = blobs.iter().map(|_| OnceLock::new()).collect();
    let alone = arguments.jobs == 1;
    usage::forget_peak();
    std::thread::scope(|scope| {
        for _ in 0..usize::from(arguments.jobs).min(blobs.len()) {
            scope.spawn(|| {
                while let Some(blob) = blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if alone {
                        peak.fetch_max(usage::peak_rss().unwrap_or(0), Ordering::Relaxed);
                        usage::forget_peak();
                    }
                    let progress = stop.begin(Duration::from_millis(allowance.time_max_ms));
                    let mut layer = convert_one(blob, &store, &ingest, &progress, &allowance);
                    layer.peak_rss_bytes = usage::peak_rss().filter(|_| alone);
                    let at = blobs.iter().position(|b| b.digest == blob.digest);
                    if let Some(slot) = at.and_then(|at| done.get(at)) {
                        let _ = slot.set(layer);
                    }
                }
            });
        }
    });
    store.flush()?;
    let (wall, cpu) = (started.elapsed(), usage::cpu().saturating_sub(cpu));
    let layers: Vec<Layer> = done.into_iter().filter_map(OnceLock::into_inner).collect();
    let sum = |of: fn(&Layer) -> u64| layers.iter().map(of).sum();
    let total = Total {
        wall_ms: millis(wall),
        cpu_ms: millis(cpu),
        peak_rss_bytes: usage::peak_rss().map(|now| now.max(peak.into_inner())),
        compressed_bytes: sum(|l| l.compressed_bytes),
        tar_bytes: sum(|l| l.tar_bytes),
        new_chunk_bytes: sum(|l| l.new_chunk_bytes),
        reused_chunk_bytes: sum(|l| l.reused_chunk_bytes),
        stored_bytes: store.pack_bytes().saturating_sub(packs),
    };
    Ok(Report { layers, total })
}

fn convert_one(blob: &LocalBlob, store: &Store, ingest: &Ingest, progress: &Progress, allowance: &Allowance) -> Layer {
    let started = Instant::now();
    let settled = store.layer(&blob.digest);
    let (state, reason, made) = match settled.map(|found| found.filter(|record| record.is_settled(allowance))) {
        Ok(Some(LayerRecord::Ready { .. })) => (State::Already, None, None),
        Ok(Some(LayerRecord::Refused { reason, .. })) => (State::Refused, Some(reason), None),
        Ok(_) => match blob.open() {
            Ok(file) => match ingest.convert(file, &blob.digest, store, Rank::default(), progress) {
                Ok(toc) => (State::Ready, None, Some(toc)),
                Err(error) => {
                    let error = match error {
                        // There is no upstream that could be slow.
                        ConvertError::Failed(Failure::TimedOut) => {
                            let time_max_ms = allowance.time_max_ms;
                            Refusal::OverTime { time_max_ms }.into()
                        }
                        error => error,
                    };
                    match error {
                        ConvertError::Refused(refusal) => match refusal.record(store, &blob.digest, allowance) {
                            Ok(reason) => (State::Refused, Some(reason), None),
                            Err(error) => (State::Failed, Some(error.to_string()), None),
                        },
                        ConvertError::Failed(failed) => (State::Failed, Some(failed.to_string()), None),
                    }
                }
            },
            Err(error) => (State::Failed, Some(error.to_string()), None),
        },
        Err(error) => (State::Failed, Some(error.to_string()), None),
    };
    let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
    Layer {
        file: blob.path.clone(),
        digest: blob.digest,
        state,
        reason,
        wall_ms: millis(started.elapsed()),
        cpu_ms: millis(progress.cpu()),
        peak_rss_bytes: None,
        compressed_bytes: read(&progress.compressed),
        tar_bytes: read(&progress.tar),
        data_bytes: made.as_ref().map_or(0, |toc| toc.data_size),
        chunk_count: made.as_ref().map_or(0, |toc| toc.chunk_count),
        new_chunk_bytes: read(&progress.new_chunks),
        reused_chunk_bytes: read(&progress.reused_chunks),
        stored_bytes: read(&progress.new_frames),
    }
}

fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}

fn print(report: &Report) -> Result<(), CliError> {
    let mut table = show::table(&[
        "LAYER", "STATE", "WALL", "CPU", "MEMORY", "BLOB", "TAR", "CHUNKS", "NEW", "REUSED", "STORED",
    ]);
    let seconds = |ms: u64| format!("{:.2} s", ms as f64 / 1000.0);
    let memory = |bytes: Option<u64>| bytes.map_or(String::new(), show::size);
    for layer in &report.layers {
        table.add_row([
            show::short(&layer.digest.to_string()),
            format!("{:?}", layer.state).to_lowercase(),
            seconds(layer.wall_ms),
            seconds(layer.cpu_ms),
            memory(layer.peak_rss_bytes),
            show::size(layer.compressed_bytes),
            show::size(layer.tar_bytes),
            layer.chunk_count.to_string(),
            show::size(layer.new_chunk_bytes),
            show::size(layer.reused_chunk_bytes),
            show::size(layer.stored_bytes),
        ]);
    }
    let total = &report.total;
    table.add_row([
        "in all".into(),
        String::new(),
        seconds(total.wall_ms),
        seconds(total.cpu_ms),
        memory(total.peak_rss_bytes),
        show::size(total.compressed_bytes),
        show::size(total.tar_bytes),
        report.layers.iter().map(|l| l.chunk_count).sum::<u64>().to_string(),
        show::size(total.new_chunk_bytes),
        show::size(total.reused_chunk_bytes),
        show::size(total.stored_bytes),
    ]);
    show::line(&table.to_string())?;
    for layer in &report.layers {
        if let Some(reason) = &layer.reason {
            eprintln!("{}: {reason}", layer.file.display());
        }
    }
    Ok(())
}
