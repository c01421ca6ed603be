//! A layer over a bound, and an operator who raises it.

use headstart_layer_format::{api::LayerState, routes};
use headstart_loadtest::{
    corpus::{Flavor, Meta, Rng, SyntheticImage},
    origin::{Auth, Origin},
};

use crate::{
    MIB, built, eventually, first_layer,
    support::{REPOSITORY, Server, config},
};

/// The refusal was for good: whoever had read its reason, and raised what it names, had the layer refused all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_over_a_bound_is_tried_again_when_the_bound_is_raised() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let layer = built(|b| _ = b.file("noise", Meta::default(), Rng::new(7).bytes(3 * MIB)));
    let broken = built(|b| _ = b.file("n".repeat(256), Meta::default(), ""));
    let image = SyntheticImage::new(Flavor::Oci, vec![layer, broken]);
    image.push(&origin, REPOSITORY, "large");
    let [large, broken] = [&image.layers[0].digest, &image.layers[1].digest];
    let mut config = config(&origin, dir.path());
    config.ingest.tar_bytes_max = 2 * MIB as u64;
    let tries = async |server: &Server| {
        let metrics = server.anybody().own("/metrics").await.text().await.unwrap();
        let of = |line: &&str| line.starts_with("headstart_ingest_layers_total{");
        let counts = metrics
            .lines()
            .filter(of)
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        counts.sum::<u64>()
    };
    let refused = async |server: &Server| {
        let status = async |layer| server.anybody().own_status(&routes::layer_toc(layer)).await;
        status(large).await == 422 && status(broken).await == 422
    };

    let server = Server::with(config.clone()).await;
    assert_eq!(server.anybody().status(&server.manifest_url("large")).await, 200);
    eventually(async || refused(&server).await).await;
    assert_eq!(tries(&server).await, 2);
    let reason = first_layer(&server, &image).await.reason.unwrap();
    assert!(reason.contains("2097152 uncompressed bytes"), "{reason}");
    server.stop().await;

    // A narrower bound, another that is wider, or more time is no reason to try again.
    config.ingest.tar_bytes_max = MIB as u64;
    config.ingest.entries_max += 1;
    config.ingest.time_max_ms *= 2;
    let server = Server::with(config.clone()).await;
    assert_eq!(server.anybody().status(&server.manifest_url("large")).await, 200);
    assert!(refused(&server).await);
    assert_eq!(tries(&server).await, 0);
    server.stop().await;

    // What no bound has to do with is not tried again.
    config.ingest.tar_bytes_max = 8 * MIB as u64;
    let server = Server::with(config).await;
    server.anybody().ready(large).await;
    assert_eq!(first_layer(&server, &image).await.state, LayerState::Ready);
    assert_eq!(server.anybody().own_status(&routes::layer_toc(broken)).await, 422);
    assert_eq!(tries(&server).await, 1);
    server.stop().await;
}
