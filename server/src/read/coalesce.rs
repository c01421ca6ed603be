//! Several requests, one piece of work.
//!
//! In: a key and a future. Out: the future's result, for everyone who asked while it ran.
//! Invariant: the work runs in a task of its own, so a client that goes away stops nothing; results are shared, not
//! kept: a request that comes after the end starts anew.
//! Not here: caching.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;
use tracing::Instrument as _;

type Waiting<K, V> = Mutex<HashMap<K, watch::Receiver<Option<V>>>>;

/// Work under way, by key. Clones share it. Bounded by the requests that wait for it.
pub struct Coalesce<K, V>(Arc<Waiting<K, V>>);

impl<K, V> Clone for Coalesce<K, V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K, V> Default for Coalesce<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K, V> fmt::Debug for Coalesce<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Coalesce")
    }
}

impl<K, V> Coalesce<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Joins the work for `key`, or starts it. `None` if the work panicked.
    pub async fn run<F>(&self, key: K, work: impl FnOnce() -> F) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut result = {
            let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // A sender that is gone without a value is work that panicked.
            match waiting.get(&key).filter(|r| r.has_changed().is_ok()) {
                Some(result) => result.clone(),
                None => {
                    let (publish, result) = watch::channel(None);
                    waiting.insert(key.clone(), result.clone());
                    let (all, work) = (self.clone(), work());
                    let span = tracing::Span::current();
                    tokio::spawn(async move {
                        let value = work.instrument(span).await;
                        all.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
                        publish.send_replace(Some(value));
                    });
                    result
                }
            }
        };
        result.wait_for(Option::is_some).await.ok().and_then(|v| v.clone())
    }
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
        assert_eq!(second.await.unwrap(), Some(0));
        go.notify_one();
        assert_eq!(ask().await.unwrap(), Some(1));
    }

    #[tokio::test]
    async fn a_panic_is_nobodys_result_and_does_not_block_the_key() {
        let all: Coalesce<(), u32> = Coalesce::default();
        assert_eq!(all.run((), || async { panic!("expected by the test") }).await, None);
        assert_eq!(all.run((), || async { 7 }).await, Some(7));
    }
}
