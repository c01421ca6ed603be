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

/// What an entry weighs beside its answer: two names of up to 255 bytes in its key, and the tables. Empty answers are the
/// cheapest to ask for, so it is they that would fill the memory.
const ENTRY_BYTES: usize = 1024;

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
        let weigher = move |_: &K, (value, _): &Dated<V>| u32::try_from(weigh(value) + ENTRY_BYTES).unwrap_or(u32::MAX);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn empty_answers_have_a_weight_too() {
        let kept: Kept<u32, Vec<u8>> = Kept::new(Duration::from_secs(60), 100 << 10, Vec::len);
        for key in 0..2000 {
            kept.get(&key, || async { Ok(Vec::new()) }).await.unwrap();
        }
        kept.kept.run_pending_tasks();
        assert!(
            (1..=100).contains(&kept.kept.entry_count()),
            "{}",
            kept.kept.entry_count()
        );
    }
}
