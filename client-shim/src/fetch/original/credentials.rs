//! Credentials for registries, from a docker `config.json`.
//!
//! In: the file's path, a registry's name. Out: a user and a password, or nothing. Invariant: the file is read anew each
//! time (an original is fetched rarely, and secrets change); what is wrong with it is told without what it holds.
//! Not here: helpers (programs): a node that needs one writes the file.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

const FILE_SIZE_MAX: u64 = 1 << 20;
/// Names of Docker Hub that tools write.
const DOCKER_HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) username: String,
    pub(super) password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
}

/// What `file` says of `registry`. Blocks.
pub(super) fn find(file: &Path, registry: &str) -> Option<Credentials> {
    let complain = |what: &str| tracing::warn!(file = %file.display(), what, "registry-credentials-unusable");
    let mut bytes = Vec::new();
    let read = File::open(file).and_then(|f| f.take(FILE_SIZE_MAX).read_to_end(&mut bytes));
    if read.is_err() {
        complain("it cannot be read");
        return None;
    }
    let Ok(config) = serde_json::from_slice::<ConfigFile>(&bytes) else {
        complain("it is not a docker config.json");
        return None;
    };
    let (_, entry) = config.auths.iter().find(|(key, _)| names(key, registry))?;
    let found = entry.credentials();
    if found.is_none() {
        complain("the registry's entry has no user and password");
    }
    found
}

impl Entry {
    fn credentials(&self) -> Option<Credentials> {
        let pair = match self.auth.is_empty() {
            true => (self.username.clone(), self.password.clone()),
            false => {
                let text = String::from_utf8(STANDARD.decode(&self.auth).ok()?).ok()?;
                let (user, password) = text.split_once(':')?;
                (user.to_owned(), password.to_owned())
            }
        };
        let (username, password) = pair;
        (!username.is_empty()).then_some(Credentials { username, password })
    }
}

/// Whether an entry's key means the registry: by host and port, never by a part of them.
fn names(key: &str, registry: &str) -> bool {
    let host = key.split_once("://").map_or(key, |(_, rest)| rest);
    let (host, path) = host.split_once('/').unwrap_or((host, ""));
    if registry == DOCKER_HUB[0] && DOCKER_HUB.contains(&host) {
        return true;
    }
    // A path is podman's way to name a part of a registry.
    host.eq_ignore_ascii_case(registry) && matches!(path, "" | "v1" | "v1/" | "v2" | "v2/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_found_by_host_and_damage_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        let text = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpwOnE="},
            "r.test:5000":{"username":"a","password":"b"}, "s.test/team":{"auth":"dTpw"}, "bad.test":{"auth":"%"}}}"#;
        std::fs::write(&file, text).unwrap();
        let password = |registry: &str| find(&file, registry).map(|c| c.password);
        assert_eq!(password("docker.io").as_deref(), Some("p:q"));
        assert_eq!(password("r.test:5000").as_deref(), Some("b"));
        for none in ["r.test", "test:5000", "s.test", "bad.test", "r.test:50001"] {
            assert_eq!(password(none), None, "{none}");
        }
        assert!(!format!("{:?}", find(&file, "docker.io")).contains("p:q"));
        std::fs::write(&file, "hunter2").unwrap();
        assert_eq!(password("docker.io"), None);
        assert_eq!(find(&dir.path().join("none"), "docker.io"), None);
    }
}
