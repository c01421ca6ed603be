//! Upstreams that are not believed (`hold_until_verified`): nothing of a blob goes out before it is verified.
//!
//! In: blobs that stop short of their end until the test lets go on, right and wrong ones. Out: what clients have by then,
//! and what they have in the end.
//! Not here: a blob that was itself wrong a moment ago (`lied.rs`), and real clients (`loadtest/tests/clients/matrix`).

mod support;

use std::{ops::Range, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt as _;
use headstart_layer_format::BlobDigest;
use headstart_loadtest::origin::{Auth, Fault, Gate, Origin, Target};
use headstart_server::{
    config::{Config, HoldMode, UpstreamConfig},
    store::facts::Source,
    upstream::Caller,
};
use support::{REPOSITORY, Server, UPSTREAM, answer, config, noise, soon, until};
use tokio::{task::JoinHandle, time::timeout};

const SIZE: usize = 3 << 20;
const OTHER: &str = "other.test";

/// What is asked for: the whole, parts at its beginning and its end, and in all but name the whole.
const ASKED: [(Option<&str>, Range<usize>); 4] = [
    (None, 0..SIZE),
    (Some("bytes=5-1004"), 5..1005),
    (Some("bytes=2097152-"), 2_097_152..SIZE),
    (Some("bytes=0-"), 0..SIZE),
];

/// So long nothing must come that is not to come.
const A_WHILE: Duration = Duration::from_millis(400);

struct Mirror {
    origin: Origin,
    server: Server,
    _dir: tempfile::TempDir,
}

impl Mirror {
    async fn new(mode: HoldMode, change: impl FnOnce(&mut Config)) -> Self {
        let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
        let mut config = config(&origin, dir.path());
        config.upstreams[0].hold_until_verified = mode;
        change(&mut config);
        let server = Server::with(config).await;
        Self {
            origin,
            server,
            _dir: dir,
        }
    }

    fn blob(&self, seed: u64) -> (BlobDigest, Bytes) {
        let content = Bytes::from(noise(SIZE, seed));
        (self.origin.add_blob(REPOSITORY, content.clone()), content)
    }

    fn ask(&self, digest: &BlobDigest, range: Option<&str>) -> reqwest::RequestBuilder {
        asked(&self.server, UPSTREAM, digest, range)
    }
}

fn asked(server: &Server, upstream: &str, digest: &BlobDigest, range: Option<&str>) -> reqwest::RequestBuilder {
    let url = format!("http://{}/v2/{REPOSITORY}/blobs/{digest}?ns={upstream}", server.address);
    let request = server.http.get(url);
    match range {
        Some(range) => request.header("range", range),
        None => request,
    }
}

/// The last byte of it waits for the gate.
fn but_the_last(origin: &Origin, digest: &BlobDigest) -> Gate {
    origin.hold(Target::Digest(*digest), SIZE as u64 - 1)
}

async fn all_but_the_last_came(origin: &Origin, digest: &BlobDigest) {
    let came = |calls: &[headstart_loadtest::origin::Call]| {
        let of = calls.iter().filter(|c| c.digest == Some(*digest));
        of.map(|c| c.body_sent).sum::<u64>() >= SIZE as u64 - 1
    };
    origin.wait_for("all but the last byte", came).await;
}

fn status(range: Option<&str>) -> u16 {
    if range.is_some() { 206 } else { 200 }
}

/// Bytes come while the gate is closed.
async fn streams(asked: reqwest::RequestBuilder) -> reqwest::Response {
    let mut response = soon(asked.send()).await.unwrap();
    assert!(soon(response.chunk()).await.unwrap().is_some(), "it streams");
    response
}

/// Not even a head does.
async fn waits(asked: reqwest::RequestBuilder) -> bool {
    timeout(A_WHILE, asked.send()).await.is_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_what_is_wrong_no_byte_goes_out_but_a_status() {
    let mirror = Mirror::new(HoldMode::Always, |_| {}).await;
    for (seed, (range, part)) in (1..).zip(ASKED) {
        let (digest, content) = mirror.blob(seed);
        mirror.origin.once(Target::Digest(digest), Fault::WrongByte { at: 7 });
        // Slow enough that bytes would go out before the verdict.
        let bytes_per_sec = 4 * SIZE as u64;
        mirror
            .origin
            .once(Target::Digest(digest), Fault::Throttle { bytes_per_sec });
        assert_eq!(soon(answer(mirror.ask(&digest, range))).await.0, 502, "{range:?}");
        // Once may be chance.
        let (is, _, body) = soon(answer(mirror.ask(&digest, range))).await;
        assert_eq!(is, status(range), "{range:?}");
        assert!(body.unwrap() == content[part], "{range:?}");
        assert_eq!(mirror.origin.bytes_sent(&digest), 2 * SIZE as u64);
    }
    let metrics = mirror.server.app.metrics.render();
    for outcome in ["refused", "right"] {
        let counted = format!("headstart_held_answers_total{{outcome=\"{outcome}\",upstream=\"{UPSTREAM}\"}} 4");
        assert!(metrics.contains(&counted), "{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_right_waits_for_the_last_byte_and_comes_once() {
    let mirror = Mirror::new(HoldMode::Always, |_| {}).await;
    let (digest, content) = mirror.blob(10);
    let gate = but_the_last(&mirror.origin, &digest);
    let clients: Vec<JoinHandle<_>> = ASKED
        .iter()
        .map(|(range, _)| tokio::spawn(answer(mirror.ask(&digest, *range))))
        .collect();
    all_but_the_last_came(&mirror.origin, &digest).await;
    tokio::time::sleep(A_WHILE).await;
    assert!(
        clients.iter().all(|client| !client.is_finished()),
        "it went out unverified"
    );
    gate.open();
    for ((range, part), client) in ASKED.into_iter().zip(clients) {
        let (is, _, body) = soon(client).await.unwrap();
        assert_eq!(is, status(range));
        assert!(body.unwrap() == content[part], "{range:?}");
    }
    let gets = mirror.origin.gets(&digest).len();
    assert_eq!((gets, mirror.origin.bytes_sent(&digest)), (1, SIZE as u64));
    // What is here waits for nobody.
    mirror.origin.stop();
    let (is, _, body) = soon(answer(mirror.ask(&digest, None))).await;
    assert!(is == 200 && body.unwrap() == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_head_goes_out_in_time_and_the_body_waits_for_the_verdict() {
    let mirror = Mirror::new(HoldMode::Always, |config| config.http.answer_timeout_ms = 200).await;
    for (seed, (range, part)) in (20..).zip(ASKED) {
        let (digest, content) = mirror.blob(seed);
        let gate = but_the_last(&mirror.origin, &digest);
        let response = soon(mirror.ask(&digest, range).send()).await.unwrap();
        assert_eq!(response.status(), status(range));
        assert_eq!(response.content_length(), Some(part.len() as u64));
        all_but_the_last_came(&mirror.origin, &digest).await;
        let mut body = response.bytes_stream();
        assert!(
            timeout(A_WHILE, body.next()).await.is_err(),
            "{range:?}: it went out unverified"
        );
        gate.open();
        let mut got = Vec::new();
        while let Some(bytes) = soon(body.next()).await {
            got.extend_from_slice(&bytes.unwrap());
        }
        assert!(got == content[part], "{range:?}");
    }
    let metrics = mirror.server.app.metrics.render();
    let counted = format!("headstart_held_answers_total{{outcome=\"late\",upstream=\"{UPSTREAM}\"}} 4");
    assert!(metrics.contains(&counted), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_cut_without_a_byte_and_asks_again_is_told_by_a_status() {
    let mirror = Mirror::new(HoldMode::Always, |config| config.http.answer_timeout_ms = 200).await;
    for (seed, (range, _)) in (30..).zip(ASKED) {
        let (digest, _) = mirror.blob(seed);
        mirror.origin.always(Target::Digest(digest), Fault::WrongByte { at: 7 });
        let gate = but_the_last(&mirror.origin, &digest);
        let response = soon(mirror.ask(&digest, range).send()).await.unwrap();
        assert_eq!(response.status(), status(range));
        gate.open();
        let first = soon(response.bytes_stream().next()).await;
        assert!(
            first.is_some_and(|first| first.is_err()),
            "{range:?}: it is cut, and no byte came"
        );
        for _ in 0..2 {
            assert_eq!(soon(answer(mirror.ask(&digest, range))).await.0, 502, "{range:?}");
        }
        assert_eq!(mirror.origin.gets(&digest).len(), 1, "another would be cut, too");
    }
}

/// Who joined it is as much cut by a fetch as who began it.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_another_repository_that_was_cut_is_told_by_a_status_too() {
    let mirror = Mirror::new(HoldMode::Always, |config| config.http.answer_timeout_ms = 200).await;
    let (digest, content) = mirror.blob(50);
    mirror.origin.add_blob("team/other", content);
    mirror.origin.always(Target::Digest(digest), Fault::WrongByte { at: 7 });
    let other = format!("team/other/blobs/{digest}");
    let gate = but_the_last(&mirror.origin, &digest);
    let first = soon(mirror.ask(&digest, None).send()).await.unwrap();
    let second = soon(mirror.server.get(&mirror.server.url(&other))).await;
    assert_eq!((first.status().as_u16(), second.status().as_u16()), (200, 200));
    gate.open();
    assert!(soon(first.bytes()).await.is_err() && soon(second.bytes()).await.is_err());
    for _ in 0..2 {
        assert_eq!(soon(mirror.server.fetch(&mirror.server.url(&other))).await.0, 502);
    }
    // Also when the fetch is off the list.
    let source = Source {
        upstream: UPSTREAM.into(),
        repository: "team/other".into(),
    };
    let blobs = &mirror.server.app.blobs;
    until("it is known", || {
        blobs.setback(&source, &Caller::Server, &digest).is_some()
    })
    .await;
    assert_eq!(soon(mirror.server.fetch(&mirror.server.url(&other))).await.0, 502);
    let bodies = mirror.origin.bytes_sent(&digest);
    assert!(bodies < 2 * SIZE as u64, "another would be cut, too: {bodies}");
}

/// They would keep out what has nothing to do with them.
#[tokio::test(flavor = "multi_thread")]
async fn of_many_answers_only_some_heads_wait_for_the_verdict() {
    let mirror = Mirror::new(HoldMode::Always, |config| config.http.requests_max = 4).await;
    let (here, _) = mirror.blob(60);
    assert_eq!(soon(answer(mirror.ask(&here, None))).await.0, 200);
    let (digest, content) = mirror.blob(61);
    let gate = but_the_last(&mirror.origin, &digest);
    let first = tokio::spawn(mirror.ask(&digest, None).send());
    all_but_the_last_came(&mirror.origin, &digest).await;
    tokio::time::sleep(A_WHILE).await;
    let mut late = Vec::new();
    for (range, part) in ASKED {
        // Sooner than its own time, which is 20 s.
        let response = timeout(Duration::from_secs(10), mirror.ask(&digest, range).send()).await;
        late.push((response.expect("its head does not wait").unwrap(), part));
    }
    assert_eq!(soon(answer(mirror.ask(&here, None))).await.0, 200);
    assert!(!first.is_finished(), "there is a place for one");
    gate.open();
    assert!(soon(soon(first).await.unwrap().unwrap().bytes()).await.unwrap() == content);
    for (response, part) in late {
        assert!(soon(response.bytes()).await.unwrap() == content[part]);
    }
}

/// One pull at the most teaches the server.
#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_make_their_upstream_suspect_and_no_other() {
    for mode in [HoldMode::Suspect, HoldMode::Never] {
        let other = Origin::start(Auth::Anonymous);
        let another = UpstreamConfig {
            hold_until_verified: mode,
            ..UpstreamConfig::new(OTHER, other.url())
        };
        let mirror = Mirror::new(mode, |config| config.upstreams.push(another)).await;
        let (wrong, _) = mirror.blob(40);
        mirror.origin.always(Target::Digest(wrong), Fault::WrongByte { at: 7 });
        let gate = but_the_last(&mirror.origin, &wrong);
        // Nobody suspects it yet.
        let response = streams(mirror.ask(&wrong, None)).await;
        gate.open();
        assert!(soon(response.bytes()).await.is_err());

        for (seed, (range, part)) in (41..).zip(ASKED) {
            let (digest, content) = mirror.blob(seed);
            let gate = but_the_last(&mirror.origin, &digest);
            match mode {
                HoldMode::Suspect => assert!(waits(mirror.ask(&digest, range)).await, "{range:?}"),
                _ => drop(streams(mirror.ask(&digest, range)).await),
            }
            gate.open();
            let (is, _, body) = soon(answer(mirror.ask(&digest, range))).await;
            assert_eq!(is, status(range));
            assert!(body.unwrap() == content[part]);

            let digest = other.add_blob(REPOSITORY, noise(SIZE, 100 + seed));
            let gate = but_the_last(&other, &digest);
            // The other is not suspected.
            drop(streams(asked(&mirror.server, OTHER, &digest, range)).await);
            gate.open();
        }
    }
}
