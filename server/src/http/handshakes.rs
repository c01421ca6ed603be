//! Handshakes that run at once: a bound for all, and a share of it for each client.
//!
//! In: a client's [`ClientKey`]. Out: a [`Place`], when there is room.
//! Invariant: whoever has its share waits for its own to end, before it takes anything of the others'. A trusted proxy
//! speaks for many and has no share. The table holds only clients with a handshake here, so it is bounded by the
//! connections.
//! Not here: how long one may take ([`super::tls`]).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::clients::ClientKey;

/// A client may run this part of all handshakes. One takes a round trip and a millisecond, so also a network behind one
/// address gets through; and it takes eight such addresses to keep others waiting.
const SHARES: usize = 8;

#[derive(Debug)]
pub struct Handshakes {
    all: Arc<Semaphore>,
    share: usize,
    clients: Mutex<HashMap<ClientKey, Client>>,
}

#[derive(Debug)]
struct Client {
    /// Handshakes of its own, those that wait with them.
    here: usize,
    turns: Arc<Semaphore>,
}

/// A handshake's right to run; the shared one is given back first.
#[derive(Debug)]
pub struct Place<'a> {
    _all: OwnedSemaphorePermit,
    _own: Option<(OwnedSemaphorePermit, Guest<'a>)>,
}

/// A client's place in the table.
#[derive(Debug)]
struct Guest<'a> {
    handshakes: &'a Handshakes,
    key: ClientKey,
}

impl Handshakes {
    pub fn new(max: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(max)),
            share: (max / SHARES).max(1),
            clients: Mutex::default(),
        }
    }

    /// A turn, when it comes. `None` is a trusted proxy.
    pub async fn enter(&self, client: Option<ClientKey>) -> Option<Place<'_>> {
        let own = match client {
            Some(key) => {
                let (guest, turns) = self.welcome(key);
                Some((turns.acquire_owned().await.ok()?, guest))
            }
            None => None,
        };
        // Neither semaphore is ever closed.
        let all = self.all.clone().acquire_owned().await.ok()?;
        Some(Place { _all: all, _own: own })
    }

    fn welcome(&self, key: ClientKey) -> (Guest<'_>, Arc<Semaphore>) {
        let mut clients = self.clients();
        let client = clients.entry(key).or_insert_with(|| Client {
            here: 0,
            turns: Arc::new(Semaphore::new(self.share)),
        });
        client.here += 1;
        let turns = client.turns.clone();
        (Guest { handshakes: self, key }, turns)
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<ClientKey, Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let mut clients = self.handshakes.clients();
        if let Some(client) = clients.get_mut(&self.key) {
            client.here -= 1;
            if client.here == 0 {
                clients.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_client_has_its_share_and_a_proxy_all() {
        let handshakes = Handshakes::new(16);
        let client = |text: &str| Some(ClientKey::new(text.parse().unwrap()));
        let enter = |client| handshakes.enter(client).now_or_never().flatten();
        let first = enter(client("10.0.0.1")).unwrap();
        let second = enter(client("::ffff:10.0.0.1")).unwrap();
        assert!(enter(client("10.0.0.1")).is_none());
        let _other = enter(client("10.0.0.2")).unwrap();
        drop(first);
        let third = enter(client("10.0.0.1")).unwrap();
        let proxied: Vec<_> = (0..13).map(|_| enter(None).unwrap()).collect();
        assert!(enter(None).is_none() && enter(client("10.0.0.3")).is_none());
        drop((proxied, second, third));
        assert_eq!(handshakes.clients().len(), 1, "who is gone is forgotten");
        let small = Handshakes::new(1);
        assert!(small.enter(client("10.0.0.1")).now_or_never().flatten().is_some());
    }
}
