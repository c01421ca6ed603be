//! Answers kept in memory for a short time, and longer for when the upstream is in trouble.
//!
//! In: a key, and how to ask the upstream. Out: the answer, and whether it is stale.
//! Invariant: those who ask at the same time are one request upstream; an answer younger than the time to live costs
//! none; an older one, from memory or from before a restart, is given only when the upstream fails. Its "no" ends both.
//! Bounded by the weight of what is kept.
//! Not here: what the answers mean, and the disk ([`super::saved`]).

use std::{
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Serialize, de::DeserializeOwned};
use tokio::time::{timeout, timeout_at};

use super::{
    blocking::blocking,
    coalesce::{Coalesce, NoResult},
    error::ReadError,
    saved::Saved,
};
use crate::upstream::UpstreamError;

/// What an entry weighs beside its answer and what its key says of itself: two names of up to 255 bytes, and the tables.
/// Empty answers are the cheapest to ask for, so it is they that would fill the memory.
const ENTRY_BYTES: usize = 1024;

/// A disk that takes longer than this to save an answer is not waited for.
const SAVE_MAX: Duration = Duration::from_secs(2);

/// An answer with its time; without one if that was before the start.
type Dated<V> = (Arc<V>, Option<Instant>);

/// What an answer is called on disk, and weighs in memory.
pub trait Named {
    /// Nothing, if it is not to be written there.
    fn name(&self) -> Option<String>;

    /// Bytes beside the two names.
    fn weight(&self) -> usize;
}

/// An answer of the upstream.
#[derive(Debug)]
pub struct Told<V> {
    pub list: V,
    /// Whether it is worth a place on disk, which others lose for it: whoever asks for what nobody has must not fill the disk
    /// with that.
    pub lasts: bool,
}

/// Clones share what is kept.
#[derive(Debug)]
pub struct Kept<K: Eq + Hash + Send + Sync + 'static, V: Send + Sync + 'static> {
    kept: moka::sync::Cache<K, Dated<V>>,
    running: Coalesce<K, Result<Arc<V>, ReadError>>,
    ttl: Duration,
    saved: Saved,
}

impl<K: Eq + Hash + Send + Sync, V: Send + Sync> Clone for Kept<K, V> {
    fn clone(&self) -> Self {
        Self {
            kept: self.kept.clone(),
            running: self.running.clone(),
            ttl: self.ttl,
            saved: self.saved.clone(),
        }
    }
}

impl<K, V> Kept<K, V>
where
    K: Clone + Eq + Hash + Named + Send + Sync + 'static,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// Keeps at most `bytes_max` in memory, by `weigh`.
    pub fn new(ttl: Duration, bytes_max: u64, saved: Saved, weigh: fn(&V) -> usize) -> Self {
        let weigher = move |key: &K, (value, _): &Dated<V>| {
            u32::try_from(weigh(value) + key.weight() + ENTRY_BYTES).unwrap_or(u32::MAX)
        };
        let kept = moka::sync::Cache::builder()
            .max_capacity(bytes_max)
            .weigher(weigher)
            .build();
        Self {
            kept,
            running: Coalesce::default(),
            ttl,
            saved,
        }
    }

    /// The answer, and whether it is an old one that the upstream could not confirm. An upstream that has not answered by
    /// then is in trouble; asking it goes on.
    pub async fn get<F>(&self, by: Instant, key: &K, ask: impl FnOnce() -> F) -> Result<(Arc<V>, bool), ReadError>
    where
        F: Future<Output = Result<Told<V>, ReadError>> + Send + 'static,
    {
        let last = self.kept.get(key);
        if let Some((value, at)) = &last
            && at.is_some_and(|at| at.elapsed() < self.ttl)
        {
            return Ok((value.clone(), false));
        }
        let answer = self.running.run(key.clone(), || {
            let (ask, all, key) = (ask(), self.clone(), key.clone());
            async move {
                match ask.await {
                    Ok(Told { list, lasts }) => {
                        let list = Arc::new(list);
                        all.kept.insert(key.clone(), (list.clone(), Some(Instant::now())));
                        all.write(&key, lasts.then(|| list.clone())).await;
                        Ok(list)
                    }
                    Err(error) => {
                        // It is gone, or was never for this caller to see.
                        if matches!(&error, ReadError::Upstream(error) if !error.is_outage()) {
                            all.kept.invalidate(&key);
                            all.write(&key, None).await;
                        }
                        Err(error)
                    }
                }
            }
        });
        let answer = match timeout_at(by.into(), answer).await {
            Ok(answer) => answer.unwrap_or_else(|why| match why {
                NoResult::Busy => Err(UpstreamError::Busy.into()),
                NoResult::Panicked => Err(ReadError::Stopping),
            }),
            Err(_) => Err(UpstreamError::Timeout.into()),
        };
        match (answer, last) {
            (Err(ReadError::Upstream(error)), Some((value, _))) if error.is_outage() => Ok((value, true)),
            (Err(ReadError::Upstream(error)), None) if error.is_outage() => match self.read(key).await {
                Some(value) => Ok((value, true)),
                None => Err(error.into()),
            },
            (answer, _) => Ok((answer?, false)),
        }
    }

    /// What is on disk becomes this. Whatever goes wrong costs the answer after the next start, not this one.
    async fn write(&self, key: &K, value: Option<Arc<V>>) {
        let Some(name) = key.name() else { return };
        let saved = self.saved.clone();
        let written = blocking(move || {
            match value {
                Some(value) => {
                    let json = serde_json::to_vec(&*value).map_err(std::io::Error::other)?;
                    saved.save(&name, &json)?;
                }
                None => saved.forget(&name)?,
            }
            Ok(())
        });
        match timeout(SAVE_MAX, written).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a list is not saved"),
            Err(_) => tracing::warn!("a list is not saved: the disk takes too long"),
        }
    }

    /// What is on disk, of a time before the start.
    async fn read(&self, key: &K) -> Option<Arc<V>> {
        let (saved, name) = (self.saved.clone(), key.name()?);
        let json = blocking(move || Ok(saved.load(&name))).await.ok()??;
        let value: Arc<V> = Arc::new(serde_json::from_slice(&json).ok()?);
        self.kept.insert(key.clone(), (value.clone(), None));
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Named for u32 {
        fn name(&self) -> Option<String> {
            None
        }

        fn weight(&self) -> usize {
            0
        }
    }

    impl Named for String {
        fn name(&self) -> Option<String> {
            None
        }

        fn weight(&self) -> usize {
            self.len()
        }
    }

    async fn nothing() -> Result<Told<Vec<u8>>, ReadError> {
        let (list, lasts) = (Vec::new(), false);
        Ok(Told { list, lasts })
    }

    #[tokio::test]
    async fn empty_answers_have_a_weight_too() {
        let dir = tempfile::tempdir().unwrap();
        let saved = Saved::open(dir.path()).unwrap();
        let kept: Kept<u32, Vec<u8>> = Kept::new(Duration::from_secs(60), 100 << 10, saved, Vec::len);
        let by = Instant::now() + Duration::from_secs(60);
        for key in 0..2000 {
            kept.get(by, &key, nothing).await.unwrap();
        }
        kept.kept.run_pending_tasks();
        assert!(
            (1..=100).contains(&kept.kept.entry_count()),
            "{}",
            kept.kept.entry_count()
        );
    }

    #[tokio::test]
    async fn keys_have_a_weight_too() {
        let dir = tempfile::tempdir().unwrap();
        let saved = Saved::open(dir.path()).unwrap();
        let kept: Kept<String, Vec<u8>> = Kept::new(Duration::from_secs(60), 100 << 10, saved, Vec::len);
        let by = Instant::now() + Duration::from_secs(60);
        for key in 0..100 {
            kept.get(by, &format!("{key:09000}"), nothing).await.unwrap();
        }
        kept.kept.run_pending_tasks();
        assert!(
            (1..=10).contains(&kept.kept.entry_count()),
            "{}",
            kept.kept.entry_count()
        );
    }
}
