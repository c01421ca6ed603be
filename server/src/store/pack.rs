//! One pack: an append-only file of records.
//!
//! In: records to append, locations to read. Out: locations, payloads. Layout: `STORE.md`.
//! Invariant: nothing below the end is ever rewritten; a payload is handed out only after header, key and both CRCs
//! were compared with what the caller expected.
//! Not here: which pack is written ([`super::packs`]), and what to do with a damaged one ([`super::recover`]).

use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::disk::{Disk, is_damage};
use super::record::{HEADER_LEN, Marker, RecordHeader, RecordKind};
use super::seal::{self, Contents};

const PACK_MAGIC: &[u8; 8] = b"HSPACK\r\n";
const PACK_VERSION: u32 = 1;
/// Magic, version, zero, marker.
pub const PACK_HEADER_LEN: u64 = 24;

/// Number of a pack; its file is `NNNNNNNN.pack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PackId(pub u32);

impl PackId {
    pub fn path(self, dir: &Path) -> PathBuf {
        dir.join(format!("{:08}.pack", self.0))
    }

    /// `None` for a file that is not a pack.
    pub fn from_file_name(name: &str) -> Option<Self> {
        let digits = name.strip_suffix(".pack")?;
        if digits.len() != 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        digits.parse().ok().map(Self)
    }
}

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    pub pack: PackId,
    pub offset: u64,
    pub payload_len: u32,
    /// Uncompressed length of a chunk; 0 for other records.
    pub raw_len: u32,
}

#[derive(Debug)]
pub struct Pack {
    pub id: PackId,
    file: File,
    marker: Marker,
    path: PathBuf,
    disk: Disk,
}

impl Pack {
    /// A new pack; the file must not exist or hold less than a header (a crash while it was made).
    pub fn create(disk: &Disk, dir: &Path, id: PackId) -> io::Result<Self> {
        let path = id.path(dir);
        let file = disk.create(&path)?;
        let marker = Marker(random_u64().to_le_bytes());
        let mut header = Vec::with_capacity(PACK_HEADER_LEN as usize);
        header.extend_from_slice(PACK_MAGIC);
        header.extend_from_slice(&PACK_VERSION.to_le_bytes());
        header.extend_from_slice(&[0; 4]);
        header.extend_from_slice(&marker.0);
        disk.write_all_at(&file, &path, &header, 0)?;
        disk.sync(&file, &path)?;
        disk.sync_dir(dir)?;
        Ok(Self {
            id,
            file,
            marker,
            path,
            disk: disk.clone(),
        })
    }

    /// `Ok(None)`: the file has no valid pack header, or the disk has lost it.
    pub fn open(disk: &Disk, dir: &Path, id: PackId) -> io::Result<Option<Self>> {
        let path = id.path(dir);
        Self::of_file(disk.clone(), disk.open(&path)?, path, id)
    }

    /// As [`Pack::open`], of a file that is open.
    pub fn of_file(disk: Disk, file: File, path: PathBuf, id: PackId) -> io::Result<Option<Self>> {
        let mut header = [0; PACK_HEADER_LEN as usize];
        match disk.read_at(&file, &path, &mut header, 0) {
            Ok(n) if n == header.len() => {}
            Ok(_) => return Ok(None),
            Err(e) if is_damage(&e) => return Ok(None),
            Err(e) => return Err(e),
        }
        if header[..8] != *PACK_MAGIC || header[8..12] != PACK_VERSION.to_le_bytes() {
            return Ok(None);
        }
        let mut marker = [0; 8];
        marker.copy_from_slice(&header[16..]);
        Ok(Some(Self {
            id,
            file,
            marker: Marker(marker),
            path,
            disk,
        }))
    }

    pub fn file_len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    pub fn marker(&self) -> Marker {
        self.marker
    }

    pub fn sync(&self) -> io::Result<()> {
        self.disk.sync(&self.file, &self.path)
    }

    /// See [`Disk::start_writing`].
    pub fn start_writing(&self, from: u64, to: u64) {
        let len = to.saturating_sub(from);
        self.disk.start_writing(&self.file, &self.path, from, len);
    }

    /// Cuts a torn tail.
    pub fn truncate(&self, len: u64) -> io::Result<()> {
        self.disk.set_len(&self.file, &self.path, len)?;
        self.sync()
    }

    /// Writes one record at `offset`, the current end. On an error nothing counts as written.
    pub fn write_record(&self, offset: u64, header: &RecordHeader, payload: &[u8]) -> io::Result<Location> {
        let write = |bytes: &[u8], at| self.disk.write_all_at(&self.file, &self.path, bytes, at);
        let mut head = header.encode(self.marker);
        // One write for the usual record, so that a crash leaves at most one torn record.
        let written = if payload.len() <= 1 << 20 {
            head.extend_from_slice(payload);
            write(&head, offset)
        } else {
            let at = offset + head.len() as u64;
            write(payload, at).and_then(|()| write(&head, offset))
        };
        if let Err(e) = written {
            // Best effort: what stays is overwritten by the next record or cut at the next opening.
            let _ = self.disk.set_len(&self.file, &self.path, offset);
            return Err(e);
        }
        Ok(Location {
            pack: self.id,
            offset,
            payload_len: header.payload_len,
            raw_len: header.raw_len,
        })
    }

    /// What the footer at the end says is in the pack, and where the footer begins; `None`: there is none, or it is damaged.
    pub fn contents(&self, len: u64) -> io::Result<Option<(u64, Contents)>> {
        let Some(tail_at) = len.checked_sub(seal::TAIL_LEN) else {
            return Ok(None);
        };
        let mut tail = [0; seal::TAIL_LEN as usize];
        let footer_at = match self.read_up_to(&mut tail, tail_at) {
            Ok(n) => seal::footer_at(&tail[..n]).filter(|at| (PACK_HEADER_LEN..tail_at).contains(at)),
            Err(e) if is_damage(&e) => None,
            Err(e) => return Err(e),
        };
        let Some(footer_at) = footer_at else { return Ok(None) };
        let payload_len = (len - footer_at).checked_sub(HEADER_LEN as u64);
        let Some(payload_len) = payload_len.filter(|len| *len <= seal::FOOTER_SIZE_MAX) else {
            return Ok(None);
        };
        let at = Location {
            pack: self.id,
            offset: footer_at,
            // At most `FOOTER_SIZE_MAX`.
            payload_len: payload_len as u32,
            raw_len: 0,
        };
        let payload = self.read(at, RecordKind::Footer, &[])?;
        let contents = payload.and_then(|payload| Contents::of(payload, footer_at));
        Ok(contents.map(|contents| (footer_at, contents)))
    }

    /// Raw bytes, as many as there are up to `buf.len()`.
    pub fn read_up_to(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.read_at(&self.file, &self.path, buf, offset)
    }

    /// The header at `location`, only if it is that of exactly the expected record. `Ok(None)`: it is not (damage).
    pub fn header(&self, location: Location, kind: RecordKind, key: &[u8]) -> io::Result<Option<RecordHeader>> {
        let mut buf = vec![0; HEADER_LEN + key.len()];
        match self.read_up_to(&mut buf, location.offset) {
            Ok(n) => Ok(expected(&buf[..n], self.marker, location, kind, key)),
            Err(e) if is_damage(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The payloads of records that lie one behind the other, with one read and without copying; as [`Pack::read`] each.
    pub fn read_run(&self, kind: RecordKind, run: &[(Location, &[u8])]) -> io::Result<Vec<Option<Bytes>>> {
        let record_len = |(at, key): &(Location, &[u8])| HEADER_LEN + key.len() + at.payload_len as usize;
        let Some((first, _)) = run.first() else {
            return Ok(Vec::new());
        };
        let mut buf = vec![0; run.iter().map(record_len).sum()];
        match self.read_up_to(&mut buf, first.offset) {
            Ok(n) => buf.truncate(n),
            // Which of them the disk has lost is found out one by one.
            Err(e) if is_damage(&e) => buf.clear(),
            Err(e) => return Err(e),
        }
        let (bytes, mut from) = (Bytes::from(buf), 0);
        let each = run.iter().map(|one| {
            let (head_at, (at, key)) = (from, *one);
            from += record_len(one);
            let payload_at = head_at + HEADER_LEN + key.len();
            let header = expected(bytes.get(head_at..payload_at)?, self.marker, at, kind, key)?;
            let payload = bytes.get(payload_at..from)?;
            let whole = crc32fast::hash(payload) == header.payload_crc;
            whole.then(|| bytes.slice(payload_at..from))
        });
        Ok(each.collect())
    }

    /// The payload at `location`, only if it is exactly the expected record. `Ok(None)`: it is not (damage).
    pub fn read(&self, location: Location, kind: RecordKind, key: &[u8]) -> io::Result<Option<Bytes>> {
        let head_len = HEADER_LEN + key.len();
        let mut buf = vec![0; head_len + location.payload_len as usize];
        match self.read_up_to(&mut buf, location.offset) {
            Ok(n) if n == buf.len() => {}
            Ok(_) => return Ok(None),
            Err(e) if is_damage(&e) => return Ok(None),
            Err(e) => return Err(e),
        }
        let Some(header) = expected(&buf[..head_len], self.marker, location, kind, key) else {
            return Ok(None);
        };
        if crc32fast::hash(&buf[head_len..]) != header.payload_crc {
            return Ok(None);
        }
        Ok(Some(Bytes::from(buf).slice(head_len..)))
    }
}

fn expected(head: &[u8], marker: Marker, at: Location, kind: RecordKind, key: &[u8]) -> Option<RecordHeader> {
    let as_expected =
        |h: &RecordHeader| h.kind == kind && h.key == key && h.payload_len == at.payload_len && h.raw_len == at.raw_len;
    RecordHeader::decode(head, marker).filter(as_expected)
}

/// Unpredictable enough that nobody can put it into an image beforehand: the standard library's hash keys are random.
fn random_u64() -> u64 {
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}
