//! One blob over several connections, of an upstream that lies, waits, or will not have so many.
//!
//! In: `fetch.parallel_ranges = 3`, and what the first connection brings, which the test holds back. Out: what clients
//! get, what is kept, and what the upstream was asked for meanwhile.
//! Not here: an upstream that has nothing against it (`cold_range.rs`).

mod support;

use std::time::Duration;

use futures_util::future::join_all;
use headstart_layer_format::BlobDigest;
use headstart_loadtest::origin::{Auth, Call, Fault, Gate, Origin, Target};
use headstart_server::config::Config;
use support::{REPOSITORY, Server, UPSTREAM, config, is_cut, noise, soon, until};

const MIB: usize = 1 << 20;
/// What one connection is asked for at a time.
const SEGMENT: u64 = 8 << 20;
const LANES: u64 = 3;
const SIZE: usize = 40 * MIB;

struct Mirror {
    origin: Origin,
    server: Server,
    _dir: tempfile::TempDir,
}

async fn mirror(change: impl FnOnce(&mut Config)) -> Mirror {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let mut config = config(&origin, dir.path());
    config.fetch.parallel_ranges = LANES as usize;
    config.fetch.parallel_min_bytes = MIB as u64;
    change(&mut config);
    let server = Server::with(config).await;
    Mirror {
        origin,
        server,
        _dir: dir,
    }
}

impl Mirror {
    fn blob(&self, seed: u64) -> (BlobDigest, Vec<u8>) {
        let content = noise(SIZE, seed);
        (self.origin.add_blob(REPOSITORY, content.clone()), content)
    }

    /// A client reads the blob, whose first segment waits at the gate from the byte `at` on; what happens to all other
    /// requests is `then`.
    async fn held(&self, digest: &BlobDigest, at: u64, then: Option<Fault>) -> (Gate, reqwest::Response) {
        let (gate, head) = (Gate::new(), Gate::new());
        let target = || Target::Digest(*digest);
        let hold = Fault::Hold { at, gate: gate.clone() };
        self.origin.once(target(), hold);
        self.origin.once(target(), Fault::HoldHead { gate: head.clone() });
        let url = self.server.blob_url(digest);
        let ruled = async {
            let first = |calls: &[Call]| calls.iter().any(|call| call.digest == Some(*digest));
            self.origin.wait_for("the first request", first).await;
            // It has taken its faults when it waits; the others come after its head.
            tokio::time::sleep(Duration::from_millis(100)).await;
            if let Some(fault) = then {
                self.origin.always(target(), fault);
            }
            head.open();
        };
        let ((), response) = soon(async { tokio::join!(ruled, self.server.get(&url)) }).await;
        (gate, response)
    }

    /// First byte and end of every range that the upstream was asked for.
    fn ranges(&self, digest: &BlobDigest) -> Vec<(u64, u64)> {
        let calls = self.origin.calls();
        let asked = calls.iter().filter(|c| c.method == "GET" && c.digest == Some(*digest));
        asked.map(|call| span(call.range.as_deref())).collect()
    }
}

/// Of `bytes=a-b` or `bytes=a-`, or of everything.
fn span(range: Option<&str>) -> (u64, u64) {
    let Some((from, last)) = range.and_then(|r| r.strip_prefix("bytes=")?.split_once('-')) else {
        return (0, SIZE as u64);
    };
    let end = last.parse().map_or(SIZE as u64, |last: u64| last + 1);
    (from.parse().unwrap(), end)
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_of_one_connection_cut_the_body_and_nothing_is_kept() {
    let mirror = mirror(|_| {}).await;
    let (digest, content) = mirror.blob(1);
    // In the second segment: none of the first connection's.
    let wrong = Fault::WrongByte { at: SEGMENT + 77 };
    mirror.origin.always(Target::Digest(digest), wrong);
    let url = mirror.server.blob_url(&digest);
    let (status, body) = soon(mirror.server.fetch(&url)).await;
    assert!(is_cut(status, &body), "{status}");
    assert!(mirror.ranges(&digest).len() as u64 >= LANES, "it came over several");
    let originals = &mirror.server.app.originals;
    let partial = originals.partial_path(&digest, UPSTREAM);
    until("nothing is kept", || {
        let kept = [partial.clone(), partial.with_extension("map"), originals.path(&digest)];
        !kept.iter().any(|path| path.exists())
    })
    .await;
    let metrics = mirror.server.app.metrics.render();
    let counted = "headstart_corruption_total{what=\"upstream_blob\"} 1";
    assert!(metrics.contains(counted), "{metrics}");

    mirror.origin.clear_faults();
    let (status, body) = soon(mirror.server.fetch(&url)).await;
    assert_eq!(status, 200);
    assert!(body.unwrap() == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_connection_is_further_ahead_than_the_window() {
    let mirror = mirror(|_| {}).await;
    let (digest, content) = mirror.blob(2);
    let (gate, response) = mirror.held(&digest, 0, None).await;
    // The others have brought what they may.
    let rest = |calls: &[Call]| calls.iter().filter(|c| c.complete && c.range.is_some()).count() as u64 == LANES - 1;
    mirror.origin.wait_for("the other connections", rest).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut ranges = mirror.ranges(&digest);
    ranges.sort_unstable();
    let starts: Vec<_> = (0..LANES).map(|n| (n * SEGMENT, (n + 1) * SEGMENT)).collect();
    assert_eq!(ranges, starts, "the first byte is not here yet");
    gate.open();
    let body = soon(response.bytes()).await.unwrap();
    assert!(body == content, "in order");
    assert_eq!(mirror.origin.bytes_sent(&digest), SIZE as u64);
}

/// Registries and CDNs that take one connection of a client say so in many ways.
#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_refuses_all_but_one_connection_is_asked_over_one() {
    let status = |code| Fault::Status {
        code,
        retry_after_secs: None,
    };
    let refusals = [status(403), status(429), status(500), status(503), Fault::ResetAtOnce];
    let names = refusals.each_ref().map(|refusal| format!("{refusal:?}"));
    let cases = refusals.into_iter().zip(10..);
    let cases = cases.map(|(refusal, seed)| tokio::spawn(is_asked_over_one(refusal, seed)));
    let ends = join_all(cases.collect::<Vec<_>>()).await;
    let wrong: Vec<_> = names.into_iter().zip(ends).filter(|(_, end)| end.is_err()).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

async fn is_asked_over_one(refusal: Fault, seed: u64) {
    // More of them end a fetch.
    let mirror = mirror(|config| config.fetch.tries_max = 1).await;
    let (digest, content) = mirror.blob(seed);
    let (gate, response) = mirror.held(&digest, 1000, Some(refusal)).await;
    let refused = |calls: &[Call]| calls.iter().filter(|c| !matches!(c.status, 200 | 206)).count() as u64;
    let all = |calls: &[Call]| refused(calls) == LANES - 1;
    mirror.origin.wait_for("the other connections", all).await;
    // Nor is it asked again before the one that it takes has brought its part.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(refused(&mirror.origin.calls()), LANES - 1);
    mirror.origin.clear_faults();
    gate.open();
    assert!(soon(response.bytes()).await.unwrap() == content);
    let gets = mirror.origin.gets(&digest);
    let ranges: Vec<_> = gets.iter().map(|c| span(c.range.as_deref())).collect();
    assert_eq!(ranges, [(0, SEGMENT), (SEGMENT, SIZE as u64)]);
    assert_eq!(mirror.origin.bytes_sent(&digest), SIZE as u64);
}

/// One connection is the end of it: an upstream that will not have that either is not asked for ever.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_on_the_last_connection_is_an_error() {
    let mirror = mirror(|_| {}).await;
    let (digest, _) = mirror.blob(20);
    let refusal = Fault::Status {
        code: 403,
        retry_after_secs: None,
    };
    let (gate, response) = mirror.held(&digest, 1000, Some(refusal)).await;
    let refused = |calls: &[Call]| calls.iter().filter(|c| c.status == 403).count() as u64;
    let all = |calls: &[Call]| refused(calls) == LANES - 1;
    mirror.origin.wait_for("the other connections", all).await;
    gate.open();
    assert!(soon(response.bytes()).await.is_err());
    assert_eq!(refused(&mirror.origin.calls()), LANES, "once more, alone");
}
