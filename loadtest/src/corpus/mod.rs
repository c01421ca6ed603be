//! Seeded synthetic images.
//!
//! In: a seed. Out: [`SyntheticImage`]s with blobs, digests and an oracle of what each layer must turn into.
//! Invariant: deterministic; written by our own tar writer, so every dialect and odd byte is under control.
//! Not here: serving them ([`crate::origin`]) and comparing with them ([`crate::check`]).

mod compress;
mod files;
mod image;
mod layer;
mod oracle;
mod rng;
mod tar_writer;
mod wild;
mod zoo;

pub use compress::Compression;
pub use files::layer_files;
pub use image::{
    DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST, Flavor, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, SyntheticImage,
    descriptor, index_of,
};
pub use layer::{LayerBuilder, SyntheticLayer};
pub use oracle::{Meta, Oracle, OracleEntry, OracleKind};
pub use rng::{Rng, big_blob, noise};
pub use tar_writer::{BLOCK, Dialect, Header, SparseForm, TarWriter, pax_record};
pub use wild::wild_tar;
pub use zoo::{CAPABILITY, ZooSpec};
