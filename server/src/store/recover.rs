//! Reading a pack through: what is in it, and where it stops being whole.
//!
//! In: a pack and where to start. Out: every intact record in order, and how it ended.
//! Invariant: a record is visited only with an intact header; the payload of facts and states is always verified, that
//! of chunks and TOCs when asked (the unsealed pack, whose tail may be torn; elsewhere each read verifies it anyway), and
//! of every record after which no other begins: a header that was written to the wrong place says nothing of what is
//! there. Damage is skipped up to the next record, found by the pack's marker, also inside of what a damaged record claims
//! to be; whoever wants to is told. What the disk cannot read is damage, not an error. Work is bounded by a few times the
//! pack's length.
//! Not here: what the records mean (the index), cutting (the caller), footers ([`super::seal`]).

use std::io;
use std::ops::Range;

use super::disk::is_damage;
use super::pack::{Location, PACK_HEADER_LEN, Pack};
use super::record::{HEADER_LEN, KEY_LEN_MAX, RecordHeader, RecordKind};

/// Damage, unloaded payloads and small records are read in pieces of this.
const PIECE: usize = 256 << 10;
/// Where records are large, their headers are read alone.
const SMALL_PIECE: usize = 4 << 10;
/// Records smaller than this are worth a large piece.
const SMALL_RECORD: u64 = 16 << 10;
/// What is left of a piece that the disk cannot read is read in blocks of this.
const BLOCK: usize = 4 << 10;
/// So many bytes, beside twice the pack, are read in vain before damaged records are skipped by their lengths.
const IN_VAIN_MAX: u64 = 64 << 20;
const HEAD_MAX: usize = HEADER_LEN + KEY_LEN_MAX;

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

/// As [`scan`] of a sealed pack, by its footer if it has one: then nothing is read but facts and states. In a sealed pack,
/// a tail of which nothing can be read counts as damage too.
pub fn read_sealed<E: From<io::Error>>(
    pack: &Pack,
    from: u64,
    len: u64,
    mut visit: impl FnMut(Found) -> Result<(), E>,
) -> Result<ScanEnd, E> {
    let Some((_, contents)) = pack.contents(len)? else {
        let mut damaged = 0;
        let scanned = scan_all(pack, from, len, false, |seen| match seen {
            Seen::Whole(found) => visit(found),
            Seen::Lost(_) => {
                damaged += 1;
                Ok(())
            }
        })?;
        return Ok(ScanEnd { damaged, ..scanned });
    };
    let mut out = ScanEnd { end: len, damaged: 0 };
    for entry in contents.entries(pack.id).filter(|entry| entry.at.offset >= from) {
        let load = matches!(entry.kind, RecordKind::Fact | RecordKind::LayerState);
        let payload = match load {
            true => match pack.read(entry.at, entry.kind, &entry.key)? {
                Some(payload) => payload.to_vec(),
                None => {
                    out.damaged += 1;
                    continue;
                }
            },
            false => Vec::new(),
        };
        visit(Found {
            header: RecordHeader {
                kind: entry.kind,
                key: entry.key,
                raw_len: entry.at.raw_len,
                payload_len: entry.at.payload_len,
                payload_crc: 0,
            },
            location: entry.at,
            payload,
        })?;
    }
    Ok(out)
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
    let mut window = Window::new(pack);
    let mut out = ScanEnd { end: from, damaged: 0 };
    let mut at = from;
    let mut in_vain = IN_VAIN_MAX + 2 * len.saturating_sub(from);
    // Damage seen since the last intact record: counted only if one follows, else it is the tail.
    let mut pending = 0;
    while at < len {
        let header = window.header_at(at)?.filter(|h| at + h.record_len() <= len);
        let end = header.as_ref().map_or(at, |h| at + h.record_len());
        let mut payload = Vec::new();
        let whole = match &header {
            None => false,
            Some(header) => {
                let load = matches!(header.kind, RecordKind::Fact | RecordKind::LayerState);
                let verify = load || verify_payloads || (end != len && window.header_at(end)?.is_none());
                let payload_at = at + header.len();
                !verify || window.check_payload(payload_at, header, load.then_some(&mut payload))?
            }
        };
        let (Some(header), true) = (header, whole) else {
            // Bytes of the record that was damaged may be others: what was there before, or what went astray.
            let wasted = end - at;
            let next = match in_vain.checked_sub(wasted) {
                Some(left) => {
                    in_vain = left;
                    window.next_header(at + 1, len)?
                }
                None => Some(end).filter(|end| *end < len),
            };
            visit(Seen::Lost(at..next.unwrap_or(len)))?;
            pending += 1;
            match next {
                Some(next) => at = next,
                None => break,
            }
            continue;
        };
        let location = Location {
            pack: pack.id,
            offset: at,
            payload_len: header.payload_len,
            raw_len: header.raw_len,
        };
        at = end;
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

/// A piece of the pack in memory.
struct Window<'a> {
    pack: &'a Pack,
    bytes: Vec<u8>,
    at: u64,
}

impl<'a> Window<'a> {
    fn new(pack: &'a Pack) -> Self {
        let (bytes, at) = (Vec::new(), PACK_HEADER_LEN);
        Self { pack, bytes, at }
    }

    /// Up to `want` bytes at `at`, less only at the end of the file.
    fn slice(&mut self, at: u64, want: usize) -> io::Result<&[u8]> {
        let end = self.at + self.bytes.len() as u64;
        if at < self.at || at + want as u64 > end {
            let is_near = at >= self.at && at - self.at <= self.bytes.len() as u64 + SMALL_RECORD;
            let size = if is_near { PIECE } else { SMALL_PIECE };
            self.load(at, size.max(want))?;
        }
        let from = ((at - self.at) as usize).min(self.bytes.len());
        let to = (from + want).min(self.bytes.len());
        Ok(&self.bytes[from..to])
    }

    /// What is in memory from `at` on, or the next piece.
    fn rest(&mut self, at: u64) -> io::Result<&[u8]> {
        let end = self.at + self.bytes.len() as u64;
        if at < self.at || at + HEAD_MAX as u64 > end {
            self.load(at, PIECE)?;
        }
        Ok(&self.bytes[(at - self.at) as usize..])
    }

    fn load(&mut self, at: u64, size: usize) -> io::Result<()> {
        self.at = at;
        self.bytes.resize(size, 0);
        let n = match self.pack.read_up_to(&mut self.bytes, at) {
            Ok(n) => n,
            Err(error) if is_damage(&error) => self.load_blocks(at)?,
            Err(error) => return Err(error),
        };
        self.bytes.truncate(n);
        Ok(())
    }

    /// What of it can be read; zeros, which are no record, for what cannot.
    fn load_blocks(&mut self, at: u64) -> io::Result<usize> {
        let len = usize::try_from(self.pack.file_len()?.saturating_sub(at)).unwrap_or(usize::MAX);
        let len = len.min(self.bytes.len());
        let mut done = 0;
        while done < len {
            let here = at + done as u64;
            // Blocks of the disk, not of the window.
            let n = (BLOCK - (here % BLOCK as u64) as usize).min(len - done);
            let block = &mut self.bytes[done..done + n];
            match self.pack.read_up_to(block, here) {
                Ok(_) => {}
                Err(error) if is_damage(&error) => block.fill(0),
                Err(error) => return Err(error),
            }
            done += n;
        }
        Ok(len)
    }

    /// The header at `at`, if there is an intact one.
    fn header_at(&mut self, at: u64) -> io::Result<Option<RecordHeader>> {
        let marker = self.pack.marker();
        Ok(RecordHeader::decode(self.slice(at, HEAD_MAX)?, marker))
    }

    /// Compares the payload with its CRC, in pieces; keeps it when asked.
    fn check_payload(&mut self, at: u64, header: &RecordHeader, mut keep: Option<&mut Vec<u8>>) -> io::Result<bool> {
        let mut crc = crc32fast::Hasher::new();
        let (mut done, len) = (0, u64::from(header.payload_len));
        while done < len {
            let want = (len - done).min(PIECE as u64) as usize;
            let piece = self.slice(at + done, want)?;
            if piece.len() != want {
                return Ok(false);
            }
            crc.update(piece);
            if let Some(keep) = keep.as_mut() {
                keep.extend_from_slice(piece);
            }
            done += want as u64;
        }
        Ok(crc.finalize() == header.payload_crc)
    }

    /// Position of the next intact record header at or after `from`.
    fn next_header(&mut self, from: u64, len: u64) -> io::Result<Option<u64>> {
        let marker = self.pack.marker().0;
        let mut at = from;
        while at < len {
            let piece = self.rest(at)?;
            let n = piece.len();
            match piece.windows(marker.len()).position(|w| w == marker) {
                Some(hit) => {
                    let hit = at + hit as u64;
                    if hit < len && self.header_at(hit)?.is_some() {
                        return Ok(Some(hit));
                    }
                    at = hit + 1;
                }
                None if n < marker.len() => break,
                // Pieces overlap, so that a marker across two is seen.
                None => at += (n - (marker.len() - 1)) as u64,
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::store::disk::Disk;
    use crate::store::pack::PackId;

    /// A large record, eight small ones, and a large one.
    fn written(dir: &std::path::Path) -> (Pack, Vec<Location>, u64) {
        let pack = Pack::create(&Disk::default(), dir, PackId(1)).unwrap();
        let (mut at, mut out) = (PACK_HEADER_LEN, Vec::new());
        for n in 0..10u8 {
            let payload = vec![n; if n % 9 == 0 { 3000 } else { 50 }];
            let header = RecordHeader::new(RecordKind::Chunk, &[n; 32], 0, &payload).unwrap();
            out.push(pack.write_record(at, &header, &payload).unwrap());
            at += header.record_len();
        }
        (pack, out, at)
    }

    fn found(pack: &Pack, len: u64, verify: bool) -> (Vec<u64>, ScanEnd) {
        let mut out = Vec::new();
        let end = scan::<io::Error>(pack, PACK_HEADER_LEN, len, verify, |found| {
            out.push(found.location.offset);
            Ok(())
        });
        (out, end.unwrap())
    }

    /// The header of the first record, which claims 3000 bytes, in the place of the second's: what it claims are the others.
    #[test]
    fn a_header_in_the_wrong_place_does_not_hide_the_records_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let (pack, records, len) = written(dir.path());
        let file = File::options()
            .read(true)
            .write(true)
            .open(PackId(1).path(dir.path()))
            .unwrap();
        let mut header = [0; HEADER_LEN + 32];
        file.read_exact_at(&mut header, records[0].offset).unwrap();
        file.write_all_at(&header, records[1].offset).unwrap();
        for verify in [false, true] {
            let (offsets, end) = found(&pack, len, verify);
            let others: Vec<u64> = records
                .iter()
                .map(|at| at.offset)
                .filter(|at| *at != records[1].offset)
                .collect();
            assert_eq!(offsets, others, "verified: {verify}");
            assert_eq!((end.end, end.damaged), (len, 1));
        }
    }

    /// As many headers as fit, each of which claims the rest of the file: in vain, and not for ever.
    #[test]
    fn headers_that_all_lie_cost_bounded_work() {
        let dir = tempfile::tempdir().unwrap();
        let pack = Pack::create(&Disk::default(), dir.path(), PackId(1)).unwrap();
        let len = PACK_HEADER_LEN + (4 << 20);
        let file = File::options().write(true).open(PackId(1).path(dir.path())).unwrap();
        file.set_len(len).unwrap();
        let step = 64;
        for at in (PACK_HEADER_LEN..len - step).step_by(step as usize) {
            let header = RecordHeader {
                kind: RecordKind::Chunk,
                key: vec![7; 32],
                raw_len: 0,
                payload_len: (len - at) as u32 - 60,
                payload_crc: 1,
            };
            file.write_all_at(&header.encode(pack.marker()), at).unwrap();
        }
        // 65,000 headers of 2 MiB on the average are 130 GiB.
        assert!(found(&pack, len, true).0.is_empty());
    }
}
