//! What a directory tree occupies on its disk.
//!
//! In: a directory. Out: allocated bytes and inodes, each inode counted once however many links it has.
//! Invariant: a tree that changes meanwhile (a running container's) is no error; what vanished is not counted.
//! Not here: lazy layers, whose bytes are in the cache (`NodeLayers::usage`).

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::record::Usage;

/// Unit of `st_blocks`, whatever the filesystem's block size (stat(2)).
const STAT_BLOCK_SIZE: u64 = 512;

/// Measures `root` itself and all below it. Paths longer than the kernel resolves in one step are left out: only a
/// container that tries makes those, and an estimate that is too low harms nobody.
pub fn disk_usage(root: &Path) -> std::io::Result<Usage> {
    let mut usage = Usage::default();
    let mut linked = HashSet::new();
    let mut pending = vec![root.to_owned()];
    let mut count = |meta: &fs::Metadata| {
        if meta.nlink() < 2 || meta.is_dir() || linked.insert((meta.dev(), meta.ino())) {
            usage.size += meta.blocks() * STAT_BLOCK_SIZE;
            usage.inodes += 1;
        }
    };
    count(&fs::symlink_metadata(root)?);
    while let Some(dir) = pending.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            count(&meta);
            if meta.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    Ok(usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hard_links_count_once_and_holes_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("sub");
        fs::create_dir(&sub).unwrap();
        fs::write(sub.join("a"), vec![1; 8192]).unwrap();
        fs::hard_link(sub.join("a"), dir.path().join("b")).unwrap();
        fs::File::create(dir.path().join("hole"))
            .unwrap()
            .set_len(1 << 30)
            .unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
        let usage = disk_usage(dir.path()).unwrap();
        assert_eq!(usage.inodes, 5); // root, sub, a = b, hole, link
        assert!((8192..(1 << 20)).contains(&usage.size), "{}", usage.size);
        assert!(disk_usage(&dir.path().join("absent")).is_err());
    }
}
