//! The tests of `../lazy` that look through a presentation, under the FUSE tree: what a kernel without file-backed EROFS has.

use headstart_shim::layers::PresentationChoice;

/// How nodes of these tests show layers.
const PRESENTATION: PresentationChoice = PresentationChoice::Fuse;

#[path = "../lazy/cache.rs"]
mod cache;
#[path = "../lazy/cold_disk.rs"]
mod cold_disk;
mod damage;
#[path = "../lazy/faults.rs"]
mod faults;
#[path = "../lazy/layers.rs"]
mod layers;
#[path = "../lazy/learn.rs"]
mod learn;
#[path = "../lazy/measure.rs"]
mod measure;
#[path = "../lazy/mount.rs"]
mod mount;
#[path = "../lazy/near.rs"]
mod near;
#[path = "../lazy/one_call.rs"]
mod one_call;
#[path = "../lazy/original.rs"]
mod original;
#[path = "../lazy/overlay.rs"]
mod overlay;
#[path = "../lazy/posix.rs"]
mod posix;
#[path = "../lazy/prefetch.rs"]
mod prefetch;
#[path = "../lazy/real_server.rs"]
mod real_server;
#[path = "../lazy/restart.rs"]
mod restart;
#[allow(
    dead_code,
    unused_imports,
    reason = "some of it is for tests that look at no presentation"
)]
#[path = "../lazy/support/mod.rs"]
mod support;
#[path = "../lazy/upkeep.rs"]
mod upkeep;
