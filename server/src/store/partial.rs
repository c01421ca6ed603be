//! An unfinished fetch: an append-only file and its running hash.
//!
//! In: bytes of one blob, in order. Out: an original, once the digest is right.
//! Invariant: nothing is published before its digest was compared. The file survives a crash of this process and is
//! resumed; what an earlier process wrote is hashed again first.
//! Not here: which digest is being fetched (`read/`), and the directory ([`super::originals`]).

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::Arc,
};

use headstart_layer_format::BlobDigest;

use super::{
    hasher::BlobHasher,
    originals::{Originals, ignore_missing, parent, publish},
};

/// Bytes read at once when a partial is hashed again.
const REHASH_BUFFER: usize = 1 << 20;

/// An unfinished fetch: an append-only file and its running hash. Dropping it keeps the file.
#[derive(Debug)]
pub struct Partial {
    file: Arc<File>,
    path: PathBuf,
    originals: Originals,
    digest: BlobDigest,
    hasher: BlobHasher,
    hashed: u64,
    len: u64,
}

impl Partial {
    /// What an earlier fetch left, or nothing yet. Its bytes are not hashed: [`Partial::rehash`].
    pub(super) fn open(originals: Originals, digest: &BlobDigest) -> io::Result<Self> {
        let path = originals.partial_path(digest);
        fs::create_dir_all(parent(&path))?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path)?;
        let len = file.metadata()?.len();
        Ok(Self {
            file: Arc::new(file),
            path,
            originals,
            digest: *digest,
            hasher: BlobHasher::of(digest),
            hashed: 0,
            len,
        })
    }

    /// Bytes on disk.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// For readers that follow; stays valid after commit or discard.
    pub fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// Hashes what an earlier process left.
    pub fn rehash(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; REHASH_BUFFER];
        while self.hashed < self.len {
            let n = self.file.read_at(&mut buffer, self.hashed)?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.hasher.update(&buffer[..n]);
            self.hashed += n as u64;
        }
        Ok(())
    }

    /// Starts over.
    pub fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.hasher = BlobHasher::of(&self.digest);
        self.hashed = 0;
        self.len = 0;
        Ok(())
    }

    /// Appends and hashes.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        debug_assert_eq!(self.hashed, self.len, "an old partial is rehashed before it grows");
        self.file.write_all_at(bytes, self.len)?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        self.hashed = self.len;
        Ok(())
    }

    /// Whether the bytes so far are the blob.
    pub fn is_whole(&self) -> bool {
        self.hasher.clone().finish() == self.digest
    }

    /// Publishes; call only after [`Partial::is_whole`].
    pub fn commit(self) -> io::Result<()> {
        self.file.sync_data()?;
        publish(&self.path, &self.originals.path(&self.digest))?;
        self.originals.published(&self.digest, self.len);
        Ok(())
    }

    /// Throws the bytes away.
    pub fn discard(self) -> io::Result<()> {
        ignore_missing(fs::remove_file(&self.path))
    }
}
