//! Lists on disk, for the time after a restart.
//!
//! In: a name, and a list as bytes. Out: the same bytes, later, or nothing.
//! Invariant: what comes out is what went in under that name last, or nothing: a file says its own digest, so a torn or
//! damaged one is no list. At most [`FILES_MAX`] files and [`BYTES_MAX`]; those that were not confirmed for the longest time
//! go first. Losing them costs a question to the upstream, so nothing is synced, and nobody fails for them.
//! Not here: what is in a list, and when an old one is good enough ([`super::kept`]).

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use headstart_layer_format::{BlobDigest, digest::hex};

/// Directory below `data_dir`.
const DIRECTORY: &str = "lists";

/// A file being written. There is one at a time.
const UNFINISHED: &str = "unfinished";

/// Lists of tags and of referrers that a cluster asks for, with room. Each is the beginning of a list of something that there
/// is, or whoever asks for what there is not would push the others out.
const FILES_MAX: usize = 4096;
const BYTES_MAX: u64 = 64 << 20;

/// The largest one kept: 65,536 tags of the longest kind, or what a client takes of referrers.
const FILE_BYTES_MAX: usize = 9 << 20;

/// `sha256:` and 64 digits, and the end of the line.
const HEAD_LEN: usize = 72;

/// All of them; clones share them.
#[derive(Clone, Debug)]
pub struct Saved(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    /// What is there at most: files and bytes.
    held: Mutex<(usize, u64)>,
}

impl Saved {
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let directory = data_dir.join(DIRECTORY);
        fs::create_dir_all(&directory)?;
        let mut held = (0, 0);
        for entry in fs::read_dir(&directory)? {
            held.0 += 1;
            held.1 += entry?.metadata().map_or(0, |meta| meta.len());
        }
        Ok(Self(Arc::new(Inner {
            directory,
            held: Mutex::new(held),
        })))
    }

    /// Keeps the list under this name, in the place of what was there.
    pub fn save(&self, name: &str, list: &[u8]) -> io::Result<()> {
        if list.len() > FILE_BYTES_MAX {
            return self.forget(name);
        }
        let (path, head) = (self.path(name), head(list));
        let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        let mut old = [0; HEAD_LEN];
        if let Ok(mut file) = File::open(&path)
            && file.read_exact(&mut old).is_ok()
            && old == head.as_bytes()
            && file.metadata()?.len() == (HEAD_LEN + list.len()) as u64
        {
            return file.set_modified(SystemTime::now());
        }
        let unfinished = self.0.directory.join(UNFINISHED);
        let written = fs::write(&unfinished, [head.as_bytes(), list].concat());
        if let Err(error) = written.and_then(|()| fs::rename(&unfinished, &path)) {
            let _ = fs::remove_file(&unfinished);
            return Err(error);
        }
        // One that was replaced counts twice until the next look.
        held.0 += 1;
        held.1 += (HEAD_LEN + list.len()) as u64;
        if held.0 > FILES_MAX || held.1 > BYTES_MAX {
            *held = self.shrink()?;
        }
        Ok(())
    }

    /// The last list of this name, if it is whole.
    pub fn load(&self, name: &str) -> Option<Vec<u8>> {
        let file = File::open(self.path(name)).ok()?;
        let mut bytes = Vec::new();
        let most = (HEAD_LEN + FILE_BYTES_MAX) as u64;
        file.take(most).read_to_end(&mut bytes).ok()?;
        if bytes.len() < HEAD_LEN {
            return None;
        }
        let list = bytes.split_off(HEAD_LEN);
        (head(&list).as_bytes() == bytes).then_some(list)
    }

    pub fn forget(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Down to three quarters of the bounds, so that it is seldom done.
    fn shrink(&self) -> io::Result<(usize, u64)> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.0.directory)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            files.push((
                meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                meta.len(),
                entry.path(),
            ));
        }
        files.sort_by_key(|(modified, ..)| *modified);
        let mut held = (files.len(), files.iter().map(|(_, bytes, _)| bytes).sum::<u64>());
        for (_, bytes, path) in files {
            if held.0 <= FILES_MAX / 4 * 3 && held.1 <= BYTES_MAX / 4 * 3 {
                break;
            }
            fs::remove_file(path)?;
            held = (held.0 - 1, held.1 - bytes);
        }
        Ok(held)
    }

    /// Names are of any length and have any characters.
    fn path(&self, name: &str) -> PathBuf {
        self.0.directory.join(hex(BlobDigest::of(name.as_bytes()).as_bytes()))
    }
}

fn head(list: &[u8]) -> String {
    format!("{}\n", BlobDigest::of(list))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_list_comes_back_and_a_torn_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let saved = Saved::open(dir.path()).unwrap();
        assert_eq!(saved.load("a"), None);
        for list in [&b"one"[..], b"one", b"", b"another"] {
            saved.save("a", list).unwrap();
            assert_eq!(saved.load("a").unwrap(), list);
        }
        assert_eq!(saved.load("b"), None);
        let saved = Saved::open(dir.path()).unwrap();
        assert_eq!(saved.load("a").unwrap(), b"another");
        for cut in [0, 10, HEAD_LEN - 1, HEAD_LEN + 3] {
            saved.save("a", b"another").unwrap();
            let file = File::options().write(true).open(saved.path("a")).unwrap();
            file.set_len(cut as u64).unwrap();
            assert_eq!(saved.load("a"), None, "{cut}");
            saved.save("a", b"another").unwrap();
            assert_eq!(saved.load("a").unwrap(), b"another", "{cut}");
        }
        saved.forget("a").unwrap();
        assert_eq!(saved.load("a"), None);
    }

    #[test]
    fn there_are_only_so_many_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let saved = Saved::open(dir.path()).unwrap();
        let list = vec![b'x'; 3 << 20];
        for number in 0..30 {
            saved.save(&format!("{number}"), &list).unwrap();
            // Always confirmed anew.
            saved.save("first", b"short").unwrap();
        }
        let held: u64 = fs::read_dir(dir.path().join(DIRECTORY))
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(held <= BYTES_MAX, "{held}");
        assert!(saved.load("29").is_some() && saved.load("first").is_some() && saved.load("0").is_none());
        saved.save("large", &vec![0; FILE_BYTES_MAX + 1]).unwrap();
        assert!(saved.load("large").is_none());
    }
}
