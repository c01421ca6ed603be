//! Blobs that were wrong a moment ago: nothing of them goes out before the verdict, so that who asks again is told by a status,
//! and goes on to its next host.

mod support;

use bytes::Bytes;
use headstart_layer_format::BlobDigest;
use headstart_loadtest::origin::{Auth, Fault, Origin, Target};
use support::{REPOSITORY, Server, answer, is_cut, noise, soon};

const MIB: usize = 1 << 20;

/// Less than a unit and more; the second time as a client asks that was cut in the middle, too.
const CASES: [(usize, Option<usize>); 4] = [
    (300_000, None),
    (300_000, Some(100_000)),
    (3 * MIB, None),
    (3 * MIB, Some(2_000_000)),
];

struct Lied {
    origin: Origin,
    server: Server,
    digest: BlobDigest,
    _dir: tempfile::TempDir,
}

impl Lied {
    /// A client got what the upstream has wrong.
    async fn by(content: &Bytes, wrong: impl Fn(&Origin, Target)) -> Lied {
        let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
        let server = Server::start(&origin, dir.path()).await;
        let digest = origin.add_blob(REPOSITORY, content.clone());
        wrong(&origin, Target::Digest(digest));
        let (status, body) = soon(server.fetch(&server.blob_url(&digest))).await;
        assert!(is_cut(status, &body));
        Lied {
            origin,
            server,
            digest,
            _dir: dir,
        }
    }

    async fn again(&self, from: Option<usize>) -> (u16, Option<Bytes>) {
        let mut request = self.server.http.get(self.server.blob_url(&self.digest));
        if let Some(from) = from {
            request = request.header("range", format!("bytes={from}-"));
        }
        let (status, _, body) = soon(answer(request)).await;
        (status, body.ok())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_again_for_what_was_wrong_is_refused_before_the_first_byte() {
    for (size, from) in CASES {
        let content = Bytes::from(noise(size, 1));
        let lied = Lied::by(&content, |origin, of| {
            origin.always(of.clone(), Fault::WrongByte { at: 1000 });
            // Slow enough that bytes would go out before the verdict.
            let bytes_per_sec = 2 * size as u64;
            origin.always(of, Fault::Throttle { bytes_per_sec });
        });
        let lied = lied.await;
        assert_eq!(lied.again(from).await.0, 502, "{size} {from:?}");
        assert!(lied.origin.gets(&lied.digest).len() > 1, "the upstream was asked again");
        lied.server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_right_again_is_given() {
    for (size, from) in CASES {
        let content = Bytes::from(noise(size, 2));
        let lied = Lied::by(&content, |origin, of| origin.once(of, Fault::WrongByte { at: 1000 })).await;
        let (status, body) = lied.again(from).await;
        assert_eq!(status, if from.is_some() { 206 } else { 200 }, "{size} {from:?}");
        assert!(body.unwrap() == content[from.unwrap_or_default()..]);
        assert_eq!(lied.again(None).await, (200, Some(content)));
        lied.server.stop().await;
    }
}
