//! Requests that were read from the kernel and are not answered yet, in memory that outlives the process.
//!
//! In: the session's reads, and requests put off. Out: to a successor, every request that nobody answered.
//! Invariant: from the moment the kernel has handed a request over until its answer is written, it stands in this memory:
//! `read(2)` itself writes it here. What stands here although it was answered does no harm: the kernel refuses a second
//! answer.
//! Not here: who keeps the memory (`survival`), what a successor does with it (`serve.rs`).
//!
//! ```text
//! page 0      what a successor must know of the mount (`Facts`)
//! page 1, 2   the request being handled, if its first word (its length) is not 0
//! page 3 ..   slots of 128 bytes, each a read that waits for bytes, if its first word is not 0
//! ```

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};

use memmap2::MmapRaw;
use rustix::fs::{FileType, MemfdFlags, SealFlags};

use super::abi::REQUEST_LEN_MAX;
use super::facts::{FACTS_LEN, Facts};

const PAGE: usize = 4096;
const RECEIVED_AT: usize = PAGE;
const SLOTS_AT: usize = RECEIVED_AT + REQUEST_LEN_MAX;
/// Holds any request without a long name: what is put off is a read, 80 bytes.
const SLOT_LEN: usize = 128;
/// Readers that may wait at once. With more, the rest wait in the kernel, and so does everybody else; each is a thread of
/// some container, or a read-ahead, which take half of them at most (`init.rs`).
pub(super) const SLOTS: usize = 8192;
const LEN: usize = SLOTS_AT + SLOTS * SLOT_LEN;

#[derive(Debug)]
pub struct InFlight {
    file: File,
    map: MmapRaw,
    free: Mutex<Vec<u32>>,
    freed: Condvar,
}

/// A place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u32);

impl InFlight {
    /// An empty table for a new mount.
    pub fn new(facts: &Facts) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create("headstart-in-flight", flags)?);
        file.set_len(LEN as u64)?;
        // A file that got shorter would be a SIGBUS for whoever has it mapped.
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
        let table = Self {
            map: MmapRaw::map_raw(&file)?,
            file,
            free: Mutex::new((0..SLOTS as u32).rev().collect()),
            freed: Condvar::new(),
        };
        table.write(0, &facts.encode());
        Ok(table)
    }

    /// The table of a predecessor, who is dead. An error if it is none, or of a version not known here.
    pub fn adopt(fd: OwnedFd) -> io::Result<(Self, Facts)> {
        let other = |why| Err(io::Error::new(io::ErrorKind::InvalidData, why));
        let file = File::from(fd);
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_size != LEN as i64 {
            return other("not a table of requests");
        }
        if !rustix::fs::fcntl_get_seals(&file)?.contains(SealFlags::SHRINK) {
            return other("a table that could become shorter");
        }
        let table = Self {
            map: MmapRaw::map_raw(&file)?,
            file,
            free: Mutex::default(),
            freed: Condvar::new(),
        };
        let Some(facts) = Facts::decode(&table.bytes(0, FACTS_LEN)) else {
            return other("a table of another version");
        };
        let free = (0..SLOTS as u32).rev().filter(|s| table.len_of(Slot(*s)) == 0);
        *table.lock() = free.collect();
        Ok((table, facts))
    }

    /// For whoever keeps it for a successor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Where the next request goes, which is empty from now on. For the one thread that receives.
    ///
    /// # Safety
    /// Nobody else may look at what was received before.
    #[expect(
        clippy::mut_from_ref,
        reason = "memory shared with the kernel and with a successor, not Rust's to borrow"
    )]
    pub unsafe fn receiving(&self) -> &mut [u8] {
        self.word(RECEIVED_AT).store(0, Ordering::Release);
        // SAFETY: within the mapping; the caller has the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().add(RECEIVED_AT), REQUEST_LEN_MAX) }
    }

    /// What was received last, unless it was cleared.
    pub fn received(&self) -> Option<Vec<u8>> {
        let len = self.word(RECEIVED_AT).load(Ordering::Acquire) as usize;
        (len > 0 && len <= REQUEST_LEN_MAX).then(|| self.bytes(RECEIVED_AT, len))
    }

    /// Nothing is being handled.
    pub fn clear_received(&self) {
        self.word(RECEIVED_AT).store(0, Ordering::Release);
    }

    /// Puts the request being handled off. Waits for a place if need be; `None` if it is too long for one.
    pub fn put_off(&self, request: &[u8]) -> Option<Slot> {
        if request.len() > SLOT_LEN || request.len() < 4 {
            return None;
        }
        let mut free = self.lock();
        let slot = loop {
            match free.pop() {
                Some(slot) => break Slot(slot),
                // Every place is a read with a deadline, so this ends.
                None => free = self.freed.wait(free).unwrap_or_else(|p| p.into_inner()),
            }
        };
        drop(free);
        let at = Self::place(slot);
        self.write(at + 4, &request[4..]);
        // Last: whoever finds a length finds the rest.
        self.word(at).store(request.len() as u32, Ordering::Release);
        Some(slot)
    }

    /// Its request was answered.
    pub fn release(&self, slot: Slot) {
        self.word(Self::place(slot)).store(0, Ordering::Release);
        self.lock().push(slot.0);
        self.freed.notify_one();
    }

    /// Requests that a predecessor put off.
    pub fn waiting(&self) -> Vec<(Slot, Vec<u8>)> {
        let slots = (0..SLOTS as u32).map(Slot).filter_map(|slot| {
            let len = self.len_of(slot);
            (len > 0 && len <= SLOT_LEN).then(|| (slot, self.bytes(Self::place(slot), len)))
        });
        slots.collect()
    }

    /// Drops everything: the kernel sends it all again, or there is nobody to answer.
    pub fn clear(&self) {
        self.clear_received();
        let mut free = self.lock();
        for slot in (0..SLOTS as u32).rev() {
            if self.len_of(Slot(slot)) != 0 {
                self.word(Self::place(Slot(slot))).store(0, Ordering::Release);
                free.push(slot);
            }
        }
    }

    fn len_of(&self, slot: Slot) -> usize {
        self.word(Self::place(slot)).load(Ordering::Acquire) as usize
    }

    fn place(slot: Slot) -> usize {
        SLOTS_AT + slot.0 as usize * SLOT_LEN
    }

    /// The word that says whether something stands at `at`.
    fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at + 4 <= LEN && at.is_multiple_of(4), "every place is within the table");
        // SAFETY: within the mapping, which lives as long as `self`, and aligned; words are only accessed as atomics while
        // others may look.
        unsafe { AtomicU32::from_ptr(self.map.as_mut_ptr().add(at).cast()) }
    }

    fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= LEN, "every place is within the table");
        // SAFETY: within the mapping, and whoever writes there is this thread, or dead.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(at), len) }.to_vec()
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= LEN, "every place is within the table");
        // SAFETY: within the mapping; the place is this thread's until its length is stored.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.map.as_mut_ptr().add(at), bytes.len()) };
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u32>> {
        self.free.lock().unwrap_or_else(|p| p.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            device: (0, 77),
            kernel: 1 << 39,
            has_devices: true,
        }
    }

    fn request(len: u32) -> Vec<u8> {
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.resize(len as usize, len as u8);
        bytes
    }

    #[test]
    fn a_successor_finds_what_was_not_answered() {
        let table = InFlight::new(&facts()).unwrap();
        // SAFETY: one thread.
        let buffer = unsafe { table.receiving() };
        buffer[..60].copy_from_slice(&request(60));
        let kept = table.put_off(&request(80)).unwrap();
        let answered = table.put_off(&request(100)).unwrap();
        table.release(answered);
        assert!(table.put_off(&request(129)).is_none(), "longer than a place");

        let fd = table.fd().try_clone_to_owned().unwrap();
        drop(table);
        let (table, read) = InFlight::adopt(fd).unwrap();
        assert_eq!(read, facts());
        assert_eq!(table.received(), Some(request(60)));
        assert_eq!(table.waiting(), [(kept, request(80))]);
        assert_eq!(table.lock().len(), SLOTS - 1);
        table.release(kept);
        assert_eq!((table.waiting(), table.lock().len()), (vec![], SLOTS));
        table.put_off(&request(80)).unwrap();
        table.clear();
        assert_eq!((table.received(), table.waiting()), (None, vec![]));
        assert_eq!(table.lock().len(), SLOTS);
    }

    #[test]
    fn what_is_no_table_is_not_taken_for_one() {
        let short = tempfile::tempfile().unwrap();
        assert!(InFlight::adopt(short.into()).is_err());
        let long = tempfile::tempfile().unwrap();
        long.set_len(LEN as u64).unwrap();
        assert!(InFlight::adopt(long.into()).is_err());
        let table = InFlight::new(&facts()).unwrap();
        table.write(0, b"X");
        assert!(InFlight::adopt(table.fd().try_clone_to_owned().unwrap()).is_err());
    }
}
