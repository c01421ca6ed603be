//! Where things are on this machine: the binaries' target directory and the image cache in it.
//!
//! In: the running executable's path. Out: `TARGET/PROFILE` and `TARGET/playground`.
//! Invariant: works for the program (`target/release/x`), for tests (`target/debug/deps/x-hash`), and for a target
//! directory that is somewhere else.
//! Not here: the work directory of one run ([`super::workdir`]).

use std::path::{Path, PathBuf};

use super::{PlaygroundError, Result};

#[derive(Clone, Debug)]
pub struct Site {
    /// Where cargo put the binaries of the same profile.
    pub profile_dir: PathBuf,
    /// What outlives a run: the demo image. May be deleted at any time.
    pub cache_dir: PathBuf,
}

impl Site {
    pub fn of_this_executable() -> Result<Site> {
        let exe = std::env::current_exe().map_err(PlaygroundError::io("find this executable"))?;
        Site::of(&exe).ok_or_else(|| PlaygroundError::unexpected("find the target directory", exe.display()))
    }

    fn of(exe: &Path) -> Option<Site> {
        let dir = exe.parent()?;
        let profile_dir = if dir.file_name()? == "deps" { dir.parent()? } else { dir };
        Some(Site {
            profile_dir: profile_dir.to_owned(),
            cache_dir: profile_dir.parent()?.join("playground"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_tests_share_one_cache() {
        let program = Site::of(Path::new("/t/target/debug/headstart-loadtest")).unwrap();
        let test = Site::of(Path::new("/t/target/debug/deps/e2e-0123")).unwrap();
        assert_eq!(program.profile_dir, Path::new("/t/target/debug"));
        assert_eq!(test.profile_dir, program.profile_dir);
        assert_eq!(test.cache_dir, Path::new("/t/target/playground"));
        assert_eq!(program.cache_dir, test.cache_dir);
    }
}
