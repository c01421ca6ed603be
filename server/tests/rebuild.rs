//! Skeleton and data rebuild the exact tar: for every layer of every image at hand.
//!
//! In: synthetic images, the demo image, and, with `HEADSTART_IMAGES` (directories, separated by colons), every layer below
//! those. Out: of each layer's TOC and chunks, as they are in the store, a tar whose SHA-256 is the DiffID; and that is the
//! SHA-256 of what the layer decompresses to, by other decoders than ours.
//! Invariant: no layer is passed over; one that is refused fails the test, with the reason.
//! Not here: whether its tree is right (`unpack/`).

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use headstart_layer_format::toc::ChunkEntry;
use headstart_layer_format::{BlobDigest, DiffId, Toc};
use headstart_loadtest::corpus::{SyntheticImage, layer_files};
use headstart_loadtest::playground::{image, progress, site::Site, workdir::WorkDir};
use headstart_server::ingest::{IngestConfig, Progress, convert};
use headstart_server::store::Store;
use sha2::{Digest, Sha256};

/// A writer into a digest.
struct Hash(Sha256);

impl Write for Hash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The data space, one chunk at a time, in order.
struct Data<'a> {
    store: &'a Store,
    chunks: std::slice::Iter<'a, ChunkEntry>,
    chunk: Vec<u8>,
    start: u64,
}

impl Data<'_> {
    /// Bytes of the chunk that holds `at`, from there on.
    fn at(&mut self, at: u64) -> &[u8] {
        while at >= self.start + self.chunk.len() as u64 {
            self.start += self.chunk.len() as u64;
            let entry = self.chunks.next().expect("the table covers the data space");
            let frame = self
                .store
                .read_chunk(&entry.digest)
                .unwrap()
                .expect("a chunk of a ready layer");
            self.chunk = zstd::bulk::decompress(&frame, entry.raw_len as usize).unwrap();
            assert_eq!(self.chunk.len(), entry.raw_len as usize);
        }
        &self.chunk[(at - self.start) as usize..]
    }
}

fn rebuilt(store: &Store, toc: &Toc) -> DiffId {
    let mut data = Data {
        store,
        chunks: toc.chunks().entries().iter(),
        chunk: Vec::new(),
        start: 0,
    };
    let mut hash = Hash(Sha256::new());
    let written = toc.skeleton().write_tar(&mut hash, |range, out| {
        let (mut at, end) = (range.start.0, range.end().0);
        while at < end {
            let bytes = data.at(at);
            let n = (bytes.len() as u64).min(end - at) as usize;
            out.write_all(&bytes[..n])?;
            at += n as u64;
        }
        Ok(())
    });
    written.unwrap();
    DiffId::from_bytes(hash.0.finalize().into())
}

fn check(store: &Store, blob: &mut (impl Read + Send), digest: &BlobDigest) -> Result<DiffId, String> {
    let progress = Progress::new(Duration::from_secs(3600));
    convert(blob, digest, store, &IngestConfig::default(), &progress).map_err(|e| e.to_string())?;
    let (_, bytes) = store.toc(digest).unwrap().expect("a TOC");
    let toc = Toc::decode(&bytes).unwrap();
    let diff_id = rebuilt(store, &toc);
    assert_eq!(&diff_id, toc.diff_id(), "{digest}: skeleton and data make another tar");
    Ok(diff_id)
}

/// What gzip, zstd or nothing make of the file.
fn decompressed(path: &Path) -> DiffId {
    let mut magic = [0; 4];
    let n = File::open(path).unwrap().read(&mut magic).unwrap();
    let (tool, args): (&str, &[&str]) = match &magic[..n] {
        [0x1f, 0x8b, ..] => ("gzip", &["-dc"]),
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => ("zstd", &["-dc", "--long=31"]),
        _ => ("cat", &[]),
    };
    let mut child = Command::new(tool)
        .args(args)
        .stdin(File::open(path).unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut hash = Hash(Sha256::new());
    io::copy(&mut child.stdout.take().unwrap(), &mut hash).unwrap();
    child.wait().unwrap();
    DiffId::from_bytes(hash.0.finalize().into())
}

#[test]
fn every_layer_of_the_synthetic_images() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    for image in [SyntheticImage::seeded(31), SyntheticImage::tiny(32)] {
        for layer in &image.layers {
            assert_eq!(check(&store, &mut &layer.blob[..], &layer.digest), Ok(layer.diff_id));
        }
    }
}

#[test]
fn every_layer_of_the_demo_image_and_of_those_named() {
    let site = Site::of_this_executable().unwrap();
    let work = WorkDir::create().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let silent = progress::Progress::silent();
    let demo = image::storage(&site, &work, &silent);
    let mut files: Vec<PathBuf> = layer_files(&runtime.block_on(demo).unwrap()).unwrap();
    assert!(files.len() >= 3, "{files:?}");
    let named = std::env::var_os("HEADSTART_IMAGES").unwrap_or_default();
    for dir in std::env::split_paths(&named).filter(|d| !d.as_os_str().is_empty()) {
        files.extend(layer_files(&dir).unwrap());
    }
    for file in &files {
        let dir = tempfile::tempdir_in(work.path()).unwrap();
        let store = Store::open(dir.path()).unwrap();
        let digest = BlobDigest::of(&std::fs::read(file).unwrap());
        let diff_id = check(&store, &mut File::open(file).unwrap(), &digest);
        assert_eq!(diff_id, Ok(decompressed(file)), "{}", file.display());
    }
    println!("{} layers", files.len());
}
