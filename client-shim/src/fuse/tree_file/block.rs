//! Blocks of a tree file.
//!
//! In: what goes into a block, or a block as the disk has it. Out: the other. Invariant: a block is read as block N of the
//! tree of TOC D only if it was written as that by this form of the format: its checksum covers all three.
//! Not here: what is in a block.

use crc32fast::Hasher;
use headstart_layer_format::TocDigest;

/// A page: what the kernel reads at once anyway.
pub(super) const BLOCK_LEN: usize = 4096;
/// CRC-32, number of the first thing in it, how many, and room.
const HEAD_LEN: usize = 16;
/// Bytes of a block that its owner has.
pub(super) const BODY_LEN: usize = BLOCK_LEN - HEAD_LEN;

/// Raised whenever the same TOC is written in another way; that includes what `fuse/attr.rs` says of an inode.
const FORM: &[u8; 16] = b"headstart tree 1";

/// What makes a block one of this tree: where its checksum begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seal(u32);

#[derive(Debug)]
pub(super) struct Block(Box<[u8; BLOCK_LEN]>);

impl Seal {
    pub(super) fn of(toc: &TocDigest) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(FORM);
        hasher.update(toc.as_bytes());
        Self(hasher.finalize())
    }

    fn checksum(self, number: u32, covered: &[u8]) -> u32 {
        let mut hasher = Hasher::new_with_initial(self.0);
        hasher.update(&number.to_le_bytes());
        hasher.update(covered);
        hasher.finalize()
    }
}

impl Block {
    /// `body` is at most [`BODY_LEN`].
    pub(super) fn seal(seal: Seal, number: u32, first: u32, count: u16, body: &[u8]) -> Self {
        let mut bytes = Box::new([0; BLOCK_LEN]);
        bytes[4..8].copy_from_slice(&first.to_le_bytes());
        bytes[8..10].copy_from_slice(&count.to_le_bytes());
        bytes[HEAD_LEN..HEAD_LEN + body.len()].copy_from_slice(body);
        let checksum = seal.checksum(number, &bytes[4..]);
        bytes[..4].copy_from_slice(&checksum.to_le_bytes());
        Self(bytes)
    }

    /// `None`: it is not block `number` of this tree.
    pub(super) fn open(seal: Seal, number: u32, bytes: Box<[u8; BLOCK_LEN]>) -> Option<Self> {
        (u32_at(&bytes[..], 0)? == seal.checksum(number, &bytes[4..])).then_some(Self(bytes))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0[..]
    }

    pub(super) fn first(&self) -> u32 {
        u32_at(&self.0[..], 4).unwrap_or_default()
    }

    pub(super) fn count(&self) -> u16 {
        u16_at(&self.0[..], 8).unwrap_or_default()
    }

    pub(super) fn body(&self) -> &[u8] {
        &self.0[HEAD_LEN..]
    }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(seal: Seal, number: u32, bytes: &[u8]) -> Option<Block> {
        Block::open(seal, number, Box::new(bytes.try_into().unwrap()))
    }

    #[test]
    fn a_block_is_that_of_its_tree_and_place_and_no_other() {
        let seal = Seal::of(&TocDigest::of(b"a"));
        let block = Block::seal(seal, 7, 3, 2, b"body");
        let again = opened(seal, 7, block.bytes()).unwrap();
        assert_eq!(
            (again.first(), again.count(), &again.body()[..5]),
            (3, 2, &b"body\0"[..])
        );
        assert!(opened(seal, 8, block.bytes()).is_none());
        assert!(opened(Seal::of(&TocDigest::of(b"b")), 7, block.bytes()).is_none());
        assert!(opened(seal, 7, &[0; BLOCK_LEN]).is_none(), "what a torn file has");
        for at in 0..BLOCK_LEN {
            let mut damaged = block.bytes().to_vec();
            damaged[at] ^= 0x40;
            assert!(opened(seal, 7, &damaged).is_none(), "byte {at}");
        }
    }
}
