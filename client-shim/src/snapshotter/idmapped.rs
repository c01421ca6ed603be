//! The lower directories of a snapshot with other owners, for a container in a user namespace.
//!
//! In: a snapshot's number, the directories below it, a mapping. Out: the same directories on idmapped mounts of our own,
//! `<root>/ids/<number>/<n>`. Invariant: they go with their snapshot; what a killed shim left of snapshots that are gone is
//! undone at the next start; a mount that shows another directory than it should is made anew.
//! Not here: who asks for a mapping ([`super::idmap`]), layers (a mount here keeps what it shows in use by itself).
//!
//! containerd 2 can do this on its own (`uidmap=` among a mount's options), but only for directories of one mount: it clones
//! the directory that they have in common, without the mounts below it. Layers that are mounts would be empty.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

use super::idmap::{self, IdMap};
use super::record::SnapshotId;

const NAME: &str = "ids";

/// The mounts below one root directory.
#[derive(Clone, Debug)]
pub struct IdMapped {
    dir: PathBuf,
}

impl IdMapped {
    /// Undoes what belongs to none of `snapshots`. Blocks.
    pub fn open(root: &Path, snapshots: impl Fn(SnapshotId) -> bool) -> Self {
        let mapped = Self { dir: root.join(NAME) };
        for entry in fs::read_dir(&mapped.dir).into_iter().flatten().flatten() {
            let id = entry.file_name().to_str().and_then(|n| n.parse().ok()).map(SnapshotId);
            if !id.is_some_and(&snapshots) {
                undo(&entry.path());
            }
        }
        mapped
    }

    /// `lower` with other owners. Blocks for as long as a process takes to start.
    pub fn show(&self, id: SnapshotId, lower: &[PathBuf], ids: &IdMap) -> io::Result<Vec<PathBuf>> {
        let dir = self.dir.join(id.0.to_string());
        fs::create_dir_all(&dir)?;
        // One namespace for all of them, and only if one is needed.
        let mut namespace: Option<OwnedFd> = None;
        let mut shown = Vec::with_capacity(lower.len());
        for (n, from) in lower.iter().enumerate() {
            let at = dir.join(n.to_string());
            if !is_same(from, &at) {
                detach(&at);
                fs::create_dir_all(&at)?;
                let namespace = match &namespace {
                    Some(namespace) => namespace,
                    None => namespace.insert(idmap::user_namespace(ids)?),
                };
                let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
                let tree = open_tree(rustix::fs::CWD, from, flags)?;
                idmap::set_idmap(&tree, namespace)?;
                move_mount(&tree, "", rustix::fs::CWD, &at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
            }
            shown.push(at);
        }
        Ok(shown)
    }

    /// The snapshot is gone. Whoever has one of its mounts in use keeps it.
    pub fn forget(&self, id: SnapshotId) {
        undo(&self.dir.join(id.0.to_string()));
    }
}

/// Whether the mount shows that directory; its owner is another, its number is not.
fn is_same(from: &Path, at: &Path) -> bool {
    match (fs::symlink_metadata(from), fs::symlink_metadata(at)) {
        (Ok(from), Ok(at)) => (from.dev(), from.ino()) == (at.dev(), at.ino()),
        _ => false,
    }
}

fn detach(at: &Path) {
    // A mount may lie on another one; what is not mounted is an error, and the end.
    while unmount(at, UnmountFlags::DETACH).is_ok() {}
}

/// Unmounts what is in `dir`, and removes it. Never what is below a mount: directories are removed only when empty.
fn undo(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        detach(&entry.path());
        let _ = fs::remove_dir(entry.path());
    }
    if let Err(error) = fs::remove_dir(dir)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %dir.display(), %error, "idmapped mounts not removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshotter::idmap::{GID_MAPPING, UID_MAPPING};

    fn ids(uid: &str) -> IdMap {
        let labels = [
            (UID_MAPPING.into(), uid.into()),
            (GID_MAPPING.into(), "0:7000:10".into()),
        ]
        .into();
        IdMap::from_labels(&labels).unwrap().unwrap()
    }

    #[test]
    fn a_snapshots_directories_have_other_owners_until_it_goes() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: not root");
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let lower: Vec<PathBuf> = ["a", "b"].map(|n| root.path().join(n)).into();
        for dir in &lower {
            fs::create_dir(dir).unwrap();
            fs::write(dir.join("file"), b"x").unwrap();
        }
        let mapped = IdMapped::open(root.path(), |_| false);
        let shown = mapped.show(SnapshotId(3), &lower, &ids("0:9000:10")).unwrap();
        let owner = |path: PathBuf| fs::metadata(path).map(|m| (m.uid(), m.gid())).unwrap();
        assert_eq!(owner(shown[1].join("file")), (9000, 7000));
        assert_eq!(owner(lower[1].join("file")), (0, 0));
        // Again: the same mounts.
        assert_eq!(mapped.show(SnapshotId(3), &lower, &ids("0:9000:10")).unwrap(), shown);
        // Another directory in its place is mounted anew, as when layers are shown elsewhere after a restart.
        let turned = [lower[1].clone(), lower[0].clone()];
        fs::write(lower[1].join("only"), b"").unwrap();
        mapped.show(SnapshotId(3), &turned, &ids("0:9000:10")).unwrap();
        assert!(shown[0].join("only").exists() && !shown[1].join("only").exists());
        // A start keeps those of snapshots that are there.
        IdMapped::open(root.path(), |id| id == SnapshotId(3));
        assert_eq!(owner(shown[0].join("file")), (9000, 7000));
        mapped.forget(SnapshotId(3));
        assert!(!root.path().join("ids/3").exists() && lower[0].join("file").exists());
        mapped.show(SnapshotId(4), &lower, &ids("0:9000:10")).unwrap();
        IdMapped::open(root.path(), |_| false);
        assert!(!root.path().join("ids/4").exists() && lower[0].join("file").exists());
        // A range over what ids there are is refused, and leaves nothing mounted.
        assert!(mapped.show(SnapshotId(5), &lower, &ids("4294967290:1:100")).is_err());
        mapped.forget(SnapshotId(5));
    }
}
