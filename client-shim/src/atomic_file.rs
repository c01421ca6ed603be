//! Replacing a small file as one step.
//!
//! In: a directory, a name, bytes. Out: the file has either its old or its new bytes, whatever happens when.
//! Invariant: new bytes are durable before the name points at them; the name is durable when `replace` returns. What is
//! `put` is whole for every process that looks, but power loss may take it, or tear it.
//! Not here: locking; callers have one writer a file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

pub(crate) fn replace(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.new"));
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, dir.join(name))?;
    sync_dir(dir)
}

/// As [`replace`], for files whose damage is noticed and costs little. Waits for no disk.
pub(crate) fn put(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.new"));
    std::fs::write(&temporary, bytes)?;
    std::fs::rename(&temporary, dir.join(name))
}

/// Makes a file that was put durable.
pub(crate) fn settle(dir: &Path, name: &str) -> io::Result<()> {
    File::open(dir.join(name))?.sync_all()
}

pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The bytes of a file, an error if it has more than `size_max`.
pub(crate) fn read_bounded(path: &Path, size_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(size_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > size_max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is over its limit"));
    }
    Ok(bytes)
}
