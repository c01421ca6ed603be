//! Layer blobs as files.
//!
//! In: a path. Out: its digest and size. Invariant: a name that is a digest (as in an OCI layout's `blobs/sha256/`) is
//! believed here, because whoever reads the blob verifies it; any other file is hashed.
//! Not here: what is in it.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use headstart_layer_format::BlobDigest;

use super::CliError;
use crate::store::hasher::BlobHasher;

const BUFFER: usize = 256 << 10;

#[derive(Clone, Debug)]
pub struct LocalBlob {
    pub path: PathBuf,
    pub digest: BlobDigest,
    pub size: u64,
}

impl LocalBlob {
    pub fn of(path: &Path) -> Result<Self, CliError> {
        let error = |error| CliError::File {
            what: "read",
            path: path.to_owned(),
            error,
        };
        let mut file = File::open(path).map_err(error)?;
        let size = file.metadata().map_err(error)?.len();
        let digest = match by_name(path) {
            Some(digest) => digest,
            None => {
                let mut hasher = BlobHasher::of(&BlobDigest::of(b""));
                let mut buffer = vec![0; BUFFER];
                loop {
                    let n = file.read(&mut buffer).map_err(error)?;
                    if n == 0 {
                        break hasher.finish();
                    }
                    hasher.update(&buffer[..n]);
                }
            }
        };
        let path = path.to_owned();
        Ok(Self { path, digest, size })
    }

    pub fn open(&self) -> Result<File, CliError> {
        File::open(&self.path).map_err(|error| CliError::File {
            what: "read",
            path: self.path.clone(),
            error,
        })
    }
}

/// `.../sha256/HEX`.
fn by_name(path: &Path) -> Option<BlobDigest> {
    let algorithm = path.parent()?.file_name()?.to_str()?;
    format!("{algorithm}:{}", path.file_name()?.to_str()?).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_names_its_blobs_and_other_files_are_hashed() {
        let dir = tempfile::tempdir().unwrap();
        let digest = BlobDigest::of(b"abc");
        let blobs = dir.path().join("sha256");
        std::fs::create_dir(&blobs).unwrap();
        // Whoever reads it finds out.
        std::fs::write(blobs.join(digest.hex()), b"other").unwrap();
        std::fs::write(dir.path().join("layer.tar"), b"abc").unwrap();
        let named = LocalBlob::of(&blobs.join(digest.hex())).unwrap();
        assert_eq!((named.digest, named.size), (digest, 5));
        assert_eq!(LocalBlob::of(&dir.path().join("layer.tar")).unwrap().digest, digest);
        let missing = LocalBlob::of(&dir.path().join("none")).unwrap_err().to_string();
        assert!(missing.starts_with("read ") && missing.contains("none"), "{missing}");
    }
}
