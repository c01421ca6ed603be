//! The layer's file tree, entry by entry, as containerd's unpacker would leave it.
//!
//! In: members in tar order. Out: a canonical [`Tree`]. Invariant: the last entry of a path wins; a directory entry on a
//! directory changes its metadata and keeps its children; a hard link shares its target's inode and, as `link` then
//! `chown`, `chmod`, `utimes` would, changes that inode's metadata; parents that no entry names are implied. Whiteouts
//! are kept as facts. What an unpacker would fail on is refused. `server/tests/unpack` holds it to that.
//! Not here: bodies; a file's [`Content`] comes from the caller.

use std::collections::VecDeque;

use headstart_layer_format::limits::{ENTRIES_MAX, EXTENTS_MAX, META_SIZE_MAX, PATH_LEN_MAX};
use headstart_layer_format::toc::{Content, Entry, EntryId, Inode, InodeId, Kind, Mtime, Name, Tree};

use super::attributes;
use super::dir_times::DirTimes;
use super::error::{ConvertError, Limit, Refusal};
use super::memory::{self, Memory};
use super::nodes::{NodeId, Nodes, ROOT};
use super::path::{Whiteout, components, whiteout};
use super::resolve::{LINK_PARTS_MAX, Place, resolve};
use super::tar_scan::{Member, MemberKind};

#[derive(Debug)]
pub struct TreeBuilder {
    nodes: Nodes,
    inodes: Vec<Inode>,
    nodes_max: u64,
    dir_times: DirTimes,
    /// A directory or a symlink was replaced: what was a directory's path may lead elsewhere by now.
    rerouted: bool,
    /// Bytes of names, targets and attributes that may still come, of entries that are replaced later as well.
    bytes_left: u64,
    extents_left: u64,
    link_parts_left: u64,
}

/// Of a directory: what is made in it gets its group.
const SET_GROUP_ID: u16 = 0o2000;

fn implied_directory() -> Inode {
    Inode {
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: Mtime::default(),
        xattrs: Vec::new(),
        kind: Kind::Directory {
            opaque: false,
            implied: true,
        },
    }
}

impl TreeBuilder {
    /// `entries_max` bounds members and implied directories together.
    pub fn new(entries_max: u64) -> Self {
        Self {
            nodes: Nodes::new(0),
            inodes: vec![implied_directory()],
            nodes_max: entries_max.min(ENTRIES_MAX),
            dir_times: DirTimes::default(),
            rerouted: false,
            bytes_left: META_SIZE_MAX,
            extents_left: EXTENTS_MAX,
            link_parts_left: LINK_PARTS_MAX,
        }
    }

    /// Applies a member. `content` is a file's, and ignored for everything else.
    pub fn add(&mut self, member: &Member, content: Content, memory: &mut Memory) -> Result<(), ConvertError> {
        let parts = components(&member.path)?;
        self.spend(member, &content, memory)?;
        // What is the root itself says nothing: containerd passes over it, and makes the root as its snapshotter likes.
        let Some((&base, above)) = parts.split_last() else {
            return Ok(());
        };
        let dir = self.make_dir(above, memory)?;
        match whiteout(base) {
            Whiteout::Opaque => {
                let inode = self.nodes.inode(dir);
                if let Kind::Directory { opaque, .. } = &mut self.inodes[inode].kind {
                    *opaque = true;
                }
                Ok(())
            }
            Whiteout::Of(name) => self.add_whiteout(member, dir, name, memory),
            Whiteout::No => self
                .add_named(member, dir, base, content, memory)?
                .map_or(Ok(()), |mtime| {
                    let path = parts.join(&b'/');
                    memory.take(self.dir_times.cost(&path))?;
                    self.dir_times.push(&path, mtime);
                    Ok(())
                }),
        }
    }

    /// What is kept of a member is counted as it comes: the format's bounds are checked when the tree is whole, and by
    /// then a tar of a few megabytes may have been inflated to gigabytes of attributes.
    fn spend(&mut self, member: &Member, content: &Content, memory: &mut Memory) -> Result<(), ConvertError> {
        let target = match &member.kind {
            MemberKind::Symlink { target } => target.len(),
            _ => 0,
        };
        let xattrs: usize = member.xattrs.iter().map(|(n, v)| n.len() + v.len()).sum();
        let extents = content.extents().len();
        let over = |what, max| Refusal::OverBudget {
            limit: Limit::Format,
            what,
            max,
        };
        let left = self.bytes_left.checked_sub((target + xattrs) as u64);
        self.bytes_left = left.ok_or_else(|| over("bytes of names and attributes", META_SIZE_MAX))?;
        let left = self.extents_left.checked_sub(extents as u64);
        self.extents_left = left.ok_or_else(|| over("extents of files", EXTENTS_MAX))?;
        memory.take_many(target + xattrs, memory::TEXT_BYTE)?;
        memory.take_many(member.xattrs.len(), memory::XATTR)?;
        memory.take_many(extents, memory::EXTENT)
    }

    fn add_whiteout(
        &mut self,
        member: &Member,
        dir: NodeId,
        name: &[u8],
        memory: &mut Memory,
    ) -> Result<(), ConvertError> {
        if matches!(name, b"" | b"." | b"..") {
            return Err(Refusal::Path("a whiteout of no name").into());
        }
        if self.nodes.child(dir, name).is_some() {
            // Unpackers disagree: some fail, some hide the entry, some do not.
            return Err(Refusal::Path("a whiteout of an entry of the same layer").into());
        }
        let mut inode = implied_directory();
        (inode.uid, inode.gid) = (attributes::owner(member.uid)?, attributes::owner(member.gid)?);
        (inode.mode, inode.kind) = (0, Kind::Whiteout);
        inode.mtime = attributes::bound_time(member.mtime);
        self.put(dir, name, inode, memory)
    }

    /// The time of a directory, which is to be set at the end.
    fn add_named(
        &mut self,
        member: &Member,
        dir: NodeId,
        base: &[u8],
        content: Content,
        memory: &mut Memory,
    ) -> Result<Option<Mtime>, ConvertError> {
        let old = self.nodes.child(dir, base);
        let kind = match &member.kind {
            MemberKind::Directory => {
                let mtime = attributes::bound_time(member.mtime);
                match old {
                    Some(node) if self.is_dir(node) => {
                        let inode = self.nodes.inode(node);
                        attributes::apply(&mut self.inodes[inode], member)?;
                    }
                    _ => {
                        let kind = Kind::Directory {
                            opaque: false,
                            implied: false,
                        };
                        self.put_new(member, dir, base, kind, memory)?;
                    }
                }
                return Ok(Some(mtime));
            }
            MemberKind::HardLink { target } => {
                // The old name goes first, so a link to itself has no target.
                self.remove(dir, base);
                let inode = self.link_target(target)?;
                attributes::apply(&mut self.inodes[inode], member)?;
                self.put_node(dir, base, inode, memory)?;
                return Ok(None);
            }
            // containerd makes room for it, and then nothing.
            MemberKind::Global => {
                self.remove(dir, base);
                return Ok(None);
            }
            MemberKind::File { .. } => Kind::Regular(content),
            MemberKind::Symlink { target } => symlink(target)?,
            MemberKind::CharDevice { major, minor } => {
                let (major, minor) = device(*major, *minor)?;
                Kind::CharDevice { major, minor }
            }
            MemberKind::BlockDevice { major, minor } => {
                let (major, minor) = device(*major, *minor)?;
                Kind::BlockDevice { major, minor }
            }
            MemberKind::Fifo => Kind::Fifo,
        };
        self.put_new(member, dir, base, kind, memory)?;
        Ok(None)
    }

    fn is_dir(&self, node: NodeId) -> bool {
        matches!(self.inodes[self.nodes.inode(node)].kind, Kind::Directory { .. })
    }

    fn put_new(
        &mut self,
        member: &Member,
        dir: NodeId,
        base: &[u8],
        kind: Kind,
        memory: &mut Memory,
    ) -> Result<(), ConvertError> {
        let mut inode = implied_directory();
        inode.kind = kind;
        attributes::apply(&mut inode, member)?;
        self.put(dir, base, inode, memory)
    }

    fn put(&mut self, dir: NodeId, base: &[u8], inode: Inode, memory: &mut Memory) -> Result<(), ConvertError> {
        self.inodes.push(inode);
        self.put_node(dir, base, self.inodes.len() - 1, memory)?;
        Ok(())
    }

    /// Gives `base` in `dir` a new node, whatever was there.
    fn put_node(
        &mut self,
        dir: NodeId,
        base: &[u8],
        inode: usize,
        memory: &mut Memory,
    ) -> Result<NodeId, ConvertError> {
        let (what, max) = ("entries", self.nodes_max);
        let over = || Refusal::OverBudget {
            limit: Limit::Entries,
            what,
            max,
        };
        if self.nodes.len() >= self.nodes_max {
            return Err(over().into());
        }
        let left = self.bytes_left.checked_sub(base.len() as u64);
        let (what, max) = ("bytes of names and attributes", META_SIZE_MAX);
        self.bytes_left = left.ok_or(Refusal::OverBudget {
            limit: Limit::Format,
            what,
            max,
        })?;
        memory.take(memory::NAME + base.len() as u64 * memory::NAME_BYTE)?;
        self.remove(dir, base);
        let inode = u32::try_from(inode).map_err(|_| over())?;
        Ok(self.nodes.put(dir, base, inode).ok_or_else(over)?)
    }

    fn remove(&mut self, dir: NodeId, base: &[u8]) {
        if let Some(old) = self.nodes.child(dir, base) {
            let kind = &self.inodes[self.nodes.inode(old)].kind;
            self.rerouted |= matches!(kind, Kind::Directory { .. } | Kind::Symlink { .. });
            self.nodes.remove(dir, base);
        }
    }

    /// The directory at `path`, made where missing.
    fn make_dir(&mut self, path: &[&[u8]], memory: &mut Memory) -> Result<NodeId, ConvertError> {
        let (mut dir, missing) = match self.resolve(path.iter().copied())? {
            Place::Node(dir) => (dir, Vec::new()),
            Place::Missing(dir, missing) => (dir, missing),
        };
        if !self.is_dir(dir) {
            return Err(Refusal::Path("a parent is not a directory").into());
        }
        for name in missing {
            let above = &self.inodes[self.nodes.inode(dir)];
            let mut inode = implied_directory();
            if above.mode & SET_GROUP_ID != 0 {
                // As mkdir(2): what no entry names, nobody gives another group afterwards.
                inode.gid = above.gid;
            }
            self.inodes.push(inode);
            dir = self.put_node(dir, &name, self.inodes.len() - 1, memory)?;
        }
        Ok(dir)
    }

    fn resolve<'p>(&mut self, path: impl IntoIterator<Item = &'p [u8]>) -> Result<Place, Refusal> {
        resolve(&self.nodes, &self.inodes, path, &mut self.link_parts_left)
    }

    fn link_target(&mut self, target: &[u8]) -> Result<usize, ConvertError> {
        let missing = || ConvertError::from(Refusal::Path("a hard link's target is missing"));
        // Not cleaned before its symlinks are followed, unlike a member's own path.
        let mut parts: Vec<&[u8]> = target.split(|&b| b == b'/').collect();
        let base = match parts.pop() {
            Some(b"" | b"." | b"..") | None => None,
            named => named,
        };
        let Place::Node(at) = self.resolve(parts)? else {
            return Err(missing());
        };
        let node = match base {
            Some(base) => self.nodes.child(at, base).ok_or_else(missing)?,
            None => at,
        };
        let inode = self.nodes.inode(node);
        match self.inodes[inode].kind {
            Kind::Directory { .. } => Err(Refusal::Path("a hard link to a directory").into()),
            Kind::Whiteout => Err(Refusal::Path("a hard link to a whiteout").into()),
            _ => Ok(inode),
        }
    }

    /// Times of directories, last, by path.
    fn set_dir_times(&mut self) -> Result<(), Refusal> {
        let times = std::mem::take(&mut self.dir_times);
        if !self.rerouted {
            // Each was set when its entry came, and its path still leads there.
            return Ok(());
        }
        times.each(|path, mtime| match self.resolve(path.split(|&b| b == b'/'))? {
            Place::Node(node) => {
                let inode = self.nodes.inode(node);
                self.inodes[inode].mtime = mtime;
                Ok(())
            }
            Place::Missing(..) => Err(Refusal::Path("a directory is gone when its time is to be set")),
        })
    }

    /// Numbers entries breadth-first, inodes by first use.
    pub fn finish(mut self) -> Result<Tree, ConvertError> {
        self.set_dir_times()?;
        let Self { nodes, mut inodes, .. } = self;
        const UNUSED: u32 = u32::MAX;
        let mut entries = vec![Entry {
            parent: EntryId::ROOT,
            name: Name::default(),
            inode: InodeId::ROOT,
        }];
        let mut numbers: Vec<u32> = vec![UNUSED; inodes.len()];
        numbers[0] = 0;
        let mut used = 1;
        let mut queue: VecDeque<(NodeId, u32)> = VecDeque::from([(ROOT, 0)]);
        while let Some((node, id)) = queue.pop_front() {
            for child in nodes.children(node) {
                let number = &mut numbers[nodes.inode(child)];
                if *number == UNUSED {
                    *number = used;
                    used += 1;
                }
                let number = *number;
                if nodes.has_children(child) {
                    queue.push_back((child, entries.len() as u32));
                }
                entries.push(Entry {
                    parent: EntryId(id),
                    name: nodes.name(child).into(),
                    inode: InodeId(number),
                });
            }
        }
        drop(nodes);
        // Each inode to its place, without a second list of them; those that nothing names end up behind.
        for at in 0..inodes.len() {
            while numbers[at] != UNUSED && numbers[at] as usize != at {
                let place = numbers[at] as usize;
                inodes.swap(at, place);
                numbers.swap(at, place);
            }
        }
        inodes.truncate(used as usize);
        Ok(Tree::new(entries, inodes)?)
    }
}

fn symlink(target: &[u8]) -> Result<Kind, Refusal> {
    if target.is_empty() {
        return Err(Refusal::Path("a symlink without a target"));
    }
    // No unpacker can make it, also if the name is taken by something else later.
    if target.len() > PATH_LEN_MAX {
        return Err(Refusal::Path("a symlink's target is too long"));
    }
    Ok(Kind::Symlink { target: target.into() })
}

/// As `mknod` takes them: 12 bits and 20.
fn device(major: u64, minor: u64) -> Result<(u32, u32), Refusal> {
    let number = |n: u64| u32::try_from(n).map_err(|_| Refusal::Tar("a device number is too large"));
    Ok((number(major)? & 0xfff, number(minor)? & 0xf_ffff))
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
