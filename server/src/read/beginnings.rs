//! The beginnings of blobs: the proof that they can be had which costs nothing.
//!
//! In: blobs that a client will fetch in a moment. Out: the first unit of each has begun to come, and what has no more than that
//! is here; or why one does not come.
//! Invariant: what is asked for here is kept, and not asked for again by the client or the conversion, so no byte comes
//! twice. A HEAD would be cheaper still and prove less: some registries answer it and not the GET that it stands for. A blob of
//! one unit (configs are, and many layers) is waited for and compared with its digest; of a larger one that would mean
//! to hold the manifest for the whole image. What is our own trouble (no turn, no disk) is not held against the blob.
//! Not here: which blobs those are, and what follows from a no ([`super::obtainable`]).

use std::time::Instant;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use headstart_layer_format::BlobDigest;

use super::{
    blobs::{Await, Blobs},
    blocking::blocking,
    error::ReadError,
    obtainable::VOUCH_MAX,
    wants::{Spec, Wants},
};
use crate::{
    store::{facts::Source, units::UNIT},
    upstream::{Caller, UpstreamError},
};

/// Blobs of one manifest that are begun at the same time: most images have fewer, and wait for one round trip.
pub const AT_ONCE: usize = 16;

/// Waits until each of the blobs has begun to come, and for [`VOUCH_MAX`] until those of one unit are here and right; the first
/// that does not come, or is wrong, is the answer. Who has waited that long begins no further ones. "No": of one at least
/// nothing is known. To be called on behalf of the client's asker.
pub async fn begin(
    blobs: &Blobs,
    source: &Source,
    caller: &Caller,
    digests: Vec<BlobDigest>,
) -> Result<bool, (BlobDigest, ReadError)> {
    let until = Instant::now() + VOUCH_MAX;
    let first = Wants::Ranges(vec![Spec::From {
        first: 0,
        last: Some(UNIT - 1),
    }]);
    let verdict = Await::up_to(UNIT, until);
    let begun = stream::iter(digests).map(|digest| {
        let first = &first;
        async move {
            if Instant::now() > until || !blobs.begins_early() {
                return Ok(false);
            }
            // Dropped at once: it is kept for the next reader a moment in flight, and then on disk.
            match blobs.open_awaiting(source, caller, &digest, first, verdict).await {
                Ok(blob) => Ok(blob.is_proven()),
                Err(ReadError::Incomplete) => match is_here(blobs, digest).await {
                    true => Ok(true),
                    false => Err((digest, ReadError::Incomplete)),
                },
                Err(error) if is_ours(&error) => Ok(false),
                Err(error) => Err((digest, error)),
            }
        }
    });
    let begun = begun.buffer_unordered(AT_ONCE);
    begun.try_fold(true, async |all, one| Ok(all && one)).await
}

/// Somebody else may have put it here meanwhile, which breaks off what was begun.
async fn is_here(blobs: &Blobs, digest: BlobDigest) -> bool {
    let blobs = blobs.clone();
    // Where that cannot be told, nothing speaks against the blob.
    blocking(move || Ok(blobs.is_on_disk(&digest))).await.unwrap_or(true)
}

/// Nothing that speaks against the blob: somebody who asks for it in another way, or later, may well get it.
fn is_ours(error: &ReadError) -> bool {
    match error {
        ReadError::Busy | ReadError::Stopping | ReadError::Disk(_) => true,
        // There are registries that do not like a Range.
        ReadError::Upstream(error) => matches!(error, UpstreamError::Busy | UpstreamError::Status(400 | 405 | 501)),
        _ => false,
    }
}
