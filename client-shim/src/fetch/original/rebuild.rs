//! One layer's last resort: its original blob, from any host that containerd would ask.
//!
//! In: a layer that somebody waits for, and the sources known of it. Out: chunks in the layer's sink, and a [`Watch`] that
//! tells each time some have landed. Invariant: at most one rebuild of a layer at a time and a few on the node; one that
//! failed is not tried again at once; every wait on a host has an end.
//! Not here: when it comes to this (`fetch/run.rs`).

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use headstart_layer_format::BlobDigest;
use reqwest::Response;
use tokio::sync::{Semaphore, watch};

use super::config::OriginalConfig;
use super::credentials;
use super::download::Download;
use super::hosts_file::{self, Host};
use super::inflate::inflate;
use super::refill::{RefillError, refill};
use super::registry::Registry;
use super::source::BlobSource;
use crate::contents::Contents;
use crate::counters::Counters;
use crate::fetch::config::FetchConfig;
use crate::fetch::verify::ChunkSink;

/// Pause after a rebuild that failed; doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_secs(5);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Repositories remembered for one layer: images share layers, and one that still exists is enough.
pub const SOURCES_MAX: usize = 8;

/// What the node's rebuilds share.
#[derive(Debug)]
pub struct Originals {
    config: OriginalConfig,
    fetch: FetchConfig,
    turns: Arc<Semaphore>,
}

impl Originals {
    pub fn new(config: &OriginalConfig, fetch: &FetchConfig) -> Self {
        Self {
            config: config.clone(),
            fetch: fetch.clone(),
            turns: Arc::new(Semaphore::new(config.parallel_max.clamp(1, Semaphore::MAX_PERMITS))),
        }
    }

    pub(crate) fn config(&self) -> &OriginalConfig {
        &self.config
    }
}

/// Where a layer's original may be had. Shared by the cache, which keeps it, and the fetcher.
#[derive(Debug, Default)]
pub struct Sources(Mutex<Vec<BlobSource>>);

impl Sources {
    pub fn new(mut sources: Vec<BlobSource>) -> Self {
        sources.truncate(SOURCES_MAX);
        Self(Mutex::new(sources))
    }

    /// Puts a source first. `None` when it is there already.
    pub fn learn(&self, source: BlobSource) -> Option<Vec<BlobSource>> {
        let mut all = self.lock();
        if all.contains(&source) {
            return None;
        }
        all.insert(0, source);
        all.truncate(SOURCES_MAX);
        Some(all.clone())
    }

    pub fn all(&self) -> Vec<BlobSource> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<BlobSource>> {
        self.0.lock().unwrap_or_else(|p| p.into_inner())
    }
}

/// Counts chunks that landed; closed when the rebuild has ended.
pub(crate) type Watch = watch::Receiver<u64>;

/// The rebuilds of one layer.
#[derive(Debug)]
pub(crate) struct Rebuilds {
    originals: Arc<Originals>,
    sources: Arc<Sources>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: Option<Watch>,
    failures: u32,
    not_before: Option<Instant>,
}

/// What a rebuild works on.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) layer: BlobDigest,
    pub(crate) contents: Arc<Contents>,
    pub(crate) sink: Arc<dyn ChunkSink>,
    pub(crate) counters: Arc<Counters>,
}

impl Rebuilds {
    pub(crate) fn new(originals: Arc<Originals>, sources: Arc<Sources>) -> Arc<Self> {
        Arc::new(Self {
            originals,
            sources,
            state: Mutex::default(),
        })
    }

    pub(crate) fn config(&self) -> &OriginalConfig {
        self.originals.config()
    }

    /// Whether there is any hope in one, now.
    pub(crate) fn is_possible(&self) -> bool {
        let state = self.lock();
        let is_running = state.running.as_ref().is_some_and(is_open);
        let is_due = state.not_before.is_none_or(|at| at <= Instant::now());
        self.config().enabled && (is_running || is_due) && !self.sources.lock().is_empty()
    }

    /// Joins the rebuild under way, or starts one. `None`: there is no hope in it now.
    pub(crate) fn start(self: &Arc<Self>, work: Work) -> Option<Watch> {
        if !self.is_possible() {
            return None;
        }
        let mut state = self.lock();
        if let Some(running) = state.running.as_ref().filter(|w| is_open(w)) {
            return Some(running.clone());
        }
        let (progress, watch) = watch::channel(0);
        state.running = Some(watch.clone());
        drop(state);
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let started = Instant::now();
            let ok = this.rebuild(&work, &progress).await;
            work.counters.original_rebuilds.add(1);
            if !ok {
                work.counters.original_failures.add(1);
            }
            this.note(ok);
            tracing::warn!(layer = %work.layer, ok, took_ms = started.elapsed().as_millis() as u64, "original-rebuild-ended");
            // Closed after the note, so that whoever sees the end also sees what came of it.
            drop(progress);
        });
        Some(watch)
    }

    fn note(&self, ok: bool) {
        let mut state = self.lock();
        if ok {
            *state = State::default();
            return;
        }
        let pause = PAUSE.saturating_mul(1 << state.failures.min(8)).min(PAUSE_MAX);
        state.failures = state.failures.saturating_add(1);
        state.not_before = Some(Instant::now() + pause);
    }

    /// Tries every host of every source until nothing is missing.
    async fn rebuild(&self, work: &Work, progress: &watch::Sender<u64>) -> bool {
        let Ok(_turn) = Arc::clone(&self.originals.turns).acquire_owned().await else {
            return false;
        };
        tracing::warn!(layer = %work.layer, "original-rebuild-started");
        for source in self.sources.all() {
            let (dir, name) = (self.config().hosts_dir.clone(), source.registry().to_owned());
            let hosts = tokio::task::spawn_blocking(move || hosts_file::hosts(&dir, &name)).await;
            for host in hosts.unwrap_or_default() {
                match self.fetch_from(work, &source, &host, progress).await {
                    Ok(()) => return true,
                    Err(error) => {
                        let (host, repository) = (host.base.as_str(), source.repository());
                        tracing::warn!(layer = %work.layer, host, repository, error, "original-host-failed");
                    }
                }
                if is_whole(work) {
                    return true;
                }
            }
        }
        false
    }

    async fn fetch_from(
        &self,
        work: &Work,
        source: &BlobSource,
        host: &Host,
        progress: &watch::Sender<u64>,
    ) -> Result<(), String> {
        let response = self.ask(work, source, host).await?;
        let idle = self.originals.fetch.idle_timeout();
        let (mut download, feed) = Download::new(response, idle, Arc::clone(&work.counters));
        let (work, progress) = (work.clone(), progress.clone());
        let refilled = tokio::task::spawn_blocking(move || {
            let tar = inflate(&mut download).map_err(RefillError::Read)?;
            let toc = work.contents.toc().map_err(RefillError::Toc)?;
            refill(&toc, tar, &*work.sink, || progress.send_modify(|n| *n += 1))
        });
        // The feed ends with the download, which the other side drops.
        let (refilled, ()) = tokio::join!(refilled, feed);
        match refilled {
            Ok(result) => result.map_err(|e| e.to_string()),
            Err(_) => Err("the original broke its decoder".into()),
        }
    }

    async fn ask(&self, work: &Work, source: &BlobSource, host: &Host) -> Result<Response, String> {
        let (file, name) = (self.config().credentials_file.clone(), source.registry().to_owned());
        let (host, fetch) = (host.clone(), self.originals.fetch.clone());
        let prepared = tokio::task::spawn_blocking(move || {
            let credentials = file.and_then(|file| credentials::find(&file, &name));
            Registry::new(host, &fetch).map(|registry| (registry, credentials))
        });
        let prepared = prepared.await.map_err(|e| e.to_string())?;
        let (registry, credentials) = prepared.map_err(|e| e.to_string())?;
        let response = registry.blob(source, &work.layer, credentials.as_ref()).await;
        response.map_err(|e| e.to_string())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|p| p.into_inner())
    }
}

fn is_whole(work: &Work) -> bool {
    (0..work.contents.chunks().len()).all(|i| work.sink.has(i))
}

fn is_open(watch: &Watch) -> bool {
    watch.has_changed().is_ok()
}
