//! What a killed server may not leave behind.
//!
//! In: a data directory in use. Out: paths that have no business there; how much is kept. Invariant: a file that is no original by its name
//! is found, and so is one whose bytes are not what its name says.
//! Not here: what is inside packs (`fsck` looks there).

use std::{fmt::Write as _, path::Path, time::Duration};

use headstart_layer_format::BlobDigest;

use crate::process::data;

/// What may lie in a data directory: `server/STORE.md`. Not those that exist for a while, as `index.rows`.
const TOP: [&str; 8] = [
    "packs",
    "index",
    "store.lock",
    "originals",
    "scrub.json",
    "admin.sock",
    "profiles",
    "lists",
];

/// Files below `originals/` that are no verified original, except the mark of the boot, and whatever else has no
/// business in the data directory. Waits until fetches are out.
pub async fn leftovers(dir: &Path) -> String {
    let mut found = String::new();
    for _ in 0..100 {
        found.clear();
        let mut todo = vec![data(dir).join("originals")];
        while let Some(next) = todo.pop() {
            for entry in std::fs::read_dir(next).unwrap().flatten() {
                let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
                if path.is_dir() {
                    todo.push(path);
                } else if name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
                    // A file may be published between the look and here, never taken back but by eviction.
                    let Ok(bytes) = std::fs::read(&path) else { continue };
                    assert_eq!(
                        BlobDigest::of(&bytes).hex(),
                        name,
                        "an original is not what its name says"
                    );
                } else if name != "boot-id" {
                    let _ = writeln!(found, "{}", path.display());
                }
            }
        }
        for entry in std::fs::read_dir(data(dir)).unwrap().flatten() {
            if !TOP.iter().any(|name| entry.file_name() == *name) {
                let _ = writeln!(found, "{}", entry.path().display());
            }
        }
        for entry in std::fs::read_dir(data(dir).join("packs")).unwrap().flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|kind| kind != "pack") {
                let _ = writeln!(found, "{}", path.display());
            }
        }
        if found.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    found
}

/// Bytes of the files below `originals/`.
pub fn originals_bytes(dir: &Path) -> u64 {
    let (mut bytes, mut todo) = (0, vec![data(dir).join("originals")]);
    while let Some(next) = todo.pop() {
        for entry in std::fs::read_dir(next).unwrap().flatten() {
            match entry.metadata() {
                Ok(of) if of.is_dir() => todo.push(entry.path()),
                Ok(of) => bytes += of.len(),
                // Evicted between the look and here.
                Err(_) => {}
            }
        }
    }
    bytes
}
