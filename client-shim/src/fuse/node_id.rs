//! Node ids: how the kernel names what it has looked up.
//!
//! In/out: a `u64` of the protocol. Invariant: an id is a pure function of (slot, inode); all names of an inode share it,
//! which is what makes them hard links. Not here: whether the node exists.

use headstart_layer_format::toc::InodeId;

/// A node of the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Node {
    /// The mount's root directory.
    Root,
    /// `layers/`.
    Layers,
    /// `data/`.
    Devices,
    /// `data/probe`, which the start-up probe of EROFS reads.
    Probe,
    /// `data/<slot>`: a layer's data space as one file. Its id is of an inode that no layer can have.
    Device { slot: u32 },
    /// Something in a layer. Slots start at 1, so these ids never meet the first ones above.
    File { slot: u32, inode: InodeId },
}

/// The protocol's number for the root (`FUSE_ROOT_ID`).
const ROOT: u64 = 1;
const LAYERS: u64 = 2;
const DEVICES: u64 = 3;
const PROBE: u64 = 4;
/// Far above `ENTRIES_MAX`, which also bounds inodes.
const DEVICE_INODE: u32 = u32::MAX;

impl Node {
    /// The root directory of a layer.
    pub fn layer_root(slot: u32) -> Self {
        Self::File {
            slot,
            inode: InodeId::ROOT,
        }
    }

    pub fn id(self) -> u64 {
        match self {
            Self::Root => ROOT,
            Self::Layers => LAYERS,
            Self::Devices => DEVICES,
            Self::Probe => PROBE,
            Self::Device { slot } => u64::from(slot) << 32 | u64::from(DEVICE_INODE),
            Self::File { slot, inode } => u64::from(slot) << 32 | u64::from(inode.0),
        }
    }

    /// `None` for an id never given out.
    pub fn from_id(id: u64) -> Option<Self> {
        match (id, (id >> 32) as u32) {
            (ROOT, _) => Some(Self::Root),
            (LAYERS, _) => Some(Self::Layers),
            (DEVICES, _) => Some(Self::Devices),
            (PROBE, _) => Some(Self::Probe),
            (_, 0) => None,
            (_, slot) if id as u32 == DEVICE_INODE => Some(Self::Device { slot }),
            (_, slot) => Some(Self::File {
                slot,
                inode: InodeId(id as u32),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_and_are_distinct() {
        let file = |slot, inode| Node::File {
            slot,
            inode: InodeId(inode),
        };
        let nodes = [
            Node::Root,
            Node::Layers,
            Node::Devices,
            Node::Probe,
            Node::Device { slot: 1 },
            Node::Device { slot: u32::MAX },
            file(1, 0),
            file(1, 1),
            file(u32::MAX, u32::MAX - 1),
        ];
        for (i, a) in nodes.iter().enumerate() {
            assert_eq!(Node::from_id(a.id()), Some(*a));
            assert!(nodes[..i].iter().all(|b| b.id() != a.id()));
        }
        assert_eq!(Node::from_id(0), None);
        assert_eq!(Node::from_id(5), None);
    }
}
