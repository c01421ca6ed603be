//! The FUSE kernel protocol, spoken here and not by a library, because a mount must outlive the process that serves it.
//!
//! In: `/dev/fuse`. Out: requests, and one answer to each. Invariant: a request that the kernel has handed over stands in
//! memory that the next process gets too, until it is answered (`in_flight.rs`): no kernel ability is needed for that, only
//! that `read(2)` writes into that memory, and so that the read is ours.
//! Not here: what is answered (`fuse/kernel.rs`), the mount (`fuse/session.rs`), who keeps descriptors (`survival`).

pub mod abi;
pub mod device;
pub mod facts;
pub mod in_flight;
mod init;
pub mod reply;
pub mod request;
pub mod serve;
mod vigil;
