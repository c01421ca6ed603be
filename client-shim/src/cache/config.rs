//! How this node reads lazily.
//!
//! In: the `[lazy]` table of shim.toml. Out: [`LazyConfig`]. Invariant: every value has a default that works.
//! Not here: bounds of single requests (`fetch/config.rs`).

use std::time::Duration;

use serde::Deserialize;

/// How layers become directories.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PresentationChoice {
    /// EROFS where the start-up probe finds that it works, else the FUSE tree.
    #[default]
    Auto,
    /// EROFS, or no lazy layers at all.
    Erofs,
    /// The FUSE tree, without a probe.
    Fuse,
}

/// Who reads a layer of which every byte is here, where layers are shown as EROFS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WholeLayers {
    /// The kernel by itself, as `direct`, if its release is known to do that rightly; else as `asked`.
    #[default]
    Auto,
    /// The kernel, past the page cache of the filesystem below where a trial at the start finds that it works, else as `cached`.
    Direct,
    /// The kernel, through the page cache of the filesystem below.
    Cached,
    /// The kernel asks us, as for any other layer.
    Asked,
}

/// Bounds and habits of lazy layers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LazyConfig {
    /// How layers are shown.
    pub presentation: PresentationChoice,
    /// Who reads whole layers.
    pub whole_layers: WholeLayers,
    /// How long a reader waits for bytes that are not here before it gets an I/O error. The kernel asks a second time when
    /// its read-ahead failed, so a process may see the error after up to twice this.
    pub demand_timeout_ms: u64,
    /// Files up to this size are fetched whole when first touched.
    pub small_file_bytes_max: u64,
    /// How far ahead of a sequential reader of a larger file chunks are fetched, at most: the window grows while it reads on.
    pub readahead_bytes: u64,
    /// Read-ahead of the kernel on our mounts, at most 1024: one request. The kernel's own default for FUSE is 128. Of a whole
    /// layer's own file, which nobody is asked for, it is at least 1024.
    pub kernel_readahead_kib: u32,
    /// How often chunks become durable; a crash loses (and fetches again) at most this much time's worth.
    pub flush_interval_ms: u64,
    /// Layers this node may know at once. Each costs memory: 4 bytes a file, and 56 a chunk.
    pub layers_max: usize,
    /// Bytes that chunks may take on this disk; 0: as many as there are. Layers that no container uses go first, the least
    /// recently read first. A layer that the kernel reads by itself does not go; such layers have 60 % of this at most.
    pub cache_bytes_max: u64,
    /// Below this much free space nothing is kept: what is read is fetched, shown and forgotten, and what can go goes.
    pub free_bytes_min: u64,
    /// Memory for chunks that the disk has no room for.
    pub transit_bytes_max: u64,
    /// Chunks whose place on this node is known, so that another layer's are copied instead of fetched; some 30 bytes each.
    pub index_chunks_max: usize,
    /// Whether layers are fetched as a whole, in the background, while nobody waits for bytes.
    pub background_fill: bool,
    /// How long after a layer was presented that begins: what a container's start reads comes first.
    pub fill_after_ms: u64,
    /// Bytes a second that it takes at most; 0: what is to be had.
    pub fill_bytes_per_sec_max: u64,
}

impl Default for LazyConfig {
    fn default() -> Self {
        Self {
            presentation: PresentationChoice::default(),
            whole_layers: WholeLayers::default(),
            demand_timeout_ms: 10_000,
            small_file_bytes_max: 1 << 20,
            readahead_bytes: 8 << 20,
            kernel_readahead_kib: 512,
            flush_interval_ms: 2_000,
            layers_max: 4096,
            cache_bytes_max: 0,
            free_bytes_min: 1 << 30,
            transit_bytes_max: 32 << 20,
            index_chunks_max: 1 << 20,
            background_fill: true,
            fill_after_ms: 15_000,
            fill_bytes_per_sec_max: 0,
        }
    }
}

impl LazyConfig {
    pub(crate) fn demand_timeout(&self) -> Duration {
        Duration::from_millis(self.demand_timeout_ms)
    }

    pub(crate) fn flush_interval(&self) -> Duration {
        // A zero interval would spin.
        Duration::from_millis(self.flush_interval_ms.max(10))
    }
}
