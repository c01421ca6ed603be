//! The benchmark, small: every server starts, holds the same bytes, answers every cell without an error, and the report
//! has all of it. No word about speed.

use std::path::Path;

use headstart_loadtest::bench::{
    self, BenchConfig,
    busy::{self, BusyConfig},
    first_byte::{self, FirstByteConfig},
    ingest::{self, IngestBenchConfig},
};
use headstart_loadtest::corpus::{Compression, Dialect, LayerBuilder, Meta, Rng};
use headstart_loadtest::playground::progress::Progress;

#[tokio::test(flavor = "multi_thread")]
async fn every_cell_is_measured_without_errors() {
    let server = Path::new(env!("CARGO_BIN_EXE_headstart-loadtest")).with_file_name("headstart-server");
    let config = BenchConfig {
        headstart: vec![server.to_string_lossy().into_owned()],
        connections: vec![1, 3],
        rounds: 1,
        cell_ms: 100,
        blob_small_bytes: 100_000,
        blob_large_bytes: 300_000,
        ..BenchConfig::default()
    };
    let report = bench::run(&config, &Progress::silent()).await.unwrap();
    assert_eq!(report.first_error(), None);
    let json = report.json();
    let cells = json["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 4 * 2);
    for cell in cells {
        for server in ["registry", "registry-proxy", "nginx", "headstart"] {
            let sample = &cell["samples"][server][0];
            assert!(
                sample["bytes"].as_u64() > Some(0) && sample["errors"] == 0,
                "{server}: {cell}"
            );
        }
    }
    let table = report.table();
    assert!(
        table.contains("blob-large") && table.contains("work per CPU second"),
        "{table}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn first_bytes_are_measured_directly_and_through_the_mirror_with_and_without_conversions() {
    let server = Path::new(env!("CARGO_BIN_EXE_headstart-loadtest")).with_file_name("headstart-server");
    let config = FirstByteConfig {
        headstart: server,
        upstream_delay_ms: vec![1],
        rounds: 2,
        pause_ms: 0,
        blob_bytes: 200_000,
        ingest_layers: 4,
        ingest_layer_bytes: 12 << 20,
        ..FirstByteConfig::default()
    };
    let report = first_byte::run(&config, &Progress::silent()).await.unwrap();
    assert_eq!((report.situations.len(), report.asks()), (3, 6));
    for situation in &report.situations {
        assert_eq!(situation.direct.len(), 2);
        let all = situation.direct.iter().chain(&situation.mirror);
        // The way to the scripted upstream is in all of them.
        let way_ms = if situation.upstream == "1 ms away" { 1.0 } else { 0.0 };
        assert!(all.clone().all(|t| t.head_ms >= way_ms && t.first_byte_ms >= t.head_ms));
    }
    assert!(report.table().contains("first byte ratio"));
}

#[test]
fn conversions_are_measured_beside_the_floor_and_a_peer_that_fails_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let layer = |name: &str, seed| {
        let mut layer = LayerBuilder::new(Dialect::Pax);
        layer.file("a", Meta::default(), Rng::new(seed).bytes(600_000));
        let path = dir.path().join(name);
        std::fs::write(&path, layer.finish(Compression::Gzip).blob).unwrap();
        path
    };
    let server = Path::new(env!("CARGO_BIN_EXE_headstart-loadtest")).with_file_name("headstart-server");
    let mut config = IngestBenchConfig {
        headstart: vec![format!("ours={}", server.display())],
        layers: vec![layer("one", 1), layer("two", 2)],
        peers: vec![
            "copy=cat \"$@\" >\"$OUT/all\"".into(),
            "missing=echo there is none >&2; exit 3".into(),
        ],
        rounds: 2,
        json: None,
    };
    let report = ingest::run(&config, &Progress::silent()).unwrap();
    let names: Vec<&str> = report.contenders.iter().map(|c| c.name.as_str()).collect();
    let ours = ["ours, a layer at a time", "ours, two at a time"];
    assert_eq!(names, ["gzip -dc | sha256sum", ours[0], ours[1], "copy", "missing"]);
    for contender in &report.contenders[..4] {
        assert_eq!((contender.samples.len(), &contender.left_out), (2, &None));
        for sample in &contender.samples {
            assert!(
                sample.wall_s > 0.0 && sample.cpu_s > 0.0 && sample.peak_rss_bytes > 1 << 20,
                "{sample:?}"
            );
            let is_floor = contender.name == names[0];
            // What is random is stored as it is.
            assert_eq!(sample.stored_bytes > 1_200_000, !is_floor, "{contender:?}");
        }
    }
    let missing = &report.contenders[4];
    assert!(missing.samples.is_empty() && missing.left_out.as_ref().unwrap().contains("there is none"));
    let table = report.table();
    assert!(
        table.contains("missing is left out") && table.contains("wall ratio"),
        "{table}"
    );

    // A layer that is no gzip: no figure, rather than one of nothing.
    std::fs::write(&config.layers[0], "no gzip").unwrap();
    config.headstart.clear();
    let why = ingest::run(&config, &Progress::silent()).unwrap_err().to_string();
    assert!(why.contains("gzip -dc") && why.contains("not in gzip format"), "{why}");
}

/// Twenty images at once: all of them become ready, the pulls beside them go on, and memory stays within its bound.
#[tokio::test(flavor = "multi_thread")]
async fn many_images_at_once_stay_within_their_memory() {
    let server = Path::new(env!("CARGO_BIN_EXE_headstart-loadtest")).with_file_name("headstart-server");
    let config = BusyConfig {
        headstart: server,
        layers: 1,
        layer_bytes: 6 << 20,
        blob_bytes: 1 << 20,
        cell_ms: 50,
        solo_cells: 1,
        // Twice what it takes. With all of them converted side by side it would be more.
        memory_bytes_max: 112 << 20,
        ..BusyConfig::default()
    };
    let report = busy::run(&config, &Progress::silent()).await.unwrap();
    assert_eq!((report.images, report.layers, report.before.len()), (20, 20, 1));
    assert_eq!(report.solo.len(), report.beside.len() + 1);
    assert!(
        report
            .beside
            .iter()
            .chain(&report.solo)
            .chain(report.before.iter().flatten())
            .all(|s| s.bytes > 0 && s.errors == 0)
    );
    assert!(
        report.idle_bytes > 0 && report.peak_bytes > report.idle_bytes,
        "{report:?}"
    );
    assert!(report.is_within_memory(), "{}", report.table());
    let strict = busy::Report {
        memory_bytes_max: report.memory_bytes() - 1,
        ..report
    };
    assert!(!strict.is_within_memory() && strict.table().contains("Pulls keep"));
}
