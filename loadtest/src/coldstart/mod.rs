//! Cold starts of real images in real containers, by every way there is, over links as they are between machines.
//!
//! In: a list of images with what ready means ([`list`]), the ways to compare ([`way`]), links, rounds. Out: a [`Report`]: every
//! start with its times, bytes on each link and machine load; as a table, JSON and a page with plots ([`page`]).
//! Invariant: rounds are interleaved (every way once in each round, in the same order), every start has a fresh node, and the
//! page cache is dropped before it; bytes are what relays counted. A way that cannot be run is named with the reason, never
//! left out in silence.
//! Not here: the parts (`playground`), and judging the numbers.

pub mod crowd;
pub mod list;
pub mod load;
pub mod page;
pub mod report;
pub mod rig;
pub mod rivals;
pub mod rounds;
pub mod svg;
pub mod table;
pub mod timeline;
pub mod way;

pub use list::ImageList;
pub use report::Report;
pub use rig::Rig;
pub use rounds::{Plan, run};
pub use way::Way;
