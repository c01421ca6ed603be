//! One original: whether it is what its name says, and away with it if not.
//!
//! In: a digest, or its file. Out: a verdict. Invariant: looking is no use of it, and keeps nobody from evicting it. Only the file
//! that was read is moved: one that came in its place meanwhile stays.
//! Not here: which originals, and when ([`crate::scrub`], `read/recheck.rs`).

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
};

use headstart_layer_format::BlobDigest;
use rustix::fs::{Advice, fadvise};

use super::{
    disk::{is_damage, is_want},
    hasher::BlobHasher,
    originals::Originals,
};

/// Read at once, and the longest step between two looks at the clock.
const PIECE: usize = 256 << 10;

/// What was read.
#[derive(Debug)]
pub enum Verdict {
    Whole,
    /// Evicted meanwhile, or the scrub was told to stop.
    Gone,
    Damaged(Damaged),
    /// It cannot even be opened; nothing can be said of it, nor done about it.
    Closed(io::Error),
}

/// The file that was read.
#[derive(Debug)]
pub struct Damaged {
    pub why: &'static str,
    /// Open: while it is, no other file can have its inode number.
    file: File,
}

enum Read {
    Whole,
    Wrong(&'static str),
    Stopped,
}

/// Reads an original. `step` is told the bytes and asked whether to go on. An error says nothing about the original.
pub fn check(originals: &Originals, digest: &BlobDigest, step: &mut dyn FnMut(u64) -> bool) -> io::Result<Verdict> {
    match File::open(originals.path(digest)) {
        Ok(file) => check_file(file, digest, step),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Verdict::Gone),
        Err(error) if is_want(&error) => Err(error),
        Err(error) => Ok(Verdict::Closed(error)),
    }
}

/// The same of a file that is open.
pub fn check_file(file: File, digest: &BlobDigest, step: &mut dyn FnMut(u64) -> bool) -> io::Result<Verdict> {
    let mut read = read(&file, digest, step)?;
    if let Read::Wrong(_) = read {
        // What is wrong in memory may be right on the disk. A file system that cannot do this is asked all the same.
        let _ = fadvise(&file, 0, None, Advice::DontNeed);
        read = self::read(&file, digest, step)?;
        if let Read::Whole = read {
            tracing::warn!(%digest, "an original was read wrong once and right the next time: is the memory in order?");
        }
    }
    Ok(match read {
        Read::Whole => Verdict::Whole,
        Read::Stopped => Verdict::Gone,
        Read::Wrong(why) => Verdict::Damaged(Damaged { why, file }),
    })
}

fn read(file: &File, digest: &BlobDigest, step: &mut dyn FnMut(u64) -> bool) -> io::Result<Read> {
    let mut hasher = BlobHasher::of(digest);
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    loop {
        match file.read_at(&mut piece, at) {
            Ok(0) => break,
            Ok(n) => {
                at += n as u64;
                hasher.update(&piece[..n]);
                if !step(n as u64) {
                    return Ok(Read::Stopped);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_damage(&error) => return Ok(Read::Wrong("it cannot be read")),
            Err(error) => return Err(error),
        }
    }
    Ok(match hasher.finish() == *digest {
        true => Read::Whole,
        false => Read::Wrong("its bytes are not what its digest names"),
    })
}

/// Moves the damaged file to where `place` says; the next request fetches the blob again. One that cannot be moved goes
/// all the same: damage that is kept is damage that is served.
pub fn set_aside(
    originals: &Originals,
    digest: &BlobDigest,
    damaged: &Damaged,
    place: impl FnOnce() -> io::Result<std::path::PathBuf>,
) -> io::Result<()> {
    let path = originals.path(digest);
    let of = |m: fs::Metadata| (m.dev(), m.ino());
    let read = of(damaged.file.metadata()?);
    let is_same = |path: &Path| fs::metadata(path).is_ok_and(|m| of(m) == read);
    if !is_same(&path) {
        // Evicted, and perhaps fetched again.
        return Ok(());
    }
    let moved = place().and_then(|to| originals.take(digest, &to).map(|()| to));
    match moved {
        // Replaced in the moment between.
        Ok(to) if !is_same(&to) => return originals.put_back(digest, &to),
        Ok(_) => {}
        Err(error) => {
            tracing::warn!(%digest, %error, "a damaged original cannot be kept for a look");
            return originals.remove(digest);
        }
    }
    originals.taken(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damaged(originals: &Originals, digest: &BlobDigest) -> Damaged {
        match check(originals, digest, &mut |_| true).unwrap() {
            Verdict::Damaged(damaged) => damaged,
            other => panic!("{other:?}"),
        }
    }

    /// Inode numbers are given out again: what was fetched anew must not pass for what was read.
    #[test]
    fn a_file_that_came_in_the_place_of_the_damaged_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let originals = Originals::open(dir.path()).unwrap();
        let digest = BlobDigest::of(b"abc");
        for _ in 0..50 {
            originals.put(&digest, b"abc").unwrap();
            fs::write(originals.path(&digest), b"abd").unwrap();
            let damaged = damaged(&originals, &digest);
            originals.remove(&digest).unwrap();
            originals.put(&digest, b"abc").unwrap();
            set_aside(&originals, &digest, &damaged, || Ok(dir.path().join("aside"))).unwrap();
            assert_eq!(fs::read(originals.path(&digest)).unwrap(), b"abc");
            assert!(!dir.path().join("aside").exists());
            originals.remove(&digest).unwrap();
        }
    }

    #[test]
    fn damage_that_cannot_be_kept_for_a_look_is_a_miss_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let originals = Originals::open(dir.path()).unwrap();
        let digest = BlobDigest::of(b"abc");
        originals.put(&digest, b"abc").unwrap();
        originals.open_file(&digest).unwrap();
        fs::write(originals.path(&digest), b"abd").unwrap();
        let damaged = damaged(&originals, &digest);
        set_aside(&originals, &digest, &damaged, || Err(io::ErrorKind::StorageFull.into())).unwrap();
        assert!(originals.get(&digest).unwrap().is_none() && originals.file_at_hand(&digest).is_none());
    }

    #[test]
    fn what_cannot_be_opened_is_neither_whole_nor_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let originals = Originals::open(dir.path()).unwrap();
        let digest = BlobDigest::of(b"abc");
        let path = originals.path(&digest);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&path, &path).unwrap();
        let verdict = check(&originals, &digest, &mut |_| true).unwrap();
        assert!(matches!(verdict, Verdict::Closed(_)), "{verdict:?}");
    }
}
