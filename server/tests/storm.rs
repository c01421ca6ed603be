//! The storm driver against a real server: many nodes, whole and lazily, every byte verified by the nodes.

mod support;

use headstart_loadtest::corpus::SyntheticImage;
use headstart_loadtest::origin::{Auth, Origin};
use headstart_loadtest::storm::{self, StormConfig};
use support::{REPOSITORY, Server, UPSTREAM};

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_storm_costs_the_upstream_one_pull() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let image = SyntheticImage::seeded(21);
    image.push(&origin, REPOSITORY, "v1");
    let server = Server::start(&origin, dir.path()).await;
    let config = StormConfig {
        server: format!("http://{}", server.address),
        ns: UPSTREAM.to_owned(),
        repository: REPOSITORY.to_owned(),
        reference: "v1".to_owned(),
        nodes: 6,
        ..StormConfig::default()
    };

    let whole = storm::run(config.clone()).await.unwrap();
    assert_eq!((whole.errors, whole.image.count()), (0, 6), "{whole}");
    let lazy = storm::run(StormConfig {
        lazy: true,
        lazy_fraction: 0.5,
        ..config
    })
    .await
    .unwrap();
    assert_eq!((lazy.errors, lazy.image.count()), (0, 6), "{lazy}");
    // TOCs of all layers, and at least one chunk.
    assert!(lazy.blob.count() > 6 * image.layers.len() as u64, "{lazy}");

    for layer in &image.layers {
        assert_eq!(origin.bytes_sent(&layer.digest), layer.blob.len() as u64);
    }
    server.stop().await;
}
