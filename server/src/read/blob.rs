//! A blob that can be read, wherever its bytes are or come from.
//!
//! In: a place, and ranges. Out: streams for clients, and a reader for a thread.
//! Invariant: a stream gives the bytes of its range in order, each once, or ends with an error. When the disk fails
//! under it, it goes on with the upstream's bytes from where it is, and nothing that it promised changes: a part of what
//! is held ends with an error, because nobody could verify it.
//! Not here: which place a blob has ([`super::blobs`]).

use std::{
    fs::File,
    io::{self, IoSliceMut, Read},
    ops::Range,
    os::unix::fs::FileExt as _,
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, Stream, stream};
use headstart_layer_format::BlobDigest;
use rustix::io::ReadWriteFlags;

use super::{
    blocking::blocking,
    errand::Errand,
    error::ReadError,
    fetch::Boarded,
    flight::Flight,
    passage::Passage,
    patience::Patience,
    recheck::Verdict,
    turns::FetchTurn,
    withheld::{HOLD_BACK, Withheld},
};
use crate::store::opened::Opened;

/// Bytes handed to a client at once: large enough that the hop to a thread does not show, small enough for thousands
/// of clients.
const BLOCK: u64 = 256 << 10;

/// A blob that can be read, though not all of it may be here yet. Clones share the file.
#[derive(Clone, Debug)]
pub struct Blob {
    pub(super) place: Place,
    /// For the way past a disk that fails.
    errand: Errand,
    /// What will be streamed, in this order, if that is several ranges.
    parts: Option<Arc<[Range<u64>]>>,
}

/// Where a blob is.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// Verified and complete.
    Disk(Arc<Opened>),
    /// An earlier process left it. The end of it is withheld until it has been compared with its digest, and all of its parts.
    Doubted { opened: Arc<Opened>, verdict: Verdict },
    /// `withheld`: so much of every range, until the digest is verified.
    Flight { seat: Boarded, withheld: Withheld },
    /// With the upstream only.
    Upstream { size: u64, permit: Arc<FetchTurn> },
}

impl Blob {
    pub(super) fn new(place: Place, errand: Errand) -> Self {
        Self {
            place,
            errand,
            parts: None,
        }
    }

    pub fn digest(&self) -> &BlobDigest {
        &self.errand.digest
    }

    pub fn size(&self) -> u64 {
        match &self.place {
            Place::Disk(opened) | Place::Doubted { opened, .. } => opened.size(),
            Place::Upstream { size, .. } => *size,
            Place::Flight { seat, .. } => seat.fetch().flight.size(),
        }
    }

    /// The file, when it is complete and verified.
    pub fn on_disk(&self) -> Option<&Arc<Opened>> {
        match &self.place {
            Place::Disk(opened) => Some(opened),
            _ => None,
        }
    }

    /// The same, of which these ranges will be streamed one after the other: those to come are brought while the first is
    /// read.
    pub fn in_parts(mut self, parts: Vec<Range<u64>>) -> Self {
        self.parts = Some(parts.into());
        self
    }

    /// The bytes of `range`, which must be inside the size, at the pace they arrive and the reader takes them.
    pub fn stream(&self, range: Range<u64>) -> impl Stream<Item = Result<Bytes, ReadError>> + Send + use<> {
        if let Place::Flight { seat, withheld } = &self.place
            && *withheld == Withheld::Nothing
            && let Some(parts) = &self.parts
            && let Some(at) = parts.iter().position(|part| *part == range)
        {
            seat.fetch().foresee(&parts[at..]);
        }
        let state = match &self.place {
            Place::Upstream { size, permit } => {
                let passage = Passage::new(self.errand.clone(), range, *size);
                Reading::Past(Box::new(passage.with(permit.clone())))
            }
            place => Reading::Here {
                place: place.clone(),
                whole: range.start == 0,
                range,
                errand: self.errand.clone(),
            },
        };
        stream::try_unfold(state, |state| state.next())
    }

    /// Whether all of it is here, and what its digest says. Does not wait.
    pub fn is_verified(&self) -> bool {
        match &self.place {
            Place::Disk(_) => true,
            Place::Doubted { verdict, .. } => matches!(verdict.clone().right().now_or_never(), Some(Ok(()))),
            Place::Flight { seat, .. } => matches!(seat.fetch().flight.outcome(), Some(Ok(()))),
            Place::Upstream { .. } => false,
        }
    }

    /// Whether bytes of it have come, and of one whose end is withheld, all of them. Does not wait.
    pub(super) fn is_proven(&self) -> bool {
        match &self.place {
            Place::Disk(_) | Place::Doubted { .. } => true,
            Place::Flight { withheld, .. } => *withheld == Withheld::Nothing || self.is_verified(),
            Place::Upstream { .. } => false,
        }
    }

    /// For a thread (the conversion): follows the flight, and says "end" only after the digest was verified. When it loses
    /// its patience, a read fails.
    pub fn blocking_reader(&self, patience: Patience) -> BlockingReader {
        BlockingReader {
            range: 0..self.size(),
            place: self.place.clone(),
            patience,
        }
    }

    /// Waits until all of it is here, verified, or will not come.
    pub async fn arrived(&self) -> Result<(), ReadError> {
        match &self.place {
            Place::Disk(_) | Place::Doubted { .. } => Ok(()),
            Place::Upstream { .. } => Err(ReadError::Incomplete),
            Place::Flight { seat, .. } => {
                let flight = &seat.fetch().flight;
                flight.left_behind().await;
                flight.outcome().unwrap_or(Err(ReadError::Incomplete))
            }
        }
    }
}

/// A stream's state.
enum Reading {
    Here {
        place: Place,
        /// It began with the first byte.
        whole: bool,
        range: Range<u64>,
        errand: Errand,
    },
    Past(Box<Passage>),
}

impl Reading {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, ReadError> {
        loop {
            let bytes = match &mut self {
                Self::Past(passage) => passage.next().await?,
                Self::Here {
                    place,
                    whole,
                    range,
                    errand,
                } => match block(place, range, *whole).await {
                    Err(ReadError::Disk(reason)) => {
                        if let Place::Disk(opened) = &*place {
                            opened.doubt();
                        }
                        let Place::Flight { seat, .. } = &*place else {
                            return Err(ReadError::Disk(reason));
                        };
                        let flight = &seat.fetch().flight;
                        if errand.is_held() && !(*whole && range.end == flight.size()) {
                            return Err(ReadError::cannot_verify());
                        }
                        // What was given out so far is in the file still, and is part of what the digest is of.
                        let begun = (*whole && range.end == flight.size())
                            .then(|| (flight.early(&(0..range.start)), flight.file().clone()));
                        let passage = Passage::new(errand.clone(), range.clone(), flight.size());
                        self = Self::Past(Box::new(passage.after(begun).await?));
                        continue;
                    }
                    block => block?,
                },
            };
            return Ok(bytes.map(|bytes| (bytes, self)));
        }
    }
}

/// The next bytes of `range`, which moves on. `whole`: it began with the first byte.
async fn block(place: &Place, range: &mut Range<u64>, whole: bool) -> Result<Option<Bytes>, ReadError> {
    if range.start >= range.end {
        return Ok(None);
    }
    let (file, readable) = match place {
        Place::Disk(opened) => (opened.file(), range.end),
        Place::Doubted { opened, verdict } => {
            let free = match whole && range.end == opened.size() {
                true => opened.size().saturating_sub(HOLD_BACK),
                false => 0,
            };
            match range.start < free {
                true => (opened.file(), free),
                false => {
                    verdict.clone().right().await?;
                    (opened.file(), range.end)
                }
            }
        }
        Place::Flight { seat, withheld } => {
            let fetch = seat.fetch();
            let readable = fetch.readable(range, *withheld).await?;
            let early = fetch.flight.early(&(range.start..readable));
            if !early.is_empty() {
                range.start += early.len() as u64;
                return Ok(Some(early));
            }
            (fetch.flight.file(), readable)
        }
        Place::Upstream { .. } => return Err(ReadError::Disk("the blob is not here".into())),
    };
    let end = readable.min(range.start.saturating_add(BLOCK));
    let bytes = read_block(file.clone(), range.start..end).await?;
    range.start = end;
    Ok(Some(bytes))
}

pub(super) async fn read_block(file: Arc<File>, range: Range<u64>) -> Result<Bytes, ReadError> {
    let len = usize::try_from(range.end - range.start).map_err(|_| ReadError::Disk("a block is too large".into()))?;
    let mut block = vec![0; len];
    if read_cached(&file, &mut block, range.start) {
        return Ok(block.into());
    }
    blocking(move || {
        file.read_exact_at(&mut block, range.start)?;
        Ok(block.into())
    })
    .await
}

/// From the page cache, where what has just arrived is: no other thread is waited for, and this one does not wait for a
/// disk. "No": it is not all there, or this kernel or file system cannot say.
fn read_cached(file: &File, block: &mut [u8], at: u64) -> bool {
    let len = block.len();
    let read = rustix::io::preadv2(file, &mut [IoSliceMut::new(block)], at, ReadWriteFlags::NOWAIT);
    read.is_ok_and(|n| n == len)
}

/// Reads a blob on a thread. Errors carry a [`ReadError`].
#[derive(Debug)]
pub struct BlockingReader {
    place: Place,
    range: Range<u64>,
    patience: Patience,
}

/// How far a reader of `range` may go, when it may.
fn followed(flight: &Flight, range: &Range<u64>, patience: &mut Patience) -> io::Result<u64> {
    loop {
        // At the end of the range this waits for the verdict.
        if let Some(end) = patience.wait(|until| flight.readable_blocking(range, until))? {
            return Ok(end);
        }
        if patience.is_over(flight.arrived(), flight.size()) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it arrives slowly"));
        }
    }
}

impl Read for BlockingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let (file, readable) = match &self.place {
            // Who reads all of it on a thread compares it with the digest.
            Place::Disk(opened) | Place::Doubted { opened, .. } => (opened.file(), self.range.end),
            Place::Flight { seat, .. } => {
                let flight = &seat.fetch().flight;
                let readable = followed(flight, &self.range, &mut self.patience)?;
                let early = flight.early(&(self.range.start..readable));
                if !early.is_empty() {
                    let n = early.len().min(buffer.len());
                    buffer[..n].copy_from_slice(&early[..n]);
                    self.range.start += n as u64;
                    return Ok(n);
                }
                (flight.file(), readable)
            }
            Place::Upstream { .. } => return Err(ReadError::Disk("the blob is not here".into()).into()),
        };
        let len = usize::try_from(readable - self.range.start)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if len == 0 {
            return Ok(0);
        }
        let n = file.read_at(&mut buffer[..len], self.range.start)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.range.start += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SIZE: u64 = 3 * BLOCK;

    fn doubted() -> (tempfile::NamedTempFile, Place, impl FnOnce(Result<(), ReadError>)) {
        let named = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(named.path(), vec![7; SIZE as usize]).unwrap();
        let opened = Arc::new(Opened::new(File::open(named.path()).unwrap()).unwrap());
        let (say, verdict) = Verdict::to_come();
        (named, Place::Doubted { opened, verdict }, say)
    }

    async fn waits(place: &Place, range: &Range<u64>, whole: bool) -> bool {
        let mut range = range.clone();
        let asked = block(place, &mut range, whole);
        timeout(Duration::from_millis(50), asked).await.is_err()
    }

    #[tokio::test]
    async fn of_a_file_that_is_doubted_the_end_waits_for_the_verdict_and_a_part_does_so_altogether() {
        let (_named, place, say) = doubted();
        assert!(waits(&place, &(0..10), true).await && waits(&place, &(10..SIZE), false).await);
        let mut range = 0..SIZE;
        let mut got = 0;
        while range.start < SIZE - HOLD_BACK {
            got += block(&place, &mut range, true).await.unwrap().unwrap().len() as u64;
        }
        assert_eq!(got, SIZE - HOLD_BACK);
        assert!(waits(&place, &range, true).await);
        say(Ok(()));
        assert_eq!(
            block(&place, &mut range, true).await.unwrap().unwrap().len() as u64,
            HOLD_BACK
        );
        assert_eq!(block(&place, &mut range, true).await.unwrap(), None);
        assert_eq!(block(&place, &mut (5..9), false).await.unwrap().unwrap(), [7; 4][..]);
    }

    #[tokio::test]
    async fn of_a_file_that_is_wrong_no_answer_is_complete() {
        let (_named, place, say) = doubted();
        say(Err(ReadError::DigestMismatch));
        let mut range = 0..SIZE;
        let mut pieces = 0;
        let error = loop {
            match block(&place, &mut range, true).await {
                Ok(Some(_)) => pieces += 1,
                Ok(None) => panic!("it is complete after {pieces} pieces"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, ReadError::DigestMismatch) && range.start == SIZE - HOLD_BACK);
        assert!(block(&place, &mut (0..10), false).await.is_err());
    }
}
