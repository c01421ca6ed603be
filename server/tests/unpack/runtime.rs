//! A real containerd that unpacks layers, and the comparison with what we make of them.
//!
//! In: a blob and its media type. Out: what containerd did, what we did, and every difference.
//! Invariant: an attribute that is not compared is named here, with the reason.
//! Not here: layers (the other files).

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use bytes::Bytes;
use headstart_layer_format::Toc;
use headstart_loadtest::check::{Field, FileTree, NodeKind, Overlook, compare_trees};
use headstart_loadtest::playground::containerd::{Containerd, Release, Snapshotter};
use headstart_loadtest::playground::{tools, workdir::WorkDir};
use headstart_loadtest::unpack::Unpacker;

pub const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";

/// What we refuse and containerd unpacks: its result hangs on the machine it unpacks on (a link's `..` behind another link is
/// first looked up outside the layer; loops of links), or is not a file of the layer at all.
const STRICTER: [&str; 3] = [
    "a symlink in it goes up in a way that unpackers read differently",
    "too many symlinks in it",
    "a hard link to a whiteout",
];

pub struct Runtime {
    unpacker: Unpacker,
    upper: PathBuf,
    count: AtomicU32,
    tokio: tokio::runtime::Runtime,
    // Ended in this order.
    containerd: Containerd,
    work: WorkDir,
}

/// What became of a layer, here and there.
pub struct Verdicts {
    pub theirs: Result<FileTree, String>,
    pub ours: Result<FileTree, String>,
}

impl Runtime {
    pub fn start(release: Release) -> Self {
        tools::require_root().and_then(|()| tools::require(&[])).unwrap();
        let tokio = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let work = WorkDir::create().unwrap();
        let hosts = work.dir("certs.d").unwrap();
        let upper = work.dir("upper").unwrap();
        let (containerd, unpacker) = tokio.block_on(async {
            let started = Containerd::start_release(&work, "unpacker", release, &Snapshotter::Overlayfs, &hosts).await;
            let containerd = started.unwrap();
            let unpacker = Unpacker::connect(&containerd.socket).await.unwrap();
            (containerd, unpacker)
        });
        Self {
            unpacker,
            upper,
            count: AtomicU32::new(0),
            tokio,
            containerd,
            work,
        }
    }

    pub fn work(&self) -> &WorkDir {
        &self.work
    }

    /// containerd's.
    pub fn socket(&self) -> &Path {
        &self.containerd.socket
    }

    pub fn wait<F: Future>(&self, work: F) -> F::Output {
        self.tokio.block_on(work)
    }

    /// Unpacks with containerd into a new directory, and converts.
    pub fn unpack(&self, blob: &[u8], media_type: &str) -> Verdicts {
        let dir = self.upper.join(self.count.fetch_add(1, Ordering::Relaxed).to_string());
        std::fs::create_dir(&dir).unwrap();
        let theirs = self.their_tree(blob, media_type, &dir);
        std::fs::remove_dir_all(&dir).unwrap();
        let ours = headstart_server::fuzz::converted(blob).map(|(toc, data)| {
            let toc = Toc::decode(&toc).unwrap();
            if let Ok((diff_id, _)) = &theirs {
                assert_eq!(toc.diff_id().to_string(), *diff_id, "the DiffIDs differ");
            }
            FileTree::of_toc_shown(&toc, &data)
        });
        Verdicts {
            theirs: theirs.map(|(_, tree)| tree),
            ours,
        }
    }

    /// The same for many at once: most of the time containerd waits for the disk.
    pub fn each(&self, count: u64, one: impl Fn(u64) + Sync) {
        let next = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while let Some(n) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&n| n < count) {
                        one(n);
                    }
                });
            }
        });
    }

    fn their_tree(&self, blob: &[u8], media_type: &str, dir: &Path) -> Result<(String, FileTree), String> {
        let unpacked = self.unpacker.unpack(Bytes::copy_from_slice(blob), media_type, dir, &[]);
        let diff_id = self.tokio.block_on(unpacked).unwrap()?;
        let mut tree = FileTree::of_directory(dir).unwrap();
        tree.read_contents().unwrap();
        Ok((diff_id, tree))
    }
}

impl Verdicts {
    /// `None` when both say the same: the same tree, or that it cannot be unpacked.
    pub fn difference(&self) -> Option<String> {
        match (&self.theirs, &self.ours) {
            (Err(_), Err(_)) => None,
            (Ok(theirs), Ok(ours)) => different(theirs, ours),
            (Err(theirs), Ok(_)) => Some(format!("we convert what containerd does not unpack: {theirs}")),
            (Ok(_), Err(ours)) if STRICTER.iter().any(|reason| ours.ends_with(reason)) => None,
            (Ok(_), Err(ours)) => Some(format!("we refuse what containerd unpacks: {ours}")),
        }
    }

    /// Whether both have a tree.
    pub fn unpacked(&self) -> bool {
        self.theirs.is_ok() && self.ours.is_ok()
    }
}

fn different(theirs: &FileTree, ours: &FileTree) -> Option<String> {
    let mut ours = ours.clone();
    let mut overlook = Overlook::nothing()
        // The root is the snapshotter's directory: the layer says nothing of it but that it is opaque.
        .field_at("", Field::Mode)
        .field_at("", Field::Owner)
        .field_at("", Field::Mtime);
    let device_0 = NodeKind::CharDevice { major: 0, minor: 0 };
    for (path, node) in &mut ours.0 {
        if node.kind == device_0 {
            // A whiteout: overlayfs looks at nothing but what it is.
            overlook = overlook
                .field_at(path, Field::Mtime)
                .field_at(path, Field::Owner)
                .field_at(path, Field::Mode);
        }
        if node.implied {
            // Made when something below it is: the time of unpacking. Owner and mode are compared.
            overlook = overlook.field_at(path, Field::Mtime);
            node.implied = false;
            node.mode = 0o755;
        }
    }
    let differences = compare_trees(theirs, &ours, &overlook).unwrap();
    (!differences.is_empty()).then(|| format!("containerd (left), we (right): {differences}"))
}
