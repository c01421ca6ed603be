//! One pack: an append-only file of records.
//!
//! In: records to append, locations to read. Out: locations, payloads. Layout: `STORE.md`.
//! Invariant: nothing below the end is ever rewritten; a payload is handed out only after header, key and both CRCs
//! were compared with what the caller expected.
//! Not here: which pack is written ([`super::packs`]), and what to do with a damaged one ([`super::recover`]).

use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::record::{HEADER_LEN, KEY_LEN_MAX, Marker, RecordHeader, RecordKind};

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
}

impl Pack {
    /// A new pack; the file must not exist or hold less than a header (a crash while it was made).
    pub fn create(dir: &Path, id: PackId) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(id.path(dir))?;
        let marker = Marker(random_u64().to_le_bytes());
        let mut header = Vec::with_capacity(PACK_HEADER_LEN as usize);
        header.extend_from_slice(PACK_MAGIC);
        header.extend_from_slice(&PACK_VERSION.to_le_bytes());
        header.extend_from_slice(&[0; 4]);
        header.extend_from_slice(&marker.0);
        file.write_all_at(&header, 0)?;
        file.sync_all()?;
        File::open(dir)?.sync_all()?;
        Ok(Self { id, file, marker })
    }

    /// `Ok(None)`: the file has no valid pack header.
    pub fn open(dir: &Path, id: PackId) -> io::Result<Option<Self>> {
        Self::of_file(File::options().read(true).write(true).open(id.path(dir))?, id)
    }

    /// As [`Pack::open`], of a file that is open.
    pub fn of_file(file: File, id: PackId) -> io::Result<Option<Self>> {
        let mut header = [0; PACK_HEADER_LEN as usize];
        match file.read_exact_at(&mut header, 0) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(e) => return Err(e),
        }
        if header[..8] != *PACK_MAGIC || header[8..12] != PACK_VERSION.to_le_bytes() {
            return Ok(None);
        }
        let mut marker = [0; 8];
        marker.copy_from_slice(&header[16..]);
        let marker = Marker(marker);
        Ok(Some(Self { id, file, marker }))
    }

    pub fn file_len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    pub fn marker(&self) -> Marker {
        self.marker
    }

    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Cuts a torn tail.
    pub fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)?;
        self.file.sync_all()
    }

    /// Writes one record at `offset`, the current end. On an error nothing counts as written.
    pub fn write_record(&self, offset: u64, header: &RecordHeader, payload: &[u8]) -> io::Result<Location> {
        let mut head = header.encode(self.marker);
        // One write for the usual record, so that a crash leaves at most one torn record.
        let written = if payload.len() <= 1 << 20 {
            head.extend_from_slice(payload);
            self.file.write_all_at(&head, offset)
        } else {
            let at = offset + head.len() as u64;
            self.file
                .write_all_at(payload, at)
                .and_then(|()| self.file.write_all_at(&head, offset))
        };
        if let Err(e) = written {
            // Best effort: what stays is overwritten by the next record or cut at the next opening.
            let _ = self.file.set_len(offset);
            return Err(e);
        }
        Ok(Location {
            pack: self.id,
            offset,
            payload_len: header.payload_len,
            raw_len: header.raw_len,
        })
    }

    /// The header at `offset`, if there is an intact one.
    pub fn header_at(&self, offset: u64) -> io::Result<Option<RecordHeader>> {
        let mut buf = [0; HEADER_LEN + KEY_LEN_MAX];
        let n = read_up_to(&self.file, &mut buf, offset)?;
        Ok(RecordHeader::decode(&buf[..n], self.marker))
    }

    /// Raw bytes, as many as there are up to `buf.len()`.
    pub fn read_up_to(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        read_up_to(&self.file, buf, offset)
    }

    /// The payload at `location`, only if it is exactly the expected record. `Ok(None)`: it is not (damage).
    pub fn read(&self, location: Location, kind: RecordKind, key: &[u8]) -> io::Result<Option<Bytes>> {
        let head_len = HEADER_LEN + key.len();
        let mut buf = vec![0; head_len + location.payload_len as usize];
        if read_up_to(&self.file, &mut buf, location.offset)? != buf.len() {
            return Ok(None);
        }
        let Some(header) = RecordHeader::decode(&buf[..head_len], self.marker) else {
            return Ok(None);
        };
        let as_expected = header.kind == kind
            && header.key == key
            && header.payload_len == location.payload_len
            && header.raw_len == location.raw_len;
        if !as_expected || crc32fast::hash(&buf[head_len..]) != header.payload_crc {
            return Ok(None);
        }
        Ok(Some(Bytes::from(buf).slice(head_len..)))
    }
}

fn read_up_to(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Unpredictable enough that nobody can put it into an image beforehand: the standard library's hash keys are random.
fn random_u64() -> u64 {
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}
