//! The map beside a partial: which of its units are wholly there.
//!
//! In: a unit whose every byte has been written. Out: after a crash of the process, the units that can be believed.
//! Invariant: a unit is marked only after its bytes were written, and one mark is one byte at its own place, so whatever
//! moment a kill chooses, what is marked is there. (Another boot voids map and partial alike.) A map that is torn,
//! foreign or of another size is no map.
//! Not here: the bytes themselves ([`super::partial`]).

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write as _},
    os::unix::fs::FileExt as _,
    path::Path,
};

/// The grain of a partial. A fetch for a single byte brings this much, so it is what a small Range costs at most;
/// smaller units would make more requests of a large Range that has holes.
pub const UNIT: u64 = 1 << 20;

/// Name and version of the layout.
const MAGIC: [u8; 8] = *b"HSUNITS1";
/// Magic, size of the blob, size of a unit, CRC of these.
const HEADER_LEN: usize = 28;
/// A unit that is there. Neither 0 (a hole) nor all ones.
const PRESENT: u8 = 0xa5;
/// A map longer than this is not ours: a blob of 1 TiB has one of 1 MiB.
const MAP_LEN_MAX: u64 = 16 << 20;

/// Units in a blob of `size` bytes; the last may be short.
pub fn units(size: u64) -> u64 {
    size.div_ceil(UNIT)
}

/// An open map.
#[derive(Debug)]
pub(super) struct UnitMap {
    file: File,
}

/// What a map says.
#[derive(Debug)]
pub(super) struct Marks {
    pub size: u64,
    /// One a unit.
    pub present: Vec<bool>,
}

impl UnitMap {
    /// The map at `path`, if it is one.
    pub fn load(path: &Path) -> io::Result<Option<(Self, Marks)>> {
        let mut file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        Read::by_ref(&mut file).take(MAP_LEN_MAX + 1).read_to_end(&mut bytes)?;
        Ok(parse(&bytes).map(|marks| (Self { file }, marks)))
    }

    /// An empty map for a blob of `size` bytes, in the place of any other.
    pub fn create(path: &Path, size: u64) -> io::Result<Self> {
        let len = usize::try_from(units(size))
            .ok()
            .filter(|&n| n as u64 <= MAP_LEN_MAX / 2);
        let len = len.ok_or_else(|| io::Error::other("the blob has too many units"))?;
        let mut bytes = header(size).to_vec();
        // Zeroes, not a hole: on a full disk it is the creation that fails, and no mark.
        bytes.resize(HEADER_LEN + len, 0);
        super::originals::ignore_missing(fs::remove_file(path))?;
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        file.write_all(&bytes)?;
        Ok(Self { file })
    }

    /// Marks a unit as there.
    pub fn mark(&self, unit: u64) -> io::Result<()> {
        self.file.write_all_at(&[PRESENT], HEADER_LEN as u64 + unit)
    }
}

fn header(size: u64) -> [u8; HEADER_LEN] {
    let mut out = [0; HEADER_LEN];
    out[..8].copy_from_slice(&MAGIC);
    out[8..16].copy_from_slice(&size.to_le_bytes());
    out[16..24].copy_from_slice(&UNIT.to_le_bytes());
    let crc = crc32fast::hash(&out[..24]);
    out[24..].copy_from_slice(&crc.to_le_bytes());
    out
}

fn parse(bytes: &[u8]) -> Option<Marks> {
    let (head, marks) = bytes.split_at_checked(HEADER_LEN)?;
    let size = u64::from_le_bytes(head[8..16].try_into().ok()?);
    if head != header(size) || marks.len() as u64 != units(size) {
        return None;
    }
    Some(Marks {
        size,
        present: marks.iter().map(|&mark| mark == PRESENT).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_again_and_nothing_else_is_a_map() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.map");
        assert!(UnitMap::load(&path).unwrap().is_none());
        let map = UnitMap::create(&path, 2 * UNIT + 1).unwrap();
        map.mark(2).unwrap();
        map.mark(0).unwrap();
        let (_, marks) = UnitMap::load(&path).unwrap().unwrap();
        assert_eq!((marks.size, marks.present), (2 * UNIT + 1, vec![true, false, true]));

        let good = fs::read(&path).unwrap();
        for len in [0, 7, HEADER_LEN, good.len() - 1] {
            assert!(parse(&good[..len]).is_none(), "torn at {len}");
        }
        assert!(parse(&[good.as_slice(), &[PRESENT]].concat()).is_none(), "too long");
        for at in 0..HEADER_LEN {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(parse(&bad).is_none(), "damaged at {at}");
        }
    }
}
