//! pigz, unpigz and zopfli, beside the system: other writers of gzip, and the reader that containerd prefers. And the stargz
//! snapshotter's `ctr`, which makes eStargz.
//!
//! In: the directory that `scripts/gzip-tools.sh` makes. Out: paths of the programs.
//! Invariant: nothing is installed, so no other containerd of this machine finds them.
//! Not here: who uses them.

use std::{path::PathBuf, process::Command};

use super::{PlaygroundError, Result, site::Site};

#[derive(Clone, Debug)]
pub struct GzipTools {
    dir: PathBuf,
}

impl GzipTools {
    /// The programs, fetched now if they are not there.
    pub fn open(site: &Site) -> Result<GzipTools> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/gzip-tools.sh");
        let mut make = Command::new(script);
        if std::env::var_os("HEADSTART_GZIP_TOOLS").is_none() {
            make.env("HEADSTART_GZIP_TOOLS", site.cache_dir.with_file_name("gzip-tools"));
        }
        let output = make.output().map_err(PlaygroundError::io("run gzip-tools.sh"))?;
        let dir = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        if ["unpigz", "zopfli", "ctr-remote"]
            .iter()
            .all(|tool| dir.join(tool).is_file())
        {
            return Ok(GzipTools { dir });
        }
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(PlaygroundError::unexpected("fetch pigz, zopfli and ctr-remote", why))
    }

    pub fn find(&self, tool: &str) -> PathBuf {
        self.dir.join(tool)
    }

    /// `PATH` with these first.
    pub fn path(&self) -> String {
        let path = std::env::var("PATH").unwrap_or_default();
        format!("{}:{path}", self.dir.display())
    }
}
