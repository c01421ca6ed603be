//! The tar, decompressed ahead on a thread of its own.
//!
//! In: the original. Out: its tar as a `BufRead`, while the next of it is fetched and decompressed. Invariant: at most
//! [`FULL_MAX`] buffers wait; it has a place ([`super::places`]) while it decompresses and not while it waits; an error comes behind all bytes before it, and nothing comes behind an error; when the
//! reader goes away, the thread ends.
//! Not here: decompression and digests ([`super::inflate`]).

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use super::config::IngestConfig;
use super::error::{ConvertError, Failure};
use super::inflate::{Original, inflate};
use super::memory::Memory;
use super::places::{Seat, Turn};
use super::progress::Progress;

/// One buffer. Smaller than a core's own cache, which both sides then find it in.
const BUFFER: usize = 256 << 10;
/// That wait to be read.
const FULL_MAX: usize = 4;

/// The reading side.
#[derive(Debug)]
pub struct Ahead<'scope> {
    full: Option<Receiver<io::Result<Vec<u8>>>>,
    empty: Sender<Vec<u8>>,
    buffer: Vec<u8>,
    at: usize,
    thread: Option<ScopedJoinHandle<'scope, ()>>,
}

impl<'scope> Ahead<'scope> {
    pub fn start<'env, 'o, R: Read + Send>(
        scope: &'scope Scope<'scope, 'env>,
        original: &'scope mut Original<'o, R>,
        seat: &'scope Seat,
        config: &'scope IngestConfig,
        progress: &'scope Progress,
    ) -> io::Result<Self> {
        let (sender, full) = sync_channel(FULL_MAX);
        let (empty, returned) = channel();
        let thread = std::thread::Builder::new().name("inflate".into());
        let thread = thread.spawn_scoped(scope, move || {
            progress.count_cpu(|| run(original, seat, config, &sender, &returned))
        })?;
        Ok(Self {
            full: Some(full),
            empty,
            buffer: Vec::new(),
            at: 0,
            thread: Some(thread),
        })
    }

    /// The next bytes; none at the end.
    fn fill(&mut self) -> io::Result<&[u8]> {
        if self.at == self.buffer.len() {
            let Some(full) = &self.full else { return Ok(&[]) };
            self.at = 0;
            let used = std::mem::take(&mut self.buffer);
            match full.recv() {
                Ok(Ok(buffer)) => self.buffer = buffer,
                Ok(Err(error)) => {
                    self.full = None;
                    return Err(error);
                }
                Err(_) => {
                    self.full = None;
                    // It ended: at the end of the tar, or in a panic.
                    if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
                        return Err(ConvertError::from(Failure::WorkerGone).into_io());
                    }
                }
            }
            // When it has ended it wants none.
            let _ = self.empty.send(used);
        }
        Ok(&self.buffer[self.at..])
    }
}

impl Read for Ahead<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.fill()?.read(out)?;
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for Ahead<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.fill()
    }

    fn consume(&mut self, amount: usize) {
        self.at = self.buffer.len().min(self.at + amount);
    }
}

impl Drop for Ahead<'_> {
    fn drop(&mut self) {
        // It waits for room, then: let it find that nobody reads.
        self.full = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run<R: Read>(
    original: &mut Original<'_, R>,
    seat: &Seat,
    config: &IngestConfig,
    full: &SyncSender<io::Result<Vec<u8>>>,
    empty: &Receiver<Vec<u8>>,
) {
    let inflated = inflate(original, config.zstd_window_bytes_max);
    let inflated = inflated.and_then(|i| Ok((Memory::window(config, i.window)?, i.input)));
    let (_memory, mut input) = match inflated {
        Ok(inflated) => inflated,
        Err(error) => {
            let _ = full.send(Err(error.into_io()));
            return;
        }
    };
    let mut turn = seat.turn();
    loop {
        // Most are made new: those in the queue, and one on each side.
        let mut buffer = empty.try_recv().unwrap_or_default();
        buffer.resize(BUFFER, 0);
        let mut filled = 0;
        let mut failed = None;
        while filled < buffer.len() {
            match input.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        let ended = filled < buffer.len();
        buffer.truncate(filled);
        if filled > 0 && !hand_on(full, buffer, &mut turn) {
            return;
        }
        if let Some(error) = failed {
            turn.aside(|| {
                let _ = full.send(Err(error));
            });
        }
        if ended {
            return;
        }
        turn.next();
    }
}

/// Whether anybody is there to take it.
fn hand_on(full: &SyncSender<io::Result<Vec<u8>>>, buffer: Vec<u8>, turn: &mut Turn<'_>) -> bool {
    match full.try_send(Ok(buffer)) {
        Ok(()) => true,
        Err(TrySendError::Full(buffer)) => turn.aside(|| full.send(buffer).is_ok()),
        Err(TrySendError::Disconnected(_)) => false,
    }
}
