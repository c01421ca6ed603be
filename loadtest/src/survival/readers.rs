//! Readers of a mounted image, who compare what they get with the same image unpacked, and note what goes wrong.
//!
//! In: both directories, the part of the image that is to be read. Out: [`Counts`]. Invariant: a reader ends only when it is told to,
//! whatever it gets; one that hangs in the kernel is counted, not waited for.
//! Not here: what the numbers mean (`system.rs`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};
use rustix::io::Errno;

use crate::bench::node::rows::BIG;

pub(super) const READERS: usize = 4;
/// Of one read.
const READ_MAX: u64 = 32 << 10;
/// After each read, so that there is something left to fetch; after one that failed, so that a dead mount is not counted in millions.
const PAUSE: Duration = Duration::from_millis(3);
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(25);
/// What a stop waits.
const END_WAIT: Duration = Duration::from_secs(10);

/// What is to be read.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) lazy: PathBuf,
    pub(super) unpacked: PathBuf,
    /// Small files, below both.
    pub(super) files: Arc<[PathBuf]>,
    /// Of the large one.
    pub(super) big: Range<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) right: u64,
    pub(super) wrong: u64,
    /// By the name of the error.
    pub(super) errors: BTreeMap<String, u64>,
}

impl Counts {
    pub(super) fn failed(&self) -> u64 {
        self.wrong + self.errors.values().sum::<u64>()
    }

    pub(super) fn add(&mut self, other: &Counts) {
        self.right += other.right;
        self.wrong += other.wrong;
        for (kind, count) in &other.errors {
            *self.errors.entry(kind.clone()).or_default() += count;
        }
    }
}

#[derive(Debug)]
struct Shared {
    part: Part,
    stop: AtomicBool,
    counts: Mutex<Counts>,
    /// Reads that ended, well or not, by reader; and those that were right.
    ended: [AtomicU64; READERS],
    right: [AtomicU64; READERS],
}

#[derive(Debug)]
pub(super) struct Readers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    pub(super) fn start(part: Part) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            part,
            stop: AtomicBool::new(false),
            counts: Mutex::default(),
            ended: Default::default(),
            right: Default::default(),
        });
        let threads = (0..READERS).map(|reader| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("reader".into())
                .spawn(move || shared.read(reader))
        });
        let threads = threads.collect::<io::Result<_>>()?;
        Ok(Self { shared, threads })
    }

    pub(super) fn counts(&self) -> Counts {
        self.shared.lock().clone()
    }

    /// By reader.
    pub(super) fn ended(&self) -> [u64; READERS] {
        self.shared.ended.each_ref().map(|n| n.load(Ordering::SeqCst))
    }

    /// By reader.
    pub(super) fn right(&self) -> [u64; READERS] {
        self.shared.right.each_ref().map(|n| n.load(Ordering::SeqCst))
    }

    /// Waits for them, but for those that hang: their number comes with what all have seen.
    pub(super) async fn stop(self) -> (Counts, usize) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let begun = Instant::now();
        let hanging = || self.threads.iter().filter(|t| !t.is_finished()).count();
        while hanging() > 0 && begun.elapsed() < END_WAIT {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (self.counts(), hanging())
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, reader: usize) {
        let mut random = Random::new(reader as u64 + 1);
        while !self.stop.load(Ordering::SeqCst) {
            let outcome = self.part.compare(&mut random);
            let pause = match outcome {
                Ok(true) => PAUSE,
                _ => PAUSE_AFTER_ERROR,
            };
            let mut counts = self.lock();
            match outcome {
                Ok(true) => {
                    counts.right += 1;
                    self.right[reader].fetch_add(1, Ordering::SeqCst);
                }
                Ok(false) => counts.wrong += 1,
                Err(error) => *counts.errors.entry(name(&error)).or_default() += 1,
            }
            drop(counts);
            self.ended[reader].fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(pause);
        }
    }
}

impl Part {
    /// Reads something somewhere; whether the bytes are right. An error is the lazy side's: the unpacked image has none.
    pub(super) fn compare(&self, random: &mut Random) -> io::Result<bool> {
        let (name, at, len) = match random.below(2) == 0 && !self.files.is_empty() {
            true => {
                let name = self.files[random.below(self.files.len() as u64) as usize].clone();
                let size = std::fs::metadata(self.unpacked.join(&name))
                    .expect("the unpacked image is whole")
                    .len();
                (name, 0, size)
            }
            false => {
                let at = self.big.start + random.below(self.big.end - self.big.start);
                (
                    PathBuf::from(BIG),
                    at,
                    (1 + random.below(READ_MAX)).min(self.big.end - at),
                )
            }
        };
        let read = |file: File| {
            let mut bytes = vec![0; len as usize];
            file.read_exact_at(&mut bytes, at).map(|()| bytes)
        };
        let file = File::open(self.lazy.join(&name))?;
        // Not from the page cache alone. The kernel may keep some; that is as good.
        let _ = fadvise(&file, 0, None, Advice::DontNeed);
        let found = read(file)?;
        let expected = File::open(self.unpacked.join(&name))
            .and_then(read)
            .expect("the unpacked image is whole");
        Ok(found == expected)
    }
}

fn name(error: &io::Error) -> String {
    let Some(errno) = Errno::from_io_error(error) else {
        return format!("{:?}", error.kind());
    };
    match errno {
        Errno::NOTCONN => "ENOTCONN".into(),
        Errno::IO => "EIO".into(),
        Errno::CONNABORTED => "ECONNABORTED".into(),
        Errno::STALE => "ESTALE".into(),
        Errno::NOENT => "ENOENT".into(),
        other => format!("errno {}", other.raw_os_error()),
    }
}

/// xorshift64: where to read, not a secret.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(dir: &std::path::Path) -> Part {
        for (side, big) in [("lazy", [1; 5000]), ("unpacked", [1; 5000])] {
            std::fs::create_dir(dir.join(side)).unwrap();
            std::fs::write(dir.join(side).join(BIG), big).unwrap();
            std::fs::write(dir.join(side).join("small"), "text").unwrap();
        }
        Part {
            lazy: dir.join("lazy"),
            unpacked: dir.join("unpacked"),
            files: [PathBuf::from("small")].into(),
            big: 100..4000,
        }
    }

    #[tokio::test]
    async fn right_wrong_and_failed_reads_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let readers = Readers::start(part(dir.path())).unwrap();
        while readers.right().contains(&0) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let before = readers.counts();
        assert_eq!(before.failed(), 0);
        // At once: a reader of a file that is being written finds it short.
        std::fs::write(dir.path().join("other"), "tExt").unwrap();
        std::fs::rename(dir.path().join("other"), dir.path().join("lazy/small")).unwrap();
        std::fs::remove_file(dir.path().join("lazy").join(BIG)).unwrap();
        while readers.counts().wrong == 0 || !readers.counts().errors.contains_key("ENOENT") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (counts, hanging) = readers.stop().await;
        assert_eq!(hanging, 0);
        assert_eq!(counts.errors.keys().collect::<Vec<_>>(), ["ENOENT"]);
        let mut sum = Counts::default();
        sum.add(&counts);
        sum.add(&counts);
        assert_eq!((sum.right, sum.failed()), (2 * counts.right, 2 * counts.failed()));
    }
}
