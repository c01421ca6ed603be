//! Who may read what.
//!
//! In: a client, and what it asks for. Out: on whose behalf upstreams are asked for it, or why it may not have it.
//! Invariant: bytes are shared by everybody, rights are not: each request for a manifest, blob, TOC, data or chunk passes
//! here first. Without `[access]` everybody may read everything, and nobody is challenged. What anybody may read costs
//! nobody a check of a password.
//! Not here: the answer to a client that may not (`http/error.rs`).

mod basic;
mod client;
mod digests;
mod error;
mod glob;
mod htpasswd;
mod identify;
mod passwords;
mod proofs;
mod rules;
mod tokens;

use std::sync::Arc;

pub use client::{Client, Peer, Shown};
pub use digests::Named;
pub use error::{AccessError, AccessSetupError};
use headstart_layer_format::BlobDigest;
use identify::{Credentials, Identify};
use proofs::Proofs;
use rules::{Names, Rules};

use crate::{
    config::{AccessMethod, AccessMode, ChallengePing, ClientCertificates, Config},
    read::blobs::Blobs,
    store::{Store, facts::Source},
    upstream::{Caller, Reference, Upstreams},
};

/// What a client wants of a repository: where rights have to be proven at an upstream, it is asked for this.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Probe {
    Manifest(Reference),
    Blob(BlobDigest),
    /// The repository as such: its tags and referrers.
    Repository,
}

/// Decides; clones share what it remembers. `None`: everybody may read everything.
#[derive(Clone, Debug)]
pub struct Access(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    identify: Identify,
    rules: Rules,
    /// In mode `upstream`.
    proofs: Option<Proofs>,
    challenge_ping: ChallengePing,
    store: Store,
    blobs: Blobs,
}

/// What the rules say of a client.
enum Standing {
    Allowed,
    NotAllowed(Credentials),
}

impl Access {
    /// Reads the files that the configuration names. To be called on a Tokio runtime.
    pub fn new(config: &Config, upstreams: &Upstreams, store: &Store, blobs: &Blobs) -> Result<Self, AccessSetupError> {
        let shows_certificates = config
            .tls
            .as_ref()
            .is_some_and(|tls| tls.client_cert != ClientCertificates::Off);
        let config = &config.access;
        if config.methods.contains(&AccessMethod::Certificate) && !shows_certificates {
            return Err(AccessSetupError(
                "method certificate needs [tls] with client_cert and client_ca_file".into(),
            ));
        }
        if !config.is_restricted() {
            return Ok(Self(None));
        }
        let proofs = match config.mode {
            AccessMode::Rules => None,
            AccessMode::Upstream => Some(Proofs::new(config, upstreams.clone()).map_err(AccessSetupError)?),
        };
        Ok(Self(Some(Arc::new(Inner {
            identify: Identify::new(config).map_err(AccessSetupError)?,
            rules: Rules::new(config, upstreams).map_err(AccessSetupError)?,
            proofs,
            challenge_ping: config.challenge_ping,
            store: store.clone(),
            blobs: blobs.clone(),
        }))))
    }

    /// Whether there is anything that somebody may not read.
    pub fn is_restricted(&self) -> bool {
        self.0.is_some()
    }

    /// The same as [`Access::allow`], where that needs no look at who asks for what.
    pub fn allow_at_hand(&self) -> Option<Caller> {
        (!self.is_restricted()).then_some(Caller::Server)
    }

    /// On whose behalf the upstream is asked, if `client` may read `probe` of `source`.
    pub async fn allow(&self, client: &Client, source: &Source, probe: &Probe) -> Result<Caller, AccessError> {
        let Some(inner) = &self.0 else {
            return Ok(Caller::Server);
        };
        let credentials = match inner
            .standing(client, |rules, names| rules.allow(names, source))
            .await?
        {
            Standing::Allowed => return Ok(Caller::Server),
            Standing::NotAllowed(credentials) => credentials,
        };
        match &inner.proofs {
            Some(proofs) => proofs.prove(source, probe, forwarded(client, &credentials)).await,
            None => Err(inner.refusal(&credentials, inner.rules.allow_somebody(source))),
        }
    }

    /// Who tells something that others will be told: its name, where clients have names. Where they have to say who they
    /// are, nobody teaches without.
    pub async fn teacher(&self, client: &Client) -> Result<Option<String>, AccessError> {
        let Some(inner) = &self.0 else { return Ok(None) };
        if let Some(name) = inner.identify.certificate(client).and_then(|names| names.first()) {
            return Ok(Some(name.clone()));
        }
        if !inner.identify.is_configured() {
            return Ok(None);
        }
        match inner.identify.credentials(client).await? {
            Credentials::Known(name) => Ok(Some(name)),
            Credentials::None | Credentials::Strange | Credentials::Wrong if inner.identify.takes_credentials() => {
                Err(AccessError::Unauthorized)
            }
            Credentials::None | Credentials::Strange | Credentials::Wrong => Err(AccessError::Denied),
        }
    }

    /// Whether `/v2/` is answered with 200.
    pub async fn allow_ping(&self, client: &Client) -> Result<(), AccessError> {
        let Some(inner) = &self.0 else { return Ok(()) };
        let credentials = match inner.standing(client, Rules::allow_something).await? {
            Standing::Allowed if inner.challenge_ping != ChallengePing::Always => return Ok(()),
            Standing::Allowed => inner.identify.credentials(client).await?,
            Standing::NotAllowed(credentials) => credentials,
        };
        let challenges = match inner.challenge_ping {
            ChallengePing::Auto => inner.proofs.is_none() && inner.identify.takes_credentials(),
            ChallengePing::Always => inner.proofs.is_some() || inner.identify.takes_credentials(),
            ChallengePing::Never => false,
        };
        match credentials {
            Credentials::Known(_) => Ok(()),
            // Whether they are right is for the upstream to say, and it says so of repositories.
            Credentials::Strange if inner.proofs.is_some() => Ok(()),
            _ if inner.identify.certificate(client).is_some() => Ok(()),
            Credentials::None | Credentials::Strange | Credentials::Wrong if challenges => {
                Err(AccessError::Unauthorized)
            }
            Credentials::None | Credentials::Strange | Credentials::Wrong => Ok(()),
        }
    }
}

impl Inner {
    /// What the rules say, with as few checks as it takes: nobody's name, then the certificate's, then the credentials'.
    async fn standing(
        &self,
        client: &Client,
        allow: impl Fn(&Rules, Names<'_>) -> bool,
    ) -> Result<Standing, AccessError> {
        let certificate = self.identify.certificate(client);
        let by_certificate = Names {
            names: certificate.unwrap_or_default(),
            authenticated: certificate.is_some(),
        };
        if allow(&self.rules, by_certificate) {
            return Ok(Standing::Allowed);
        }
        let credentials = self.identify.credentials(client).await?;
        if let Credentials::Known(name) = &credentials {
            let mut names = certificate.unwrap_or_default().to_vec();
            names.push(name.clone());
            let names = Names {
                names: &names,
                authenticated: true,
            };
            if allow(&self.rules, names) {
                return Ok(Standing::Allowed);
            }
        }
        Ok(Standing::NotAllowed(credentials))
    }

    /// How to say no. `is_for_somebody`: somebody else may.
    fn refusal(&self, credentials: &Credentials, is_for_somebody: bool) -> AccessError {
        match credentials {
            Credentials::Known(_) => AccessError::Denied,
            _ if is_for_somebody && self.identify.takes_credentials() => AccessError::Unauthorized,
            _ => AccessError::Denied,
        }
    }
}

/// Credentials that are not ours, to be shown to the upstream.
fn forwarded<'c>(client: &'c Client, credentials: &Credentials) -> Option<&'c crate::upstream::ClientCredentials> {
    match credentials {
        Credentials::Strange => client.credentials(),
        Credentials::None | Credentials::Known(_) | Credentials::Wrong => None,
    }
}
