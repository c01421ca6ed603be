//! The benchmark, small: every server starts, holds the same bytes, answers every cell without an error, and the report
//! has all of it. No word about speed.

use std::path::Path;

use headstart_loadtest::bench::{
    self, BenchConfig,
    first_byte::{self, FirstByteConfig},
};
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
    assert_eq!((report.situations.len(), report.asks()), (2, 4));
    for situation in &report.situations {
        assert_eq!(situation.direct.len(), 2);
        let all = situation.direct.iter().chain(&situation.mirror);
        // The upstream's way is in all of them.
        assert!(all.clone().all(|t| t.head_ms >= 1.0 && t.first_byte_ms >= t.head_ms));
    }
    assert!(report.table().contains("first byte ratio"));
}
