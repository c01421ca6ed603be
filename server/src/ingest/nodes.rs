//! The names of a tree while it grows: some 30 bytes a name and the name itself.
//!
//! In: names put into directories, replaced and removed. Out: lookups, and children in name order.
//! Invariant: a name is in a directory once; what was replaced stays in memory and is never found again, so memory is
//! bounded by what was put in (which the caller counts).
//! Not here: what a name stands for ([`super::tree`]): an inode is a number here.
//!
//! A map a directory, as a first version had, takes 300 bytes for a directory of one name: a tar of a million such
//! directories took 700 MB.

use std::hash::{BuildHasher, RandomState};

/// A name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeId(u32);

pub const ROOT: NodeId = NodeId(0);
const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Node {
    parent: u32,
    inode: u32,
    name_at: u32,
    first_child: u32,
    /// The child of the same directory that was put in before.
    sibling: u32,
    name_len: u8,
    /// False for what was replaced or removed.
    present: bool,
}

#[derive(Debug)]
pub struct Nodes {
    nodes: Vec<Node>,
    names: Vec<u8>,
    /// Node numbers by hash of directory and name: open addressing, at most three quarters full.
    slots: Vec<u32>,
    filled: usize,
    /// Keyed by chance, so that nobody can make names collide.
    hasher: RandomState,
}

impl Nodes {
    /// A root without a name.
    pub fn new(inode: u32) -> Self {
        let root = Node {
            parent: 0,
            inode,
            name_at: 0,
            first_child: NONE,
            sibling: NONE,
            name_len: 0,
            present: true,
        };
        Self {
            nodes: vec![root],
            names: Vec::new(),
            slots: vec![NONE; 64],
            filled: 0,
            hasher: RandomState::new(),
        }
    }

    /// All that were ever put in.
    pub fn len(&self) -> u64 {
        self.nodes.len() as u64
    }

    pub fn parent(&self, id: NodeId) -> NodeId {
        NodeId(self.nodes[id.0 as usize].parent)
    }

    pub fn inode(&self, id: NodeId) -> usize {
        self.nodes[id.0 as usize].inode as usize
    }

    pub fn name(&self, id: NodeId) -> &[u8] {
        let node = &self.nodes[id.0 as usize];
        &self.names[node.name_at as usize..][..usize::from(node.name_len)]
    }

    pub fn child(&self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        let found = self.slots[self.slot(dir, name)];
        (found != NONE && self.nodes[found as usize].present).then_some(NodeId(found))
    }

    /// Puts a name in, in place of what had it. `None`: there are more names than numbers.
    pub fn put(&mut self, dir: NodeId, name: &[u8], inode: u32) -> Option<NodeId> {
        let number = u32::try_from(self.nodes.len()).ok().filter(|&n| n != NONE)?;
        let name_at = u32::try_from(self.names.len()).ok()?;
        let name_len = u8::try_from(name.len()).ok()?;
        if (self.filled + 1) * 4 > self.slots.len() * 3 {
            self.grow();
        }
        let slot = self.slot(dir, name);
        match self.slots[slot] {
            NONE => self.filled += 1,
            old => self.nodes[old as usize].present = false,
        }
        self.slots[slot] = number;
        self.names.extend_from_slice(name);
        let parent = &mut self.nodes[dir.0 as usize];
        let sibling = std::mem::replace(&mut parent.first_child, number);
        self.nodes.push(Node {
            parent: dir.0,
            inode,
            name_at,
            first_child: NONE,
            sibling,
            name_len,
            present: true,
        });
        Some(NodeId(number))
    }

    pub fn remove(&mut self, dir: NodeId, name: &[u8]) {
        if let Some(id) = self.child(dir, name) {
            self.nodes[id.0 as usize].present = false;
        }
    }

    /// Ordered by name.
    pub fn children(&self, dir: NodeId) -> Vec<NodeId> {
        let mut out = Vec::new();
        let mut at = self.nodes[dir.0 as usize].first_child;
        while let Some(node) = self.nodes.get(at as usize) {
            if node.present {
                out.push(NodeId(at));
            }
            at = node.sibling;
        }
        out.sort_unstable_by(|&a, &b| self.name(a).cmp(self.name(b)));
        out
    }

    pub fn has_children(&self, dir: NodeId) -> bool {
        self.nodes[dir.0 as usize].first_child != NONE
    }

    /// Where the name is, or would be.
    fn slot(&self, dir: NodeId, name: &[u8]) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = self.hasher.hash_one((dir.0, name)) as usize & mask;
        loop {
            let Some(node) = self.nodes.get(self.slots[slot] as usize) else {
                return slot;
            };
            if node.parent == dir.0 && self.name(NodeId(self.slots[slot])) == name {
                return slot;
            }
            slot = (slot + 1) & mask;
        }
    }

    fn grow(&mut self) {
        let old = std::mem::take(&mut self.slots);
        self.slots = vec![NONE; old.len() * 2];
        for number in old.into_iter().filter(|&n| n != NONE) {
            let id = NodeId(number);
            let slot = self.slot(self.parent(id), self.name(id));
            self.slots[slot] = number;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn names_are_found_replaced_and_removed_as_in_a_map() {
        let mut nodes = Nodes::new(0);
        let mut dirs = vec![ROOT];
        let mut model: BTreeMap<(u32, Vec<u8>), u32> = BTreeMap::new();
        let mut random = 1u32;
        for i in 1..5000u32 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let dir = dirs[(random >> 8) as usize % dirs.len()];
            let name = format!("{}", (random >> 16) % 40).into_bytes();
            if random.is_multiple_of(5) {
                nodes.remove(dir, &name);
                model.remove(&(dir.0, name));
            } else {
                let id = nodes.put(dir, &name, i).unwrap();
                model.insert((dir.0, name), i);
                if dirs.len() < 60 {
                    dirs.push(id);
                }
            }
        }
        for &dir in &dirs {
            let expected: Vec<_> = model.range((dir.0, Vec::new())..(dir.0 + 1, Vec::new())).collect();
            let found = nodes.children(dir);
            assert_eq!(found.len(), expected.len());
            for (id, ((_, name), inode)) in found.into_iter().zip(expected) {
                assert_eq!((nodes.name(id), nodes.inode(id)), (&name[..], *inode as usize));
                assert_eq!(nodes.child(dir, name), Some(id));
                assert_eq!(nodes.parent(id), dir);
            }
        }
        assert!(model.len() > 500);
    }
}
