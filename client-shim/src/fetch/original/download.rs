//! A body that comes, as a `Read` for a thread that may block.
//!
//! In: a response. Out: [`Download`], and the task's end that feeds it. Invariant: a few pieces of the body wait in memory;
//! a reader that goes away ends the transfer, a host that goes silent ends the reading.
//! Not here: what is in the body, and whether it is right (`refill.rs`).

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use reqwest::Response;
use tokio::sync::mpsc;

use crate::counters::Counters;
use crate::fetch::body;

/// Pieces of a body between network and decoder: some 16 KiB each.
const QUEUE: usize = 16;

/// The body, from its start.
#[derive(Debug)]
pub(super) struct Download {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Download {
    /// Also returns the work that must run for bytes to come.
    pub(super) fn new(
        mut response: Response,
        idle: Duration,
        received: Arc<Counters>,
    ) -> (Self, impl Future<Output = ()>) {
        let (sender, pieces) = mpsc::channel(QUEUE);
        let feed = async move {
            loop {
                let piece = match body::piece(&mut response, idle).await {
                    Ok(None) => return,
                    Ok(Some(piece)) => {
                        received.original_bytes.add(piece.len() as u64);
                        Ok(piece)
                    }
                    Err(e) => Err(io::Error::other(e)),
                };
                let is_last = piece.is_err();
                if sender.send(piece).await.is_err() || is_last {
                    return;
                }
            }
        };
        let download = Self {
            pieces,
            current: Bytes::new(),
        };
        (download, feed)
    }
}

impl Read for Download {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                None => return Ok(0),
                Some(piece) => self.current = piece?,
            }
        }
        let len = self.current.len().min(buf.len());
        buf[..len].copy_from_slice(&self.current[..len]);
        self.current.advance(len);
        Ok(len)
    }
}
