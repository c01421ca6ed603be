//! Synthetic images, a scripted origin registry and a byte checker, for the tests of every crate; and the parts of the
//! load driver.
//!
//! In: a seed, a script. Out: images with an oracle, a registry that records its calls, lists of differences.
//! Invariant: deterministic from the seed, loopback only, and independent of the server and the shim: what is tested is
//! never used to test.
//! Not here: the command line (`main.rs`).

pub mod bench;
pub mod check;
pub mod coldstart;
pub mod corpus;
pub mod cri;
pub mod fuzzing;
pub mod origin;
pub mod playground;
pub mod relay;
pub mod rivals;
pub mod storm;
pub mod survival;
pub mod unpack;
