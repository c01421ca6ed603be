//! A TOC as it was served.
//!
//! In: its bytes. Out: the same, with their digest. Invariant: the digest is that of these bytes, and is computed once: a TOC
//! of 60,000 files is some megabytes, and a pull waits for it.
//! Not here: what it says ([`headstart_layer_format::Toc`]).

use headstart_layer_format::{Toc, TocDigest};

#[derive(Clone, Debug)]
pub struct EncodedToc {
    bytes: Vec<u8>,
    digest: TocDigest,
}

impl EncodedToc {
    pub fn new(bytes: Vec<u8>) -> Self {
        let digest = Toc::digest(&bytes);
        Self { bytes, digest }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn digest(&self) -> &TocDigest {
        &self.digest
    }
}
