//! A disk that takes no more: clients get their bytes, right and whole, and nothing is left behind.

mod support;

use std::{path::Path, process::Command, time::Duration};

use futures_util::{StreamExt as _, future::join_all};
use headstart_loadtest::corpus::{Compression, Dialect, Flavor, LayerBuilder, Meta, SyntheticImage};
use headstart_loadtest::origin::{Auth, Fault, Origin, Target};
use headstart_server::config::HoldMode;
use headstart_server::store::facts::Source;
use headstart_server::store::{LayerRecord, Store};
use support::{REPOSITORY, Server, noise, soon};

const MIB: usize = 1 << 20;

/// A small disk of its own. Needs root, as the other tests that mount.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(mib: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "headstart-test"])
            .arg(dir.path())
            .status();
        assert!(mounted.unwrap().success(), "a tmpfs can be mounted");
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes every free byte, until the file is removed.
    fn fill(&self) -> std::path::PathBuf {
        let path = self.path().join("filler");
        let zeroes = std::fs::File::open("/dev/zero").unwrap();
        let error = std::io::copy(&mut &zeroes, &mut std::fs::File::create(&path).unwrap()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        path
    }

    /// Unfinished fetches and their maps.
    fn unfinished(&self) -> Vec<std::path::PathBuf> {
        let mut found = Vec::new();
        let mut look = vec![self.path().join("originals")];
        while let Some(dir) = look.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                match path.extension().and_then(|e| e.to_str()) {
                    Some("partial" | "map") => found.push(path),
                    _ if path.is_dir() => look.push(path),
                    _ => {}
                }
            }
        }
        found
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a failed test may have files open.
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_under_a_fetch_costs_no_client_its_bytes() {
    let (origin, disk) = (Origin::start(Auth::Anonymous), SmallDisk::new(16));
    let server = Server::start(&origin, disk.path()).await;
    let content = noise(32 * MIB, 1);
    let digest = origin.add_blob(REPOSITORY, content.clone());
    let readers = (0..4).map(|i| {
        let (server, content) = (&server, &content);
        async move {
            if i == 3 {
                let request = server.http.get(server.blob_url(&digest));
                let part = request.header("range", "bytes=1000-31457279").send().await.unwrap();
                assert_eq!(part.status(), 206);
                assert!(part.bytes().await.unwrap() == content[1000..30 * MIB]);
            } else {
                let (status, bytes) = server.fetch(&server.blob_url(&digest)).await;
                assert_eq!(status, 200);
                assert!(bytes.unwrap() == *content);
            }
        }
    });
    soon(join_all(readers)).await;
    assert!(disk.unfinished().is_empty());
    let metrics = server.app.metrics.render();
    assert!(metrics.contains("headstart_pass_through_total 4"), "{metrics}");

    // What is given out past the disk is verified all the same, also what was read from the disk before.
    for at in [5, 31 * MIB as u64] {
        soon(async {
            // Until the disk is tried again.
            while !disk_is_tried(&server, &origin).await {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await;
        let digest = origin.add_blob(REPOSITORY, noise(32 * MIB, at));
        origin.always(Target::Digest(digest), Fault::WrongByte { at });
        let mut body = soon(server.get(&server.blob_url(&digest))).await.bytes_stream();
        let mut got = 0;
        let broken = loop {
            match soon(body.next()).await {
                Some(Ok(bytes)) => got += bytes.len(),
                Some(Err(_)) => break true,
                None => break false,
            }
        };
        assert!(broken && got < 32 * MIB, "the answer is not complete");
    }
    server.stop().await;
    assert!(disk.unfinished().is_empty());
}

/// Whether a blob of its own is kept.
async fn disk_is_tried(server: &Server, origin: &Origin) -> bool {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1 << 40);
    let content = noise(1000, NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    let digest = origin.add_blob(REPOSITORY, content.clone());
    assert!(soon(server.fetch(&server.blob_url(&digest))).await.1.unwrap() == content);
    // The answer is complete before the file has its name.
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.app.originals.get(&digest).unwrap().is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_already_lets_blobs_pass_and_is_used_again_when_there_is_space() {
    let (origin, disk) = (Origin::start(Auth::Anonymous), SmallDisk::new(16));
    let server = Server::start(&origin, disk.path()).await;
    let filler = disk.fill();
    for (size, seed) in [(3 * MIB, 3), (1000, 4), (0, 5)] {
        let content = noise(size, seed);
        let digest = origin.add_blob(REPOSITORY, content.clone());
        for _ in 0..2 {
            let (status, bytes) = soon(server.fetch(&server.blob_url(&digest))).await;
            assert_eq!(status, 200);
            assert!(bytes.unwrap() == content);
        }
        if size > 100 {
            let request = server.http.get(server.blob_url(&digest)).header("range", "bytes=-100");
            let part = soon(request.send()).await.unwrap();
            assert_eq!(part.status(), 206);
            assert!(soon(part.bytes()).await.unwrap() == content[size - 100..]);
        }
    }
    let missing = headstart_layer_format::BlobDigest::of(b"missing");
    assert_eq!(soon(server.error(&server.blob_url(&missing))).await.0, 404);
    assert!(disk.unfinished().is_empty());
    std::fs::remove_file(filler).unwrap();
    soon(async {
        while !disk_is_tried(&server, &origin).await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    server.stop().await;
}

/// Past the disk there must be a size before the first byte, and HEAD is not the only way to it.
#[tokio::test(flavor = "multi_thread")]
async fn past_a_full_disk_blobs_come_from_an_upstream_without_head_too() {
    let (origin, disk) = (Origin::start(Auth::Anonymous), SmallDisk::new(16));
    let server = Server::start(&origin, disk.path()).await;
    disk.fill();
    for (of, code, seed) in [(Target::Blobs, 405, 7), (Target::Blobs, 501, 8), (Target::Cdn, 403, 9)] {
        origin.clear_faults();
        origin.redirect_blobs(of == Target::Cdn);
        let refusal = Fault::Status {
            code,
            retry_after_secs: None,
        };
        origin.always(Target::Heads(Box::new(of)), refusal);
        let content = noise(3 * MIB, seed);
        let digest = origin.add_blob(REPOSITORY, content.clone());
        for _ in 0..2 {
            let (status, bytes) = soon(server.fetch(&server.blob_url(&digest))).await;
            assert_eq!(status, 200, "{code}");
            assert!(bytes.unwrap() == content);
        }
        let sent = origin.bytes_sent(&digest);
        let head = soon(server.http.head(server.blob_url(&digest)).send()).await.unwrap();
        assert_eq!(head.status(), 200, "{code}");
        assert_eq!(head.headers()["content-length"], content.len().to_string().as_str());
        assert_eq!(origin.bytes_sent(&digest), sent + 1, "{code}");
    }
    server.stop().await;
}

/// One that waits for its turn in vain is told so by a status, not by an answer that breaks off.
#[tokio::test(flavor = "multi_thread")]
async fn past_a_full_disk_answers_take_turns_and_empty_ones_are_not_believed() {
    let (origin, disk) = (Origin::start(Auth::Anonymous), SmallDisk::new(16));
    let mut config = support::config(&origin, disk.path());
    config.fetch.pass_through_max = 1;
    config.fetch.turn_wait_ms = 300;
    let server = Server::with(config).await;
    disk.fill();
    let content = noise(8 * MIB, 6);
    let digest = origin.add_blob(REPOSITORY, content.clone());
    let gate = origin.hold(Target::Digest(digest), 100_000);
    let first = soon(server.get(&server.blob_url(&digest))).await;
    let second = soon(server.get(&server.blob_url(&digest))).await;
    assert_eq!((first.status().as_u16(), second.status().as_u16()), (200, 429));
    assert!(second.headers().contains_key("retry-after"));
    gate.open();
    assert!(soon(first.bytes()).await.unwrap() == content);
    let mut again = soon(server.fetch(&server.blob_url(&digest))).await;
    // The turn is given back when the answer is gone.
    while again.0 == 429 {
        again = soon(server.fetch(&server.blob_url(&digest))).await;
    }
    assert!(again.1.unwrap() == content);

    let lie = headstart_layer_format::BlobDigest::of(b"not empty");
    origin.add_blob_as(REPOSITORY, lie, "");
    assert_eq!(soon(server.fetch(&server.blob_url(&lie))).await.0, 502);
    server.stop().await;
}

/// Nobody can verify a part when nothing can be kept: where that is wanted before a byte goes out, there is none.
#[tokio::test(flavor = "multi_thread")]
async fn past_a_full_disk_no_part_of_what_is_held_goes_out() {
    let (origin, disk) = (Origin::start(Auth::Anonymous), SmallDisk::new(16));
    let mut config = support::config(&origin, disk.path());
    config.upstreams[0].hold_until_verified = HoldMode::Always;
    config.http.answer_timeout_ms = 300;
    let server = Server::with(config).await;
    let part = |digest| server.http.get(server.blob_url(digest)).header("range", "bytes=5-1004");

    // It is full already.
    let filler = disk.fill();
    let content = noise(3 * MIB, 21);
    let digest = origin.add_blob(REPOSITORY, content.clone());
    for _ in 0..2 {
        assert_eq!(soon(part(&digest).send()).await.unwrap().status(), 500);
        let whole = soon(server.fetch(&server.blob_url(&digest))).await;
        assert!(whole.0 == 200 && whole.1.unwrap() == content);
    }

    // It fills up under an answer whose head is out.
    std::fs::remove_file(filler).unwrap();
    soon(async {
        while !disk_is_tried(&server, &origin).await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let content = noise(32 * MIB, 20);
    let digest = origin.add_blob(REPOSITORY, content.clone());
    let gate = origin.hold(Target::Digest(digest), MIB as u64);
    let late = soon(part(&digest).send()).await.unwrap();
    let whole = soon(server.get(&server.blob_url(&digest))).await;
    assert_eq!((late.status().as_u16(), whole.status().as_u16()), (206, 200));
    gate.open();
    let first = soon(late.bytes_stream().next()).await;
    assert!(first.is_some_and(|first| first.is_err()), "a part went out unverified");
    assert!(
        soon(whole.bytes()).await.unwrap() == content,
        "the whole is verified at its end"
    );
    server.stop().await;
}

fn image(seed: u64) -> SyntheticImage {
    let mut layer = LayerBuilder::new(Dialect::Pax);
    layer.file("f", Meta::default(), noise(200_000, seed));
    SyntheticImage::new(Flavor::Oci, vec![layer.finish(Compression::Gzip)])
}

async fn pull(server: &Server, tag: &str, image: &SyntheticImage) {
    let (status, body) = soon(server.fetch(&server.manifest_url(tag))).await;
    assert_eq!(status, 200, "{tag}");
    assert!(body.unwrap() == image.manifest);
}

/// A tag that is confirmed is a row of the index and no record, so a full disk fails the index before any pack.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_a_full_disk_broke_is_rebuilt_when_there_is_space_without_a_restart() {
    let (first, second) = (image(11), image(12));
    let origin = Origin::with_image(REPOSITORY, "first", &first);
    second.push(&origin, REPOSITORY, "second");
    let disk = SmallDisk::new(32);
    let server = Server::start(&origin, disk.path()).await;
    pull(&server, "first", &first).await;
    server.anybody().ready(&first.layers[0].digest).await;
    let source = Source {
        upstream: support::UPSTREAM.into(),
        repository: REPOSITORY.into(),
    };
    let known = server.app.store.tag(&source, "first").unwrap().unwrap();
    let filler = disk.fill();
    let suspect = disk.path().join("index.suspect");
    soon(async {
        // As so many pulls do, one after the other.
        for n in (1..1000).cycle().take_while(|_| !suspect.exists()) {
            let mut fact = known.clone();
            fact.confirmed_unix_secs += n;
            server.app.store.confirm_tag(&source, "first", &fact).unwrap();
            if n % 50 == 0 {
                pull(&server, "first", &first).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    })
    .await;
    // It waits for room, and pulls go on.
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        pull(&server, "first", &first).await;
    }
    assert!(suspect.exists());
    std::fs::remove_file(filler).unwrap();
    // Less than the pause after a rebuild that failed: there was none.
    let mended = async {
        while suspect.exists() {
            pull(&server, "first", &first).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(40), mended).await.unwrap();
    pull(&server, "second", &second).await;
    let layer = second.layers[0].digest;
    soon(server.anybody().ready(&layer)).await;
    let counted = "headstart_index_rebuilds_total{reason=\"error\"} 1";
    support::until("the rebuild is counted", || {
        server.app.metrics.render().contains(counted)
    })
    .await;
    let check = |store: &Store| {
        for (tag, image) in [("first", &first), ("second", &second)] {
            let known = store.tag(&source, tag).unwrap().map(|fact| fact.digest);
            assert_eq!(known, Some(image.manifest_digest));
            assert!(store.manifest(&image.manifest_digest).unwrap().is_some());
            let layer = store.layer(&image.layers[0].digest).unwrap();
            assert!(matches!(layer, Some(LayerRecord::Ready { .. })), "{layer:?}");
        }
    };
    check(&server.app.store);
    server.stop().await;
    let store = Store::open(disk.path()).unwrap();
    assert!(!store.open_report().index_rebuilt);
    check(&store);
}
