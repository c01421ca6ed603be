//! Layers that are small on the wire and endless once they are unpacked: by zeros, by members, by what is beside the
//! files' bodies. Whoever may push one image to any configured upstream could fill the disk of a mirror that converts, or
//! keep its cores busy.
//!
//! The defence: the work on a layer has bounds (bytes, ratio, members, names), looked at while it is inflated. A layer
//! that trips one stays an ordinary blob, with the reason on record; other images are served and converted meanwhile, and
//! nothing of the bomb is kept but the blob itself.
//! Not here: each bound (`ingest.rs`), bounds of the format (`layer-format/tests/hostile.rs`).

use headstart_layer_format::{
    api::{ImageStatus, LayerState},
    routes,
};
use headstart_loadtest::{
    corpus::{Compression, Dialect, Flavor, LayerBuilder, Meta, SyntheticImage, SyntheticLayer},
    origin::{Auth, Origin},
};

use crate::support::{REPOSITORY, Server, config};

const MIB: usize = 1 << 20;

fn zeros(compression: Compression) -> SyntheticLayer {
    let mut layer = LayerBuilder::new(Dialect::Gnu);
    layer.file("zeros", Meta::default(), vec![0; 16 * MIB]);
    layer.finish(compression)
}

fn members() -> SyntheticLayer {
    let mut layer = LayerBuilder::new(Dialect::Gnu);
    for number in 0..4_000 {
        layer.file(format!("{number}"), Meta::default(), "");
    }
    layer.finish(Compression::Gzip)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bomb_stays_a_blob_and_hurts_nobody() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let bombs = SyntheticImage::new(
        Flavor::Oci,
        vec![zeros(Compression::Gzip), zeros(Compression::Zstd), members()],
    );
    bombs.push(&origin, REPOSITORY, "bombs");
    let good = SyntheticImage::tiny(91);
    good.push(&origin, REPOSITORY, "good");
    let mut config = config(&origin, dir.path());
    config.ingest.ratio_floor_bytes = MIB as u64;
    config.ingest.entries_max = 2_000;
    let server = Server::with(config).await;
    let anybody = server.anybody();
    assert_eq!(anybody.status(&server.manifest_url("bombs")).await, 200);
    assert_eq!(anybody.status(&server.manifest_url("good")).await, 200);
    for layer in &bombs.layers {
        let toc = format!("{}?wait_ms=10000", routes::layer_toc(&layer.digest));
        assert_eq!(anybody.own_status(&toc).await, 422);
        let (status, body) = server.fetch(&server.blob_url(&layer.digest)).await;
        assert_eq!((status, body.unwrap()), (200, layer.blob.clone()));
    }
    let status = anybody.own(&routes::image(&bombs.manifest_digest)).await;
    let status: ImageStatus = status.json().await.unwrap();
    for layer in &status.layers {
        assert_eq!(layer.state, LayerState::Refused);
        assert!(layer.reason.as_ref().is_some_and(|why| !why.is_empty()), "{layer:?}");
    }
    for layer in &good.layers {
        anybody.ready(&layer.digest).await;
    }
    // What was unpacked of the bombs before they tripped is no file of ours beyond a few chunks.
    let kept: u64 = std::fs::read_dir(dir.path().join("packs"))
        .unwrap()
        .map(|pack| pack.unwrap().metadata().unwrap().len())
        .sum();
    assert!(kept < 4 * MIB as u64, "{kept}");
    server.stop().await;
}
