//! Generates the CRI client from `proto/cri.proto`.
//!
//! In: the proto file. Out: Rust in `OUT_DIR`, included by `src/cri.rs`.
//! Invariant: no `protoc` is needed; protox compiles the file.
//! Not here: a CRI server.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/cri.proto");
    let files = protox::compile(["proto/cri.proto"], ["proto"])?;
    tonic_prost_build::configure().build_server(false).compile_fds(files)?;
    Ok(())
}
