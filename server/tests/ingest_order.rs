//! Which layer is converted next.
//!
//! In: images at an origin that holds some layers back, and a server that converts a layer or a few at a time. Out: states.
//! Not here: whose chunks are compressed next (`ingest/pool.rs`).

mod support;

use std::time::{Duration, Instant};

use headstart_layer_format::api::{ImageStatus, LayerState, LayerStatus};
use headstart_layer_format::routes;
use headstart_loadtest::corpus::{Compression, Dialect, Flavor, LayerBuilder, Meta, SyntheticImage, SyntheticLayer};
use headstart_loadtest::origin::{Auth, Fault, Origin, Target};
use support::{REPOSITORY, Server, config, noise};

fn layer(len: usize, seed: u64) -> SyntheticLayer {
    let mut builder = LayerBuilder::new(Dialect::Pax);
    builder.file("file", Meta::mode(0o644), noise(len, seed));
    builder.finish(Compression::Plain)
}

async fn states(server: &Server, image: &SyntheticImage) -> Vec<LayerState> {
    let route = routes::image(&image.manifest_digest);
    let (status, body) = server.fetch(&format!("http://{}{route}", server.address)).await;
    assert_eq!(status, 200);
    let status: ImageStatus = serde_json::from_slice(&body.unwrap()).unwrap();
    status.layers.iter().map(|layer: &LayerStatus| layer.state).collect()
}

/// A GET would wait for the image's blobs. Asking for its state has it converted, too ([`until`]).
async fn learn(server: &Server, image: &SyntheticImage) {
    let head = server.http.head(server.manifest_url(image.manifest_digest));
    assert_eq!(head.send().await.unwrap().status(), 200);
}

async fn until(server: &Server, image: &SyntheticImage, wanted: &[LayerState]) {
    let mut last = Vec::new();
    for _ in 0..6000 {
        last = states(server, image).await;
        if last == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{last:?} and not {wanted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_be_lazy_any_more_is_not_waited_for() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let [good, large] = [(10, 1), (9000, 2)].map(|(len, seed)| layer(len, seed));
    let no_tar = SyntheticLayer::of_tar(&b"this is no tar"[..], Compression::Gzip, Default::default());
    let gate = origin.hold(Target::Digest(large.digest), 0);
    let server = Server::with(config(&origin, dir.path())).await;
    let image = SyntheticImage::new(Flavor::Oci, vec![large, no_tar, good]);
    image.push(&origin, REPOSITORY, "latest");
    learn(&server, &image).await;
    let route = format!("{}?wait_ms=25000", routes::image(&image.manifest_digest));
    let begun = Instant::now();
    let (status, body) = server.fetch(&format!("http://{}{route}", server.address)).await;
    assert_eq!(status, 200);
    let status: ImageStatus = serde_json::from_slice(&body.unwrap()).unwrap();
    let [large, no_tar, _] = &status.layers[..] else {
        panic!("{status:?}")
    };
    assert_eq!(
        (large.state, no_tar.state),
        (LayerState::Converting, LayerState::Refused)
    );
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "the wait was seen to its end"
    );
    gate.open();
}

/// The large one comes first in the image, and its bytes do not come at all for now.
#[tokio::test(flavor = "multi_thread")]
async fn images_go_in_the_order_they_came_and_their_small_layers_first() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let sizes = [(100, 1), (9000, 2), (50, 3), (10, 4)];
    let [busy, large, small, later] = sizes.map(|(len, seed)| layer(len, seed));
    let held = |layer: &SyntheticLayer| origin.hold(Target::Digest(layer.digest), 0);
    let (busy_gate, large_gate) = (held(&busy), held(&large));
    let images = [vec![busy], vec![large, small], vec![later]].map(|layers| SyntheticImage::new(Flavor::Oci, layers));
    let mut config = config(&origin, dir.path());
    config.ingest.workers = 1;
    // Nothing here is slow.
    config.ingest.slow_after_ms = 3_600_000;
    let server = Server::with(config).await;
    for (image, tag) in images.iter().zip(["busy", "two", "later"]) {
        image.push(&origin, REPOSITORY, tag);
        learn(&server, image).await;
        // It is in the queue before the next one comes.
        let wanted = match tag {
            "busy" => vec![LayerState::Converting],
            _ => vec![LayerState::Queued; image.layers.len()],
        };
        until(&server, image, &wanted).await;
    }
    let [_, two, later] = &images;
    busy_gate.open();
    until(&server, two, &[LayerState::Converting, LayerState::Ready]).await;
    assert_eq!(states(&server, later).await, [LayerState::Queued]);
    large_gate.open();
    until(&server, later, &[LayerState::Ready]).await;
    assert_eq!(states(&server, two).await, [LayerState::Ready; 2]);
}

/// Four workers, and four layers of which a few bytes come and then nothing for now: the fifth is somebody else's.
#[tokio::test(flavor = "multi_thread")]
async fn layers_that_arrive_slowly_are_in_nobodys_way_and_are_converted_when_they_are_here() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let slow: Vec<_> = (0..4).map(|seed| layer(200_000, seed)).collect();
    let gates: Vec<_> = slow
        .iter()
        .zip([0, 1, 70_000, 140_000])
        .map(|(layer, at)| origin.hold(Target::Digest(layer.digest), at))
        .collect();
    let [slow, quick] = [slow, vec![layer(300_000, 9)]].map(|layers| SyntheticImage::new(Flavor::Oci, layers));
    let mut config = config(&origin, dir.path());
    assert_eq!(config.ingest.workers, 4);
    config.ingest.slow_after_ms = 400;
    let server = Server::with(config).await;
    slow.push(&origin, REPOSITORY, "slow");
    learn(&server, &slow).await;
    // While nobody else waits they keep their threads.
    until(&server, &slow, &[LayerState::Converting; 4]).await;
    quick.push(&origin, REPOSITORY, "quick");
    assert_eq!(server.fetch(&server.manifest_url(quick.manifest_digest)).await.0, 200);
    until(&server, &quick, &[LayerState::Ready]).await;
    let left = states(&server, &slow).await;
    assert!(
        left.contains(&LayerState::Queued) && !left.contains(&LayerState::Ready),
        "{left:?}"
    );
    gates.iter().for_each(|gate| gate.open());
    until(&server, &slow, &[LayerState::Ready; 4]).await;
    // Fetched once, however often they were begun.
    for layer in &slow.layers {
        assert_eq!(origin.gets(&layer.digest).len(), 1);
    }
    server.stop().await;
}

/// Four workers, and four layers of which their upstream says nothing for now, not even how large they are.
#[tokio::test(flavor = "multi_thread")]
async fn layers_that_nobody_answers_for_are_in_nobodys_way_and_are_converted_when_somebody_does() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let silent: Vec<_> = (0..4).map(|seed| layer(200_000, seed)).collect();
    let held = |layer: &SyntheticLayer| origin.hold_heads(Target::Digest(layer.digest));
    let gates: Vec<_> = silent.iter().map(held).collect();
    // The answer for one of them will be "no": a failure, and no end of anything.
    let no = Fault::Status {
        code: 404,
        retry_after_secs: None,
    };
    origin.always(Target::Digest(silent[0].digest), no);
    let [silent, quick] = [silent, vec![layer(300_000, 9)]].map(|layers| SyntheticImage::new(Flavor::Oci, layers));
    let mut config = config(&origin, dir.path());
    assert_eq!(config.ingest.workers, 4);
    config.ingest.slow_after_ms = 400;
    let server = Server::with(config).await;
    silent.push(&origin, REPOSITORY, "silent");
    learn(&server, &silent).await;
    until(&server, &silent, &[LayerState::Converting; 4]).await;
    quick.push(&origin, REPOSITORY, "quick");
    assert_eq!(server.fetch(&server.manifest_url(quick.manifest_digest)).await.0, 200);
    until(&server, &quick, &[LayerState::Ready]).await;
    let route = routes::image(&silent.manifest_digest);
    let (_, body) = server.fetch(&format!("http://{}{route}", server.address)).await;
    let status: ImageStatus = serde_json::from_slice(&body.unwrap()).unwrap();
    let waits = |layer: &&LayerStatus| {
        layer.state == LayerState::Queued && layer.reason.as_ref().is_some_and(|why| why.contains("not answered"))
    };
    assert!(status.layers.iter().find(waits).is_some(), "{status:?}");
    gates.iter().for_each(|gate| gate.open());
    use LayerState::{Failed, Ready};
    until(&server, &silent, &[Failed, Ready, Ready, Ready]).await;
    for layer in &silent.layers[1..] {
        assert_eq!(origin.gets(&layer.digest).len(), 1);
    }
    server.stop().await;
}

/// They are queued by who asks for the image, in the manifest's order.
#[tokio::test(flavor = "multi_thread")]
async fn small_layers_go_first_in_whatever_order_they_are_queued() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let [busy, large, small] = [(100, 1), (9000, 2), (50, 3)].map(|(len, seed)| layer(len, seed));
    let held = |layer: &SyntheticLayer| origin.hold(Target::Digest(layer.digest), 0);
    let (busy_gate, large_gate) = (held(&busy), held(&large));
    let [busy, two] = [vec![busy], vec![large, small]].map(|layers| SyntheticImage::new(Flavor::Oci, layers));
    let mut config = config(&origin, dir.path());
    (config.ingest.workers, config.ingest.slow_after_ms) = (1, 3_600_000);
    config.ingest.enabled = false;
    let server = Server::with(config.clone()).await;
    for (image, tag) in [(&busy, "busy"), (&two, "two")] {
        image.push(&origin, REPOSITORY, tag);
        learn(&server, image).await;
    }
    server.stop().await;
    config.ingest.enabled = true;
    let server = Server::with(config).await;
    until(&server, &busy, &[LayerState::Converting]).await;
    until(&server, &two, &[LayerState::Queued; 2]).await;
    busy_gate.open();
    until(&server, &two, &[LayerState::Converting, LayerState::Ready]).await;
    large_gate.open();
    until(&server, &two, &[LayerState::Ready; 2]).await;
}
