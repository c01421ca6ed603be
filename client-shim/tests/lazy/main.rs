//! The lazy half of the node, from servers that misbehave to files in a real mount. Needs root and /dev/fuse.
//!
//! Layers are shown as EROFS here. `../lazy_fuse` is the same tests, where it makes a difference, under the FUSE tree.

use headstart_shim::layers::PresentationChoice;

/// How nodes of these tests show layers.
const PRESENTATION: PresentationChoice = PresentationChoice::Erofs;

mod cache;
mod cold_disk;
mod erofs;
mod explore;
mod faults;
mod identity;
mod kept_tree;
mod layers;
mod learn;
mod lent;
mod measure;
mod mount;
mod near;
mod next_build;
mod one_call;
mod original;
mod overlay;
mod overtake;
mod posix;
mod power_loss;
mod prefetch;
mod prefetch_parts;
mod presentation;
mod real_server;
mod restart;
mod support;
mod trace_time;
mod tree;
mod two_images;
mod upkeep;
mod warm;
