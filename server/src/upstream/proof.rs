//! Whether an upstream gives a blob, and how large it is: the first byte of it.
//!
//! In: a repository and a digest, on whose behalf. Out: yes, and the blob's size if the upstream says so; or why not.
//! Invariant: what is asked is what a client will ask, a GET, since registries answer a HEAD where they do not answer the GET
//! that it stands for (a link that is signed for the one and not for the other, a store behind a firewall). It costs one
//! byte; of an upstream that ignores ranges, a connection and what it had sent by then. One that refuses ranges is asked by HEAD.
//! The size alone is asked for by HEAD, and by a byte only where HEAD does not say.
//! Not here: fetching a blob (`read/`).

use headstart_layer_format::BlobDigest;

use super::{
    Caller, RangeAnswer, Upstream, UpstreamError,
    client::{OTHER_RANGE, RETRY_PAUSE},
};

/// An answer that promises the byte, and does not bring it.
const NO_BYTE: UpstreamError = UpstreamError::BadAnswer("the first byte of the blob does not come");

impl Upstream {
    /// GET of a blob's first byte; once more if the upstream did not answer properly the first time.
    pub async fn blob_proof(
        &self,
        repository: &str,
        caller: &Caller,
        digest: &BlobDigest,
    ) -> Result<Option<u64>, UpstreamError> {
        match self.first_byte_twice(repository, caller, digest).await {
            // It does not like ranges, or makes a mess of them, and may well give the whole: its word must do.
            Err(error) if is_no_range(&error) => self.blob_head(repository, caller, digest).await,
            answer => answer,
        }
    }

    /// The size of a blob, if the upstream says so by HEAD or with the first byte: CDNs refuse a HEAD by a link that is signed
    /// for GET, and registries that know no HEAD of blobs say so.
    pub async fn blob_size(
        &self,
        repository: &str,
        caller: &Caller,
        digest: &BlobDigest,
    ) -> Result<Option<u64>, UpstreamError> {
        match self.blob_head(repository, caller, digest).await {
            Ok(None) => match self.first_byte_twice(repository, caller, digest).await {
                Err(error) if is_no_range(&error) => Ok(None),
                answer => answer,
            },
            Err(UpstreamError::Status(400 | 405 | 501)) => self.first_byte_twice(repository, caller, digest).await,
            answer => answer,
        }
    }

    async fn first_byte_twice(
        &self,
        repository: &str,
        caller: &Caller,
        digest: &BlobDigest,
    ) -> Result<Option<u64>, UpstreamError> {
        match self.first_byte(repository, caller, digest).await {
            // A time-out has already used up the client's patience.
            Err(error) if error == NO_BYTE || (error.is_transient() && error != UpstreamError::Timeout) => {
                tokio::time::sleep(error.pause(RETRY_PAUSE)).await;
                self.first_byte(repository, caller, digest).await
            }
            answer => answer,
        }
    }

    async fn first_byte(
        &self,
        repository: &str,
        caller: &Caller,
        digest: &BlobDigest,
    ) -> Result<Option<u64>, UpstreamError> {
        let mut body = match self.blob_range(repository, caller, digest, 0..1).await {
            Ok(RangeAnswer::Part(body)) => body,
            // Dropped after its first piece, and its connection with it.
            Ok(RangeAnswer::Whole(body)) if body.size != Some(0) => body,
            Ok(RangeAnswer::Whole(_)) => return Ok(Some(0)),
            Ok(RangeAnswer::PastEnd { size }) => return Ok(Some(size)),
            Err(error) => return Err(error),
        };
        match body.chunk().await {
            Ok(Some(_)) => Ok(body.size),
            Err(UpstreamError::Timeout) => Err(UpstreamError::Timeout),
            // It ended, and so is empty: whether that is right is compared with the digest.
            Ok(None) if body.size.is_none() => Ok(Some(0)),
            Ok(None) | Err(_) => Err(NO_BYTE),
        }
    }
}

fn is_no_range(error: &UpstreamError) -> bool {
    *error == OTHER_RANGE || matches!(error, UpstreamError::Status(400 | 405 | 501))
}
