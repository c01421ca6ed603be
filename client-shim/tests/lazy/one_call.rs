//! What the pull of a ready image asks the server: counted requests, in rounds that wait for each other.

use std::collections::BTreeMap;
use std::sync::Arc;

use headstart_layer_format::{BlobDigest, ChainId};
use headstart_shim::config::SnapshotterConfig;
use headstart_shim::fetch::Servers;
use headstart_shim::profile::PrefetchConfig;
use headstart_shim::snapshotter::engine::{Engine, Prepared};
use headstart_shim::snapshotter::lazy::NodeLazy;

use crate::support::node::{lazy_config, patient_fetch};
use crate::support::{FakeServer, Item, LayerBuilder, Node, TestLayer, noise};

/// More than most images have.
const LAYERS: usize = 40;

fn layers(seed: u64) -> Vec<Arc<TestLayer>> {
    let layer = |i: usize| {
        let content = noise(10_000, seed + i as u64);
        LayerBuilder::new()
            .add(format!("file-{i}"), Item::file(content))
            .build(1 << 16)
    };
    (0..LAYERS).map(layer).collect()
}

/// As containerd prepares them: one after the other, each on the one below.
async fn pull(engine: &Engine<NodeLazy>, layers: &[Arc<TestLayer>], manifest: Option<BlobDigest>) {
    let diff_ids: Vec<_> = layers.iter().map(|l| *l.toc.diff_id()).collect();
    let mut parent = String::new();
    for chain in ChainId::chain(&diff_ids) {
        let mut labels = BTreeMap::from([("containerd.io/snapshot.ref".to_owned(), chain.to_string())]);
        if let Some(manifest) = manifest {
            labels.insert(
                "containerd.io/snapshot/cri.manifest-digest".into(),
                manifest.to_string(),
            );
        }
        let prepared = engine
            .prepare(format!("extract {chain}"), parent, labels)
            .await
            .unwrap();
        assert!(matches!(prepared, Prepared::Adopted), "{prepared:?}");
        parent = chain.to_string();
    }
}

#[test]
fn a_ready_image_costs_one_question_and_its_tocs_at_once_and_a_known_one_nothing() {
    for labelled in [true, false] {
        let mut server = FakeServer::start();
        let layers = layers(7);
        let manifest = BlobDigest::of(b"image");
        server.serve_image(manifest, &layers);
        // Whoever asks for one TOC after the other waits for ever here.
        server.group_tocs(LAYERS);
        let root = tempfile::tempdir().unwrap();
        let node = Node::open_as(root.path(), &[server.url()], lazy_config(), &patient_fetch()).unwrap();
        let servers = Servers::new(&[server.url()], &patient_fetch()).unwrap();
        node.block_on(async {
            // A slow machine is as good as a far server.
            let prefetch = PrefetchConfig {
                explore: false,
                ..PrefetchConfig::default()
            };
            let lazy = NodeLazy::new(servers, Some(node.layers.clone()), true, &prefetch);
            let config = SnapshotterConfig {
                present_timeout_ms: 60_000,
                ..SnapshotterConfig::default()
            };
            let engine = Engine::open(root.path(), &config, lazy).await.unwrap();
            pull(&engine, &layers, labelled.then_some(manifest)).await;
            let log = server.log();
            let first = match labelled {
                true => "GET /images/",
                false => "GET /chains/",
            };
            assert!(log[0].starts_with(first), "{log:?}");
            let tocs = log
                .iter()
                .filter(|l| l.starts_with("GET /layers/") && l.contains("/toc?"));
            assert_eq!((tocs.count(), log.len()), (LAYERS, 1 + LAYERS), "{log:?}");

            // All of it again, as a second tag of the image: nobody is asked.
            pull(&engine, &layers, labelled.then_some(BlobDigest::of(b"another"))).await;
            assert_eq!(server.log().len(), log.len());
            engine.shutdown().await;
        });
        server.down();
    }
}

/// Below or above the layer that is here: neither its place nor its chain matters.
#[test]
fn an_image_with_one_layer_that_is_new_costs_one_question_and_one_toc() {
    let mut server = FakeServer::start();
    let all = layers(90);
    let [known, shared, above, below] = &all[..4] else {
        panic!("{} layers", all.len())
    };
    let image = |layers: [&Arc<TestLayer>; 2], name: &[u8]| {
        let (manifest, layers) = (BlobDigest::of(name), layers.map(Arc::clone));
        server.serve_image(manifest, &layers);
        (manifest, layers)
    };
    let first = image([shared, known], b"first");
    let next = [
        image([shared, above], b"new above"),
        image([below, shared], b"new below"),
    ];
    let root = tempfile::tempdir().unwrap();
    let node = Node::open_as(root.path(), &[server.url()], lazy_config(), &patient_fetch()).unwrap();
    let servers = Servers::new(&[server.url()], &patient_fetch()).unwrap();
    node.block_on(async {
        let prefetch = PrefetchConfig {
            explore: false,
            ..PrefetchConfig::default()
        };
        let lazy = NodeLazy::new(servers, Some(node.layers.clone()), true, &prefetch);
        let config = SnapshotterConfig {
            present_timeout_ms: 60_000,
            ..SnapshotterConfig::default()
        };
        let engine = Engine::open(root.path(), &config, lazy).await.unwrap();
        pull(&engine, &first.1, Some(first.0)).await;
        for ((manifest, layers), new) in next.iter().zip([above, below]) {
            let before = server.log().len();
            pull(&engine, layers, Some(*manifest)).await;
            let asked = server.log().split_off(before);
            assert_eq!(asked.len(), 2, "{asked:?}");
            assert!(asked[0].starts_with(&format!("GET /images/{manifest}?")), "{asked:?}");
            assert!(
                asked[1].starts_with(&format!("GET /layers/{}/toc?", new.digest)),
                "{asked:?}"
            );
        }
        engine.shutdown().await;
    });
    server.down();
}
