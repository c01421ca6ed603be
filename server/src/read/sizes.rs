//! Sizes of blobs, for HEAD.
//!
//! In: a source and a digest. Out: the size, or that the repository does not have it.
//! Invariant: those who ask for the same blob at the same time are one request upstream.
//! Not here: blobs themselves, and what the upstream is not asked for again at once ([`super::blobs`]).

use headstart_layer_format::BlobDigest;

use super::{blobs::Blobs, coalesce::Coalesce, error::ReadError};
use crate::{store::facts::Source, upstream::Caller};

/// Clones share the requests under way.
#[derive(Clone, Debug)]
pub struct Sizes {
    blobs: Blobs,
    running: Coalesce<(Source, Caller, BlobDigest), Result<u64, ReadError>>,
}

impl Sizes {
    pub fn new(blobs: Blobs) -> Self {
        Self {
            blobs,
            running: Coalesce::default(),
        }
    }

    pub async fn get(&self, source: &Source, caller: &Caller, digest: &BlobDigest) -> Result<u64, ReadError> {
        let key = (source.clone(), caller.clone(), *digest);
        let size = self.running.run(key.clone(), || {
            let blobs = self.blobs.clone();
            async move {
                let (source, caller, digest) = key;
                blobs.size(&source, &caller, &digest).await
            }
        });
        size.await.unwrap_or_else(|why| Err(why.into()))
    }
}
