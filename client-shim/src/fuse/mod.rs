//! The kernel's view of layers.
//!
//! In: requests of the kernel. Out: attributes, names and bytes of the layers that were added.
//! Invariant: node ids are a pure function of (slot, inode), so nothing must be remembered across a restart; trees never
//! change, so the kernel may cache everything for ever.
//! Not here: which layers there are (`layers`), and where bytes come from (`cache`).
//!
//! `kernel.rs` speaks the protocol and knows nothing of layers; `tree_fs.rs` knows layers and nothing of the protocol.

pub mod attr;
pub(crate) mod directories;
pub mod kernel;
pub mod mount_table;
pub mod node_id;
pub mod probe_file;
pub mod read_plan;
pub mod session;
mod shown;
pub mod tree_file;
pub mod tree_fs;
pub mod wire;
pub(crate) mod xattrs;
