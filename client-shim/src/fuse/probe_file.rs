//! A file of known bytes in the mount, for the start-up probe of EROFS.
//!
//! In: an offset and a length. Out: bytes. Invariant: no two blocks are equal and none is zeros, so a block in the wrong
//! place, or one that was not read, shows. Not here: who reads it (`presentation/probe.rs`).

use headstart_layer_format::limits::BODY_ALIGN;

/// Its name below `data/`.
pub const PROBE_NAME: &str = "probe";
/// More than one request, less than anybody notices.
pub const PROBE_SIZE: u64 = 32 * BODY_ALIGN;

/// The bytes at `offset`, fewer at the end.
pub fn bytes(offset: u64, len: u64) -> Vec<u8> {
    let end = offset.saturating_add(len).min(PROBE_SIZE);
    (offset..end)
        .map(|at| (at % 251) as u8 + (at / BODY_ALIGN % 4) as u8 + 1)
        .collect()
}
