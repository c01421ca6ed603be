//! Sparse files: which parts of a file its stored body holds.
//!
//! In: GNU's four notations. Out: [`SparseMap`]. Invariant: stretches are ordered, disjoint, inside the file, and their
//! lengths add up to the stored body.
//! Not here: reading the blocks that hold a map ([`super::tar_scan`]).

use headstart_layer_format::limits::EXTENTS_MAX;

use super::error::{ConvertError, malformed};
use super::pax::{PaxSparse, decimal};
use super::tar_header::{BLOCK, Block, number};

/// A file with holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SparseMap {
    /// Length of the file.
    pub size: u64,
    /// (offset in the file, length), none of length 0.
    pub stretches: Vec<(u64, u64)>,
}

impl SparseMap {
    /// Checks the stretches against the file's size and the body's length.
    pub fn new(size: u64, stretches: Vec<(u64, u64)>, stored: u64) -> Result<Self, ConvertError> {
        let (mut end, mut sum) = (0u64, 0u64);
        for &(offset, len) in &stretches {
            let next = offset.checked_add(len);
            match next {
                Some(next) if offset >= end && next <= size => end = next,
                _ => return Err(malformed("a sparse map")),
            }
            sum += len;
        }
        if sum != stored {
            return Err(malformed("a sparse map does not fit the stored data"));
        }
        let stretches = stretches.into_iter().filter(|&(_, len)| len > 0).collect();
        Ok(Self { size, stretches })
    }
}

/// Stretches of the old GNU format (type `S`): four in the header, 21 in each extension block.
#[derive(Debug, Default)]
pub struct OldGnu {
    pub stretches: Vec<(u64, u64)>,
}

impl OldGnu {
    /// The header's part; returns the real size, and whether an extension block follows.
    pub fn header(&mut self, block: &Block) -> Result<(u64, bool), ConvertError> {
        let real_size = u64::try_from(number(&block[483..495])?).map_err(|_| malformed("a sparse map"))?;
        self.add(&block[386..482])?;
        Ok((real_size, block[482] != 0))
    }

    /// An extension block; returns whether another follows.
    pub fn extension(&mut self, block: &Block) -> Result<bool, ConvertError> {
        self.add(&block[..504])?;
        Ok(block[504] != 0)
    }

    fn add(&mut self, entries: &[u8]) -> Result<(), ConvertError> {
        for entry in entries.chunks_exact(24) {
            // An unused slot ends the list.
            if entry[0] == 0 || entry[12] == 0 {
                break;
            }
            let field = |at: usize| u64::try_from(number(&entry[at..at + 12])?).map_err(|_| malformed("a sparse map"));
            self.stretches.push((field(0)?, field(12)?));
        }
        if self.stretches.len() as u64 > EXTENTS_MAX {
            return Err(malformed("a sparse map is too long"));
        }
        Ok(())
    }
}

/// How PAX records describe a sparse file.
#[derive(Debug, PartialEq, Eq)]
pub enum PaxSparseForm {
    NotSparse,
    /// 0.0 and 0.1: the map is in the records.
    Records(Vec<(u64, u64)>),
    /// 1.0: the map is at the start of the body.
    InBody,
}

pub fn pax_form(pax: &PaxSparse) -> Result<PaxSparseForm, ConvertError> {
    let version = (pax.major.as_deref(), pax.minor.as_deref());
    match version {
        (Some(b"1"), Some(b"0")) => return Ok(PaxSparseForm::InBody),
        (Some(b"0"), Some(b"0" | b"1")) => {}
        (None, None) if pax.map.is_some() => {}
        (None, None) => return Ok(PaxSparseForm::NotSparse),
        // Go's reader would take the body for the file here; GNU tar would not. Nobody should have to choose.
        _ => return Err(malformed("an unknown version of sparse records")),
    }
    let map = pax.map.as_deref().unwrap_or_default();
    if !map.len().is_multiple_of(2) || pax.block_count != Some((map.len() / 2) as u64) {
        return Err(malformed("a sparse map"));
    }
    Ok(PaxSparseForm::Records(
        map.chunks_exact(2).map(|p| (p[0], p[1])).collect(),
    ))
}

/// Collects the map of the 1.0 form: decimal numbers, a newline behind each, first their count.
#[derive(Debug, Default)]
pub struct InBody {
    bytes: Vec<u8>,
    newlines: usize,
    count: Option<usize>,
}

/// Longest map: [`headstart_layer_format::limits`] would allow more, but no reader of Go takes over 1 MiB.
const MAP_BYTES_MAX: usize = 1 << 20;

impl InBody {
    /// Takes the next block; true when the map is complete.
    pub fn block(&mut self, block: &Block) -> Result<bool, ConvertError> {
        if self.bytes.len() + BLOCK > MAP_BYTES_MAX {
            return Err(malformed("a sparse map is too long"));
        }
        self.newlines += block.iter().filter(|&&b| b == b'\n').count();
        self.bytes.extend_from_slice(block);
        if self.count.is_none() {
            // In the first block: leading zeros without an end would be searched again with each block.
            let end = self.bytes.iter().position(|&b| b == b'\n');
            let count = decimal(&self.bytes[..end.ok_or_else(|| malformed("a sparse map"))?])?;
            self.count = Some(usize::try_from(count).unwrap_or(usize::MAX));
        }
        Ok(self.count.is_some_and(|n| self.newlines > n.saturating_mul(2)))
    }

    pub fn stretches(&self) -> Result<Vec<(u64, u64)>, ConvertError> {
        let count = self.count.unwrap_or(0);
        let numbers = self
            .bytes
            .split(|&b| b == b'\n')
            .skip(1)
            .take(count * 2)
            .map(decimal)
            .collect::<Result<Vec<_>, _>>()?;
        Ok(numbers.chunks_exact(2).map(|p| (p[0], p[1])).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_does_not_end_is_refused_with_its_first_block() {
        let mut block = [b'0'; BLOCK];
        assert!(InBody::default().block(&block).is_err());
        block[BLOCK - 1] = b'\n';
        assert_eq!(InBody::default().block(&block).ok(), Some(true));
    }
}
