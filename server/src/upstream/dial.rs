//! Names to addresses, for one origin and for where it leads us.
//!
//! In: a host name, at the moment of connecting. Out: the addresses that may be connected to.
//! Invariant: the operator's own host may be anywhere. Another host, which an answer named, is connected to only at
//! public addresses, at addresses of the class of the upstream's own, or if the operator listed it. What is checked is
//! what is connected to: there is no second look-up between.
//! Not here: addresses written in URLs ([`super::transport`] checks those with [`Dial::allows`]).

use std::{
    collections::{BTreeMap, HashSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};

use super::address::{Class, class};

/// Addresses of one name that are looked at.
const ADDRESSES_MAX: usize = 64;

/// Names, addresses and who may be where. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Dial(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    own_host: String,
    /// Hosts that may be anywhere.
    trusted: HashSet<String>,
    /// Hosts of proxies, which are looked up like any other and say nothing of where a URL leads.
    proxies: HashSet<String>,
    hosts: BTreeMap<String, Vec<IpAddr>>,
    /// Of the upstream's own address, as last connected to.
    own_class: Mutex<Class>,
}

/// Every address of a host is where we do not go.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("its address is not public")]
pub(super) struct Forbidden;

impl Dial {
    /// `own_host` as in the URL; `trusted` are `host` or `host:port`.
    pub(super) fn new<'a>(
        own_host: &str,
        trusted: impl Iterator<Item = &'a String>,
        hosts: &BTreeMap<String, Vec<IpAddr>>,
        proxies: HashSet<String>,
    ) -> Self {
        let own_class = ip_of(own_host).map_or(Class::Public, class);
        let bare = |entry: &String| {
            let entry = entry.to_ascii_lowercase();
            match entry.rsplit_once(':') {
                Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host.to_owned(),
                _ => entry,
            }
        };
        Self(Arc::new(Inner {
            own_host: own_host.to_ascii_lowercase(),
            trusted: trusted.map(bare).collect(),
            proxies,
            hosts: hosts.iter().map(|(n, a)| (n.to_ascii_lowercase(), a.clone())).collect(),
            own_class: Mutex::new(own_class),
        }))
    }

    /// Whether a URL with this host may be connected to, as far as its text says.
    pub(super) fn allows(&self, host: &str) -> bool {
        self.is_trusted(host) || ip_of(host).is_none_or(|ip| self.allows_ip(ip))
    }

    fn is_trusted(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        host == self.0.own_host || self.0.trusted.contains(&host)
    }

    fn allows_ip(&self, ip: IpAddr) -> bool {
        match class(ip) {
            Class::Public => true,
            Class::Never => false,
            other => other == *self.0.own_class.lock().unwrap_or_else(|e| e.into_inner()),
        }
    }

    /// For the origin itself.
    pub(super) fn own(&self) -> OwnResolver {
        OwnResolver(self.clone())
    }

    /// For hosts that its answers name.
    pub(super) fn away(&self) -> AwayResolver {
        AwayResolver(self.clone())
    }

    async fn look_up(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let name = name.to_ascii_lowercase();
        if let Some(fixed) = self.0.hosts.get(name.trim_end_matches('.')) {
            return Ok(fixed.clone());
        }
        let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
        Ok(found.map(|a| a.ip()).take(ADDRESSES_MAX).collect())
    }
}

/// The hosts of the proxies that these values of the environment name, with or without a scheme.
pub(super) fn proxies_of(values: impl Iterator<Item = String>) -> HashSet<String> {
    let host = |value: String| {
        let url = match value.contains("://") {
            true => Url::parse(&value),
            false => Url::parse(&format!("http://{value}")),
        };
        Some(url.ok()?.host_str()?.to_ascii_lowercase())
    };
    values.filter_map(host).collect()
}

/// The address that a URL's host is, if it is none to be looked up.
fn ip_of(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

fn addresses(ips: Vec<IpAddr>) -> Addrs {
    Box::new(ips.into_iter().map(|ip| SocketAddr::new(ip, 0)))
}

#[derive(Debug)]
pub(super) struct OwnResolver(Dial);

impl Resolve for OwnResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let dial = self.0.clone();
        Box::pin(async move {
            let ips = dial.look_up(name.as_str()).await?;
            let mut classes = ips.iter().map(|ip| class(*ip));
            // A proxy's name is looked up here too, and says nothing of the upstream.
            if let Some(first) = classes.next()
                && name.as_str().eq_ignore_ascii_case(&dial.0.own_host)
            {
                // Names with addresses of several classes prove nothing.
                let all = if classes.all(|c| c == first) {
                    first
                } else {
                    Class::Public
                };
                *dial.0.own_class.lock().unwrap_or_else(|e| e.into_inner()) = all;
            }
            Ok(addresses(ips))
        })
    }
}

#[derive(Debug)]
pub(super) struct AwayResolver(Dial);

impl Resolve for AwayResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let dial = self.0.clone();
        Box::pin(async move {
            let mut ips = dial.look_up(name.as_str()).await?;
            let is_proxy = dial.0.proxies.contains(&name.as_str().to_ascii_lowercase());
            if !is_proxy && !dial.is_trusted(name.as_str()) {
                let had = ips.len();
                ips.retain(|ip| dial.allows_ip(*ip));
                if ips.is_empty() && had > 0 {
                    tracing::warn!(
                        host = name.as_str(),
                        "an upstream leads to an address that is not public"
                    );
                    return Err(Forbidden.into());
                }
            }
            Ok(addresses(ips))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn away(dial: &Dial, name: &str) -> Option<Vec<IpAddr>> {
        let found = dial.away().resolve(name.parse().unwrap()).await.ok()?;
        Some(found.map(|a| a.ip()).collect())
    }

    fn hosts(lines: &[(&str, &[&str])]) -> BTreeMap<String, Vec<IpAddr>> {
        let parsed = |ips: &[&str]| ips.iter().map(|ip| ip.parse().unwrap()).collect();
        lines
            .iter()
            .map(|(name, ips)| (name.to_string(), parsed(ips)))
            .collect()
    }

    #[tokio::test]
    async fn names_that_answers_bring_lead_to_public_addresses_only() {
        let map = hosts(&[
            ("r.test", &["192.0.2.1"]),
            ("cdn.test", &["192.0.2.2"]),
            ("meta.test", &["169.254.169.254"]),
            ("mixed.test", &["127.0.0.1", "192.0.2.3"]),
            ("intern.test", &["10.0.0.5"]),
            ("listed.test", &["10.0.0.6"]),
            ("proxy.test", &["10.0.0.7"]),
            ("intern-proxy.test", &["127.0.0.1"]),
        ]);
        let proxies = ["Proxy.test:3128", "http://u:p@intern-proxy.test", ""].map(str::to_owned);
        let proxies = proxies_of(proxies.into_iter());
        let dial = Dial::new("r.test", ["Listed.test:443".to_owned()].iter(), &map, proxies);
        let ip = |text: &str| vec![text.parse::<IpAddr>().unwrap()];
        assert_eq!(away(&dial, "cdn.test").await, Some(ip("192.0.2.2")));
        assert_eq!(away(&dial, "meta.test").await, None);
        assert_eq!(away(&dial, "mixed.test").await, Some(ip("192.0.2.3")));
        assert_eq!(away(&dial, "INTERN.test").await, None);
        assert_eq!(away(&dial, "listed.test").await, Some(ip("10.0.0.6")));
        assert_eq!(away(&dial, "proxy.test").await, Some(ip("10.0.0.7")));
        assert_eq!(away(&dial, "intern-proxy.test").await, Some(ip("127.0.0.1")));
        assert!(!dial.allows("[::ffff:7f00:1]"));
        assert!(dial.allows("cdn.test"));
    }

    #[tokio::test]
    async fn an_upstream_inside_may_lead_to_its_own_class_and_no_other() {
        let map = hosts(&[
            ("r.test", &["10.0.0.1", "10.0.0.2"]),
            ("cdn.test", &["192.168.0.9"]),
            ("here.test", &["127.0.0.1"]),
            ("meta.test", &["169.254.169.254"]),
        ]);
        let dial = Dial::new("r.test", [].iter(), &map, HashSet::new());
        assert_eq!(away(&dial, "cdn.test").await, None, "before its own address is known");
        assert!(dial.own().resolve("cdn.test".parse().unwrap()).await.is_ok());
        assert_eq!(away(&dial, "cdn.test").await, None, "another name proves nothing");
        assert!(dial.own().resolve("r.test".parse().unwrap()).await.is_ok());
        assert!(away(&dial, "cdn.test").await.is_some());
        assert_eq!(away(&dial, "here.test").await, None);
        assert_eq!(away(&dial, "meta.test").await, None);
        let local = Dial::new("127.0.0.1", [].iter(), &map, HashSet::new());
        assert!(local.allows("127.0.0.2") && local.allows("[::1]"));
        assert!(!local.allows("0.0.0.0") && !local.allows("10.0.0.1"));
    }
}
