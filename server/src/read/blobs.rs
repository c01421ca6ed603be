//! One fetch, many readers (owner MIRROR).
use crate::store::facts::Source;
use bytes::Bytes;
use futures_util::Stream;
use headstart_layer_format::BlobDigest;
use std::{io::Read, ops::Range};
#[derive(Clone, Debug, thiserror::Error)]
#[error("read")]
pub struct ReadError;
#[derive(Clone, Debug)]
pub struct Blobs;
#[derive(Clone, Debug)]
pub struct Blob;
#[derive(Debug)]
pub struct BlockingReader;
impl Read for BlockingReader {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        unimplemented!()
    }
}
#[allow(unused_variables)]
impl Blobs {
    pub async fn open(&self, source: &Source, digest: &BlobDigest) -> Result<Blob, ReadError> {
        unimplemented!()
    }
    pub async fn read_small(&self, source: &Source, digest: &BlobDigest, size_max: u64) -> Result<Bytes, ReadError> {
        unimplemented!()
    }
}
#[allow(unused_variables)]
impl Blob {
    pub fn size(&self) -> u64 {
        unimplemented!()
    }
    pub fn stream(&self, range: Range<u64>) -> impl Stream<Item = Result<Bytes, ReadError>> + Send + 'static {
        futures_util::stream::empty()
    }
    pub fn blocking_reader(&self) -> BlockingReader {
        unimplemented!()
    }
}
