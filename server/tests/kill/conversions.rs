//! kill -9 in the middle of conversions.
//!
//! In: images whose layers share chunks, one of them no tar; clients that read lazily what is ready, until the server is
//! gone; kills at random moments, in the middle of a layer, and just after one got ready. In every other directory the
//! packs have a budget that is too small, so layers are evicted and packs swept meanwhile.
//! Out: what a client saw as ready is there at the next start; the rest is converted again, once; every tar is right.
//! Metrics say what was done; no file, no descriptor is left over, and `fsck` finds nothing.
//! Not here: what cuts of the log at every byte do (`store.rs`), power cuts (`src/store/crash`).

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::join_all;
use headstart_layer_format::{BlobDigest, TocDigest, api::LayerState};
use headstart_loadtest::{
    corpus::{Compression, Dialect, Flavor, LayerBuilder, Meta, Rng, SyntheticImage, SyntheticLayer},
    origin::{Auth, Gate, Origin, Target},
};
use headstart_server::{
    scrub::Report,
    store::{LayerRecord, Store},
};

use crate::{
    REPOSITORY, ROUNDS_A_DIRECTORY, STUCK,
    files::leftovers,
    layers, lazily,
    process::{Directory, Process, config_file, data},
    rounds, soon,
};

/// Quick failures, small steps: more of what a kill can hit in a second.
const INGEST: &str = "[ingest]\nworkers = 2\nzstd_level = 6\nretry_after_ms = 50\n";
/// Packs of a megabyte, and less of them than two rounds need.
const TIGHT: &str = "[cache]\nchunks_bytes_max = 8388608\n";
/// The latest moment of a kill that waits for nothing: somewhat more than the conversions take.
const KILL_AFTER_MS_MAX: u64 = 1200;
/// After what was waited for came true.
const KILL_SOON_MS_MAX: u64 = 40;
/// Bytes of files that layers have in common.
const SHARED_FILES: usize = 12;

/// What a client saw as ready: it stays so, unless packs have too small a budget.
type Promised = Arc<Mutex<HashMap<BlobDigest, TocDigest>>>;

/// What lives as long as a directory does.
struct Life {
    dir: Directory,
    tight: bool,
    /// Files that several layers have.
    shared: Vec<Vec<u8>>,
    images: Vec<SyntheticImage>,
    promised: Promised,
}

impl Life {
    fn new(tight: bool, rng: &mut Rng) -> Self {
        let mut file = || {
            let len = 20_000 + rng.below(300_000) as usize;
            rng.text(len)
        };
        Self {
            dir: Directory::new(),
            tight,
            shared: (0..SHARED_FILES).map(|_| file()).collect(),
            images: Vec::new(),
            promised: Promised::default(),
        }
    }

    fn config(&self) -> String {
        let cache = if self.tight { TIGHT } else { "" };
        format!("{INGEST}{cache}")
    }

    /// Some files of its own, some that others have; large, small, many.
    fn layer(&self, rng: &mut Rng) -> SyntheticLayer {
        let mut layer = LayerBuilder::new([Dialect::Pax, Dialect::Gnu][rng.below(2) as usize]);
        for i in 0..2 + rng.below(6) {
            let len = rng.below(500_000) as usize;
            let file = if rng.below(3) == 0 {
                rng.bytes(len)
            } else {
                rng.text(len)
            };
            layer.file(format!("own{i}"), Meta::default(), file);
        }
        for i in 0..rng.below(60) {
            let file = rng.text(200 + i as usize);
            layer.file(format!("small/{i}"), Meta::default(), file);
        }
        for i in 0..rng.below(5) {
            let file = &self.shared[rng.below(SHARED_FILES as u64) as usize];
            layer.file(format!("shared{i}"), Meta::default(), file.clone());
        }
        layer.finish([Compression::Gzip, Compression::Zstd][rng.below(2) as usize])
    }

    fn round(&mut self, origin: &Origin, rng: &mut Rng) {
        for _ in 0..2 {
            let mut layers = vec![self.layer(rng), self.layer(rng), self.layer(rng)];
            if rng.below(3) == 0 {
                let garbage = rng.text(3000);
                layers.push(SyntheticLayer::of_tar(garbage, Compression::Gzip, Default::default()));
            }
            let image = SyntheticImage::new(Flavor::Oci, layers);
            image.push(origin, REPOSITORY, "latest");
            self.images.push(image);
        }
    }

    fn layers(&self) -> impl Iterator<Item = &SyntheticLayer> {
        self.images.iter().flat_map(|image| &image.layers)
    }

    /// A look at the directory of a killed server: what was promised is there. How many layers are ready or refused.
    fn look(&self) -> usize {
        let store = Store::open_to_check(&data(self.dir.path())).expect("a store that can be read");
        assert_eq!(store.open_report().damaged_records, 0, "a kill damages nothing");
        let promised = self.promised.lock().unwrap().clone();
        if !self.tight {
            for (layer, seen) in &promised {
                match store.layer(layer).unwrap() {
                    Some(LayerRecord::Ready { toc, .. }) => assert_eq!(toc.digest, *seen),
                    other => panic!("{layer} was ready, and is {other:?} after a kill"),
                }
            }
        }
        let known = store.layers().unwrap();
        for (layer, record) in &known {
            match record {
                LayerRecord::Ready { .. } => layers::assert_ready(&store, layer),
                LayerRecord::Refused { .. } => assert!(is_garbage(self.layers(), layer), "{layer} is refused"),
                LayerRecord::Unconverted => assert!(self.tight, "{layer} is given up"),
            }
        }
        known.iter().filter(|(_, r)| *r != LayerRecord::Unconverted).count()
    }

    /// Everything, from a server that nobody kills.
    async fn verify(&self, process: &Process, http: &reqwest::Client, settled_before: usize) {
        let url = &process.url;
        for image in &self.images {
            let answer = soon(http.get(process.manifest(image)).send()).await.unwrap();
            assert_eq!(answer.bytes().await.unwrap(), image.manifest);
        }
        for image in &self.images {
            let settled = soon(async {
                // Where packs have too little room, those that came to an end are not all there at one time.
                let mut ended = HashMap::new();
                loop {
                    let status = lazily::image(http, url, &image.manifest_digest, 20_000).await;
                    let status = status.expect("an image that was just pulled is known");
                    let is = |state| status.layers.iter().any(|l| l.state == state);
                    // Where packs have too little room, one that waits for it may give up, and comes again.
                    assert!(!is(LayerState::Failed) || self.tight, "{status:?}");
                    let under_way = [
                        LayerState::Queued,
                        LayerState::Converting,
                        LayerState::Unknown,
                        LayerState::Failed,
                    ];
                    let all: HashSet<_> = status.layers.iter().map(|l| l.digest).collect();
                    let over = status.layers.into_iter().filter(|l| !under_way.contains(&l.state));
                    ended.extend(over.map(|l| (l.digest, l)));
                    if ended.len() == all.len() {
                        return ended;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
            for status in settled.await.into_values() {
                let garbage = is_garbage(self.layers(), &status.digest);
                assert_eq!(status.state == LayerState::Refused, garbage, "{status:?}");
            }
            for layer in image.layers.iter().filter(|l| !is_garbage(self.layers(), &l.digest)) {
                let rebuilt = soon(async {
                    loop {
                        // It may be evicted between the TOC and its data.
                        let tar = lazily::tar(http, url, layer).await;
                        assert!(tar.is_some() || self.tight, "{} breaks off", layer.digest);
                        if let Some(tar) = tar {
                            return tar;
                        }
                    }
                });
                assert!(rebuilt.await == layer.tar, "{} is put together wrongly", layer.digest);
            }
        }
        let metric = |name: &'static str, labels: &'static [&'static str]| lazily::metric(http, url, name, labels);
        assert_eq!(
            metric("headstart_corruption_total", &[]).await,
            0,
            "a kill damages nothing"
        );
        let failed = metric("headstart_ingest_layers_total", &["failed"]).await;
        assert!(failed == 0 || self.tight, "{failed} failed");
        assert_eq!(metric("headstart_conversion_queue_length", &[]).await, 0);
        for _ in 0..STUCK.as_millis() / 50 {
            if metric("headstart_conversions_in_progress", &[]).await == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(metric("headstart_conversions_in_progress", &[]).await, 0);
        if !self.tight {
            let ended = metric("headstart_ingest_layers_total", &[]).await;
            let all = self.layers().count() as u64;
            assert_eq!(
                ended + settled_before as u64,
                all,
                "each that was missing was converted once"
            );
            let held = metric("headstart_held_bytes", &["packs"]).await;
            let packs = layers::packs(&data(self.dir.path()));
            let on_disk: u64 = packs.iter().map(|pack| std::fs::metadata(pack).unwrap().len()).sum();
            // The gauge is set now and then; it was right when the directory was opened.
            assert!(held > 0 && held <= on_disk, "{held} of {on_disk} bytes");
        }
    }

    /// Nothing is left over: files, and files that are open.
    async fn tidy(&self, process: &Process) {
        let left = leftovers(self.dir.path()).await;
        assert!(left.is_empty(), "files are left over:\n{left}");
        let is_leak = |path: &PathBuf| {
            let path = path.to_string_lossy();
            path.ends_with("(deleted)") && path.contains("/data/") || path.ends_with(".partial")
        };
        let mut leaks = Vec::new();
        for _ in 0..STUCK.as_millis() / 100 {
            leaks = process.open_files();
            leaks.retain(is_leak);
            if leaks.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("files that nobody needs are open: {leaks:?}");
    }

    /// Nobody uses it any more.
    fn fsck(&self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headstart-server"));
        command
            .args(["fsck", "--json", "--config"])
            .arg(config_file(self.dir.path()));
        let output = command.env_remove("RUST_LOG").output().unwrap();
        let report: Report = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
        assert_eq!((output.status.code(), report.damaged_count), (Some(0), 0), "{report:?}");
        assert!(report.records_count > 0);
    }
}

/// Whether it is the layer that is no tar.
fn is_garbage<'l>(mut layers: impl Iterator<Item = &'l SyntheticLayer>, digest: &BlobDigest) -> bool {
    layers.any(|layer| layer.digest == *digest && layer.tar.len() == 3000)
}

/// A node that reads what it can, until the server is gone.
async fn node(
    layers: Vec<SyntheticLayer>,
    url: String,
    http: reqwest::Client,
    promised: Promised,
    gone: Arc<std::sync::atomic::AtomicBool>,
    seed: u64,
) {
    let mut rng = Rng::new(seed);
    while !gone.load(std::sync::atomic::Ordering::Relaxed) {
        let layer = &layers[rng.below(layers.len() as u64) as usize];
        let Some((digest, toc)) = lazily::toc(&http, &url, layer, 200).await else {
            // Refused or gone: not all the time.
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        promised.lock().unwrap().insert(layer.digest, digest);
        lazily::chunks(&http, &url, &layer.digest, &toc, &mut rng).await;
    }
}

/// When a server is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    Any,
    /// A conversion has read this much of a layer and waits for the rest.
    Within,
    /// One of the new images has another ready layer. Where packs have too little room, others may have gone before.
    Ready,
}

/// Waits for the moment. What of the new images was ready, and whether anything was under way.
async fn moment(
    moment: Moment,
    images: &[SyntheticImage],
    process: &Process,
    http: &reqwest::Client,
    rng: &mut Rng,
) -> bool {
    let of = |image: &SyntheticImage| {
        let (url, digest) = (process.url.clone(), image.manifest_digest);
        async move { lazily::image(http, &url, &digest, 0).await }
    };
    if matches!(moment, Moment::Any) {
        tokio::time::sleep(Duration::from_millis(rng.below(KILL_AFTER_MS_MAX))).await;
    }
    let mut before = None;
    let waiting = async {
        loop {
            let (mut ready, mut under_way, mut read) = (0, false, false);
            for image in images {
                let Some(status) = of(image).await else {
                    under_way = true;
                    continue;
                };
                ready += status.layers.iter().filter(|l| l.state == LayerState::Ready).count();
                under_way |= status.layers.iter().any(|l| {
                    matches!(
                        l.state,
                        LayerState::Converting | LayerState::Queued | LayerState::Unknown
                    )
                });
                read |= status.layers.iter().any(|l| l.converted.is_some_and(|bytes| bytes > 0));
            }
            let now = match moment {
                Moment::Any => true,
                Moment::Within => read,
                Moment::Ready => before.replace(ready).is_some_and(|before| ready > before),
            };
            if now || !under_way {
                return under_way;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let under_way = soon(waiting).await;
    if !matches!(moment, Moment::Any) {
        tokio::time::sleep(Duration::from_millis(rng.below(KILL_SOON_MS_MAX))).await;
    }
    under_way
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_of_conversions_it_goes_on_where_it_was() {
    let origin = Origin::start(Auth::Anonymous);
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let rounds = rounds(4);
    let seed = u64::from(std::process::id()) ^ 0xc0;
    println!("{rounds} rounds, seed {seed}");
    let mut rng = Rng::new(seed);
    let mut life = Life::new(false, &mut rng);
    let (mut kills, mut hits) = (0, 0);
    for n in 0..rounds {
        // In CI's few rounds, too, both kinds of directory come.
        if n > 0 && n % ROUNDS_A_DIRECTORY.min(rounds.div_ceil(2)) == 0 {
            life = Life::new(!life.tight, &mut rng);
        }
        life.round(&origin, &mut rng);
        let new = life.images[life.images.len() - 2..].to_vec();
        let config = life.config();
        // Twice, so that a conversion which goes on where another was is killed, too.
        for _ in 0..2 {
            let when = [Moment::Any, Moment::Within, Moment::Ready][rng.below(3) as usize];
            let process = Arc::new(Process::start(life.dir.path(), &origin, &config, &http).await);
            let gate = matches!(when, Moment::Within).then(|| hold_one(&origin, &new, &mut rng));
            let gone = Arc::default();
            let nodes: Vec<_> = (0..3)
                .map(|_| {
                    tokio::spawn(node(
                        life.layers().cloned().collect(),
                        process.url.clone(),
                        http.clone(),
                        Arc::clone(&life.promised),
                        Arc::clone(&gone),
                        rng.next_u64(),
                    ))
                })
                .collect();
            for image in &new {
                let _ = http.get(process.manifest(image)).send().await;
            }
            hits += u64::from(moment(when, &new, &process, &http, &mut rng).await);
            kills += 1;
            process.kill();
            gone.store(true, std::sync::atomic::Ordering::Relaxed);
            for node in join_all(nodes).await {
                node.unwrap();
            }
            drop(process);
            gate.iter().for_each(Gate::open);
            origin.clear_faults();
        }
        for _ in 0..rng.below(3) {
            Process::start_in_vain(life.dir.path(), &origin, &config, &mut rng).await;
        }
        let settled_before = life.look();
        let process = Process::start(life.dir.path(), &origin, &config, &http).await;
        life.verify(&process, &http, settled_before).await;
        life.tidy(&process).await;
        drop(process);
        life.look();
        life.fsck();
        if (n + 1).is_multiple_of(10) {
            println!("{} rounds, {kills} kills", n + 1);
        }
    }
    println!("{kills} kills in all, {hits} of them while a layer was to be converted");
}

/// The origin stops in the middle of a layer, if it has not been fetched already.
fn hold_one(origin: &Origin, images: &[SyntheticImage], rng: &mut Rng) -> Gate {
    let image = &images[rng.below(images.len() as u64) as usize];
    let layer = &image.layers[rng.below(image.layers.len() as u64) as usize];
    origin.hold(Target::Digest(layer.digest), rng.below(layer.blob.len() as u64))
}
