//! The border from tasks to threads, for short synchronous work.
//!
//! In: a closure that touches disk or index. Out: its result, awaited.
//! Invariant: no task of the runtime waits for a disk.
//! Not here: long work (conversions have their own threads).

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
