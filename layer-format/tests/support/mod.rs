//! Shared by the tests of the format. In: nothing, or proptest's choices. Out: TOCs, valid by construction.
//! Not here: assertions.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod arbitrary;
pub mod by_hand;
pub mod samples;
