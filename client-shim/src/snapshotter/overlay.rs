//! What this kernel's overlayfs wants to be told.
//!
//! In: /sys and /proc. Out: [`OverlayOptions`]. Invariant: looked up once, at start.
//! Not here: the mounts themselves ([`super::mounts`]); nobody in this crate mounts an overlay, containerd does.

use std::fs;
use std::path::Path;

/// Options given with every overlay mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OverlayOptions(Vec<String>);

impl OverlayOptions {
    /// Asks the running kernel.
    pub fn detect() -> Self {
        Self::from_files(
            Path::new("/sys/module/overlay/parameters"),
            Path::new("/proc/self/uid_map"),
        )
    }

    fn from_files(parameters: &Path, uid_map: &Path) -> Self {
        let mut options = Vec::new();
        // One lower directory under many overlays at once is this snapshotter's normal case; the inode index refuses
        // that with EBUSY or ESTALE (kernel docs, overlayfs, "Sharing and copying layers").
        if parameters.join("index").exists() {
            options.push("index=off".to_owned());
        }
        // trusted.* attributes cannot be set inside a user namespace.
        if fs::read_to_string(uid_map).is_ok_and(|map| !is_whole_range(&map)) {
            options.push("userxattr".to_owned());
        }
        Self(options)
    }

    pub fn as_slice(&self) -> &[String] {
        &self.0
    }
}

/// The initial user namespace maps every id to itself.
fn is_whole_range(uid_map: &str) -> bool {
    let numbers: Vec<&str> = uid_map.split_ascii_whitespace().collect();
    numbers == ["0", "0", "4294967295"]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_follow_the_kernel_and_the_namespace() {
        let dir = tempfile::tempdir().unwrap();
        let map = dir.path().join("uid_map");
        fs::write(&map, "         0          0 4294967295\n").unwrap();
        assert_eq!(OverlayOptions::from_files(dir.path(), &map).as_slice(), [""; 0]);
        fs::write(dir.path().join("index"), "N\n").unwrap();
        assert_eq!(OverlayOptions::from_files(dir.path(), &map).as_slice(), ["index=off"]);
        fs::write(&map, "0 100000 65536\n").unwrap();
        assert_eq!(
            OverlayOptions::from_files(dir.path(), &map).as_slice(),
            ["index=off", "userxattr"]
        );
    }
}
