//! An original that is open for those who ask for it over and over.
//!
//! In: the open file of a complete original. Out: the file, its size, a mapping of it that all its readers share, and whether
//! all of it was seen in memory a moment ago.
//! Invariant: private, read-only, of the open file, whatever became of its path; made when it is first asked for, and gone
//! with the file. That it is there says nothing about whether its memory may be read (`http/sendfile.rs` has the argument).
//! Not here: which originals stay open ([`super::originals`]).

use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt as _,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use memmap2::{Mmap, MmapOptions};

/// So long it is taken to be in memory still: shorter than a window waits for its client, and long enough that hundreds of
/// answers need not count its pages.
pub const RESIDENT_FOR: Duration = Duration::from_millis(50);

/// See the file's comment.
#[derive(Debug)]
pub struct Opened {
    file: Arc<File>,
    size: u64,
    inode: u64,
    map: OnceLock<Option<Mmap>>,
    doubted: AtomicBool,
    /// When all of it was last seen in the page cache.
    resident: Mutex<Option<Instant>>,
}

impl Opened {
    /// As large as it is now.
    pub fn new(file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            file: Arc::new(file),
            size: metadata.len(),
            inode: metadata.ino(),
            map: OnceLock::new(),
            doubted: AtomicBool::new(false),
            resident: Mutex::new(None),
        })
    }

    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// While it is open no other file has its number.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// It could not be read: who asks next has it compared with its digest again.
    pub fn doubt(&self) {
        self.doubted.store(true, Ordering::Relaxed);
    }

    pub fn is_doubted(&self) -> bool {
        self.doubted.load(Ordering::Relaxed)
    }

    /// All of it is in the page cache.
    pub fn saw_resident(&self) {
        *self.resident.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// It was a moment ago.
    pub fn was_resident(&self) -> bool {
        let seen = *self.resident.lock().unwrap_or_else(PoisonError::into_inner);
        seen.is_some_and(|at| at.elapsed() < RESIDENT_FOR)
    }

    /// All of it, mapped; `None` if that cannot be. An empty file has no mapping.
    pub fn map(&self) -> Option<&Mmap> {
        let map = || match self.mapped() {
            Ok(map) => Some(map),
            Err(error) => {
                tracing::debug!(%error, "an original is not mapped");
                None
            }
        };
        self.map.get_or_init(map).as_ref()
    }

    fn mapped(&self) -> io::Result<Mmap> {
        let len = usize::try_from(self.size).map_err(|_| io::ErrorKind::FileTooLarge)?;
        // SAFETY: the memory must not change while it is borrowed, and must not be touched where the file has ended.
        // Originals are renamed into place whole and never written or cut again (`originals.rs`). Should somebody else do
        // that to our directory: on the way that is meant the memory is never read (see the file's comment), so that
        // nothing of ours depends on what it holds.
        unsafe { MmapOptions::new().len(len).map(&*self.file) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_in_memory_is_believed_to_be_there_for_a_moment() {
        let opened = Opened::new(tempfile::tempfile().unwrap()).unwrap();
        assert!(!opened.was_resident());
        let before = Instant::now();
        opened.saw_resident();
        let was = opened.was_resident();
        assert!(was || before.elapsed() >= RESIDENT_FOR);
        std::thread::sleep(RESIDENT_FOR);
        assert!(!opened.was_resident());
    }

    #[test]
    fn the_mapping_is_of_the_open_file_and_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blob");
        std::fs::write(&path, b"what it was").unwrap();
        let opened = Opened::new(File::open(&path).unwrap()).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"another one").unwrap();
        let map = opened.map().unwrap();
        assert_eq!(&map[..], b"what it was");
        assert!(std::ptr::eq(map, opened.map().unwrap()));
        assert_ne!(opened.inode(), Opened::new(File::open(&path).unwrap()).unwrap().inode());
    }
}
