//! Answers kept in memory for a short time, and longer for when the upstream is in trouble.
//!
//! In: a key, and how to ask the upstream. Out: the answer, and whether it is stale.
//! Invariant: those who ask at the same time are one request upstream; an answer younger than the time to live costs
//! none; an older one is given only when the upstream fails. Bounded by the weight of what is kept.
//! Not here: what the answers mean.

use std::{
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{coalesce::Coalesce, error::ReadError};

/// An answer with its time.
type Dated<V> = (Arc<V>, Instant);

/// Clones share what is kept.
#[derive(Clone, Debug)]
pub struct Kept<K: Eq + Hash + Send + Sync + 'static, V: Send + Sync + 'static> {
    kept: moka::sync::Cache<K, Dated<V>>,
    running: Coalesce<K, Result<Arc<V>, ReadError>>,
    ttl: Duration,
}

impl<K, V> Kept<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    /// Keeps at most `bytes_max`, by `weigh`.
    pub fn new(ttl: Duration, bytes_max: u64, weigh: fn(&V) -> usize) -> Self {
        let weigher = move |_: &K, (value, _): &Dated<V>| u32::try_from(weigh(value).max(64)).unwrap_or(u32::MAX);
        let kept = moka::sync::Cache::builder()
            .max_capacity(bytes_max)
            .weigher(weigher)
            .build();
        Self {
            kept,
            running: Coalesce::default(),
            ttl,
        }
    }

    /// The answer, and whether it is an old one that the upstream could not confirm.
    pub async fn get<F>(&self, key: &K, ask: impl FnOnce() -> F) -> Result<(Arc<V>, bool), ReadError>
    where
        F: Future<Output = Result<V, ReadError>> + Send + 'static,
    {
        let last = self.kept.get(key);
        if let Some((value, at)) = &last
            && at.elapsed() < self.ttl
        {
            return Ok((value.clone(), false));
        }
        let answer = self.running.run(key.clone(), || {
            let (ask, kept, key) = (ask(), self.kept.clone(), key.clone());
            async move {
                let answer = ask.await.map(Arc::new);
                match &answer {
                    Ok(value) => kept.insert(key, (value.clone(), Instant::now())),
                    // It is gone, or was never for this caller to see.
                    Err(ReadError::Upstream(error)) if !error.is_outage() => kept.invalidate(&key),
                    Err(_) => {}
                }
                answer
            }
        });
        match (answer.await.unwrap_or(Err(ReadError::Stopping)), last) {
            (Err(ReadError::Upstream(error)), Some((value, _))) if error.is_outage() => Ok((value, true)),
            (answer, _) => Ok((answer?, false)),
        }
    }
}
