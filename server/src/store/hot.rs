//! What is asked for over and over, at hand: no disk, no index, no thread for blocking work.
//!
//! In: what was just read from the truth (files, packs, index). Out: the same again, until it changes, or is crowded out
//! by what is used more.
//! Invariant: nothing outlives its change. Whoever changes the truth changes it first and then calls [`Hot::forget`];
//! whoever reads the truth takes a [`Ticket`] before, and what was read under a ticket from before a `forget` is not
//! kept. So either the change was seen by the reader, or the reader's row goes. Bounded by weight.
//! Rows leave for good at once, unlike those of a cache that collects its garbage later: a row may hold a file open,
//! and with it the disk space that an eviction is about to free.
//! Not here: what rows mean.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

/// What does not fit is made room for by this share of all, so that the search for what to drop is seldom.
const DROPPED_SHARE: usize = 4;

/// Says when a reader began.
#[derive(Clone, Copy, Debug)]
pub struct Ticket(u64);

#[derive(Debug)]
struct Row<V> {
    value: V,
    weight: usize,
    /// By [`Rows::clock`]; written under the shared lock.
    used: AtomicU64,
}

#[derive(Debug)]
struct Rows<K, V> {
    rows: HashMap<K, Row<V>>,
    weight: usize,
    forgotten: u64,
    clock: AtomicU64,
}

/// Rows by key.
#[derive(Debug)]
pub struct Hot<K, V> {
    rows: RwLock<Rows<K, V>>,
    weight_max: usize,
}

impl<K: Eq + Hash + Clone, V: Clone> Hot<K, V> {
    pub fn new(weight_max: usize) -> Self {
        Self {
            rows: RwLock::new(Rows {
                rows: HashMap::new(),
                weight: 0,
                forgotten: 0,
                clock: AtomicU64::new(0),
            }),
            weight_max,
        }
    }

    pub fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        let row = rows.rows.get(key)?;
        row.used
            .store(rows.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        Some(row.value.clone())
    }

    /// To be taken before the truth is read.
    pub fn ticket(&self) -> Ticket {
        Ticket(self.rows.read().unwrap_or_else(PoisonError::into_inner).forgotten)
    }

    /// What was read under `ticket`. Not kept when anything was forgotten since, or when it is too heavy to be worth it.
    pub fn keep(&self, ticket: Ticket, key: K, value: V, weight: usize) {
        if weight > self.weight_max / DROPPED_SHARE {
            return;
        }
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        if rows.forgotten != ticket.0 {
            return;
        }
        let used = AtomicU64::new(rows.clock.fetch_add(1, Ordering::Relaxed));
        let row = Row { value, weight, used };
        rows.weight += weight;
        if let Some(old) = rows.rows.insert(key, row) {
            rows.weight -= old.weight;
        }
        if rows.weight > self.weight_max {
            rows.shrink(self.weight_max - self.weight_max / DROPPED_SHARE);
        }
    }

    /// The truth about `key` has changed.
    pub fn forget<Q>(&self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        rows.forgotten += 1;
        if let Some(row) = rows.rows.remove(key) {
            rows.weight -= row.weight;
        }
    }
}

impl<K: Eq + Hash + Clone, V> Rows<K, V> {
    /// Drops what was not used for the longest time.
    fn shrink(&mut self, weight: usize) {
        let mut by_use: Vec<(u64, K)> = self
            .rows
            .iter()
            .map(|(key, row)| (row.used.load(Ordering::Relaxed), key.clone()))
            .collect();
        by_use.sort_unstable_by_key(|(used, _)| *used);
        for (_, key) in by_use {
            if self.weight <= weight {
                break;
            }
            if let Some(row) = self.rows.remove(&key) {
                self.weight -= row.weight;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_before_a_change_is_not_kept_after_it() {
        let hot: Hot<u32, u32> = Hot::new(100);
        let before = hot.ticket();
        hot.keep(before, 1, 10, 1);
        assert_eq!(hot.get(&1), Some(10));
        hot.forget(&1);
        hot.keep(before, 1, 10, 1);
        assert_eq!(hot.get(&1), None);
        hot.keep(hot.ticket(), 1, 11, 1);
        assert_eq!(hot.get(&1), Some(11));
    }

    #[test]
    fn the_least_used_go_when_it_becomes_heavy() {
        let hot: Hot<u32, u32> = Hot::new(8);
        for key in 0..8 {
            hot.keep(hot.ticket(), key, key, 1);
        }
        assert_eq!(hot.get(&0), Some(0));
        hot.keep(hot.ticket(), 8, 8, 1);
        assert_eq!((hot.get(&0), hot.get(&8)), (Some(0), Some(8)));
        assert_eq!((1..8).filter(|key| hot.get(key).is_some()).count(), 4);
        hot.keep(hot.ticket(), 9, 9, 3);
        assert_eq!(hot.get(&9), None, "too heavy");
        // The same key again weighs once.
        for _ in 0..20 {
            hot.keep(hot.ticket(), 8, 8, 2);
        }
        assert_eq!(hot.get(&0), Some(0));
    }

    #[test]
    fn a_forgotten_row_lets_go_of_its_value_at_once() {
        let hot: Hot<u32, std::sync::Arc<u32>> = Hot::new(8);
        let value = std::sync::Arc::new(1);
        hot.keep(hot.ticket(), 1, value.clone(), 1);
        assert_eq!(std::sync::Arc::strong_count(&value), 2);
        hot.forget(&1);
        assert_eq!(std::sync::Arc::strong_count(&value), 1);
    }
}
