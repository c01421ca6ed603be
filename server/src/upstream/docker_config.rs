//! Docker's `config.json`, for the credentials in it.
//!
//! In: the file, and how docker names a registry. Out: a secret, or the helper that has it.
//! Invariant: the file has a bound; entries are matched by host and port, never by a part of them; messages say which
//! entry is wrong and not what it holds. Order as in docker: a helper for the host, else the general one, else the file.
//! Not here: running helpers ([`super::helper`]).

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;

use super::{base64::decoded, secret::Secret, stamp::read_bounded};

/// Docker's own are some hundred bytes a registry.
const FILE_SIZE_MAX: u64 = 1 << 20;

/// How docker names Docker Hub.
pub(super) const DOCKER_HUB_SERVER: &str = "https://index.docker.io/v1/";

/// Other names of it that tools write.
const DOCKER_HUB_HOSTS: [&str; 3] = ["index.docker.io", "docker.io", "registry-1.docker.io"];

/// What the file says of a registry.
#[derive(Debug)]
pub(super) enum Found {
    Secret(Secret),
    /// The helper of this name knows.
    Helper(String),
    Nothing,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct File {
    auths: BTreeMap<String, Entry>,
    #[serde(rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    store: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// Looks `server` (a host with its port if any, or [`DOCKER_HUB_SERVER`]) up.
pub(super) fn find(file: &Path, server: &str) -> Result<Found, String> {
    let bytes = read_bounded(file, FILE_SIZE_MAX).map_err(|e| format!("docker_config_file {e}"))?;
    // The parser's message would quote the text.
    let parsed: File = serde_json::from_slice(&bytes)
        .map_err(|e| format!("docker_config_file {}: line {}: no such JSON", file.display(), e.line()))?;
    parsed
        .find(server)
        .map_err(|e| format!("docker_config_file {}: {e}", file.display()))
}

impl File {
    fn find(&self, server: &str) -> Result<Found, String> {
        if let Some(name) = matching(&self.helpers, server).filter(|n| !n.is_empty()) {
            return Ok(Found::Helper(name.clone()));
        }
        let entry = matching(&self.auths, server).map(Entry::secret).transpose()?.flatten();
        match (entry, self.store.as_str()) {
            // Docker leaves entries empty that its store has.
            (None, store) if !store.is_empty() => Ok(Found::Helper(store.to_owned())),
            (Some(secret), _) => Ok(Found::Secret(secret)),
            (None, _) => Ok(Found::Nothing),
        }
    }
}

impl Entry {
    fn secret(&self) -> Result<Option<Secret>, String> {
        if !self.identitytoken.is_empty() {
            return Ok(Some(Secret::Identity(self.identitytoken.clone())));
        }
        if !self.registrytoken.is_empty() {
            return Ok(Some(Secret::Bearer(self.registrytoken.clone())));
        }
        if !self.auth.is_empty() {
            let text = decoded(&self.auth).and_then(|bytes| String::from_utf8(bytes).ok());
            let (username, password) = text
                .as_deref()
                .and_then(|t| t.trim_end_matches('\0').split_once(':'))
                .ok_or("an auth is not base64 of user:password")?;
            return Secret::new(username.to_owned(), password.to_owned()).map(Some);
        }
        if !self.username.is_empty() {
            return Secret::new(self.username.clone(), self.password.clone()).map(Some);
        }
        Ok(None)
    }
}

/// The exact key, or one that means the same host.
fn matching<'m, T>(map: &'m BTreeMap<String, T>, server: &str) -> Option<&'m T> {
    map.get(server)
        .or_else(|| map.iter().find(|(key, _)| is_same(key, server)).map(|(_, value)| value))
}

fn is_same(key: &str, server: &str) -> bool {
    let host = host_of(key);
    if server == DOCKER_HUB_SERVER {
        return DOCKER_HUB_HOSTS.contains(&host);
    }
    // A key with a path below the host (podman's namespaces) is not for the whole host.
    let path = key.split_once("://").map_or(key, |(_, rest)| rest).split_once('/');
    host.eq_ignore_ascii_case(server) && path.is_none_or(|(_, path)| matches!(path, "" | "v1" | "v1/" | "v2" | "v2/"))
}

fn host_of(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find_in(text: &str, server: &str) -> Found {
        serde_json::from_str::<File>(text).unwrap().find(server).unwrap()
    }

    fn password(text: &str, server: &str) -> Option<String> {
        match find_in(text, server) {
            Found::Secret(Secret::Basic { password, .. }) => Some(password),
            _ => None,
        }
    }

    #[test]
    fn registries_are_found_by_host_however_they_are_written() {
        // u:one, u:two, u:hub
        let text = r#"{"auths":{
            "r.test:5000":{"auth":"dTpvbmU="}, "https://s.test/v2/":{"auth":"dTp0d28="},
            "https://index.docker.io/v1/":{"auth":"dTpodWI="}, "t.test/team":{"auth":"dTpvbmU="}, "empty.test":{}},
            "HttpHeaders":{}, "currentContext":"x"}"#;
        assert_eq!(password(text, "r.test:5000").as_deref(), Some("one"));
        assert_eq!(password(text, "s.test").as_deref(), Some("two"));
        assert_eq!(password(text, DOCKER_HUB_SERVER).as_deref(), Some("hub"));
        for none in [
            "r.test",
            "r.test:500",
            "test:5000",
            "t.test",
            "empty.test",
            "index.docker.io.evil",
        ] {
            assert!(matches!(find_in(text, none), Found::Nothing), "{none}");
        }
        let text = r#"{"auths":{"registry-1.docker.io":{"username":"u","password":"p"}}}"#;
        assert_eq!(password(text, DOCKER_HUB_SERVER).as_deref(), Some("p"));
    }

    #[test]
    fn helpers_and_tokens() {
        let text = r#"{"credHelpers":{"a.test":"ecr-login"},"credsStore":"desktop",
            "auths":{"a.test":{"auth":"dTpvbmU="},"b.test":{},"c.test":{"auth":"dTo=","identitytoken":"i"},
            "d.test":{"registrytoken":"r"}}}"#;
        assert!(matches!(find_in(text, "a.test"), Found::Helper(h) if h == "ecr-login"));
        assert!(matches!(find_in(text, "b.test"), Found::Helper(h) if h == "desktop"));
        assert!(matches!(find_in(text, "c.test"), Found::Secret(Secret::Identity(t)) if t == "i"));
        assert!(matches!(find_in(text, "d.test"), Found::Secret(Secret::Bearer(t)) if t == "r"));
    }

    #[test]
    fn messages_do_not_quote_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        for text in [
            r#"{"auths":{"a.test":{"auth":5555}}}"#,
            r#"{"auths":{"a.test":{"auth":"hunter2 hunter2"}}}"#,
            "hunter2",
        ] {
            std::fs::write(&file, text).unwrap();
            let message = find(&file, "a.test").unwrap_err();
            assert!(!message.contains("hunter2") && !message.contains("5555"), "{message}");
        }
    }
}
