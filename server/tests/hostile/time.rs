//! The bound of time, which is not the layer's alone.

use std::time::Duration;

use headstart_layer_format::api::{LayerState, LayerStatus};
use headstart_layer_format::routes;
use headstart_loadtest::corpus::{Flavor, Meta, Rng, SyntheticImage};
use headstart_loadtest::origin::{Auth, Fault, Origin, Target};

use crate::support::{REPOSITORY, Server, config};
use crate::{MIB, built, eventually, first_layer};

fn of_time(layer: &LayerStatus) -> bool {
    layer
        .reason
        .as_ref()
        .is_some_and(|reason| reason.contains("time_max_ms"))
}

/// It was a failure with a pause, for which a hostile layer was given all the time again and again, and a restart forgot it.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_takes_too_long_stays_an_ordinary_blob_until_it_is_given_more_time() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let layer = built(|b| _ = b.file("noise", Meta::default(), Rng::new(1).bytes(32 * MIB)));
    let image = SyntheticImage::new(Flavor::Oci, vec![layer]);
    image.push(&origin, REPOSITORY, "slow");
    let layer = &image.layers[0];
    let toc = format!("{}?wait_ms=20000", routes::layer_toc(&layer.digest));
    let mut config = config(&origin, dir.path());
    config.ingest.time_max_ms = 40;
    let counted = async |server: &Server| server.anybody().own("/metrics").await.text().await.unwrap();

    let server = Server::with(config.clone()).await;
    // It is on disk before it is converted: the upstream has no part in this.
    let (status, body) = server.fetch(&server.blob_url(&layer.digest)).await;
    assert_eq!((status, body.unwrap()), (200, layer.blob.clone()));
    assert_eq!(server.anybody().status(&server.manifest_url("slow")).await, 200);
    eventually(async || server.anybody().own_status(&toc).await == 422).await;
    let found = first_layer(&server, &image).await;
    assert!(found.state == LayerState::Refused && of_time(&found), "{found:?}");
    let metrics = counted(&server).await;
    assert!(
        metrics.contains("headstart_ingest_refusals_total{reason=\"time\"} 1"),
        "{metrics}"
    );
    assert_eq!(server.fetch(&server.blob_url(&layer.digest)).await.0, 200);
    server.stop().await;

    // Neither a restart nor less time is a reason to try again.
    config.ingest.time_max_ms = 0;
    let server = Server::with(config.clone()).await;
    assert_eq!(server.anybody().status(&server.manifest_url("slow")).await, 200);
    assert_eq!(server.anybody().own_status(&toc).await, 422);
    let found = first_layer(&server, &image).await;
    assert!(found.state == LayerState::Refused && of_time(&found), "{found:?}");
    let metrics = counted(&server).await;
    assert!(
        !metrics.contains("headstart_ingest_layers_total{outcome=\"refused\"} 1"),
        "{metrics}"
    );
    server.stop().await;

    config.ingest.time_max_ms = 3_600_000;
    let server = Server::with(config).await;
    server.anybody().ready(&layer.digest).await;
    assert_eq!(first_layer(&server, &image).await.state, LayerState::Ready);
    server.stop().await;
}

/// Given more time, it was tried again, and showed the old reason although the new try had failed for another.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_tried_again_tells_why_that_failed() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let layer = built(|b| _ = b.file("noise", Meta::default(), Rng::new(3).bytes(32 * MIB)));
    let image = SyntheticImage::new(Flavor::Oci, vec![layer]);
    image.push(&origin, REPOSITORY, "slow");
    let layer = &image.layers[0];
    let mut config = config(&origin, dir.path());
    config.upstreams[0].breaker.failures_max = 1000;
    config.ingest.time_max_ms = 40;
    let server = Server::with(config.clone()).await;
    let (status, body) = server.fetch(&server.blob_url(&layer.digest)).await;
    assert_eq!((status, body.unwrap()), (200, layer.blob.clone()));
    assert_eq!(server.anybody().status(&server.manifest_url("slow")).await, 200);
    eventually(async || first_layer(&server, &image).await.state == LayerState::Refused).await;
    let original = server.app.originals.path(&layer.digest);
    server.stop().await;

    std::fs::remove_file(original).unwrap();
    let broken = Fault::Status {
        code: 500,
        retry_after_secs: None,
    };
    origin.always(Target::Digest(layer.digest), broken);
    config.ingest.time_max_ms = 3_600_000;
    let server = Server::with(config).await;
    let tried = async || {
        let found = first_layer(&server, &image).await;
        let is_under_way = matches!(found.state, LayerState::Queued | LayerState::Converting);
        (!is_under_way).then_some(found)
    };
    eventually(async || tried().await.is_some()).await;
    let found = tried().await.unwrap();
    assert!(found.state == LayerState::Failed && !of_time(&found), "{found:?}");
    assert!(found.reason.unwrap().contains("500"));
    origin.clear_faults();
    eventually(async || first_layer(&server, &image).await.state == LayerState::Ready).await;
    server.stop().await;
}

/// The time that an upstream takes is not the layer's.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_whose_upstream_takes_too_long_is_not_refused() {
    for at in [None, Some(1000)] {
        let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
        let layer = built(|b| _ = b.file("noise", Meta::default(), Rng::new(2).bytes(MIB)));
        let image = SyntheticImage::new(Flavor::Oci, vec![layer]);
        image.push(&origin, REPOSITORY, "slow");
        let digest = image.layers[0].digest;
        let gate = match at {
            Some(at) => origin.hold(Target::Digest(digest), at),
            None => origin.hold_heads(Target::Digest(digest)),
        };
        let mut config = config(&origin, dir.path());
        config.ingest.time_max_ms = 4000;
        let server = Server::with(config).await;
        // A GET would wait for its blobs to begin. Asking for the state of an image has it converted, too.
        let head = server.http.head(server.manifest_url("slow"));
        assert_eq!(head.send().await.unwrap().status(), 200);
        first_layer(&server, &image).await;
        // Longer than a conversion may take.
        tokio::time::sleep(Duration::from_millis(5000)).await;
        assert_eq!(first_layer(&server, &image).await.state, LayerState::Converting);
        gate.open();
        eventually(async || first_layer(&server, &image).await.state != LayerState::Converting).await;
        let found = first_layer(&server, &image).await;
        assert!(found.state == LayerState::Failed, "{found:?}");
        assert!(found.reason.unwrap().contains("time limit"));
        let metrics = server.anybody().own("/metrics").await.text().await.unwrap();
        let timed_out = "headstart_ingest_layers_total{outcome=\"timed_out\"} 1";
        assert!(
            metrics.contains(timed_out) && !metrics.contains("reason=\"time\"} 1"),
            "{metrics}"
        );
        eventually(async || first_layer(&server, &image).await.state == LayerState::Ready).await;
        server.stop().await;
    }
}
