//! One original: whether it is what its name says, and away with it if not.
//!
//! In: a digest. Out: a verdict. Invariant: looking is no use of it, and keeps nobody from evicting it. Only the file
//! that was read is moved: one that came in its place meanwhile stays.
//! Not here: which originals ([`super::pass`]).

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use headstart_layer_format::BlobDigest;

use crate::store::{hasher::BlobHasher, originals::Originals};

/// Read at once, and the longest step between two looks at the clock.
const PIECE: usize = 256 << 10;

/// What was read.
#[derive(Debug)]
pub enum Verdict {
    Whole,
    /// Evicted meanwhile, or the scrub was told to stop.
    Gone,
    Damaged(Damaged),
}

/// The file that was read.
#[derive(Debug)]
pub struct Damaged {
    pub why: &'static str,
    inode: u64,
}

/// Reads an original. `step` is told the bytes and asked whether to go on.
pub fn check(originals: &Originals, digest: &BlobDigest, step: &mut dyn FnMut(u64) -> bool) -> io::Result<Verdict> {
    let mut file = match File::open(originals.path(digest)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Verdict::Gone),
        Err(error) => return Err(error),
    };
    let inode = file.metadata()?.ino();
    let damaged = |why| Ok(Verdict::Damaged(Damaged { why, inode }));
    let mut hasher = BlobHasher::of(digest);
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => {
                hasher.update(&piece[..n]);
                if !step(n as u64) {
                    return Ok(Verdict::Gone);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return damaged("it cannot be read"),
        }
    }
    match hasher.finish() == *digest {
        true => Ok(Verdict::Whole),
        false => damaged("its bytes are not what its digest names"),
    }
}

/// Moves the damaged file to `to`; the next request fetches the blob again.
pub fn set_aside(originals: &Originals, digest: &BlobDigest, damaged: &Damaged, to: &Path) -> io::Result<()> {
    let path = originals.path(digest);
    let is_same = |path: &Path| fs::metadata(path).is_ok_and(|m| m.ino() == damaged.inode);
    if !is_same(&path) {
        // Evicted, and perhaps fetched again.
        return Ok(());
    }
    fs::rename(&path, to)?;
    if !is_same(to) {
        // Replaced in the moment between.
        return fs::rename(to, &path);
    }
    originals.moved_away(digest);
    if let Some(parent) = path.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}
