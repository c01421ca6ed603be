//! What a layer contains, as much of it as a node keeps in memory.
//!
//! In: a TOC, and the directory in which it is kept as it was served. Out: the chunk table and a few numbers at once; the whole TOC,
//! read again from that directory, for whoever needs the tree. Invariant: what is read again is the TOC of the recorded
//! digest, or an error; memory that stays is 56 bytes a chunk and 4 bytes a file. A tree of 60,000 files takes 20 MB, and
//! a node needs it only when an image or a tree file is written, a whole layer is checked, or a start told.
//! Not here: what answers for names while a layer is shown (`fuse/tree_file`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use headstart_layer_format::toc::{ChunkTable, Kind};
use headstart_layer_format::{BlobDigest, DiffId, Toc, TocDigest};

mod bodies;
mod encoded_toc;
mod toc_file;

pub use bodies::Bodies;
pub use encoded_toc::EncodedToc;

use crate::memory;

#[derive(Debug)]
pub struct Contents {
    dir: PathBuf,
    layer: BlobDigest,
    toc_digest: TocDigest,
    diff_id: DiffId,
    chunks: ChunkTable,
    bodies: Bodies,
    entries: u64,
    inodes: u64,
    has_implied: bool,
    /// The TOC while anybody has it. Held while it is read, so that it is read once.
    whole: Mutex<Weak<Toc>>,
}

impl Contents {
    /// Keeps a TOC in a directory, encoded. Durable only when it is settled.
    pub(crate) fn store(dir: &Path, toc: &Arc<Toc>, encoded: &EncodedToc) -> io::Result<Arc<Self>> {
        toc_file::save(dir, encoded.bytes())?;
        Ok(Self::of(dir, toc, *encoded.digest()))
    }

    /// `None` when the TOC is missing or damaged: the caller starts the layer over.
    pub(crate) fn load(dir: &Path, toc: &TocDigest, layer: &BlobDigest) -> Option<Arc<Self>> {
        Some(Self::of(dir, &toc_file::load(dir, toc, layer)?, *toc))
    }

    /// `dir`: where `toc` is kept. As long as the caller has `toc`, nothing is read.
    pub fn of(dir: &Path, toc: &Arc<Toc>, toc_digest: TocDigest) -> Arc<Self> {
        let tree = toc.tree();
        let is_implied = |kind: &Kind| matches!(kind, Kind::Directory { implied: true, .. });
        // The root's attributes are nobody's concern (`presentation/implied.rs`).
        let has_implied = tree.inodes().iter().skip(1).any(|inode| is_implied(&inode.kind));
        // Whoever has the TOC now will let it go.
        memory::will_be_freed();
        Arc::new(Self {
            dir: dir.to_owned(),
            layer: *toc.layer_digest(),
            toc_digest,
            diff_id: *toc.diff_id(),
            chunks: toc.chunks().clone(),
            bodies: Bodies::of(toc.skeleton()),
            entries: tree.entries().len() as u64,
            inodes: tree.inodes().len() as u64,
            has_implied,
            whole: Mutex::new(Arc::downgrade(toc)),
        })
    }

    /// Makes what was stored durable.
    pub(crate) fn settle(&self) -> io::Result<()> {
        toc_file::settle(&self.dir)
    }

    /// Digest of the original blob.
    pub fn layer(&self) -> &BlobDigest {
        &self.layer
    }

    pub fn toc_digest(&self) -> &TocDigest {
        &self.toc_digest
    }

    pub fn diff_id(&self) -> &DiffId {
        &self.diff_id
    }

    /// Where the data space is cut.
    pub fn chunks(&self) -> &ChunkTable {
        &self.chunks
    }

    /// Where files are in the data space.
    pub fn bodies(&self) -> &Bodies {
        &self.bodies
    }

    /// Names, the root among them.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    pub fn inodes(&self) -> u64 {
        self.inodes
    }

    /// Whether the tar lacks an entry for a directory, other than the root, that it has something in.
    pub fn has_implied(&self) -> bool {
        self.has_implied
    }

    /// All of it. Reads and decodes a file, unless somebody has it; to be let go soon. Blocks.
    pub fn toc(&self) -> io::Result<Arc<Toc>> {
        let mut whole = self.whole.lock().unwrap_or_else(|p| p.into_inner());
        if let Some(toc) = whole.upgrade() {
            return Ok(toc);
        }
        let toc = toc_file::load(&self.dir, &self.toc_digest, &self.layer);
        let toc = toc.ok_or_else(|| io::Error::other("the layer's TOC on this node is gone or damaged"))?;
        *whole = Arc::downgrade(&toc);
        memory::will_be_freed();
        Ok(toc)
    }
}

#[cfg(test)]
mod tests {
    use headstart_layer_format::toc::{Entry, EntryId, Inode, InodeId, Mtime, SkeletonBuilder, Tree};

    use super::*;

    fn toc() -> Toc {
        let directory = |implied| Inode {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Mtime::default(),
            xattrs: Vec::new(),
            kind: Kind::Directory { opaque: false, implied },
        };
        let entry = |name: &[u8], inode| Entry {
            parent: EntryId::ROOT,
            name: name.into(),
            inode: InodeId(inode),
        };
        let tree = Tree::new(
            vec![entry(b"", 0), entry(b"d", 1)],
            vec![directory(true), directory(false)],
        );
        let chunks = ChunkTable::new(Vec::new()).unwrap();
        let skeleton = SkeletonBuilder::new().unwrap().finish().unwrap();
        Toc::new(
            BlobDigest::of(b"blob"),
            DiffId::of(b"tar"),
            tree.unwrap(),
            chunks,
            skeleton,
        )
        .unwrap()
    }

    #[test]
    fn the_whole_toc_is_read_again_only_when_nobody_has_it_and_only_if_it_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let given = Arc::new(toc());
        let encoded = EncodedToc::new(given.encode().unwrap());
        let contents = Contents::store(dir.path(), &given, &encoded).unwrap();
        let file = dir.path().join("toc");
        assert!(!contents.has_implied(), "the root does not count");
        assert_eq!((contents.entries(), contents.inodes()), (2, 2));

        let kept = std::fs::read(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert!(Arc::ptr_eq(&contents.toc().unwrap(), &given));
        let copy = (*given).clone();
        drop(given);
        contents.toc().expect_err("neither in memory nor on disk");

        std::fs::write(&file, &kept).unwrap();
        assert_eq!(*contents.toc().unwrap(), copy);
        let mut damaged = kept;
        *damaged.last_mut().unwrap() ^= 1;
        std::fs::write(&file, &damaged).unwrap();
        contents.toc().expect_err("another TOC, or none");
        assert!(Contents::load(dir.path(), contents.toc_digest(), contents.layer()).is_none());
    }
}
