//! What a successor must know of a mount that it takes over.
//!
//! In/out: the first bytes of the table of requests. Invariant: a version that is not known is `None`: the mount then is not
//! taken over. Not here: node ids and layers, which follow from the disk alone.

use super::request::{u32_at, u64_at};

const MAGIC: [u8; 8] = *b"HSFUSE\0\x01";
pub(super) const FACTS_LEN: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Major and minor number of the mount's files: which mount the descriptor belongs to.
    pub device: (u32, u32),
    /// The kernel's flags in the handshake.
    pub kernel: u64,
    /// Data spaces are read as files of the mount.
    pub has_devices: bool,
}

impl Facts {
    pub(super) fn encode(&self) -> [u8; FACTS_LEN] {
        let mut out = [0; FACTS_LEN];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&self.device.0.to_ne_bytes());
        out[12..16].copy_from_slice(&self.device.1.to_ne_bytes());
        out[16..24].copy_from_slice(&self.kernel.to_ne_bytes());
        out[24] = self.has_devices.into();
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.get(..8)? != MAGIC {
            return None;
        }
        Some(Self {
            device: (u32_at(bytes, 8)?, u32_at(bytes, 12)?),
            kernel: u64_at(bytes, 16)?,
            has_devices: match bytes.get(24)? {
                0 => false,
                1 => true,
                _ => return None,
            },
        })
    }
}
