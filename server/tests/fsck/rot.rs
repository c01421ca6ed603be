//! Bytes of the index that are wrong, where sled reads them only when somebody asks: right bytes or a miss, and another index.
//!
//! In: a data directory whose index was flushed, opened and closed, so that sled's own snapshot covers its rows, and one byte of
//! its file that is different. Out: an image that is served as ever, never a 500.
//! Not here: an index that is whole garbage (`store.rs`), or lost ([`super::damage`]).

use std::fs;
use std::path::Path;

use headstart_layer_format::{BlobDigest, ChunkDigest, Toc, routes};
use headstart_loadtest::corpus::SyntheticImage;
use headstart_loadtest::origin::Origin;
use headstart_server::config::Config;
use headstart_server::store::Store;
use headstart_server::store::facts::{Source, TagFact};
use tokio::time::{Duration, Instant, sleep};

use crate::damage::change;
use crate::support::{REPOSITORY, Server, UPSTREAM};
use crate::{Patient, data, image, layers, rebuild, template};

const PLACES: usize = 50;
/// A rebuild begins within a second, and until it is over layers are not ready.
const PATIENCE: Duration = Duration::from_secs(60);

/// Beside the image, so that the index has pages that nothing but these rows needs.
const OTHERS: u32 = 60;
const CHUNKS: u32 = 12;
/// Digests that are said to be in a repository: a MiB of rows and more, since sled reads the end of its log at an opening.
const MEMBERS: u32 = 6000;

/// Room for all of it.
const BYTES_MAX: u64 = 64 << 20;

fn config(origin: &Origin, data: &Path) -> Config {
    let mut config = crate::config(origin, data);
    config.cache.chunks_bytes_max = Some(BYTES_MAX);
    config
}

fn other(n: u32) -> String {
    format!("other-{n}")
}

fn tag_of(n: u32) -> TagFact {
    TagFact {
        digest: BlobDigest::of(other(n).as_bytes()),
        media_type: "m".into(),
        size: 1,
        confirmed_unix_secs: 7,
    }
}

fn source() -> Source {
    Source {
        upstream: UPSTREAM.into(),
        repository: "others".into(),
    }
}

fn member(n: u32) -> BlobDigest {
    BlobDigest::of(&n.to_le_bytes())
}

/// Layers, members and tags that no server has seen.
fn add_others(data: &Path) {
    let store = Store::open_with(data, BYTES_MAX / 8).unwrap();
    store
        .claim_members(&source(), (0..MEMBERS).map(member).collect())
        .unwrap();
    store.flush().unwrap();
    for n in 0..OTHERS {
        layers::publish(&store, &other(n), n * CHUNKS..(n + 1) * CHUNKS);
        store.confirm_tag(&source(), &other(n), &tag_of(n)).unwrap();
    }
    store.flush().unwrap();
}

/// Right bytes or a miss; how many misses.
fn read_others(store: &Store, place: usize) -> usize {
    let is_missing = |n: &u32| !store.is_member(&source(), &member(*n)).unwrap();
    let mut misses = (0..MEMBERS).step_by(7).filter(is_missing).count();
    for n in 0..OTHERS {
        let tag = store.tag(&source(), &other(n)).unwrap();
        assert!(tag.as_ref().is_none_or(|tag| *tag == tag_of(n)), "{place}: tag {n}");
        let toc = store.toc(&BlobDigest::of(other(n).as_bytes())).unwrap();
        if let Some((summary, bytes)) = &toc {
            assert_eq!(Toc::digest(bytes), summary.digest, "{place}: layer {n}");
        }
        misses += usize::from(tag.is_none()) + usize::from(toc.is_none());
        for chunk in n * CHUNKS..(n + 1) * CHUNKS {
            let raw = layers::chunk_bytes(chunk);
            match store.read_chunk(&ChunkDigest::of(&raw)).unwrap() {
                Some(frame) => assert!(zstd::bulk::decompress(&frame, raw.len()).unwrap() == raw, "{place}"),
                None => misses += 1,
            }
        }
    }
    misses
}

/// Everything of the image, the lazy half as soon as it is to be had. What is answered with a 500 on the way.
async fn serve(server: &Server, image: &SyntheticImage, place: usize) -> Vec<String> {
    let mut bad = Vec::new();
    let manifest = image.manifest_digest;
    for reference in [manifest.to_string(), "v1".into()] {
        let (status, body) = server.fetch(&server.manifest_url(&reference)).await;
        match status {
            200 => assert!(body.unwrap() == image.manifest, "{place}"),
            _ => bad.push(format!("{place}: {status} for {reference}")),
        }
    }
    match server.anybody().own_status(&routes::image(&manifest)).await {
        200 => {}
        status => bad.push(format!("{place}: {status} for the image's state")),
    }
    for layer in &image.layers {
        let (status, body) = server.fetch(&server.blob_url(&layer.digest)).await;
        match status {
            200 => assert!(body.unwrap() == layer.blob, "{place}"),
            _ => bad.push(format!("{place}: {status} for a blob")),
        }
        let until = Instant::now() + PATIENCE;
        loop {
            let path = format!("{}?wait_ms=1000", routes::layer_toc(&layer.digest));
            let status = server.anybody().own_status(&path).await;
            if status == 500 {
                bad.push(format!("{place}: {status} for a TOC"));
                break;
            }
            if status == 200 {
                let toc = server.anybody().ready(&layer.digest).await;
                if let Some(data) = data(server, &layer.digest, &toc).await {
                    assert!(rebuild(&toc, &data) == layer.tar, "{place}");
                    break;
                }
            }
            if Instant::now() > until {
                bad.push(format!("{place}: a layer is not ready again"));
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
    bad
}

/// The sums of a metric's lines that are not about the opening.
fn counted(server: &Server, name: &str) -> u64 {
    let metrics = server.app.metrics.render();
    let lines = metrics
        .lines()
        .filter(|line| line.starts_with(name) && !line.contains("\"opening\""));
    let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.sum::<f64>() as u64
}

fn has_snapshot(index: &Path) -> bool {
    let mut names = fs::read_dir(index).unwrap().map(|entry| entry.unwrap().file_name());
    names.any(|name| name.to_string_lossy().starts_with("snap."))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_of_the_index_that_is_wrong_costs_no_answer_and_is_mended_in_the_running_server() {
    let image = image(8);
    let origin = Origin::with_image(REPOSITORY, "v1", &image);
    let healthy = template(&origin, &image).await;
    add_others(healthy.path());
    for _ in 0..2 {
        let server = Server::with(config(&origin, healthy.path())).await;
        assert_eq!(serve(&server, &image, 0).await, [""; 0]);
        assert_eq!(read_others(&server.app.store, 0), 0);
        server.stop().await;
    }
    let file = healthy.path().join("index/db");
    assert!(
        has_snapshot(file.parent().unwrap()),
        "sled does not read all of it at an opening"
    );
    let bytes = fs::read(&file).unwrap();
    let written: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
    let anywhere = (0..PLACES).map(|n| written[n * written.len() / PLACES]);
    // Most of the log is what rows once said: the last that is said of some, too.
    let last_of = |n: u32| {
        let digest = member(n);
        let end = &digest.as_bytes()[8..];
        bytes.windows(end.len()).rposition(|some| some == end)
    };
    let of_rows = (0..MEMBERS).step_by(7 * 70).filter_map(last_of);
    let places: Vec<usize> = anywhere.chain(of_rows).collect();
    let patient = Patient::new();
    let (mut bad, mut met, mut rebuilt) = (Vec::new(), 0, 0);
    for place in places.iter().copied() {
        patient.heal(&healthy);
        let mut bytes = bytes.clone();
        bytes[place] ^= 0x10;
        fs::write(patient.data.join("index/db"), bytes).unwrap();
        let server = Server::with(config(&origin, &patient.data)).await;
        let opened = server.app.store.open_report();
        let misses = read_others(&server.app.store, place);
        bad.extend(serve(&server, &image, place).await);
        // Whatever was met is over.
        let until = Instant::now() + PATIENCE;
        while patient.data.join("index.suspect").exists() {
            assert!(Instant::now() < until, "{place}: the index is in doubt still");
            sleep(Duration::from_millis(50)).await;
        }
        bad.extend(serve(&server, &image, place).await);
        if read_others(&server.app.store, place) > 0 {
            bad.push(format!("{place}: what packs have is missing"));
        }
        let (corruption, rebuilds) = ("headstart_corruption_total", "headstart_index_rebuilds_total");
        if misses > 0 && !opened.index_rebuilt && counted(&server, corruption) == 0 {
            bad.push(format!("{place}: {misses} misses, and none is counted"));
        }
        println!(
            "{place}: rebuilt at the opening: {}; misses: {misses}; counted: {} and {}",
            opened.index_rebuilt,
            counted(&server, corruption),
            counted(&server, rebuilds)
        );
        met += usize::from(counted(&server, "headstart_corruption_total") > 0);
        rebuilt += counted(&server, "headstart_index_rebuilds_total");
        server.stop().await;
        let server = Server::with(config(&origin, &patient.data)).await;
        if server.app.store.open_report().index_rebuilt {
            bad.push(format!("{place}: it was left to the next opening"));
        }
        bad.extend(serve(&server, &image, place).await);
        server.stop().await;
    }
    println!(
        "of {} places {met} were met while the server ran, {rebuilt} indexes rebuilt",
        places.len()
    );
    assert!(bad.is_empty(), "{bad:#?}");
    assert!(met > 0 && rebuilt > 0, "{met} met, {rebuilt} rebuilt");
}

/// Each of sled's own files alone.
#[tokio::test(flavor = "multi_thread")]
async fn no_file_of_the_index_is_missed_for_longer_than_a_rebuild() {
    let image = image(9);
    let origin = Origin::with_image(REPOSITORY, "v1", &image);
    let healthy = template(&origin, &image).await;
    add_others(healthy.path());
    // Of snapshots, the latest.
    let store = Store::open_with(healthy.path(), BYTES_MAX / 8).unwrap();
    assert_eq!(read_others(&store, 0), 0);
    store.flush().unwrap();
    drop(store);
    let index = healthy.path().join("index");
    assert!(has_snapshot(&index));
    let mut names: Vec<_> = fs::read_dir(&index)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert!(
        ["blobs", "conf", "db"]
            .iter()
            .all(|name| names.contains(&(*name).into())),
        "{names:?}"
    );
    let patient = Patient::new();
    let mut bad = Vec::new();
    for name in names {
        for how in ["truncated", "cut", "flipped", "deleted"] {
            patient.heal(&healthy);
            let path = patient.data.join("index").join(&name);
            let what = format!("{} {how}", name.to_string_lossy());
            match (path.is_dir(), how) {
                (true, "deleted") => fs::remove_dir_all(&path).unwrap(),
                (true, _) => continue,
                (false, "truncated") => change(&path, Vec::clear),
                (false, "cut") => change(&path, |bytes| bytes.truncate(bytes.len() / 2)),
                (false, "flipped") => change(&path, |bytes| {
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 0x10;
                }),
                (false, _) => fs::remove_file(&path).unwrap(),
            }
            let server = Server::with(config(&origin, &patient.data)).await;
            let rebuilt = server.app.store.open_report().index_rebuilt;
            let misses = read_others(&server.app.store, 0);
            bad.extend(
                serve(&server, &image, 0)
                    .await
                    .into_iter()
                    .map(|it| format!("{what}: {it}")),
            );
            let until = Instant::now() + PATIENCE;
            while patient.data.join("index.suspect").exists() {
                assert!(Instant::now() < until, "{what}: the index is in doubt still");
                sleep(Duration::from_millis(50)).await;
            }
            let left = read_others(&server.app.store, 0);
            println!("{what}: rebuilt at the opening: {rebuilt}; misses: {misses}, then {left}");
            if left > 0 {
                bad.push(format!("{what}: {left} are missing"));
            }
            server.stop().await;
        }
    }
    assert!(bad.is_empty(), "{bad:#?}");
}
