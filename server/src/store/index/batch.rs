//! Rows that change together.
//!
//! In: what changes. Out: keys and rows. Invariant: none of it is seen before all of it ([`super::Index::apply`]).
//! Not here: what keys and rows look like ([`crate::store::keys`]).

use headstart_layer_format::{BlobDigest, ChainId, ChunkDigest, TocDigest};

use super::{ChainRow, IndexError};
use crate::store::keys;
use crate::store::layers::LayerRecord;
use crate::store::pack::{Location, PackId};

/// Rows that become visible together: by key, `None` for one that goes.
#[derive(Debug, Default)]
pub struct Batch(pub(super) Vec<(Vec<u8>, Option<Vec<u8>>)>);

impl Batch {
    pub(super) fn insert(&mut self, key: Vec<u8>, row: Vec<u8>) {
        self.0.push((key, Some(row)));
    }

    fn remove(&mut self, key: Vec<u8>) {
        self.0.push((key, None));
    }

    pub fn chunk(&mut self, digest: &ChunkDigest, at: &Location) {
        self.insert(keys::chunk(digest), keys::location(at));
    }

    pub fn toc(&mut self, digest: &TocDigest, at: &Location) {
        self.insert(keys::toc(digest), keys::location(at));
    }

    pub fn layer(&mut self, digest: &BlobDigest, record: &LayerRecord, at: &Location) -> Result<(), IndexError> {
        let mut row = keys::location(at);
        serde_json::to_writer(&mut row, record).map_err(|_| IndexError::BadRow("write a layer"))?;
        self.insert(keys::layer(digest), row);
        Ok(())
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// A row by its key.
    pub fn forget(&mut self, key: Vec<u8>) {
        self.remove(key);
    }

    /// Who claims a chain ID; without any the row goes.
    pub fn chain(&mut self, chain: &ChainId, claims: &[ChainRow]) -> Result<(), IndexError> {
        match claims.is_empty() {
            true => self.remove(keys::chain(chain)),
            false => {
                let row = serde_json::to_vec(claims).map_err(|_| IndexError::BadRow("write a chain"))?;
                self.insert(keys::chain(chain), row);
            }
        }
        Ok(())
    }

    pub fn forget_layer(&mut self, digest: &BlobDigest) {
        self.remove(keys::layer(digest));
    }

    pub fn used(&mut self, layer: &BlobDigest, unix_ms: u64) {
        self.insert(keys::used(layer), unix_ms.to_le_bytes().to_vec());
    }

    pub fn forget_used(&mut self, layer: &BlobDigest) {
        self.remove(keys::used(layer));
    }

    /// The pack has nothing any more that counts; what the index says of it is void once its file is gone.
    pub fn doom(&mut self, pack: PackId) {
        self.insert(keys::doomed(pack), Vec::new());
    }

    /// The doomed pack's file is gone.
    pub fn bury(&mut self, pack: PackId) {
        self.remove(keys::doomed(pack));
        self.remove(keys::progress(pack));
    }

    /// Everything of `pack` below `end` has its rows.
    pub fn progress(&mut self, pack: PackId, end: u64) {
        self.insert(keys::progress(pack), end.to_le_bytes().to_vec());
    }
}
