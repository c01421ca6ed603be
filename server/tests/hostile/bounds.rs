//! Each bound, once.

use headstart_layer_format::api::{ImageStatus, LayerState};
use headstart_layer_format::routes;
use headstart_loadtest::corpus::{
    Compression, Flavor, Meta, Oracle, Rng, SparseForm, SyntheticImage, SyntheticLayer, pax_record,
};
use headstart_loadtest::origin::{Auth, Origin};

use crate::support::{REPOSITORY, Server, config};
use crate::{MIB, built, entry, plain, sparse, tar};

/// A part of the reason, its metric, and a layer that trips it. The numbers fit [`tight`].
fn one_for_each_bound() -> Vec<(&'static str, &'static str, SyntheticLayer)> {
    let random = |len| Rng::new(5).bytes(len);
    let deep = "d/".repeat(1500);
    let records = |n: usize| -> Vec<u8> {
        (0..n)
            .flat_map(|i| pax_record(format!("SCHILY.xattr.user.{i}").as_bytes(), b""))
            .collect()
    };
    vec![
        (
            "uncompressed bytes for each",
            "bound",
            built(|b| _ = b.file("zeros", Meta::default(), vec![0; 3 * MIB])),
        ),
        (
            "more than 16777216 uncompressed bytes",
            "bound",
            built(|b| _ = b.file("big", Meta::default(), random(17 * MIB))),
        ),
        (
            "members",
            "bound",
            plain(|w| (0..20_100).for_each(|_| entry(w, b"./", b'5', b"", b""))),
        ),
        (
            "memory",
            "memory",
            tar(|w| (0..9_000).for_each(|i| entry(w, format!("f{i}").as_bytes(), b'0', b"", b""))),
        ),
        (
            "longer than 255 bytes",
            "path",
            built(|b| _ = b.file("n".repeat(256), Meta::default(), "")),
        ),
        (
            "too long or too deep",
            "path",
            built(|b| _ = b.file("dir/".repeat(1100), Meta::default(), "")),
        ),
        // No path of the tar is long; the one that comes out is.
        (
            "directory depth",
            "format",
            tar(|w| {
                entry(w, format!("{deep}x").as_bytes(), b'0', b"", b"");
                entry(w, b"l", b'2', &deep.as_bytes()[..2999], b"");
                entry(w, format!("l/{deep}x").as_bytes(), b'0', b"", b"");
            }),
        ),
        (
            "bytes in an attribute",
            "bound",
            built(|b| _ = b.file("f", Meta::default().xattr("user.x", random(65_537)), "")),
        ),
        (
            "name of an attribute",
            "bound",
            built(|b| _ = b.file("f", Meta::default().xattr("x".repeat(256), ""), "")),
        ),
        (
            "attributes of one file",
            "bound",
            tar(|w| entry(w, b"pax", b'x', b"", &records(9_363))),
        ),
        (
            "extended header is too long",
            "tar",
            tar(|w| entry(w, b"pax", b'x', b"", &vec![b' '; MIB + 1])),
        ),
        (
            "a decimal number",
            "tar",
            tar(|w| entry(w, b"pax", b'x', b"", b"no record")),
        ),
        (
            "bytes beside file bodies",
            "bound",
            plain(|w| w.raw(&vec![0; 13 * MIB])),
        ),
        (
            "bytes in a sparse file",
            "bound",
            tar(|w| sparse(w, SparseForm::Pax1, 1 << 60, &[])),
        ),
        (
            "too many symlinks",
            "path",
            tar(|w| {
                entry(w, b"l", b'2', b"l", b"");
                entry(w, b"l/f", b'0', b"", b"");
            }),
        ),
        ("does not decompress", "stream", {
            let good = SyntheticImage::tiny(1).layers[0].blob.clone();
            let blob = good[..good.len() / 2].to_vec();
            SyntheticLayer::of_tar(blob, Compression::Plain, Oracle::default())
        }),
        ("entry of type", "format", tar(|w| entry(w, b"m", b'M', b"", b""))),
    ]
}

/// Bounds that a test can reach.
fn tight(origin: &Origin, dir: &std::path::Path) -> headstart_server::config::Config {
    let mut config = config(origin, dir);
    let ingest = &mut config.ingest;
    (ingest.tar_bytes_max, ingest.ratio_max, ingest.ratio_floor_bytes) = (16 << 20, 100, 2 << 20);
    (ingest.entries_max, ingest.skeleton_bytes_max) = (20_000, 12 << 20);
    // With two, one would find that the other has the memory, and be tried again later.
    ingest.workers = 1;
    (ingest.memory_bytes_max, ingest.zstd_window_bytes_max) = (21 << 20, 8 << 20);
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bound_leaves_an_ordinary_blob_with_its_reason() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let cases = one_for_each_bound();
    let layers = cases.iter().map(|case| case.2.clone()).collect();
    let image = SyntheticImage::new(Flavor::Oci, layers);
    image.push(&origin, REPOSITORY, "hostile");
    let server = Server::with(tight(&origin, dir.path())).await;
    let anybody = server.anybody();
    assert_eq!(anybody.status(&server.manifest_url("hostile")).await, 200);
    let mut expected = std::collections::BTreeMap::new();
    for (why, label, layer) in &cases {
        let toc = format!("{}?wait_ms=20000", routes::layer_toc(&layer.digest));
        assert_eq!(anybody.own_status(&toc).await, 422, "{why}");
        let (status, body) = server.fetch(&server.blob_url(&layer.digest)).await;
        assert_eq!((status, body.unwrap()), (200, layer.blob.clone()), "{why}");
        *expected.entry(*label).or_insert(0) += 1;
    }
    let status = anybody.own(&routes::image(&image.manifest_digest)).await;
    let status: ImageStatus = status.json().await.unwrap();
    for ((why, _, layer), found) in cases.iter().zip(&status.layers) {
        assert_eq!((&found.digest, found.state), (&layer.digest, LayerState::Refused));
        let reason = found.reason.as_deref().unwrap_or_default();
        assert!(reason.contains(why), "{why}: {reason}");
    }
    let metrics = anybody.own("/metrics").await.text().await.unwrap();
    for (label, count) in expected {
        let line = format!("headstart_ingest_refusals_total{{reason=\"{label}\"}} {count}");
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
    server.stop().await;
}
