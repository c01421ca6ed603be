//! What has a digest and no repository: TOCs, data, chunks, images and chains.
//!
//! In: a client and a digest. Out: whether it may read it.
//! Invariant: it may if it may read one repository that is known to hold the digest: the upstream has served the digest
//! from there, or says now that it has it. That a manifest of a repository merely names the digest is not enough: anybody
//! can write a manifest. A client that may not learns nothing, also not whether the digest is known.
//! Not here: which chunks belong to a layer (`read/seekable.rs`).

use headstart_layer_format::BlobDigest;

use super::{Access, AccessError, Client, Credentials, Inner, Probe, Standing, forwarded, rules::Rules};
use crate::{store::facts::Source, upstream::Caller};

/// Questions to upstreams that one digest may cost. A digest may be in many repositories, most of which the client
/// cannot read.
const QUESTIONS_MAX: usize = 4;

/// What a digest names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    Layer(BlobDigest),
    Manifest(BlobDigest),
}

impl Named {
    fn digest(&self) -> &BlobDigest {
        match self {
            Self::Layer(digest) | Self::Manifest(digest) => digest,
        }
    }

    fn probe(&self) -> Probe {
        match self {
            Self::Layer(digest) => Probe::Blob(*digest),
            Self::Manifest(digest) => Probe::Manifest(crate::upstream::Reference::Digest(*digest)),
        }
    }
}

impl Access {
    /// Whether `client` may read what `named` names. `hint`: the repository that it means, where the server may know too
    /// many to remember all.
    pub async fn allow_digest(&self, client: &Client, named: Named, hint: Option<&Source>) -> Result<(), AccessError> {
        let Some(inner) = &self.0 else { return Ok(()) };
        let credentials = match inner.standing(client, Rules::allow_everything).await? {
            Standing::Allowed => return Ok(()),
            Standing::NotAllowed(credentials) => credentials,
        };
        let sources = match hint {
            Some(source) => vec![source.clone()],
            None => inner.sources(named.digest()).await?,
        };
        let mut questions = QUESTIONS_MAX;
        let mut left = Vec::new();
        for source in sources {
            let is_member = inner.is_member(&source, named.digest()).await?;
            let standing = inner
                .standing(client, |rules, names| rules.allow(names, &source))
                .await?;
            if let Standing::NotAllowed(_) = standing {
                left.push((source, is_member));
            } else if is_member || inner.confirm(&source, &Caller::Server, named, &mut questions).await {
                return Ok(());
            }
        }
        if let Some(proofs) = &inner.proofs {
            let own = forwarded(client, &credentials);
            // Those that need one question first.
            left.sort_by_key(|(_, is_member)| !is_member);
            for (source, is_member) in left {
                if questions == 0 {
                    break;
                }
                questions -= 1;
                if let Ok(caller) = proofs.prove(&source, &named.probe(), own).await
                    && (is_member || inner.confirm(&source, &caller, named, &mut questions).await)
                {
                    return Ok(());
                }
            }
        }
        Err(inner.hidden(&credentials))
    }

    /// Whether `client` may read whatever there is: then it may also hear that something is not. The error is the one
    /// that it gets for what it may not read.
    pub async fn allow_unknown(&self, client: &Client) -> Result<(), AccessError> {
        let Some(inner) = &self.0 else { return Ok(()) };
        match inner.standing(client, Rules::allow_everything).await? {
            Standing::Allowed => Ok(()),
            Standing::NotAllowed(credentials) => Err(inner.hidden(&credentials)),
        }
    }
}

impl Inner {
    /// Clients of these routes do not wait to be challenged, so only those are that could do better.
    fn hidden(&self, credentials: &Credentials) -> AccessError {
        match self.refusal(credentials, true) {
            AccessError::Unauthorized if self.proofs.is_none() => AccessError::Unauthorized,
            _ => AccessError::Hidden,
        }
    }

    async fn sources(&self, digest: &BlobDigest) -> Result<Vec<Source>, AccessError> {
        let (store, digest) = (self.store.clone(), *digest);
        blocking(move || Ok(store.sources(&digest)?)).await
    }

    async fn is_member(&self, source: &Source, digest: &BlobDigest) -> Result<bool, AccessError> {
        let (store, source, digest) = (self.store.clone(), source.clone(), *digest);
        blocking(move || Ok(store.is_member(&source, &digest)?)).await
    }

    /// Whether the upstream says now that the repository has the layer; a yes is recorded. A manifest was served from its
    /// repository itself before anybody asks for its layers, so it needs no question.
    async fn confirm(&self, source: &Source, caller: &Caller, named: Named, questions: &mut usize) -> bool {
        let Named::Layer(digest) = named else { return false };
        if *questions == 0 {
            return false;
        }
        *questions -= 1;
        self.blobs.size(source, caller, &digest).await.is_ok()
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AccessError> + Send + 'static,
) -> Result<T, AccessError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(AccessError::Store(error.to_string())))
}
