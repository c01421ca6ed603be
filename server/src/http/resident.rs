//! Is a part of a file in the page cache?
//!
//! In: an open file, its mapping, and a range. Out: yes, or "not surely".
//! Invariant: a "yes" means that nobody waits for the disk to read the range now, or only for the rest of a read that is
//! under way already. What cannot be found out is a "no". Asking touches no page.
//! Not here: bringing pages in ([`super::sendfile`]).

use std::{
    fs::File,
    ops::Range,
    os::fd::AsRawFd as _,
    sync::atomic::{AtomicBool, Ordering},
};

use memmap2::Mmap;

/// `cachestat(2)`, Linux 6.5; the same number on every architecture.
const CACHESTAT: libc::c_long = 451;

/// Cleared by the first kernel or sandbox that refuses, and not asked again.
static HAS_CACHESTAT: AtomicBool = AtomicBool::new(true);

/// `struct cachestat_range` of linux/mman.h.
#[repr(C)]
struct Asked {
    off: u64,
    len: u64,
}

/// `struct cachestat` of linux/mman.h.
#[repr(C)]
#[derive(Default)]
struct Counted {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Whether all pages of `range` are in the page cache. `map` is of all of `file`.
pub fn is_resident(file: &File, map: &Mmap, range: &Range<u64>) -> bool {
    let page = rustix::param::page_size();
    let (Ok(start), Ok(end)) = (usize::try_from(range.start), usize::try_from(range.end)) else {
        return false;
    };
    if start >= end || end > map.len() {
        return false;
    }
    let start = start - start % page;
    let pages = (end - start).div_ceil(page);
    if HAS_CACHESTAT.load(Ordering::Relaxed) {
        match cached(file, start as u64, (end - start) as u64) {
            Some(cached) => return cached >= pages as u64,
            None => HAS_CACHESTAT.store(false, Ordering::Relaxed),
        }
    }
    mincore(map, start, end, pages)
}

/// Pages of the range in the page cache: counted by the folio, where mincore looks at each page. `None`: not to be had.
fn cached(file: &File, off: u64, len: u64) -> Option<u64> {
    let asked = Asked { off, len };
    let mut counted = Counted::default();
    // SAFETY: the kernel reads `asked` and writes `counted`, which have the layouts it expects and outlive the call.
    let answer = unsafe {
        libc::syscall(
            CACHESTAT,
            file.as_raw_fd(),
            std::ptr::from_ref(&asked),
            std::ptr::from_mut(&mut counted),
            0,
        )
    };
    (answer == 0).then_some(counted.cached)
}

/// `start` is at a page's start, and `start..end`, inside the mapping, has so many pages.
fn mincore(map: &Mmap, start: usize, end: usize, pages: usize) -> bool {
    let mut pages = vec![0_u8; pages];
    // SAFETY: mincore reads no memory of the mapping; `start` is page-aligned as the mapping is, `start..end` is inside it,
    // and `pages` has a byte for each page of that.
    let asked = unsafe {
        let address = map.as_ptr().add(start).cast_mut().cast();
        libc::mincore(address, end - start, pages.as_mut_ptr())
    };
    asked == 0 && pages.iter().all(|page| page & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: u64 = 300_001;

    /// Whoever has cachestat has mincore, and they agree.
    #[test]
    fn both_ways_to_ask_say_the_same() {
        let named = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        std::fs::write(named.path(), vec![7; LEN as usize]).unwrap();
        named.as_file().sync_all().unwrap();
        let file = File::open(named.path()).unwrap();
        // SAFETY: nobody else knows the file.
        let map = unsafe { Mmap::map(&file) }.unwrap();
        let both = |range: Range<u64>| {
            let answers = [true, false].map(|has| {
                HAS_CACHESTAT.store(has, Ordering::Relaxed);
                is_resident(&file, &map, &range)
            });
            HAS_CACHESTAT.store(true, Ordering::Relaxed);
            assert_eq!(answers[0], answers[1], "{range:?}");
            answers[0]
        };
        assert!(both(0..LEN) && both(5..LEN) && both(LEN - 1..LEN));
        assert!(!both(0..LEN + 1) && !both(9..9), "no such part");
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        // Some file systems keep everything in memory anyway.
        both(0..LEN);
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, 0).unwrap();
        assert!(both(0..1));
    }
}
