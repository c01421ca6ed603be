//! Layers that are too much: each bound, through the real server, and the memory of a process that converts them.
//!
//! In: hostile layers. Out: ordinary blobs with the reason at `images/{digest}` and in metrics; a peak of memory within
//! what the configuration says.
//! Not here: what is wrong with a tar (`unpack/`), bombs beside honest images (`attacks/decompression_bombs.rs`).

mod support;

use std::process::Command;
use std::time::Duration;

use headstart_layer_format::api::{ImageStatus, LayerState, LayerStatus};
use headstart_layer_format::routes;
use headstart_loadtest::corpus::{
    Compression, Dialect, Flavor, Header, LayerBuilder, Meta, Oracle, Rng, SparseForm, SyntheticImage, SyntheticLayer,
    TarWriter, pax_record,
};
use headstart_loadtest::origin::{Auth, Origin, Target};
use support::{REPOSITORY, Server, config};

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

fn of_time(layer: &LayerStatus) -> bool {
    layer
        .reason
        .as_ref()
        .is_some_and(|reason| reason.contains("time_max_ms"))
}

/// What the server says of an image's first layer.
async fn first_layer(server: &Server, image: &SyntheticImage) -> LayerStatus {
    let status = server.anybody().own(&routes::image(&image.manifest_digest)).await;
    let status: ImageStatus = status.json().await.unwrap();
    status.layers[0].clone()
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
        assert_eq!(server.anybody().status(&server.manifest_url("slow")).await, 200);
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

/// Layers that are too much only together: the second waits for the first, and is shown to. (It was a failure with a pause.)
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_for_which_others_leave_no_memory_waits_its_turn() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let mut config = config(&origin, dir.path());
    // Some 22 MiB for each of the layers.
    (config.ingest.memory_bytes_max, config.ingest.zstd_window_bytes_max) = (36 << 20, 8 << 20);
    let server = Server::with(config).await;
    let anybody = server.anybody();
    let of_names = |kind: u8| {
        let layer = plain(|w| {
            (0..40_000).for_each(|i| empty(w, format!("{}{i}", char::from(kind))));
            // More than is read ahead: whoever is near the end has all the names.
            entry(w, b"last", b'0', b"", &Rng::new(u64::from(kind)).bytes(12 * MIB));
        });
        let image = SyntheticImage::new(Flavor::Oci, vec![layer]);
        image.push(&origin, REPOSITORY, "names");
        image
    };
    let (first, second) = (of_names(b'a'), of_names(b'b'));
    let status = async |image: &SyntheticImage| {
        let status = anybody.own(&routes::image(&image.manifest_digest)).await;
        let status: ImageStatus = status.json().await.unwrap();
        status.layers[0].clone()
    };
    // The first has its names in memory, and does not come to an end. (A reader sees a fetch some steps behind it.)
    const NEAR: u64 = 4 << 20;
    let held_at = first.layers[0].blob.len() as u64 - 1024;
    let gate = origin.hold(Target::Digest(first.layers[0].digest), held_at);
    assert_eq!(anybody.status(&server.manifest_url(first.manifest_digest)).await, 200);
    eventually(async || {
        status(&first)
            .await
            .converted
            .is_some_and(|bytes| bytes + NEAR > held_at)
    })
    .await;
    assert_eq!(anybody.status(&server.manifest_url(second.manifest_digest)).await, 200);
    eventually(async || status(&second).await.reason.is_some()).await;
    let waiting = status(&second).await;
    assert_eq!(waiting.state, LayerState::Queued, "{waiting:?}");
    assert!(
        waiting
            .reason
            .unwrap()
            .contains("other conversions have all the memory")
    );
    assert_eq!(
        anybody.own_status(&routes::layer_toc(&second.layers[0].digest)).await,
        202
    );
    let metrics = anybody.own("/metrics").await.text().await.unwrap();
    assert!(metrics.contains("headstart_conversion_queue_length 1"), "{metrics}");
    gate.open();
    for image in [&first, &second] {
        anybody.ready(&image.layers[0].digest).await;
        assert_eq!(status(image).await.reason, None);
    }
    let metrics = anybody.own("/metrics").await.text().await.unwrap();
    for (outcome, count) in [("ready", 2), ("postponed", 1)] {
        let line = format!("headstart_ingest_layers_total{{outcome=\"{outcome}\"}} {count}");
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
    assert!(!metrics.contains("{outcome=\"failed\"} 1"), "{metrics}");
    server.stop().await;
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

/// One thing that grows with a layer, so many times.
struct Growing {
    /// 0: other bounds come first.
    too_much: usize,
    fits: usize,
    write: fn(&mut TarWriter, usize),
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

const fn growing(too_much: usize, fits: usize, write: fn(&mut TarWriter, usize)) -> Growing {
    Growing { too_much, fits, write }
}

fn empty(w: &mut TarWriter, path: impl AsRef<[u8]>) {
    entry(w, path.as_ref(), b'0', b"", b"");
}

/// Numbers at the default budget.
const GROWING: [(&str, Growing); 11] = [
    (
        "files",
        growing(900_000, 480_000, |w, n| {
            (0..n).for_each(|i| empty(w, format!("d/f{i}")))
        }),
    ),
    (
        "implied directories",
        growing(400_000, 150_000, |w, n| {
            (0..n).for_each(|i| empty(w, format!("d{i}/e/f")))
        }),
    ),
    (
        "directories with long paths",
        growing(50_000, 10_000, |w, n| {
            (0..n).for_each(|i| entry(w, format!("{i}{}", "/e".repeat(40)).as_bytes(), b'5', b"", b""));
        }),
    ),
    (
        "long names",
        growing(240_000, 110_000, |w, n| {
            (0..n).for_each(|i| empty(w, format!("{i:0255}")))
        }),
    ),
    (
        "one name again and again",
        growing(900_000, 480_000, |w, n| (0..n).for_each(|_| empty(w, "same"))),
    ),
    (
        "targets",
        growing(30_000, 6_500, |w, n| {
            let target = "t/".repeat(2000);
            (0..n).for_each(|i| entry(w, format!("l{i}").as_bytes(), b'2', target.as_bytes(), b""));
        }),
    ),
    (
        "attributes that do not compress",
        growing(2_400, 250, |w, n| {
            for i in 0..n {
                let value = Rng::new(i as u64).bytes(60_000);
                entry(w, b"pax", b'x', b"", &pax_record(b"SCHILY.xattr.user.big", &value));
                empty(w, format!("f{i}"));
            }
        }),
    ),
    (
        "small attributes",
        growing(480, 80, |w, n| {
            let record = |i| pax_record(format!("SCHILY.xattr.user.{i}").as_bytes(), b"");
            let records: Vec<u8> = (0..9000).flat_map(record).collect();
            for i in 0..n {
                entry(w, b"pax", b'x', b"", &records);
                empty(w, format!("f{i}"));
            }
        }),
    ),
    (
        "stretches",
        growing(6_000_000, 1_500_000, |w, n| {
            let data: Vec<(u64, &[u8])> = (0..n as u64).map(|i| (i * 2, &b"x"[..])).collect();
            sparse(w, SparseForm::OldGnu, 1 << 33, &data);
        }),
    ),
    (
        "bodies",
        growing(0, 900_000, |w, n| (0..n).for_each(|_| entry(w, b"./", b'0', b"", b"x"))),
    ),
    (
        "bytes beside bodies that do not compress",
        growing(240 * MIB, 44 * MIB, |w, n| {
            w.raw(&[0; 1024]);
            w.raw(&Rng::new(3).bytes(n));
        }),
    ),
];

/// Peak of a process that converts, as the kernel counts it (VmHWM), and what it said of the layer.
fn peak_of(layer: &SyntheticLayer, config: &std::path::Path) -> (u64, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &layer.blob).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_headstart-server"))
        .arg("convert")
        .args(["--json", "--config"])
        .arg(config)
        .arg(file.path())
        .output()
        .unwrap();
    let said: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
    let layer = &said["layers"][0];
    let text = format!("{} {}", layer["state"], layer["reason"]);
    (layer["peak_rss_bytes"].as_u64().unwrap(), text)
}

/// Each kind twice: far beyond the budget, and as much as still fits, which is dearest (the finished tree beside its
/// encoding). `HEADSTART_HOSTILE_FULL=1`: at the default budget.
#[test]
fn memory_stays_within_the_budget_whatever_grows() {
    let full = std::env::var_os("HEADSTART_HOSTILE_FULL").is_some();
    let (scale, budget, window) = if full {
        (1, 192 * MIB, 32 * MIB)
    } else {
        (20, 28 * MIB, 8 * MIB)
    };
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("server.toml");
    let text = format!("[ingest]\nmemory_bytes_max = {budget}\nzstd_window_bytes_max = {window}\n");
    std::fs::write(&config, text).unwrap();
    let nothing = SyntheticLayer::of_tar(Vec::new(), Compression::Plain, Oracle::default());
    let (idle, said) = peak_of(&nothing, &config);
    assert!(said.contains("ready"), "{said}");
    let (mut wrong, mut highest) = (Vec::new(), 0);
    for (what, build) in GROWING {
        for (size, verdict) in [(build.too_much, "refused"), (build.fits, "ready")] {
            if size == 0 {
                continue;
            }
            let mut writer = TarWriter::new();
            (build.write)(&mut writer, size / scale);
            let layer = SyntheticLayer::of_tar(writer.finish(), Compression::Plain, Oracle::default());
            let (peak, said) = peak_of(&layer, &config);
            let more = peak.saturating_sub(idle);
            let tar = layer.blob.len() / MIB;
            let text = format!(
                "{what}, {}: {tar} MiB of tar, {} MiB of memory, {said}",
                size / scale,
                more / MIB as u64
            );
            println!("{text}");
            highest = highest.max(more);
            if more > budget as u64 || !said.contains(verdict) {
                wrong.push(text);
            }
        }
    }
    assert!(wrong.is_empty(), "within {budget}: {wrong:#?}");
    // Else the budget would be bounding something else.
    assert!(highest > budget as u64 / 4, "{highest} of {budget}");
}
