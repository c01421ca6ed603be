//! Blobs that had come as a whole when the process was killed, before they had their name.
//!
//! In: the partials that a crash left, at the start. Out: those of which every unit is there are verified, and originals
//! or gone.
//! Invariant: nobody else fetches a blob while this looks at it; whoever asks for it meanwhile waits, and then looks
//! again. No upstream is asked, and nobody becomes a member of anything: that a blob is here says nothing about who
//! may have it.
//! Without this such a partial stayed until it was old: what depended on its bytes (an image's config, read and
//! recorded in the moment before the kill) was there, so nobody asked for it any more.
//! Not here: those with parts missing, which are resumed when somebody asks ([`super::opening`]).

use std::{io, os::unix::fs::FileExt as _};

use headstart_layer_format::BlobDigest;

use super::{blobs::Blobs, blocking::blocking, error::ReadError, whole::HASH_BUFFER};
use crate::store::{hasher::BlobHasher, originals::Originals};

impl Blobs {
    /// Once, before anything is swept.
    pub(super) async fn adopt_orphans(&self) {
        let yard = self.yard().clone();
        let found = blocking(move || Ok(yard.originals.whole_partials()?)).await;
        let found = found.unwrap_or_else(|error| {
            tracing::warn!(%error, "unfinished fetches of an earlier process cannot be listed");
            Vec::new()
        });
        for path in found {
            let Some((digest, upstream)) = self.owner(&path) else {
                continue;
            };
            let Some(watched) = self.occupy(&digest, &upstream) else {
                // Somebody was quicker, and finishes it.
                continue;
            };
            let (yard, name) = (self.yard().clone(), upstream);
            let adopted = blocking(move || Ok(adopt(&yard.originals, &digest, &name, || yard.stop.is_cancelled())?));
            match adopted.await {
                Ok(true) => tracing::info!(%digest, "a blob that had come as a whole before a crash is kept"),
                Ok(false) => {}
                Err(error) => tracing::warn!(%digest, %error, "an unfinished fetch cannot be finished"),
            }
            watched.end(self, ReadError::Incomplete);
        }
    }
}

/// Whether it is an original now.
fn adopt(originals: &Originals, digest: &BlobDigest, upstream: &str, stop: impl Fn() -> bool) -> io::Result<bool> {
    let partial = originals.partial(digest, upstream)?;
    let Some(size) = partial.size().filter(|&size| partial.prefix() == size) else {
        return Ok(false);
    };
    if originals.path(digest).exists() {
        partial.discard()?;
        return Ok(false);
    }
    let (mut hasher, mut at) = (BlobHasher::of(digest), 0);
    let mut buffer = vec![0; HASH_BUFFER];
    while at < size {
        if stop() {
            return Ok(false);
        }
        let len = (size - at).min(HASH_BUFFER as u64) as usize;
        partial.file().read_exact_at(&mut buffer[..len], at)?;
        hasher.update(&buffer[..len]);
        at += len as u64;
    }
    match hasher.finish() == *digest {
        true => partial.commit().map(|()| true),
        false => partial.discard().map(|()| false),
    }
}
