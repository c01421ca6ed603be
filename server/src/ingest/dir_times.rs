//! Times of directories, to be set when everything else is there.
//!
//! In: the path and time of every directory entry, in tar order. Out: the same, once.
//! Invariant: a path is kept as what it does not share with the one before, so a usual tar costs some 20 bytes each.
//! Not here: what a path leads to when the tar has ended ([`super::tree`]). An unpacker sets these times last (making a
//! file changes its directory's), by path: to whatever is there by then.

use headstart_layer_format::toc::Mtime;

#[derive(Debug, Default)]
pub struct DirTimes {
    /// Shared length, own length, own bytes, seconds, nanoseconds; again and again.
    bytes: Vec<u8>,
    last: Vec<u8>,
}

const FIXED: usize = 2 + 2 + 8 + 4;

impl DirTimes {
    /// Bytes that this path will take.
    pub fn cost(&self, path: &[u8]) -> u64 {
        // Twice: a vector that grows has up to twice of what is in it.
        2 * (FIXED + path.len() - self.shared(path)) as u64
    }

    fn shared(&self, path: &[u8]) -> usize {
        self.last.iter().zip(path).take_while(|(a, b)| a == b).count()
    }

    /// `path` has at most 4095 bytes.
    pub fn push(&mut self, path: &[u8], mtime: Mtime) {
        let shared = self.shared(path);
        let own = &path[shared..];
        self.bytes.extend_from_slice(&(shared as u16).to_le_bytes());
        self.bytes.extend_from_slice(&(own.len() as u16).to_le_bytes());
        self.bytes.extend_from_slice(own);
        self.bytes.extend_from_slice(&mtime.secs.to_le_bytes());
        self.bytes.extend_from_slice(&mtime.nanos.to_le_bytes());
        self.last.truncate(shared);
        self.last.extend_from_slice(own);
    }

    /// Calls `visit` with each, in order.
    pub fn each<E>(&self, mut visit: impl FnMut(&[u8], Mtime) -> Result<(), E>) -> Result<(), E> {
        let (mut rest, mut path) = (self.bytes.as_slice(), Vec::new());
        while let Some((lens, more)) = rest.split_first_chunk::<4>() {
            let [a, b, c, d] = *lens;
            let (shared, own) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
            path.truncate(usize::from(shared));
            let (text, more) = more.split_at(usize::from(own));
            path.extend_from_slice(text);
            let (secs, more) = more.split_first_chunk().unwrap_or((&[0; 8], &[]));
            let (nanos, more) = more.split_first_chunk().unwrap_or((&[0; 4], &[]));
            let mtime = Mtime {
                secs: i64::from_le_bytes(*secs),
                nanos: u32::from_le_bytes(*nanos),
            };
            visit(&path, mtime)?;
            rest = more;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_times_come_back_in_order() {
        let paths: [&[u8]; 6] = [b"a", b"a/b", b"a/b/c", b"", b"a/x", b"a/x"];
        let mut times = DirTimes::default();
        let mtime = |i: usize| Mtime {
            secs: i as i64 - 3,
            nanos: i as u32,
        };
        for (i, path) in paths.iter().enumerate() {
            let before = times.bytes.len();
            let cost = times.cost(path);
            times.push(path, mtime(i));
            assert_eq!(cost, 2 * (times.bytes.len() - before) as u64);
        }
        let mut found = Vec::new();
        let visited: Result<(), ()> = times.each(|path, mtime| {
            found.push((path.to_vec(), mtime));
            Ok(())
        });
        assert!(visited.is_ok());
        let expected: Vec<_> = paths.iter().enumerate().map(|(i, p)| (p.to_vec(), mtime(i))).collect();
        assert_eq!(found, expected);
    }
}
