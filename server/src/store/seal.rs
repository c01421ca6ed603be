//! The footer of a sealed pack: what is in it, in one piece.
//!
//! In: records, as they are appended. Out: the footer's bytes, and back. `STORE.md` draws the layout.
//! Invariant: derived from the records before it, and never more than a shortcut to them: a pack whose footer is missing or
//! damaged is scanned. Bounded: a pack of more than [`RECORDS_MAX`] records is rolled. What decodes lies before the footer,
//! ascending and disjoint.
//! Not here: where it is written ([`super::packs`]) and looked for ([`super::pack`]).

use bytes::Bytes;

use super::pack::{Location, PACK_HEADER_LEN, PackId};
use super::record::{HEADER_LEN, KEY_LEN_MAX, RecordHeader, RecordKind};

/// Records of one pack: what its footer costs in memory while it is written.
pub const RECORDS_MAX: u32 = 1 << 17;
/// Kind, length of the key, zero, raw length, payload length, offset; then the key.
const ENTRY_LEN: usize = 20;
/// Offset of the footer and magic, at the end of the file.
pub const TAIL_LEN: u64 = 16;
const TAIL_MAGIC: &[u8; 8] = b"HSSEAL\r\n";
pub const FOOTER_SIZE_MAX: u64 = RECORDS_MAX as u64 * (ENTRY_LEN + KEY_LEN_MAX) as u64 + TAIL_LEN;

/// A footer in the making.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    entries: Vec<u8>,
    count: u32,
}

impl Draft {
    pub fn add(&mut self, header: &RecordHeader, offset: u64) {
        if header.kind == RecordKind::Footer {
            return;
        }
        self.entries
            .extend_from_slice(&[header.kind.tag(), header.key.len() as u8, 0, 0]);
        self.entries.extend_from_slice(&header.raw_len.to_le_bytes());
        self.entries.extend_from_slice(&header.payload_len.to_le_bytes());
        self.entries.extend_from_slice(&offset.to_le_bytes());
        self.entries.extend_from_slice(&header.key);
        self.count += 1;
    }

    /// What comes after.
    pub fn append(&mut self, later: Self) {
        self.entries.extend(later.entries);
        self.count += later.count;
    }

    pub fn count(&self) -> u32 {
        self.count
    }

    /// The payload of a footer at `offset`; `None`: too many records.
    pub fn finish(mut self, offset: u64) -> Option<Vec<u8>> {
        if self.count > RECORDS_MAX {
            return None;
        }
        self.entries.extend_from_slice(&offset.to_le_bytes());
        self.entries.extend_from_slice(TAIL_MAGIC);
        Some(self.entries)
    }
}

/// Where the last bytes of a pack say that its footer begins.
pub fn footer_at(tail: &[u8]) -> Option<u64> {
    let (offset, magic) = tail.split_at_checked(8)?;
    (magic == TAIL_MAGIC).then_some(u64::from_le_bytes(offset.try_into().ok()?))
}

/// One record of the pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub kind: RecordKind,
    pub key: Vec<u8>,
    pub at: Location,
}

/// A footer that was found.
#[derive(Clone, Debug)]
pub struct Contents(Bytes);

impl Contents {
    /// `None`: it is no footer, whatever its checksum says.
    pub fn of(payload: Bytes, footer_at: u64) -> Option<Self> {
        let entries = payload.slice(..payload.len().checked_sub(TAIL_LEN as usize)?);
        let (mut rest, mut end, mut count) = (&entries[..], PACK_HEADER_LEN, 0);
        while !rest.is_empty() {
            let (entry, left) = parse(rest, PackId(0))?;
            let head_len = (HEADER_LEN + entry.key.len()) as u64;
            let entry_end = entry
                .at
                .offset
                .checked_add(head_len + u64::from(entry.at.payload_len))?;
            count += 1;
            if entry.at.offset < end || entry_end > footer_at || count > RECORDS_MAX {
                return None;
            }
            (rest, end) = (left, entry_end);
        }
        Some(Self(entries))
    }

    /// In the order of the log.
    pub fn entries(&self, pack: PackId) -> impl Iterator<Item = Entry> + '_ {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let (entry, left) = parse(rest, pack)?;
            rest = left;
            Some(entry)
        })
    }
}

fn parse(bytes: &[u8], pack: PackId) -> Option<(Entry, &[u8])> {
    let (fixed, rest) = bytes.split_at_checked(ENTRY_LEN)?;
    let word = |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
    let kind = RecordKind::from_tag(fixed[0]).filter(|kind| *kind != RecordKind::Footer)?;
    let (key, rest) = rest.split_at_checked(usize::from(fixed[1]))?;
    let at = Location {
        pack,
        offset: u64::from(word(12)) | u64::from(word(16)) << 32,
        payload_len: word(8),
        raw_len: word(4),
    };
    let fits = key.len() <= KEY_LEN_MAX && u64::from(at.payload_len) <= kind.payload_len_max();
    let key = key.to_vec();
    fits.then_some((Entry { kind, key, at }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(key: &[u8], payload: &[u8]) -> RecordHeader {
        RecordHeader::new(RecordKind::Chunk, key, 7, payload).unwrap()
    }

    #[test]
    fn a_footer_round_trips_and_one_that_cannot_be_true_is_none() {
        let (one, two) = (header(&[1; 32], b"abc"), header(&[2; 32], b"defg"));
        let second_at = PACK_HEADER_LEN + one.record_len();
        let end = second_at + two.record_len();
        let draft = |first: u64, second: u64| {
            let mut draft = Draft::default();
            draft.add(&one, first);
            draft.add(&two, second);
            Bytes::from(draft.finish(end).unwrap())
        };
        let good = draft(PACK_HEADER_LEN, second_at);
        assert_eq!(footer_at(&good[good.len() - 16..]), Some(end));
        let contents = Contents::of(good.clone(), end).unwrap();
        let found: Vec<Entry> = contents.entries(PackId(3)).collect();
        assert_eq!(found.len(), 2);
        assert_eq!((found[1].key.as_slice(), found[1].at.offset), (&[2; 32][..], second_at));
        assert_eq!(
            (found[0].at.payload_len, found[0].at.raw_len, found[0].at.pack),
            (3, 7, PackId(3))
        );
        // Beyond the footer, before the first record, over one another, backwards, torn.
        assert!(Contents::of(good.clone(), end - 1).is_none());
        assert!(Contents::of(draft(PACK_HEADER_LEN - 1, second_at), end).is_none());
        assert!(Contents::of(draft(PACK_HEADER_LEN, second_at - 1), end).is_none());
        assert!(Contents::of(draft(second_at, PACK_HEADER_LEN), end).is_none());
        assert!(Contents::of(draft(PACK_HEADER_LEN, u64::MAX - 3), end).is_none());
        assert!(Contents::of(good.slice(1..), end).is_none());
        assert!(Contents::of(good.slice(..15), end).is_none());
    }
}
