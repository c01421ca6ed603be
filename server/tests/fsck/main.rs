//! `headstart-server fsck` and the scrubber: damage at rest is found, and mended so that the layer is right again.
//!
//! In: the real binary over data directories that are damaged in every way; a server in this process that serves them
//! afterwards. Out: each damage found; with `--repair`, tars that have their DiffIDs, and a second `fsck` that finds
//! nothing. A healthy directory is the same afterwards, byte for byte.
//! Here is what all of it needs: an image, a data directory that has it, the binary.
//! And a server that nobody mended anything for, which serves what is right all the same.
//! Not here: damage that is met by reading (`store.rs`), kills (`kill.rs`).

#[path = "../support/layers.rs"]
mod layers;
#[path = "../support/mod.rs"]
mod support;

mod at_rest;
mod beside;
mod damage;
mod rot;
mod running;
mod served;
mod usage;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use headstart_layer_format::{BlobDigest, ChunkDigest, Toc, routes};
use headstart_loadtest::corpus::{Compression, Dialect, Flavor, LayerBuilder, Meta, Rng, SyntheticImage};
use headstart_loadtest::origin::Origin;
use headstart_server::config::Config;
use headstart_server::scrub::Report;
use headstart_server::store::pins::PinTarget;
use support::Server;

const BINARY: &str = env!("CARGO_BIN_EXE_headstart-server");
/// Packs of half a MiB, so that there are sealed ones.
const CHUNKS_BYTES_MAX: u64 = 4 << 20;

fn image(seed: u64) -> SyntheticImage {
    let mut rng = Rng::new(seed);
    let mut layer = || {
        let mut layer = LayerBuilder::new(Dialect::Pax);
        for i in 0..3 {
            layer.file(format!("f{i}"), Meta::default(), rng.bytes(150_000));
        }
        layer.finish(Compression::Gzip)
    };
    SyntheticImage::new(Flavor::Oci, vec![layer(), layer()])
}

fn config(origin: &Origin, data: &Path) -> Config {
    let mut config = support::config(origin, data);
    config.cache.chunks_bytes_max = Some(CHUNKS_BYTES_MAX);
    config
}

/// The same for the binary.
fn write_config(dir: &Path, data: &Path) -> PathBuf {
    let path = dir.join("server.toml");
    let text = format!("data_dir = {data:?}\n[cache]\nchunks_bytes_max = {CHUNKS_BYTES_MAX}\n");
    fs::write(&path, text).unwrap();
    path
}

/// A data directory to damage, and the binary's configuration of it.
struct Patient {
    _dir: tempfile::TempDir,
    data: PathBuf,
    toml: PathBuf,
}

impl Patient {
    /// Nothing is in it yet.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let toml = write_config(dir.path(), &data);
        Self { _dir: dir, data, toml }
    }

    /// As healthy as `template` is, whatever it was before.
    fn heal(&self, template: &tempfile::TempDir) {
        if self.data.exists() {
            fs::remove_dir_all(&self.data).unwrap();
        }
        layers::copy_tree(template.path(), &self.data);
    }
}

/// Pulls all of an image, as a client does; its layers are ready then.
async fn pull(server: &Server, image: &SyntheticImage) {
    for reference in [image.manifest_digest.to_string(), "v1".into()] {
        let (status, body) = server.fetch(&server.manifest_url(reference)).await;
        assert_eq!((status, body.unwrap()), (200, image.manifest.clone()));
    }
    for layer in &image.layers {
        let (status, body) = server.fetch(&server.blob_url(&layer.digest)).await;
        assert_eq!((status, body.unwrap()), (200, layer.blob.clone()));
        server.anybody().ready(&layer.digest).await;
    }
}

/// Everything of the image is served, as blobs and lazily; the tars are the image's own.
async fn assert_served(server: &Server, image: &SyntheticImage) {
    pull(server, image).await;
    for layer in &image.layers {
        let mut tries = 0;
        let tar = loop {
            let toc = server.anybody().ready(&layer.digest).await;
            match data(server, &layer.digest, &toc).await {
                Some(data) => break rebuild(&toc, &data),
                None => tries += 1,
            }
            assert!(tries < 3, "the data of {} breaks off", layer.digest);
        };
        assert!(tar == layer.tar, "{} is rebuilt", layer.digest);
    }
}

async fn data(server: &Server, layer: &BlobDigest, toc: &Toc) -> Option<Vec<u8>> {
    let answer = server.anybody().own(&routes::layer_data(layer)).await;
    let blob = answer.bytes().await.ok()?;
    let mut data = Vec::new();
    for chunk in toc.chunks().iter() {
        let frame = blob.get(chunk.frame.start.0 as usize..chunk.frame.end().0 as usize)?;
        let raw = zstd::bulk::decompress(frame, chunk.range.len as usize).ok()?;
        assert_eq!(ChunkDigest::of(&raw), chunk.digest);
        data.extend(raw);
    }
    Some(data)
}

fn rebuild(toc: &Toc, data: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    let written = toc.skeleton().write_tar(&mut tar, |range, out| {
        out.extend_from_slice(&data[range.start.0 as usize..range.end().0 as usize]);
        Ok(())
    });
    written.unwrap();
    tar
}

/// A data directory with the image, of a server that was stopped cleanly.
async fn template(origin: &Origin, image: &SyntheticImage) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::with(config(origin, dir.path())).await;
    pull(&server, image).await;
    let target = PinTarget::Digest(image.manifest_digest);
    assert!(server.app.store.set_pin(&target, true).unwrap());
    server.stop().await;
    assert!(layers::packs(dir.path()).len() >= 2, "there is a sealed pack");
    dir
}

fn fsck(config: &Path, more: &[&str]) -> (Option<i32>, Report, Output) {
    let mut command = Command::new(BINARY);
    command.arg("fsck").arg("--json").args(more).arg("--config").arg(config);
    let output = command.env_remove("RUST_LOG").output().unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), report, output)
}

/// Every file with its bytes.
fn contents(dir: &Path) -> BTreeMap<PathBuf, BlobDigest> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(contents(&path)),
            false => drop(found.insert(path.clone(), BlobDigest::of(&fs::read(&path).unwrap()))),
        }
    }
    found
}
