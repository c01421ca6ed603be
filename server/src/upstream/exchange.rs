//! The authorization that one origin wants, and getting it.
//!
//! In: a request, and on whose behalf. Out: its answer, after at most one exchange for a token.
//! Invariant: what one caller was given (a token, the knowledge that Basic is wanted) is used for that caller alone;
//! a client's own credentials go where the server's may go and nowhere else. Everything remembered is bounded, and so is
//! the wait for a token.
//! Not here: the wire ([`super::transport`]), parsing of challenges and tokens ([`super::challenge`], [`super::token`]).

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Instant,
};

use http::{HeaderValue, StatusCode};
use reqwest::{Response, Url};
use tokio::{sync::Mutex, time::timeout};

use super::{
    Caller, UpstreamError,
    caller::CallerKey,
    challenge::{Asked, Challenge},
    hold::Slot,
    realm::Realms,
    secret::{Secret, Secrets},
    site::Ask,
    token::{Token, TokenKey, Tokens},
    transport::{SMALL_BODY_MAX, Transport},
};
use crate::metrics::{Metrics, names::Count};

/// Token exchanges of one upstream that run at once; repositories share them by hash.
const LANES: usize = 16;

/// Callers of whom it is remembered that the upstream wants Basic from them.
const BASIC_MAX: u64 = 4096;

/// What we call ourselves at token services that ask.
const CLIENT_ID: &str = "headstart-server";

/// Authorization at one origin.
#[derive(Debug)]
pub(super) struct Exchange {
    upstream: String,
    secrets: Secrets,
    realms: Realms,
    tokens: Tokens,
    /// The upstream has asked for Basic before, so it is sent at once.
    wants_basic: moka::sync::Cache<CallerKey, ()>,
    lanes: [Mutex<()>; LANES],
    /// Until when the realm wants not to be asked on our own account.
    hold: Slot,
    metrics: Metrics,
}

impl Exchange {
    pub(super) fn new(upstream: &str, realms: Realms, secrets: Secrets, metrics: &Metrics) -> Self {
        Self {
            upstream: upstream.to_owned(),
            secrets,
            realms,
            tokens: Tokens::default(),
            wants_basic: moka::sync::Cache::new(BASIC_MAX),
            lanes: std::array::from_fn(|_| Mutex::new(())),
            hold: Slot::default(),
            metrics: metrics.clone(),
        }
    }

    /// Whether limits that this caller meets here are the server's. Limits of a client's own account are the client's, which
    /// it would wait for as it likes; and where the server has an account, the limits of this address without one are none of
    /// that.
    pub(super) fn is_ours(&self, caller: &Caller) -> bool {
        match caller {
            Caller::Server => true,
            Caller::Anybody => self.secrets.is_nothing(),
            Caller::Client(_) => false,
        }
    }

    /// A request with the authorization that the upstream wants: what we have, and if that is not it, what it asks for.
    pub(super) async fn ask(&self, wire: &Transport, url: &Url, ask: &Ask<'_>) -> Result<Response, UpstreamError> {
        let key = TokenKey::new(ask.caller, ask.repository);
        let send = async |authorization: Option<&HeaderValue>| {
            wire.follow(&ask.method, url, &ask.headers, authorization).await
        };
        let refused = |r: &Response| r.status() == StatusCode::UNAUTHORIZED && wire.is_own(r.url());
        let first = match self.tokens.get(&key) {
            Some(token) => Some(token.header()),
            None => self.known(ask.caller, &key.caller).await?,
        };
        let response = send(first.as_ref()).await?;
        if !refused(&response) {
            return Ok(response);
        }
        match Challenge::from_headers(response.headers()) {
            Some(Challenge::Basic) => {
                let Some(basic) = self.basic(ask.caller).await? else {
                    return Ok(response);
                };
                let mut answer = response;
                if first.as_ref() != Some(&basic) {
                    drop(answer);
                    answer = send(Some(&basic)).await?;
                }
                if refused(&answer)
                    && let Some(other) = self.other_basic(ask.caller, &basic).await?
                {
                    drop(answer);
                    answer = send(Some(&other)).await?;
                }
                if !refused(&answer) {
                    self.wants_basic.insert(key.caller, ());
                }
                Ok(answer)
            }
            // A bearer token that the caller brought cannot be exchanged for another.
            Some(Challenge::Bearer(asked)) if !self.is_own_bearer(ask.caller, first.as_ref()).await? => {
                drop(response);
                let token = self.token_for(wire, ask, key, &asked, first.as_ref()).await?;
                send(Some(&token.header())).await
            }
            _ => Ok(response),
        }
    }

    /// What is sent before anything was asked for.
    async fn known(&self, caller: &Caller, key: &CallerKey) -> Result<Option<HeaderValue>, UpstreamError> {
        match caller {
            Caller::Client(own) if own.is_bearer() => Ok(Some(own.authorization().clone())),
            Caller::Server if self.secrets.is_nothing() => Ok(None),
            Caller::Server => {
                let Some(secret) = self.secrets.current().await? else {
                    return Ok(None);
                };
                let basic = || secret.basic().filter(|_| self.wants_basic.contains_key(key));
                Ok(secret.bearer().or_else(basic))
            }
            _ if self.wants_basic.contains_key(key) => self.basic(caller).await,
            _ => Ok(None),
        }
    }

    async fn is_own_bearer(&self, caller: &Caller, shown: Option<&HeaderValue>) -> Result<bool, UpstreamError> {
        Ok(match caller {
            Caller::Client(own) => own.is_bearer(),
            Caller::Anybody => false,
            Caller::Server => {
                let secret = self.secrets.current().await?;
                shown.is_some() && secret.and_then(|s| s.bearer()).as_ref() == shown
            }
        })
    }

    /// What the caller has to show as Basic.
    async fn basic(&self, caller: &Caller) -> Result<Option<HeaderValue>, UpstreamError> {
        Ok(match caller {
            Caller::Server => self.secrets.current().await?.and_then(|s| s.basic()),
            Caller::Anybody => None,
            Caller::Client(own) => (!own.is_bearer()).then(|| own.authorization().clone()),
        })
    }

    /// What the server has to show after `refused` was: secrets are rotated.
    async fn other_basic(&self, caller: &Caller, refused: &HeaderValue) -> Result<Option<HeaderValue>, UpstreamError> {
        if *caller != Caller::Server {
            return Ok(None);
        }
        let Some(shown) = self.secrets.current().await? else {
            return Ok(None);
        };
        if shown.basic().as_ref() != Some(refused) {
            return Ok(shown.basic());
        }
        Ok(self.secrets.other_than(&shown).await?.and_then(|s| s.basic()))
    }

    /// A token other than the one that was refused: one that another request got meanwhile, or a new one.
    async fn token_for(
        &self,
        wire: &Transport,
        ask: &Ask<'_>,
        key: TokenKey,
        asked: &Asked,
        refused: Option<&HeaderValue>,
    ) -> Result<Token, UpstreamError> {
        // Who waited this long waits for a realm that does not answer, and would ask it next. That the realm fails is for
        // those to say who asked it.
        let lane = timeout(wire.header_timeout(), self.lane(&key).lock()).await;
        let _lane = lane.map_err(|_| UpstreamError::Busy)?;
        if let Some(refused) = refused {
            self.tokens.forget(&key, refused);
        }
        if let Some(token) = self.tokens.get(&key) {
            return Ok(token);
        }
        if !self.realms.allow(&asked.realm) {
            let realm = asked.realm.host_str();
            tracing::warn!(
                upstream = self.upstream,
                realm,
                "token realm is not pinned for this upstream"
            );
            self.count("foreign_realm");
            return Err(UpstreamError::ForeignRealm);
        }
        let is_ours = self.is_ours(ask.caller);
        if is_ours {
            self.hold.check()?;
        }
        let token = self.exchange(wire, ask, asked).await;
        if let (true, Err(error)) = (is_ours, &token)
            && self.hold.learn(error)
        {
            tracing::warn!(
                upstream = self.upstream,
                "the token realm limits our requests: they are held back"
            );
            self.metrics.add(Count::RateHolds, 1, &[&self.upstream]);
        }
        let outcome = match &token {
            Ok(_) => "ok",
            Err(UpstreamError::Denied { .. }) => "denied",
            Err(_) => "failed",
        };
        self.count(outcome);
        let token = token?;
        self.tokens.put(key, token.clone());
        Ok(token)
    }

    /// Exchanges what the caller has, or nothing, for a bearer token.
    async fn exchange(&self, wire: &Transport, ask: &Ask<'_>, asked: &Asked) -> Result<Token, UpstreamError> {
        let get = async |basic: Option<HeaderValue>| wire.get_token(&asked.url(ask.repository), basic.as_ref()).await;
        match ask.caller {
            Caller::Anybody => read_token(wire, get(None).await?).await,
            Caller::Client(own) => read_token(wire, get(Some(own.authorization().clone())).await?).await,
            Caller::Server => {
                let with = async |secret: Option<&Secret>| {
                    let response = match secret {
                        Some(Secret::Identity(refresh)) => refreshed(wire, ask, asked, refresh).await?,
                        other => get(other.and_then(Secret::basic)).await?,
                    };
                    read_token(wire, response).await
                };
                let secret: Option<Arc<Secret>> = self.secrets.current().await?;
                match (with(secret.as_deref()).await, secret) {
                    (Err(denied @ UpstreamError::Denied { .. }), Some(shown)) => {
                        match self.secrets.other_than(&shown).await? {
                            Some(other) => with(Some(&*other)).await,
                            None => Err(denied),
                        }
                    }
                    (done, _) => done,
                }
            }
        }
    }

    fn count(&self, outcome: &str) {
        self.metrics.add(Count::TokenExchanges, 1, &[&self.upstream, outcome]);
    }

    fn lane(&self, key: &TokenKey) -> &Mutex<()> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        &self.lanes[(hasher.finish() % LANES as u64) as usize]
    }
}

/// The OAuth2 form of the exchange, for refresh tokens.
async fn refreshed(wire: &Transport, ask: &Ask<'_>, asked: &Asked, refresh: &str) -> Result<Response, UpstreamError> {
    let scope = asked.scope(ask.repository);
    let fields = [
        ("grant_type", "refresh_token"),
        ("service", asked.service.as_deref().unwrap_or_default()),
        ("client_id", CLIENT_ID),
        ("scope", &scope),
        ("refresh_token", refresh),
    ];
    wire.post_form(&asked.realm, &fields).await
}

/// A token service's no is a no to the caller, whatever its form.
async fn read_token(wire: &Transport, response: Response) -> Result<Token, UpstreamError> {
    let answered = Instant::now();
    let response = match response.status().as_u16() {
        status @ (400 | 401 | 403 | 404) => return Err(UpstreamError::Denied { status }),
        _ => wire.accept_status(response).await?,
    };
    let body = wire.read_bounded(response, SMALL_BODY_MAX).await?;
    body.and_then(|body| Token::from_answer(&body, answered))
        .ok_or(UpstreamError::BadAnswer("no token in the token answer"))
}
