//! Layers among the files of a directory: an OCI layout, a registry's storage, or files by themselves.
//!
//! In: a directory. Out: files that are layers by their first bytes. Invariant: each content once, in the order of names.
//! Not here: manifests: what nothing refers to is a layer all the same.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use headstart_layer_format::BlobDigest;

/// Files that begin as gzip or zstd streams do, or have a tar's magic where a tar has it.
pub fn layer_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let (mut out, mut seen, mut todo) = (Vec::new(), HashSet::new(), vec![dir.to_owned()]);
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                todo.push(entry.path());
            } else if kind.is_file() && is_layer(&entry.path())? && seen.insert(digest(&entry.path())?) {
                out.push(entry.path());
            }
        }
    }
    out.sort();
    Ok(out)
}

fn is_layer(path: &Path) -> io::Result<bool> {
    let mut head = Vec::with_capacity(512);
    File::open(path)?.take(512).read_to_end(&mut head)?;
    Ok(match head.as_slice() {
        [0x1f, 0x8b, 8, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] => true,
        head => head.get(257..262) == Some(b"ustar"),
    })
}

fn digest(path: &Path) -> io::Result<BlobDigest> {
    Ok(BlobDigest::of(&std::fs::read(path)?))
}
