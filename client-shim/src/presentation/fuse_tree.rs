//! Layers as directories of the node's one FUSE mount.
//!
//! In: layers. Out: `<mount>/layers/<slot>`. Invariant: one mount for the node; a slot is never shown as another layer.
//! Not here: the protocol (`fuse/kernel.rs`) and the tree (`fuse/tree_fs.rs`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::runtime::Handle;

use super::{Presentation, PresentationError};
use crate::cache::{Layer, LazyConfig};
use crate::counters::Counters;
use crate::fuse::kernel::KernelFs;
use crate::fuse::session::{FuseMount, detach_stale};
use crate::fuse::tree_fs::{DEVICES_NAME, LAYERS_NAME, TreeFs};

#[derive(Debug)]
pub struct FuseTree {
    tree: Arc<TreeFs>,
    mount: FuseMount,
    layers: PathBuf,
    devices: PathBuf,
}

impl FuseTree {
    /// Mounts at `path`, clearing what a killed predecessor left there. `store` is where chunks are kept: what `statfs`
    /// speaks of. `has_devices`: data spaces are read as files, see [`FuseTree::device`].
    pub fn mount(
        path: &Path,
        store: &Path,
        config: &LazyConfig,
        counters: Arc<Counters>,
        runtime: Handle,
        has_devices: bool,
    ) -> Result<Self, PresentationError> {
        detach_stale(path).map_err(|source| PresentationError::Stale {
            path: path.to_owned(),
            source,
        })?;
        let tree = Arc::new(TreeFs::new(store));
        let kernel = KernelFs::new(Arc::clone(&tree), counters, runtime, has_devices);
        let mount =
            FuseMount::new(path, kernel, config.kernel_readahead_kib).map_err(|source| PresentationError::Mount {
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

impl Presentation for FuseTree {
    fn present(&self, layer: Arc<Layer>) -> Result<PathBuf, PresentationError> {
        let path = self.layers.join(layer.slot().to_string());
        if self.tree.add(layer) {
            self.mount.layers_changed();
        }
        Ok(path)
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

    fn close(&self) {
        self.mount.close();
    }
}
