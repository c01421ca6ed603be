//! What the tests of the lazy half share: layers made by hand, a server that can misbehave, a node.

pub mod converted;
pub mod disk;
pub mod layer;
pub mod node;
pub mod server;

pub use converted::Converted;
pub use disk::Disk;
pub use layer::{Body, Item, LayerBuilder, TestLayer, What};
pub use node::Node;
pub use server::{FakeServer, Fault, Script, part};

/// `len` bytes that look random and are different for every seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}
