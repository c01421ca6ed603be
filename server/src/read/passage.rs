//! Past the disk: one reader's bytes straight from the upstream, when nothing can be written here.
//!
//! In: an errand and a range. Out: its bytes, a piece at a time.
//! Invariant: nothing is kept. A passage that began with the first byte and ends with the last hashes what it gives
//! out (and what the reader was given from the file before), and withholds the end until the digest has been verified.
//! A body that breaks off is continued where it was. How many run at once is bounded.
//! Not here: when a reader is sent this way ([`super::blob`], [`super::blobs`]).

use std::{fs::File, ops::Range, os::unix::fs::FileExt as _, sync::Arc};

use bytes::{Bytes, BytesMut};

use super::{
    blocking::blocking,
    errand::{Errand, may_pass, pause},
    error::ReadError,
    turns::FetchTurn,
    withheld::HOLD_BACK,
};
use crate::{
    store::hasher::BlobHasher,
    upstream::{BlobAnswer, BlobBody, RangeAnswer, UpstreamError},
};

/// Bytes read at once when what the reader was given is hashed.
const HASH_BUFFER: usize = 1 << 20;

/// One reader's way past the disk.
#[derive(Debug)]
pub struct Passage {
    errand: Errand,
    /// What has not come yet.
    range: Range<u64>,
    size: u64,
    hasher: Option<BlobHasher>,
    /// Came, hashed, and withheld.
    held: BytesMut,
    body: Option<Brought>,
    fruitless: u32,
    begun: bool,
    permit: Option<Arc<FetchTurn>>,
}

#[derive(Debug)]
struct Brought {
    body: BlobBody,
    skip: u64,
}

impl Passage {
    pub fn new(errand: Errand, range: Range<u64>, size: u64) -> Self {
        let is_whole = range == (0..size);
        Self {
            hasher: is_whole.then(|| BlobHasher::of(&errand.digest)),
            errand,
            range,
            size,
            held: BytesMut::new(),
            body: None,
            fruitless: 0,
            begun: false,
            permit: None,
        }
    }

    /// The turn was waited for already; passages of one answer share it.
    pub fn with(mut self, permit: Arc<FetchTurn>) -> Self {
        self.permit = Some(permit);
        self
    }

    /// The reader was given everything before the range: these first bytes, and out of this file what is behind them.
    pub async fn after(mut self, begun: Option<(Bytes, Arc<File>)>) -> Result<Self, ReadError> {
        if let Some((early, file)) = begun {
            let (mut hasher, given) = (BlobHasher::of(&self.errand.digest), self.range.start);
            let hashed = blocking(move || {
                hasher.update(&early);
                let (mut at, mut buffer) = (early.len() as u64, vec![0; HASH_BUFFER]);
                while at < given {
                    let len = (given - at).min(HASH_BUFFER as u64) as usize;
                    file.read_exact_at(&mut buffer[..len], at)?;
                    hasher.update(&buffer[..len]);
                    at += len as u64;
                }
                Ok(hasher)
            });
            self.hasher = Some(hashed.await?);
        }
        Ok(self)
    }

    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        if self.permit.is_none() {
            self.permit = Some(Arc::new(self.errand.yard.passage(self.errand.asker).await?));
        }
        if !std::mem::replace(&mut self.begun, true) {
            self.errand.yard.metrics.pass_through();
        }
        loop {
            if self.range.start >= self.range.end {
                return self.last();
            }
            let Some(bytes) = self.piece().await? else { continue };
            let Some(hasher) = &mut self.hasher else {
                return Ok(Some(bytes));
            };
            hasher.update(&bytes);
            self.held.extend_from_slice(&bytes);
            let ready = self.held.len().saturating_sub(HOLD_BACK as usize);
            if ready > 0 {
                return Ok(Some(self.held.split_to(ready).freeze()));
            }
        }
    }

    /// What was withheld, if it is right.
    fn last(&mut self) -> Result<Option<Bytes>, ReadError> {
        if let Some(hasher) = self.hasher.take()
            && hasher.finish() != self.errand.digest
        {
            self.held.clear();
            self.errand.lied();
            tracing::warn!(digest = %self.errand.digest, "upstream's bytes do not match the digest");
            return Err(ReadError::DigestMismatch);
        }
        let held = self.held.split().freeze();
        Ok((!held.is_empty()).then_some(held))
    }

    /// A piece of the range, or nothing yet.
    async fn piece(&mut self) -> Result<Option<Bytes>, ReadError> {
        let tried = tokio::select! {
            biased;
            () = self.errand.yard.stop.cancelled() => return Err(ReadError::Stopping),
            tried = Self::advance(&mut self.body, &self.errand, &self.range, self.size) => tried,
        };
        let error = match tried {
            Ok(mut bytes) => {
                bytes.truncate(usize::try_from(self.range.end - self.range.start).unwrap_or(usize::MAX));
                if bytes.is_empty() {
                    return Ok(None);
                }
                self.fruitless = 0;
                self.range.start += bytes.len() as u64;
                return Ok(Some(bytes));
            }
            Err(error) => error,
        };
        self.body = None;
        self.fruitless += 1;
        if !may_pass(&error) || self.fruitless >= self.errand.yard.config.tries_max {
            return Err(error);
        }
        tokio::time::sleep(pause(self.fruitless, &error)).await;
        Ok(None)
    }

    /// A piece of the body, asked for if there is none.
    async fn advance(
        slot: &mut Option<Brought>,
        errand: &Errand,
        range: &Range<u64>,
        size: u64,
    ) -> Result<Bytes, ReadError> {
        let brought = match slot {
            Some(brought) => brought,
            None => slot.insert(ask(errand, range, size).await?),
        };
        let Some(mut bytes) = brought.body.chunk().await? else {
            return Err(ReadError::Incomplete);
        };
        let skipped = brought.skip.min(bytes.len() as u64);
        brought.skip -= skipped;
        // It fits `usize`: it is at most the length of `bytes`.
        let _ = bytes.split_to(skipped as usize);
        Ok(bytes)
    }
}

async fn ask(errand: &Errand, range: &Range<u64>, size: u64) -> Result<Brought, ReadError> {
    let answer = if range.end == size {
        match errand.from(range.start).await? {
            BlobAnswer::Body(body) => Some(body),
            BlobAnswer::Complete { .. } => None,
        }
    } else {
        match errand.range(range.clone()).await? {
            RangeAnswer::Part(body) | RangeAnswer::Whole(body) => Some(body),
            RangeAnswer::PastEnd { .. } => None,
        }
    };
    match answer {
        Some(body) if body.size.is_none_or(|now| now == size) && body.start <= range.start => Ok(Brought {
            skip: range.start - body.start,
            body,
        }),
        _ => Err(UpstreamError::BadAnswer("the blob has another size than before").into()),
    }
}
