//! Layers that are too much: each bound, through the real server, and the memory of a process that converts them.
//!
//! In: hostile layers. Out: ordinary blobs with the reason at `images/{digest}` and in metrics; a peak of memory within
//! what the configuration says.
//! Here is what all of it needs: tars of any shape.
//! Not here: what is wrong with a tar (`unpack/`), bombs beside honest images (`attacks/decompression_bombs.rs`).

#[path = "../support/mod.rs"]
mod support;

mod bounds;
mod crowd;
mod growing;
mod memory;
mod raised;
mod time;

use std::time::Duration;

use headstart_layer_format::api::{ImageStatus, LayerStatus};
use headstart_layer_format::routes;
use headstart_loadtest::corpus::{
    Compression, Dialect, Header, LayerBuilder, Meta, Oracle, SparseForm, SyntheticImage, SyntheticLayer, TarWriter,
};
use support::Server;

const MIB: usize = 1 << 20;

fn tar(build: impl FnOnce(&mut TarWriter)) -> SyntheticLayer {
    let mut writer = TarWriter::new();
    build(&mut writer);
    SyntheticLayer::of_tar(writer.finish(), Compression::Gzip, Oracle::default())
}

fn plain(build: impl FnOnce(&mut TarWriter)) -> SyntheticLayer {
    SyntheticLayer::of_tar(tar(build).tar, Compression::Plain, Oracle::default())
}

fn built(build: impl FnOnce(&mut LayerBuilder)) -> SyntheticLayer {
    let mut builder = LayerBuilder::new(Dialect::Pax);
    build(&mut builder);
    builder.finish(Compression::Gzip)
}

fn entry(writer: &mut TarWriter, path: &[u8], typeflag: u8, link: &[u8], body: &[u8]) {
    writer.member(Dialect::Gnu, path, typeflag, link, body);
}

fn sparse(w: &mut TarWriter, form: SparseForm, size: u64, data: &[(u64, &[u8])]) {
    let meta = Meta::default();
    let header = Header {
        path: b"sparse",
        typeflag: b'0',
        meta: &meta,
        size: 0,
        link: b"",
        device: (0, 0),
    };
    w.sparse(form, &header, size, data);
}

/// What the server says of an image's first layer.
async fn first_layer(server: &Server, image: &SyntheticImage) -> LayerStatus {
    let status = server.anybody().own(&routes::image(&image.manifest_digest)).await;
    let status: ImageStatus = status.json().await.unwrap();
    status.layers[0].clone()
}

async fn eventually(mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..9000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it does not come true");
}
