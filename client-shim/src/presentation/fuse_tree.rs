//! Layers as directories of the node's one FUSE mount.
//!
//! In: layers. Out: `<mount>/layers/<slot>`. Invariant: one mount for the node; a slot is never shown as another layer.
//! Not here: the protocol (`fuse/kernel.rs`) and the tree (`fuse/tree_fs.rs`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{How, Presentation, PresentationError, Surroundings};
use crate::cache::Layer;
use crate::fuse::kernel::KernelFs;
use crate::fuse::session::{Connection, FuseMount, detach_stale};
use crate::fuse::tree_fs::{DEVICES_NAME, LAYERS_NAME, TreeFs};
use crate::fuse::wire::facts::Facts;
use crate::survival::Kept;

#[derive(Debug)]
pub struct FuseTree {
    tree: Arc<TreeFs>,
    mount: FuseMount,
    layers: PathBuf,
    devices: PathBuf,
}

impl FuseTree {
    /// Mounts anew, in place of whatever is there, and has it kept.
    pub fn mount(surroundings: &Surroundings<'_>, path: &Path, has_devices: bool) -> Result<Self, PresentationError> {
        detach_stale(path).map_err(|source| PresentationError::Stale {
            path: path.to_owned(),
            source,
        })?;
        let failed = |source| PresentationError::Mount {
            path: path.to_owned(),
            source,
        };
        let connection = Connection::mount(path, has_devices).map_err(failed)?;
        surroundings.keeper.keep(connection.kept().map_err(failed)?);
        Self::serve(surroundings, path, connection)
    }

    /// Goes on where a predecessor ended. `None`: what it left cannot be used.
    pub fn take_over(
        surroundings: &Surroundings<'_>,
        path: &Path,
        kept: Kept,
    ) -> Result<(Self, Facts), PresentationError> {
        let failed = |source| PresentationError::TakeOver {
            path: path.to_owned(),
            source,
        };
        let connection = Connection::adopt(path, kept).map_err(failed)?;
        surroundings.keeper.keep_on(connection.kept().map_err(failed)?);
        let facts = connection.facts;
        Ok((Self::serve(surroundings, path, connection)?, facts))
    }

    fn serve(s: &Surroundings<'_>, path: &Path, connection: Connection) -> Result<Self, PresentationError> {
        let tree = Arc::new(TreeFs::new(s.store, s.counters));
        // Before the first request: what a predecessor showed must be there.
        for layer in s.layers {
            tree.add(Arc::clone(layer));
        }
        let Facts {
            kernel, has_devices, ..
        } = connection.facts;
        let fs = KernelFs::new(
            Arc::clone(&tree),
            Arc::clone(s.counters),
            s.runtime.clone(),
            has_devices,
            kernel,
        );
        let mount = connection.serve(fs, s.config.kernel_readahead_kib, s.resend);
        let mount = mount.map_err(|source| PresentationError::Mount {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            tree,
            mount,
            layers: path.join(LAYERS_NAME),
            devices: path.join(DEVICES_NAME),
        })
    }

    /// A file with the data space of a presented layer, for the kernel.
    pub fn device(&self, name: &str) -> PathBuf {
        self.devices.join(name)
    }
}

impl FuseTree {
    /// Has a layer's device and, for whoever asks, its tree.
    pub fn offer(&self, layer: Arc<Layer>) -> PathBuf {
        let path = self.layers.join(layer.slot().to_string());
        if self.tree.add(layer) {
            self.mount.layers_changed();
        }
        path
    }

    /// Somebody will ask for the tree.
    pub fn prepare(&self, slot: u32) {
        self.tree.prepare(slot);
    }
}

impl Presentation for FuseTree {
    fn present(&self, layer: Arc<Layer>) -> PathBuf {
        let slot = layer.slot();
        let path = self.offer(layer);
        self.prepare(slot);
        path
    }

    fn how(&self, slot: u32) -> Option<How> {
        self.tree.shows(slot).then(|| How {
            by: self.name(),
            why: None,
        })
    }

    fn settle(&self) {
        self.tree.settle();
    }

    fn withdraw(&self, layer: &Layer) {
        if self.tree.remove(layer.slot()) {
            self.mount.forget_slot(layer.slot());
            self.mount.layers_changed();
        }
    }

    fn name(&self) -> &'static str {
        "fuse"
    }

    fn leave(&self) {
        self.mount.leave();
    }

    fn close(&self) {
        self.mount.close();
    }
}
