//! Small inputs that are accepted, each with something of its own.
//!
//! In: an entry point's name. Out: names and bytes. Invariant: deterministic.
//! Not here: mutations.

use headstart_layer_format::ChainId;
use headstart_layer_format::toc::{
    ChunkEntry, ChunkTable, Content, Entry, EntryId, Inode, InodeId, Kind, Mtime, SkeletonBuilder, Toc, Tree,
};
use headstart_layer_format::{BlobDigest, ChunkDigest, DiffId};
use headstart_shim::fuzz::diff_ids;
use headstart_shim::proto::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest,
    RemoveSnapshotRequest, StatSnapshotRequest, UpdateSnapshotRequest, UsageRequest, ViewSnapshotRequest,
};
use prost::Message;

type Seeds = Vec<(&'static str, Vec<u8>)>;

pub fn of(target: &str) -> Seeds {
    match target {
        "shim_labels" => labels(),
        "shim_filters" => filters(),
        "shim_toc" => vec![("small", toc())],
        "shim_calls" => calls(),
        other => panic!("no seeds of {other}"),
    }
}

fn joined(texts: &[&str]) -> Vec<u8> {
    texts.join("\0").into_bytes()
}

fn labels() -> Seeds {
    let chain = ChainId::of(b"c").to_string();
    let digest = BlobDigest::of(b"l").to_string();
    let cri = [
        "containerd.io/snapshot.ref",
        &chain,
        "containerd.io/snapshot/cri.manifest-digest",
        &digest,
        "containerd.io/snapshot/cri.layer-digest",
        &digest,
        "containerd.io/snapshot/cri.image-ref",
        "r.test/a:1",
    ];
    let users = [
        "containerd.io/snapshot/uidmapping",
        "0:100000:65536,70000:1:1",
        "containerd.io/snapshot/gidmapping",
        "0:200000:65536",
    ];
    vec![
        ("chain", joined(&cri[..2])),
        ("cri", joined(&cri)),
        ("users", joined(&users)),
        ("both", joined(&[&cri[..], &users[..]].concat())),
    ]
}

fn filters() -> Seeds {
    [
        ("walk", r#"labels."containerd.io/snapshot.ref"==sha256:ab,parent=="""#),
        ("kinds", "kind==committed\0kind!=view"),
        ("regex", r"name~=^k8s\.io/\d+"),
        ("present", r#"labels."a.b/c""#),
        ("quoted", r#"name=="\x41\u00e9\n",parent=='x'"#),
    ]
    .map(|(name, text)| (name, text.as_bytes().to_vec()))
    .into()
}

fn toc() -> Vec<u8> {
    let mut skeleton = SkeletonBuilder::new().unwrap();
    skeleton.literal(&[7; 512]).unwrap();
    let range = skeleton.body(5000);
    let inode = |kind| Inode {
        mode: 0o644,
        uid: 1000,
        gid: 0,
        mtime: Mtime::default(),
        xattrs: Vec::new(),
        kind,
    };
    let directory = Kind::Directory {
        opaque: false,
        implied: false,
    };
    let entry = |parent, name: &[u8], inode| Entry {
        parent: EntryId(parent),
        name: name.into(),
        inode: InodeId(inode),
    };
    let entries = vec![
        entry(0, b"", 0),
        entry(0, b"dir", 1),
        entry(0, b"gone", 2),
        entry(1, b"file", 3),
        entry(1, b"same", 3),
    ];
    let inodes = vec![
        inode(directory.clone()),
        inode(directory),
        inode(Kind::Whiteout),
        inode(Kind::Regular(Content::whole(range))),
    ];
    let chunk = ChunkEntry {
        digest: ChunkDigest::of(b"x"),
        raw_len: 8192,
        frame_len: 100,
    };
    let toc = Toc::new(
        BlobDigest::of(b"layer"),
        DiffId::of(b"layer"),
        Tree::new(entries, inodes).unwrap(),
        ChunkTable::new(vec![chunk]).unwrap(),
        skeleton.finish().unwrap(),
    );
    toc.unwrap().encode().unwrap()
}

fn step(call: u8, message: &impl Message) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    let mut step = vec![call];
    step.extend(u16::try_from(bytes.len()).unwrap().to_le_bytes());
    step.extend(bytes);
    step
}

fn prepare(key: &str, parent: &str, labels: &[(&str, &str)]) -> Vec<u8> {
    let request = PrepareSnapshotRequest {
        snapshotter: "headstart".into(),
        key: key.into(),
        parent: parent.into(),
        labels: labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
    };
    step(0, &request)
}

fn calls() -> Seeds {
    let name = |key: &str| StatSnapshotRequest {
        key: key.into(),
        ..Default::default()
    };
    let commit = CommitSnapshotRequest {
        name: "../../base".into(),
        key: "a".into(),
        ..Default::default()
    };
    let view = ViewSnapshotRequest {
        key: "v".into(),
        parent: "../../base".into(),
        ..Default::default()
    };
    let remove = |key: &str| RemoveSnapshotRequest {
        key: key.into(),
        ..Default::default()
    };
    let update = UpdateSnapshotRequest {
        info: Some(Info {
            name: "a".into(),
            labels: [("x".into(), "y".into())].into(),
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["labels.x".into()],
        }),
        ..Default::default()
    };
    let list = ListSnapshotsRequest {
        filters: vec!["kind==committed".into()],
        ..Default::default()
    };
    let mounts = MountsRequest {
        key: "v".into(),
        ..Default::default()
    };
    let usage = UsageRequest {
        key: "a".into(),
        ..Default::default()
    };
    let ordinary = [
        prepare("a", "", &[]),
        step(5, &name("a")),
        step(6, &update),
        step(8, &usage),
        step(3, &commit),
        step(1, &view),
        step(2, &mounts),
        step(7, &list),
        step(4, &remove("v")),
        step(4, &remove("../../base")),
        step(9, &CleanupRequest::default()),
    ];
    let chains = ChainId::chain(&diff_ids())
        .into_iter()
        .map(|c| c.to_string())
        .collect::<Vec<_>>();
    let lazy = [
        prepare("extract-1", "", &[("containerd.io/snapshot.ref", &chains[0])]),
        prepare("extract-2", &chains[0], &[("containerd.io/snapshot.ref", &chains[1])]),
        prepare("c", &chains[1], &[]),
        step(4, &remove(&chains[1])),
        step(4, &remove("c")),
        step(4, &remove(&chains[1])),
    ];
    vec![("ordinary", ordinary.concat()), ("lazy", lazy.concat())]
}
