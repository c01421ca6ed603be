//! Images that start on this node.
//!
//! In: images as they are prepared, containers as they are created, layers as they go. Out: prefetches and recordings, in
//! the background. Invariant: nobody waits for anything here; an image has at most one prefetch and one recording at a time;
//! the latest [`IMAGES_MAX`] images are remembered; all of it ends with the node, and an image's part with its layers.
//! Not here: one prefetch (`profile/stream.rs`), one trace (`profile/trace.rs`).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use headstart_layer_format::api::ImageStatus;
use headstart_layer_format::profile::Profile;
use headstart_layer_format::{BlobDigest, TocDigest};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::config::PrefetchConfig;
use super::explore::Explorer;
use super::recording::{Note, Recording};
use super::state::{ImagePrefetch, Progress, State, Telling};
use super::{stream, trace};
use crate::cache::{Foreseen, Layer};
use crate::counters::Counters;
use crate::fetch::Servers;
use crate::layers::NodeLayers;
use crate::telemetry::Cause;

/// Images remembered.
const IMAGES_MAX: usize = 64;
/// How long a prefetch waits for the image's layers to be shown.
const LAYERS_WAIT: Duration = Duration::from_secs(60);
/// A container usually follows a pull within this.
const CONTAINER_SOON: Duration = Duration::from_secs(10);
/// Chunks being received or checked at once, on the node: memory of some 8 MiB each at the most.
const TURNS: usize = 4;
/// How long readers may hold up a trace on its way.
const PATIENCE: Duration = Duration::from_secs(5);

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Starts(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: PrefetchConfig,
    servers: Servers,
    layers: NodeLayers,
    counters: Arc<Counters>,
    runtime: Handle,
    turns: Arc<Semaphore>,
    ahead: Arc<Semaphore>,
    line: Arc<Semaphore>,
    /// The latest last.
    images: Mutex<VecDeque<Arc<Image>>>,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Image {
    manifest: BlobDigest,
    layers: Vec<BlobDigest>,
    state: Arc<State>,
    stop: CancellationToken,
    doing: Mutex<Doing>,
}

#[derive(Debug, Default)]
struct Doing {
    prefetching: bool,
    exploring: bool,
    recording: Option<Recorded>,
    told: Option<Instant>,
    /// As a server gave it last, with the TOCs that it counts in.
    profile: Option<Arc<(Profile, Vec<Option<TocDigest>>)>>,
}

/// Whose start is recorded, and what ends that before its time.
#[derive(Debug)]
struct Recorded {
    container: String,
    over: Arc<Notify>,
    recording: Arc<Recording>,
}

impl Image {
    fn now(&self) -> ImagePrefetch {
        let mut now = self.state.now();
        if now.first_read_unix_ms.is_none() {
            let doing = self.doing();
            now.first_read_unix_ms = doing.recording.as_ref().and_then(|r| r.recording.first_unix_ms());
        }
        now
    }

    fn doing(&self) -> MutexGuard<'_, Doing> {
        self.doing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Starts {
    /// Must be called on a runtime.
    pub fn new(config: &PrefetchConfig, servers: Servers, layers: NodeLayers) -> Self {
        Self(Arc::new(Inner {
            config: config.clone(),
            servers,
            counters: layers.counters(),
            runtime: Handle::current(),
            turns: Arc::new(Semaphore::new(TURNS)),
            ahead: Arc::new(Semaphore::new(1)),
            line: Arc::new(Semaphore::new(config.streams_max.max(1))),
            images: Mutex::default(),
            stop: layers.stopping(),
            layers,
        }))
    }

    /// An image whose layers are all ready is being prepared: what it will need begins to come.
    pub fn prepared(&self, status: &ImageStatus) {
        let digests = status.layers.iter().map(|l| l.digest).collect();
        let image = self.image(&status.manifest_digest, digests);
        {
            let mut doing = image.doing();
            if let Some(profile) = &status.profile {
                let tocs = status.layers.iter().map(|l| Some(l.toc.as_ref()?.digest)).collect();
                doing.profile = Some(Arc::new((profile.clone(), tocs)));
            }
            if std::mem::replace(&mut doing.prefetching, true) {
                return;
            }
        }
        let (starts, cause) = (self.clone(), Cause::here());
        self.0.runtime.spawn(async move {
            let end = starts.prefetch(&image, &cause).await;
            match end {
                Progress::Done => starts.0.counters.prefetches_done.add(1),
                Progress::Failed => starts.0.counters.prefetches_failed.add(1),
                Progress::Stopped | Progress::NoRoom => starts.0.counters.prefetches_stopped.add(1),
                _ => {}
            }
            image.state.change(|s| s.progress = end);
            let now = image.state.now();
            tracing::info!(
                image = %now.manifest, progress = ?now.progress, chunks = now.chunks, asked_bytes = now.asked_bytes,
                received_bytes = now.received_bytes, late_bytes = now.late_bytes, near_chunks = now.near_chunks, "prefetch"
            );
            image.doing().prefetching = false;
        });
    }

    async fn prefetch(&self, image: &Arc<Image>, cause: &Cause) -> Progress {
        let inner = &*self.0;
        image.state.change(|s| s.progress = Progress::Waiting);
        let work = async {
            let Some(layers) = self.shown(image).await else {
                return Progress::Stopped;
            };
            let soon = Instant::now() + CONTAINER_SOON;
            layers.iter().for_each(|layer| layer.recorder().expect(soon));
            if !inner.config.enabled {
                return Progress::Disabled;
            }
            let Some(known) = image.doing().profile.clone() else {
                self.explore(image, &layers);
                return Progress::NoProfile;
            };
            image.state.change(|s| {
                s.origin = Some(known.0.origin);
                s.starts = known.0.starts;
            });
            let Ok(_place) = inner.line.acquire().await else {
                return Progress::Stopped;
            };
            let work = stream::Work {
                manifest: image.manifest,
                profile: &known.0,
                tocs: &known.1,
                layers: &layers,
                config: &inner.config,
                servers: &inner.servers,
                counters: &inner.counters,
                turns: &inner.turns,
                ahead: &inner.ahead,
                state: &image.state,
                stop: &image.stop,
                cause,
            };
            let streamed = timeout(inner.config.time_max(), stream::run(&work)).await;
            streamed.unwrap_or(Progress::Stopped)
        };
        let ended = image.stop.run_until_cancelled(work).await;
        ended.unwrap_or(Progress::Stopped)
    }

    /// Nothing is known of what the image's start will read. If the servers are far, its reads say what may come next.
    fn explore(&self, image: &Arc<Image>, layers: &[Arc<Layer>]) {
        let inner = &*self.0;
        let pace = inner.servers.pace();
        let is_far = pace.round_trip().unwrap_or_default() >= inner.config.explore_rtt_min();
        if !inner.config.enabled || !inner.config.explore || !is_far || layers.iter().all(|l| l.file().is_full()) {
            return;
        }
        {
            let mut doing = image.doing();
            if doing.profile.is_some() || std::mem::replace(&mut doing.exploring, true) {
                return;
            }
        }
        let span = pace.span();
        let (starts, image, layers) = (self.clone(), Arc::clone(image), layers.to_vec());
        inner.runtime.spawn(async move {
            let config = &starts.0.config;
            let explorer = Explorer::new(&layers, span);
            let image_bytes = layers.iter().map(|l| l.contents().chunks().blob_size()).sum();
            let work = explorer.run(
                &layers,
                config.allowance(image_bytes),
                config.quiet(),
                &starts.0.counters,
            );
            let work = timeout(config.time_max(), work);
            if let Some(Ok(bytes)) = image.stop.run_until_cancelled(work).await {
                tracing::info!(image = %image.manifest, bytes, span, "explored");
            }
            image.doing().exploring = false;
        });
    }

    /// The image's layers, once all are known here.
    async fn shown(&self, image: &Image) -> Option<Vec<Arc<Layer>>> {
        let mut changes = self.0.layers.changes();
        let wait = async {
            loop {
                changes.borrow_and_update();
                if let Some(layers) = self.known(&image.layers) {
                    return Some(layers);
                }
                changes.changed().await.ok()?;
            }
        };
        timeout(LAYERS_WAIT, wait).await.ok().flatten()
    }

    fn known(&self, layers: &[BlobDigest]) -> Option<Vec<Arc<Layer>>> {
        layers.iter().map(|digest| self.0.layers.layer(digest)).collect()
    }

    /// A container is being created on all layers of an image (bottom first): what it reads from now on is its start.
    pub fn container(&self, container: &str, manifest: &BlobDigest, layers: &[BlobDigest]) {
        let image = self.image(manifest, layers.to_vec());
        let Some(layers) = self.known(layers) else { return };
        if image.state.now().progress == Progress::NoProfile {
            self.explore(&image, &layers);
        }
        self.ask_again(&image, &layers);
        self.foresee(&image, &layers);
        if !self.0.config.traces {
            return;
        }
        let (over, recording) = (Arc::new(Notify::new()), Arc::new(Recording::begin()));
        {
            let mut doing = image.doing();
            let interval = self.0.config.trace_interval();
            if doing.recording.is_some() || doing.told.is_some_and(|at| at.elapsed() < interval) {
                return;
            }
            doing.recording = Some(Recorded {
                container: container.to_owned(),
                over: Arc::clone(&over),
                recording: Arc::clone(&recording),
            });
            doing.told = Some(Instant::now());
        }
        // Reads of a layer that the kernel reads by itself, or that an earlier process showed, are not all seen.
        let unseen =
            |l: &Arc<Layer>| !l.contents().chunks().is_empty() && (l.recorder().is_blind() || l.file().is_lent());
        if layers.iter().any(unseen) {
            return self.told(&image, Telling::NothingToTell);
        }
        let before: Vec<Vec<u32>> = layers.iter().map(|l| l.recorder().touched()).collect();
        for (position, layer) in (0u32..).zip(&layers) {
            layer.recorder().listen(&recording, position);
        }
        image.state.change(|s| s.trace = Telling::Recording);
        let starts = self.clone();
        self.0.runtime.spawn(async move {
            let watch = starts.watch(&recording, &over);
            let ended = image.stop.run_until_cancelled(watch).await;
            for layer in &layers {
                layer.recorder().leave(&recording);
                layer.recorder().unexpect();
            }
            let telling = match ended {
                Some(()) => starts.tell(&image, layers, &before, recording.notes()).await,
                None => Telling::NothingToTell,
            };
            starts.told(&image, telling);
        });
    }

    /// What the start will read was fetched, by its profile: nobody guesses by its reads while it goes on.
    fn foresee(&self, image: &Image, layers: &[Arc<Layer>]) {
        let is_known = image.doing().profile.as_ref().is_some_and(|known| known.0.starts > 0);
        if !is_known || !self.0.config.enabled {
            return;
        }
        let foreseen: Vec<Foreseen> = layers.iter().map(|layer| layer.reader().foresee()).collect();
        let (stop, time) = (image.stop.clone(), self.0.config.trace_max());
        self.0.runtime.spawn(async move {
            stop.run_until_cancelled(sleep(time)).await;
            drop(foreseen);
        });
    }

    async fn watch(&self, recording: &Recording, over: &Notify) {
        let config = &self.0.config;
        let quiet = async {
            while let Some(remains) = recording.remains(config.quiet(), config.trace_max()) {
                sleep(remains).await;
            }
        };
        tokio::select! {
            () = quiet => {}
            () = over.notified() => {}
        }
    }

    /// A container goes: if its start was being recorded, that is over.
    pub fn over(&self, container: &str) {
        for image in self.images().iter() {
            if let Some(recorded) = image.doing().recording.as_ref().filter(|r| r.container == container) {
                recorded.over.notify_one();
            }
        }
    }

    fn told(&self, image: &Image, telling: Telling) {
        let counters = &self.0.counters;
        match telling {
            Telling::Posted => counters.traces_posted.add(1),
            Telling::Failed => counters.traces_failed.add(1),
            _ => counters.traces_unsure.add(1),
        }
        let mut doing = image.doing();
        let first = doing.recording.as_ref().and_then(|r| r.recording.first_unix_ms());
        image.state.change(|s| {
            s.trace = telling;
            s.first_read_unix_ms = s.first_read_unix_ms.or(first);
        });
        doing.recording = None;
    }

    async fn tell(&self, image: &Image, layers: Vec<Arc<Layer>>, before: &[Vec<u32>], notes: Vec<Note>) -> Telling {
        let inner = &*self.0;
        let known = image.doing().profile.clone();
        let hidden = before.iter().any(|touched| !touched.is_empty());
        let presumed = match &known {
            // Without one, what the page cache answered would be holes.
            None if hidden => return Telling::NothingToTell,
            None => Vec::new(),
            Some(known) => {
                let is_hidden = |at: &(u32, u32)| {
                    before
                        .get(at.0 as usize)
                        .is_some_and(|t| t.binary_search(&at.1).is_ok())
                };
                let is_noted = |at: &(u32, u32)| notes.iter().any(|n| (n.position, n.chunk) == *at);
                let hidden = known.0.positions().filter(is_hidden);
                hidden.filter(|at| !is_noted(at)).collect()
            }
        };
        inner.servers.demand().quiet(PATIENCE).await;
        let made = tokio::task::spawn_blocking(move || trace::make(&layers, &presumed, &notes)).await;
        let Ok(Some(trace)) = made else {
            return Telling::NothingToTell;
        };
        let posted = inner
            .stop
            .run_until_cancelled(inner.servers.post_trace(&image.manifest, &trace));
        match posted.await {
            Some(Ok(())) => {
                tracing::info!(image = %image.manifest, reads = trace.reads.len(), "trace-posted");
                Telling::Posted
            }
            Some(Err(error)) => {
                tracing::warn!(image = %image.manifest, %error, "trace-not-posted");
                Telling::Failed
            }
            None => Telling::Failed,
        }
    }

    /// A container on an image that was pulled long ago, or by another process: what it will need may not be here.
    fn ask_again(&self, image: &Arc<Image>, layers: &[Arc<Layer>]) {
        let is_asked = {
            let doing = image.doing();
            doing.prefetching || doing.profile.is_some() || image.state.now().progress != Progress::Waiting
        };
        if is_asked || !self.0.config.enabled || layers.iter().all(|l| l.file().is_full()) {
            return;
        }
        // Once: its progress is another from now on.
        image.state.change(|s| s.progress = Progress::NoProfile);
        let (starts, manifest) = (self.clone(), image.manifest);
        let stop = image.stop.clone();
        self.0.runtime.spawn(async move {
            let asked = stop.run_until_cancelled(starts.0.servers.image(&manifest, 0)).await;
            if let Some(Ok(Some(status))) = asked
                && status.is_ready()
            {
                starts.prepared(&status);
            }
        });
    }

    /// A layer goes, and what its images still wanted.
    pub fn gone(&self, layer: &BlobDigest) {
        self.images().retain(|image| {
            let goes = image.layers.contains(layer);
            if goes {
                image.stop.cancel();
            }
            !goes
        });
    }

    /// The latest first.
    pub fn status(&self) -> Vec<ImagePrefetch> {
        self.images().iter().rev().map(|image| image.now()).collect()
    }

    /// The image, remembered or new.
    fn image(&self, manifest: &BlobDigest, layers: Vec<BlobDigest>) -> Arc<Image> {
        let mut images = self.images();
        let at = images
            .iter()
            .position(|i| i.manifest == *manifest && i.layers == layers);
        let image = match at.and_then(|at| images.remove(at)) {
            Some(image) => image,
            None => Arc::new(Image {
                manifest: *manifest,
                layers,
                state: Arc::new(State::new(*manifest)),
                stop: self.0.stop.child_token(),
                doing: Mutex::default(),
            }),
        };
        images.push_back(Arc::clone(&image));
        while images.len() > IMAGES_MAX {
            images.pop_front();
        }
        image
    }

    fn images(&self) -> MutexGuard<'_, VecDeque<Arc<Image>>> {
        self.0.images.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
