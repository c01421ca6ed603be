//! What this node keeps on its disk: TOCs, chunks in data space, and slots.
//!
//! In: verified chunks and encoded TOCs. Out: a [`Layer`] whose bytes can be read, fetching what is missing.
//! Invariant: a chunk is claimed on disk only after its bytes are; what a crash loses is fetched again, nothing else.
//! Not here: names and attributes as the kernel sees them (`fuse`), and a bound on bytes (eviction is a later step).
//!
//! ```text
//! <root_dir>/cache/lock            one shim a directory
//! <root_dir>/cache/next_slot       never used twice, so the kernel's caches never meet another layer
//! <root_dir>/cache/<hex>/toc       as served
//! <root_dir>/cache/<hex>/data      sparse, in data space
//! <root_dir>/cache/<hex>/bitmap    chunks of `data` that are verified and durable
//! <root_dir>/cache/<hex>/erofs      the tree as an EROFS image; made again by every start
//! <root_dir>/cache/<hex>/layer     digests and slot; written last, so a directory with it is complete
//! ```

mod atomic_file;
pub mod bitmap;
pub mod config;
pub mod dir;
pub mod layer;
pub mod layer_file;
mod meta;
pub mod reader;
mod slots;
mod toc_file;

pub use config::{LazyConfig, PresentationChoice};
pub use dir::{CacheDir, CacheError};
pub use layer::Layer;
pub use layer_file::LayerFile;
pub use reader::LayerReader;
