//! Conversions against an independent oracle, and against input that lies.
//!
//! In: synthetic and hostile layers. Out: published TOCs whose tree is the oracle's and whose parts rebuild the exact
//! tar; or a refusal or failure with nothing published.
//! Here is what all of it needs: a store, a conversion into it, the comparison with the oracle.
//! Not here: containerd as the oracle (`unpack/`), each bound through a server (`hostile.rs`).

mod again;
mod refusals;
mod tars;
mod trees;

use std::io::Read;
use std::time::Duration;

use headstart_layer_format::toc::{Content, EntryId, Kind};
use headstart_layer_format::{BlobDigest, Toc};
use headstart_loadtest::check::{Field, FileTree, Marks, Overlook, compare_trees};
use headstart_loadtest::corpus::{OracleKind, SyntheticLayer};
use headstart_server::ingest::{ConvertError, Failure, IngestConfig, Progress, convert};
use headstart_server::store::{LayerRecord, Store};

struct Room {
    store: Store,
    dir: tempfile::TempDir,
}

fn room() -> Room {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    Room { store, dir }
}

fn progress() -> Progress {
    Progress::new(Duration::from_secs(600))
}

impl Room {
    fn convert(&self, digest: &BlobDigest, blob: impl Read + Send) -> Result<Toc, ConvertError> {
        self.convert_with(digest, blob, &IngestConfig::default())
    }

    fn convert_with(
        &self,
        digest: &BlobDigest,
        blob: impl Read + Send,
        config: &IngestConfig,
    ) -> Result<Toc, ConvertError> {
        let summary = convert(blob, digest, &self.store, config, &progress())?;
        let (stored, bytes) = self.store.toc(digest).unwrap().expect("a converted layer has a TOC");
        assert_eq!(stored, summary);
        Ok(Toc::decode(&bytes).unwrap())
    }

    fn convert_tar(&self, tar: &[u8]) -> Result<Toc, ConvertError> {
        self.convert(&BlobDigest::of(tar), tar)
    }

    fn data_space(&self, toc: &Toc) -> Vec<u8> {
        let mut out = Vec::new();
        for c in toc.chunks().entries() {
            let frame = self
                .store
                .read_chunk(&c.digest)
                .unwrap()
                .expect("a chunk of a ready layer");
            out.extend(zstd::bulk::decompress(&frame, c.raw_len as usize).unwrap());
        }
        out
    }

    fn rebuild(&self, toc: &Toc) -> Vec<u8> {
        let data = self.data_space(toc);
        let mut tar = Vec::new();
        toc.skeleton()
            .write_tar(&mut tar, |range, out| {
                out.extend_from_slice(&data[range.start.0 as usize..range.end().0 as usize]);
                Ok(())
            })
            .unwrap();
        tar
    }

    fn assert_nothing_published(&self, digest: &BlobDigest) {
        assert!(!matches!(
            self.store.layer(digest).unwrap(),
            Some(LayerRecord::Ready { .. })
        ));
        assert!(self.store.toc(digest).unwrap().is_none());
    }
}

fn file_bytes(content: &Content, data: &[u8]) -> Vec<u8> {
    let mut out = vec![0; content.size() as usize];
    for e in content.extents() {
        let (at, len) = (e.offset.0 as usize, e.range.len as usize);
        let from = e.range.start.0 as usize;
        out[at..at + len].copy_from_slice(&data[from..from + len]);
    }
    out
}

/// The one file of the corpus with a time that no unpacker keeps: it becomes 1970.
const BEFORE_1970: &str = "etc/before-1970";

fn assert_like_oracle(room: &Room, toc: &Toc, layer: &SyntheticLayer) {
    let overlook = Overlook::nothing()
        .field(Field::Content)
        .field_at(BEFORE_1970, Field::Mtime);
    let oracle = FileTree::of_oracle(&layer.oracle, Marks::Facts);
    let differences = compare_trees(&oracle, &FileTree::of_toc(toc), &overlook).unwrap();
    assert!(differences.is_empty(), "{differences}");
    let data = room.data_space(toc);
    for e in &layer.oracle.entries {
        let id = toc.tree().find(&e.path).expect("compared above");
        let inode = toc.tree().inode(toc.tree().entry(id).unwrap().inode).unwrap();
        match (&e.kind, &inode.kind) {
            (OracleKind::File { content }, Kind::Regular(found)) => {
                assert!(file_bytes(found, &data) == *content, "{}", e.path.escape_ascii());
            }
            (OracleKind::Directory { opaque, .. }, Kind::Directory { opaque: found, .. }) => {
                assert_eq!(opaque, found, "{}", e.path.escape_ascii());
            }
            _ => {}
        }
    }
}

fn refusal(result: Result<Toc, ConvertError>) -> String {
    match result {
        Err(ConvertError::Refused(reason)) => reason.to_string(),
        other => panic!("not refused: {:?}", other.map(|toc| toc.encode().unwrap().len())),
    }
}

fn failure(result: Result<Toc, ConvertError>) -> Failure {
    match result {
        Err(ConvertError::Failed(failure)) => failure,
        other => panic!("not failed: {:?}", other.map(|toc| toc.encode().unwrap().len())),
    }
}

fn paths(toc: &Toc) -> Vec<String> {
    let count = toc.tree().entries().len() as u32;
    let mut out: Vec<_> = (1..count)
        .map(|i| String::from_utf8(toc.tree().path(EntryId(i))).unwrap())
        .collect();
    out.sort();
    out
}
