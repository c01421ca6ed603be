//! What converting may keep in memory: one budget for all conversions of a server.
//!
//! In: how much each kind of thing costs. Out: leave to keep it, a refusal (this layer alone needs more than there is), or
//! a failure (the others have it now; a later try may do).
//! Invariant: what grows with a layer's contents is counted before it is kept, so that memory is bounded by configuration
//! whatever the input; a conversion that ends gives everything back, and what the allocator keeps of that is given back to
//! the system when it is much.
//! A layer that is alone is never told to wait: what it may take for its contents and for its decoder are parts of the whole.
//! Not here: memory of a fixed size (buffers, queues, encoders), which [`Memory::start`] takes as one sum.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::config::IngestConfig;
use super::error::{ConvertError, Failure, Limit, Refusal};

/// A name and its inode, at their dearest: in the finished tree, beside its encoding. Measured: 196 bytes a file.
pub const NAME: u64 = 230;
/// Besides, for each byte of a name: twice as such, once encoded.
pub const NAME_BYTE: u64 = 3;
/// Each byte of a symlink's target or an attribute: in the tree, encoded, and compressed if it does not compress.
pub const TEXT_BYTE: u64 = 4;
/// An attribute without its bytes.
pub const XATTR: u64 = 120;
/// A stretch of a sparse file: as read, as an extent, encoded.
pub const EXTENT: u64 = 80;
/// A body in the skeleton's list.
pub const BODY: u64 = 48;
/// A chunk in the lists of the pool, in the table, encoded, and in the store's list of what this conversion counts on.
pub const CHUNK: u64 = 240;
/// A byte of the compressed skeleton: collected, and copied into the encoded TOC.
pub const SKELETON_BYTE: u64 = 3;
/// Decoder, encoders, buffers and queues of one conversion.
const FIXED: u64 = 12 << 20;

/// When conversions have freed so much, fixed sizes included, the system gets it back: more often would cost time.
const GIVE_BACK_AT: u64 = 32 << 20;

/// What a refusal for want of memory calls it.
pub const WHAT: &str = "bytes to keep in memory (ingest.memory_bytes_max)";

/// Shared by all conversions.
#[derive(Debug)]
pub struct MemoryPool {
    used: AtomicU64,
    /// Since memory was last given back to the system.
    freed: AtomicU64,
}

impl MemoryPool {
    pub const fn new() -> Self {
        Self {
            used: AtomicU64::new(0),
            freed: AtomicU64::new(0),
        }
    }

    /// To be called when a conversion has ended.
    pub fn give_back(&self) {
        if self.freed.load(Ordering::Relaxed) >= GIVE_BACK_AT && self.freed.swap(0, Ordering::Relaxed) >= GIVE_BACK_AT {
            crate::allocator::give_back();
        }
    }
}

/// What one conversion has of the pool.
#[derive(Debug)]
pub struct Memory {
    pool: Arc<MemoryPool>,
    pool_max: u64,
    max: u64,
    mine: u64,
}

impl Memory {
    /// For what grows with the contents: all but what a decoder's window may take. Takes what every conversion needs.
    pub fn start(config: &IngestConfig) -> Result<Self, ConvertError> {
        let max = config.memory_bytes_max.saturating_sub(config.zstd_window_bytes_max);
        Self::first(config, max, FIXED)
    }

    /// For the decoder's window.
    pub fn window(config: &IngestConfig, bytes: u64) -> Result<Self, ConvertError> {
        Self::first(config, config.memory_bytes_max, bytes)
    }

    fn first(config: &IngestConfig, max: u64, bytes: u64) -> Result<Self, ConvertError> {
        let mut memory = Self {
            pool: Arc::clone(&config.memory),
            pool_max: config.memory_bytes_max,
            max,
            mine: 0,
        };
        memory.take(bytes)?;
        Ok(memory)
    }

    pub fn take(&mut self, bytes: u64) -> Result<(), ConvertError> {
        if self.mine.saturating_add(bytes) > self.max {
            let (what, max) = (WHAT, self.max);
            return Err(Refusal::OverBudget {
                limit: Limit::Memory,
                what,
                max,
            }
            .into());
        }
        let used = self.pool.used.fetch_add(bytes, Ordering::Relaxed);
        self.mine += bytes;
        if used.saturating_add(bytes) > self.pool_max {
            return Err(Failure::NoMemory.into());
        }
        Ok(())
    }

    /// What this conversion could take if it were alone.
    pub fn left(&self) -> u64 {
        self.max.saturating_sub(self.mine)
    }

    /// `count` things of `each` bytes.
    pub fn take_many(&mut self, count: usize, each: u64) -> Result<(), ConvertError> {
        self.take((count as u64).saturating_mul(each))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.pool.used.fetch_sub(self.mine, Ordering::Relaxed);
        self.pool.freed.fetch_add(self.mine, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_that_needs_too_much_is_refused_and_one_that_comes_too_late_waits() {
        let config = IngestConfig {
            memory_bytes_max: FIXED * 4,
            zstd_window_bytes_max: FIXED,
            ..IngestConfig::default()
        };
        let window = Memory::window(&config, FIXED).unwrap();
        let mut one = Memory::start(&config).unwrap();
        one.take(FIXED).unwrap();
        let mut two = Memory::start(&config).unwrap();
        let late = two.take(1);
        assert!(matches!(late, Err(ConvertError::Failed(Failure::NoMemory))), "{late:?}");
        drop(one);
        two.take(FIXED * 2 - 1).unwrap();
        let much = two.take(FIXED);
        assert!(matches!(much, Err(ConvertError::Refused(_))), "{much:?}");
        drop((two, window));
        assert_eq!(config.memory.used.load(Ordering::Relaxed), 0);
    }
}
