//! The layers this node knows (owner LAZY).
use crate::fetch::servers::Servers;
use headstart_layer_format::BlobDigest;
use std::{path::PathBuf, time::Instant};
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LazyConfig {}
#[derive(Debug, thiserror::Error)]
#[error("layers")]
pub struct LayersError;
#[derive(Clone, Debug)]
pub struct NodeLayers;
/// A layer whose tree can be used as an overlay lowerdir.
#[derive(Clone, Debug)]
pub struct Presented {
    pub lowerdir: PathBuf,
    pub digest: BlobDigest,
    pub slot: u32,
    pub data_size: u64,
    pub entry_count: u64,
}
#[allow(unused_variables)]
impl NodeLayers {
    pub async fn open(
        root_dir: &std::path::Path,
        config: &LazyConfig,
        servers: Servers,
    ) -> Result<NodeLayers, LayersError> {
        unimplemented!()
    }
    pub async fn present(&self, layer: &BlobDigest, deadline: Instant) -> Result<Presented, LayersError> {
        unimplemented!()
    }
    pub fn present_known(&self, layer: &BlobDigest) -> Result<Presented, LayersError> {
        unimplemented!()
    }
    pub async fn release(&self, layer: &BlobDigest) {
        unimplemented!()
    }
    pub fn usage(&self, layer: &BlobDigest) -> Option<(u64, u64)> {
        unimplemented!()
    }
    pub async fn shutdown(&self) {
        unimplemented!()
    }
}
