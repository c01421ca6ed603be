//! containerd's snapshotter contract: ordinary overlay snapshots, and committed ones whose layer is mounted lazily.
//!
//! In: gRPC calls. Out: mounts for containerd to perform, small files of state. Invariant: a snapshot that a call
//! reported is on disk; only `Prepare`, `View` and `Mounts` ever wait for a network, each for a bounded time; a layer that
//! cannot be lazy is unpacked by containerd as with any other snapshotter.
//! Not here: showing a layer's files (`crate::layers` and what it uses).
//!
//! The way of a call: `service` (wire, async) -> `engine` (what the call means) -> `adopt` for lazy layers (`decide` asks
//! once per image, and `waits` shows who waits for that, `image` judges, `pins` presents) -> `store` (`index` in memory, `disk` below) -> `mounts`.

pub mod adopt;
pub mod decide;
pub mod decline;
pub mod disk;
pub mod engine;
pub mod error;
pub mod filter;
pub mod idmap;
pub mod idmapped;
pub mod image;
pub mod index;
pub mod labels;
pub mod lazy;
pub mod mounts;
mod outlook;
pub mod overlay;
pub mod pins;
pub mod record;
pub mod service;
pub mod store;
pub mod trash;
pub mod usage;
pub mod waits;
