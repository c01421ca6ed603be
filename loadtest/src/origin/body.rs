//! A body, sent as the faults say.
//!
//! In: bytes and faults. Out: an axum body. Invariant: counts every byte it hands over, in the call's record.
//! Not here: faults of the head ([`super::answer`]).

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;

use super::calls::Record;
use super::fault::{Fault, Gate};
use super::listen::Link;

/// Bytes handed over at once.
const PIECE: u64 = 64 << 10;

struct Sending {
    content: Bytes,
    range: Range<u64>,
    sent: u64,
    record: Arc<Record>,
    faults: Vec<Fault>,
    link: Arc<Link>,
}

/// The bytes of `range` of `content`.
pub(super) fn body(
    content: Bytes,
    range: Range<u64>,
    faults: Vec<Fault>,
    record: Arc<Record>,
    link: Arc<Link>,
) -> Body {
    let content = spoilt(content, &faults);
    let sending = Sending {
        content,
        range,
        sent: 0,
        record,
        faults,
        link,
    };
    Body::from_stream(futures_util::stream::try_unfold(sending, |mut s| async move {
        Ok::<_, io::Error>(s.next().await?.map(|piece| (piece, s)))
    }))
}

fn spoilt(content: Bytes, faults: &[Fault]) -> Bytes {
    let mut spoilt: Option<Vec<u8>> = None;
    for fault in faults {
        if let Fault::WrongByte { at } = fault {
            let bytes = spoilt.get_or_insert_with(|| content.to_vec());
            if let Some(b) = bytes.get_mut(*at as usize) {
                *b ^= 0x55;
            }
        }
    }
    spoilt.map_or(content, Bytes::from)
}

impl Sending {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let (mut until, total) = ((self.sent + PIECE), self.range.end - self.range.start);
        until = until.min(total);
        let mut pause = Duration::ZERO;
        let mut gate: Option<Gate> = None;
        for fault in &self.faults {
            match fault {
                Fault::Truncate { after } | Fault::Reset { after } if self.sent >= *after && *after < total => {
                    self.link.flushed().await;
                    if let Fault::Reset { .. } = fault {
                        self.link.reset_at_end();
                    }
                    return Err(io::Error::other("the origin was told to break off here"));
                }
                Fault::Truncate { after } | Fault::Reset { after } => until = until.min(*after.max(&self.sent)),
                Fault::Stall { after, pause: p } if self.sent == *after => pause += *p,
                Fault::Stall { after, .. } if *after > self.sent => until = until.min(*after),
                Fault::Hold { at, gate: g } if self.sent >= *at => gate = Some(g.clone()),
                Fault::Hold { at, .. } => until = until.min(*at),
                Fault::Wall { at } if self.range.start + self.sent >= *at => std::future::pending().await,
                Fault::Wall { at } => until = until.min(at - self.range.start),
                Fault::Throttle { bytes_per_sec } => {
                    let rate = (*bytes_per_sec).max(1);
                    until = until.min(self.sent + (rate / 20).max(1));
                    pause += Duration::from_micros((until - self.sent) * 1_000_000 / rate);
                }
                _ => {}
            }
        }
        if self.sent == total {
            self.record.completed();
            return Ok(None);
        }
        if let Some(gate) = gate {
            gate.passed().await;
        }
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        // `after` may be past the end: then `until` is the end.
        let until = until.clamp(self.sent + 1, total);
        let piece = self
            .content
            .slice((self.range.start + self.sent) as usize..(self.range.start + until) as usize);
        self.sent = until;
        self.record.sent(piece.len() as u64);
        if self.sent == total && !self.faults.iter().any(|f| matches!(f, Fault::NoLength)) {
            // With a Content-Length, hyper does not ask again after the last byte.
            self.record.completed();
        }
        Ok(Some(piece))
    }
}
