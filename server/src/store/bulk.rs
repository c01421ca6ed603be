//! Rows of chunks for a rebuild of the index, in the order of their keys: sled takes them several times faster so, and
//! needs less space for them.
//!
//! In: digests and locations in the order of the log. Out: the last location of each digest, sorted. Bounded memory: what
//! is more than [`IN_MEMORY`] rows goes through files, one for each first byte of a digest.
//! Invariant: of one digest the last row counts. The files are gone when it is dropped; nothing depends on them.
//! Not here: every other row, of which there are few.

use std::fs::File;
use std::io::{self, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::index::Index;
use super::open::PROGRESS_PERIOD;
use super::pack::Location;
use super::{StoreError, keys};

/// 14 MiB.
const IN_MEMORY: usize = 1 << 18;
const DIGEST_LEN: usize = 32;
const ROW_LEN: usize = DIGEST_LEN + 20;
/// Buffer of one file: 2 MiB for all of them.
const BUFFER: usize = 8 << 10;

type Row = [u8; ROW_LEN];

pub struct Bulk {
    dir: PathBuf,
    rows: Vec<Row>,
    files: Vec<BufWriter<File>>,
    count: u64,
}

impl Bulk {
    /// Below `parent`, if files are needed.
    pub fn new(parent: &Path) -> Self {
        Self {
            dir: parent.join("index.rows"),
            rows: Vec::new(),
            files: Vec::new(),
            count: 0,
        }
    }

    pub fn add(&mut self, digest: &[u8; 32], at: &Location) -> io::Result<()> {
        let mut row = [0; ROW_LEN];
        row[..DIGEST_LEN].copy_from_slice(digest);
        row[DIGEST_LEN..].copy_from_slice(&keys::location(at));
        self.rows.push(row);
        self.count += 1;
        if self.rows.len() >= IN_MEMORY {
            self.spill()?;
        }
        Ok(())
    }

    fn spill(&mut self) -> io::Result<()> {
        if self.files.is_empty() {
            // Of a process that was killed.
            let _ = std::fs::remove_dir_all(&self.dir);
            std::fs::create_dir(&self.dir)?;
            for first in 0..=u8::MAX {
                let path = self.dir.join(format!("{first:02x}"));
                let file = File::options().read(true).write(true).create_new(true).open(path)?;
                self.files.push(BufWriter::with_capacity(BUFFER, file));
            }
        }
        for row in self.rows.drain(..) {
            self.files[usize::from(row[0])].write_all(&row)?;
        }
        Ok(())
    }

    /// Writes all rows.
    pub fn finish(mut self, index: &Index) -> Result<(), StoreError> {
        let mut told = (Instant::now(), 0, self.count);
        if self.files.is_empty() {
            let rows = std::mem::take(&mut self.rows);
            return write(index, rows, &mut told);
        }
        let failed = StoreError::io;
        self.spill().map_err(failed("sort the rows of chunks"))?;
        for file in std::mem::take(&mut self.files) {
            let read = || -> io::Result<Vec<Row>> {
                let mut file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
                io::Seek::rewind(&mut file)?;
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes)?;
                Ok(bytes.as_chunks().0.to_vec())
            };
            write(index, read().map_err(failed("read the rows of chunks"))?, &mut told)?;
        }
        Ok(())
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        if self.dir.exists()
            && let Err(error) = std::fs::remove_dir_all(&self.dir)
        {
            tracing::warn!(%error, path = %self.dir.display(), "rows of a rebuild are not removed");
        }
    }
}

/// `told`: when, how many rows there are already, and in all.
fn write(index: &Index, mut rows: Vec<Row>, told: &mut (Instant, u64, u64)) -> Result<(), StoreError> {
    // Stable: of one digest the last stays the last.
    rows.sort_by(|a, b| a[..DIGEST_LEN].cmp(&b[..DIGEST_LEN]));
    for (n, row) in rows.iter().enumerate() {
        if rows
            .get(n + 1)
            .is_some_and(|next| next[..DIGEST_LEN] == row[..DIGEST_LEN])
        {
            continue;
        }
        let (digest, at) = row.split_at(DIGEST_LEN);
        if let (Ok(digest), Ok(at)) = (digest.try_into(), at.try_into()) {
            index.set_chunk(digest, at)?;
        }
        if told.0.elapsed() > PROGRESS_PERIOD {
            told.0 = Instant::now();
            tracing::info!(chunks = told.1 + n as u64, of = told.2, "writing the index");
        }
    }
    told.1 += rows.len() as u64;
    Ok(())
}

#[cfg(test)]
mod tests {
    use headstart_layer_format::ChunkDigest;

    use super::*;
    use crate::store::pack::PackId;

    /// More than fit into memory, one of them twice.
    #[test]
    fn the_last_row_of_a_digest_counts_and_nothing_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::fresh(dir.path()).unwrap().unwrap();
        let digest = |n: u64| ChunkDigest::of(&n.to_le_bytes());
        let at = |offset: u64| Location {
            pack: PackId(1),
            offset,
            payload_len: 1,
            raw_len: 1,
        };
        let count = IN_MEMORY as u64 + 10;
        let mut bulk = Bulk::new(dir.path());
        for n in 0..count {
            // Few digests, so that sled is not what is tested.
            bulk.add(digest(n % 5000).as_bytes(), &at(n)).unwrap();
        }
        assert!(bulk.dir.exists());
        let leftover = bulk.dir.clone();
        bulk.finish(&index).unwrap();
        assert!(!leftover.exists());
        for n in count - 5000..count {
            assert_eq!(index.chunk(&digest(n % 5000)).unwrap(), Some(at(n)));
        }
    }
}
