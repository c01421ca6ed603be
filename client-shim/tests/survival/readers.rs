//! Readers: threads that read random parts of files and compare every byte, until they are told to stop.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};

use crate::node::LONG;

type Files = Vec<(PathBuf, Arc<Vec<u8>>)>;

pub struct Readers {
    threads: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
}

struct Shared {
    files: Files,
    /// Reads finished, by reader.
    done: Vec<AtomicU64>,
    stop: AtomicBool,
    /// The first thing that went wrong.
    wrong: Mutex<Option<String>>,
}

impl Readers {
    pub fn start(count: u64, files: Files) -> Self {
        let shared = Arc::new(Shared {
            files,
            done: (0..count).map(|_| AtomicU64::new(0)).collect(),
            stop: AtomicBool::new(false),
            wrong: Mutex::default(),
        });
        let threads = (0..count).map(|reader| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.read(reader))
        });
        Self {
            threads: threads.collect(),
            shared: Arc::clone(&shared),
        }
    }

    /// Waits until every reader has finished a read that it begins or is in now, and returns how long that took.
    pub fn until_all_go_on(&self) -> Duration {
        let begun = Instant::now();
        let at: Vec<u64> = self.counts();
        loop {
            self.check();
            if self.counts().iter().zip(&at).all(|(now, then)| now > then) {
                return begun.elapsed();
            }
            assert!(begun.elapsed() < LONG, "readers are stuck: {at:?} {:?}", self.counts());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn reads(&self) -> u64 {
        self.counts().iter().sum()
    }

    pub fn check(&self) {
        if let Some(wrong) = &*self.shared.wrong.lock().unwrap() {
            panic!("{wrong}");
        }
    }

    pub fn stop(self) -> u64 {
        self.shared.stop.store(true, Ordering::SeqCst);
        let begun = Instant::now();
        while self.threads.iter().any(|t| !t.is_finished()) {
            assert!(begun.elapsed() < LONG, "readers do not end: {:?}", self.counts());
            std::thread::sleep(Duration::from_millis(1));
        }
        self.check();
        self.reads()
    }

    fn counts(&self) -> Vec<u64> {
        self.shared.done.iter().map(|d| d.load(Ordering::SeqCst)).collect()
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}

impl Shared {
    fn read(&self, reader: u64) {
        let mut state = (reader + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        while !self.stop.load(Ordering::SeqCst) {
            let (path, expected) = &self.files[random(self.files.len())];
            let from = random(expected.len());
            let len = (random(48 << 10) + 1).min(expected.len() - from);
            let mut bytes = vec![0; len];
            let read = File::open(path).and_then(|file| {
                // Not from the page cache alone. The kernel may keep some; that is as good.
                let _ = fadvise(&file, 0, None, Advice::DontNeed);
                file.read_exact_at(&mut bytes, from as u64)
            });
            let wrong = match read {
                Ok(()) if bytes == expected[from..from + len] => None,
                Ok(()) => Some(format!("{}: wrong bytes at {from}, {len}", path.display())),
                Err(error) => Some(format!("{}: {error} at {from}, {len}", path.display())),
            };
            if let Some(wrong) = wrong {
                self.wrong.lock().unwrap().get_or_insert(wrong);
                return;
            }
            self.done[reader as usize].fetch_add(1, Ordering::SeqCst);
        }
    }
}
