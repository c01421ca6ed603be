//! Memory: a layer that finds too little waits, and a process that converts stays within its budget.

use std::process::Command;

use headstart_layer_format::api::LayerState;
use headstart_layer_format::routes;
use headstart_loadtest::corpus::{Compression, Flavor, Oracle, Rng, SyntheticImage, SyntheticLayer, TarWriter};
use headstart_loadtest::origin::{Auth, Origin, Target};

use crate::growing::{GROWING, empty};
use crate::support::{REPOSITORY, Server, config};
use crate::{MIB, entry, eventually, first_layer, plain};

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
    let status = async |image: &SyntheticImage| first_layer(&server, image).await;
    // The first has its names in memory, and does not come to an end. (A reader sees a fetch some steps behind it.)
    const NEAR: u64 = 4 << 20;
    let held_at = first.layers[0].blob.len() as u64 - 1024;
    let gate = origin.hold(Target::Digest(first.layers[0].digest), held_at);
    // A GET would begin the layer, and the rest of it would come in an answer of its own, held in another place.
    let head = server.http.head(server.manifest_url(first.manifest_digest));
    assert_eq!(head.send().await.unwrap().status(), 200);
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
