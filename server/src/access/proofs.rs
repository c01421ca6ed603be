//! Rights that upstreams confirm.
//!
//! In: a repository, something in it, and a client's own credentials. Out: on whose behalf it may be read.
//! Invariant: what anybody may read is asked for without credentials first, so a public repository challenges nobody.
//! A yes is believed for its time to live, and, only while the upstream cannot be asked, for the grace; a no for a short
//! time. Each is for one repository and one caller. What is remembered and what is asked at once is bounded, and so is the
//! wait for a turn to ask.
//! Not here: rules, which are asked before ([`super::rules`]).

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use moka::sync::Cache;
use tokio::sync::Semaphore;

use super::{AccessError, Probe};
use crate::{
    config::AccessConfig,
    read::coalesce::Coalesce,
    store::facts::Source,
    upstream::{Caller, ClientCredentials, UpstreamError, Upstreams},
};

/// A question waits this long for its turn: below containerd's 30 s for a head, with time left for the question.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// What upstreams said; clones share it.
#[derive(Clone)]
pub struct Proofs(Arc<Inner>);

struct Inner {
    upstreams: Upstreams,
    verdicts: Cache<Key, Verdict>,
    /// What a caller was told is not there, for as long as a refusal: it says nothing of the repository.
    missing: Cache<(Key, Probe), UpstreamError>,
    running: Coalesce<(Key, Probe), Answer>,
    questions: Semaphore,
    ttl: Duration,
    public_ttl: Duration,
    refused_ttl: Duration,
    grace: Duration,
}

impl fmt::Debug for Proofs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proofs")
    }
}

/// A right is to a repository: registries grant nothing smaller.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    source: Source,
    /// Hashed by its fingerprint.
    caller: Caller,
}

#[derive(Clone, Copy, Debug)]
struct Verdict {
    at: Instant,
    /// `None` for yes; or the status of the refusal.
    refused: Option<u16>,
}

#[derive(Clone, Debug)]
enum Answer {
    Yes,
    No(u16),
    /// It has no such thing, or hides it.
    Missing(UpstreamError),
    Outage(UpstreamError),
}

impl Proofs {
    pub fn new(config: &AccessConfig, upstreams: Upstreams) -> Result<Self, String> {
        if config.questions_max == 0 || config.decisions_max == 0 {
            return Err("questions_max and decisions_max must be at least 1".into());
        }
        let (ttl, public_ttl) = (
            Duration::from_millis(config.ttl_ms),
            Duration::from_millis(config.public_ttl_ms),
        );
        let grace = Duration::from_millis(config.stale_grace_ms);
        let refused_ttl = Duration::from_millis(config.refused_ttl_ms);
        let longest = ttl.max(public_ttl).max(grace).max(refused_ttl);
        Ok(Self(Arc::new(Inner {
            upstreams,
            verdicts: Cache::builder()
                .max_capacity(config.decisions_max)
                // Zero is no bound to this cache.
                .time_to_live(longest.max(Duration::from_millis(1)))
                .build(),
            missing: Cache::builder()
                .max_capacity(config.decisions_max)
                .time_to_live(refused_ttl.max(Duration::from_millis(1)))
                .build(),
            running: Coalesce::default(),
            questions: Semaphore::new(config.questions_max),
            ttl,
            public_ttl,
            refused_ttl,
            grace,
        })))
    }

    /// On whose behalf `probe` of `source` may be read.
    pub async fn prove(
        &self,
        source: &Source,
        probe: &Probe,
        own: Option<&ClientCredentials>,
    ) -> Result<Caller, AccessError> {
        let own = own.map(|own| Caller::Client(own.clone()));
        if let Some(own) = &own
            && matches!(self.0.remembered(&Key::new(source, own)), Some(Answer::Yes))
        {
            return Ok(own.clone());
        }
        let anybody = match (self.right(source, probe, Caller::Anybody).await, &own) {
            // The server's own credentials may do as well, and share its connections and tokens.
            (Answer::Yes, _) => return Ok(Caller::Server),
            (answer, None) => Err(answer),
            (_, Some(own)) => Ok(own),
        };
        let answer = match anybody {
            Ok(own) => match self.right(source, probe, own.clone()).await {
                Answer::Yes => return Ok(own.clone()),
                answer => answer,
            },
            // Credentials may help.
            Err(Answer::No(_)) => Answer::No(401),
            Err(answer) => answer,
        };
        Err(match answer {
            Answer::Yes | Answer::No(401) => AccessError::Unauthorized,
            Answer::No(_) => AccessError::Denied,
            Answer::Missing(error) | Answer::Outage(error) => AccessError::Upstream(error),
        })
    }

    async fn right(&self, source: &Source, probe: &Probe, caller: Caller) -> Answer {
        let key = Key::new(source, &caller);
        if let Some(known) = self.0.remembered(&key) {
            return known;
        }
        let question = (key.clone(), probe.clone());
        if let Some(error) = self.0.missing.get(&question) {
            return Answer::Missing(error);
        }
        let inner = self.0.clone();
        let answer = self.0.running.run(question, || {
            let (key, probe) = (key.clone(), probe.clone());
            async move { inner.ask(&key, &probe).await }
        });
        let answer = answer.await.unwrap_or(Answer::Outage(UpstreamError::BadAnswer(
            "the question was not answered",
        )));
        match answer {
            Answer::Outage(_) if self.0.is_in_grace(&key) => {
                tracing::warn!(
                    upstream = source.upstream,
                    repository = source.repository,
                    "an older right counts: the upstream cannot be asked"
                );
                Answer::Yes
            }
            answer => answer,
        }
    }
}

impl Inner {
    fn remembered(&self, key: &Key) -> Option<Answer> {
        let verdict = self.verdicts.get(key)?;
        let age = verdict.at.elapsed();
        match verdict.refused {
            None if age < self.life(key) => Some(Answer::Yes),
            Some(status) if age < self.refused_ttl => Some(Answer::No(status)),
            _ => None,
        }
    }

    fn life(&self, key: &Key) -> Duration {
        match key.caller {
            Caller::Anybody => self.public_ttl,
            Caller::Server | Caller::Client(_) => self.ttl,
        }
    }

    fn is_in_grace(&self, key: &Key) -> bool {
        let verdict = self.verdicts.get(key);
        verdict.is_some_and(|v| v.refused.is_none() && v.at.elapsed() < self.grace)
    }

    async fn ask(&self, key: &Key, probe: &Probe) -> Answer {
        let Some(upstream) = self.upstreams.get(&key.source.upstream) else {
            return Answer::Missing(UpstreamError::NotFound { name_unknown: true });
        };
        // The semaphore is never closed.
        let Ok(_permit) = tokio::time::timeout(WAIT_MAX, self.questions.acquire()).await else {
            return Answer::Outage(UpstreamError::Busy);
        };
        let asked = Instant::now();
        let refused = match upstream.probe(&key.source.repository, &key.caller, probe).await {
            Ok(()) => None,
            Err(UpstreamError::Denied { status }) => Some(status),
            Err(UpstreamError::ForeignRealm) => Some(403),
            Err(error) if error.is_outage() => return Answer::Outage(error),
            Err(error) => {
                if matches!(error, UpstreamError::NotFound { .. }) {
                    self.missing.insert((key.clone(), probe.clone()), error.clone());
                }
                return Answer::Missing(error);
            }
        };
        self.verdicts.insert(key.clone(), Verdict { at: asked, refused });
        refused.map_or(Answer::Yes, Answer::No)
    }
}

impl Key {
    fn new(source: &Source, caller: &Caller) -> Self {
        Self {
            source: source.clone(),
            caller: caller.clone(),
        }
    }
}
