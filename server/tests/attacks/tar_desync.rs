//! Tars that two readers read in two ways (CVE-2025-62518 "TARmageddon" of async-tar and its forks, GHSA-3pv8-6f4r-ffg2):
//! a PAX record says how long a file is, the ustar header says zero, and a reader that goes by the header takes the file's
//! body for further members. A scanner then sees one image, and a node that starts lazily runs another.
//!
//! The defence: the size of PAX counts, as for the readers that unpack ordinary pulls; records that are malformed make the
//! layer a blob like any other, which containerd judges itself. The bytes of the layer are never touched.
//! Not here: the single rules, and other writers and readers beside ours (`ingest.rs`, `loadtest/tests/corpus.rs`).

use headstart_layer_format::{Toc, routes, toc::EntryId};
use headstart_loadtest::{
    corpus::{
        Compression, Dialect, Flavor, Header, Meta, Oracle, SyntheticImage, SyntheticLayer, TarWriter, pax_record,
    },
    origin::{Auth, Origin},
};

use crate::support::{REPOSITORY, Server};

/// A file `outer` whose length PAX gives and whose header denies it, with a whole tar in its body.
fn layer(records: &[u8]) -> SyntheticLayer {
    let meta = Meta::default();
    let member = |path: &'static str, typeflag: u8, size: usize| Header {
        path: path.as_bytes(),
        typeflag,
        meta: &meta,
        size: size as u64,
        link: b"",
        device: (0, 0),
    };
    let mut smuggled = TarWriter::new();
    smuggled.entry(Dialect::Ustar, &member("etc/smuggled", b'0', 4), b"evil");
    let smuggled = smuggled.finish();
    let mut tar = TarWriter::new();
    tar.entry(Dialect::Ustar, &member("pax", b'x', records.len()), records);
    tar.entry(Dialect::Ustar, &member("outer", b'0', 0), b"");
    tar.raw(&smuggled[..1024]);
    SyntheticLayer::of_tar(tar.finish(), Compression::Gzip, Oracle::default())
}

fn paths(toc: &Toc) -> Vec<Vec<u8>> {
    let count = toc.tree().entries().len() as u32;
    (1..count).map(|entry| toc.tree().path(EntryId(entry))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_in_the_body_of_another_is_no_member() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let image = SyntheticImage::new(Flavor::Oci, vec![layer(&pax_record(b"size", b"1024"))]);
    image.push(&origin, REPOSITORY, "a");
    let server = Server::start(&origin, dir.path()).await;
    let anybody = server.anybody();
    assert_eq!(anybody.status(&server.manifest_url("a")).await, 200);
    let toc = anybody.ready(&image.layers[0].digest).await;
    assert_eq!(paths(&toc), [b"outer".to_vec()]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_readers_disagree_about_stays_an_ordinary_blob() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let malformed = [&b"99 size=1024\n"[..], b"13 size=-1024\n", b"garbage\n", b"11 size=10"];
    let image = SyntheticImage::new(Flavor::Oci, malformed.map(layer).into());
    image.push(&origin, REPOSITORY, "a");
    let server = Server::start(&origin, dir.path()).await;
    let anybody = server.anybody();
    assert_eq!(anybody.status(&server.manifest_url("a")).await, 200);
    for (layer, records) in image.layers.iter().zip(malformed) {
        let what = String::from_utf8_lossy(records);
        let toc = format!("{}?wait_ms=10000", routes::layer_toc(&layer.digest));
        assert_eq!(anybody.own_status(&toc).await, 422, "{what}");
        assert_eq!(anybody.own_status(&routes::layer_data(&layer.digest)).await, 422);
        let (status, body) = server.fetch(&server.blob_url(&layer.digest)).await;
        assert_eq!((status, body.unwrap()), (200, layer.blob.clone()), "{what}");
    }
    server.stop().await;
}
