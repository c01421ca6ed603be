//! Fetches that broke off for good a moment ago: what is still given of their blobs, and what is refused.
//!
//! In: an upstream that stops in the middle of a blob. Out: the units that are here, without a word to the upstream.
//! Not here: what was wrong (`lied.rs`), and manifests that name such a blob (`withheld.rs`).

mod support;

use bytes::Bytes;
use headstart_layer_format::BlobDigest;
use headstart_loadtest::origin::{Auth, Fault, Origin, Target};
use headstart_server::{config::HoldMode, store::facts::Source, upstream::Caller};
use support::{REPOSITORY, Server, UPSTREAM, answer, config, is_cut, noise, soon, until};

const MIB: usize = 1 << 20;
const SIZE: usize = 5 * MIB;

/// Why the fetch broke off is why it is: the upstream sends nothing more.
const REFUSED: u16 = 504;

struct BrokenOff {
    origin: Origin,
    server: Server,
    digest: BlobDigest,
    content: Bytes,
    _dir: tempfile::TempDir,
}

impl BrokenOff {
    /// Two units and a half are here.
    async fn new(mode: HoldMode) -> Self {
        let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
        let mut config = config(&origin, dir.path());
        config.fetch.idle_timeout_ms = 200;
        config.fetch.tries_max = 2;
        config.upstreams[0].hold_until_verified = mode;
        let server = Server::with(config).await;
        let content = Bytes::from(noise(SIZE, 1));
        let digest = origin.add_blob(REPOSITORY, content.clone());
        let at = 5 * MIB as u64 / 2;
        origin.always(Target::Digest(digest), Fault::Wall { at });
        let (status, body) = soon(server.fetch(&server.blob_url(&digest))).await;
        assert!(is_cut(status, &body));
        let source = Source {
            upstream: UPSTREAM.into(),
            repository: REPOSITORY.into(),
        };
        let blobs = &server.app.blobs;
        until("it is known", || {
            blobs.setback(&source, &Caller::Server, &digest).is_some()
        })
        .await;
        origin.clear_calls();
        Self {
            origin,
            server,
            digest,
            content,
            _dir: dir,
        }
    }

    async fn range(&self, range: &str) -> (u16, Option<Bytes>) {
        let request = self.server.http.get(self.server.blob_url(&self.digest));
        let (status, _, body) = soon(answer(request.header("range", range))).await;
        (status, body.ok())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_here_of_it_is_given_and_the_rest_is_refused() {
    let broken = BrokenOff::new(HoldMode::Suspect).await;
    for (range, part) in [
        ("bytes=0-999", 0..1000),
        ("bytes=1000000-2097151", 1_000_000..2 * MIB),
        ("bytes=2097151-2097151", 2 * MIB - 1..2 * MIB),
    ] {
        let given = broken.range(range).await;
        assert!(given == (206, Some(broken.content.slice(part))), "{range}");
    }
    let (status, body) = broken.range("bytes=5-9,2000000-2000009").await;
    assert_eq!(status, 206);
    assert!(
        body.unwrap()
            .windows(10)
            .any(|w| w == &broken.content[2_000_000..2_000_010])
    );
    // The last of these bytes came, but not the unit that it is of.
    for range in [
        "bytes=2097150-2097152",
        "bytes=4000000-4000009",
        "bytes=0-9,4000000-4000009",
        "bytes=-5",
        "bytes=0-",
    ] {
        assert_eq!(broken.range(range).await.0, REFUSED, "{range}");
    }
    assert_eq!(
        soon(broken.server.fetch(&broken.server.blob_url(&broken.digest)))
            .await
            .0,
        REFUSED
    );
    let calls = broken.origin.calls();
    assert!(calls.is_empty(), "nobody needs the upstream for it: {calls:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_upstream_that_is_not_believed_nothing_is() {
    let broken = BrokenOff::new(HoldMode::Always).await;
    assert_eq!(broken.range("bytes=0-999").await.0, REFUSED);
}
