//! What this node keeps on its disk: TOCs, chunks in data space, and slots.
//!
//! In: verified chunks and encoded TOCs. Out: a [`Layer`] whose bytes can be read, fetching what is missing.
//! Invariant: a chunk is claimed on disk only after its bytes are; what a crash loses is fetched again, nothing else.
//! Not here: names and attributes as the kernel sees them (`fuse`).
//!
//! ```text
//! <root_dir>/cache/lock            one shim a directory
//! <root_dir>/cache/next_slot       never used twice, so the kernel's caches never meet another layer
//! <root_dir>/cache/<hex>/toc       as served
//! <root_dir>/cache/<hex>/data      sparse, in data space
//! <root_dir>/cache/<hex>/bitmap    chunks of `data` that are verified and durable
//! <root_dir>/cache/<hex>/verified, quarantined, lent   see `marks.rs`
//! <root_dir>/cache/<hex>/sources   repositories that have the layer's original
//! <root_dir>/cache/<hex>/erofs      the tree as an EROFS image; made again by every start
//! <root_dir>/cache/<hex>/tree       the tree as the FUSE mount reads it, if it shows it; checked, or made again
//! <root_dir>/cache/<hex>/layer     digests and slot; written last, so a directory with it is complete
//! ```

pub mod bitmap;
mod borrow;
mod chunk_index;
pub mod config;
pub mod diff_id;
pub mod dir;
pub mod evict;
pub mod fill;
mod foreseen;
pub mod layer;
pub mod layer_file;
mod loan;
mod marks;
mod meta;
mod pattern;
pub mod reader;
mod reads;
pub mod room;
mod slots;
mod sources;
mod transit;

pub use config::{LazyConfig, PresentationChoice, WholeLayers};
pub use dir::{CacheDir, CacheError};
pub use foreseen::Foreseen;
pub use layer::Layer;
pub use layer_file::LayerFile;
pub use loan::Loan;
pub use reader::LayerReader;
pub use reads::Found;
pub use room::Room;
