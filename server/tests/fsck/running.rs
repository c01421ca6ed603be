//! A server that checks and mends itself, asked and by itself.
//!
//! In: a server that runs, and damage to its files. Out: it is found and mended under it; a pass goes on after a restart.
//! Not here: what goes on beside it ([`super::beside`]).

use std::collections::HashSet;
use std::fs;
use std::time::{Duration, Instant};

use headstart_loadtest::origin::Origin;

use crate::damage::{CHUNK, STATE, TOC, change, damage_record, flip, flip_header, original};
use crate::support::{REPOSITORY, Server};
use crate::{assert_served, config, fsck, image, layers, pull, write_config};

#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_checks_and_mends_itself() {
    let image = image(3);
    let origin = Origin::with_image(REPOSITORY, "v1", &image);
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let toml = write_config(dir.path(), &data);
    let server = Server::with(config(&origin, &data)).await;
    pull(&server, &image).await;
    let ask = |more: &'static [&'static str]| {
        let toml = toml.clone();
        async move { tokio::task::spawn_blocking(move || fsck(&toml, more)).await.unwrap() }
    };
    let fast = &["--bytes-per-sec", "0"];
    let (code, report, output) = ask(fast).await;
    assert_eq!(
        (code, report.damaged_count, report.originals_count),
        (Some(0), 0, 4),
        "{output:?}"
    );
    change(&original(&data, &image.layers[0].digest), |b| b[100] ^= 1);
    damage_record(&data, CHUNK, flip);
    damage_record(&data, STATE, flip);
    damage_record(&data, TOC, flip_header);
    let (code, report, output) = ask(fast).await;
    assert_eq!(code, Some(1), "{output:?}");
    let found: HashSet<&str> = report.damages.iter().map(|d| d.what.as_str()).collect();
    for what in ["original", "chunk", "toc", "state", "record"] {
        assert!(found.contains(what), "{what}: {report:?}");
    }
    assert!(report.damages.iter().all(|d| !d.repaired));
    assert!(original(&data, &image.layers[0].digest).exists(), "nothing is changed");
    let (code, report, output) = ask(&["--repair", "--bytes-per-sec", "0"]).await;
    assert_eq!(code, Some(0), "{output:?}");
    assert!(report.damaged_count >= 5 && report.repaired_count == report.damaged_count);
    assert!(!original(&data, &image.layers[0].digest).exists(), "it is set aside");
    assert_served(&server, &image).await;
    let (code, report, output) = ask(fast).await;
    assert_eq!((code, report.damaged_count), (Some(0), 0), "{output:?}");
    // Whole packs, under the server: the one that is gone is read through the file that is open still, or not at all.
    let mut packs = layers::packs(&data);
    packs.pop();
    let rest = packs.split_off(1);
    fs::remove_file(&packs[0]).unwrap();
    for pack in &rest {
        change(pack, |b| b.truncate(b.len() - 100));
    }
    let (code, report, output) = ask(&["--repair", "--bytes-per-sec", "0"]).await;
    assert_eq!(code, Some(0), "{output:?}");
    assert!(report.damages.iter().any(|d| d.what == "pack"), "{report:?}");
    assert_served(&server, &image).await;
    let (code, report, output) = ask(fast).await;
    assert_eq!((code, report.damaged_count), (Some(0), 0), "{output:?}");
    let metrics = server
        .get(&format!("http://{}/metrics", server.address))
        .await
        .text()
        .await
        .unwrap();
    let value = |name: &str| metrics.lines().any(|line| line.starts_with(name));
    assert!(value("headstart_scrub_damage_total{"), "{metrics}");
    assert!(value("headstart_scrubbed_bytes_total{"), "{metrics}");
    server.stop().await;
}

/// By itself, and it goes on where it was after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_scrubs_by_itself() {
    let image = image(4);
    let origin = Origin::with_image(REPOSITORY, "v1", &image);
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&origin, dir.path());
    config.scrub.interval_ms = 50;
    let server = Server::with(config.clone()).await;
    pull(&server, &image).await;
    let victim = original(dir.path(), &image.layers[1].digest);
    change(&victim, |b| b[0] ^= 1);
    soon("the damaged original is set aside", || !victim.exists()).await;
    assert_served(&server, &image).await;
    server.stop().await;

    // So slow that it does not get beyond the originals; they come before the packs.
    config.scrub.bytes_per_sec = 1;
    let server = Server::with(config.clone()).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let begun = Instant::now();
    server.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(60), "a rest ends with a stop");
    let state =
        || -> serde_json::Value { serde_json::from_slice(&fs::read(dir.path().join("scrub.json")).unwrap()).unwrap() };
    assert_eq!(state()["position"]["stage"], "originals", "{}", state());
    change(&victim, |b| b[0] ^= 1);
    config.scrub.bytes_per_sec = 0;
    let server = Server::with(config).await;
    soon("it goes on", || !victim.exists()).await;
    server.stop().await;
}

async fn soon(what: &str, is: impl Fn() -> bool) {
    for _ in 0..600 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what}: not within 30 s");
}
