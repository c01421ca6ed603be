//! The rounds: every image, every way, from cold.
//!
//! In: a [`Rig`], a [`Plan`]. Out: a [`Report`].
//! Invariant: in one round each way is measured once for each image, in [`Way`]'s order; a proxy is shared only by ways whose
//! names say that it is warm. A start that fails is recorded and the round goes on.
//! Not here: what a start is ([`crate::playground::measure`]).

use std::{
    collections::HashSet,
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use headstart_layer_format::{ChunkDigest, Toc, routes};

use super::{
    load::{self, Clocks, Machine},
    report::{Failure, ImageFigures, Report, Sample},
    rig::{Case, Rig},
    rivals,
    timeline::{self, Watch},
    way::Way,
};
use crate::playground::{
    PlaygroundError, Result,
    lab::{ImageFacts, Lab, RelayedProxy},
    measure, mounts,
    node::{Node, Pulls},
    progress::Progress,
    shim::Shim,
    workdir,
};
use crate::rivals::{Background, Rivals};

/// What shim and server may take to make a profile of a start.
const PROFILE_WAIT: Duration = Duration::from_secs(20);
const CONVERSION_WAIT: Duration = Duration::from_secs(600);

/// What is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    pub rounds: usize,
    pub ways: Vec<Way>,
    /// Also pull and read every file, on further nodes.
    pub full_read: bool,
    /// Record what happened when.
    pub timelines: bool,
    /// What `scripts/bench-peers.sh` made, for the ways of others.
    pub peers: PathBuf,
}

pub async fn run(rig: &Rig, plan: &Plan, progress: &Progress) -> Result<Report> {
    let mut report = Report {
        machine: Machine::this(),
        links: rig.lab.links,
        rounds: plan.rounds,
        page_cache_dropped: measure::drop_page_cache(),
        images: rig.cases.iter().map(figures).collect(),
        ..Report::default()
    };
    report.absent = rivals::absent(&plan.ways, &plan.peers);
    let rivals = match rivals::start(&rig.lab, &plan.ways, &plan.peers).await {
        Ok(rivals) => rivals,
        Err(error) => {
            let asked = plan.ways.iter().filter(|w| Way::RIVALS.contains(w));
            report.absent = asked.map(|way| (*way, error.to_string())).collect();
            None
        }
    };
    for round in 1..=plan.rounds {
        for (number, case) in rig.cases.iter().enumerate() {
            let mut one = One {
                lab: &rig.lab,
                plan,
                rivals: rivals.as_ref(),
                case,
                round,
                tag: format!("{round}i{number}w"),
                made: Mutex::default(),
                progress,
                report: &mut report,
            };
            one.ordinary().await;
            one.cold().await;
            one.others().await;
            one.clear();
        }
    }
    report.keep_one_timeline_each();
    Ok(report)
}

fn figures(case: &Case) -> ImageFigures {
    let image = &case.subject.image;
    ImageFigures {
        name: case.name.clone(),
        reference: image.reference(),
        ready: case.subject.ready.title(),
        layers: image.layers.len(),
        compressed_bytes: image.compressed_bytes(),
        ..ImageFigures::default()
    }
}

/// One image in one round.
struct One<'a> {
    lab: &'a Lab,
    plan: &'a Plan,
    rivals: Option<&'a Rivals>,
    case: &'a Case,
    round: usize,
    /// Of the names of its nodes and proxies, which become paths of sockets, so it is short.
    tag: String,
    /// Directories of those that are over.
    made: Mutex<Vec<String>>,
    progress: &'a Progress,
    report: &'a mut Report,
}

impl One<'_> {
    fn wants(&self, ways: &[Way]) -> bool {
        ways.iter().any(|w| self.plan.ways.contains(w))
    }

    fn step(&self, way: Way) {
        let (round, rounds) = (self.round, self.plan.rounds);
        let (name, title) = (&self.case.name, way.title());
        self.progress
            .step(format!("round {round} of {rounds}: {name}: {title}"));
    }

    fn failed(&mut self, way: Way, error: PlaygroundError) {
        self.progress
            .say(format!("{}, {}: failed to {error}", self.case.name, way.title()));
        self.report.errors.push(Failure {
            image: self.case.name.clone(),
            way,
            round: self.round,
            why: error.to_string(),
        });
    }

    /// Nodes and proxies that are gone leave their directories to the end; of many rounds that would be many unpacked images.
    fn clear(&mut self) {
        let made = std::mem::take(&mut *self.made.lock().unwrap_or_else(PoisonError::into_inner));
        for name in made {
            let of = |what: &str| format!("{name}{what}");
            for dir in [of(""), of("-shim.root"), of("-rival"), of(".data")] {
                let path = self.lab.work.path().join(dir);
                // A shim's directory is shared with mount namespaces.
                mounts::unshare(&path);
                if path.is_dir()
                    && let Err(error) = workdir::remove(&path)
                {
                    self.progress
                        .say(format!("left {} until the end: {error}", path.display()));
                }
            }
        }
    }

    /// A name that is cleared away in the end.
    fn name(&self, name: String) -> String {
        self.made
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(name.clone());
        name
    }

    /// What needs no proxy, or one that is warm in the end.
    async fn ordinary(&mut self) {
        if self.wants(&[Way::Upstream]) {
            let outcome = self.start(Way::Upstream, Pulls::Ordinary, None).await;
            self.note(Way::Upstream, outcome.map(drop));
        }
        let warm = [
            Way::MirrorWarm,
            Way::Local,
            Way::LocalCold,
            Way::LazyFirst,
            Way::LazySecond,
        ];
        if !self.wants(&[Way::MirrorCold]) && !self.wants(&warm) {
            return;
        }
        let proxy = match self.lab.proxy(&self.name(format!("p{}", self.tag))).await {
            Ok(proxy) => proxy,
            Err(error) => return self.failed(Way::MirrorCold, error),
        };
        if self.wants(&[Way::MirrorCold]) {
            let outcome = self.start(Way::MirrorCold, Pulls::Ordinary, Some(&proxy)).await;
            self.note(Way::MirrorCold, outcome.map(drop));
        }
        if self.wants(&warm) {
            let outcome = self.warm(&proxy).await;
            self.note(Way::MirrorWarm, outcome);
        }
    }

    fn note(&mut self, way: Way, outcome: Result<()>) {
        if let Err(error) = outcome {
            self.failed(way, error);
        }
    }

    async fn warm(&mut self, proxy: &RelayedProxy) -> Result<()> {
        self.progress
            .step(format!("{}: waiting until the proxy has it", self.case.name));
        converted(self.lab, proxy, &self.case.subject.image).await?;
        if let Some(before) = &self.case.before {
            converted(self.lab, proxy, &before.image).await?;
            let new = new_chunk_bytes(proxy, &self.case.subject.image, &before.image).await?;
            if let Some(figures) = self.report.images.iter_mut().find(|i| i.name == self.case.name) {
                figures.new_chunk_bytes = Some(new);
            }
        }
        if self.wants(&[Way::MirrorWarm, Way::Local, Way::LocalCold]) {
            let node = self.start(Way::MirrorWarm, Pulls::Ordinary, Some(proxy)).await?;
            for way in [Way::Local, Way::LocalCold] {
                if self.wants(&[way]) {
                    let outcome = self.local(way, &node, proxy).await;
                    self.note(way, outcome);
                }
            }
        }
        for way in [Way::LazyFirst, Way::LazySecond] {
            // There is no second node without a first.
            if self.wants(&[way, Way::LazySecond]) {
                let outcome = self.start(way, Pulls::Lazy, Some(proxy)).await;
                // The shim tells the server what this start read; the next node is after that.
                if outcome.is_ok() && way == Way::LazyFirst && self.wants(&[Way::LazySecond]) {
                    profiled(proxy, &self.case.subject.image).await;
                }
                self.note(way, outcome.map(drop));
            }
        }
        Ok(())
    }

    /// Other lazy snapshotters; of images that need no other before them.
    async fn others(&mut self) {
        let Some(rivals) = self.rivals.filter(|_| self.case.before.is_none()) else {
            return;
        };
        for way in Way::RIVALS {
            let is_absent = self.report.absent.iter().any(|(absent, _)| *absent == way);
            if self.wants(&[way]) && !is_absent {
                let outcome = self.other(rivals, way).await;
                self.note(way, outcome);
            }
        }
    }

    async fn other(&mut self, rivals: &Rivals, way: Way) -> Result<()> {
        self.step(way);
        let Some(kind) = rivals::kind(way) else { return Ok(()) };
        let subject = rivals::subject(rivals, kind, &self.case.name, &self.case.subject).await?;
        let name = self.name(format!("node{}{}", self.tag, way as u8));
        let node = rivals.node(&self.lab.work, kind, &name, Background::On).await?;
        let (registry, link) = rivals.source(kind);
        let watch = match self.plan.timelines {
            true => Some(Watch::begin(&node, vec![(timeline::DIRECT, link.meter())])?),
            false => None,
        };
        let (clocks, load_average) = (Clocks::now(), load::average());
        let start = measure::start_from(self.lab, &node, None, (registry, link), &subject).await?;
        let cpu_busy = Clocks::now().busy_since(&clocks);
        let timeline = watched(watch, &start, node.shim.as_ref());
        let read_bytes = node.shim.as_ref().and_then(Shim::read_bytes);
        let second = subject.run(&node, "second").await?;
        self.report.samples.push(Sample {
            second_ms: Some(second.as_secs_f64() * 1000.0),
            read_bytes,
            load_average,
            cpu_busy,
            timeline,
            ..Sample::of(&self.case.name, way, self.round, &start)
        });
        Ok(())
    }

    async fn cold(&mut self) {
        if !self.wants(&[Way::LazyCold]) {
            return;
        }
        let outcome = self.lazy_cold().await;
        self.note(Way::LazyCold, outcome);
    }

    async fn lazy_cold(&mut self) -> Result<()> {
        let proxy = self.lab.proxy(&self.name(format!("q{}", self.tag))).await?;
        let node = self.start(Way::LazyCold, Pulls::Lazy, Some(&proxy)).await?;
        drop(node);
        let counters = proxy.proxy.counters().await?;
        let server = proxy.proxy.cpu().unwrap_or_default().as_secs_f64();
        if let Some(figures) = self.report.images.iter_mut().find(|i| i.name == self.case.name) {
            figures.ingest_cpu_s = Some(counters.sum("headstart_ingest_cpu_seconds_total", &[]));
            figures.server_cpu_s = Some(server);
        }
        Ok(())
    }

    /// A fresh node, a start, and another on the same node.
    async fn start(&mut self, way: Way, pulls: Pulls, proxy: Option<&RelayedProxy>) -> Result<Node> {
        self.step(way);
        let subject = &self.case.subject;
        let node = self.node(way, pulls, proxy).await?;
        let read_bytes = || node.shim.as_ref().and_then(Shim::read_bytes);
        let read_before = read_bytes();
        let watch = match self.plan.timelines {
            true => Some(Watch::begin(&node, self.meters(proxy))?),
            false => None,
        };
        let (clocks, load_average) = (Clocks::now(), load::average());
        let start = measure::start_of(self.lab, &node, proxy, subject).await?;
        let cpu_busy = Clocks::now().busy_since(&clocks);
        let timeline = watched(watch, &start, node.shim.as_ref());
        let read_bytes = read_bytes().map(|bytes| bytes.saturating_sub(read_before.unwrap_or(0)));
        let second = subject.run(&node, "second").await?;
        let full_read_ms = match self.plan.full_read && matches!(way, Way::MirrorWarm | Way::LazyFirst) {
            true => Some(self.full_read(way, pulls, proxy).await?),
            false => None,
        };
        self.report.samples.push(Sample {
            second_ms: Some(second.as_secs_f64() * 1000.0),
            read_bytes,
            full_read_ms,
            declined: node
                .shim
                .as_ref()
                .map_or(0, |s| s.log_text().matches("lazy_declined").count()),
            load_average,
            cpu_busy,
            timeline,
            ..Sample::of(&self.case.name, way, self.round, &start)
        });
        Ok(node)
    }

    /// Fresh, but for what it ran before.
    async fn node(&self, way: Way, pulls: Pulls, proxy: Option<&RelayedProxy>) -> Result<Node> {
        let node = self
            .lab
            .node(&self.name(format!("node{}{}", self.tag, way as u8)), pulls, proxy)
            .await?;
        if let Some(before) = &self.case.before {
            node.pull_image(&before.image.reference()).await?;
            before.run(&node, "before").await?;
        }
        Ok(node)
    }

    fn meters(&self, proxy: Option<&RelayedProxy>) -> Vec<(&'static str, crate::relay::Meter)> {
        let Some(proxy) = proxy else {
            return vec![(timeline::DIRECT, self.lab.direct_link.meter())];
        };
        vec![
            (timeline::CHUNKS, proxy.shim_link.meter()),
            (timeline::MIRROR, proxy.mirror_link.meter()),
            (timeline::UPSTREAM, self.lab.proxy_link.meter()),
            (timeline::DIRECT, self.lab.direct_link.meter()),
        ]
    }

    /// A container on a node that has the image unpacked.
    async fn local(&mut self, way: Way, node: &Node, proxy: &RelayedProxy) -> Result<()> {
        self.step(way);
        match way {
            Way::LocalCold => {
                measure::only_the_node_is_cold(self.lab, Some(proxy), &self.case.subject.image);
            }
            // Whatever was done since its last start, a full read with a dropped cache for one.
            _ => drop(self.case.subject.run(node, "warming").await?),
        }
        let (clocks, load_average) = (Clocks::now(), load::average());
        let ready = self.case.subject.run(node, way.name()).await?.as_secs_f64() * 1000.0;
        self.report.samples.push(Sample {
            image: self.case.name.clone(),
            way,
            round: self.round,
            pull_ms: 0.0,
            ready_ms: ready,
            total_ms: ready,
            second_ms: None,
            node_bytes: 0,
            read_bytes: None,
            sources: None,
            upstream_bytes: 0,
            full_read_ms: None,
            declined: 0,
            load_average,
            cpu_busy: Clocks::now().busy_since(&clocks),
            timeline: None,
        });
        Ok(())
    }

    /// Pull, and read every file of the image through the snapshotter.
    async fn full_read(&self, way: Way, pulls: Pulls, proxy: Option<&RelayedProxy>) -> Result<f64> {
        let image = &self.case.subject.image;
        let node = self
            .lab
            .node(&self.name(format!("node{}{}r", self.tag, way as u8)), pulls, proxy)
            .await?;
        measure::only_the_node_is_cold(self.lab, proxy, image);
        let begun = Instant::now();
        node.pull_image(&image.reference()).await?;
        let chain = image
            .chain()
            .ok_or_else(|| PlaygroundError::unexpected("name an image's snapshot", "it has no layers"))?;
        let view = node.mount_view(&chain).await?;
        let root = view.path.clone();
        let read = tokio::task::spawn_blocking(move || read_all(&root)).await;
        read.map_err(|e| PlaygroundError::unexpected("read an image", e))?
            .map_err(PlaygroundError::io("read an image"))?;
        Ok(begun.elapsed().as_secs_f64() * 1000.0)
    }
}

/// `shim`: of the node, if it has one that tells when something was read first.
fn watched(watch: Option<Watch>, start: &measure::Start, shim: Option<&Shim>) -> Option<timeline::Timeline> {
    let took = |ms: f64| Duration::from_secs_f64(ms / 1000.0);
    let (watch, begun) = watch.zip(start.begun)?;
    // Its clock is the wall's.
    let since_first = shim.and_then(Shim::first_read).and_then(|at| at.elapsed().ok());
    let first_read = since_first.and_then(|since| Instant::now().checked_sub(since));
    Some(watch.finish(begun, took(start.pull_ms), took(start.ready_ms), first_read))
}

fn read_all(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            read_all(&entry.path())?;
        } else if kind.is_file() {
            let mut file = fs::File::open(entry.path())?;
            let mut buffer = vec![0; 256 << 10];
            while file.read(&mut buffer)? > 0 {}
        }
    }
    Ok(())
}

/// Makes the proxy convert an image and waits for it.
pub async fn converted(lab: &Lab, proxy: &RelayedProxy, image: &ImageFacts) -> Result<()> {
    lab.announce_image(proxy, image).await?;
    let deadline = Instant::now() + CONVERSION_WAIT;
    loop {
        let status = proxy.proxy.image(&image.manifest, 10_000).await?;
        if status.as_ref().is_some_and(|s| s.is_ready()) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(PlaygroundError::unexpected(
                "wait for a conversion",
                format!("{status:?}"),
            ));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits, within bounds, until the server has a profile of the image; one that takes no traces is not waited for.
pub async fn profiled(proxy: &RelayedProxy, image: &ImageFacts) {
    let route = routes::image(&image.manifest);
    let get = async |path: &str| proxy.proxy.get(path, "application/json").await;
    // A route that is there, for POST alone.
    match get(&format!("{route}/trace")).await {
        Ok((http::StatusCode::METHOD_NOT_ALLOWED, _)) => {}
        _ => return,
    }
    let deadline = Instant::now() + PROFILE_WAIT;
    while Instant::now() < deadline {
        let body = get(&route).await.map(|(_, body)| body).unwrap_or_default();
        let status: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        if status.get("profile").is_some_and(|p| !p.is_null()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Compressed bytes of the chunks of `image` that `before` has not.
async fn new_chunk_bytes(proxy: &RelayedProxy, image: &ImageFacts, before: &ImageFacts) -> Result<u64> {
    let mut known: HashSet<ChunkDigest> = HashSet::new();
    for (layer, _) in &before.layers {
        known.extend(toc(proxy, layer).await?.chunks().iter().map(|c| c.digest));
    }
    let mut new = 0;
    for (layer, _) in &image.layers {
        for chunk in toc(proxy, layer).await?.chunks().iter() {
            if known.insert(chunk.digest) {
                new += chunk.frame.len;
            }
        }
    }
    Ok(new)
}

/// A ready layer's TOC.
pub async fn toc(proxy: &RelayedProxy, layer: &headstart_layer_format::BlobDigest) -> Result<Toc> {
    let (status, body) = proxy
        .proxy
        .get(&routes::layer_toc(layer), routes::TOC_MEDIA_TYPE)
        .await?;
    if status != http::StatusCode::OK {
        return Err(PlaygroundError::unexpected(format!("read the TOC of {layer}"), status));
    }
    Toc::decode(&body).map_err(|e| PlaygroundError::unexpected(format!("read the TOC of {layer}"), e))
}
