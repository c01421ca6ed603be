//! The tools of Debian that a playground runs.
//!
//! In: `PATH`. Out: a list of what is missing, in one message.
//! Invariant: nothing is skipped silently: a missing tool is an error that says how to get it.
//! Not here: installing (`scripts/install-packages.sh`).

use std::path::PathBuf;

use super::{PlaygroundError, Result};

/// What every playground needs.
const ALWAYS: &[&str] = &["containerd", "ctr", "runc", "docker-registry"];
/// What building the demo image needs besides.
pub const BUILD: &[&str] = &["buildah", "debootstrap", "python3", "tar"];

/// Directories of Debian's `PATH` for root that a caller's `PATH` may lack.
const EXTRA_DIRS: &[&str] = &["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// Where `tool` is, if it is anywhere.
pub fn find(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(EXTRA_DIRS.iter().map(PathBuf::from))
        .map(|dir| dir.join(tool))
        .find(|file| file.is_file())
}

/// Fails with all missing tools at once, so that nobody fixes them one by one.
pub fn require(more: &[&str]) -> Result<()> {
    let missing: Vec<String> = ALWAYS
        .iter()
        .chain(more)
        .filter(|t| find(t).is_none())
        .map(|t| (*t).to_owned())
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(PlaygroundError::ToolsMissing(missing))
    }
}

/// Mounting, chroot and containers need it; without it everything fails later and less clearly.
pub fn require_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        Ok(())
    } else {
        Err(PlaygroundError::NotRoot)
    }
}
