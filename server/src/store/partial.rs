//! An unfinished fetch: a sparse file, and the map of the units that are there.
//!
//! In: bytes of one blob from one upstream, in any order. Out: an original, once somebody has compared the digest.
//! Invariant: after a crash of this process, what the map marks is what was written, and nothing else is believed. A
//! map goes away before the bytes that it speaks of do. Bytes of one upstream never end up in the partial of another:
//! until the digest is compared they are only that upstream's word.
//! Not here: hashing and who writes what (`read/flight.rs`), the map's layout ([`super::units`]), and the directory
//! ([`super::originals`]).

use std::{
    fs::{self, File},
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use headstart_layer_format::BlobDigest;

use super::{
    originals::{Originals, ignore_missing, parent, publish},
    units::{UNIT, UnitMap, units},
};

/// Suffix of the map.
pub(super) const MAP_SUFFIX: &str = "map";

/// An unfinished fetch. Dropping it keeps the files.
#[derive(Debug)]
pub struct Partial {
    file: Arc<File>,
    path: PathBuf,
    originals: Originals,
    digest: BlobDigest,
    /// Made when there is something to mark: a client waits for its first byte meanwhile.
    map: Mutex<Option<UnitMap>>,
    /// While there is none, the file is empty (or [`Partial::keep`] is to follow).
    size: Option<u64>,
    /// What an earlier fetch left: ascending, disjoint, not touching.
    present: Vec<Range<u64>>,
}

impl Partial {
    /// What an earlier fetch left at `path`, or nothing yet.
    pub(super) fn open(originals: Originals, path: PathBuf, digest: &BlobDigest) -> io::Result<Self> {
        fs::create_dir_all(parent(&path))?;
        let map_path = path.with_extension(MAP_SUFFIX);
        let disk = originals.disk().clone();
        let (file, is_new, old) = match disk.open(&path) {
            Ok(file) => (file, false, UnitMap::load(&map_path)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // A crash between commit and clean-up leaves a map of bytes that are elsewhere now.
                ignore_missing(fs::remove_file(&map_path))?;
                (disk.create_new(&path)?, true, None)
            }
            Err(error) => return Err(error),
        };
        let mut partial = Self {
            file: Arc::new(file),
            path,
            originals,
            digest: *digest,
            map: Mutex::default(),
            size: None,
            present: Vec::new(),
        };
        match old {
            Some((map, marks)) => {
                partial.present = present(&marks.present, marks.size, partial.file.metadata()?.len());
                partial.size = Some(marks.size);
                partial.map = Mutex::new(Some(map));
                // It is in use again; its age counts from now.
                partial.file.set_modified(SystemTime::now())?;
            }
            // A full disk takes a new name and no byte. Better found out now, while a client can still be told.
            None if is_new => {
                let tried = partial.write_at(&[0], 0).and_then(|()| partial.empty());
                if let Err(error) = tried {
                    let _ = disk.remove(&partial.path);
                    return Err(error);
                }
            }
            None => partial.restart()?,
        }
        Ok(partial)
    }

    /// Size of the blob, as recorded.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// What an earlier fetch left: ascending, disjoint, not touching.
    pub fn present(&self) -> &[Range<u64>] {
        &self.present
    }

    /// Bytes from the first on that an earlier fetch left.
    pub fn prefix(&self) -> u64 {
        self.present.first().filter(|r| r.start == 0).map_or(0, |r| r.end)
    }

    /// For readers that follow; stays valid after commit or discard.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Starts over.
    pub fn restart(&mut self) -> io::Result<()> {
        self.map = Mutex::default();
        self.size = None;
        self.present.clear();
        ignore_missing(fs::remove_file(self.path.with_extension(MAP_SUFFIX)))?;
        self.empty()
    }

    fn empty(&self) -> io::Result<()> {
        self.originals.disk().set_len(&self.file, &self.path, 0)
    }

    /// Records the size of the blob; from now on units can be marked.
    pub fn set_size(&mut self, size: u64) -> io::Result<()> {
        if self.size.is_some_and(|known| known != size) {
            self.restart()?;
        }
        self.size = Some(size);
        Ok(())
    }

    /// Records the size after the fact: every byte has been written, from the first on.
    pub fn keep(&mut self, size: u64) -> io::Result<()> {
        let map = UnitMap::create(&self.path.with_extension(MAP_SUFFIX), size)?;
        (0..units(size)).try_for_each(|unit| map.mark(unit))?;
        self.map = Mutex::new(Some(map));
        self.size = Some(size);
        self.present = std::iter::once(0..size).filter(|range| !range.is_empty()).collect();
        Ok(())
    }

    /// Writes bytes; they are not believed after a crash until their units are marked.
    pub fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.originals.disk().write_all_at(&self.file, &self.path, bytes, at)
    }

    /// Marks a unit of which every byte was written.
    pub fn mark(&self, unit: u64) -> io::Result<()> {
        let Some(size) = self.size else { return Ok(()) };
        // One mark is one write of one byte.
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        let map = match &mut *map {
            Some(map) => map,
            none => none.insert(UnitMap::create(&self.path.with_extension(MAP_SUFFIX), size)?),
        };
        map.mark(unit)
    }

    /// Publishes. Call it only after the digest was compared, and write no more.
    pub fn commit(&self) -> io::Result<()> {
        let disk = self.originals.disk();
        disk.sync(&self.file, &self.path)?;
        publish(disk, &self.path, &self.originals.path(&self.digest))?;
        self.originals
            .published(&self.digest, self.size.unwrap_or_default(), Some(&self.file));
        ignore_missing(fs::remove_file(self.path.with_extension(MAP_SUFFIX)))
    }

    /// Throws the bytes away.
    pub fn discard(&self) -> io::Result<()> {
        ignore_missing(fs::remove_file(self.path.with_extension(MAP_SUFFIX)))?;
        ignore_missing(self.originals.disk().remove(&self.path))
    }
}

/// The size of the blob and what there is of it at `path`, if an unfinished fetch is.
pub(super) fn left(path: &Path) -> io::Result<Option<(u64, Vec<Range<u64>>)>> {
    let Some((_, marks)) = UnitMap::load(&path.with_extension(MAP_SUFFIX))? else {
        return Ok(None);
    };
    // In this order: a map goes away before the bytes that it speaks of.
    match fs::metadata(path) {
        Ok(file) => Ok(Some((marks.size, present(&marks.present, marks.size, file.len())))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The marked units as byte ranges. A unit that the file is too short for was never written, whatever the map says.
fn present(marks: &[bool], size: u64, file_len: u64) -> Vec<Range<u64>> {
    let mut out: Vec<Range<u64>> = Vec::new();
    for unit in (0u64..).zip(marks).filter(|(_, marked)| **marked).map(|(unit, _)| unit) {
        let range = unit * UNIT..size.min((unit + 1) * UNIT);
        match out.last_mut() {
            _ if range.end > file_len => {}
            Some(last) if last.end == range.start => last.end = range.end,
            _ => out.push(range),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest() -> BlobDigest {
        BlobDigest::of(b"a")
    }

    fn open(dir: &tempfile::TempDir) -> Partial {
        Originals::open(dir.path()).unwrap().partial(&digest(), "u").unwrap()
    }

    #[test]
    fn what_was_marked_is_there_again_and_what_was_only_written_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let size = 3 * UNIT + 5;
        let mut partial = open(&dir);
        partial.set_size(size).unwrap();
        partial.write_at(b"xxxxx", 3 * UNIT).unwrap();
        partial.mark(3).unwrap();
        partial.write_at(&[7; UNIT as usize], UNIT).unwrap();
        drop(partial);

        let partial = open(&dir);
        assert_eq!((partial.size(), partial.prefix()), (Some(size), 0));
        assert_eq!(partial.present(), std::slice::from_ref(&(3 * UNIT..size)));
        partial.mark(1).unwrap();
        partial.mark(0).unwrap();
        let partial = open(&dir);
        assert_eq!(partial.present(), [0..2 * UNIT, 3 * UNIT..size]);
        assert_eq!(partial.prefix(), 2 * UNIT);
        // Who only looks sees the same.
        let found = left(&partial.path).unwrap();
        assert_eq!(found, Some((size, partial.present().to_vec())));
        partial.discard().unwrap();
        assert_eq!(left(&partial.path).unwrap(), None);
    }

    #[test]
    fn a_map_without_its_bytes_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let mut partial = open(&dir);
        partial.set_size(2 * UNIT).unwrap();
        partial.mark(0).unwrap();
        partial.mark(1).unwrap();
        partial.write_at(b"x", UNIT - 1).unwrap();
        // The file is one unit long, so the second was never written.
        assert_eq!(open(&dir).present(), std::slice::from_ref(&(0..UNIT)));
        // The bytes went elsewhere; the map stayed behind.
        let path = Originals::open(dir.path()).unwrap().partial_path(&digest(), "u");
        fs::remove_file(path).unwrap();
        assert_eq!((open(&dir).size(), open(&dir).present().len()), (None, 0));
    }

    #[test]
    fn another_size_starts_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut partial = open(&dir);
        partial.set_size(UNIT).unwrap();
        partial.write_at(&[1; UNIT as usize], 0).unwrap();
        partial.mark(0).unwrap();
        let mut partial = open(&dir);
        partial.set_size(UNIT).unwrap();
        assert_eq!(partial.prefix(), UNIT);
        partial.set_size(UNIT + 1).unwrap();
        assert_eq!(partial.prefix(), 0);
        assert!(open(&dir).present().is_empty());
    }

    #[test]
    fn commit_and_discard_leave_no_map() {
        let dir = tempfile::tempdir().unwrap();
        let originals = Originals::open(dir.path()).unwrap();
        let path = originals.partial_path(&digest(), "u");
        let there = || (path.exists(), path.with_extension(MAP_SUFFIX).exists());
        let mut partial = open(&dir);
        partial.set_size(1).unwrap();
        assert_eq!(there(), (true, false));
        partial.mark(0).unwrap();
        assert_eq!(there(), (true, true));
        partial.discard().unwrap();
        assert_eq!(there(), (false, false));
        let mut partial = open(&dir);
        partial.set_size(1).unwrap();
        partial.write_at(b"a", 0).unwrap();
        assert!(originals.get(&digest()).unwrap().is_none());
        partial.commit().unwrap();
        assert_eq!(there(), (false, false));
        assert_eq!(originals.get(&digest()).unwrap().map(|(_, size)| size), Some(1));
    }
}
