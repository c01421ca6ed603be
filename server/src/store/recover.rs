//! Scanning a pack: what is in it, and where it stops being whole.
//!
//! In: a pack and where to start. Out: every intact record in order, and how the scan ended.
//! Invariant: a record is visited only with an intact header; the payload of facts and states is always verified, that
//! of chunks and TOCs when asked (the unsealed pack, whose tail may be torn; elsewhere each read verifies it anyway).
//! Damage in the middle is skipped up to the next record, found by the pack's marker; whoever wants to is told.
//! Not here: what the records mean (the index), cutting (the caller).

use std::io;
use std::ops::Range;

use super::pack::{Location, Pack};
use super::record::{RecordHeader, RecordKind};

/// Scanning reads damage and unloaded payloads in pieces of this.
const PIECE: usize = 256 << 10;

/// One intact record.
#[derive(Debug)]
pub struct Found {
    pub header: RecordHeader,
    pub location: Location,
    /// Loaded for facts and layer states only.
    pub payload: Vec<u8>,
}

/// How a scan ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanEnd {
    /// End of the last intact record; everything after it is a torn tail.
    pub end: u64,
    /// Records or stretches that were damaged and skipped.
    pub damaged: u64,
}

/// Visits every intact record from `from` to `len`.
pub fn scan<E: From<io::Error>>(
    pack: &Pack,
    from: u64,
    len: u64,
    verify_payloads: bool,
    visit: impl FnMut(Found) -> Result<(), E>,
) -> Result<ScanEnd, E> {
    let mut visit = visit;
    scan_all(pack, from, len, verify_payloads, |seen| match seen {
        Seen::Whole(found) => visit(found),
        Seen::Lost(_) => Ok(()),
    })
}

/// What [`scan_all`] comes by.
#[derive(Debug)]
pub enum Seen {
    Whole(Found),
    /// No record can be read here. At the end of a log this may be its torn tail.
    Lost(Range<u64>),
}

/// As [`scan`], and tells what it skips.
pub fn scan_all<E: From<io::Error>>(
    pack: &Pack,
    from: u64,
    len: u64,
    verify_payloads: bool,
    mut visit: impl FnMut(Seen) -> Result<(), E>,
) -> Result<ScanEnd, E> {
    let mut out = ScanEnd { end: from, damaged: 0 };
    let mut at = from;
    // Damage seen since the last intact record: counted only if one follows, else it is the tail.
    let mut pending = 0;
    while at < len {
        let Some(header) = pack.header_at(at)?.filter(|h| at + h.record_len() <= len) else {
            let next = next_marker(pack, at + 1, len)?;
            visit(Seen::Lost(at..next.unwrap_or(len)))?;
            match next {
                Some(next) => {
                    pending += 1;
                    at = next;
                    continue;
                }
                None => break,
            }
        };
        let location = Location {
            pack: pack.id,
            offset: at,
            payload_len: header.payload_len,
            raw_len: header.raw_len,
        };
        let payload_at = at + header.len();
        at += header.record_len();
        let load = matches!(header.kind, RecordKind::Fact | RecordKind::LayerState);
        let mut payload = Vec::new();
        if (load || verify_payloads) && !check_payload(pack, payload_at, &header, load.then_some(&mut payload))? {
            pending += 1;
            visit(Seen::Lost(location.offset..at))?;
            continue;
        }
        out.damaged += std::mem::take(&mut pending);
        out.end = at;
        visit(Seen::Whole(Found {
            header,
            location,
            payload,
        }))?;
    }
    Ok(out)
}

/// Compares the payload with its CRC, in pieces; keeps it when asked.
fn check_payload(pack: &Pack, at: u64, header: &RecordHeader, mut keep: Option<&mut Vec<u8>>) -> io::Result<bool> {
    let mut crc = crc32fast::Hasher::new();
    let mut buf = vec![0; PIECE.min(header.payload_len as usize)];
    let mut done = 0u64;
    while done < u64::from(header.payload_len) {
        let want = (u64::from(header.payload_len) - done).min(PIECE as u64) as usize;
        let n = pack.read_up_to(&mut buf[..want], at + done)?;
        if n != want {
            return Ok(false);
        }
        crc.update(&buf[..n]);
        if let Some(keep) = keep.as_mut() {
            keep.extend_from_slice(&buf[..n]);
        }
        done += n as u64;
    }
    Ok(crc.finalize() == header.payload_crc)
}

/// Position of the next intact record header at or after `from`.
fn next_marker(pack: &Pack, from: u64, len: u64) -> io::Result<Option<u64>> {
    let marker = pack.marker().0;
    let mut buf = vec![0; PIECE];
    let mut at = from;
    while at < len {
        let n = pack.read_up_to(&mut buf, at)?;
        let mut start = 0;
        while let Some(hit) = buf[start..n].windows(marker.len()).position(|w| w == marker) {
            let offset = at + (start + hit) as u64;
            if pack.header_at(offset)?.is_some() {
                return Ok(Some(offset));
            }
            start += hit + 1;
        }
        if n < buf.len() {
            break;
        }
        // Pieces overlap, so that a marker across two is seen.
        at += (n - (marker.len() - 1)) as u64;
    }
    Ok(None)
}
