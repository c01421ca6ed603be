//! Where a path leads in a layer's tree: symlinks followed, never out of the root.
//!
//! In: components, a tree as it is at that point. Out: a name, or how far the path goes and what is missing behind it.
//! Invariant: as containerd finds its way (`RootPath`), which looks before it makes anything, so that what is missing in
//! front of `..` is not made. Where it reads a link's `..` otherwise than the kernel does, the layer is refused.
//! Not here: making what is missing ([`super::tree`]).

use std::collections::VecDeque;

use headstart_layer_format::limits::PATH_LEN_MAX;
use headstart_layer_format::toc::{Inode, Kind};

use super::error::Refusal;
use super::nodes::{NodeId, Nodes, ROOT};

/// Symlinks followed in one path before it counts as a loop, as in the kernel.
const LINKS_MAX: usize = 40;
/// Components of symlinks' targets that are walked for one layer. A million members below a link of some components stay
/// below it; without it a tar of some megabytes, every path of which goes through 40 links of 2048 components, keeps a
/// core busy for hours.
pub const LINK_PARTS_MAX: u64 = 1 << 26;

/// End of a path.
#[derive(Debug)]
pub enum Place {
    Node(NodeId),
    /// A directory, and names that are not there: the first of them would be in it.
    Missing(NodeId, Vec<Box<[u8]>>),
}

/// One path being walked.
struct Walk<'a> {
    nodes: &'a Nodes,
    inodes: &'a [Inode],
    at: NodeId,
    missing: Vec<Box<[u8]>>,
    /// Of links' targets, next first; then the path goes on.
    todo: VecDeque<Box<[u8]>>,
    links: usize,
    /// A link was met inside another one's target.
    nested: bool,
}

/// Follows symlinks, a last one too. `link_parts_left` is spent.
pub fn resolve<'p>(
    nodes: &Nodes,
    inodes: &[Inode],
    path: impl IntoIterator<Item = &'p [u8]>,
    link_parts_left: &mut u64,
) -> Result<Place, Refusal> {
    let mut walk = Walk {
        nodes,
        inodes,
        at: ROOT,
        missing: Vec::new(),
        todo: VecDeque::new(),
        links: 0,
        nested: false,
    };
    let mut path = path.into_iter();
    loop {
        let from_link = walk.todo.pop_front();
        let is_of_link = from_link.is_some();
        let Some(part) = from_link.or_else(|| path.next().map(Into::into)) else {
            break;
        };
        match &*part {
            b"" | b"." => {}
            b".." if walk.missing.pop().is_some() => {}
            b".." => walk.at = nodes.parent(walk.at),
            _ => walk.step(part, is_of_link, link_parts_left)?,
        }
    }
    Ok(match walk.missing.is_empty() {
        true => Place::Node(walk.at),
        false => Place::Missing(walk.at, walk.missing),
    })
}

/// Components of a target, and of those that `..` takes back neither.
fn cleaned(target: &[u8]) -> Vec<&[u8]> {
    let mut out: Vec<&[u8]> = Vec::new();
    for part in target.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." if out.last().is_some_and(|&last| last != b"..") => drop(out.pop()),
            b".." if target.starts_with(b"/") => {}
            part => out.push(part),
        }
    }
    out
}

/// Components that are names.
fn names(target: &[u8]) -> usize {
    let parts = target.split(|&b| b == b'/');
    parts.filter(|p| !matches!(*p, b"" | b"." | b"..")).count()
}

impl<'a> Walk<'a> {
    fn step(&mut self, part: Box<[u8]>, is_of_link: bool, link_parts_left: &mut u64) -> Result<(), Refusal> {
        if !matches!(self.kind(self.at), Kind::Directory { .. }) {
            return Err(Refusal::Path("a parent is not a directory"));
        }
        let child = self.nodes.child(self.at, &part).filter(|_| self.missing.is_empty());
        let Some(child) = child else {
            self.missing.push(part);
            return Ok(());
        };
        let Kind::Symlink { target } = self.kind(child) else {
            self.at = child;
            return Ok(());
        };
        self.links += 1;
        if self.links > LINKS_MAX || self.todo.len() > PATH_LEN_MAX {
            return Err(Refusal::Path("too many symlinks in it"));
        }
        let is_absolute = target.starts_with(b"/");
        let parts = cleaned(target);
        // A target that is relative is cleaned before anything in it is looked at; one that is absolute, now and then.
        let is_odd = is_absolute && parts.len() < names(target);
        if is_odd || self.nested && parts.contains(&&b".."[..]) {
            return Err(Refusal::Path(
                "a symlink in it goes up in a way that unpackers read differently",
            ));
        }
        self.nested |= is_of_link;
        if is_absolute {
            self.at = ROOT;
        }
        let walked = target.iter().filter(|&&b| b == b'/').count() + 1;
        let left = link_parts_left.checked_sub(walked as u64);
        *link_parts_left = left.ok_or(Refusal::Path("too many symlinks in all of them"))?;
        for part in parts.into_iter().rev() {
            self.todo.push_front(part.into());
        }
        Ok(())
    }

    fn kind(&self, id: NodeId) -> &'a Kind {
        &self.inodes[self.nodes.inode(id)].kind
    }
}
