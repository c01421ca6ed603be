//! Where damaged files go: out of everybody's way, and still there for a look.
//!
//! In: files of the data directory. Out: the same below `<data_dir>/quarantine`. Invariant: bounded in bytes and files;
//! the oldest go first. A file moves by one rename, so it is never in two places; readers that have it open read on.
//! Not here: what is damaged ([`super::pass`]).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::store::usage::now_ms;

/// Below `data_dir`.
pub const DIRECTORY: &str = "quarantine";
/// Files kept, however small.
const FILES_MAX: usize = 1_000;

#[derive(Clone, Debug)]
pub struct Quarantine {
    dir: PathBuf,
    bytes_max: u64,
}

impl Quarantine {
    pub fn new(data_dir: &Path, bytes_max: u64) -> Self {
        Self {
            dir: data_dir.join(DIRECTORY),
            bytes_max,
        }
    }

    /// A path for something new; `name` is that of a file.
    pub fn place(&self, name: &str) -> io::Result<PathBuf> {
        fs::create_dir_all(&self.dir)?;
        // Sorted by name is sorted by age.
        Ok(self.dir.join(format!("{:016}-{name}", now_ms())))
    }

    /// Removes the oldest until what is left is within the bounds.
    pub fn trim(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            files.push((entry.path(), entry.metadata()?.len()));
        }
        files.sort();
        let mut bytes: u64 = files.iter().map(|(_, len)| len).sum();
        let mut left = files.len();
        for (path, len) in files {
            if bytes <= self.bytes_max && left <= FILES_MAX {
                break;
            }
            fs::remove_file(path)?;
            bytes -= len;
            left -= 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_when_there_is_too_much() {
        let dir = tempfile::tempdir().unwrap();
        let quarantine = Quarantine::new(dir.path(), 10);
        fs::create_dir(dir.path().join(DIRECTORY)).unwrap();
        for (name, len) in [("1-a", 6), ("2-b", 4), ("3-c", 5)] {
            fs::write(dir.path().join(DIRECTORY).join(name), vec![0; len]).unwrap();
        }
        quarantine.trim().unwrap();
        let left = |name| dir.path().join(DIRECTORY).join(name).exists();
        assert_eq!((left("1-a"), left("2-b"), left("3-c")), (false, true, true));
        Quarantine::new(dir.path(), 0).trim().unwrap();
        assert!(!left("3-c"), "nothing is to be kept");
        let place = quarantine.place("original").unwrap();
        assert!(place.parent().unwrap().is_dir() && !place.exists());
    }
}
