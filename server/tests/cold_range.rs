//! Ranges of blobs that are not here: what they cost upstream, what is kept of them, and what is never given out.

mod support;

use std::time::Duration;

use futures_util::{StreamExt as _, future::join_all};
use headstart_layer_format::BlobDigest;
use headstart_loadtest::origin::{Auth, Fault, Origin, Target};
use support::{REPOSITORY, Server, UPSTREAM, answer, config, error_of, is_cut, noise, soon};

const MIB: usize = 1 << 20;
const UNIT: u64 = headstart_server::store::units::UNIT;

struct Mirror {
    origin: Origin,
    server: Server,
    dir: tempfile::TempDir,
}

impl Mirror {
    async fn new() -> Self {
        let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
        let server = Server::start(&origin, dir.path()).await;
        Self { origin, server, dir }
    }

    fn blob(&self, size: usize, seed: u64) -> (BlobDigest, Vec<u8>) {
        let content = noise(size, seed);
        (self.origin.add_blob(REPOSITORY, content.clone()), content)
    }

    async fn ask(&self, digest: &BlobDigest, range: &str) -> reqwest::Response {
        let request = self.server.http.get(self.server.blob_url(digest));
        soon(request.header("range", range).send()).await.unwrap()
    }

    /// Status, `Content-Range`, and the body or why it broke off.
    async fn range(&self, digest: &BlobDigest, range: &str) -> (u16, String, Result<Vec<u8>, reqwest::Error>) {
        let request = self.server.http.get(self.server.blob_url(digest));
        let (status, head, body) = soon(answer(request.header("range", range))).await;
        let content_range = head.get("content-range");
        let content_range = content_range.map_or("", |v| v.to_str().unwrap()).to_owned();
        (status, content_range, body.map(|b| b.to_vec()))
    }

    async fn whole(&self, digest: &BlobDigest) -> (u16, Result<bytes::Bytes, reqwest::Error>) {
        soon(self.server.fetch(&self.server.blob_url(digest))).await
    }

    /// The same blobs, by another process.
    async fn restart(self) -> Self {
        let Self { origin, server, dir } = self;
        soon(server.stop()).await;
        let server = Server::start(&origin, dir.path()).await;
        Self { origin, server, dir }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_bytes_of_a_large_blob_cost_one_unit() {
    let mirror = Mirror::new().await;
    let (digest, content) = mirror.blob(64 * MIB, 1);
    for at in [40 * MIB + 5, 40 * MIB + 700_000, 40 * MIB] {
        let (status, range, body) = mirror.range(&digest, &format!("bytes={at}-{}", at + 999)).await;
        assert_eq!(status, 206);
        assert_eq!(range, format!("bytes {at}-{}/{}", at + 999, 64 * MIB));
        assert!(body.unwrap() == content[at..at + 1000]);
    }
    assert_eq!(mirror.origin.bytes_sent(&digest), UNIT);
    assert_eq!(mirror.origin.calls().len(), 1, "no HEAD either");
    assert!(mirror.server.app.originals.get(&digest).unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ranges_brought_is_not_fetched_again_not_even_after_a_restart() {
    let mirror = Mirror::new().await;
    let (digest, content) = mirror.blob(9 * MIB + 77, 2);
    let size = content.len();
    // The second ends in a unit that the first has brought; the last one is short.
    for (range, want) in [
        ("bytes=1048576-3145727", MIB..3 * MIB),
        ("bytes=3145000-4194305", 3_145_000..4_194_306),
        ("bytes=-10", size - 10..size),
    ] {
        let (status, _, body) = mirror.range(&digest, range).await;
        assert_eq!(status, 206, "{range}");
        assert!(body.unwrap() == content[want], "{range}");
    }
    assert_eq!(mirror.origin.bytes_sent(&digest), 4 * UNIT + 77);
    let mirror = mirror.restart().await;
    let (_, _, body) = mirror.range(&digest, "bytes=2000000-2000009").await;
    assert!(body.unwrap() == content[2_000_000..2_000_010]);
    assert_eq!(mirror.origin.bytes_sent(&digest), 4 * UNIT + 77);
    let (status, body) = mirror.whole(&digest).await;
    assert_eq!(status, 200);
    assert!(body.unwrap() == content);
    assert_eq!(mirror.origin.bytes_sent(&digest), size as u64, "once, all in all");
    mirror.origin.clear_calls();
    assert!(mirror.whole(&digest).await.1.unwrap() == content);
    assert!(mirror.origin.calls().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_make_up_the_blob_make_an_original() {
    let mirror = Mirror::new().await;
    let (digest, content) = mirror.blob(3 * MIB, 3);
    for unit in [2, 0, 1] {
        let (from, to) = (unit * MIB, (unit + 1) * MIB);
        let (_, _, body) = mirror.range(&digest, &format!("bytes={from}-{}", to - 1)).await;
        assert!(body.unwrap() == content[from..to]);
    }
    soon(async {
        while mirror.server.app.originals.get(&digest).unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(mirror.origin.bytes_sent(&digest), content.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_want_the_same_unit_share_one_request() {
    let mirror = Mirror::new().await;
    let (digest, content) = mirror.blob(8 * MIB, 4);
    let gate = mirror.origin.hold(Target::Digest(digest), 1000);
    // Equal ones, and others in the same unit.
    let froms: Vec<usize> = (0..100).map(|i| 5 * MIB + (i % 20) * 1000).collect();
    let asks = froms.iter().map(|from| {
        let range = format!("bytes={from}-{}", from + 5000);
        let mirror = &mirror;
        async move { mirror.ask(&digest, &range).await }
    });
    let all = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        gate.open();
    });
    let answers = soon(join_all(asks)).await;
    all.await.unwrap();
    for (from, answer) in froms.into_iter().zip(answers) {
        assert!(soon(answer.bytes()).await.unwrap() == content[from..from + 5001]);
    }
    assert_eq!(mirror.origin.gets(&digest).len(), 1);
    assert_eq!(mirror.origin.bytes_sent(&digest), UNIT);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_ranges_suffixes_and_ranges_that_cannot_be() {
    let mirror = Mirror::new().await;
    let (digest, content) = mirror.blob(10 * MIB, 5);
    let (status, range, _) = mirror.range(&digest, "bytes=20000000-").await;
    assert_eq!((status, range), (416, format!("bytes */{}", 10 * MIB)));
    let (status, _, body) = mirror.range(&digest, "bytes=5-9,3000000-3000004,-3").await;
    assert_eq!(status, 206);
    let body = body.unwrap();
    for part in [5..10, 3_000_000..3_000_005, 10 * MIB - 3..10 * MIB] {
        let part = &content[part];
        assert!(body.windows(part.len()).any(|w| w == part));
    }
    assert_eq!(mirror.origin.bytes_sent(&digest), 3 * UNIT);

    let (other, content) = mirror.blob(10 * MIB, 6);
    let (status, _, body) = mirror.range(&other, "bytes=-5").await;
    assert_eq!(status, 206);
    assert!(body.unwrap() == content[10 * MIB - 5..]);
    assert_eq!(mirror.origin.bytes_sent(&other), UNIT);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_ignores_ranges_is_asked_once_for_everything() {
    let mirror = Mirror::new().await;
    let (digest, content) = mirror.blob(6 * MIB, 7);
    mirror.origin.always(Target::Digest(digest), Fault::IgnoreRange);
    let (status, _, body) = mirror.range(&digest, "bytes=5000000-5000999").await;
    assert_eq!(status, 206);
    assert!(body.unwrap() == content[5_000_000..5_001_000]);
    assert!(mirror.whole(&digest).await.1.unwrap() == content);
    assert_eq!(mirror.origin.bytes_sent(&digest), content.len() as u64);

    // The size was known, from a HEAD.
    let (digest, content) = mirror.blob(6 * MIB, 8);
    mirror.origin.always(Target::Digest(digest), Fault::IgnoreRange);
    let (status, _, body) = mirror.range(&digest, "bytes=-1000").await;
    assert_eq!(status, 206);
    assert!(body.unwrap() == content[6 * MIB - 1000..]);
    assert!(mirror.whole(&digest).await.1.unwrap() == content);
    assert_eq!(mirror.origin.bytes_sent(&digest), content.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstreams_no_is_a_status_and_leaves_nothing() {
    let mirror = Mirror::new().await;
    let missing = BlobDigest::of(b"missing");
    mirror.origin.add_blob(REPOSITORY, noise(10, 9));
    for range in ["bytes=5-9", "bytes=-5", "bytes=7-"] {
        let answer = error_of(mirror.ask(&missing, range).await).await;
        assert_eq!(answer, (404, "BLOB_UNKNOWN".into()), "{range}");
    }
    let path = mirror.server.app.originals.partial_path(&missing, UPSTREAM);
    assert!(!path.exists() && !path.with_extension("map").exists());
    let (digest, _) = mirror.blob(5 * MIB, 10);
    assert_eq!(mirror.range(&digest, "bytes=0-9").await.0, 206);
    // The size is known here by now; an answer that has not begun still has a status.
    for (code, want) in [(403, 403), (429, 429), (404, 404)] {
        let fault = Fault::Status {
            code,
            retry_after_secs: None,
        };
        mirror.origin.once(Target::Digest(digest), fault);
        assert_eq!(mirror.range(&digest, "bytes=3000000-3000009").await.0, want);
    }
    assert_eq!(mirror.range(&digest, "bytes=3000000-3000009").await.0, 206);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_breaks_off_is_resumed() {
    let mirror = Mirror::new().await;
    let (digest, content) = mirror.blob(20 * MIB, 11);
    mirror
        .origin
        .once(Target::Digest(digest), Fault::Truncate { after: 300_000 });
    mirror
        .origin
        .once(Target::Digest(digest), Fault::Reset { after: 200_000 });
    let (status, _, body) = mirror.range(&digest, "bytes=2097152-6291455").await;
    assert_eq!(status, 206);
    assert!(body.unwrap() == content[2 * MIB..6 * MIB]);
    assert!(mirror.origin.bytes_sent(&digest) <= 5 * UNIT);
}

/// As containerd 2.1 fetches: whatever part is wrong, the answer with the blob's end breaks off, so that nobody puts
/// together a blob that is not one.
#[tokio::test(flavor = "multi_thread")]
async fn who_fetches_parts_of_a_wrong_blob_does_not_get_its_end() {
    const PART: usize = 3 * MIB / 2;
    for (seed, wrong) in [(42, 9), (43, 5 * MIB - 1)] {
        // Of its own: the first is not believed any more.
        let mirror = Mirror::new().await;
        let (digest, content) = mirror.blob(5 * MIB, seed);
        mirror
            .origin
            .always(Target::Digest(digest), Fault::WrongByte { at: wrong as u64 });
        let parts: Vec<String> = (0..content.len())
            .step_by(PART)
            .map(|at| format!("bytes={at}-{}", (at + PART).min(content.len()) - 1))
            .collect();
        // One after the other: of parts that are asked for at once the last may be out before the others are under way.
        let mut answers = Vec::new();
        for range in &parts {
            answers.push(mirror.range(&digest, range).await);
        }
        let (status, _, end) = answers.last().unwrap();
        assert!(is_cut(*status, end), "wrong at {wrong}: {status}");
    }
    // Of a right one everybody gets everything, and so does who wants its end alone.
    let mirror = Mirror::new().await;
    let (digest, content) = mirror.blob(5 * MIB, 44);
    let tail = mirror.range(&digest, "bytes=-1000").await.2.unwrap();
    assert!(tail == content[content.len() - 1000..]);
    for (range, want) in [
        ("bytes=0-2999999", 0..3_000_000),
        ("bytes=3000000-", 3_000_000..5 * MIB),
    ] {
        let (status, _, body) = mirror.range(&digest, range).await;
        assert_eq!(status, 206);
        assert!(body.unwrap() == content[want], "{range}");
    }
    assert_eq!(mirror.origin.bytes_sent(&digest), content.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_part_spoils_all_of_them_and_the_whole_is_a_broken_answer() {
    let mirror = Mirror::new().await;
    let (digest, content) = mirror.blob(4 * MIB, 12);
    mirror
        .origin
        .once(Target::Digest(digest), Fault::WrongByte { at: 2 * UNIT + 9 });
    // Nobody can know yet.
    let (status, _, body) = mirror.range(&digest, "bytes=2097152-2098151").await;
    assert_eq!(status, 206);
    assert!(body.is_ok());
    let (status, _, body) = mirror.range(&digest, "bytes=0-").await;
    assert!(is_cut(status, &body), "the answer is not complete");
    // All was thrown away, so this is right again.
    for (range, want) in [("bytes=0-4194303", 0..4 * MIB), ("bytes=5-4194300", 5..4 * MIB - 3)] {
        let (status, _, body) = mirror.range(&digest, range).await;
        assert_eq!(status, 206);
        assert!(body.unwrap() == content[want], "{range}");
    }
    assert!(mirror.whole(&digest).await.1.unwrap() == content);
    let metrics = mirror.server.app.metrics.render();
    assert!(
        metrics.contains("headstart_corruption_total{what=\"upstream_blob\"} 1"),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_an_open_ended_range_that_hangs_up_costs_little() {
    let mirror = Mirror::new().await;
    let (digest, content) = mirror.blob(64 * MIB, 13);
    let mut body = mirror.ask(&digest, "bytes=10485760-").await.bytes_stream();
    let mut got = Vec::new();
    while got.len() < 2 * MIB {
        got.extend_from_slice(&soon(body.next()).await.unwrap().unwrap());
    }
    assert!(got == content[10 * MIB..10 * MIB + got.len()]);
    drop(body);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let sent = mirror.origin.bytes_sent(&digest);
    // What it took, what its connection holds, and a few units.
    assert!(sent < 24 * UNIT, "{sent}");
}

/// As containerd 2.1 fetches a layer in parallel: one `bytes=0-`, and open-ended ones that stop at the next.
#[tokio::test(flavor = "multi_thread")]
async fn a_parallel_client_gets_each_byte_and_costs_each_byte_once() {
    let mirror = Mirror::new().await;
    let (digest, content) = mirror.blob(48 * MIB, 14);
    // Slow enough that parts are fetched ahead of the whole.
    mirror.origin.always(
        Target::Digest(digest),
        Fault::Throttle {
            bytes_per_sec: 4 * MIB as u64,
        },
    );
    let part = 8 * MIB;
    let parts = (0..6).map(|i| {
        let mirror = &mirror;
        async move {
            let response = mirror.ask(&digest, &format!("bytes={}-", i * part)).await;
            assert_eq!(response.status(), 206);
            let (mut body, mut got) = (response.bytes_stream(), Vec::new());
            while got.len() < part {
                got.extend_from_slice(&soon(body.next()).await.unwrap().unwrap());
            }
            got.truncate(part);
            got
        }
    });
    let parts = soon(join_all(parts)).await;
    assert!(parts.concat() == content);
    let sent = mirror.origin.bytes_sent(&digest);
    assert!(sent <= 53 * UNIT, "{} units", sent / UNIT);
    assert!(mirror.origin.gets(&digest).len() > 1, "some of it came ahead");
    assert!(mirror.whole(&digest).await.1.unwrap() == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_cold_clients_of_whole_and_parts_cost_one_blob() {
    let mirror = Mirror::new().await;
    // Not longer than what a reader of a part waits for in any case.
    let (digest, content) = mirror.blob(8 * MIB, 15);
    let clients = (0..100).map(|i| {
        let (mirror, content) = (&mirror, &content);
        async move {
            match i % 4 {
                0 => {
                    let from = i * 70_000;
                    let (_, _, body) = mirror.range(&digest, &format!("bytes={from}-{}", from + 70_000)).await;
                    assert!(body.unwrap() == content[from..from + 70_001]);
                }
                _ => assert!(mirror.whole(&digest).await.1.unwrap() == *content),
            }
        }
    });
    soon(join_all(clients)).await;
    assert_eq!(mirror.origin.bytes_sent(&digest), content.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn switched_off_a_range_follows_the_whole_and_is_verified() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let content = noise(4 * MIB, 16);
    let digest = origin.add_blob(REPOSITORY, content.clone());
    let mut config = config(&origin, dir.path());
    config.fetch.cold_range = false;
    let server = Server::with(config).await;
    let mirror = Mirror { origin, server, dir };
    mirror.origin.once(Target::Digest(digest), Fault::WrongByte { at: 100 });
    let (status, _, body) = mirror.range(&digest, "bytes=50-500000").await;
    assert!(is_cut(status, &body));
    let (_, _, body) = mirror.range(&digest, "bytes=50-500000").await;
    assert!(body.unwrap() == content[50..500_001]);
    assert_eq!(mirror.origin.bytes_sent(&digest), 2 * content.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_connections_bring_one_blob_in_order_and_once() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let mut config = config(&origin, dir.path());
    config.fetch.parallel_ranges = 3;
    config.fetch.parallel_min_bytes = MIB as u64;
    let server = Server::with(config).await;
    let mirror = Mirror { origin, server, dir };

    let (digest, content) = mirror.blob(40 * MIB + 5, 17);
    let slow = Fault::Throttle {
        bytes_per_sec: 40 * MIB as u64,
    };
    mirror.origin.always(Target::Digest(digest), slow);
    assert!(mirror.whole(&digest).await.1.unwrap() == content);
    let ranges: Vec<_> = mirror.origin.gets(&digest).into_iter().map(|c| c.range).collect();
    assert_eq!(ranges.len(), 6, "{ranges:?}");
    assert_eq!(mirror.origin.bytes_sent(&digest), content.len() as u64);

    // One that says "too many" is asked less; one that breaks off is resumed.
    let (digest, content) = mirror.blob(40 * MIB, 18);
    let throttled = Fault::Status {
        code: 429,
        retry_after_secs: None,
    };
    let pass = mirror.origin.hold(Target::Digest(digest), 100);
    let first = mirror.ask(&digest, "bytes=0-").await;
    mirror.origin.clear_faults();
    mirror.origin.times(2, Target::Digest(digest), throttled);
    mirror
        .origin
        .once(Target::Digest(digest), Fault::Truncate { after: 100_000 });
    pass.open();
    assert!(soon(first.bytes()).await.unwrap() == content);

    // One that ignores ranges is read once.
    let (digest, content) = mirror.blob(20 * MIB, 19);
    mirror.origin.always(Target::Digest(digest), Fault::IgnoreRange);
    assert!(mirror.whole(&digest).await.1.unwrap() == content);
    assert_eq!(mirror.origin.bytes_sent(&digest), content.len() as u64);
    assert_eq!(mirror.origin.gets(&digest).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn leftovers_are_swept_when_they_are_old() {
    let mirror = Mirror::new().await;
    let (digest, _) = mirror.blob(5 * MIB, 20);
    assert_eq!(mirror.range(&digest, "bytes=0-9").await.0, 206);
    let path = mirror.server.app.originals.partial_path(&digest, UPSTREAM);
    // The answer does not wait for the rest of the unit, without which there is no map.
    soon(async {
        while !path.with_extension("map").exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let mirror = mirror.restart().await;
    mirror.server.app.blobs.sweep().await;
    assert!(path.exists() && path.with_extension("map").exists());
    let age = || {
        let old = std::time::SystemTime::now() - Duration::from_secs(48 * 3600);
        let file = std::fs::File::options().write(true).open(&path);
        file.map(|file| file.set_modified(old).unwrap())
    };
    // Not while somebody reads it.
    assert_eq!(mirror.range(&digest, "bytes=0-9").await.0, 206);
    age().unwrap();
    mirror.server.app.blobs.sweep().await;
    assert!(path.exists());
    let mirror = mirror.restart().await;
    soon(async {
        while path.exists() || path.with_extension("map").exists() {
            // The rest of the unit may have come meanwhile, which made it young again; or it is gone.
            let _ = age();
            mirror.server.app.blobs.sweep().await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stalls_is_resumed_whoever_waits_for_it() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let mut config = config(&origin, dir.path());
    config.fetch.idle_timeout_ms = 500;
    config.fetch.parallel_ranges = 3;
    config.fetch.parallel_min_bytes = 20 * MIB as u64;
    let server = Server::with(config).await;
    let mirror = Mirror { origin, server, dir };
    let stall = |after: u64| Fault::Stall {
        after,
        pause: Duration::from_secs(3600),
    };
    // A part of a blob.
    let (digest, content) = mirror.blob(10 * MIB, 21);
    mirror.origin.once(Target::Digest(digest), stall(1_500_000));
    let (status, _, body) = mirror.range(&digest, "bytes=1048576-5242879").await;
    assert_eq!(status, 206);
    assert!(body.unwrap() == content[MIB..5 * MIB]);
    assert!(mirror.origin.bytes_sent(&digest) <= 5 * UNIT);
    // One of several connections.
    let (digest, content) = mirror.blob(30 * MIB, 22);
    mirror.origin.times(3, Target::Digest(digest), stall(2_000_000));
    assert!(mirror.whole(&digest).await.1.unwrap() == content);
    assert!(mirror.origin.bytes_sent(&digest) <= 31 * UNIT);
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_take_turns_and_who_waits_in_vain_is_told_so() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let mut config = config(&origin, dir.path());
    config.fetch.ranges_max = 1;
    config.fetch.turn_wait_ms = 300;
    let server = Server::with(config).await;
    let mirror = Mirror { origin, server, dir };
    let (digest, content) = mirror.blob(40 * MIB, 23);
    // The size is known after this, so what follows takes turns of ranges.
    assert_eq!(mirror.range(&digest, "bytes=0-9").await.0, 206);
    let gate = mirror.origin.hold(Target::Digest(digest), 1000);
    let first = mirror.ask(&digest, "bytes=10485760-10485769").await;
    let second = mirror.ask(&digest, "bytes=31457280-31457289").await;
    assert_eq!((first.status().as_u16(), second.status().as_u16()), (206, 429));
    assert!(second.headers().contains_key("retry-after"));
    gate.open();
    assert!(soon(first.bytes()).await.unwrap() == content[10 * MIB..10 * MIB + 10]);
    let (status, _, body) = mirror.range(&digest, "bytes=31457280-31457289").await;
    assert_eq!(status, 206);
    assert!(body.unwrap() == content[30 * MIB..30 * MIB + 10]);
}

/// Of an upstream that tells other lies about a blob from range to range, nothing is mixed into a whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_changes_between_ranges_is_never_made_up_of_both() {
    for size in [6 * MIB, 6 * MIB + 9] {
        // Of its own: the first is not believed any more.
        let mirror = Mirror::new().await;
        let content = noise(6 * MIB, 24 + size as u64);
        let digest = mirror.origin.add_blob(REPOSITORY, content.clone());
        // Another blob under this name: of the same size, or of another.
        mirror.origin.add_blob_as(REPOSITORY, digest, noise(size, 99));
        assert_eq!(mirror.range(&digest, "bytes=1048576-1048585").await.0, 206);
        mirror.origin.add_blob_as(REPOSITORY, digest, content.clone());
        // Whoever asks for it meanwhile gets a broken answer or none.
        let (status, body) = mirror.whole(&digest).await;
        assert!(status != 200 || body.is_err() || body.unwrap() == content);
        assert!(mirror.whole(&digest).await.1.unwrap() == content);
    }
}

/// A client that asks for several ranges at once waited for one after the other, a round trip each.
#[tokio::test(flavor = "multi_thread")]
async fn several_ranges_are_brought_at_once_and_sent_in_order() {
    let mirror = Mirror::new().await;
    let (digest, content) = mirror.blob(64 * MIB, 21);
    // The end of each unit comes when the test says so, and all but the first range lie there.
    let gate = mirror.origin.hold(Target::Blobs, UNIT - 100);
    let starts: Vec<usize> = (0..12).map(|part| part * 5 * MIB + MIB - 20).rev().collect();
    let ranges: Vec<String> = starts.iter().map(|at| format!("{at}-{}", at + 9)).collect();
    let request = mirror.server.http.get(mirror.server.blob_url(&digest));
    let request = request.header("range", format!("bytes=0-9,{}", ranges.join(",")));
    let asked = tokio::spawn(async move { answer(request).await });
    let held = |calls: &[headstart_loadtest::origin::Call]| {
        let running = calls.iter().filter(|c| c.method == "GET" && !c.complete);
        running.filter(|c| c.body_sent == UNIT - 100).count()
    };
    let four = mirror
        .origin
        .wait_for("four parts to be under way", |calls| held(calls) >= 4);
    soon(four).await;
    // There are places for more, and more is wanted.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(held(&mirror.origin.calls()), 4);
    gate.open();
    let (status, _, body) = soon(asked).await.unwrap();
    assert_eq!(status, 206);
    let (body, mut from) = (body.unwrap(), 0);
    for at in std::iter::once(&0).chain(&starts) {
        let part = &content[*at..at + 10];
        let found = body[from..].windows(10).position(|w| w == part);
        from += found.expect("the parts have the order in which they were asked for") + 10;
    }
    assert_eq!(mirror.origin.bytes_sent(&digest), 12 * UNIT);
}
