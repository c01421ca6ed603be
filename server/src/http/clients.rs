//! Who a client is, for limits: an address, or the network behind which one hides.
//!
//! In: the address of a connection, and what trusted proxies say. Out: [`ClientKey`]s, and places for connections.
//! Invariant: `X-Forwarded-For` counts only from a proxy of the configuration, and from it only the last address that is
//! not such a proxy: anything before it is hearsay. Tables hold only clients that are here, so they are bounded by the
//! connections.
//! Not here: who may read what (`access/`), and requests ([`super::admission`]).

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

use http::HeaderMap;

use crate::{
    config::{HttpConfig, Network},
    read::turns::Asker,
};

/// Lines of `X-Forwarded-For`, and addresses in each, that are looked at, from the last one.
const FORWARDED_MAX: usize = 16;

/// What limits go by. A host with IPv6 has a /64 of addresses to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientKey(IpAddr);

impl ClientKey {
    pub fn new(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
            v4 => v4,
        })
    }

    /// For whom its requests fetch.
    pub fn asker(self) -> Asker {
        Asker::Client(self.0)
    }
}

impl fmt::Display for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Connections by client. Clones share the table.
#[derive(Clone, Debug)]
pub struct Clients(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    connections_max: usize,
    proxies: Vec<Network>,
    connections: Mutex<HashMap<ClientKey, usize>>,
}

/// A connection's place.
#[derive(Debug)]
pub struct Guest {
    clients: Clients,
    key: Option<ClientKey>,
}

impl Clients {
    pub fn new(config: &HttpConfig) -> Self {
        Self(Arc::new(Inner {
            connections_max: config.client_connections_max,
            proxies: config.trusted_proxies.clone(),
            connections: Mutex::default(),
        }))
    }

    /// A place for a connection; `None` when its client has enough. A trusted proxy speaks for many.
    pub fn welcome(&self, address: IpAddr) -> Option<Guest> {
        let guest = |key| Guest {
            clients: self.clone(),
            key,
        };
        if self.is_proxy(address) {
            return Some(guest(None));
        }
        let key = ClientKey::new(address);
        let mut connections = self.0.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let here = connections.entry(key).or_default();
        if *here >= self.0.connections_max {
            return None;
        }
        *here += 1;
        Some(guest(Some(key)))
    }

    /// The client that a request is from.
    pub fn address(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if !self.is_proxy(peer) {
            return peer;
        }
        let lines: Vec<_> = headers.get_all("x-forwarded-for").iter().collect();
        let addresses = lines
            .iter()
            .rev()
            .filter_map(|line| line.to_str().ok())
            .flat_map(|line| line.rsplit(','));
        let mut client = peer;
        for text in addresses.take(FORWARDED_MAX) {
            let Ok(address) = text.trim().parse::<IpAddr>() else {
                break;
            };
            client = address.to_canonical();
            if !self.is_proxy(client) {
                break;
            }
        }
        client
    }

    fn is_proxy(&self, address: IpAddr) -> bool {
        self.0.proxies.iter().any(|network| network.contains(address))
    }
}

impl Guest {
    /// None of a trusted proxy.
    pub fn key(&self) -> Option<ClientKey> {
        self.key
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        let mut connections = self
            .clients
            .0
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(here) = connections.get_mut(&key) {
            *here -= 1;
            if *here == 0 {
                connections.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn clients(proxies: &[&str]) -> Clients {
        Clients::new(&HttpConfig {
            client_connections_max: 2,
            trusted_proxies: proxies.iter().map(|p| p.parse().unwrap()).collect(),
            ..HttpConfig::default()
        })
    }

    #[test]
    fn places_are_counted_by_client_and_given_back() {
        let clients = clients(&["10.9.0.0/16"]);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = clients.welcome(ip("10.0.0.1")).unwrap();
        let _second = clients.welcome(ip("::ffff:10.0.0.1")).unwrap();
        assert!(clients.welcome(ip("10.0.0.1")).is_none());
        let _other = clients.welcome(ip("10.0.0.2")).unwrap();
        let _v6 = (clients.welcome(ip("2001:db8::1")), clients.welcome(ip("2001:db8::2")));
        assert!(clients.welcome(ip("2001:db8::3")).is_none());
        let _proxied: Vec<_> = (0..9).map(|_| clients.welcome(ip("10.9.1.1")).unwrap()).collect();
        drop(first);
        assert!(clients.welcome(ip("10.0.0.1")).is_some());
    }

    #[test]
    fn what_is_forwarded_counts_only_from_a_proxy() {
        let clients = clients(&["10.9.0.0/16"]);
        let told = |peer: &str, lines: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("x-forwarded-for", HeaderValue::from_static(line));
            }
            clients.address(peer.parse().unwrap(), &headers).to_string()
        };
        assert_eq!(told("10.0.0.1", &["1.1.1.1"]), "10.0.0.1");
        assert_eq!(told("10.9.0.1", &["1.1.1.1"]), "1.1.1.1");
        // The client invented the first; a proxy added the second, another the third.
        assert_eq!(told("10.9.0.1", &["6.6.6.6, 1.1.1.1, 10.9.0.2"]), "1.1.1.1");
        assert_eq!(told("10.9.0.1", &["6.6.6.6", "1.1.1.1"]), "1.1.1.1");
        assert_eq!(told("10.9.0.1", &["rubbish"]), "10.9.0.1");
        assert_eq!(told("10.9.0.1", &[]), "10.9.0.1");
    }
}
