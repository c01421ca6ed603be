//! Store (owner INGEST; originals.rs is MIRROR's).
pub mod facts;
use facts::*;
use headstart_layer_format::{BlobDigest, ChainId, DiffId};
use std::path::Path;
#[derive(Debug, thiserror::Error)]
#[error("store")]
pub struct StoreError;
#[derive(Clone, Debug)]
pub struct Store;
#[allow(unused_variables)]
impl Store {
    pub fn open(dir: &Path) -> Result<Store, StoreError> {
        unimplemented!()
    }
    pub fn record_manifest(&self, f: &ManifestFact) -> Result<(), StoreError> {
        unimplemented!()
    }
    pub fn manifest(&self, d: &BlobDigest) -> Result<Option<ManifestFact>, StoreError> {
        unimplemented!()
    }
    pub fn record_config(&self, f: &ConfigFact) -> Result<(), StoreError> {
        unimplemented!()
    }
    pub fn diff_ids(&self, manifest: &BlobDigest) -> Result<Option<Vec<DiffId>>, StoreError> {
        unimplemented!()
    }
    pub fn tag(&self, s: &Source, tag: &str) -> Result<Option<TagFact>, StoreError> {
        unimplemented!()
    }
    pub fn confirm_tag(&self, s: &Source, tag: &str, t: &TagFact) -> Result<(), StoreError> {
        unimplemented!()
    }
    pub fn is_member(&self, s: &Source, d: &BlobDigest) -> Result<bool, StoreError> {
        unimplemented!()
    }
    pub fn add_member(&self, s: &Source, d: &BlobDigest) -> Result<(), StoreError> {
        unimplemented!()
    }
    pub fn sources(&self, d: &BlobDigest) -> Result<Vec<Source>, StoreError> {
        unimplemented!()
    }
    pub fn chain(&self, c: &ChainId) -> Result<Option<ChainFact>, StoreError> {
        unimplemented!()
    }
    pub fn flush(&self) -> Result<(), StoreError> {
        unimplemented!()
    }
}
