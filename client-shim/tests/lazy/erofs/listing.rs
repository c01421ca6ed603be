//! Everything a process can find out about a tree, to compare two of them.
//!
//! In: a directory. Out: path -> text. Invariant: two trees with equal listings cannot be told apart by `lstat`, `readlink`,
//! `listxattr`, `getxattr`, `read`, but for inode numbers (named by a path of theirs here), block counts, and what a
//! filesystem says of a directory's size. Not here: what is expected.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use headstart_layer_format::ChunkDigest;

pub type Listing = BTreeMap<Vec<u8>, String>;

pub fn listing(root: &Path) -> Listing {
    let mut out = Listing::new();
    let mut pending = vec![root.to_owned()];
    let mut firsts: HashMap<u64, Vec<u8>> = HashMap::new();
    while let Some(path) = pending.pop() {
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        let stat = fs::symlink_metadata(&path).unwrap();
        let kind = stat.file_type();
        if kind.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        let size = if kind.is_dir() { 0 } else { stat.len() };
        let mut text = format!(
            "{:o} {}:{} {}.{:09} links {} rdev {} size {size}",
            stat.mode(),
            stat.uid(),
            stat.gid(),
            stat.mtime(),
            stat.mtime_nsec(),
            stat.nlink(),
            stat.rdev()
        );
        let mut attributes: Vec<_> = xattr::list(&path)
            .unwrap()
            .map(|n| (n.clone(), xattr::get(&path, &n).unwrap()))
            .collect();
        attributes.sort();
        text += &format!(" {attributes:?}");
        if kind.is_symlink() {
            text += &format!(" -> {:?}", fs::read_link(&path).unwrap().into_os_string().into_vec());
        } else if kind.is_file() {
            // A digest that is at hand; any would do.
            text += &format!(" {}", ChunkDigest::of(&fs::read(&path).unwrap()));
        }
        let first = firsts.entry(stat.ino()).or_insert_with(|| name.clone()).clone();
        // The order of a walk differs between filesystems, so a file with several names is told by the least of them.
        if first != name {
            let least = first.min(name.clone());
            firsts.insert(stat.ino(), least);
        }
        text += &format!(" inode {}", stat.ino());
        out.insert(name, text);
    }
    for text in out.values_mut() {
        let (rest, ino) = text.rsplit_once(' ').unwrap();
        *text = format!("{rest} {:?}", firsts[&ino.parse().unwrap()]);
    }
    out
}
