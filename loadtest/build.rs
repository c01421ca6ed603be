//! Generates the clients of CRI and of two services of containerd from `proto/`.
//!
//! In: the proto files. Out: Rust in `OUT_DIR`, included by `src/cri.rs` and `src/unpack.rs`.
//! Invariant: no `protoc` is needed; protox compiles the files.
//! Not here: servers.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = [
        "cri.proto",
        "containerd/services/content/v1/content.proto",
        "containerd/services/diff/v1/diff.proto",
    ];
    let files = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().build_server(false).compile_fds(files)?;
    Ok(())
}
