//! The programs under test.
//!
//! In: the directory cargo built into. Out: paths of the server and the shim.
//! Invariant: a missing one is an error that says how to build it; an old one from elsewhere is never used.
//! Not here: building.

use std::path::{Path, PathBuf};

use super::{PlaygroundError, Result};

#[derive(Clone, Debug)]
pub struct Binaries {
    pub server: PathBuf,
    pub shim: PathBuf,
}

impl Binaries {
    pub fn in_dir(dir: &Path) -> Result<Binaries> {
        let find = |name: &str| {
            let path = dir.join(name);
            if path.is_file() {
                Ok(path)
            } else {
                Err(PlaygroundError::BinaryMissing(path))
            }
        };
        Ok(Binaries {
            server: find("headstart-server")?,
            shim: find("headstart-shim")?,
        })
    }
}
