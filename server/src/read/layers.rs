//! Conversion queue and state (owner INGEST).
use crate::{
    ingest::IngestConfig,
    metrics::Metrics,
    read::blobs::Blobs,
    store::{Store, facts::ManifestFact},
};
#[derive(Clone, Debug)]
pub struct Layers;
#[allow(unused_variables)]
impl Layers {
    pub fn new(store: Store, blobs: Blobs, config: IngestConfig, metrics: Metrics) -> Layers {
        unimplemented!()
    }
    pub fn manifest_served(&self, fact: ManifestFact) {
        unimplemented!()
    }
    pub async fn shutdown(&self) {
        unimplemented!()
    }
}
