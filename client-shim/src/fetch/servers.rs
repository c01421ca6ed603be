//! The configured servers, with failover (owner LAZY).
use headstart_layer_format::{
    BlobDigest, ChainId, Toc,
    api::{ChainStatus, ImageStatus, LayerStatus},
};
use std::sync::Arc;
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FetchConfig {}
#[derive(Clone, Debug, thiserror::Error)]
#[error("fetch")]
pub struct FetchError;
#[derive(Clone, Debug)]
pub struct Servers;
#[derive(Debug)]
pub enum TocAnswer {
    Ready { bytes: Vec<u8>, toc: Arc<Toc> },
    NotReady(Box<LayerStatus>),
    Unknown,
}
#[allow(unused_variables)]
impl Servers {
    pub fn new(urls: &[String], config: &FetchConfig) -> Result<Servers, FetchError> {
        unimplemented!()
    }
    pub async fn image(&self, manifest: &BlobDigest, wait_ms: u64) -> Result<Option<ImageStatus>, FetchError> {
        unimplemented!()
    }
    pub async fn chain(&self, chain: &ChainId) -> Result<Option<ChainStatus>, FetchError> {
        unimplemented!()
    }
    pub async fn toc(&self, layer: &BlobDigest, wait_ms: u64) -> Result<TocAnswer, FetchError> {
        unimplemented!()
    }
}
