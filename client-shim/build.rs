//! Generates the containerd API's Rust code.
//!
//! In: `proto/`. Out: `OUT_DIR/*.rs`, included by `src/proto.rs`. Invariant: no protoc is needed (protox compiles).
//! Not here: the CRI protocol, which only the load driver speaks.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["containerd/services/snapshots/v1/snapshots.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
