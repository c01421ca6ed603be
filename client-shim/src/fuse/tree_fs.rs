//! The tree of the mount: `layers/<slot>/...` and, not listed, `data/<slot>`; not tied to any binding.
//!
//! In: layers added and removed, and questions about nodes. Out: attributes, names, link targets, attributes values, and
//! plans of reads. Invariant: answers depend only on the layers' TOCs; nothing here waits for the network. It waits for the
//! disk: for a few blocks, most of them in the page cache, and for a layer's TOC where its tree must be made first.
//! Not here: the kernel protocol (`fuse/kernel.rs`), bytes of files (`fuse/read_plan.rs`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock, RwLockReadGuard};

use headstart_layer_format::limits::NAME_LEN_MAX;
use headstart_layer_format::toc::InodeId;

use super::attr::{Attr, FileKind};
use super::node_id::Node;
use super::probe_file::{PROBE_NAME, PROBE_SIZE};
use super::read_plan::{READ_SIZE_MAX, ReadPlan};
use super::shown::{Shared, Shown};
use super::tree_file::{Record, TreeError, TreeFile};
use super::xattrs::{OPAQUE_NAME, OPAQUE_VALUE, never_shown};
use crate::cache::Layer;
use crate::counters::Counters;

/// Name of the directory of layers in the mount.
pub const LAYERS_NAME: &str = "layers";
/// Name of the directory of data spaces. No listing shows it: it is for the kernel.
pub const DEVICES_NAME: &str = "data";

/// Why there is no answer, named for the errno it becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsError {
    /// The layer was withdrawn, or the id never was one.
    Stale,
    NotADirectory,
    IsADirectory,
    /// No filesystem with names that long has such a name, and programs tell that from its absence.
    NameTooLong,
    /// The wrong kind of file for the question.
    Invalid,
    NoAttribute,
    Io,
}

/// Answer to a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    Found(Attr),
    /// There will never be such a name here.
    Absent,
    /// There may be one later: a layer not added yet.
    AbsentNow,
}

/// One name of a directory.
#[derive(Debug)]
pub struct DirItem<'a> {
    /// Where to go on after this one.
    pub next: u64,
    pub name: &'a [u8],
    /// Its node and kind, and the rest if it is told.
    pub attr: Attr,
    pub told: Told,
}

/// How much a listing says of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    All,
    /// Which node it is, and that it is a directory. Who wants more asks for it.
    Kind,
}

/// How full the mount is.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    pub blocks: u64,
    pub free: u64,
    pub available: u64,
    pub block_size: u32,
    pub files: u64,
}

#[derive(Debug)]
pub struct TreeFs {
    layers: RwLock<BTreeMap<u32, Arc<Shown>>>,
    store: PathBuf,
    shared: Shared,
}

impl TreeFs {
    /// `store` is the directory whose filesystem `space` speaks of.
    pub fn new(store: &Path, counters: &Arc<Counters>) -> Self {
        Self {
            layers: RwLock::default(),
            store: store.to_owned(),
            shared: Shared {
                blocks: Arc::default(),
                counters: Arc::clone(counters),
            },
        }
    }

    /// False when the slot is shown already.
    pub fn add(&self, layer: Arc<Layer>) -> bool {
        let slot = layer.slot();
        if self.shows(slot) {
            return false;
        }
        let shown = Arc::new(Shown::new(layer, self.shared.clone()));
        let mut layers = self.layers.write().unwrap_or_else(|p| p.into_inner());
        layers.insert(slot, shown).is_none()
    }

    pub fn shows(&self, slot: u32) -> bool {
        self.read_layers().contains_key(&slot)
    }

    /// Has a layer's tree on this disk from now on. Blocks.
    pub fn prepare(&self, slot: u32) {
        // Said by whoever asks for it, too.
        if let Ok(shown) = self.shown(slot) {
            let _ = shown.tree();
        }
    }

    /// Trees that are in memory because the disk had no room go there, where it has again. Blocks; nobody else waits for it.
    pub fn settle(&self) {
        let all: Vec<Arc<Shown>> = self.read_layers().values().cloned().collect();
        all.iter().for_each(|shown| shown.settle());
    }

    /// False when it was not shown.
    pub fn remove(&self, slot: u32) -> bool {
        let mut layers = self.layers.write().unwrap_or_else(|p| p.into_inner());
        layers.remove(&slot).is_some()
    }

    pub fn lookup(&self, parent: Node, name: &[u8]) -> Result<Lookup, FsError> {
        match name {
            // Asked when a file handle (overlayfs keeps some) is turned back into a file.
            b"." => return self.attr(parent).map(Lookup::Found),
            b".." => return self.attr(self.parent(parent)?).map(Lookup::Found),
            _ if name.len() > NAME_LEN_MAX => return Err(FsError::NameTooLong),
            _ => {}
        }
        match parent {
            Node::Root if name == LAYERS_NAME.as_bytes() => self.attr(Node::Layers).map(Lookup::Found),
            Node::Root if name == DEVICES_NAME.as_bytes() => self.attr(Node::Devices).map(Lookup::Found),
            Node::Root => Ok(Lookup::Absent),
            Node::Devices if name == PROBE_NAME.as_bytes() => self.attr(Node::Probe).map(Lookup::Found),
            Node::Devices => match slot_name(name).map(|slot| self.attr(Node::Device { slot })) {
                Some(Ok(attr)) => Ok(Lookup::Found(attr)),
                _ => Ok(Lookup::AbsentNow),
            },
            Node::Probe | Node::Device { .. } => Err(FsError::NotADirectory),
            Node::Layers => match slot_name(name) {
                Some(slot) => match self.attr(Node::layer_root(slot)) {
                    Ok(attr) => Ok(Lookup::Found(attr)),
                    Err(_) => Ok(Lookup::AbsentNow),
                },
                None => Ok(Lookup::Absent),
            },
            Node::File { slot, inode } => {
                let dir = self.record(slot, inode)?;
                if dir.kind() != FileKind::Directory {
                    return Err(FsError::NotADirectory);
                }
                self.shown(slot)?.ask(|tree| {
                    let Some(inode) = tree.lookup(&dir, name)? else {
                        return Ok(Ok(Lookup::Absent));
                    };
                    // Its own file names it, so it is there.
                    let record = tree.inode(inode)?.ok_or(TreeError::Damaged)?;
                    Ok(Ok(Lookup::Found(record.attr(Node::File { slot, inode }))))
                })
            }
        }
    }

    pub fn attr(&self, node: Node) -> Result<Attr, FsError> {
        match node {
            Node::Root => Ok(Attr::own_directory(node, 3)),
            Node::Layers => {
                let layers = u32::try_from(self.read_layers().len()).unwrap_or(u32::MAX);
                Ok(Attr::own_directory(node, layers.saturating_add(2)))
            }
            Node::Devices => Ok(Attr::own_directory(node, 2)),
            Node::Probe => Ok(Attr::device(node, PROBE_SIZE)),
            Node::Device { slot } => {
                let size = self.shown(slot)?.layer.contents().chunks().data_size();
                Ok(Attr::device(node, size))
            }
            Node::File { slot, inode } => Ok(self.record(slot, inode)?.attr(node)),
        }
    }

    /// Target of a symbolic link.
    pub fn readlink(&self, node: Node) -> Result<Vec<u8>, FsError> {
        let (shown, inode) = self.file(node).map_err(|_| FsError::Invalid)?;
        shown.ask(|tree| about(tree, inode, |record| Ok(tree.link(record)?.ok_or(FsError::Invalid))))
    }

    /// Calls `visit` with names from position `from` on, until it returns false.
    pub fn read_dir(&self, node: Node, from: u64, visit: &mut dyn FnMut(DirItem<'_>) -> bool) -> Result<(), FsError> {
        let own = self.attr(node)?;
        if own.kind != FileKind::Directory {
            return Err(FsError::NotADirectory);
        }
        let dots: [(&[u8], Node); 2] = [(b".", node), (b"..", self.parent(node)?)];
        for (at, (name, node)) in dots.into_iter().enumerate().skip(from.min(2) as usize) {
            let item = DirItem {
                next: at as u64 + 1,
                name,
                attr: self.attr(node)?,
                told: Told::All,
            };
            if !visit(item) {
                return Ok(());
            }
        }
        let from = from.max(2) - 2;
        match node {
            Node::Root if from == 0 => {
                visit(DirItem {
                    next: 3,
                    name: LAYERS_NAME.as_bytes(),
                    attr: self.attr(Node::Layers)?,
                    told: Told::All,
                });
                Ok(())
            }
            // Neither names of devices nor their directory are for anybody to find.
            Node::Root | Node::Devices | Node::Probe | Node::Device { .. } => Ok(()),
            Node::Layers => {
                self.read_layers_dir(from, visit);
                Ok(())
            }
            Node::File { slot, inode } => read_layer_dir(&*self.shown(slot)?, slot, inode, from, visit),
        }
    }

    /// Positions are slots, so that a listing survives layers that come and go. No tree is asked: where layers are shown as
    /// images most have none yet, and to make them all would keep everybody else waiting.
    fn read_layers_dir(&self, from: u64, visit: &mut dyn FnMut(DirItem<'_>) -> bool) {
        let from = u32::try_from(from).unwrap_or(u32::MAX);
        for &slot in self.read_layers().range(from..).map(|(slot, _)| slot) {
            let name = slot.to_string();
            let item = DirItem {
                next: u64::from(slot) + 3,
                name: name.as_bytes(),
                attr: Attr::own_directory(Node::layer_root(slot), 2),
                told: Told::Kind,
            };
            if !visit(item) {
                break;
            }
        }
    }

    /// Value of an extended attribute.
    pub fn xattr(&self, node: Node, name: &[u8]) -> Result<Vec<u8>, FsError> {
        // Overlayfs asks for one of its own with each file that it looks up: half of all requests when a tree is looked at.
        if never_shown(name) {
            return Err(FsError::NoAttribute);
        }
        let (shown, inode) = self.file(node).map_err(|_| FsError::NoAttribute)?;
        shown.ask(|tree| {
            about(tree, inode, |record| {
                if name == OPAQUE_NAME && record.opaque {
                    return Ok(Ok(OPAQUE_VALUE.to_vec()));
                }
                let found = tree.xattrs(record)?.into_iter().find(|x| *x.name == *name);
                Ok(found.map(|x| x.value.into()).ok_or(FsError::NoAttribute))
            })
        })
    }

    /// Names of all extended attributes, each ended by a NUL, as `listxattr(2)` wants them.
    pub fn xattr_names(&self, node: Node) -> Result<Vec<u8>, FsError> {
        let Ok((shown, inode)) = self.file(node) else {
            return Ok(Vec::new());
        };
        shown.ask(|tree| {
            about(tree, inode, |record| {
                let (all, mut names) = (tree.xattrs(record)?, Vec::new());
                let opaque = record.opaque.then_some(OPAQUE_NAME);
                for name in all.iter().map(|x| &*x.name).chain(opaque) {
                    names.extend_from_slice(name);
                    names.push(0);
                }
                Ok(Ok(names))
            })
        })
    }

    /// What a read of `size` bytes at `offset` has to do.
    pub fn plan_read(&self, node: Node, offset: u64, size: u32) -> Result<ReadPlan, FsError> {
        if let Node::Device { slot } = node {
            let shown = self.shown(slot)?;
            let layer = Arc::clone(&shown.layer);
            return Ok(ReadPlan::of_device(layer, offset, size));
        }
        let (shown, inode) = self.file(node).map_err(|_| FsError::IsADirectory)?;
        shown.ask(|tree| {
            about(tree, inode, |record| {
                let end = record.size().min(offset.saturating_add(size.min(READ_SIZE_MAX).into()));
                match tree.extents(record, offset, end)? {
                    Some(found) => {
                        let layer = Arc::clone(&shown.layer);
                        Ok(Ok(ReadPlan::of_file(layer, found, offset, end)))
                    }
                    None if record.kind() == FileKind::Directory => Ok(Err(FsError::IsADirectory)),
                    None => Ok(Err(FsError::Invalid)),
                }
            })
        })
    }

    /// Room where the chunks are kept, and how many inodes are shown.
    pub fn space(&self) -> Result<Space, FsError> {
        let fs = rustix::fs::statvfs(&self.store).map_err(|_| FsError::Io)?;
        let files = self.read_layers().values().map(|s| s.layer.contents().inodes()).sum();
        Ok(Space {
            blocks: fs.f_blocks,
            free: fs.f_bfree,
            available: fs.f_bavail,
            block_size: u32::try_from(fs.f_frsize).unwrap_or(4096),
            files,
        })
    }

    fn parent(&self, node: Node) -> Result<Node, FsError> {
        match node {
            Node::Root | Node::Layers | Node::Devices => Ok(Node::Root),
            Node::Probe | Node::Device { .. } => Ok(Node::Devices),
            Node::File {
                inode: InodeId::ROOT, ..
            } => Ok(Node::Layers),
            Node::File { slot, inode } => {
                let parent = self.record(slot, inode)?.parent().ok_or(FsError::NotADirectory)?;
                Ok(Node::File { slot, inode: parent })
            }
        }
    }

    /// The layer and inode of a node that is in one; an error for what the mount has besides.
    fn file(&self, node: Node) -> Result<(Arc<Shown>, InodeId), FsError> {
        match node {
            Node::Root | Node::Layers | Node::Devices | Node::Probe | Node::Device { .. } => Err(FsError::IsADirectory),
            Node::File { slot, inode } => Ok((self.shown(slot)?, inode)),
        }
    }

    fn record(&self, slot: u32, inode: InodeId) -> Result<Record, FsError> {
        self.shown(slot)?
            .ask(|tree| about(tree, inode, |record| Ok(Ok(*record))))
    }

    fn shown(&self, slot: u32) -> Result<Arc<Shown>, FsError> {
        self.read_layers().get(&slot).cloned().ok_or(FsError::Stale)
    }

    fn read_layers(&self) -> RwLockReadGuard<'_, BTreeMap<u32, Arc<Shown>>> {
        self.layers.read().unwrap_or_else(|p| p.into_inner())
    }
}

/// Asks about an inode, if the layer has it.
fn about<T>(
    tree: &TreeFile,
    inode: InodeId,
    question: impl FnOnce(&Record) -> Result<Result<T, FsError>, TreeError>,
) -> Result<Result<T, FsError>, TreeError> {
    match tree.inode(inode)? {
        Some(record) => question(&record),
        None => Ok(Err(FsError::Stale)),
    }
}

fn read_layer_dir(
    shown: &Shown,
    slot: u32,
    dir: InodeId,
    from: u64,
    visit: &mut dyn FnMut(DirItem<'_>) -> bool,
) -> Result<(), FsError> {
    // Outside: what was given before an error is not given again.
    let mut at = from;
    shown.ask(|tree| {
        about(tree, dir, |record| {
            tree.list(record, at, &mut |name, inode, record| {
                let item = DirItem {
                    next: at + 3,
                    name,
                    attr: record.attr(Node::File { slot, inode }),
                    told: Told::All,
                };
                at += 1;
                visit(item)
            })?;
            Ok(Ok(()))
        })
    })
}

/// A slot in plain decimal, and nothing else that parses as one (`+1`, `01`).
fn slot_name(name: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(name).ok()?;
    let slot: u32 = text.parse().ok()?;
    (slot > 0 && slot.to_string() == text).then_some(slot)
}
