//! Presenting layers: what the servers' answers lead to.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headstart_layer_format::BlobDigest;
use headstart_layer_format::api::LayerState;
use headstart_shim::fetch::{FetchError, Servers};
use headstart_shim::layers::{LayersError, LazyConfig};

use crate::support::node::{fetch_config, lazy_config};
use crate::support::{FakeServer, Item, LayerBuilder, Node, TestLayer, What, noise};

fn small(seed: u64) -> Arc<TestLayer> {
    LayerBuilder::new().add("f", Item::file(noise(5_000, seed))).build(8192)
}

#[test]
fn a_conversion_is_waited_for_and_a_definite_no_is_not() {
    let server = FakeServer::start();
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    let layer = small(1);
    assert!(matches!(node.present(&layer.digest), Err(LayersError::Unknown)));
    server.serve(&layer);
    server.states(&layer.digest, &[LayerState::Refused]);
    match node.present(&layer.digest) {
        Err(LayersError::Refused(why)) => assert_eq!(why, "because"),
        other => panic!("{other:?}"),
    }
    server.states(
        &layer.digest,
        &[LayerState::Queued, LayerState::Converting, LayerState::Failed],
    );
    let presented = node.present(&layer.digest).unwrap();
    assert!(fs::read(presented.lowerdir.join("f")).unwrap() == noise(5_000, 1));
    assert_eq!(presented.entry_count, 2);
    assert_eq!(presented.data_size, 8192);

    let slow = small(2);
    server.serve(&slow);
    server.states(&slow.digest, &[LayerState::Converting; 1000]);
    let late = node.present_within(&slow.digest, Duration::from_millis(600));
    assert!(matches!(late, Err(LayersError::NotReady(_))), "{late:?}");
}

#[test]
fn a_toc_that_is_damaged_or_of_another_layer_is_not_presented() {
    let server = FakeServer::start();
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    let (layer, other) = (small(1), small(2));
    server.serve(&layer);
    let mut cut = layer.encoded.clone();
    cut.pop();
    for lie in [other.encoded.clone(), cut, Vec::new(), b"HSTOC\r\n\x01".to_vec()] {
        server.lie_about_tocs(lie);
        let answer = node.present(&layer.digest);
        assert!(
            matches!(answer, Err(LayersError::Fetch(FetchError::Malformed(_)))),
            "{answer:?}"
        );
    }
    server.lie_about_tocs(layer.encoded.clone());
    assert!(node.present(&layer.digest).is_ok());
}

#[test]
fn many_callers_cause_one_request_and_get_one_slot() {
    let server = FakeServer::start();
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    let layer = small(1);
    server.serve(&layer);
    let calls: Vec<_> = (0..16)
        .map(|_| {
            let (layers, digest) = (node.layers.clone(), layer.digest);
            async move {
                let deadline = Instant::now() + Duration::from_secs(20);
                layers.present(&digest, deadline).await.unwrap().slot
            }
        })
        .collect();
    let slots = node.block_on(async {
        let tasks: Vec<_> = calls.into_iter().map(tokio::spawn).collect();
        let mut slots = Vec::new();
        for task in tasks {
            slots.push(task.await.unwrap());
        }
        slots
    });
    assert!(slots.iter().all(|s| *s == slots[0]));
    assert_eq!(server.toc_requests(), 1);
}

#[test]
fn what_is_admitted_is_shown_without_a_server_and_a_pull_does_not_wait_for_its_tree() {
    let root = tempfile::tempdir().unwrap();
    let admit = |node: &Node, layer: &TestLayer| {
        let deadline = Instant::now() + Duration::from_secs(20);
        node.block_on(node.layers.admit(&layer.digest, deadline))
    };
    let mut server = FakeServer::start();
    let node = Node::open(root.path(), &[&server]);
    let wide: Vec<_> = (0..5)
        .map(|seed| {
            let named = |builder: LayerBuilder, n| builder.add(format!("{seed}-{n}"), Item::file(noise(10, n)));
            (0..5_000).fold(LayerBuilder::new(), named).build(8192)
        })
        .collect();
    assert!(matches!(admit(&node, &wide[0]), Err(LayersError::Unknown)));
    let mut not_yet_shown = 0;
    for layer in &wide {
        server.serve(layer);
        assert_eq!(admit(&node, layer).unwrap(), *layer.toc.diff_id());
        // Before the snapshot is on record, and so before the tree is made.
        let source = "registry.example.org/app:1".parse().unwrap();
        node.block_on(node.layers.learn_source(&layer.digest, source));
        assert!(
            root.path()
                .join("cache")
                .join(layer.digest.hex())
                .join("sources")
                .exists()
        );
        not_yet_shown += usize::from(node.layers.present_known(&layer.digest).is_err());
    }
    // A tree of the FUSE mount is made when somebody looks; an image takes some 10 ms.
    if node.layers.status().presentation == "erofs" {
        assert!(not_yet_shown > 0);
    }
    server.down();
    // Gone before it was shown, or just after.
    node.release(&wide[4].digest);
    node.present_within(&wide[4].digest, Duration::from_millis(300))
        .expect_err("nobody has it any more");
    let names = |dir: &Path| fs::read_dir(dir).unwrap().count();
    assert!(node.block_on(node.layers.shown(&wide[4].digest)).is_none());
    let shown = node.block_on(node.layers.shown(&wide[3].digest)).unwrap();
    assert_eq!(names(&shown.lowerdir), 5_000);
    // A start knows it from the disk, looked at or not.
    node.stop();
    let node = Node::open(root.path(), &[&server]);
    for layer in &wide[..4] {
        assert_eq!(admit(&node, layer).unwrap(), *layer.toc.diff_id());
        assert_eq!(names(&node.show(layer)), 5_000);
    }
}

#[test]
fn without_a_server_present_says_so_in_time() {
    let mut server = FakeServer::start();
    server.down();
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    let digest = BlobDigest::of(b"whatever");
    let answer = node.present_within(&digest, Duration::from_secs(1));
    match answer {
        Err(LayersError::Fetch(e)) => assert!(e.is_transient(), "{e}"),
        Err(LayersError::NotReady(_)) => {}
        other => panic!("{other:?}"),
    }
}

/// A server whose process hangs still takes connections. It was waited for until the caller's time was up, which also
/// kept it from being noted as down, so a node with such a server first never started anything lazily.
#[test]
fn a_server_that_never_answers_does_not_hide_the_next() {
    let hung = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = FakeServer::start();
    let layer = small(1);
    server.serve(&layer);
    server.states(&layer.digest, &[LayerState::Converting]);
    let urls = [format!("http://{}", hung.local_addr().unwrap()), server.url()];
    let root = tempfile::tempdir().unwrap();
    let node = Node::open_with(root.path(), &urls, lazy_config()).unwrap();
    // One answer may take 1 s here.
    let presented = node.present_within(&layer.digest, Duration::from_secs(8)).unwrap();
    assert!(fs::read(presented.lowerdir.join("f")).unwrap() == noise(5_000, 1));
}

/// The same at the first question of a pull, which held it up for the wait for conversions on top (23 s by default) before
/// containerd was told to go on by itself.
#[test]
fn a_server_that_never_answers_holds_a_pull_up_only_shortly() {
    let hung = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let servers = Servers::new(&[format!("http://{}", hung.local_addr().unwrap())], &fetch_config()).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let ask = async {
        let manifest = BlobDigest::of(b"manifest");
        // One answer may take 1 s here.
        tokio::time::timeout(Duration::from_secs(10), servers.image(&manifest, 20_000)).await
    };
    let answer = runtime.block_on(ask).expect("an answer in time");
    assert!(answer.is_err_and(|e| e.is_transient()));
}

/// A `present` whose time is up leaves work behind on a thread (here: a disk that hangs, played by a pipe). A `release`
/// or second `present` of the layer used to overtake it: two makers of one directory, or a layer that nobody releases.
#[test]
fn a_layer_half_made_is_not_overtaken() {
    let server = FakeServer::start();
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    // Numbers of slots are reserved so many at a time: the next one needs the disk.
    for seed in 100..164 {
        let other = small(seed);
        server.serve(&other);
        node.present(&other.digest).unwrap();
        node.release(&other.digest);
    }
    let layer = small(1);
    server.serve(&layer);
    let pipe = root.path().join("cache/next_slot.new");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let late = node.present_within(&layer.digest, Duration::from_secs(1));
    assert!(matches!(late, Err(LayersError::NotReady(_))), "{late:?}");
    let (layers, digest) = (node.layers.clone(), layer.digest);
    node.block_on(async {
        let release = tokio::spawn(async move { layers.release(&digest).await });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!release.is_finished(), "the layer is still being made");
        // The thread goes on, and finds that a pipe cannot be synced.
        let end = fs::File::options().read(true).write(true).open(&pipe).unwrap();
        tokio::time::timeout(Duration::from_secs(10), release)
            .await
            .unwrap()
            .unwrap();
        drop(end);
    });
    fs::remove_file(&pipe).unwrap();
    assert!(node.present(&layer.digest).is_ok());
}

#[test]
fn a_full_node_declines() {
    let server = FakeServer::start();
    let root = tempfile::tempdir().unwrap();
    let config = LazyConfig {
        layers_max: 1,
        ..lazy_config()
    };
    let node = Node::open_with(root.path(), &[server.url()], config).unwrap();
    let (one, two) = (small(1), small(2));
    server.serve(&one);
    server.serve(&two);
    node.present(&one.digest).unwrap();
    assert!(matches!(node.present(&two.digest), Err(LayersError::Full(1))));
    node.release(&one.digest);
    assert!(node.present(&two.digest).is_ok());
}

/// A layer without an entry for a directory must not change the owner that a lower layer gave it.
#[test]
fn a_stack_that_would_lose_a_directorys_owner_is_named() {
    let base = LayerBuilder::new()
        .add("usr", Item::dir())
        .add("home/app", Item::dir().owner(1000, 1000).mode(0o700))
        .build(4096);
    let app = LayerBuilder::new().add("home/app/x", Item::file("x")).build(4096);
    let tool = LayerBuilder::new().add("usr/bin/t", Item::file("t")).build(4096);
    let whole = LayerBuilder::new()
        .add("home/app", Item::dir().owner(1, 1))
        .add("home/app/y", Item::file("y"))
        .build(4096);
    let hidden = LayerBuilder::new().add("home", Item::new(What::Whiteout)).build(4096);
    let server = FakeServer::start();
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    let plain = LayerBuilder::new().add("usr", Item::dir()).build(4096);
    for layer in [&base, &app, &tool, &whole, &hidden, &plain] {
        server.serve(layer);
        node.show(layer);
    }
    let conflict = |stack: &[&Arc<TestLayer>]| {
        let stack: Vec<BlobDigest> = stack.iter().map(|l| l.digest).collect();
        node.layers.implied_conflict(&stack, false)
    };
    assert_eq!(conflict(&[&base, &app]).as_deref(), Some("home/app"));
    assert_eq!(conflict(&[&base, &tool, &app]).as_deref(), Some("home/app"));
    assert_eq!(
        conflict(&[&base, &hidden, &app]).as_deref(),
        Some("home/app"),
        "careful, not clever"
    );
    assert_eq!(conflict(&[&app, &base]), None);
    assert_eq!(conflict(&[&base, &tool, &whole]), None);
    // Over a snapshot without a TOC any directory may be described; the layer's own entries are safe.
    let over_unpacked = |layer: &Arc<TestLayer>| node.layers.implied_conflict(&[layer.digest], true);
    assert_eq!(over_unpacked(&app).as_deref(), Some("home"));
    assert_eq!(over_unpacked(&plain), None);
}

/// containerd looks for the directory in each lower layer by itself, and follows the links of that layer.
#[test]
fn a_directory_that_lower_layers_have_behind_a_link_is_named() {
    let private = || Item::dir().owner(1000, 1000).mode(0o700);
    let link = |target: &str| Item::new(What::Symlink(target.as_bytes().to_vec()));
    let base = |target: &str| {
        let layer = LayerBuilder::new().add("real/app", private()).add("home", link(target));
        layer.add("real/plain", Item::dir()).build(4096)
    };
    let app = LayerBuilder::new().add("home/app/x", Item::file("x")).build(4096);
    let plain = LayerBuilder::new().add("home/plain/x", Item::file("x")).build(4096);
    let server = FakeServer::start();
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    let conflict = |stack: &[&Arc<TestLayer>]| {
        for layer in stack {
            server.serve(layer);
            node.show(layer);
        }
        let stack: Vec<BlobDigest> = stack.iter().map(|l| l.digest).collect();
        node.layers.implied_conflict(&stack, false)
    };
    for target in ["real", "/real", "../../real/.", "missing/../real"] {
        let base = base(target);
        assert_eq!(conflict(&[&base, &app]).as_deref(), Some("home/app"), "{target}");
        assert_eq!(conflict(&[&base, &plain]), None, "{target}");
    }
    assert_eq!(conflict(&[&base("nowhere"), &app]), None);
    // A file in its place hides the directory below it, and so nothing is copied.
    let below = LayerBuilder::new().add("home/app", private()).build(4096);
    let file = LayerBuilder::new().add("home/app", Item::file("")).build(4096);
    assert_eq!(conflict(&[&below, &file, &app]), None);
    // A link across layers is none: its target is looked for in its own layer, and then in the ones below by its own name.
    let linked = LayerBuilder::new().add("home", link("real")).build(4096);
    assert_eq!(conflict(&[&base("nowhere"), &linked, &app]), None);
    // What a lower layer implies, behind a link there, was copied by the same rule.
    let bottom = LayerBuilder::new().add("real/app", private()).build(4096);
    let implied = LayerBuilder::new()
        .add("home", link("real"))
        .add("real/app/y", Item::file("y"))
        .build(4096);
    assert_eq!(conflict(&[&bottom, &implied]).as_deref(), Some("real/app"));
    // Links without an end: unpacking fails, so it is not for us.
    let turning = LayerBuilder::new().add("home", link("home")).build(4096);
    assert_eq!(conflict(&[&turning, &app]).as_deref(), Some("home"));
}
