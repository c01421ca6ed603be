//! The lazy half of the node, from servers that misbehave to files in a real mount. Needs root and /dev/fuse.

mod cache;
mod erofs;
mod faults;
mod identity;
mod layers;
mod measure;
mod mount;
mod overlay;
mod real_server;
mod restart;
mod support;
mod tree;
