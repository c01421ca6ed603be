//! The layer's file tree, entry by entry, as containerd's unpacker would leave it.
//!
//! In: members in tar order. Out: a canonical [`Tree`]. Invariant: the last entry of a path wins; a directory entry on a
//! directory changes its metadata and keeps its children; a hard link shares its target's inode and, as `link` then
//! `chown`, `chmod`, `utimes` would, changes that inode's metadata; parents that no entry names are implied. Whiteouts
//! are kept as facts. What an unpacker would fail on is refused.
//! Not here: bodies; a file's [`Content`] comes from the caller.

use std::collections::{BTreeMap, VecDeque};

use headstart_layer_format::limits::{ENTRIES_MAX, EXTENTS_MAX, META_SIZE_MAX, PATH_LEN_MAX};
use headstart_layer_format::toc::{Content, Entry, EntryId, Inode, InodeId, Kind, Mtime, Tree, Xattr};

use super::error::{ConvertError, Refusal};
use super::path::{Whiteout, components, whiteout};
use super::pax::{XATTRS_OF_ONE_MAX, too_many_xattrs};
use super::tar_scan::{Member, MemberKind};

/// Symlinks followed in one path before it counts as a loop, as in containerd's path resolution.
const LINKS_MAX: usize = 255;
/// Components of symlinks' targets that are walked for one layer. A million members below a link of some components stay
/// below it; without it a tar of some megabytes, every path of which goes through 255 links of 2048 components, keeps a
/// core busy for hours.
const LINK_PARTS_MAX: u64 = 1 << 26;

type Children = BTreeMap<Box<[u8]>, usize>;

#[derive(Debug)]
struct Node {
    parent: usize,
    inode: usize,
    /// Empty for what is not a directory.
    children: Children,
}

/// Nodes that lose their name stay in `nodes` without one; their number is bounded by that of the members.
#[derive(Debug)]
pub struct TreeBuilder {
    nodes: Vec<Node>,
    inodes: Vec<Inode>,
    nodes_max: u64,
    /// Bytes of names, targets and attributes that may still come, of entries that are replaced later as well.
    bytes_left: u64,
    extents_left: u64,
    link_parts_left: u64,
}

const ROOT: usize = 0;

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
            nodes: vec![Node {
                parent: ROOT,
                inode: 0,
                children: Children::new(),
            }],
            inodes: vec![implied_directory()],
            nodes_max: entries_max.min(ENTRIES_MAX),
            bytes_left: META_SIZE_MAX,
            extents_left: EXTENTS_MAX,
            link_parts_left: LINK_PARTS_MAX,
        }
    }

    /// Applies a member. `content` is a file's, and ignored for everything else.
    pub fn add(&mut self, member: &Member, content: Content) -> Result<(), ConvertError> {
        let parts = components(&member.path)?;
        self.spend(member, &parts, &content)?;
        let Some((&base, above)) = parts.split_last() else {
            return self.add_root(member);
        };
        if above.iter().any(|p| whiteout(p) == Whiteout::Bookkeeping) {
            return Ok(());
        }
        match whiteout(base) {
            Whiteout::Bookkeeping => Ok(()),
            Whiteout::Opaque => {
                let dir = self.make_dir(above)?;
                let inode = self.nodes[dir].inode;
                if let Kind::Directory { opaque, .. } = &mut self.inodes[inode].kind {
                    *opaque = true;
                }
                Ok(())
            }
            Whiteout::Of(name) => self.add_whiteout(member, above, name),
            Whiteout::No => self.add_named(member, above, base, content),
        }
    }

    /// What is kept of a member is counted as it comes: the format's bounds are checked when the tree is whole, and by
    /// then a tar of a few megabytes may have been inflated to gigabytes of attributes.
    fn spend(&mut self, member: &Member, parts: &[&[u8]], content: &Content) -> Result<(), Refusal> {
        let target = match &member.kind {
            MemberKind::Symlink { target } => target.len(),
            _ => 0,
        };
        let name = parts.last().map_or(0, |n| n.len());
        let xattrs: usize = member.xattrs.iter().map(|(n, v)| n.len() + v.len()).sum();
        let over = |what, max| Refusal::OverBudget { what, max };
        let left = self.bytes_left.checked_sub((name + target + xattrs) as u64);
        self.bytes_left = left.ok_or_else(|| over("bytes of names and attributes", META_SIZE_MAX))?;
        let left = self.extents_left.checked_sub(content.extents().len() as u64);
        self.extents_left = left.ok_or_else(|| over("extents of files", EXTENTS_MAX))?;
        Ok(())
    }

    /// `./` gives the root's metadata; containerd ignores anything else that resolves to the root.
    fn add_root(&mut self, member: &Member) -> Result<(), ConvertError> {
        if member.kind == MemberKind::Directory {
            self.update(0, member)?;
        }
        Ok(())
    }

    fn add_whiteout(&mut self, member: &Member, above: &[&[u8]], name: &[u8]) -> Result<(), ConvertError> {
        if matches!(name, b"" | b"." | b"..") {
            return Err(Refusal::Path("a whiteout of no name").into());
        }
        let dir = self.make_dir(above)?;
        if let Some(&old) = self.nodes[dir].children.get(name)
            && self.inodes[self.nodes[old].inode].kind != Kind::Whiteout
        {
            // Unpackers disagree: some fail, some hide the entry, some do not.
            return Err(Refusal::Path("a whiteout of an entry of the same layer").into());
        }
        let inode = self.new_inode(member, Kind::Whiteout)?;
        self.insert(dir, name, inode)
    }

    fn add_named(
        &mut self,
        member: &Member,
        above: &[&[u8]],
        base: &[u8],
        content: Content,
    ) -> Result<(), ConvertError> {
        let dir = self.make_dir(above)?;
        let old = self.nodes[dir].children.get(base).copied();
        let kind = match &member.kind {
            MemberKind::Directory => match old {
                Some(node) if self.is_dir(node) => return self.update(self.nodes[node].inode, member),
                _ => Kind::Directory {
                    opaque: false,
                    implied: false,
                },
            },
            MemberKind::HardLink { target } => {
                // The old name goes first, so a link to itself has no target.
                self.nodes[dir].children.remove(base);
                let inode = self.link_target(target)?;
                self.update(inode, member)?;
                return self.insert(dir, base, inode);
            }
            MemberKind::File { .. } => Kind::Regular(content),
            MemberKind::Symlink { target } => symlink(target)?,
            MemberKind::CharDevice { major, minor } => Kind::CharDevice {
                major: device_number(*major)?,
                minor: device_number(*minor)?,
            },
            MemberKind::BlockDevice { major, minor } => Kind::BlockDevice {
                major: device_number(*major)?,
                minor: device_number(*minor)?,
            },
            MemberKind::Fifo => Kind::Fifo,
        };
        let inode = self.new_inode(member, kind)?;
        self.insert(dir, base, inode)
    }

    fn is_dir(&self, node: usize) -> bool {
        matches!(self.inodes[self.nodes[node].inode].kind, Kind::Directory { .. })
    }

    /// Gives `base` in `dir` a new node, whatever was there.
    fn insert(&mut self, dir: usize, base: &[u8], inode: usize) -> Result<(), ConvertError> {
        let node = self.new_node(dir, inode)?;
        self.nodes[dir].children.insert(base.into(), node);
        Ok(())
    }

    fn new_node(&mut self, parent: usize, inode: usize) -> Result<usize, ConvertError> {
        if self.nodes.len() as u64 >= self.nodes_max {
            let what = "entries";
            return Err(Refusal::OverBudget {
                what,
                max: self.nodes_max,
            }
            .into());
        }
        self.nodes.push(Node {
            parent,
            inode,
            children: Children::new(),
        });
        Ok(self.nodes.len() - 1)
    }

    fn new_inode(&mut self, member: &Member, kind: Kind) -> Result<usize, ConvertError> {
        let mut inode = implied_directory();
        inode.kind = kind;
        apply_metadata(&mut inode, member)?;
        self.inodes.push(inode);
        Ok(self.inodes.len() - 1)
    }

    /// New metadata for an inode that stays; extended attributes are added to those it has.
    fn update(&mut self, inode: usize, member: &Member) -> Result<(), ConvertError> {
        apply_metadata(&mut self.inodes[inode], member)
    }

    /// The directory at `path`, made where missing. Symlinks of this layer are followed, never out of the root.
    fn make_dir(&mut self, path: &[&[u8]]) -> Result<usize, ConvertError> {
        self.walk(path, true)?
            .ok_or_else(|| Refusal::Path("a parent is missing").into())
    }

    /// `None`: some component is missing and was not to be made.
    fn walk(&mut self, path: &[&[u8]], make: bool) -> Result<Option<usize>, ConvertError> {
        let mut at = ROOT;
        // The usual way: nothing but directories.
        let mut rest = path.iter();
        let mut todo: VecDeque<Box<[u8]>> = VecDeque::new();
        let mut links = 0;
        loop {
            let next: Box<[u8]> = match todo.pop_front() {
                Some(part) => part,
                None => match rest.next() {
                    Some(&part) => part.into(),
                    None => return Ok(Some(at)),
                },
            };
            match &*next {
                b"" | b"." => continue,
                b".." => {
                    at = self.nodes[at].parent;
                    continue;
                }
                _ => {}
            }
            let Some(&child) = self.nodes[at].children.get(&next) else {
                if !make {
                    return Ok(None);
                }
                self.inodes.push(implied_directory());
                let node = self.new_node(at, self.inodes.len() - 1)?;
                self.nodes[at].children.insert(next, node);
                at = node;
                continue;
            };
            match &self.inodes[self.nodes[child].inode].kind {
                Kind::Directory { .. } => at = child,
                Kind::Symlink { target } => {
                    links += 1;
                    if links > LINKS_MAX || todo.len() > PATH_LEN_MAX {
                        return Err(Refusal::Path("too many symlinks in it").into());
                    }
                    if target.starts_with(b"/") {
                        at = ROOT;
                    }
                    let before = todo.len();
                    for part in target.split(|&b| b == b'/').rev() {
                        todo.push_front(part.into());
                    }
                    let left = self.link_parts_left.checked_sub((todo.len() - before) as u64);
                    self.link_parts_left = left.ok_or(Refusal::Path("too many symlinks in all of them"))?;
                }
                _ => return Err(Refusal::Path("a parent is not a directory").into()),
            }
        }
    }

    fn link_target(&mut self, target: &[u8]) -> Result<usize, ConvertError> {
        let missing = || ConvertError::from(Refusal::Path("a hard link's target is missing"));
        let parts = components(target)?;
        let (&base, above) = parts.split_last().ok_or_else(missing)?;
        let dir = self.walk(above, false)?.ok_or_else(missing)?;
        let node = *self.nodes[dir].children.get(base).ok_or_else(missing)?;
        let inode = self.nodes[node].inode;
        match self.inodes[inode].kind {
            Kind::Directory { .. } | Kind::Whiteout => Err(Refusal::Path("a hard link to a directory").into()),
            _ => Ok(inode),
        }
    }

    /// Numbers entries breadth-first, inodes by first use.
    pub fn finish(mut self) -> Result<Tree, ConvertError> {
        let mut entries = vec![Entry {
            parent: EntryId::ROOT,
            name: Box::default(),
            inode: InodeId::ROOT,
        }];
        let mut numbers: Vec<Option<u32>> = vec![None; self.inodes.len()];
        numbers[0] = Some(0);
        let mut order = vec![0usize];
        let mut queue: VecDeque<(usize, u32)> = VecDeque::from([(ROOT, 0)]);
        while let Some((node, id)) = queue.pop_front() {
            for (name, child) in std::mem::take(&mut self.nodes[node].children) {
                let inode = self.nodes[child].inode;
                let number = *numbers[inode].get_or_insert_with(|| {
                    order.push(inode);
                    (order.len() - 1) as u32
                });
                if !self.nodes[child].children.is_empty() {
                    queue.push_back((child, entries.len() as u32));
                }
                entries.push(Entry {
                    parent: EntryId(id),
                    name,
                    inode: InodeId(number),
                });
            }
        }
        let mut inodes: Vec<Option<Inode>> = self.inodes.into_iter().map(Some).collect();
        let inodes = order.into_iter().filter_map(|old| inodes[old].take()).collect();
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

fn device_number(n: u64) -> Result<u32, Refusal> {
    u32::try_from(n).map_err(|_| Refusal::Tar("a device number is too large"))
}

fn apply_metadata(inode: &mut Inode, member: &Member) -> Result<(), ConvertError> {
    let id = |n: u64| u32::try_from(n).map_err(|_| Refusal::Tar("an owner is too large"));
    (inode.uid, inode.gid) = (id(member.uid)?, id(member.gid)?);
    // The kernel gives every symlink 0777, and `chmod` does not follow to it.
    inode.mode = match inode.kind {
        Kind::Symlink { .. } => 0o777,
        _ => (member.mode & 0o7777) as u16,
    };
    inode.mtime = bound_time(member.mtime);
    for (name, value) in &member.xattrs {
        let at = inode.xattrs.binary_search_by(|x| (*x.name).cmp(name));
        let xattr = Xattr {
            name: name.as_slice().into(),
            value: value.as_slice().into(),
        };
        match at {
            Ok(at) => inode.xattrs[at] = xattr,
            Err(at) => inode.xattrs.insert(at, xattr),
        }
    }
    if inode.xattrs.len() > XATTRS_OF_ONE_MAX {
        return Err(too_many_xattrs());
    }
    if let Kind::Directory { implied, .. } = &mut inode.kind {
        *implied = false;
    }
    Ok(())
}

/// Unpackers set times before 1970, or that 63 bits of nanoseconds cannot hold, to 1970.
fn bound_time(t: Mtime) -> Mtime {
    let fits = t.secs >= 0 && i128::from(t.secs) * 1_000_000_000 + i128::from(t.nanos) <= i128::from(i64::MAX);
    if fits { t } else { Mtime::default() }
}

#[cfg(test)]
mod tests {
    use headstart_layer_format::offset::{LayerOffset, LayerRange};

    use super::*;

    fn file(xattr_len: usize) -> Member {
        Member {
            path: b"f".to_vec(),
            kind: MemberKind::File { sparse: None },
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Mtime::default(),
            xattrs: vec![(b"user.x".to_vec(), vec![0; xattr_len])],
            body_len: 0,
        }
    }

    /// One name, written over and over: the tree stays small, but what it has replaced is still in memory.
    #[test]
    fn what_members_leave_in_memory_is_bounded_before_the_tree_is_whole() {
        let mut tree = TreeBuilder::new(1000);
        tree.bytes_left = 3 * 1007;
        for _ in 0..3 {
            tree.add(&file(1000), Content::EMPTY).unwrap();
        }
        let why = tree.add(&file(1000), Content::EMPTY).unwrap_err().to_string();
        assert!(why.contains("names and attributes"), "{why}");

        let mut tree = TreeBuilder::new(1000);
        tree.extents_left = 1;
        let start = LayerOffset(0);
        let body = || Content::whole(LayerRange { start, len: 1 });
        tree.add(&file(0), body()).unwrap();
        let why = tree.add(&file(0), body()).unwrap_err().to_string();
        assert!(why.contains("extents"), "{why}");
    }

    fn member(path: &[u8], kind: MemberKind) -> Member {
        Member {
            path: path.to_vec(),
            kind,
            xattrs: Vec::new(),
            ..file(0)
        }
    }

    fn symlink_to(target: Vec<u8>) -> MemberKind {
        MemberKind::Symlink { target }
    }

    #[test]
    fn a_target_that_no_unpacker_can_make_is_refused_at_once() {
        let mut tree = TreeBuilder::new(1000);
        let long = |len| member(b"l", symlink_to(vec![b'x'; len]));
        tree.add(&long(PATH_LEN_MAX), Content::EMPTY).unwrap();
        assert!(tree.add(&long(PATH_LEN_MAX + 1), Content::EMPTY).is_err());
    }

    /// Every path through these links walks some thousands of components, and a tar may have a million such paths.
    #[test]
    fn walking_through_symlinks_is_bounded_for_the_layer() {
        let mut tree = TreeBuilder::new(1000);
        tree.add(&member(b"l", symlink_to(b"./".repeat(2000))), Content::EMPTY)
            .unwrap();
        tree.link_parts_left = 3 * 2001;
        for _ in 0..3 {
            tree.add(&member(b"l/f", MemberKind::Fifo), Content::EMPTY).unwrap();
        }
        let why = tree.add(&member(b"l/f", MemberKind::Fifo), Content::EMPTY).unwrap_err();
        assert!(why.to_string().contains("symlinks"), "{why}");
    }

    #[test]
    fn attributes_of_a_directory_that_is_named_again_and_again_are_bounded() {
        let mut tree = TreeBuilder::new(1000);
        let mut dir = member(b"d", MemberKind::Directory);
        for i in 0..XATTRS_OF_ONE_MAX {
            dir.xattrs = vec![(format!("user.{i}").into_bytes(), Vec::new())];
            tree.add(&dir, Content::EMPTY).unwrap();
        }
        dir.xattrs = vec![(b"user.more".to_vec(), Vec::new())];
        assert!(tree.add(&dir, Content::EMPTY).is_err());
    }
}
