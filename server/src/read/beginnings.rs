//! The beginnings of blobs: the proof that they can be had which costs nothing.
//!
//! In: blobs that a client will fetch in a moment. Out: the first unit of each has begun to come, or why one does not.
//! Invariant: what is asked for here is kept, and not asked for again by the client or the conversion, so no byte comes
//! twice. A HEAD would be cheaper still and prove less: some registries answer it and not the GET that it stands for. What
//! is our own trouble (no turn, no disk) is not held against the blob.
//! Not here: which blobs those are, and what follows from a no ([`super::obtainable`]).

use std::time::Instant;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use headstart_layer_format::BlobDigest;

use super::{
    blobs::Blobs,
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

/// Waits until each of the blobs has begun to come; the first that does not is the answer. Who has waited [`VOUCH_MAX`]
/// begins no further ones. "No": of one at least nothing is known. To be called on behalf of the client's asker.
pub async fn begin(
    blobs: &Blobs,
    source: &Source,
    caller: &Caller,
    digests: Vec<BlobDigest>,
) -> Result<bool, (BlobDigest, ReadError)> {
    let since = Instant::now();
    let first = Wants::Ranges(vec![Spec::From {
        first: 0,
        last: Some(UNIT - 1),
    }]);
    let begun = stream::iter(digests).map(|digest| {
        let first = &first;
        async move {
            if since.elapsed() > VOUCH_MAX || !blobs.begins_early() {
                return Ok(false);
            }
            // Dropped at once: it is kept for the next reader a moment in flight, and then on disk.
            match blobs.open_range(source, caller, &digest, first).await {
                Err(error) if !is_ours(&error) => Err((digest, error)),
                begun => Ok(begun.is_ok()),
            }
        }
    });
    let begun = begun.buffer_unordered(AT_ONCE);
    begun.try_fold(true, async |all, one| Ok(all && one)).await
}

/// Nothing that speaks against the blob: somebody who asks for it in another way, or later, may well get it.
fn is_ours(error: &ReadError) -> bool {
    match error {
        ReadError::Busy | ReadError::Stopping | ReadError::Disk(_) | ReadError::Incomplete => true,
        // There are registries that do not like a Range.
        ReadError::Upstream(error) => matches!(error, UpstreamError::Busy | UpstreamError::Status(400 | 405 | 501)),
        _ => false,
    }
}
