//! Bearer tokens: read, kept, dropped before they expire.
//!
//! In: bodies of token answers. Out: `Authorization` values by caller and repository.
//! Invariant: bounded in number and in time; a token of one caller is never another's; none is in a `Debug`.
//! Not here: getting them ([`super::exchange`]).

use std::{
    fmt,
    time::{Duration, Instant},
};

use http::HeaderValue;
use serde::Deserialize;

use super::{Caller, caller::CallerKey};

/// Cached tokens per origin: one a caller and repository in use. A token has some 2 KiB.
const TOKENS_MAX: u64 = 4096;

/// What the token specification of distribution assumes when `expires_in` is missing.
const LIFE_SECS_DEFAULT: u64 = 60;

/// No token is used longer than this, whatever the server promises.
const LIFE_SECS_MAX: u64 = 3600;

/// A token is not used for its last tenth, and at least these seconds: clocks and queues differ.
const MARGIN_SECS_MIN: u64 = 5;

/// No token is longer: it is repeated in a header of every request, and servers take 8 KiB to 64 KiB of them.
const LEN_MAX: usize = 32 << 10;

/// Body of a token answer.
#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<u64>,
}

/// A token, as header value.
#[derive(Clone)]
pub(super) struct Token {
    value: HeaderValue,
    use_until: Instant,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").finish_non_exhaustive()
    }
}

impl Token {
    pub(super) fn from_answer(body: &[u8], now: Instant) -> Option<Self> {
        let answer: TokenAnswer = serde_json::from_slice(body).ok()?;
        let said = [answer.token, answer.access_token];
        let text = said.into_iter().flatten().find(|t| (1..=LEN_MAX).contains(&t.len()))?;
        let mut value = HeaderValue::from_str(&format!("Bearer {text}")).ok()?;
        value.set_sensitive(true);
        let life = answer.expires_in.unwrap_or(LIFE_SECS_DEFAULT).min(LIFE_SECS_MAX);
        let margin = (life / 10).max(MARGIN_SECS_MIN);
        Some(Self {
            value,
            use_until: now + Duration::from_secs(life.saturating_sub(margin)),
        })
    }

    pub(super) fn header(&self) -> HeaderValue {
        self.value.clone()
    }
}

/// Whose token, and for what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TokenKey {
    pub(super) caller: CallerKey,
    repository: String,
}

impl TokenKey {
    pub(super) fn new(caller: &Caller, repository: &str) -> Self {
        Self {
            caller: caller.key(),
            repository: repository.to_owned(),
        }
    }
}

/// Tokens by caller and repository.
pub(super) struct Tokens(moka::sync::Cache<TokenKey, Token>);

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens")
    }
}

impl Default for Tokens {
    fn default() -> Self {
        Self(moka::sync::Cache::new(TOKENS_MAX))
    }
}

impl Tokens {
    pub(super) fn get(&self, key: &TokenKey) -> Option<Token> {
        let token = self.0.get(key)?;
        if token.use_until <= Instant::now() {
            self.0.invalidate(key);
            return None;
        }
        Some(token)
    }

    pub(super) fn put(&self, key: TokenKey, token: Token) {
        self.0.insert(key, token);
    }

    /// The upstream no longer takes this one; another may have been stored meanwhile.
    pub(super) fn forget(&self, key: &TokenKey, refused: &HeaderValue) {
        if self.0.get(key).is_some_and(|t| t.value == *refused) {
            self.0.invalidate(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_end_early_and_may_be_missing() {
        let now = Instant::now();
        let token = Token::from_answer(br#"{"access_token":"t","expires_in":100}"#, now).unwrap();
        assert_eq!(token.use_until, now + Duration::from_secs(90));
        assert!(Token::from_answer(b"{}", now).is_none());
        assert!(Token::from_answer(b"<html>", now).is_none());
        assert!(Token::from_answer(br#"{"token":"a\nb"}"#, now).is_none());
        let tokens = Tokens::default();
        let key = TokenKey::new(&Caller::Server, "r");
        let short = Token::from_answer(br#"{"token":"t","expires_in":3}"#, now).unwrap();
        tokens.put(key.clone(), short);
        assert!(tokens.get(&key).is_none(), "a token without life left is not used");
        tokens.put(key.clone(), token);
        assert!(tokens.get(&key).is_some());
        for other in [
            TokenKey::new(&Caller::Anybody, "r"),
            TokenKey::new(&Caller::Server, "s"),
        ] {
            assert!(tokens.get(&other).is_none(), "{other:?}");
        }
    }
}
