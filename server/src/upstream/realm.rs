//! Which hosts may hand out bearer tokens of an upstream.
//!
//! In: the upstream's URL and name, and the configuration's list. Out: yes or no to a realm.
//! Invariant: a secret is sent only to the upstream's own origin and to realms that pass here, never in clear text when
//! the upstream itself is https.
//! Not here: the address behind a realm's name ([`super::dial`]).

use reqwest::Url;

/// Which hosts may be token realms.
#[derive(Clone, Debug)]
pub(super) struct Realms {
    upstream: Url,
    name: String,
    hosts: Vec<String>,
}

impl Realms {
    pub(super) fn new(upstream: Url, name: &str, hosts: &[String]) -> Self {
        Self {
            upstream,
            name: name.to_owned(),
            hosts: hosts.iter().map(|h| h.to_ascii_lowercase()).collect(),
        }
    }

    /// The upstream's own host and port; a host below it or below the upstream's name, at the same port; or one that
    /// the configuration lists. Never less encrypted than the upstream.
    pub(super) fn allow(&self, realm: &Url) -> bool {
        let (Some(host), Some(own)) = (realm.host_str(), self.upstream.host_str()) else {
            return false;
        };
        // A user in it would be sent as `Authorization`, in place of what we mean to show.
        if !realm.username().is_empty() || realm.password().is_some() {
            return false;
        }
        if realm.scheme() != self.upstream.scheme() && realm.scheme() != "https" {
            return false;
        }
        let port = realm.port_or_known_default();
        let listed = |entry: &String| {
            entry == host || port.is_some_and(|p| entry.strip_prefix(host) == Some(format!(":{p}").as_str()))
        };
        if self.hosts.iter().any(listed) {
            return true;
        }
        let same_port = port == self.upstream.port_or_known_default();
        same_port && (host == own || is_below(host, own) || is_below(host, &self.name))
    }
}

/// Whether `host` is a subdomain of `domain`; a domain has a dot and is no IPv4 address.
fn is_below(host: &str, domain: &str) -> bool {
    let is_domain = domain.contains('.')
        && domain
            .rsplit('.')
            .next()
            .is_some_and(|last| last.parse::<u32>().is_err());
    is_domain && host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(upstream: &str, name: &str, hosts: &[&str], realm: &str) -> bool {
        let hosts: Vec<_> = hosts.iter().map(|h| h.to_string()).collect();
        Realms::new(upstream.parse().unwrap(), name, &hosts).allow(&realm.parse().unwrap())
    }

    #[test]
    fn realms_are_pinned() {
        let hub = "https://registry-1.docker.io";
        assert!(allows(hub, "docker.io", &[], "https://auth.docker.io/token"));
        assert!(allows("https://ghcr.io", "ghcr.io", &[], "https://ghcr.io/token"));
        assert!(allows("http://127.0.0.1:5000", "local", &[], "http://127.0.0.1:5000/t"));
        assert!(allows(
            "http://127.0.0.1:5000",
            "local",
            &["127.0.0.1:6000"],
            "http://127.0.0.1:6000/t"
        ));
        assert!(allows(
            hub,
            "docker.io",
            &["login.example.org"],
            "https://login.example.org:8443/t"
        ));
        for evil in [
            "https://auth.docker.io.evil.example/token",
            "https://evildocker.io/token",
            "http://auth.docker.io/token",
            "https://auth.docker.io:8443/token",
            "https://docker.evil/",
            "https://user:password@auth.docker.io/token",
        ] {
            assert!(!allows(hub, "docker.io", &[], evil), "{evil}");
        }
        assert!(!allows(
            "http://127.0.0.1:5000",
            "local",
            &[],
            "http://127.0.0.1:5001/t"
        ));
    }
}
