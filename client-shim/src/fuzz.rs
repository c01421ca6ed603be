//! Everything here that reads what others wrote, as functions of bytes: the table of entry points for fuzzers.
//!
//! In: bytes. Out: whether they were accepted; a panic if what must hold for any input does not. Two drivers call the same
//! functions: the mutation harness of the tests (`client-shim/tests/fuzz_node`) and libFuzzer (`fuzz/`).
//! Invariant: bounded in time and memory by the input's length; nothing is written but below a directory of their own.
//! Not here: making inputs; decoding TOCs and chunk streams (`layer-format`), which the server's table has.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use headstart_layer_format::api::{ChainStatus, ImageStatus, LayerState, LayerStatus};
use headstart_layer_format::toc::{EntryId, InodeId, Kind};
use headstart_layer_format::{BlobDigest, ChainId, DiffId, Toc};
use prost::Message;
use tonic::{Request, Response, Status};

use crate::config::SnapshotterConfig;
use crate::erofs::ShortTimes;
use crate::fuse::tree_file::{Blocks, TreeFile};
use crate::fuse::xattrs::plain_xattrs;
use crate::presentation::implied;
use crate::proto::snapshots::snapshots_server::Snapshots;
use crate::proto::snapshots::{
    CleanupRequest, CommitSnapshotRequest, ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest,
    RemoveSnapshotRequest, StatSnapshotRequest, UpdateSnapshotRequest, UsageRequest, ViewSnapshotRequest,
};
use crate::snapshotter::decline::DeclineReason;
use crate::snapshotter::engine::Engine;
use crate::snapshotter::filter::Filters;
use crate::snapshotter::idmap::IdMap;
use crate::snapshotter::labels::{LayerIdentity, SNAPSHOT_REF};
use crate::snapshotter::lazy::{LazyError, LazyLayers};
use crate::snapshotter::record::{Labels, Record, Usage};
use crate::snapshotter::service::SnapshotService;
use crate::snapshotter::store::SnapshotStore;

/// An entry point, and the name that its inputs are kept under.
pub type Target = (&'static str, fn(&[u8]) -> bool);

/// All of them.
pub const TARGETS: [Target; 4] = [
    ("shim_labels", shim_labels),
    ("shim_filters", shim_filters),
    ("shim_toc", shim_toc),
    ("shim_calls", shim_calls),
];

/// Texts, with a NUL after each.
fn texts(data: &[u8]) -> Vec<String> {
    data.split(|b| *b == 0)
        .map(|t| String::from_utf8_lossy(t).into_owned())
        .collect()
}

/// Labels of a `Prepare`, names and values in turn.
pub fn shim_labels(data: &[u8]) -> bool {
    let texts = texts(data);
    let labels: Labels = texts.chunks_exact(2).map(|p| (p[0].clone(), p[1].clone())).collect();
    let identity = LayerIdentity::from_labels(&labels);
    if let Some(identity) = &identity {
        assert_eq!(labels[SNAPSHOT_REF], identity.chain_id.to_string());
    }
    let map = IdMap::from_labels(&labels).ok().flatten();
    if let Some(map) = &map {
        for id in [0, 1, 65_535, u32::MAX] {
            let _ = map.outside(id, id);
        }
    }
    identity.is_some() || map.is_some()
}

/// Filters of a `List`.
pub fn shim_filters(data: &[u8]) -> bool {
    let Ok(filters) = Filters::parse(&texts(data)) else {
        return false;
    };
    let record: Record = serde_json::from_str(
        r#"{"version":1,"id":1,"name":"k8s.io/1/a","kind":"committed","labels":{"a.b/c":"x"},"created":1,"updated":1}"#,
    )
    .expect("a record");
    let once = filters.matches(&record);
    assert_eq!(once, filters.matches(&record));
    true
}

/// A TOC that a server sent, as far as it is turned into a tree: names stay in their directory, an image is made or refused,
/// a file of it has what the TOC has.
pub fn shim_toc(data: &[u8]) -> bool {
    let Ok(toc) = Toc::decode(data) else {
        return false;
    };
    for (i, entry) in toc.tree().entries().iter().enumerate().skip(1) {
        let name: &[u8] = &entry.name;
        assert!(
            !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/') && !name.contains(&0),
            "{name:?}"
        );
        let path = toc.tree().path(EntryId(i as u32));
        assert!(
            !path.starts_with(b"/") && !path.split(|b| *b == b'/').any(|part| part == b".."),
            "{path:?}"
        );
    }
    let _ = implied::conflict(&[&toc, &toc], true);
    kept(&toc, data);
    for short in [ShortTimes::Common, ShortTimes::Own] {
        let mut sink = Sink(0);
        let _ = crate::erofs::write(&toc, short, &mut sink);
        // The bounds of `crate::erofs`, which a small TOC cannot even approach but by sparse files.
        assert!(sink.0 <= 3 << 30, "{} bytes", sink.0);
    }
    true
}

/// Its tree, as it is kept on disk, has each name where the TOC has it, and everything can be asked.
fn kept(toc: &Toc, encoded: &[u8]) {
    static BLOCKS: LazyLock<Arc<Blocks>> = LazyLock::new(Arc::default);
    let file = TreeFile::in_memory(toc, &Toc::digest(encoded), &BLOCKS).expect("memory for a small tree");
    let tree = toc.tree();
    let record = |id| file.inode(id).expect("just written").expect("in the tree");
    for entry in tree.entries().iter().skip(1) {
        let parent = tree.entry(entry.parent).expect("a tree").inode;
        let found = file.lookup(&record(parent), &entry.name).expect("just written");
        assert_eq!(found, Some(entry.inode));
    }
    for (id, inode) in (0..).map(InodeId).zip(tree.inodes()) {
        let record = record(id);
        let shown = file.xattrs(&record).expect("just written");
        assert!(shown.iter().eq(plain_xattrs(inode)));
        let (target, extents) = (file.link(&record), file.extents(&record, 0, record.size()));
        assert_eq!(
            (
                target.expect("just written").is_some(),
                extents.expect("just written").is_some()
            ),
            (
                matches!(inode.kind, Kind::Symlink { .. }),
                matches!(inode.kind, Kind::Regular(_))
            )
        );
    }
}

struct Sink(u64);

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Calls in one input.
const CALLS_MAX: usize = 24;

/// A call a step: its number, its message's length (two bytes, little-endian), its message. They are made on an empty
/// snapshotter, whose directory is then read by another.
pub fn shim_calls(data: &[u8]) -> bool {
    let steps = steps(data);
    if steps.is_empty() {
        return false;
    }
    // Memory where there is some: each call syncs.
    let place = Some(Path::new("/dev/shm"))
        .filter(|p| p.is_dir())
        .map_or_else(std::env::temp_dir, Path::to_owned);
    let outer = Outer(place.join(format!(
        "headstart-fuzz-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    )));
    let root = outer.0.join("root");
    std::fs::create_dir_all(&root).expect("a directory of our own");
    std::fs::write(outer.0.join("sentinel"), "untouched").expect("a file of our own");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let (succeeded, records) = runtime.block_on(async {
        let config = SnapshotterConfig {
            prepare_wait_ms: 0,
            sync_on_commit: false,
            ..SnapshotterConfig::default()
        };
        let engine = Engine::open(&root, &config, Willing(root.join("lower")))
            .await
            .expect("an empty root");
        let engine = Arc::new(engine);
        let service = SnapshotService::new(engine.clone());
        let mut succeeded = 0;
        for (call, message) in steps {
            succeeded += usize::from(make(&service, call, message).await);
        }
        engine.cleanup().await;
        engine.shutdown().await;
        (succeeded, engine.snapshots())
    });
    drop(runtime);
    // Nothing but the root changed, and what was told is on disk.
    let mut around: Vec<_> = std::fs::read_dir(&outer.0)
        .expect("still there")
        .flatten()
        .map(|e| e.file_name())
        .collect();
    around.sort();
    assert_eq!(around, ["root", "sentinel"]);
    assert_eq!(
        std::fs::read(outer.0.join("sentinel")).expect("still there"),
        b"untouched"
    );
    let reloaded = SnapshotStore::open(&root, false)
        .expect("what was written is read")
        .all();
    let mut by_name: HashMap<&str, &Record> = reloaded.iter().map(|r| (r.name.as_str(), &**r)).collect();
    for record in &records {
        assert_eq!(by_name.remove(record.name.as_str()), Some(&**record));
    }
    assert!(by_name.is_empty(), "{by_name:?}");
    succeeded > 0
}

struct Outer(PathBuf);

impl Drop for Outer {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn steps(mut data: &[u8]) -> Vec<(u8, &[u8])> {
    let mut steps = Vec::new();
    while let [call, low, high, rest @ ..] = data
        && steps.len() < CALLS_MAX
    {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        steps.push((*call, &rest[..len]));
        data = &rest[len..];
    }
    steps
}

/// Whether the call was understood and succeeded.
async fn make(service: &SnapshotService<Willing>, call: u8, message: &[u8]) -> bool {
    fn read<M: Message + Default>(message: &[u8]) -> Option<Request<M>> {
        M::decode(message).ok().map(Request::new)
    }
    fn ended<T>(outcome: Result<Response<T>, Status>) -> bool {
        outcome.is_ok_and(|_| true)
    }
    macro_rules! calls {
        ($($number:literal $method:ident $request:ident,)*) => {
            match call % 10 {
                $($number => match read::<$request>(message) {
                    Some(request) => ended(service.$method(request).await),
                    None => false,
                },)*
                _ => false,
            }
        };
    }
    calls! {
        0 prepare PrepareSnapshotRequest,
        1 view ViewSnapshotRequest,
        2 mounts MountsRequest,
        3 commit CommitSnapshotRequest,
        4 remove RemoveSnapshotRequest,
        5 stat StatSnapshotRequest,
        6 update UpdateSnapshotRequest,
        7 list ListSnapshotsRequest,
        8 usage UsageRequest,
        9 cleanup CleanupRequest,
    }
}

/// DiffIDs of the only image that [`Willing`] knows, bottom first.
pub fn diff_ids() -> [DiffId; 3] {
    [b"0", b"1", b"2"].map(|l: &[u8; 1]| DiffId::of(l))
}

/// A lazy side that has one image, with every layer ready.
#[derive(Debug)]
struct Willing(PathBuf);

impl Willing {
    fn layer(diff_id: &DiffId) -> BlobDigest {
        BlobDigest::of(diff_id.to_string().as_bytes())
    }

    fn known_diff_id(layer: &BlobDigest) -> Result<DiffId, LazyError> {
        let diff_id = diff_ids().into_iter().find(|d| Self::layer(d) == *layer);
        diff_id.ok_or_else(|| LazyError::new("not of the image"))
    }

    fn lowerdir(&self, layer: &BlobDigest) -> Result<PathBuf, LazyError> {
        Self::known_diff_id(layer)?;
        std::fs::create_dir_all(&self.0).map_err(LazyError::new)?;
        Ok(self.0.clone())
    }
}

impl LazyLayers for Willing {
    fn obstacle(&self) -> Option<DeclineReason> {
        None
    }

    async fn image(&self, manifest: &BlobDigest, _: u64) -> Result<Option<ImageStatus>, LazyError> {
        let layer = |diff_id: DiffId| LayerStatus {
            digest: Self::layer(&diff_id),
            state: LayerState::Ready,
            reason: None,
            diff_id: Some(diff_id),
            chain_id: None,
            media_type: None,
            size: None,
            converted: None,
            toc: None,
        };
        Ok(Some(ImageStatus {
            manifest_digest: *manifest,
            config_digest: BlobDigest::of(b"config"),
            profile: None,
            layers: diff_ids().map(layer).into(),
        }))
    }

    async fn chain(&self, chain: &ChainId) -> Result<Option<ChainStatus>, LazyError> {
        let at = ChainId::chain(&diff_ids()).iter().position(|c| c == chain).unwrap_or(0);
        Ok(Some(ChainStatus {
            chain_id: *chain,
            layer_digest: Self::layer(&diff_ids()[at]),
            diff_id: diff_ids()[at],
            images: vec![BlobDigest::of(b"manifest")],
            image: None,
        }))
    }

    async fn admit(&self, layer: &BlobDigest, _: Instant) -> Result<DiffId, LazyError> {
        Self::known_diff_id(layer)
    }

    async fn present(&self, layer: &BlobDigest, _: Instant) -> Result<PathBuf, LazyError> {
        self.lowerdir(layer)
    }

    async fn shown(&self, layer: &BlobDigest) -> Option<PathBuf> {
        self.lowerdir(layer).ok()
    }

    fn implied_conflict(&self, _: &[BlobDigest], _: bool) -> Option<String> {
        None
    }

    fn present_known(&self, layer: &BlobDigest) -> Result<PathBuf, LazyError> {
        self.lowerdir(layer)
    }

    fn known(&self) -> Vec<BlobDigest> {
        Vec::new()
    }

    async fn release(&self, _: &BlobDigest) {}

    fn usage(&self, _: &BlobDigest) -> Option<Usage> {
        Some(Usage { size: 1, inodes: 1 })
    }
}
