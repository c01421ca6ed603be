//! Which layer is converted next.
//!
//! In: images at an origin that holds some layers back, and a server that converts one layer at a time. Out: states.
//! Not here: whose chunks are compressed next (`ingest/pool.rs`).

mod support;

use std::time::Duration;

use headstart_layer_format::api::{ImageStatus, LayerState, LayerStatus};
use headstart_layer_format::{BlobDigest, routes};
use headstart_loadtest::corpus::{Compression, Dialect, Flavor, LayerBuilder, Meta, SyntheticImage, SyntheticLayer};
use headstart_loadtest::origin::{Auth, Origin, Target};
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
    let server = Server::with(config).await;
    for (image, tag) in images.iter().zip(["busy", "two", "later"]) {
        image.push(&origin, REPOSITORY, tag);
        let digest: BlobDigest = image.manifest_digest;
        assert_eq!(server.fetch(&server.manifest_url(digest)).await.0, 200);
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
