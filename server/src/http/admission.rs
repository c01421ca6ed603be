//! Turns: which requests run, when there are more than may.
//!
//! In: a request's client. Out: a [`Turn`], at once or after a bounded wait; or the reason why not.
//! Invariant: requests whose answer has not begun are bounded over all clients, answers by client, and those that wait
//! by both. Clients that wait take turns, so one that asks for much delays nobody but itself. The table holds only
//! clients with something here, so it is bounded by the rest.
//! Not here: whose turn is next ([`super::ring`]), connections ([`super::clients`]), bytes per second ([`super::pace`]).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::oneshot;

use super::{clients::ClientKey, pace::Pace, ring::Ring};
use crate::{config::HttpConfig, metrics::label::shed};

/// Clones share the turns.
#[derive(Clone, Debug)]
pub struct Admission(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    heads_max: usize,
    client_answers_max: usize,
    queue_max: usize,
    client_queue_max: usize,
    wait_max: Duration,
    bytes_per_sec: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    heads: usize,
    clients: HashMap<ClientKey, Share>,
    ring: Ring<Turn>,
}

/// One client's part.
#[derive(Debug)]
struct Share {
    answers: usize,
    pace: Option<Arc<Pace>>,
}

/// A request's right to run. Its head is given back when the answer begins, the rest when this is dropped.
#[derive(Debug)]
pub struct Turn {
    admission: Admission,
    key: ClientKey,
    head: bool,
    pace: Option<Arc<Pace>>,
}

/// A place in a queue.
struct Place<'a> {
    admission: &'a Admission,
    key: ClientKey,
    receiver: oneshot::Receiver<Turn>,
}

/// Why a request does not run, as in `metrics::label::shed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused(pub &'static str);

impl Admission {
    pub fn new(config: &HttpConfig) -> Self {
        Self(Arc::new(Inner {
            heads_max: config.requests_max,
            client_answers_max: config.client_requests_max,
            queue_max: config.queue_max,
            client_queue_max: config.client_queue_max,
            wait_max: Duration::from_millis(config.queue_timeout_ms),
            bytes_per_sec: config.client_bytes_per_sec,
            state: Mutex::default(),
        }))
    }

    /// A turn now, if nothing stands against it.
    pub fn try_enter(&self, key: ClientKey) -> Option<Turn> {
        let mut state = self.state();
        if state.heads >= self.0.heads_max {
            return None;
        }
        let share = state.share(key, self.0.bytes_per_sec);
        if share.answers >= self.0.client_answers_max || state.ring.waiting_of(&key) > 0 {
            return None;
        }
        Some(self.start(&mut state, key))
    }

    /// A turn, when it comes in time.
    pub async fn wait(&self, key: ClientKey) -> Result<Turn, Refused> {
        let receiver = {
            let mut state = self.state();
            if state.ring.waiting() >= self.0.queue_max {
                return Err(Refused(shed::QUEUE_FULL));
            }
            if state.ring.waiting_of(&key) >= self.0.client_queue_max {
                return Err(Refused(shed::CLIENT_QUEUE_FULL));
            }
            state.ring.push(key)
        };
        // Clears its place in the queue also when the client leaves: those that wait must not be kept out by those that
        // do not any more.
        let mut place = Place {
            admission: self,
            key,
            receiver,
        };
        // Room may have come between the two looks.
        self.dispatch();
        match tokio::time::timeout(self.0.wait_max, &mut place.receiver).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) | Err(_) => Err(Refused(shed::QUEUE_TIME)),
        }
    }

    fn start(&self, state: &mut State, key: ClientKey) -> Turn {
        state.heads += 1;
        let share = state.share(key, self.0.bytes_per_sec);
        share.answers += 1;
        Turn {
            admission: self.clone(),
            key,
            head: true,
            pace: share.pace.clone(),
        }
    }

    /// Gives turns to those that wait, a client each in turn, while there are any.
    fn dispatch(&self) {
        // Turns that nobody takes are dropped, which locks the state again: after this lock.
        let mut untaken = Vec::new();
        let mut state = self.state();
        while state.heads < self.0.heads_max {
            let State { clients, ring, .. } = &mut *state;
            let may = |key: &ClientKey| {
                clients
                    .get(key)
                    .is_none_or(|share| share.answers < self.0.client_answers_max)
            };
            let Some((key, sender)) = ring.pop(may) else { break };
            let turn = self.start(&mut state, key);
            if let Err(turn) = sender.send(turn) {
                untaken.push(turn);
            }
        }
        drop(state);
    }

    /// Takes those out of a client's queue that wait no more.
    fn sweep(&self, key: ClientKey) {
        let mut state = self.state();
        state.ring.sweep(&key);
        state.forget(key);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Counts are changed whole; a panic under the lock could only lose a turn.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn share(&mut self, key: ClientKey, bytes_per_sec: u64) -> &mut Share {
        self.clients.entry(key).or_insert_with(|| Share {
            answers: 0,
            pace: (bytes_per_sec > 0).then(|| Arc::new(Pace::new(bytes_per_sec))),
        })
    }

    /// Drops a client that has nothing here any more.
    fn forget(&mut self, key: ClientKey) {
        if self.clients.get(&key).is_some_and(|share| share.answers == 0) && self.ring.waiting_of(&key) == 0 {
            self.clients.remove(&key);
        }
    }
}

impl Turn {
    /// The answer begins: another request may run, while this one's body goes out.
    pub fn begin_answer(&mut self) {
        if std::mem::take(&mut self.head) {
            self.admission.state().heads -= 1;
            self.admission.dispatch();
        }
    }

    /// How fast its client may be sent bytes, if that is limited.
    pub fn pace(&self) -> Option<Arc<Pace>> {
        self.pace.clone()
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.receiver.close();
        self.admission.sweep(self.key);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        {
            let mut state = self.admission.state();
            if self.head {
                state.heads -= 1;
            }
            if let Some(share) = state.clients.get_mut(&self.key) {
                share.answers -= 1;
            }
            state.forget(self.key);
        }
        self.admission.dispatch();
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn admission(
        requests_max: usize,
        client_requests_max: usize,
        queue_max: usize,
        queue_timeout_ms: u64,
    ) -> Admission {
        Admission::new(&HttpConfig {
            requests_max,
            client_requests_max,
            queue_max,
            client_queue_max: queue_max,
            queue_timeout_ms,
            ..HttpConfig::default()
        })
    }

    fn client(n: u8) -> ClientKey {
        ClientKey::new(IpAddr::from([10, 0, 0, n]))
    }

    fn empty(admission: &Admission) -> bool {
        let state = admission.state();
        state.heads == 0 && state.ring.waiting() == 0 && state.clients.is_empty()
    }

    #[tokio::test]
    async fn clients_take_turns_however_many_requests_one_of_them_has() {
        let admission = admission(1, 100, 100, 60_000);
        let running = admission.try_enter(client(1)).unwrap();
        let (sender, mut order) = tokio::sync::mpsc::unbounded_channel();
        for who in [1, 1, 1, 1, 2, 3] {
            let (admission, sender) = (admission.clone(), sender.clone());
            tokio::spawn(async move {
                let _turn = admission.wait(client(who)).await.unwrap();
                sender.send(who).unwrap();
            });
            tokio::task::yield_now().await;
        }
        assert!(admission.try_enter(client(4)).is_none());
        drop((running, sender));
        let mut turns = Vec::new();
        while let Some(who) = order.recv().await {
            turns.push(who);
        }
        assert_eq!(turns, [1, 2, 3, 1, 1, 1]);
        tokio::task::yield_now().await;
        assert!(empty(&admission));
    }

    #[tokio::test]
    async fn one_clients_answers_are_bounded_and_others_are_not_delayed() {
        let admission = admission(10, 2, 1, 60_000);
        let mut first = admission.try_enter(client(1)).unwrap();
        first.begin_answer();
        let second = admission.try_enter(client(1)).unwrap();
        assert!(admission.try_enter(client(1)).is_none());
        let third = tokio::spawn({
            let admission = admission.clone();
            async move { admission.wait(client(1)).await.map(drop) }
        });
        tokio::task::yield_now().await;
        assert_eq!(admission.wait(client(2)).await.unwrap_err(), Refused(shed::QUEUE_FULL));
        drop(admission.try_enter(client(2)).unwrap());
        drop(first);
        assert!(third.await.unwrap().is_ok());
        drop(second);
        assert!(empty(&admission));
    }

    #[tokio::test]
    async fn a_wait_ends_and_leaves_nothing() {
        let admission = admission(1, 1, 5, 300);
        let running = admission.try_enter(client(1)).unwrap();
        assert_eq!(admission.wait(client(2)).await.unwrap_err(), Refused(shed::QUEUE_TIME));
        // One that is given up by its caller.
        let left = tokio::time::timeout(Duration::from_millis(20), admission.wait(client(3))).await;
        assert!(left.is_err());
        assert_eq!(admission.state().ring.waiting(), 0, "nobody waits any more");
        drop(running);
        assert!(empty(&admission));
        assert!(admission.try_enter(client(2)).is_some());
    }
}
