//! The authorization that one origin wants, and getting it.
//!
//! In: a request, and on whose behalf. Out: its answer, after at most one exchange for a token.
//! Invariant: what one caller was given (a token, the knowledge that Basic is wanted) is used for that caller alone;
//! a client's own credentials go where the server's may go and nowhere else. Everything remembered is bounded.
//! Not here: the wire ([`super::transport`]), parsing of challenges and tokens ([`super::auth`]).

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Instant,
};

use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::{Response, Url};
use tokio::sync::Mutex;

use super::{
    Caller, UpstreamError,
    auth::{Challenge, Credentials, Realms, Token, TokenKey, Tokens, token_url},
    caller::CallerKey,
    transport::{SMALL_BODY_MAX, Transport},
};

/// Token exchanges of one upstream that run at once; repositories share them by hash.
const LANES: usize = 16;

/// Callers of whom it is remembered that the upstream wants Basic from them.
const BASIC_MAX: u64 = 4096;

/// Authorization at one origin.
#[derive(Debug)]
pub(super) struct Exchange {
    credentials: Option<Credentials>,
    realms: Realms,
    tokens: Tokens,
    /// The upstream has asked for Basic before, so it is sent at once.
    wants_basic: moka::sync::Cache<CallerKey, ()>,
    lanes: [Mutex<()>; LANES],
}

impl Exchange {
    pub(super) fn new(realms: Realms, credentials: Option<Credentials>) -> Self {
        Self {
            credentials,
            realms,
            tokens: Tokens::default(),
            wants_basic: moka::sync::Cache::new(BASIC_MAX),
            lanes: std::array::from_fn(|_| Mutex::new(())),
        }
    }

    /// A request with the authorization that the upstream wants: what we have, and if that is not it, what it asks for.
    pub(super) async fn ask(
        &self,
        wire: &Transport,
        method: &Method,
        repository: &str,
        caller: &Caller,
        url: &Url,
        headers: &HeaderMap,
    ) -> Result<Response, UpstreamError> {
        let key = TokenKey::new(caller, repository);
        let mut authorization = match self.tokens.get(&key) {
            Some(token) => Some(token.header()),
            None => match caller {
                Caller::Client(own) if own.is_bearer() => Some(own.authorization().clone()),
                _ if self.wants_basic.contains_key(&key.caller) => self.basic(caller),
                _ => None,
            },
        };
        let response = wire.follow(method, url, headers, authorization.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED || !wire.is_own(response.url()) {
            return Ok(response);
        }
        match Challenge::from_headers(response.headers()) {
            Some(Challenge::Basic) => {
                let Some(basic) = self.basic(caller) else {
                    return Ok(response);
                };
                self.wants_basic.insert(key.caller, ());
                if authorization.as_ref() == Some(&basic) {
                    return Ok(response);
                }
                authorization = Some(basic);
            }
            // A client's own token cannot be exchanged for another.
            Some(Challenge::Bearer { .. }) if matches!(caller, Caller::Client(own) if own.is_bearer()) => {
                return Ok(response);
            }
            Some(Challenge::Bearer { realm, service, scope }) => {
                let lane = self.lane(&key).lock().await;
                if let Some(refused) = &authorization {
                    self.tokens.forget(&key, refused);
                }
                let token = match self.tokens.get(&key) {
                    Some(token) => token,
                    None => {
                        let token_at = token_url(&realm, service.as_deref(), scope.as_deref(), repository);
                        let token = self.token(wire, caller, &token_at).await?;
                        self.tokens.put(key.clone(), token.clone());
                        token
                    }
                };
                drop(lane);
                authorization = Some(token.header());
            }
            None => return Ok(response),
        }
        drop(response);
        wire.follow(method, url, headers, authorization.as_ref()).await
    }

    fn lane(&self, key: &TokenKey) -> &Mutex<()> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        &self.lanes[(hasher.finish() % LANES as u64) as usize]
    }

    /// What the caller has to show as Basic.
    fn basic(&self, caller: &Caller) -> Option<HeaderValue> {
        match caller {
            Caller::Server => self.credentials.as_ref().map(Credentials::basic),
            Caller::Anybody => None,
            Caller::Client(own) => (!own.is_bearer()).then(|| own.authorization().clone()),
        }
    }

    /// Exchanges the credentials, or nothing, for a bearer token.
    async fn token(&self, wire: &Transport, caller: &Caller, url: &Url) -> Result<Token, UpstreamError> {
        if !self.realms.allow(url) {
            tracing::warn!(realm = url.host_str(), "token realm is not pinned for this upstream");
            return Err(UpstreamError::ForeignRealm);
        }
        let asked = Instant::now();
        let basic = self.basic(caller);
        let response = wire.send(&Method::GET, url, &HeaderMap::new(), basic.as_ref()).await?;
        let response = match response.status() {
            status @ (StatusCode::BAD_REQUEST
            | StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::NOT_FOUND) => {
                return Err(UpstreamError::Denied {
                    status: status.as_u16(),
                });
            }
            _ => wire.accept_status(response).await?,
        };
        let body = wire.read_bounded(response, SMALL_BODY_MAX).await?;
        body.and_then(|body| Token::from_answer(&body, asked))
            .ok_or(UpstreamError::BadAnswer("no token in the token answer"))
    }
}
