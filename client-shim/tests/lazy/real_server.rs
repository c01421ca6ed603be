//! The same mount, from the real server in this process and a registry behind it: every entry kind there is.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use headstart_layer_format::api::LayerState;
use headstart_loadtest::corpus::{Oracle, OracleKind, SyntheticImage};
use headstart_loadtest::origin::Origin;
use headstart_server::app::{App, serve};
use headstart_server::config::{Config, UpstreamConfig};
use headstart_shim::fetch::{FetchConfig, Servers};
use tokio_util::sync::CancellationToken;

use crate::mount::compare_items;
use crate::support::node::lazy_config;
use crate::support::{Body, Item, Node, What};

/// What the corpus says a layer contains, in this suite's own terms.
pub fn items(oracle: &Oracle) -> BTreeMap<Vec<u8>, Item> {
    let mut first_names: HashMap<u32, Vec<u8>> = HashMap::new();
    let mut out = BTreeMap::new();
    for entry in &oracle.entries {
        let first = entry
            .link_group
            .map(|group| first_names.entry(group).or_insert_with(|| entry.path.clone()));
        let what = match (&entry.kind, first) {
            (_, Some(first)) if *first != entry.path => What::Link(first.clone()),
            (OracleKind::Directory { opaque, implied }, _) => What::Dir {
                opaque: *opaque,
                // containerd passes over an entry for the root.
                implied: *implied || entry.path.is_empty(),
            },
            (OracleKind::File { content }, _) => What::File(Body::whole(content.to_vec())),
            (OracleKind::Symlink { target }, _) => What::Symlink(target.clone()),
            (OracleKind::CharDevice { major, minor }, _) => What::Char(*major, *minor),
            (OracleKind::BlockDevice { major, minor }, _) => What::Block(*major, *minor),
            (OracleKind::Fifo, _) => What::Fifo,
            (OracleKind::Whiteout, _) => What::Whiteout,
        };
        // As containerd unpacks: times before 1970 become 1970, and a symbolic link has no mode of its own.
        let mtime = match entry.meta.mtime_secs {
            secs @ 0.. => (secs, entry.meta.mtime_nanos),
            _ => (0, 0),
        };
        let mode = match what {
            What::Symlink(_) => 0o777,
            _ => entry.meta.mode as u16,
        };
        let mut item = Item::new(what)
            .mode(mode)
            .owner(entry.meta.uid, entry.meta.gid)
            .mtime(mtime.0, mtime.1);
        item.xattrs = entry.meta.xattrs.iter().cloned().collect();
        out.insert(entry.path.clone(), item);
    }
    out
}

#[test]
fn every_layer_of_a_seeded_image_is_shown_as_its_tar_says() {
    let image = SyntheticImage::seeded(11);
    let origin = Origin::with_image("team/app", "v1", &image);
    let data = tempfile::tempdir().unwrap();
    let server = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let config = Config {
        data_dir: data.path().to_owned(),
        default_upstream: Some("origin".into()),
        upstreams: vec![UpstreamConfig::new("origin", origin.url())],
        ..Config::default()
    };
    let stop = CancellationToken::new();
    let (app, listener) = server.block_on(async {
        let app = App::open(config).await.unwrap();
        (app, tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap())
    });
    let url = format!("http://{}", listener.local_addr().unwrap());
    let served = server.spawn(serve(app, listener, stop.clone()));

    // A client's first request starts the conversion of all layers; a node waits for it.
    let status = server.block_on(async {
        let manifest = format!("{url}/v2/team/app/manifests/v1?ns=origin");
        let answer = reqwest::get(manifest).await.unwrap();
        assert_eq!(answer.status(), 200);
        let servers = Servers::new(std::slice::from_ref(&url), &FetchConfig::default()).unwrap();
        servers.image(&image.manifest_digest, 25_000).await.unwrap().unwrap()
    });
    assert!(status.layers.iter().all(|l| l.state == LayerState::Ready), "{status:?}");

    let root = tempfile::tempdir().unwrap();
    let node = Node::open_with(root.path(), &[url], lazy_config()).unwrap();
    for layer in &image.layers {
        let presented = node.present_within(&layer.digest, Duration::from_secs(25)).unwrap();
        assert_eq!(presented.diff_id, layer.diff_id);
        compare_items(&items(&layer.oracle), &presented.lowerdir);
    }
    assert_eq!(node.counters().corrupt_chunks.get(), 0);

    // The server is gone; what was read is not.
    stop.cancel();
    server.block_on(served).unwrap().unwrap();
    drop(server);
    for layer in &image.layers {
        let presented = node.layers.present_known(&layer.digest).unwrap();
        compare_items(&items(&layer.oracle), &presented.lowerdir);
    }
    assert_eq!(node.counters().read_errors.get(), 0);
}
