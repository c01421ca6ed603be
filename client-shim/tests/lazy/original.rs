//! The death of every Headstart server is only slow: bytes come out of the layer's original, from an ordinary registry.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headstart_loadtest::corpus::SyntheticImage;
use headstart_loadtest::origin::{Auth, Fault, Origin, Target};
use headstart_shim::fetch::FetchConfig;
use headstart_shim::fetch::original::OriginalConfig;
use headstart_shim::layers::LazyConfig;

use crate::mount::compare_items;
use crate::real_server::items;
use crate::support::node::{lazy_config, patient_fetch};
use crate::support::{Converted, Item, LayerBuilder, Node, noise};

fn config(root: &Path) -> FetchConfig {
    FetchConfig {
        original: OriginalConfig {
            hosts_dir: root.join("certs.d"),
            credentials_file: Some(root.join("auth.json")),
            start_after_ms: 100,
            ..OriginalConfig::default()
        },
        // No host here is silent: what slow machines take for a time-out would count as a failure.
        ..patient_fetch()
    }
}

fn open(root: &Path, server: &str) -> Node {
    Node::open_as(root, &[server.to_owned()], lazy_config(), &config(root)).unwrap()
}

/// Where reads are to fail: their readers wait less.
const SOON: Duration = Duration::from_millis(700);

fn open_impatient(root: &Path, server: &str) -> Node {
    let lazy = LazyConfig {
        demand_timeout_ms: SOON.as_millis() as u64,
        ..lazy_config()
    };
    Node::open_as(root, &[server.to_owned()], lazy, &config(root)).unwrap()
}

/// Presents every layer, and tells the node the image's name, as `Prepare` does.
fn prepare(node: &Node, image: &SyntheticImage, reference: &str) {
    for layer in &image.layers {
        node.present_within(&layer.digest, Duration::from_secs(25)).unwrap();
        let source = reference.parse().unwrap();
        node.block_on(node.layers.learn_source(&layer.digest, source));
    }
}

fn compare_all(node: &Node, image: &SyntheticImage) {
    for layer in &image.layers {
        let presented = node.layers.present_known(&layer.digest).unwrap();
        compare_items(&items(&layer.oracle), &presented.lowerdir);
    }
}

#[test]
fn every_byte_of_an_image_is_there_without_any_server_also_after_a_restart() {
    let image = SyntheticImage::seeded(11);
    let mut server = Converted::start(&image);
    let root = tempfile::tempdir().unwrap();
    let node = open(root.path(), &server.url);
    prepare(&node, &image, &format!("{}/team/app:v1", server.origin.address()));
    server.down();
    node.stop();
    server.origin.clear_calls();
    // Names are remembered, not asked for again.
    let node = open(root.path(), &server.url);
    compare_all(&node, &image);
    let counters = node.counters();
    assert_eq!(counters.read_errors.get(), 0);
    // The last bytes are read before the rebuild that brought them is over.
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let with_data = image.layers.iter().filter(|l| server.origin.bytes_sent(&l.digest) > 0);
        let (layers, rebuilds) = (with_data.count() as u64, counters.original_rebuilds.get());
        if layers == rebuilds {
            break;
        }
        assert!(Instant::now() < deadline, "{layers} layers, {rebuilds} rebuilds");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(counters.original_failures.get(), 0);
    for layer in &image.layers {
        assert!(server.origin.gets(&layer.digest).len() <= 1, "one download a layer");
    }
    let sent: u64 = image.layers.iter().map(|l| server.origin.bytes_sent(&l.digest)).sum();
    assert!(counters.original_bytes.get() <= sent && counters.original_bytes.get() > 0);
}

/// As containerd would: a dead mirror, one with wrong bytes, then the registry, which wants a token, sends the client on to
/// another host, and breaks off the first time.
#[test]
fn hosts_are_asked_in_turn_and_none_is_believed() {
    let image = SyntheticImage::seeded(5);
    let mut server = Converted::start(&image);
    let liar = Origin::with_image("team/app", "v1", &image);
    liar.always(Target::Blobs, Fault::WrongByte { at: 1000 });
    let root = tempfile::tempdir().unwrap();
    let node = open(root.path(), &server.url);
    prepare(&node, &image, "registry.test/team/app@sha256:00");
    let hosts = root.path().join("certs.d/registry.test");
    fs::create_dir_all(&hosts).unwrap();
    let origin = Arc::clone(&server.origin);
    let text = format!(
        "server = \"{}\"\n[host.\"http://127.0.0.1:1\"]\n[host.\"{}\"]\n",
        origin.url(),
        liar.url()
    );
    fs::write(hosts.join("hosts.toml"), text).unwrap();
    // "user:secret"
    let auth = r#"{"auths":{"registry.test":{"auth":"dXNlcjpzZWNyZXQ="}}}"#;
    fs::write(root.path().join("auth.json"), auth).unwrap();
    server.down();
    origin.clear_calls();
    origin.set_auth(Auth::Bearer {
        realm: None,
        service: "origin".into(),
        user: Some(("user".into(), "secret".into())),
    });
    origin.redirect_blobs(true);
    compare_all(&node, &image);
    assert_eq!(node.counters().read_errors.get(), 0);
    let calls = origin.calls();
    assert!(calls.iter().any(|c| c.status == 401) && calls.iter().any(|c| c.status == 307));
    let asked = liar.calls();
    assert!(
        !asked.is_empty()
            && asked
                .iter()
                .all(|c| c.query.as_deref().is_some_and(|q| q.contains("ns=registry.test"))),
        "{asked:?}"
    );
}

/// A server that takes questions and never answers, and no registry either: an error in bounded time. With a registry: the
/// bytes.
#[test]
fn a_frozen_server_costs_time_and_without_a_registry_an_error() {
    let image = SyntheticImage::seeded(3);
    let mut server = Converted::start(&image);
    let address = server.url.trim_start_matches("http://").to_owned();
    let root = tempfile::tempdir().unwrap();
    let node = open_impatient(root.path(), &server.url);
    let origin = Arc::clone(&server.origin);
    prepare(&node, &image, &format!("{}/team/app:v1", origin.address()));
    server.down();
    // Connections are accepted by the kernel, and that is all.
    let _frozen = std::net::TcpListener::bind(address).unwrap();
    origin.stop();
    let (path, bytes) = first_file(&node, &image);
    let started = Instant::now();
    assert_eq!(fs::read(&path).unwrap_err().raw_os_error(), Some(libc::EIO));
    // The kernel asks twice; each time the reader's deadline, and what the hosts take to fail.
    assert!(started.elapsed() < SOON * 2 + Duration::from_secs(30));
    assert!(node.counters().original_failures.get() >= 1);
    origin.restart();
    // What failed is not tried again at once, but soon.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match fs::read(&path) {
            Ok(read) => break assert!(read == bytes),
            Err(e) => assert!(Instant::now() < deadline, "{e}"),
        }
    }
}

fn first_file(node: &Node, image: &SyntheticImage) -> (std::path::PathBuf, Vec<u8>) {
    for layer in &image.layers {
        let dir = node.layers.present_known(&layer.digest).unwrap().lowerdir;
        for (path, item) in items(&layer.oracle) {
            if let crate::support::What::File(body) = &item.what
                && body.size > 0
            {
                let path = std::os::unix::ffi::OsStringExt::from_vec(path);
                return (dir.join::<std::ffi::OsString>(path), body.bytes());
            }
        }
    }
    panic!("an image without a file");
}

/// The registry's blob under this name is another: nothing of it is shown.
#[test]
fn a_registry_with_another_blob_is_an_error_and_never_its_bytes() {
    let layer = LayerBuilder::new()
        .add("f", Item::file(noise(100_000, 1)))
        .build(16 << 10);
    let mut server = crate::support::FakeServer::start();
    server.serve(&layer);
    let origin = Origin::start(Auth::Anonymous);
    origin.add_blob_as("team/app", layer.digest, noise(200_000, 2));
    let root = tempfile::tempdir().unwrap();
    let node = open_impatient(root.path(), &server.url());
    let dir = node.show(&layer);
    let source = format!("{}/team/app", origin.address()).parse().unwrap();
    node.block_on(node.layers.learn_source(&layer.digest, source));
    server.down();
    assert_eq!(fs::read(dir.join("f")).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(
        node.counters().original_rebuilds.get(),
        node.counters().original_failures.get()
    );
    assert_eq!(node.layers.status().layers[0].chunks_present, 0);
    assert!(!origin.gets(&layer.digest).is_empty());
}
