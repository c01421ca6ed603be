//! Sizes of blobs, for HEAD.
//!
//! In: a source and a digest. Out: the size, or that the repository does not have it.
//! Invariant: those who ask for the same blob at the same time are one request upstream, and what the upstream does not
//! have is not asked for again at once. What is here is looked for first.
//! Not here: blobs themselves ([`super::blobs`]).

use headstart_layer_format::BlobDigest;

use super::{
    blobs::Blobs,
    coalesce::Coalesce,
    error::ReadError,
    negative::{Negative, What},
};
use crate::{
    store::{facts::Source, originals::Originals},
    upstream::Caller,
};

/// Clones share the requests under way.
#[derive(Clone, Debug)]
pub struct Sizes {
    blobs: Blobs,
    originals: Originals,
    negative: Negative,
    running: Coalesce<(Source, Caller, BlobDigest), Result<u64, ReadError>>,
}

impl Sizes {
    pub fn new(blobs: Blobs, originals: Originals, negative: Negative) -> Self {
        Self {
            blobs,
            originals,
            negative,
            running: Coalesce::default(),
        }
    }

    pub async fn get(&self, source: &Source, caller: &Caller, digest: &BlobDigest) -> Result<u64, ReadError> {
        let what = What::Blob(*digest);
        if let Some(no) = self.negative.get(source, caller, &what)
            && !self.originals.path(digest).exists()
        {
            return Err(no.into());
        }
        let key = (source.clone(), caller.clone(), *digest);
        let (blobs, originals, negative) = (self.blobs.clone(), self.originals.clone(), self.negative.clone());
        let size = self.running.run(key.clone(), || async move {
            let (source, caller, digest) = key;
            // The answer may have come since the look above.
            if let Some(no) = negative.get(&source, &caller, &what)
                && !originals.path(&digest).exists()
            {
                return Err(no.into());
            }
            let size = blobs.size(&source, &caller, &digest).await;
            match &size {
                Ok(_) => negative.learn(&source, &caller, what, Ok(())),
                Err(ReadError::Upstream(error)) => negative.learn::<()>(&source, &caller, what, Err(error)),
                Err(_) => {}
            }
            size
        });
        size.await.unwrap_or(Err(ReadError::Stopping))
    }
}
