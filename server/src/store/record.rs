//! One record of a pack: header, key, payload.
//!
//! In: a kind, a key, a payload. Out: bytes, and the header back from bytes. `STORE.md` draws the layout.
//! Invariant: a header decodes only if its own CRC is right and its lengths are within bounds, so a scan never follows
//! a damaged length. The marker is the pack's random number: bytes *inside* a payload (which an image's author chose)
//! cannot pass for a record.
//! Not here: files ([`super::pack`]).

use headstart_layer_format::limits::{CHUNK_SIZE_MAX, FRAME_SIZE_MAX, TOC_SIZE_MAX};

/// Fixed bytes before the key.
pub const HEADER_LEN: usize = 28;
/// Tag and 64 bytes of a SHA-512 layer digest: the longest key.
pub const KEY_LEN_MAX: usize = 65;
/// A fact names at most some thousand digests; manifests are capped at 4 MiB upstream of this.
pub const FACT_SIZE_MAX: u32 = 8 << 20;

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// Key: chunk digest. Payload: its zstd frame.
    Chunk,
    /// Key: TOC digest. Payload: the encoded TOC.
    Toc,
    /// No key. Payload: a fact as JSON.
    Fact,
    /// Key: layer digest. Payload: what became of the layer, as JSON.
    LayerState,
    /// No key. Payload: what is in a sealed pack ([`super::seal`]).
    Footer,
}

impl RecordKind {
    pub fn tag(self) -> u8 {
        match self {
            Self::Chunk => 1,
            Self::Toc => 2,
            Self::Fact => 3,
            Self::LayerState => 4,
            Self::Footer => 5,
        }
    }

    pub fn from_tag(tag: u8) -> Option<Self> {
        match tag {
            1 => Some(Self::Chunk),
            2 => Some(Self::Toc),
            3 => Some(Self::Fact),
            4 => Some(Self::LayerState),
            5 => Some(Self::Footer),
            _ => None,
        }
    }

    pub fn payload_len_max(self) -> u64 {
        match self {
            Self::Chunk => u64::from(FRAME_SIZE_MAX),
            Self::Toc => TOC_SIZE_MAX,
            Self::Fact | Self::LayerState => u64::from(FACT_SIZE_MAX),
            Self::Footer => super::seal::FOOTER_SIZE_MAX,
        }
    }
}

/// The random number that begins every record of one pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker(pub [u8; 8]);

/// A decoded header with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    pub kind: RecordKind,
    pub key: Vec<u8>,
    /// Uncompressed length of a chunk; 0 for the other kinds.
    pub raw_len: u32,
    pub payload_len: u32,
    pub payload_crc: u32,
}

impl RecordHeader {
    /// The header of `payload`; `None` when it is too large to be a record.
    pub fn new(kind: RecordKind, key: &[u8], raw_len: u32, payload: &[u8]) -> Option<Self> {
        let fits = payload.len() as u64 <= kind.payload_len_max() && key.len() <= KEY_LEN_MAX;
        fits.then(|| Self {
            kind,
            key: key.to_vec(),
            raw_len,
            payload_len: payload.len() as u32,
            payload_crc: crc32fast::hash(payload),
        })
    }

    /// Bytes before the payload.
    pub fn len(&self) -> u64 {
        (HEADER_LEN + self.key.len()) as u64
    }

    /// Bytes of the whole record.
    pub fn record_len(&self) -> u64 {
        self.len() + u64::from(self.payload_len)
    }

    pub fn encode(&self, marker: Marker) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN + self.key.len());
        out.extend_from_slice(&marker.0);
        out.extend_from_slice(&[self.kind.tag(), self.key.len() as u8, 0, 0]);
        for n in [self.raw_len, self.payload_len, self.payload_crc] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        let crc = header_crc(&out[8..24], &self.key);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&self.key);
        out
    }

    /// Decodes from the start of `bytes`, which may go on; `None` for anything that is not an intact header.
    pub fn decode(bytes: &[u8], marker: Marker) -> Option<Self> {
        let fixed = bytes.get(..HEADER_LEN)?;
        if fixed[..8] != marker.0 || fixed[10..12] != [0; 2] {
            return None;
        }
        let kind = RecordKind::from_tag(fixed[8])?;
        let key = bytes.get(HEADER_LEN..HEADER_LEN + usize::from(fixed[9]))?;
        let word = |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        if header_crc(&fixed[8..24], key) != word(24) || key.len() > KEY_LEN_MAX {
            return None;
        }
        let (raw_len, payload_len) = (word(12), word(16));
        if u64::from(payload_len) > kind.payload_len_max() || raw_len > CHUNK_SIZE_MAX {
            return None;
        }
        Some(Self {
            kind,
            key: key.to_vec(),
            raw_len,
            payload_len,
            payload_crc: word(20),
        })
    }
}

fn header_crc(fixed: &[u8], key: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(fixed);
    crc.update(key);
    crc.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_round_trips_and_any_flipped_bit_is_noticed() {
        let marker = Marker(*b"12345678");
        let header = RecordHeader::new(RecordKind::Chunk, &[7; 32], 4096, b"frame").unwrap();
        let bytes = header.encode(marker);
        assert_eq!(bytes.len() as u64, header.len());
        assert_eq!(RecordHeader::decode(&bytes, marker), Some(header));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(RecordHeader::decode(&damaged, marker), None, "bit {bit}");
        }
        assert_eq!(RecordHeader::decode(&bytes, Marker([0; 8])), None);
        assert_eq!(RecordHeader::decode(&bytes[..40], marker), None);
    }
}
