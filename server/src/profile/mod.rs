//! Profiles: what starts of an image need first, learnt from nodes, so that the next node has it before it asks.
//!
//! In: traces of nodes, files that the operator pins. Out: an [`Answer`] for an image that is ready.
//! Invariant: a profile is a hint about chunks of the image and nothing else: whatever nodes say, it names only chunks of
//! the image, and costs whoever follows it no more bytes than `[profile]` allows. Everything is bounded: reads of a
//! trace, starts of a profile, classes of an image, profiles, bytes. Losing all of it costs time.
//! Synchronous, and some of it slow (trees are decoded, files synced): for threads that may wait.
//! Not here: HTTP (`http/`), who may teach and who may read (`access/`).

pub mod answer;
mod catalog;
pub mod export;
pub mod fuzz;
mod image;
mod learned;
mod merge;
mod object;
pub mod pins;
mod place;
mod shelf;
mod trace;

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use headstart_layer_format::{
    BlobDigest, ChunkDigest, ProfileDigest,
    api::ImageStatus,
    profile::{Class, Origin, Trace},
};
use moka::sync::Cache;
use sha2::{Digest as _, Sha256};

pub use self::{answer::Answer, catalog::CatalogError, catalog::Row, trace::TraceError};
use self::{
    answer::{Choice, Parts},
    catalog::{Bounds, Catalog},
    export::Export,
    image::{Image, Place},
    learned::{Checked, Known, Learned, Span},
    merge::{Weighing, merge},
    object::{Key, Object},
    pins::{PinError, Pins},
    place::{pieces, place},
    shelf::Name,
};
use crate::{
    config::ProfileConfig,
    metrics::{
        Metrics,
        label::taught,
        names::{Count, Gauge},
    },
    read::seekable::Seekable,
    store::{Store, StoreError, facts::Source, usage::now_ms},
};

/// Traces that are being taken, or wait for that: each costs a sync of the disk.
const TAKING_MAX: usize = 32;
/// Memory for objects that were read.
const OBJECTS_SIZE_MAX: u64 = 32 << 20;
/// Memory for answers.
const ANSWERS_SIZE_MAX: u64 = 64 << 20;
/// Other images of the repository that are tried for one of which nothing is known.
const CANDIDATES_MAX: usize = 4;
/// One of which this part is found in the image is good enough;
const MAPPED_ENOUGH: f64 = 0.5;
/// one with less than this says nothing of it.
const MAPPED_MIN: f64 = 0.1;

/// Clones share it.
#[derive(Clone, Debug)]
pub struct Profiles(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: ProfileConfig,
    store: Store,
    seekable: Seekable,
    metrics: Metrics,
    catalog: Catalog,
    objects: Cache<Name, Arc<Object>>,
    answers: Cache<(BlobDigest, Class), Made>,
    /// As they were given out: a node asks for their chunks by digest a moment later.
    given: Cache<(BlobDigest, ProfileDigest), Arc<Answer>>,
    /// One answer is made at a time: whoever comes for the same finds it made.
    making: Mutex<()>,
    /// Changes are made one at a time.
    changing: Mutex<()>,
    taking: AtomicUsize,
}

#[derive(Clone, Debug)]
struct Made {
    choice: Choice,
    answer: Option<Arc<Answer>>,
}

/// Why nothing was learnt or changed.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error("learn from a start: too many are being taken")]
    Busy,
    #[error("learn from a start: not every layer of the image is ready")]
    NotReady,
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("read the image: {0}")]
    Store(#[from] StoreError),
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error("import the profile: {0}")]
    Import(&'static str),
}

/// A place among those whose traces are being taken.
struct Taking<'i>(&'i AtomicUsize);

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Who taught, in a form that tells nobody who it was.
pub fn node_tag(name: &str) -> String {
    headstart_layer_format::digest::hex(&Sha256::digest(name)[..8])
}

impl Profiles {
    pub fn open(
        config: &ProfileConfig,
        data_dir: &Path,
        store: Store,
        seekable: Seekable,
        metrics: Metrics,
    ) -> Result<Self, CatalogError> {
        let bounds = Bounds {
            profiles_max: config.profiles_max,
            bytes_max: config.profiles_bytes_max,
            classes_max: config.classes_max,
        };
        let catalog = Catalog::open(data_dir, store.clone(), bounds)?;
        let by_weight = |answer: &Arc<Answer>| answer.weight();
        let profiles = Self(Arc::new(Inner {
            config: config.clone(),
            store,
            seekable,
            metrics,
            catalog,
            objects: Cache::builder()
                .max_capacity(OBJECTS_SIZE_MAX)
                .weigher(|_, object: &Arc<Object>| object.weight())
                .build(),
            answers: Cache::builder()
                .max_capacity(ANSWERS_SIZE_MAX)
                .weigher(move |_, made: &Made| made.answer.as_ref().map_or(1024, by_weight))
                .build(),
            given: Cache::builder()
                .max_capacity(ANSWERS_SIZE_MAX)
                .weigher(move |_, answer: &Arc<Answer>| by_weight(answer))
                .build(),
            making: Mutex::default(),
            changing: Mutex::default(),
            taking: AtomicUsize::new(0),
        }));
        profiles.measure();
        Ok(profiles)
    }

    /// The profile of an image that is ready.
    pub fn answer(&self, status: &ImageStatus, class: &Class) -> Result<Option<Arc<Answer>>, StoreError> {
        let inner = &*self.0;
        if !status.is_ready() {
            return Ok(None);
        }
        let sources = inner.store.sources(&status.manifest_digest)?;
        let (origin, chosen) = inner.choose(&status.config_digest, class, &sources);
        let pins: Vec<(Key, Row)> = sources
            .into_iter()
            .filter_map(|source| {
                let key = Key::Pins { source };
                let row = inner.catalog.row(&key)?;
                Some((key, row))
            })
            .collect();
        if chosen.is_empty() && pins.is_empty() {
            return Ok(None);
        }
        let names = |rows: &[(Key, Row)]| rows.iter().map(|(_, row)| row.object.clone()).collect();
        let choice = Choice {
            tocs: status
                .layers
                .iter()
                .filter_map(|layer| Some(layer.toc.as_ref()?.digest))
                .collect(),
            objects: names(&chosen),
            pins: names(&pins),
        };
        // By what is answered, and not by what is asked: anybody can make up classes.
        let class = match chosen.first() {
            Some((Key::Profile { class, .. }, _)) => class.clone(),
            _ => Class::default(),
        };
        let key = (status.manifest_digest, class);
        let known = || inner.answers.get(&key).filter(|made| made.choice == choice);
        let made = match known() {
            Some(made) => made,
            None => {
                let _one = inner.making.lock().unwrap_or_else(PoisonError::into_inner);
                match known() {
                    Some(made) => made,
                    None => {
                        let Some(image) = Image::open(&inner.store, &inner.seekable, status)? else {
                            return Ok(None);
                        };
                        let answer = inner.make(&image, origin, &chosen, &pins, choice.clone());
                        let answer = answer.map(Arc::new);
                        let made = Made { choice, answer };
                        inner.answers.insert(key, made.clone());
                        made
                    }
                }
            }
        };
        for (key, _) in chosen.iter().chain(&pins) {
            inner.catalog.touch(key);
        }
        if let Some(answer) = &made.answer {
            let key = (status.manifest_digest, answer.profile.digest);
            if !inner.given.contains_key(&key) {
                inner.given.insert(key, answer.clone());
            }
        }
        Ok(made.answer)
    }

    /// A profile of an image that was given out lately.
    pub fn given(&self, manifest: &BlobDigest, digest: &ProfileDigest) -> Option<Arc<Answer>> {
        self.0.given.get(&(*manifest, *digest))
    }

    /// Learns from a start of an image. Whether it was new. `node` is who tells.
    pub fn record(&self, status: &ImageStatus, trace: &Trace, node: &str) -> Result<bool, ProfileError> {
        let recorded = self.0.record(status, trace, node);
        let outcome = match &recorded {
            Ok(true) => taught::COUNTED,
            Ok(false) => taught::REPEATED,
            Err(ProfileError::Trace(_)) => taught::REFUSED,
            Err(_) => taught::FAILED,
        };
        self.0.metrics.add(Count::Traces, 1, &[outcome]);
        self.measure();
        recorded
    }

    /// What starts of this image need, to be taken elsewhere. `None`: nothing is known.
    pub fn export(&self, status: &ImageStatus, class: &Class) -> Result<Option<(Arc<Answer>, Export)>, StoreError> {
        let inner = &*self.0;
        let Some(answer) = self.answer(status, class)? else {
            return Ok(None);
        };
        let Some(image) = Image::open(&inner.store, &inner.seekable, status)? else {
            return Ok(None);
        };
        let key = Key::Profile {
            config: status.config_digest,
            class: answer.profile.class.clone(),
        };
        let mut told: HashMap<ChunkDigest, Vec<Span>> = HashMap::new();
        if let Some(Object::Profile(learned)) = inner.load(&key).as_deref() {
            let chunks = learned.chunks.iter().filter(|known| known.told);
            told.extend(chunks.map(|known| (known.digest, known.spans.clone())));
        }
        let export = export::export(&image, &answer, &told);
        Ok(Some((answer, export)))
    }

    /// Counts a file as one more start. Whether it was new.
    pub fn import(&self, status: &ImageStatus, export: &Export) -> Result<bool, ProfileError> {
        let inner = &*self.0;
        let Some(image) = Image::open(&inner.store, &inner.seekable, status)? else {
            return Err(ProfileError::NotReady);
        };
        let start = export::import(&image, export, now_ms()).map_err(ProfileError::Import)?;
        let _one = inner.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let learned = inner.learned(&status.config_digest, &export.class);
        let new = inner.learn(learned, start, &status.manifest_digest)?;
        self.measure();
        Ok(new)
    }

    /// Forgets what was learnt of an image. How many kinds of starts that were.
    pub fn forget(&self, config: &BlobDigest) -> usize {
        let _one = self.0.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let classes = self.0.catalog.classes(config).into_iter();
        let keys = classes.map(|(class, _)| Key::Profile { config: *config, class });
        let count = keys.filter(|key| self.0.catalog.remove(key)).count();
        self.measure();
        count
    }

    /// Pins or unpins files of a repository. How many that changed.
    pub fn pin(&self, source: &Source, paths: &[String], pinned: bool) -> Result<usize, ProfileError> {
        let inner = &*self.0;
        let _one = inner.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let key = Key::Pins { source: source.clone() };
        let mut pins = match inner.load(&key).as_deref() {
            Some(Object::Pins(pins)) => pins.clone(),
            _ => Pins::new(source.clone()),
        };
        let changed = pins.set(paths, pinned)?;
        if pins.paths.is_empty() {
            inner.catalog.remove(&key);
        } else if changed > 0 {
            inner.catalog.put(&Object::Pins(pins))?;
        }
        Ok(changed)
    }

    /// Files that are pinned in a repository.
    pub fn pinned(&self, source: &Source) -> Vec<String> {
        let key = Key::Pins { source: source.clone() };
        match self.0.load(&key).as_deref() {
            Some(Object::Pins(pins)) => pins.paths.clone(),
            _ => Vec::new(),
        }
    }

    /// Everything that is known, in short.
    pub fn list(&self) -> Vec<(BlobDigest, Class, Row)> {
        self.0.catalog.profiles(|_, _| true)
    }

    fn measure(&self) {
        let (count, bytes) = self.0.catalog.held();
        self.0.metrics.set(Gauge::Profiles, count as u64, &[]);
        self.0.metrics.set(Gauge::ProfileBytes, bytes, &[]);
    }
}

impl Inner {
    /// What is known of the image itself, or of others of its repositories.
    fn choose(&self, config: &BlobDigest, class: &Class, sources: &[Source]) -> (Origin, Vec<(Key, Row)>) {
        let key = |config: BlobDigest, class| Key::Profile { config, class };
        if let Some((class, row)) = best(self.catalog.classes(config), class) {
            return (Origin::Learned, vec![(key(*config, class), row)]);
        }
        let mut others: HashMap<BlobDigest, Vec<(Class, Row)>> = HashMap::new();
        for (other, class, row) in self.catalog.of_sources(sources) {
            others.entry(other).or_default().push((class, row));
        }
        let mut latest: Vec<(Key, Row)> = others
            .into_iter()
            .filter_map(|(config, classes)| best(classes, class).map(|(class, row)| (key(config, class), row)))
            .collect();
        latest.sort_by(|(a, x), (b, y)| y.learned_unix_ms.cmp(&x.learned_unix_ms).then(a.cmp(b)));
        latest.truncate(CANDIDATES_MAX);
        match latest.is_empty() {
            true => (Origin::Pinned, latest),
            false => (Origin::Derived, latest),
        }
    }

    fn make(
        &self,
        image: &Image<'_>,
        origin: Origin,
        chosen: &[(Key, Row)],
        pins: &[(Key, Row)],
        choice: Choice,
    ) -> Option<Answer> {
        let pinned = pins
            .iter()
            .filter_map(|(key, _)| self.load(key))
            .flat_map(|object| match &*object {
                Object::Pins(pins) => self.pinned_places(image, pins),
                Object::Profile(_) => Vec::new(),
            });
        let mut parts = Parts {
            origin: Origin::Pinned,
            class: Class::default(),
            starts: 0,
            pinned: pinned.collect(),
            needed: Vec::new(),
        };
        let mut mapped = MAPPED_MIN;
        for (key, _) in chosen {
            let Some(object) = self.load(key) else { continue };
            let Object::Profile(learned) = &*object else { continue };
            let order = merge(learned, self.weighing());
            let known: Vec<&Known> = order.iter().map(|ranked| &learned.chunks[ranked.at]).collect();
            let placed = place(image, &known, true);
            let part = placed.found as f64 / known.len().max(1) as f64;
            if part < mapped || placed.places.is_empty() {
                continue;
            }
            mapped = part;
            parts.origin = origin;
            parts.class = learned.class.clone();
            parts.starts = u32::try_from(learned.starts.len()).unwrap_or(u32::MAX);
            parts.needed = placed.places;
            if part >= MAPPED_ENOUGH {
                break;
            }
        }
        Answer::new(image, parts, choice, &self.config)
    }

    fn pinned_places(&self, image: &Image<'_>, pins: &Pins) -> Vec<Place> {
        let mut places = Vec::new();
        for (path, offset, len) in pins.spans() {
            let file = image.find(&path);
            places.extend(file.into_iter().flat_map(|file| pieces(image, file, offset, len)));
        }
        places
    }

    fn record(&self, status: &ImageStatus, trace: &Trace, node: &str) -> Result<bool, ProfileError> {
        trace::check_shape(trace)?;
        if !self.config.learn {
            return Ok(false);
        }
        let before = self.taking.fetch_add(1, Ordering::Relaxed);
        let _taking = Taking(&self.taking);
        if before >= TAKING_MAX {
            return Err(ProfileError::Busy);
        }
        let Some(image) = Image::open(&self.store, &self.seekable, status)? else {
            return Err(ProfileError::NotReady);
        };
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let learned = self.learned(&status.config_digest, &trace.class);
        let start = trace::check(trace, &image, Some(&learned), node_tag(node), now_ms())?;
        self.learn(learned, start, &status.manifest_digest)
    }

    fn learned(&self, config: &BlobDigest, class: &Class) -> Learned {
        let key = Key::Profile {
            config: *config,
            class: class.clone(),
        };
        match self.load(&key).as_deref() {
            Some(Object::Profile(learned)) => learned.clone(),
            _ => Learned::new(*config, class.clone()),
        }
    }

    fn learn(&self, mut learned: Learned, start: Checked, manifest: &BlobDigest) -> Result<bool, ProfileError> {
        let sources = self.store.sources(manifest)?;
        if !learned.add(start, &sources, self.config.starts_max) {
            return Ok(false);
        }
        self.catalog.put(&Object::Profile(learned))?;
        Ok(true)
    }

    fn load(&self, key: &Key) -> Option<Arc<Object>> {
        let name = self.catalog.row(key)?.object;
        if let Some(object) = self.objects.get(&name) {
            return Some(object);
        }
        let (name, object) = self.catalog.get(key)?;
        let object = Arc::new(object);
        self.objects.insert(name, object.clone());
        Some(object)
    }

    fn weighing(&self) -> Weighing {
        Weighing {
            share_min: f64::from(self.config.share_percent_min) / 100.0,
            half_life_ms: self.config.half_life_ms,
        }
    }
}

/// The class that is asked for, or the one that most nodes start.
fn best(mut classes: Vec<(Class, Row)>, class: &Class) -> Option<(Class, Row)> {
    if let Some(at) = classes.iter().position(|(known, _)| known == class) {
        return Some(classes.swap_remove(at));
    }
    classes
        .into_iter()
        .max_by_key(|(_, row)| (row.nodes, row.starts, row.learned_unix_ms))
}
