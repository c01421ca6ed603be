//! Blobs that were wrong a moment ago: nothing of them goes out before the verdict, so that who asks again is told by a status,
//! and goes on to its next host.

mod support;

use std::time::Duration;

use headstart_layer_format::BlobDigest;
use headstart_loadtest::origin::{Auth, Fault, Origin, Target};
use support::{REPOSITORY, Server, answer, is_cut, noise};

const MIB: usize = 1 << 20;

/// Runs what must end well before any time-out of the test harness.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work)
        .await
        .expect("it ends")
}

/// Less than a unit and more; the second time as a client asks that was cut in the middle, too.
#[tokio::test(flavor = "multi_thread")]
async fn who_asks_again_for_what_was_wrong_is_refused_before_the_first_byte() {
    for (size, range) in [
        (300_000, None),
        (300_000, Some("bytes=100000-")),
        (3 * MIB, None),
        (3 * MIB, Some("bytes=2000000-")),
    ] {
        let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
        let server = Server::start(&origin, dir.path()).await;
        let digest = origin.add_blob(REPOSITORY, noise(size, 1));
        origin.always(Target::Digest(digest), Fault::WrongByte { at: 1000 });
        // Slow enough that bytes would go out before the verdict.
        origin.always(
            Target::Digest(digest),
            Fault::Throttle {
                bytes_per_sec: 2 * size as u64,
            },
        );
        let url = server.blob_url(&digest);
        let (status, body) = soon(server.fetch(&url)).await;
        assert!(is_cut(status, &body));
        let request = server.http.get(&url);
        let request = match range {
            Some(range) => request.header("range", range),
            None => request,
        };
        let (status, _, _) = soon(answer(request)).await;
        assert_eq!(status, 502, "{size} {range:?}");
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_right_again_is_given() {
    for (size, range) in [
        (300_000, None),
        (300_000, Some("bytes=100000-")),
        (3 * MIB, None),
        (3 * MIB, Some("bytes=2000000-")),
    ] {
        let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
        let server = Server::start(&origin, dir.path()).await;
        let content = noise(size, 2);
        let digest = origin.add_blob(REPOSITORY, content.clone());
        origin.once(Target::Digest(digest), Fault::WrongByte { at: 1000 });
        let url = server.blob_url(&digest);
        let (status, body) = soon(server.fetch(&url)).await;
        assert!(is_cut(status, &body));
        let request = server.http.get(&url);
        let (request, from) = match range {
            Some(range) => (
                request.header("range", range),
                if size > MIB { 2_000_000 } else { 100_000 },
            ),
            None => (request, 0),
        };
        let (status, _, body) = soon(answer(request)).await;
        assert_eq!(status, if range.is_some() { 206 } else { 200 }, "{size} {range:?}");
        assert!(body.unwrap() == content[from..]);
        let (status, body) = soon(server.fetch(&url)).await;
        assert_eq!((status, BlobDigest::of(&body.unwrap())), (200, digest));
        server.stop().await;
    }
}
