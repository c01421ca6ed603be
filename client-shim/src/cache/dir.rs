//! The cache directory: every layer this node keeps.
//!
//! In: TOCs of new layers. Out: [`StoredLayer`]s, also after a restart, without a network.
//! Invariant: one process at a time (a lock); a layer is there completely or not at all; damaged or half-made layers are
//! removed when the directory is opened, and fetched again when somebody wants them; what cannot be removed is passed over. A
//! new layer is durable after its first flush: a pull does not wait for the disk, and power loss before that costs a layer that
//! has next to nothing yet.
//! Not here: who uses a layer (`layers`), and how it is shown (`presentation`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use headstart_layer_format::{BlobDigest, Toc};

use super::layer_file::LayerFile;
use super::meta::Meta;
use super::room::Room;
use super::slots::Slots;
use super::sources;
use crate::cache::LazyConfig;
use crate::contents::{Contents, EncodedToc};
use crate::counters::Counters;
use crate::dir_lock::DirLock;
use crate::fetch::original::{BlobSource, Sources};
use crate::parallel;
use crate::survival::Progress;

/// Prefix of directories on their way out.
const TRASH: &str = "trash-";

/// Each text completes "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("lock the cache: another shim uses {0}")]
    InUse(PathBuf),
    #[error("use the cache at {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// A layer as the disk has it.
#[derive(Clone, Debug)]
pub struct StoredLayer {
    pub digest: BlobDigest,
    pub slot: u32,
    pub contents: Arc<Contents>,
    pub file: Arc<LayerFile>,
    /// Where its original may be had.
    pub sources: Arc<Sources>,
}

#[derive(Debug)]
pub struct CacheDir {
    path: PathBuf,
    slots: Slots,
    room: Arc<Room>,
    /// Held from a change of a layer's sources until it is on disk, so that the latest is there at last.
    learning: Mutex<()>,
    _lock: DirLock,
}

impl CacheDir {
    /// Locks the directory, clears what is not whole, and lists what is.
    pub fn open(
        path: &Path,
        config: &LazyConfig,
        counters: &Arc<Counters>,
    ) -> Result<(Self, Vec<StoredLayer>), CacheError> {
        Self::open_telling(path, config, counters, &Progress::untold())
    }

    /// [`CacheDir::open`], each layer a step.
    pub fn open_telling(
        path: &Path,
        config: &LazyConfig,
        counters: &Arc<Counters>,
        progress: &Progress,
    ) -> Result<(Self, Vec<StoredLayer>), CacheError> {
        let io = |source| CacheError::Io {
            path: path.to_owned(),
            source,
        };
        std::fs::create_dir_all(path).map_err(io)?;
        let Some(lock) = DirLock::take(path).map_err(io)? else {
            return Err(CacheError::InUse(path.to_owned()));
        };
        let room = Room::new(path, config, Arc::clone(counters));
        let mut dirs = Vec::new();
        for entry in std::fs::read_dir(path).map_err(io)? {
            let dir = entry.map_err(io)?.path();
            if std::fs::symlink_metadata(&dir).is_ok_and(|m| m.is_dir()) {
                dirs.push(dir);
            }
        }
        // Readers of a predecessor's mount wait for this.
        let loaded = parallel::each(&dirs, |dir| {
            let layer = load(dir, &room);
            if layer.is_none() {
                drop_layer(dir);
            }
            progress.step();
            layer
        });
        let mut layers: Vec<StoredLayer> = loaded.into_iter().flatten().collect();
        layers.sort_by_key(|l| l.slot);
        let used_max = layers.last().map_or(0, |l| l.slot);
        let cache = Self {
            path: path.to_owned(),
            slots: Slots::open(path, used_max),
            room,
            learning: Mutex::default(),
            _lock: lock,
        };
        Ok((cache, layers))
    }

    /// What its layers share.
    pub fn room(&self) -> Arc<Room> {
        Arc::clone(&self.room)
    }

    /// Admits a layer: TOC, empty data file, slot. Replaces a layer of the same digest (the caller retired it).
    pub fn admit(&self, toc: &Arc<Toc>, encoded: &EncodedToc) -> Result<StoredLayer, CacheError> {
        let digest = *toc.layer_digest();
        let dir = self.layer_dir(&digest);
        self.make(&dir, digest, toc, encoded)
            .map_err(|source| CacheError::Io { path: dir, source })
    }

    fn make(&self, dir: &Path, digest: BlobDigest, toc: &Arc<Toc>, encoded: &EncodedToc) -> io::Result<StoredLayer> {
        self.discard(dir)?;
        let slot = self.slots.take()?;
        std::fs::create_dir(dir)?;
        let contents = Contents::store(dir, toc, encoded)?;
        let file = LayerFile::create_in(dir, Arc::clone(&contents), Arc::clone(&self.room))?;
        let meta = Meta {
            version: Meta::VERSION,
            layer: digest,
            toc: *contents.toc_digest(),
            slot,
        };
        meta.save(dir)?;
        Ok(StoredLayer {
            digest,
            slot,
            contents,
            file: Arc::new(file),
            sources: Arc::default(),
        })
    }

    /// Forgets a layer. Readers that still hold its file can go on reading what is in it.
    pub fn remove(&self, layer: &StoredLayer) -> Result<(), CacheError> {
        layer.file.retire();
        let dir = self.layer_dir(&layer.digest);
        self.discard(&dir)
            .map_err(|source| CacheError::Io { path: dir, source })
    }

    /// Keeps where a layer's original may be had. Blocks.
    pub fn learn(&self, layer: &StoredLayer, source: BlobSource) -> Result<(), CacheError> {
        let _learning = self.learning.lock().unwrap_or_else(|p| p.into_inner());
        let Some(all) = layer.sources.learn(source) else {
            return Ok(());
        };
        let dir = self.layer_dir(&layer.digest);
        sources::save(&dir, &all).map_err(|source| CacheError::Io { path: dir, source })
    }

    /// Renames first: a crash leaves trash, which the next start clears, never half a layer.
    fn discard(&self, dir: &Path) -> io::Result<()> {
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let trash = self.path.join(format!("{TRASH}{name}"));
        if trash.exists() {
            std::fs::remove_dir_all(&trash)?;
        }
        match std::fs::rename(dir, &trash) {
            Ok(()) => std::fs::remove_dir_all(&trash),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Hex alone: 64 digits for SHA-256 and 128 for SHA-512, so the algorithms do not meet.
    fn layer_dir(&self, digest: &BlobDigest) -> PathBuf {
        self.path.join(digest.hex())
    }
}

/// One that stays is in the way of no other: its own is pulled the ordinary way as long as it does.
fn drop_layer(dir: &Path) {
    match std::fs::remove_dir_all(dir) {
        Ok(()) => tracing::info!(dir = %dir.display(), "cache-layer-dropped"),
        Err(error) => tracing::warn!(dir = %dir.display(), %error, "cache-layer-not-dropped"),
    }
}

fn load(dir: &Path, room: &Arc<Room>) -> Option<StoredLayer> {
    let meta = Meta::load(dir)?;
    if dir.file_name()?.to_str()? != meta.layer.hex() {
        return None;
    }
    let contents = Contents::load(dir, &meta.toc, &meta.layer)?;
    let file = match LayerFile::open_in(dir, Arc::clone(&contents), Arc::clone(room)) {
        Ok(file) => file,
        Err(e) => {
            tracing::warn!(dir = %dir.display(), error = %e, "cache-layer-unreadable");
            return None;
        }
    };
    Some(StoredLayer {
        digest: meta.layer,
        slot: meta.slot,
        contents,
        file: Arc::new(file),
        sources: sources::load(dir),
    })
}
