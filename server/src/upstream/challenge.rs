//! What an upstream that answers 401 asks for.
//!
//! In: `WWW-Authenticate` headers. Out: a [`Challenge`], and the address of a token exchange.
//! Invariant: what we repeat of it to a realm is bounded.
//! Not here: whether that realm may be asked ([`super::realm`]).

use http::{HeaderMap, header};
use http_auth::ChallengeParser;
use reqwest::Url;

/// Longest `scope` and `service` that we repeat to a realm.
const PARAM_LEN_MAX: usize = 1024;

/// What a 401 asks for.
#[derive(Debug)]
pub(super) enum Challenge {
    Basic,
    Bearer(Asked),
}

/// Where a token is to be had, and for what.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) realm: Url,
    pub(super) service: Option<String>,
    scope: Option<String>,
}

impl Challenge {
    /// The strongest challenge that we can meet: Bearer before Basic.
    pub(super) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut basic = None;
        for value in headers.get_all(header::WWW_AUTHENTICATE) {
            for challenge in ChallengeParser::new(value.to_str().ok()?) {
                let Ok(challenge) = challenge else { break };
                if challenge.scheme.eq_ignore_ascii_case("basic") {
                    basic = Some(Self::Basic);
                }
                if !challenge.scheme.eq_ignore_ascii_case("bearer") {
                    continue;
                }
                let param = |name: &str| {
                    let found = challenge.params.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
                    found
                        .map(|(_, v)| v.to_unescaped())
                        .filter(|v| v.len() <= PARAM_LEN_MAX)
                };
                if let Some(realm) = param("realm").and_then(|r| Url::parse(&r).ok()) {
                    return Some(Self::Bearer(Asked {
                        realm,
                        service: param("service"),
                        scope: param("scope"),
                    }));
                }
            }
        }
        basic
    }
}

impl Asked {
    /// What the token is to be good for.
    pub(super) fn scope(&self, repository: &str) -> String {
        self.scope
            .clone()
            .unwrap_or_else(|| format!("repository:{repository}:pull"))
    }

    /// The address of the token exchange.
    pub(super) fn url(&self, repository: &str) -> Url {
        let mut url = self.realm.clone();
        let mut query = url.query_pairs_mut();
        if let Some(service) = &self.service {
            query.append_pair("service", service);
        }
        query.append_pair("scope", &self.scope(repository));
        drop(query);
        url
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use http::HeaderValue;

    #[test]
    fn bearer_is_preferred_and_parameters_are_unquoted() {
        let mut headers = HeaderMap::new();
        headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"x\""));
        let bearer = "Bearer realm=\"https://a.example/token\",service=\"s\",scope=\"repository:a/b:pull\"";
        headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static(bearer));
        let Some(Challenge::Bearer(asked)) = Challenge::from_headers(&headers) else {
            panic!("no bearer challenge")
        };
        assert_eq!(
            asked.url("ignored").as_str(),
            "https://a.example/token?service=s&scope=repository%3Aa%2Fb%3Apull"
        );
    }
}
