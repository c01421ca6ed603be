//! Objects on disk: `<data_dir>/profiles/<64 hex digits>`.
//!
//! In: bytes. Out: their digest, and the same bytes.
//! Invariant: a file was synced before it had its name, and is what its name says when it is read: what is not, is gone.
//! Never written again. A crash leaves at most a `*.new`, which an opening removes.
//! Not here: which object counts ([`super::catalog`]).

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use headstart_layer_format::digest::hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::object::OBJECT_SIZE_MAX;
use crate::store::disk::Disk;

/// Below `data_dir`.
const DIRECTORY: &str = "profiles";
const NEW_SUFFIX: &str = "new";

/// An object's name: the SHA-256 of its bytes, in hex.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Name(String);

impl Name {
    pub fn of(bytes: &[u8]) -> Self {
        Self(hex(&Sha256::digest(bytes)))
    }

    fn parse(text: &str) -> Option<Self> {
        let digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        (text.len() == 64 && text.bytes().all(digit)).then(|| Self(text.to_owned()))
    }
}

#[derive(Debug)]
pub struct Shelf {
    dir: PathBuf,
    disk: Disk,
}

impl Shelf {
    /// Makes the directory, and removes what was being written.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let dir = data_dir.join(DIRECTORY);
        fs::create_dir_all(&dir)?;
        let shelf = Self {
            dir,
            disk: Disk::default(),
        };
        shelf.disk.sync_dir(data_dir)?;
        for entry in fs::read_dir(&shelf.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == NEW_SUFFIX) {
                shelf.disk.remove(&path)?;
            }
        }
        Ok(shelf)
    }

    /// Names and sizes of everything here.
    pub fn list(&self) -> io::Result<Vec<(Name, u64)>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if let Some(name) = entry.file_name().to_str().and_then(Name::parse) {
                names.push((name, entry.metadata()?.len()));
            }
        }
        Ok(names)
    }

    /// Durable when it returns.
    pub fn put(&self, bytes: &[u8]) -> io::Result<Name> {
        let name = Name::of(bytes);
        let path = self.path(&name);
        let new = path.with_extension(NEW_SUFFIX);
        let file = self.disk.create(&new)?;
        let written = self
            .disk
            .write_all_at(&file, &new, bytes, 0)
            .and_then(|()| self.disk.sync(&file, &new))
            .and_then(|()| self.disk.rename(&new, &path));
        if let Err(error) = written {
            // It has no name yet; the next opening would do the same.
            let _ = self.disk.remove(&new);
            return Err(error);
        }
        self.disk.sync_dir(&self.dir)?;
        Ok(name)
    }

    /// `Ok(None)`: not here, or not what it was; then it is removed.
    pub fn get(&self, name: &Name) -> io::Result<Option<Vec<u8>>> {
        let path = self.path(name);
        let mut bytes = Vec::new();
        match File::open(&path) {
            Ok(file) => file.take(OBJECT_SIZE_MAX + 1).read_to_end(&mut bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if Name::of(&bytes) == *name {
            return Ok(Some(bytes));
        }
        tracing::error!(path = %path.display(), "a profile is damaged; it is removed");
        self.remove(name)?;
        Ok(None)
    }

    pub fn remove(&self, name: &Name) -> io::Result<()> {
        match self.disk.remove(&self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, name: &Name) -> PathBuf {
        self.dir.join(&name.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_got_and_what_changed_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(dir.path()).unwrap();
        let name = shelf.put(b"one").unwrap();
        assert_eq!(shelf.put(b"one").unwrap(), name);
        assert_eq!(shelf.get(&name).unwrap().as_deref(), Some(&b"one"[..]));
        fs::write(shelf.path(&Name::of(b"two")), b"twp").unwrap();
        assert_eq!(shelf.list().unwrap().len(), 2);
        assert_eq!(shelf.get(&Name::of(b"two")).unwrap(), None);
        assert_eq!(shelf.list().unwrap(), [(name, 3)]);
        // What a crash leaves.
        fs::write(dir.path().join("profiles/abc.new"), b"half").unwrap();
        fs::write(dir.path().join("profiles/README"), b"of somebody").unwrap();
        let shelf = Shelf::open(dir.path()).unwrap();
        assert_eq!(shelf.list().unwrap().len(), 1);
        assert!(!dir.path().join("profiles/abc.new").exists());
        assert!(dir.path().join("profiles/README").exists());
    }
}
