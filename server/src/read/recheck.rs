//! Whether an original that an earlier process left still is what its digest names.
//!
//! In: the open file of an original. Out: a [`Verdict`], now or in a while.
//! Invariant: of a file that this process did not write, no answer is complete before all of it was read once and compared with
//! its digest, so damage at rest is a miss, and never a wrong answer; each file is read once a process, whoever asks, and no more
//! than a few at once. What is wrong goes away. Damage that comes later is for the scrub to find, and for whoever meets an error of
//! the disk ([`Opened::doubt`]).
//! Not here: the comparison ([`crate::store::intact`]), and what is sent meanwhile ([`super::blob`]).

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use headstart_layer_format::BlobDigest;
use tokio::sync::{Semaphore, watch};

use super::{blocking::blocking, errand::Yard, error::ReadError};
use crate::store::{
    intact::{self, Verdict as Found},
    opened::Opened,
};

/// Each of them has its file open.
const BESIDE_MAX: usize = 64;

/// Which file: the digest's path may have led to another one before.
type Key = (BlobDigest, u64);
type Said = Option<Result<(), ReadError>>;

/// Files that are being read.
#[derive(Debug)]
pub struct Rechecks {
    running: Mutex<HashMap<Key, watch::Receiver<Said>>>,
    /// Hashing is work for a core each.
    places: Arc<Semaphore>,
}

/// Of one file.
#[derive(Clone, Debug)]
pub struct Verdict(watch::Receiver<Said>);

impl Default for Rechecks {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            running: Mutex::default(),
            places: Arc::new(Semaphore::new(cores)),
        }
    }
}

impl Rechecks {
    /// Begins the reading of this file, unless many are waiting for theirs already: nobody waits for this one, and whoever asks for
    /// its bytes begins it.
    pub fn begin(&self, yard: &Arc<Yard>, digest: &BlobDigest, opened: &Arc<Opened>) {
        let waiting = self.running.lock().unwrap_or_else(PoisonError::into_inner).len();
        if waiting < BESIDE_MAX {
            drop(self.of(yard, digest, opened));
        }
    }

    /// Joins the reading of this file, or begins it, in a task of its own.
    pub fn of(&self, yard: &Arc<Yard>, digest: &BlobDigest, opened: &Arc<Opened>) -> Verdict {
        let key = (*digest, opened.inode());
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // A sender that is gone without a word is a task that panicked.
        if let Some(said) = running.get(&key).filter(|said| said.has_changed().is_ok()) {
            return Verdict(said.clone());
        }
        let (say, said) = watch::channel(None);
        running.insert(key, said.clone());
        let (yard, opened, places) = (yard.clone(), opened.clone(), self.places.clone());
        tokio::spawn(async move {
            let _place = places.acquire_owned().await;
            let (of, file) = (yard.clone(), opened.clone());
            let found = blocking(move || look(&of, &key.0, &file)).await;
            // In this order: who comes between the two finds the file marked, or gone.
            yard.rechecks.forget(&key);
            say.send_replace(Some(found));
        });
        Verdict(said)
    }

    fn forget(&self, key: &Key) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.remove(key);
    }
}

impl Verdict {
    /// Waits for it. [`ReadError::DigestMismatch`]: it is another blob, and gone.
    pub async fn right(mut self) -> Result<(), ReadError> {
        match self.0.wait_for(Option::is_some).await {
            Ok(said) => said.clone().unwrap_or(Err(ReadError::Stopping)),
            Err(_) => Err(ReadError::Stopping),
        }
    }
}

#[cfg(test)]
impl Verdict {
    /// And who says it.
    pub fn to_come() -> (impl FnOnce(Result<(), ReadError>), Self) {
        let (say, said) = watch::channel(None);
        (move |what| drop(say.send_replace(Some(what))), Self(said))
    }
}

/// Reads all of it. Blocks.
fn look(yard: &Yard, digest: &BlobDigest, opened: &Opened) -> Result<(), ReadError> {
    let originals = &yard.originals;
    let go_on = |_| !yard.stop.is_cancelled();
    match intact::check_file(opened.file().try_clone()?, digest, &mut { go_on })? {
        Found::Whole => {
            originals.mark_intact(digest, opened);
            Ok(())
        }
        Found::Gone => Err(ReadError::Stopping),
        Found::Closed(error) => Err(error.into()),
        Found::Damaged(damaged) => {
            yard.metrics.corruption("original");
            tracing::warn!(%digest, why = damaged.why, "original on disk is damaged; it is forgotten");
            let aside = aside(originals.path(digest));
            intact::set_aside(originals, digest, &damaged, || Ok(aside.clone()))?;
            match std::fs::remove_file(&aside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
                _ => Err(ReadError::DigestMismatch),
            }
        }
    }
}

/// A name that the next start sweeps, should this process end in the moment between.
fn aside(path: PathBuf) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    path.with_extension(format!("damaged-{}.new", NEXT.fetch_add(1, Ordering::Relaxed)))
}
