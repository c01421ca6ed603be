//! Whether a blob is its repository's.
//!
//! In: a source, a caller, a digest. Out: yes, or why not. Invariant: only an upstream's own word makes a blob the
//! repository's; that word is remembered, and so is its no, for a moment.
//! Not here: how long a no is believed ([`crate::read::negative`]), the record ([`crate::store`]).

use headstart_layer_format::BlobDigest;
use tracing::{Instrument as _, Span};

use super::{Blobs, ReadError};
use crate::{
    read::{blocking::blocking, errand::Errand, negative::What, opening::check_not_emptied},
    store::facts::Source,
    upstream::{Caller, UpstreamError},
};

/// Manifests whose blobs are being confirmed in the background; of further ones they are when somebody asks.
pub(super) const CONFIRMATIONS_MAX: usize = 64;

/// How an upstream is asked whether it has a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::read) enum Way {
    /// Its word.
    Head,
    /// The same, and the first byte where that does not say how large it is.
    Size,
    /// The first byte.
    FirstByte,
}

impl Blobs {
    pub(super) async fn is_member(&self, source: &Source, digest: &BlobDigest) -> Result<bool, ReadError> {
        let (inner, source, digest) = (self.0.clone(), source.clone(), *digest);
        blocking(move || Ok(inner.store.is_member(&source, &digest)?)).await
    }

    /// Asks the upstream whether the repository has the blob, and remembers the answer. Its size, if the upstream says so.
    pub(super) async fn ask(&self, errand: &Errand, source: &Source, way: Way) -> Result<Option<u64>, ReadError> {
        let what = What::Blob(errand.digest);
        if let Some(no) = self.0.negative.get(source, &errand.caller, &what) {
            return Err(no.into());
        }
        let size = match way {
            Way::Head => errand.word().await,
            Way::Size => errand.size().await,
            Way::FirstByte => errand.proof().await,
        };
        self.0.negative.learn(source, &errand.caller, what, size.as_ref());
        let size = size?;
        if let (Way::FirstByte, Some(size)) = (way, size) {
            check_not_emptied(&errand.digest, size)?;
        }
        self.remember(source, &errand.digest).await;
        Ok(size)
    }

    /// Whether the repository has the blob, as its upstream says now or has just said.
    pub(in crate::read) async fn asked(
        &self,
        source: &Source,
        caller: &Caller,
        digest: &BlobDigest,
        way: Way,
    ) -> Result<(), ReadError> {
        let errand = self.errand(source, caller, digest)?;
        self.ask(&errand, source, way).await.map(drop)
    }

    /// Of a blob that is here or on its way: whether it is the repository's, too. Once for everybody who asks, and not at
    /// all if that is known. A manifest that names what is not is not served for a while.
    pub(super) async fn confirm(&self, errand: &Errand, source: &Source) -> Result<(), ReadError> {
        let key = (source.clone(), errand.caller.clone(), errand.digest);
        let confirmed = self.0.confirming.run(key, || {
            let (blobs, errand, source) = (self.clone(), errand.clone(), source.clone());
            async move {
                if blobs.is_member(&source, &errand.digest).await? {
                    return Ok(());
                }
                let asked = match blobs.ask(&errand, &source, Way::Head).await {
                    // A registry without HEAD may have it all the same.
                    Err(ReadError::Upstream(UpstreamError::Status(400 | 405 | 501))) => {
                        blobs.ask(&errand, &source, Way::FirstByte).await
                    }
                    asked => asked,
                };
                let asked = asked.map(drop);
                if let Err(error) = &asked {
                    let Errand { caller, digest, .. } = &errand;
                    blobs.0.setbacks.refused(&source, caller, digest, error);
                }
                asked
            }
        });
        confirmed.await.unwrap_or_else(|why| Err(why.into()))
    }

    /// A manifest of `source` names these, and its upstream is up: of those that are here because of another repository
    /// it is found out now whether they can be had from this one, too, for the time when there is nobody to ask. Does not
    /// block.
    pub(in crate::read) fn confirm_soon(&self, source: &Source, caller: &Caller, digests: Vec<BlobDigest>) {
        let Ok(permit) = self.0.confirmations.clone().try_acquire_owned() else {
            return;
        };
        let (blobs, source, caller) = (self.clone(), source.clone(), caller.clone());
        let confirm = async move {
            let _permit = permit;
            for digest in digests {
                // One after the other: clients come first.
                // Nobody reads them: what an earlier process left is not compared with its digest for this.
                let (inner, of) = (blobs.0.clone(), source.clone());
                let is_stranger = blocking(move || {
                    Ok(inner.yard.originals.path(&digest).exists() && !inner.store.is_member(&of, &digest)?)
                });
                if !matches!(is_stranger.await, Ok(true)) {
                    continue;
                }
                let Ok(errand) = blobs.errand(&source, &caller, &digest) else {
                    return;
                };
                match blobs.confirm(&errand, &source).await {
                    Ok(()) | Err(ReadError::Upstream(UpstreamError::NotFound { .. })) => {}
                    Err(error) => {
                        tracing::debug!(%digest, %error, "blobs that are here are not confirmed");
                        return;
                    }
                }
            }
        };
        let stop = self.yard().stop.clone();
        let span = Span::current();
        self.yard()
            .tasks
            .spawn(stop.run_until_cancelled_owned(confirm).instrument(span));
    }

    /// That it is not remembered costs a question, not the answer.
    pub(super) async fn remember(&self, source: &Source, digest: &BlobDigest) {
        let (inner, source, digest) = (self.0.clone(), source.clone(), *digest);
        let added = blocking(move || Ok(inner.store.add_member(&source, &digest)?));
        if let Err(error) = added.await {
            tracing::warn!(%digest, %error, "membership is not recorded");
        }
    }
}
