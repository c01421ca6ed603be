//! What is kept of originals: found at start, used since, and fetches that are not finished.
//!
//! In: the directory. Out: what there is, for whoever decides what goes. Invariant: nothing here changes an original but its mtime, which
//! is its last use.
//! Not here: totals and last uses in memory ([`crate::store::usage`]), the decision ([`crate::reclaim`]).

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    path::Path,
    sync::{MutexGuard, PoisonError},
    time::Duration,
};

use headstart_layer_format::BlobDigest;

use super::{Originals, PARTIAL_SUFFIX, ignore_missing};
use crate::store::{
    leftovers::{self, directories},
    usage::Kept,
};

impl Originals {
    /// Finds out what is kept; at start, on the reclaimer's thread. `go_on` is asked between directories.
    pub fn scan(&self, go_on: impl Fn() -> bool) -> io::Result<()> {
        for algorithm in directories(&self.0.root)? {
            let name = algorithm
                .file_name()
                .and_then(|n| n.to_str())
                .unwrap_or_default()
                .to_owned();
            for shard in directories(&algorithm)? {
                if !go_on() {
                    return Ok(());
                }
                for entry in fs::read_dir(shard)? {
                    let entry = entry?;
                    let file = entry.file_name();
                    let Some(file) = file.to_str() else { continue };
                    let (hex, suffix) = file.split_once('.').unwrap_or((file, ""));
                    let Ok(digest) = format!("{name}:{hex}").parse::<BlobDigest>() else {
                        continue;
                    };
                    if let Some((tag, PARTIAL_SUFFIX)) = suffix.split_once('.') {
                        self.partials_known().insert((digest, tag.to_owned()));
                    } else if suffix.is_empty()
                        && let Ok(metadata) = entry.metadata()
                    {
                        // A file that goes while we look is found missing when it is evicted.
                        self.0.usage.add(&digest, metadata.len(), modified_ms(&metadata));
                    }
                }
            }
        }
        self.0.usage.scan_ended();
        Ok(())
    }

    /// Unfinished fetches: digest, bytes on disk, and when they last grew.
    pub fn partials(&self) -> Vec<Kept> {
        let mut known = self.partials_known();
        let mut out = Vec::new();
        known.retain(|(digest, tag)| {
            let Ok(metadata) = fs::metadata(self.tagged_path(digest, tag)) else {
                return false;
            };
            out.push(Kept {
                digest: *digest,
                // Blocks and not length: a partial may have holes.
                bytes: std::os::unix::fs::MetadataExt::blocks(&metadata) * 512,
                used_unix_ms: modified_ms(&metadata),
            });
            true
        });
        out
    }

    /// Forgets the unfinished fetches of a digest that nobody has touched for `age`; how many those were.
    /// `unless_in_use`: see [`Originals::sweep_leftovers`].
    pub fn remove_partials(
        &self,
        digest: &BlobDigest,
        age: Duration,
        mut unless_in_use: impl FnMut(&Path, leftovers::Remove<'_>),
    ) -> io::Result<u64> {
        // Not under the lock: whoever is asked has one of his own.
        let tags: Vec<String> = {
            let known = self.partials_known();
            known
                .iter()
                .filter(|(of, _)| of == digest)
                .map(|(_, tag)| tag.clone())
                .collect()
        };
        let mut removed = 0;
        for tag in tags {
            removed += leftovers::remove_old(&self.tagged_path(digest, &tag), age, &mut unless_in_use)?;
        }
        Ok(removed)
    }

    /// Writes last uses to the files' mtimes, where they lag by more than `lag_ms`.
    pub fn save_uses(&self, lag_ms: u64) {
        for (digest, used_unix_ms) in self.0.usage.to_save(lag_ms) {
            let saved = File::open(self.path(&digest)).and_then(|file| {
                let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(used_unix_ms);
                file.set_times(fs::FileTimes::new().set_modified(at))
            });
            // It may have gone meanwhile; and the order is all that a failure costs.
            if let Err(error) = ignore_missing(saved) {
                tracing::warn!(%digest, %error, "the last use of an original is not saved");
            }
        }
    }

    pub(super) fn partials_known(&self) -> MutexGuard<'_, HashSet<(BlobDigest, String)>> {
        self.0.partials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of one.
    pub fn kept(&self, digest: &BlobDigest) -> Option<Kept> {
        self.0.usage.get(digest)
    }
}

fn modified_ms(metadata: &fs::Metadata) -> u64 {
    let since = metadata
        .modified()
        .ok()
        .and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
