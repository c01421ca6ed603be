//! The border from tasks to threads, for short synchronous work.
//!
//! In: a closure that touches disk or index. Out: its result, awaited.
//! Invariant: no task of the runtime waits for a disk.
//! Not here: long work (conversions have their own threads).

use tokio::runtime::{Handle, RuntimeFlavor};

use super::error::ReadError;

/// Runs `work` on the runtime's pool of blocking threads.
pub async fn blocking<T, F>(work: F) -> Result<T, ReadError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, ReadError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ReadError::Disk(error.to_string().into())),
    }
}

/// As [`blocking`], on this thread: the other tasks of the thread move elsewhere first. No wait for another thread to wake
/// up, but dearer than that; for what a client is waiting for that moment.
pub async fn blocking_here<T, F>(work: F) -> Result<T, ReadError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, ReadError> + Send + 'static,
{
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        // Tests have one thread.
        _ => blocking(work).await,
    }
}
