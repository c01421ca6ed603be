//! What each snapshot call does, without the wire.
//!
//! In: names and labels. Out: records, mounts. Invariant: file work runs on blocking threads; nothing but `prepare`,
//! `view` and `mounts` waits for more than this node's disk.
//! Not here: protobuf ([`super::service`]), the lazy decision ([`super::adopt`]).

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use headstart_layer_format::BlobDigest;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::Span;

use super::adopt::Adopter;
use super::decide::Decisions;
use super::decline::{Decline, DeclineReason};
use super::error::SnapshotError;
use super::filter::Filters;
use super::idmap::IdMap;
use super::idmapped::IdMapped;
use super::labels::{self, LayerIdentity};
use super::lazy::LazyLayers;
use super::mounts::{OwnDirs, mounts};
use super::overlay::OverlayOptions;
use super::pins::Pins;
use super::record::{Kind, Labels, Record, SnapshotId, Usage};
use super::store::SnapshotStore;
use super::trash::Trash;
use super::waits::Waiting;
use crate::config::SnapshotterConfig;
use crate::layers::NodeStatus;
use crate::observe::calls::Calls;
use crate::observe::pulls::PullLog;
use crate::proto::Mount;

/// How long `Cleanup` waits for the files it deletes. It goes on without its caller.
const CLEANUP_WAIT: Duration = Duration::from_secs(2);
/// How long a stop waits for the release of layers.
const RELEASE_WAIT: Duration = Duration::from_secs(5);

/// What `prepare` came to.
#[derive(Debug)]
pub enum Prepared {
    /// A writable snapshot.
    Mounts(Vec<Mount>),
    /// The layer is there, committed: containerd adopts it.
    Adopted,
}

/// The snapshotter.
#[derive(Debug)]
pub struct Engine<B: LazyLayers> {
    store: Arc<SnapshotStore>,
    adopter: Adopter<B>,
    overlay: OverlayOptions,
    trash: Trash,
    idmapped: IdMapped,
    pulls: PullLog,
    calls: Calls,
    stop: CancellationToken,
    present_timeout: Duration,
}

impl<B: LazyLayers> Engine<B> {
    /// Loads the snapshots below `root`; asks nobody. Must be called on a runtime.
    pub async fn open(root: &Path, config: &SnapshotterConfig, backend: B) -> Result<Self, SnapshotError> {
        let (root, sync_on_commit) = (root.to_owned(), config.sync_on_commit);
        let opened = move || {
            let store = SnapshotStore::open(&root, sync_on_commit)?;
            let numbers: HashSet<SnapshotId> = store.all().iter().map(|r| r.id).collect();
            let idmapped = IdMapped::open(&root, |id| numbers.contains(&id));
            Ok((store, idmapped))
        };
        let (store, idmapped) = blocking(opened).await?;
        let store = Arc::new(store);
        let backend = Arc::new(backend);
        let pins = Pins::new(backend.clone(), Handle::current());
        let stop = CancellationToken::new();
        let engine = Self {
            trash: Trash::new(store.clone(), stop.clone()),
            adopter: Adopter {
                store: store.clone(),
                pins,
                backend,
                decisions: Decisions::new(config),
                present_timeout: Duration::from_millis(config.present_timeout_ms),
            },
            store,
            overlay: OverlayOptions::detect(),
            idmapped,
            pulls: PullLog::default(),
            calls: Calls::default(),
            stop,
            present_timeout: Duration::from_millis(config.present_timeout_ms),
        };
        let of = Arc::downgrade(&engine.store);
        let ask = move || of.upgrade().map(|store| layers_in_use(&store)).unwrap_or_default();
        engine.adopter.backend.set_in_use(ask);
        engine.trash.sweep();
        engine.show_known();
        Ok(engine)
    }

    /// Pins every lazy snapshot's layer and shows it again, in the background: a call that comes first does it itself.
    fn show_known(&self) {
        let lazy: Vec<_> = self
            .store
            .all()
            .iter()
            .filter_map(|r| Some((r.clone(), r.lazy.clone()?)))
            .collect();
        for (_, lazy) in &lazy {
            self.adopter.pins.pin(&lazy.layer).keep();
        }
        for layer in self.adopter.backend.known() {
            // A kill between a snapshot's removal and its layer's release leaves one that nobody needs: its only pin
            // goes at once, and with it the layer.
            drop(self.adopter.pins.pin(&layer));
        }
        let (pins, stop) = (self.adopter.pins.clone(), self.stop.clone());
        tokio::task::spawn_blocking(move || {
            for (record, lazy) in lazy {
                if stop.is_cancelled() {
                    return;
                }
                if let Err(error) = pins.present_known(&lazy.layer) {
                    // The snapshot stays: the layer is tried again when a container needs it.
                    tracing::error!(name = record.name, layer = %lazy.layer, %error, "lazy layer not available");
                }
            }
        });
    }

    /// Makes a writable snapshot, or has the layer adopted that it would be for.
    pub async fn prepare(&self, key: String, parent: String, labels: Labels) -> Result<Prepared, SnapshotError> {
        if let Some(chain) = labels.get(labels::SNAPSHOT_REF) {
            let (identity, span) = (LayerIdentity::from_labels(&labels), Span::current());
            span.record("chain", chain.as_str());
            let adopted = match &identity {
                Some(identity) => self.adopter.adopt(identity, &parent, &labels).await,
                None => Err(Decline::new(DeclineReason::Malformed, "the label is not a chain ID")),
            };
            match adopted {
                Ok(()) => {
                    // There is an identity, or it would not have been adopted.
                    identity.iter().for_each(|identity| self.pulls.lazy(identity));
                    span.record("decision", "lazy");
                    return Ok(Prepared::Adopted);
                }
                Err(decline) => {
                    decline.log(chain, identity.as_ref());
                    span.record("decision", "ordinary");
                    span.record("reason", decline.reason.as_str());
                    self.pulls.declined(chain, identity.as_ref(), &decline);
                }
            }
        }
        self.create(Kind::Active, key, parent, labels)
            .await
            .map(Prepared::Mounts)
    }

    /// Makes a read-only view.
    pub async fn view(&self, key: String, parent: String, labels: Labels) -> Result<Vec<Mount>, SnapshotError> {
        self.create(Kind::View, key, parent, labels).await
    }

    async fn create(
        &self,
        kind: Kind,
        key: String,
        parent: String,
        labels: Labels,
    ) -> Result<Vec<Mount>, SnapshotError> {
        let ids = IdMap::from_labels(&labels)?;
        let lower = self.lower(&parent).await?;
        if kind == Kind::Active && !labels.contains_key(labels::SNAPSHOT_REF) {
            self.container(&key, &parent);
        }
        let store = self.store.clone();
        let like = lower.first().cloned();
        let record = blocking(move || store.create(kind, &key, &parent, labels, like)).await?;
        let mounts = self.mounts_of(&record, lower, ids).await;
        if mounts.is_err() {
            // containerd would not know of it.
            self.remove(record.name.clone()).await?;
        }
        mounts
    }

    /// A container is about to start: tells the lazy side, if all that it stands on is its.
    fn container(&self, key: &str, parent: &str) {
        let Ok(below) = self.store.ancestry(parent) else { return };
        let layers: Option<Vec<BlobDigest>> = below.iter().rev().map(|r| Some(r.lazy.as_ref()?.layer)).collect();
        let manifest = below.first().and_then(|top| top.labels.get(labels::HEADSTART_MANIFEST));
        let manifest = manifest.and_then(|manifest| manifest.parse().ok());
        if let (Some(layers), Some(manifest)) = (layers, manifest) {
            self.adopter.backend.container(key, &manifest, &layers);
        }
    }

    /// The mounts of a snapshot made before.
    pub async fn mounts(&self, key: &str) -> Result<Vec<Mount>, SnapshotError> {
        let record = self.store.stat(key)?;
        if record.is_committed() {
            return Err(SnapshotError::Precondition {
                name: key.into(),
                why: "is neither active nor a view",
            });
        }
        let lower = self.lower(&record.parent).await?;
        let ids = IdMap::from_labels(&record.labels)?;
        self.mounts_of(&record, lower, ids).await
    }

    async fn mounts_of(
        &self,
        record: &Record,
        lower: Vec<PathBuf>,
        ids: Option<IdMap>,
    ) -> Result<Vec<Mount>, SnapshotError> {
        let lower = match ids {
            None => lower,
            Some(ids) => {
                let (idmapped, id) = (self.idmapped.clone(), record.id);
                let top = lower.first().map_or_else(String::new, |dir| dir.display().to_string());
                let shown = blocking(move || Ok(idmapped.show(id, &lower, &ids))).await?;
                shown.map_err(|why| SnapshotError::NoIdMap { path: top, why })?
            }
        };
        let disk = self.store.disk();
        let own = OwnDirs {
            upper: disk.upper(record.id),
            work: disk.work(record.id),
        };
        Ok(mounts(record.kind, &own, &lower, &self.overlay))
    }

    /// Directories of a parent and those below it, top first. Shows lazy layers that are not shown yet.
    async fn lower(&self, parent: &str) -> Result<Vec<PathBuf>, SnapshotError> {
        let deadline = Instant::now() + self.present_timeout;
        let mut dirs = Vec::new();
        for record in self.store.ancestry(parent)? {
            let Some(lazy) = &record.lazy else {
                dirs.push(self.store.disk().upper(record.id));
                continue;
            };
            let lowerdir = self.adopter.pins.lowerdir(&lazy.layer, deadline).await;
            dirs.push(lowerdir.map_err(|error| {
                tracing::error!(name = record.name, layer = %lazy.layer, %error, "lazy layer not available");
                SnapshotError::LayerUnavailable {
                    name: record.name.clone(),
                    layer: lazy.layer.to_string(),
                    why: error.to_string(),
                }
            })?);
        }
        Ok(dirs)
    }

    pub async fn commit(&self, key: String, name: String, labels: Labels) -> Result<(), SnapshotError> {
        let store = self.store.clone();
        blocking(move || store.commit(&key, &name, labels)).await
    }

    /// Removes a snapshot; its files and its layer go in the background.
    pub async fn remove(&self, key: String) -> Result<(), SnapshotError> {
        let (store, pins, idmapped) = (self.store.clone(), self.adopter.pins.clone(), self.idmapped.clone());
        self.adopter.backend.container_gone(&key);
        blocking(move || {
            let record = store.remove(&key)?;
            // Also if the labels were changed meanwhile.
            idmapped.forget(record.id);
            if let Some(lazy) = &record.lazy {
                pins.unpin(&lazy.layer);
            }
            Ok(())
        })
        .await?;
        self.trash.sweep();
        Ok(())
    }

    pub fn stat(&self, key: &str) -> Result<Arc<Record>, SnapshotError> {
        self.store.stat(key)
    }

    pub async fn update(&self, name: String, labels: Labels, paths: Vec<String>) -> Result<Arc<Record>, SnapshotError> {
        let store = self.store.clone();
        blocking(move || store.update(&name, &labels, &paths)).await
    }

    pub fn list(&self, filters: &[String]) -> Result<Vec<Arc<Record>>, SnapshotError> {
        let filters = Filters::parse(filters)?;
        let mut records = self.store.all();
        records.retain(|record| filters.matches(record));
        Ok(records)
    }

    pub async fn usage(&self, key: &str) -> Result<Usage, SnapshotError> {
        let record = self.store.stat(key)?;
        if let Some(lazy) = &record.lazy {
            return Ok(self.adopter.backend.usage(&lazy.layer).unwrap_or_default());
        }
        let store = self.store.clone();
        blocking(move || store.usage(&record)).await
    }

    /// Whether a container, or anybody else, may have a mount of a lazy layer.
    pub fn uses_lazy_layers(&self) -> bool {
        let lazy_below = |parent: &str| match self.store.ancestry(parent) {
            Ok(below) => below.iter().any(|record| record.lazy.is_some()),
            // Gone meanwhile: not in use.
            Err(_) => false,
        };
        let all = self.store.all();
        all.iter()
            .any(|record| !record.is_committed() && lazy_below(&record.parent))
    }

    /// Deletes what removed snapshots left, waiting a moment for it.
    pub async fn cleanup(&self) {
        let _ = tokio::time::timeout(CLEANUP_WAIT, self.trash.sweep()).await;
    }

    /// Pulls that stand still until their image is converted.
    pub fn waits(&self) -> Vec<Waiting> {
        self.adopter.decisions.waits().now()
    }

    /// What became of the latest pulls.
    pub fn pulls(&self) -> &PullLog {
        &self.pulls
    }

    /// The calls so far.
    pub fn calls(&self) -> &Calls {
        &self.calls
    }

    pub fn snapshots(&self) -> Vec<Arc<Record>> {
        self.store.all()
    }

    /// Why no layer can be lazy now.
    pub fn obstacle(&self) -> Option<DeclineReason> {
        self.adopter.backend.obstacle()
    }

    /// How the lazy side stands. Looks at the disk.
    pub fn node_status(&self) -> Option<NodeStatus> {
        self.adopter.backend.status()
    }

    /// Ends background work.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.adopter.pins.finish(RELEASE_WAIT).await;
    }
}

/// Layers below a snapshot that is, or may be, mounted.
fn layers_in_use(store: &SnapshotStore) -> HashSet<BlobDigest> {
    let mounted = store.all().into_iter().filter(|record| !record.is_committed());
    let below = mounted.filter_map(|record| store.ancestry(&record.parent).ok());
    below
        .flatten()
        .filter_map(|record| Some(record.lazy.as_ref()?.layer))
        .collect()
}

/// Runs file work on a thread that may block. It runs to its end even if the caller goes away.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static,
) -> Result<T, SnapshotError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_cancelled() => Err(SnapshotError::Stopping),
        Err(error) => Err(SnapshotError::Io {
            what: "finish file work",
            source: std::io::Error::other(error),
        }),
    }
}
