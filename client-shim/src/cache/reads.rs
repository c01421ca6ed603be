//! What is read of a layer's file, without asking anybody else.
//!
//! In: a range of the data space. Out: its bytes, if all its chunks are here. Invariant: bytes are read only where the bitmap says so,
//! and nothing is punched out while they are.
//! Not here: fetching what is missing (`cache/reader.rs`), writing (`layer_file.rs`).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use headstart_layer_format::LayerRange;
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::layer_file::{LayerFile, now};

/// What of a range is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// All of it, and it was read.
    Here,
    /// All of it so far, but not in memory: reading it takes as long as the disk does.
    OnDisk,
    /// Not all of it.
    Missing,
}

impl LayerFile {
    /// Fills `out` from `range`, or says false when a chunk is missing.
    pub fn read(&self, range: LayerRange, out: &mut [u8]) -> io::Result<bool> {
        let found = self.find(range, out, |file, out, at| file.read_exact_at(out, at).map(|()| true))?;
        Ok(found == Found::Here)
    }

    /// The same without waiting for the disk, where the filesystem can tell.
    pub fn read_now(&self, range: LayerRange, out: &mut [u8]) -> io::Result<Found> {
        self.find(range, out, read_in_memory)
    }

    /// `read_at`: whether it was in memory.
    fn find(
        &self,
        range: LayerRange,
        out: &mut [u8],
        read_at: impl Fn(&File, &mut [u8], u64) -> io::Result<bool>,
    ) -> io::Result<Found> {
        if range.len != out.len() as u64 || range.end().0 > self.chunks().data_size() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a range outside the data space",
            ));
        }
        if self.is_quarantined() {
            return Err(io::Error::other(
                "the layer is quarantined: it is not what its image says",
            ));
        }
        self.used.store(now(), Ordering::Relaxed);
        // Held until the bytes were read: what is looked at now is not punched out meanwhile.
        let _stable = self.stable.read().unwrap_or_else(|p| p.into_inner());
        let chunks = self.chunks().covering(range);
        let of = |in_memory| if in_memory { Found::Here } else { Found::OnDisk };
        if chunks.clone().all(|i| self.bitmap.get(i)) {
            return read_at(&self.data, out, range.start.0).map(of);
        }
        for chunk in chunks.filter_map(|i| self.chunks().chunk(i)) {
            let from = chunk.range.start.0.max(range.start.0);
            let to = chunk.range.end().0.min(range.end().0);
            let part = &mut out[(from - range.start.0) as usize..(to - range.start.0) as usize];
            if self.bitmap.get(chunk.index) {
                if !read_at(&self.data, part, from)? {
                    return Ok(Found::OnDisk);
                }
                continue;
            }
            let Some(bytes) = self.room.transit.get(&(self.id, chunk.index)) else {
                return Ok(Found::Missing);
            };
            let at = (from - chunk.range.start.0) as usize;
            part.copy_from_slice(&bytes[at..at + part.len()]);
        }
        Ok(Found::Here)
    }
}

/// False if the page cache does not have all of it. Where nobody can tell, the disk is waited for.
fn read_in_memory(file: &File, out: &mut [u8], at: u64) -> io::Result<bool> {
    let len = out.len();
    match preadv2(file, &mut [io::IoSliceMut::new(out)], at, ReadWriteFlags::NOWAIT) {
        Ok(n) => Ok(n == len),
        Err(Errno::AGAIN | Errno::INTR) => Ok(false),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => file.read_exact_at(out, at).map(|()| true),
        Err(error) => Err(error.into()),
    }
}
