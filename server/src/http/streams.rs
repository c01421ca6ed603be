//! Streams of frames: who reads from the disk next, when many nodes are sent frames at once.
//!
//! In: streams, by client. Out: [`Step`]s, one for each part of a stream.
//! Invariant: streams are bounded over all; reads at once too; and what was read and is not sent yet, by client and over all:
//! whoever takes a byte a second keeps no more in memory than that. Half of all is for clients that have nothing yet, so a few
//! that take nothing keep nobody out. Clients
//! that wait take turns, a part each, so one that starts twenty images is as quick with each of them as its share
//! allows, and delays nobody but itself. Whoever goes away leaves no place taken.
//! Not here: parts ([`super::parts`]), whose turn is next ([`super::ring`]), requests ([`super::admission`]), bytes per
//! second ([`super::pace`]).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{clients::ClientKey, ring::Ring};

/// How much of each there may be.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub streams: usize,
    pub reads: usize,
    /// Parts of one client that are read and not sent: a few for each of some streams, or one that takes nothing would hold
    /// up the others.
    pub client_parts: usize,
    /// The same, of all clients.
    pub parts: usize,
}

/// Clones share the places.
#[derive(Clone, Debug)]
pub struct Streams(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bounds: Bounds,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    streams: usize,
    reads: usize,
    /// Read, and not sent yet.
    parts: usize,
    clients: HashMap<ClientKey, Share>,
    ring: Ring<Step>,
}

#[derive(Debug, Default)]
struct Share {
    /// Streams, and with them the entry, live.
    streams: usize,
    steps: usize,
}

/// A stream's place.
#[derive(Debug)]
pub struct Place {
    streams: Streams,
    key: ClientKey,
}

/// The right to read a part; dropped when it was sent.
#[derive(Debug)]
pub struct Step {
    streams: Streams,
    key: ClientKey,
    reading: bool,
}

impl Streams {
    pub fn new(bounds: Bounds) -> Self {
        let state = Mutex::default();
        Self(Arc::new(Inner { bounds, state }))
    }

    /// `None`: there are too many streams.
    pub fn enter(&self, key: ClientKey) -> Option<Place> {
        let mut state = self.state();
        if state.streams >= self.0.bounds.streams {
            return None;
        }
        state.streams += 1;
        state.clients.entry(key).or_default().streams += 1;
        Some(Place {
            streams: self.clone(),
            key,
        })
    }

    fn dispatch(&self) {
        // Those whose waiter left lock the state when they are dropped: after this lock.
        let mut untaken = Vec::new();
        let mut state = self.state();
        let bounds = &self.0.bounds;
        while state.reads < bounds.reads && state.parts < bounds.parts {
            let State {
                clients, ring, parts, ..
            } = &mut *state;
            let is_crowded = *parts >= bounds.parts / 2;
            let client_parts = if is_crowded { 1 } else { bounds.client_parts };
            let may = |key: &ClientKey| clients.get(key).is_none_or(|share| share.steps < client_parts);
            let Some((key, sender)) = ring.pop(may) else { break };
            state.reads += 1;
            state.parts += 1;
            state.clients.entry(key).or_default().steps += 1;
            let step = Step {
                streams: self.clone(),
                key,
                reading: true,
            };
            if let Err(step) = sender.send(step) {
                untaken.push(step);
            }
        }
        drop(state);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Counts are changed whole.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget(&mut self, key: ClientKey) {
        let idle = |share: &Share| share.streams == 0 && share.steps == 0;
        if self.clients.get(&key).is_some_and(idle) && self.ring.waiting_of(&key) == 0 {
            self.clients.remove(&key);
        }
    }
}

impl Place {
    /// A turn to read the next part. Waits as long as others are first; whoever goes away drops this.
    pub async fn step(&self) -> Option<Step> {
        let receiver = {
            let mut state = self.streams.state();
            // Those that do not wait any more.
            state.ring.sweep(&self.key);
            state.ring.push(self.key)
        };
        self.streams.dispatch();
        receiver.await.ok()
    }
}

impl Step {
    /// It is read: another may read.
    pub fn has_read(&mut self) {
        if std::mem::take(&mut self.reading) {
            self.streams.state().reads -= 1;
            self.streams.dispatch();
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        {
            let mut state = self.streams.state();
            state.parts -= 1;
            if self.reading {
                state.reads -= 1;
            }
            if let Some(share) = state.clients.get_mut(&self.key) {
                share.steps -= 1;
            }
            state.forget(self.key);
        }
        self.streams.dispatch();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        {
            let mut state = self.streams.state();
            state.streams -= 1;
            if let Some(share) = state.clients.get_mut(&self.key) {
                share.streams -= 1;
            }
            state.ring.sweep(&self.key);
            state.forget(self.key);
        }
        self.streams.dispatch();
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, time::Duration};

    use super::*;

    fn streams(streams: usize, reads: usize) -> Streams {
        Streams::new(Bounds {
            streams,
            reads,
            client_parts: 16,
            parts: 64,
        })
    }

    fn key(last: u8) -> ClientKey {
        ClientKey::new(IpAddr::from([10, 0, 0, last]))
    }

    async fn settle() {
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
    }

    /// A stream that takes `parts` turns and notes whose they were.
    fn stream(streams: &Streams, last: u8, parts: usize, order: &Arc<Mutex<Vec<u8>>>) -> tokio::task::JoinHandle<()> {
        let (place, order) = (streams.enter(key(last)).unwrap(), order.clone());
        tokio::spawn(async move {
            for _ in 0..parts {
                let mut step = place.step().await.unwrap();
                order.lock().unwrap().push(last);
                tokio::task::yield_now().await;
                step.has_read();
            }
        })
    }

    #[tokio::test]
    async fn clients_take_turns_however_many_streams_one_has() {
        let streams = streams(100, 1);
        let order = Arc::new(Mutex::new(Vec::new()));
        let first = streams.enter(key(9)).unwrap();
        let mut held = first.step().await.unwrap();
        let mut all: Vec<_> = (0..20).map(|_| stream(&streams, 1, 5, &order)).collect();
        settle().await;
        all.push(stream(&streams, 2, 5, &order));
        settle().await;
        assert!(order.lock().unwrap().is_empty(), "one reads at a time");
        held.has_read();
        for task in all {
            tokio::time::timeout(Duration::from_secs(60), task)
                .await
                .unwrap()
                .unwrap();
        }
        let order = order.lock().unwrap().clone();
        assert_eq!(order.len(), 105);
        let last_of_two = order.iter().rposition(|who| *who == 2).unwrap();
        // It asks for its next part after the one before, so it may miss every other round. In one queue for all, its first
        // would come after twenty.
        assert!(last_of_two < 20, "its five parts are among the first: {order:?}");
    }

    #[tokio::test]
    async fn whoever_goes_away_leaves_nothing() {
        let streams = streams(2, 1);
        let (one, two) = (streams.enter(key(1)).unwrap(), streams.enter(key(2)).unwrap());
        assert!(streams.enter(key(3)).is_none());
        let held = one.step().await.unwrap();
        // Waits, and is given up.
        assert!(
            tokio::time::timeout(Duration::from_millis(20), two.step())
                .await
                .is_err()
        );
        drop(two);
        drop(held);
        let three = streams.enter(key(3)).unwrap();
        drop(
            tokio::time::timeout(Duration::from_secs(60), three.step())
                .await
                .unwrap(),
        );
        drop((one, three));
        let state = streams.state();
        assert_eq!((state.streams, state.reads, state.parts), (0, 0, 0));
        assert!(state.clients.is_empty(), "{:?}", state.clients);
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_holds_up_itself_alone() {
        let streams = streams(100, 2);
        let stalled = streams.enter(key(1)).unwrap();
        let mut unsent = Vec::new();
        for _ in 0..16 {
            let mut step = stalled.step().await.unwrap();
            step.has_read();
            unsent.push(step);
        }
        assert!(
            tokio::time::timeout(Duration::from_millis(20), stalled.step())
                .await
                .is_err()
        );
        let other = streams.enter(key(2)).unwrap();
        drop(
            tokio::time::timeout(Duration::from_secs(60), other.step())
                .await
                .unwrap(),
        );
        unsent.pop();
        drop(
            tokio::time::timeout(Duration::from_secs(60), stalled.step())
                .await
                .unwrap(),
        );
    }

    /// So many that each could have its share only if there were twice as much.
    #[tokio::test]
    async fn clients_that_take_nothing_are_bounded_over_all_and_leave_room_for_those_that_have_nothing() {
        let streams = streams(1000, 100);
        let mut unsent = Vec::new();
        for last in 1..=8 {
            let place = streams.enter(key(last)).unwrap();
            while let Ok(step) = tokio::time::timeout(Duration::from_millis(20), place.step()).await {
                let mut step = step.unwrap();
                step.has_read();
                unsent.push(step);
            }
        }
        // Two with all that a client may have; then one for each.
        assert_eq!(unsent.len(), 32 + 6);
        for last in 9..=34 {
            let place = streams.enter(key(last)).unwrap();
            let step = tokio::time::timeout(Duration::from_secs(60), place.step()).await;
            unsent.push(step.unwrap().unwrap());
        }
        assert_eq!(unsent.len(), 64);
        let late = streams.enter(key(99)).unwrap();
        let waits = tokio::time::timeout(Duration::from_millis(20), late.step()).await;
        assert!(waits.is_err(), "there is no more room");
        unsent.pop();
        let step = tokio::time::timeout(Duration::from_secs(60), late.step()).await;
        assert!(step.unwrap().is_some());
    }
}
