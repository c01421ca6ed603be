//! The first request of a fetch: does the upstream have the blob, and how large is it?
//!
//! In: an errand, and what the first client wants. Out: a partial of known size, and the body that the request brought.
//! Invariant: what an earlier fetch left is continued if the upstream still says the same size, and else thrown away. An
//! upstream's "no" leaves no file behind.
//! Not here: what follows ([`super::whole`], [`super::run`]).

use std::ops::Range;

use bytes::Bytes;
use headstart_layer_format::BlobDigest;

use super::{
    blocking::blocking,
    demand::AHEAD_RANGE,
    errand::{Errand, pause},
    error::ReadError,
    flight::EARLY_MAX,
    wants::Wants,
    whole::SEGMENT,
    withheld::HOLD_BACK,
};
use crate::{
    store::{hasher::BlobHasher, partial::Partial},
    upstream::{BlobAnswer, BlobBody, RangeAnswer, UpstreamError},
};

/// What a fetch begins with.
#[derive(Debug)]
pub struct Opened {
    pub partial: Partial,
    pub size: u64,
    pub first: First,
}

/// The body of the opening request.
#[derive(Debug)]
pub enum First {
    /// The whole is to be fetched; this body, if there is one, begins it.
    Whole(Option<BlobBody>),
    /// Of the range that was asked for.
    Range(BlobBody),
    /// Readers say what they need.
    Nothing,
}

impl Opened {
    /// The first bytes of the blob, if they came with the head of the answer and nothing of the blob is here. Not of a blob
    /// that is withheld to the last byte.
    pub(super) fn early(&mut self) -> Bytes {
        match &mut self.first {
            First::Whole(Some(body))
                if body.start == 0 && self.size > HOLD_BACK && self.partial.present().is_empty() =>
            {
                let came = body.peek();
                // A copy: the piece can be many times as large, and this is kept.
                Bytes::copy_from_slice(&came[..came.len().min(EARLY_MAX)])
            }
            _ => Bytes::new(),
        }
    }

    /// `is_member`: the repository is known to have the blob. [`ReadError::Incomplete`]: an original is here, after all.
    pub async fn ask(errand: &Errand, wants: &Wants, is_member: bool) -> Result<Self, ReadError> {
        let is_new = errand
            .yard
            .originals
            .is_surely_new(&errand.digest, errand.upstream.name());
        let left = if is_new {
            None
        } else {
            let errand = errand.clone();
            blocking(move || {
                let originals = &errand.yard.originals;
                // A fetch that ended between the client's look and this one has left an original.
                if originals.path(&errand.digest).exists() {
                    return Err(ReadError::Incomplete);
                }
                let is_left = originals.partial_path(&errand.digest, errand.upstream.name()).exists();
                is_left.then(|| open(&errand)).transpose()
            })
            .await?
        };
        let make = || {
            let errand = errand.clone();
            blocking(move || open(&errand))
        };
        let (partial, answer) = match left {
            Some(partial) => (partial, None),
            // The most common case: the file is made while the upstream is asked.
            None if wants.is_whole() && errand.yard.config.parallel_ranges <= 1 => {
                let making = async {
                    // The request is on its way before another thread is woken for the file.
                    tokio::task::yield_now().await;
                    make().await
                };
                let (answer, partial) = tokio::join!(errand.from(0), making);
                let partial = partial?;
                // Should somebody have begun it all the same, that is continued, and this answer is of no use.
                let is_empty = partial.size().is_none();
                (partial, is_empty.then_some(answer))
            }
            None => (make().await?, None),
        };
        let is_empty = partial.present().is_empty();
        let opened = match wants {
            wants if wants.is_whole() => whole(errand, partial, answer).await,
            wants => range(errand, partial, wants, is_member).await,
        };
        if opened.is_err() && is_empty {
            let errand = errand.clone();
            // It has just been opened again, and is empty.
            let _ = blocking(move || Ok(open(&errand)?.discard()?)).await;
        }
        opened
    }
}

fn open(errand: &Errand) -> Result<Partial, ReadError> {
    let partial = errand.yard.originals.partial(&errand.digest, errand.upstream.name());
    Ok(partial.inspect_err(|error| errand.yard.disk_failed(error))?)
}

/// Continues behind what is here. `answer`: of the upstream, if it was asked for everything already.
async fn whole(
    errand: &Errand,
    mut partial: Partial,
    mut answer: Option<Result<BlobAnswer, UpstreamError>>,
) -> Result<Opened, ReadError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let from = partial.prefix();
        let answer = match (answer.take(), until(errand, &partial)) {
            (Some(answer), _) => answer,
            (None, Some(until)) => match errand.range(from..until).await {
                Ok(RangeAnswer::Part(body) | RangeAnswer::Whole(body)) => Ok(BlobAnswer::Body(body)),
                Ok(RangeAnswer::PastEnd { size }) if size == from => Ok(BlobAnswer::Complete { size }),
                Ok(RangeAnswer::PastEnd { .. }) => Err(UpstreamError::Status(416)),
                Err(error) => Err(error),
            },
            (None, None) => errand.from(from).await,
        };
        let (body, size) = match answer {
            Ok(BlobAnswer::Complete { size }) => (None, Some(size)),
            Ok(BlobAnswer::Body(body)) => {
                let size = body.size;
                (Some(body), size)
            }
            // What is here is longer than the blob, or the upstream cannot do ranges: from the start, then.
            Err(UpstreamError::Status(416) | UpstreamError::BadAnswer(_)) if from > 0 => {
                partial = restarted(partial).await?;
                continue;
            }
            Err(error) => {
                retry(errand, tries, error.into()).await?;
                continue;
            }
        };
        let Some(size) = size else {
            // Without a body there is a size.
            let Some(body) = body else {
                return Err(ReadError::Incomplete);
            };
            return spool(errand, restarted(partial).await?, body).await;
        };
        check_size(errand, size)?;
        let ignored = body.as_ref().is_some_and(|b| b.start != from);
        if ignored || partial.size().is_some_and(|known| known != size) {
            partial = restarted(partial).await?;
            if body.as_ref().is_none_or(|b| b.start > 0) {
                continue;
            }
        }
        return Ok(Opened {
            partial: sized(errand, partial, size).await?,
            size,
            first: First::Whole(body),
        });
    }
}

/// Where the first request of a whole fetch ends, if not at the end of the blob.
fn until(errand: &Errand, partial: &Partial) -> Option<u64> {
    let from = partial.prefix();
    let next = partial.present().iter().map(|r| r.start).find(|&start| start > from);
    let parallel = errand.yard.config.parallel_ranges > 1 && partial.size().is_none_or(|size| from < size);
    let segment = parallel.then(|| from + SEGMENT);
    [next, segment].into_iter().flatten().min()
}

/// Asks for the first of what is wanted, or only for the size when that is recorded or cannot be learned so.
async fn range(errand: &Errand, mut partial: Partial, wants: &Wants, is_member: bool) -> Result<Opened, ReadError> {
    if let Some(size) = partial.size() {
        if wants.covers(size) {
            return whole(errand, partial, None).await;
        }
        let is_there = match is_member {
            true => Some(true),
            false => is_there(errand, size).await?,
        };
        match is_there {
            Some(true) => {
                return Ok(Opened {
                    partial,
                    size,
                    first: First::Nothing,
                });
            }
            Some(false) => partial = restarted(partial).await?,
            // What is here stays, unless a part shows that the blob is another.
            None => {}
        }
    }
    let Some(range) = wants.opening(AHEAD_RANGE) else {
        return match errand.size_or_all().await? {
            Some(size) if !wants.covers(size) => {
                check_size(errand, size)?;
                Ok(Opened {
                    partial: sized(errand, partial, size).await?,
                    size,
                    first: First::Nothing,
                })
            }
            _ => whole(errand, partial, None).await,
        };
    };
    let (size, first) = match first_range(errand, range).await? {
        RangeAnswer::PastEnd { size } => (Some(size), First::Nothing),
        RangeAnswer::Whole(body) => (body.size, First::Whole(Some(body))),
        RangeAnswer::Part(body) => match body.size {
            // It is the whole, or as good as.
            Some(size) if wants.covers(size) && body.start == 0 => (Some(size), First::Whole(Some(body))),
            Some(size) if wants.covers(size) => (Some(size), First::Whole(None)),
            size => (size, First::Range(body)),
        },
    };
    match (size, first) {
        (Some(size), first) => {
            check_size(errand, size)?;
            Ok(Opened {
                partial: sized(errand, partial, size).await?,
                size,
                first,
            })
        }
        (None, First::Whole(Some(body))) => spool(errand, partial, body).await,
        (None, _) => Err(UpstreamError::BadAnswer("a part of a blob of unknown size").into()),
    }
}

/// What is left of a fetch may be of another repository, whose word says nothing for this one: its upstream is asked. "No": the
/// blob is another. `None`: a GET must tell.
async fn is_there(errand: &Errand, size: u64) -> Result<Option<bool>, ReadError> {
    match errand.size().await {
        Ok(now) => Ok(Some(now.is_none_or(|now| now == size))),
        Err(UpstreamError::Status(400 | 405 | 501)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn first_range(errand: &Errand, range: Range<u64>) -> Result<RangeAnswer, ReadError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match errand.range(range.clone()).await {
            Ok(answer) => return Ok(answer),
            Err(error) => retry(errand, tries, error.into()).await?,
        }
    }
}

/// A pause before the next try, or the error.
async fn retry(errand: &Errand, tries: u32, error: ReadError) -> Result<(), ReadError> {
    match &error {
        // A time-out has already used up the client's patience.
        ReadError::Upstream(e)
            if e.is_transient() && *e != UpstreamError::Timeout && tries < errand.yard.config.tries_max =>
        {
            tokio::time::sleep(pause(tries, &error)).await;
            Ok(())
        }
        _ => Err(error),
    }
}

/// The upstream does not say how long the blob is, and clients must be told: the whole of it first. Rare.
async fn spool(errand: &Errand, mut partial: Partial, mut body: BlobBody) -> Result<Opened, ReadError> {
    let mut size = 0;
    while let Some(bytes) = body.chunk().await? {
        let at = size;
        size += bytes.len() as u64;
        check_size(errand, size)?;
        let errand = errand.clone();
        partial = blocking(move || {
            partial
                .write_at(&bytes, at)
                .inspect_err(|error| errand.yard.disk_failed(error))?;
            Ok(partial)
        })
        .await?;
    }
    check_size(errand, size)?;
    partial = blocking(move || {
        partial.keep(size)?;
        Ok(partial)
    })
    .await?;
    Ok(Opened {
        partial,
        size,
        first: First::Whole(None),
    })
}

fn check_size(errand: &Errand, size: u64) -> Result<(), ReadError> {
    let size_max = errand.yard.config.blob_size_max;
    match size > size_max {
        true => Err(ReadError::TooLarge { size, size_max }),
        false => check_not_emptied(&errand.digest, size),
    }
}

/// An answer of no bytes is complete with its head, so there is no end of it that could be withheld: the digest is
/// compared before. (Upstreams in trouble do send empty bodies with a 200.)
pub fn check_not_emptied(digest: &BlobDigest, size: u64) -> Result<(), ReadError> {
    match size > 0 || BlobHasher::matches(digest, b"") {
        true => Ok(()),
        false => Err(ReadError::DigestMismatch),
    }
}

async fn sized(errand: &Errand, mut partial: Partial, size: u64) -> Result<Partial, ReadError> {
    if partial.size().is_none() {
        // Nothing is written for that, so no thread is needed.
        partial.set_size(size)?;
        return Ok(partial);
    }
    let yard = errand.yard.clone();
    blocking(move || {
        partial.set_size(size).inspect_err(|error| yard.disk_failed(error))?;
        Ok(partial)
    })
    .await
}

async fn restarted(mut partial: Partial) -> Result<Partial, ReadError> {
    blocking(move || {
        partial.restart()?;
        Ok(partial)
    })
    .await
}
