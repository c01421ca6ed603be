//! A layer cut in several ways, to tell what of it another layer already has. Nothing is stored.
//!
//! In: an original blob. Out: for each way of cutting, the units it makes, by content. Invariant: the scanner and the cutter
//! are those of a conversion, and the blob's digest was verified; memory is that of the list of units and of one chunk.
//! Not here: the tree (a layer that a conversion refuses for its names is surveyed all the same), and who has what
//! (`cli/dedup.rs`).

use std::io::Read;
use std::sync::atomic::Ordering;
use std::time::Duration;

use headstart_layer_format::BlobDigest;
use headstart_layer_format::limits::EXTENTS_MAX;
use sha2::{Digest as _, Sha256};

use super::config::IngestConfig;
use super::cut::{CutSizes, Cutter};
use super::error::{ConvertError, Limit, Refusal};
use super::gear::Gear;
use super::inflate::{BUFFER, Original, TarBudget, TarStream, inflate};
use super::progress::Progress;
use super::tar_header::BLOCK;
use super::tar_scan::{self, Member, Sink};

/// What is in front of a body is held until its length is known. More than this is a unit of its own.
const HEAD_MAX: usize = 4 << 20;

/// A way of cutting.
#[derive(Clone, Debug)]
pub enum Way {
    /// As conversions do, with these sizes.
    Chunks(CutSizes),
    /// Every body by itself: nothing that keeps files whole has fewer new bytes.
    Files,
    /// As conversions do, but each body with what the tar has around it.
    WithHeaders,
    /// The bodies as one stream, by content.
    BodiesByContent,
    /// The tar as one stream, by content.
    TarByContent,
}

impl Way {
    fn has_headers(&self) -> bool {
        matches!(self, Self::WithHeaders | Self::TarByContent)
    }
}

/// A chunk, a file: whatever is kept or fetched as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// The first half of the SHA-256.
    pub key: u128,
    pub len: u64,
}

#[derive(Debug)]
pub struct Survey {
    pub compressed_bytes: u64,
    pub tar_bytes: u64,
    /// In the order of the ways.
    pub units: Vec<Vec<Unit>>,
}

/// Takes a layer apart in all `ways` at once. Blocks.
pub fn survey(
    original: impl Read,
    layer: &BlobDigest,
    config: &IngestConfig,
    ways: &[Way],
) -> Result<Survey, ConvertError> {
    let progress = Progress::new(Duration::from_millis(config.time_max_ms));
    let mut original = Original::new(original, *layer, &progress);
    let mut takers = Takers {
        bodies: ways.iter().filter(|w| !w.has_headers()).map(Taker::of).collect(),
        members: ways.iter().filter(|w| w.has_headers()).map(Taker::of).collect(),
        head: Vec::new(),
        padding: 0,
        members_seen: 0,
        entries_max: config.entries_max,
    };
    let scanned = scan(&mut original, config, &progress, &mut takers);
    let scanned = match scanned {
        Err(e @ ConvertError::Failed(_)) => return Err(e),
        other => original.finish().and(other),
    };
    let tar_bytes = scanned?;
    takers.flush_head();
    let (mut bodies, mut members) = (takers.bodies.into_iter(), takers.members.into_iter());
    let mut take = |way: &Way| match way.has_headers() {
        true => members.next(),
        false => bodies.next(),
    };
    Ok(Survey {
        compressed_bytes: progress.compressed.load(Ordering::Relaxed),
        tar_bytes,
        units: ways.iter().filter_map(&mut take).map(Taker::finish).collect(),
    })
}

fn scan<R: Read>(
    original: &mut Original<'_, R>,
    config: &IngestConfig,
    progress: &Progress,
    takers: &mut Takers,
) -> Result<u64, ConvertError> {
    let mut tar = TarStream::new(
        inflate(original, config.zstd_window_bytes_max)?.buffered(BUFFER),
        TarBudget::of(config),
        progress,
    );
    tar_scan::scan(&mut tar, takers)?;
    Ok(tar.size())
}

/// Hands every stretch of the tar to those that want it.
struct Takers {
    bodies: Vec<Taker>,
    members: Vec<Taker>,
    /// The tar since the last body's end.
    head: Vec<u8>,
    /// Of the body at hand: still to come.
    padding: usize,
    members_seen: u64,
    entries_max: u64,
}

impl Takers {
    /// What belongs to no body.
    fn flush_head(&mut self) {
        let head = std::mem::take(&mut self.head);
        if !head.is_empty() {
            for taker in &mut self.members {
                taker.begin(head.len() as u64);
                taker.push(&head);
                taker.end();
            }
        }
    }
}

impl Sink for Takers {
    fn stretches_max(&self) -> u64 {
        EXTENTS_MAX
    }

    fn literal(&mut self, bytes: &[u8]) -> Result<(), ConvertError> {
        if self.members.is_empty() {
            return Ok(());
        }
        let (padding, bytes) = bytes.split_at(self.padding.min(bytes.len()));
        if self.padding > 0 {
            self.padding -= padding.len();
            for taker in &mut self.members {
                taker.push(padding);
                if self.padding == 0 {
                    taker.end();
                }
            }
        }
        for piece in bytes.chunks(HEAD_MAX) {
            if self.head.len() + piece.len() > HEAD_MAX {
                self.flush_head();
            }
            self.head.extend_from_slice(piece);
        }
        Ok(())
    }

    fn member(&mut self, member: Member) -> Result<(), ConvertError> {
        self.members_seen += 1;
        if self.members_seen > self.entries_max {
            let (what, max) = ("members", self.entries_max);
            return Err(Refusal::OverBudget {
                limit: Limit::Entries,
                what,
                max,
            }
            .into());
        }
        let len = member.body_len;
        if len == 0 {
            return Ok(());
        }
        for taker in &mut self.bodies {
            taker.begin(len);
        }
        let head = std::mem::take(&mut self.head);
        let padding = len.next_multiple_of(BLOCK as u64) - len;
        self.padding = padding as usize;
        for taker in &mut self.members {
            taker.begin(head.len() as u64 + len + padding);
            taker.push(&head);
        }
        Ok(())
    }

    fn body(&mut self, bytes: &[u8]) -> Result<(), ConvertError> {
        for taker in self.bodies.iter_mut().chain(&mut self.members) {
            taker.push(bytes);
        }
        Ok(())
    }

    fn body_end(&mut self) -> Result<(), ConvertError> {
        for taker in &mut self.bodies {
            taker.end();
        }
        if self.padding == 0 {
            for taker in &mut self.members {
                taker.end();
            }
        }
        Ok(())
    }
}

/// One way at work.
struct Taker {
    how: How,
    open: Open,
    done: Vec<Unit>,
}

enum How {
    Cut(Cutter),
    Whole,
    ByContent(Gear),
}

/// A unit that is being hashed.
#[derive(Default)]
struct Open {
    hasher: Sha256,
    len: u64,
}

impl Open {
    fn push(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
    }

    fn close(&mut self) -> Unit {
        let Self { hasher, len } = std::mem::take(self);
        let digest: [u8; 32] = hasher.finalize().into();
        let mut key = [0; 16];
        key.copy_from_slice(&digest[..16]);
        Unit {
            key: u128::from_be_bytes(key),
            len,
        }
    }
}

impl Taker {
    fn of(way: &Way) -> Self {
        let how = match way {
            Way::Chunks(sizes) => How::Cut(Cutter::with(*sizes)),
            Way::Files => How::Whole,
            // A tar's members are whole blocks: nothing is padded that is not in it.
            Way::WithHeaders => How::Cut(Cutter::with(CutSizes {
                align: BLOCK as u64,
                ..CutSizes::DEFAULT
            })),
            Way::BodiesByContent | Way::TarByContent => How::ByContent(Gear::default()),
        };
        Self {
            how,
            open: Open::default(),
            done: Vec::new(),
        }
    }

    fn chunk(&mut self, chunk: Option<Vec<u8>>) {
        if let Some(chunk) = chunk {
            self.open.push(&chunk);
            self.done.push(self.open.close());
        }
    }

    /// `len` is not 0.
    fn begin(&mut self, len: u64) {
        if let How::Cut(cutter) = &mut self.how {
            let chunk = cutter.begin(len);
            self.chunk(chunk);
        }
    }

    fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let n = match &mut self.how {
                How::Cut(cutter) => {
                    let (n, chunk) = cutter.push(bytes);
                    self.chunk(chunk);
                    n
                }
                How::Whole => {
                    self.open.push(bytes);
                    bytes.len()
                }
                How::ByContent(gear) => {
                    let (n, ends) = gear.push(bytes);
                    self.open.push(&bytes[..n]);
                    if ends {
                        self.done.push(self.open.close());
                    }
                    n
                }
            };
            bytes = &bytes[n..];
        }
    }

    fn end(&mut self) {
        match &mut self.how {
            How::Cut(cutter) => {
                let chunk = cutter.end();
                self.chunk(chunk);
            }
            How::Whole => self.done.push(self.open.close()),
            How::ByContent(_) => {}
        }
    }

    fn finish(mut self) -> Vec<Unit> {
        match std::mem::replace(&mut self.how, How::Whole) {
            How::Cut(cutter) => self.chunk(cutter.finish()),
            How::ByContent(_) if self.open.len > 0 => self.done.push(self.open.close()),
            How::ByContent(_) | How::Whole => {}
        }
        self.done
    }
}
