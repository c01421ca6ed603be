//! Several requests, one piece of work.
//!
//! In: a key and a future. Out: the future's result, for everyone who asked while it ran.
//! Invariant: the work runs in a task of its own, so a client that goes away stops nothing; results are shared, not
//! kept: a request that comes after the end starts anew. Since work goes on when its client has left, no more than
//! [`WORKS_MAX`] run at once, and of one client no more than its share ([`super::turns`]): who asks an upstream that says
//! nothing for ever other things, and leaves, waits for its own. Who joins work that runs needs no turn.
//! Not here: caching.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use tracing::Instrument as _;

use super::{
    error::ReadError,
    turns::{Asker, FetchTurn, Turns},
};

/// Pieces of work of one kind at once: each is a request upstream, for as long as that takes to answer.
const WORKS_MAX: usize = 256;

/// Whoever finds no turn within this is told to come back: less than clients wait for a head.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// Why there is no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoResult {
    /// The work panicked.
    Panicked,
    /// There was no turn for it in time.
    Busy,
}

impl From<NoResult> for ReadError {
    fn from(why: NoResult) -> Self {
        match why {
            NoResult::Panicked => Self::Stopping,
            NoResult::Busy => Self::Busy,
        }
    }
}

type Waiting<K, V> = HashMap<K, watch::Receiver<Option<V>>>;

/// Work under way, by key. Clones share it. Bounded by its turns.
pub struct Coalesce<K, V>(Arc<Inner<K, V>>);

struct Inner<K, V> {
    waiting: Mutex<Waiting<K, V>>,
    turns: Turns,
    wait_max: Duration,
}

impl<K, V> Clone for Coalesce<K, V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K, V> Default for Coalesce<K, V> {
    fn default() -> Self {
        Self::with(WORKS_MAX, WAIT_MAX)
    }
}

impl<K, V> fmt::Debug for Coalesce<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Coalesce")
    }
}

impl<K, V> Coalesce<K, V> {
    fn with(works_max: usize, wait_max: Duration) -> Self {
        Self(Arc::new(Inner {
            waiting: Mutex::default(),
            turns: Turns::new(works_max),
            wait_max,
        }))
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting<K, V>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K, V> Coalesce<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Joins the work for `key`, or starts it, on behalf of who asks first.
    pub async fn run<F>(&self, key: K, work: impl FnOnce() -> F) -> Result<V, NoResult>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let running = running(&self.waiting(), &key);
        let mut result = match running {
            Some(result) => result,
            None => {
                // Not in the work's task: who leaves while it waits leaves nothing behind.
                let asker = Asker::current();
                let turn = self.0.turns.take(asker, self.0.wait_max).await;
                self.start(key, work, asker, turn.ok_or(NoResult::Busy)?)
            }
        };
        match result.wait_for(Option::is_some).await.map(|value| value.clone()) {
            Ok(Some(value)) => Ok(value),
            _ => Err(NoResult::Panicked),
        }
    }

    fn start<F>(&self, key: K, work: impl FnOnce() -> F, asker: Asker, turn: FetchTurn) -> watch::Receiver<Option<V>>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut waiting = self.waiting();
        // Somebody may have had a turn before.
        if let Some(result) = running(&waiting, &key) {
            return result;
        }
        let (publish, result) = watch::channel(None);
        waiting.insert(key.clone(), result.clone());
        let (all, work) = (self.clone(), work());
        let span = tracing::Span::current();
        tokio::spawn(async move {
            let _turn = turn;
            let value = asker.asks(work.instrument(span)).await;
            all.waiting().remove(&key);
            publish.send_replace(Some(value));
        });
        result
    }
}

fn running<K: Eq + Hash, V>(waiting: &Waiting<K, V>, key: &K) -> Option<watch::Receiver<Option<V>>> {
    // A sender that is gone without a value is work that panicked.
    waiting.get(key).filter(|r| r.has_changed().is_ok()).cloned()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn those_who_ask_meanwhile_share_and_those_who_ask_later_do_not() {
        let all: Coalesce<&str, u32> = Coalesce::default();
        let (runs, go) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
        let ask = || {
            let (all, runs, go) = (all.clone(), runs.clone(), go.clone());
            tokio::spawn(async move {
                all.run("k", || async move {
                    let n = runs.fetch_add(1, Ordering::SeqCst);
                    go.notified().await;
                    n
                })
                .await
            })
        };
        let (first, second) = (ask(), ask());
        // One thread: after these turns the work runs, and both wait for it.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        first.abort();
        go.notify_one();
        assert_eq!(second.await.unwrap(), Ok(0));
        go.notify_one();
        assert_eq!(ask().await.unwrap(), Ok(1));
    }

    #[tokio::test]
    async fn a_panic_is_nobodys_result_and_does_not_block_the_key() {
        let all: Coalesce<(), u32> = Coalesce::default();
        let panicked = all.run((), || async { panic!("expected by the test") }).await;
        assert_eq!(panicked, Err(NoResult::Panicked));
        assert_eq!(all.run((), || async { 7 }).await, Ok(7));
    }

    /// Of four places one asker has three. Who left while it waited for one has begun nothing, and its key is free.
    #[tokio::test]
    async fn work_whose_clients_have_left_is_bounded_and_of_one_client_more_so() {
        let all: Coalesce<u32, u32> = Coalesce::with(4, Duration::from_millis(50));
        let (runs, go) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
        let ask = |asker: Asker, key: u32, waits: bool| {
            let (all, runs, go) = (all.clone(), runs.clone(), go.clone());
            asker.asks(async move {
                all.run(key, || async move {
                    runs.fetch_add(1, Ordering::SeqCst);
                    if waits {
                        go.notified().await;
                    }
                    key
                })
                .await
            })
        };
        let client = |n: u8| Asker::Client(std::net::IpAddr::from([10, 0, 0, n]));
        for key in 0..10 {
            let left = tokio::time::timeout(Duration::from_millis(10), ask(client(1), key, true)).await;
            assert!(left.is_err());
        }
        assert_eq!(runs.load(Ordering::SeqCst), 3);
        assert_eq!(ask(client(1), 11, false).await, Err(NoResult::Busy));
        assert_eq!(ask(client(2), 9, false).await, Ok(9), "another client's turn");
        // What runs is anybody's to join.
        let joined = tokio::spawn(ask(client(1), 0, true));
        tokio::task::yield_now().await;
        go.notify_waiters();
        assert_eq!(joined.await.unwrap(), Ok(0));
        assert_eq!(ask(client(1), 11, false).await, Ok(11));
        assert_eq!(runs.load(Ordering::SeqCst), 5);
    }
}
