//! Upstreams that say nothing by HEAD: a CDN whose links are signed for GET alone, a registry that knows no HEAD of blobs.
//! Their blobs' sizes cost a byte, and not the blobs.

mod support;

use std::time::Duration;

use headstart_layer_format::BlobDigest;
use headstart_loadtest::origin::{Auth, Fault, Origin, Target};
use support::{REPOSITORY, Server, noise, soon};

const MIB: usize = 1 << 20;
const UNIT: u64 = headstart_server::store::units::UNIT;

/// Who refuses it, and how.
const WAYS: [(Target, u16); 4] = [
    (Target::Cdn, 403),
    (Target::Blobs, 400),
    (Target::Blobs, 405),
    (Target::Blobs, 501),
];

fn refuse_heads(origin: &Origin, of: Target, code: u16) {
    origin.redirect_blobs(of == Target::Cdn);
    let refusal = Fault::Status {
        code,
        retry_after_secs: None,
    };
    origin.always(Target::Heads(Box::new(of)), refusal);
}

async fn head(server: &Server, digest: &BlobDigest) -> (u16, String) {
    let answer = soon(server.http.head(server.blob_url(digest)).send()).await.unwrap();
    let length = answer.headers().get("content-length");
    let length = length.map_or("", |v| v.to_str().unwrap()).to_owned();
    (answer.status().as_u16(), length)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_size_of_a_cold_blob_costs_a_byte() {
    for (n, (of, code)) in WAYS.into_iter().enumerate() {
        let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
        let server = Server::start(&origin, dir.path()).await;
        let digest = origin.add_blob(REPOSITORY, noise(8 * MIB, n as u64));
        refuse_heads(&origin, of, code);
        assert_eq!(head(&server, &digest).await, (200, (8 * MIB).to_string()), "{code}");
        let had = server.http.get(server.blob_url(&digest));
        let had = had.header("if-none-match", format!("\"{digest}\""));
        assert_eq!(soon(had.send()).await.unwrap().status(), 304, "{code}");
        // A fetch would go on when its client has its answer.
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(origin.bytes_sent(&digest), 2, "{code}");
        let missing = BlobDigest::of(b"missing");
        assert_eq!(head(&server, &missing).await.0, 404, "{code}");
        server.stop().await;
    }
}

/// Nor where ranges are ignored: the rest of the answer is not taken.
#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_without_ranges_is_asked_for_the_size_and_not_for_the_blob() {
    for (n, (of, code)) in WAYS.into_iter().enumerate() {
        let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
        let server = Server::start(&origin, dir.path()).await;
        let size = 4 * MIB;
        let digest = origin.add_blob(REPOSITORY, noise(size, 10 + n as u64));
        refuse_heads(&origin, of, code);
        origin.always(Target::Digest(digest), Fault::IgnoreRange);
        let gate = origin.hold(Target::Gets(Box::new(Target::Digest(digest))), 1000);
        assert_eq!(head(&server, &digest).await, (200, size.to_string()), "{code}");
        gate.open();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(server.app.originals.get(&digest).unwrap().is_none(), "{code}");
        let sent = origin.gets(&digest).iter().filter(|call| call.status == 200).count();
        assert_eq!(sent, 1, "{code}");
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_cold_blob_costs_a_byte_and_the_end() {
    for (n, (of, code)) in WAYS.into_iter().enumerate() {
        let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
        let server = Server::start(&origin, dir.path()).await;
        let content = noise(8 * MIB, 20 + n as u64);
        let digest = origin.add_blob(REPOSITORY, content.clone());
        refuse_heads(&origin, of, code);
        let part = server.http.get(server.blob_url(&digest)).header("range", "bytes=-1000");
        let part = soon(part.send()).await.unwrap();
        assert_eq!(part.status(), 206, "{code}");
        let said = part.headers()["content-range"].to_str().unwrap().to_owned();
        assert_eq!(said, format!("bytes {}-{}/{}", 8 * MIB - 1000, 8 * MIB - 1, 8 * MIB));
        assert!(soon(part.bytes()).await.unwrap() == content[8 * MIB - 1000..]);
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(origin.bytes_sent(&digest), UNIT + 1, "{code}");
        server.stop().await;
    }
}

/// One that takes neither HEAD nor ranges gives the whole, and the end of it.
#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_but_the_whole_can_be_asked_for_the_whole_is() {
    for code in [400, 405, 501] {
        let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
        let server = Server::start(&origin, dir.path()).await;
        let content = noise(2 * MIB, u64::from(code));
        let digest = origin.add_blob(REPOSITORY, content.clone());
        let refusal = Fault::Status {
            code,
            retry_after_secs: None,
        };
        // The HEAD, and the range.
        origin.times(2, Target::Blobs, refusal);
        let part = server.http.get(server.blob_url(&digest)).header("range", "bytes=-1000");
        let part = soon(part.send()).await.unwrap();
        assert_eq!(part.status(), 206, "{code}");
        assert!(soon(part.bytes()).await.unwrap() == content[2 * MIB - 1000..]);
        server.stop().await;
    }
}

/// A blob that is here because of another repository is this one's by a byte.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_here_is_confirmed_by_a_byte() {
    for (n, (of, code)) in WAYS.into_iter().enumerate() {
        let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
        let server = Server::start(&origin, dir.path()).await;
        let content = noise(MIB, 30 + n as u64);
        let digest = origin.add_blob(REPOSITORY, content.clone());
        origin.add_blob("team/other", content.clone());
        assert_eq!(soon(server.fetch(&server.blob_url(&digest))).await.0, 200);
        support::until("it is kept", || server.app.originals.get(&digest).unwrap().is_some()).await;
        let before = origin.bytes_sent(&digest);
        refuse_heads(&origin, of, code);
        let other = server.url(&format!("team/other/blobs/{digest}"));
        let (status, body) = soon(server.fetch(&other)).await;
        assert_eq!(status, 200, "{code}");
        assert!(body.unwrap() == content);
        assert!(origin.bytes_sent(&digest) <= before + 1, "{code}");
        let stranger = server.url(&format!("team/third/blobs/{digest}"));
        assert_eq!(soon(server.error(&stranger)).await.0, 404, "{code}");
        server.stop().await;
    }
}
