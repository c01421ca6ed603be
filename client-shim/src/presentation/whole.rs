//! Who reads a layer of which every byte is here.
//!
//! In: the configuration, the kernel's release, a trial. Out: [`Whole`]. Invariant: the kernel reads a local file only where it is
//! known to do that rightly, or where somebody said so: what is wrong elsewhere are races, which no trial finds.
//! Not here: the mount (`erofs_tree.rs`, `replace.rs`), the trial (`probe.rs`).
//!
//! # What kernels did wrong, with a file below an EROFS image
//! Mended in                     | what
//! ------------------------------|----------------------------------------------------------------------------------------------
//! 6.12.72, 6.18.11, 6.19.1, 7.0 | CVE-2026-23224, with `directio`: a request is used after it was freed, if the disk is quicker than
//!                               | the way back from asking it. The report's trace has a compressed image; plain ones, as ours, come
//!                               | to the same lines.
//! 6.12.80, 6.18.21, 6.19.11, 7.0| without `directio`: a reader that is killed in the middle leaves zeros in the page cache, for
//!                               | everybody. What this process answers is read by one request each, which is all or nothing.
//!
//! Why directly: the kernel caches a file of the image anyway. Cached below as well, it takes twice the memory, and what is read by
//! pieces (small files, random access) brings 100 to 300 KiB for each 4 KiB, measured on a disk whose read-ahead is 8 MiB.

use super::ProbeError;
use crate::cache::WholeLayers;

/// What is done with a layer that is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whole {
    /// The kernel reads its file, past the page cache of the filesystem below.
    Direct,
    /// The kernel reads its file.
    Cached,
    /// This process is asked, as for any other.
    Asked,
}

/// First releases that have both mends, of the series that are cared for. All others before 7.0 have none, as far as their numbers
/// say: a distribution that put them into an older kernel has its users set `whole_layers`.
const SINCE: [(u32, u32, u32); 3] = [(6, 12, 80), (6, 18, 21), (6, 19, 11)];

impl Whole {
    /// `trial` reads a file directly, where layers are kept.
    pub(super) fn choose(wanted: WholeLayers, release: &str, trial: impl FnOnce() -> Result<(), ProbeError>) -> Self {
        match wanted {
            WholeLayers::Asked => return Self::Asked,
            WholeLayers::Cached => return Self::Cached,
            WholeLayers::Auto if !is_trusted(release) => return Self::Asked,
            WholeLayers::Auto | WholeLayers::Direct => {}
        }
        match trial() {
            Ok(()) => Self::Direct,
            Err(error) => {
                tracing::warn!(%error, "whole-layers-not-read-directly");
                Self::Cached
            }
        }
    }
}

/// Of the kernel that runs.
pub(super) fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Whether the kernel that runs is given whole layers without being told so.
pub fn kernel_is_trusted() -> bool {
    is_trusted(&release())
}

fn is_trusted(release: &str) -> bool {
    let Some((major, minor, patch)) = numbers(release) else {
        return false;
    };
    // The second mend came after 7.0-rc4.
    let early = (major, minor) == (7, 0) && release.contains("-rc");
    let since = SINCE.iter().find(|since| (major, minor) == (since.0, since.1));
    match since {
        Some(since) => patch >= since.2,
        None => major >= 7 && !early,
    }
}

/// `6.18.44-3-amd64`: three numbers, and then something else. A distribution that counts otherwise has no third, or a small one.
fn numbers(release: &str) -> Option<(u32, u32, u32)> {
    let end = release
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(release.len());
    let mut parts = release[..end].split('.').map(|part| part.parse().ok());
    let (major, minor) = (parts.next()??, parts.next()??);
    Some((major, minor, parts.next().flatten().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "6.18.44-fc";
    const OLD: &str = "6.18.20";

    #[test]
    fn kernels_that_may_have_the_faults_are_not_trusted() {
        for yes in [
            "6.12.80",
            "6.12.95+deb13-amd64",
            "6.18.21",
            "6.18.44-fc\n",
            "6.19.11-1-default",
            "7.0.0-generic",
            "7.1-rc1",
            "7.1.2",
            "8.0.0",
        ] {
            assert!(is_trusted(yes), "{yes}");
        }
        for no in [
            "",
            "?",
            "6",
            "6.12.79",
            "6.12.0-211.el10",
            "6.14.0-37-generic",
            "6.17.13",
            OLD,
            "6.18",
            "6.19.10",
            "7.0-rc1",
            "7.0.0-rc4-next",
            "5.15.200",
            "99999999999.1.1",
        ] {
            assert!(!is_trusted(no), "{no}");
        }
    }

    #[test]
    fn files_are_read_directly_where_that_was_tried_and_the_kernel_is_known() {
        let bad = || Err(ProbeError::Late);
        let never = || -> Result<(), ProbeError> { panic!("nothing to try") };
        for (wanted, release, direct) in [
            (WholeLayers::Auto, GOOD, true),
            (WholeLayers::Auto, OLD, false),
            (WholeLayers::Direct, GOOD, true),
            (WholeLayers::Direct, OLD, true),
        ] {
            match direct {
                true => assert_eq!(Whole::choose(wanted, release, || Ok(())), Whole::Direct),
                false => assert_eq!(Whole::choose(wanted, release, never), Whole::Asked),
            }
        }
        assert_eq!(Whole::choose(WholeLayers::Auto, GOOD, bad), Whole::Cached);
        assert_eq!(Whole::choose(WholeLayers::Cached, OLD, never), Whole::Cached);
        assert_eq!(Whole::choose(WholeLayers::Asked, GOOD, never), Whole::Asked);
    }
}
