//! Upstreams that answer a Range with another one: the whole is asked for instead.

mod support;

use headstart_loadtest::origin::{Auth, Fault, Origin, Target};
use support::{REPOSITORY, Server, answer, noise, soon};

const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_range_of_a_cold_blob_is_given_whatever_part_the_upstream_gives() {
    for fault in [Fault::NoTotal, Fault::ShortRange { bytes: 700 }] {
        let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
        let server = Server::start(&origin, dir.path()).await;
        let content = noise(5 * MIB, 1);
        let digest = origin.add_blob(REPOSITORY, content.clone());
        origin.always(Target::Digest(digest), fault.clone());
        let request = server.http.get(server.blob_url(&digest));
        let (status, head, body) = soon(answer(request.header("range", "bytes=3000000-3000999"))).await;
        assert_eq!(status, 206, "{fault:?}");
        assert_eq!(
            head["content-range"],
            format!("bytes 3000000-3000999/{}", 5 * MIB),
            "{fault:?}"
        );
        assert!(body.unwrap() == content[3_000_000..3_001_000], "{fault:?}");
        let (status, body) = soon(server.fetch(&server.blob_url(&digest))).await;
        assert!(status == 200 && body.unwrap() == *content, "{fault:?}");
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_was_cut_is_completed_whatever_part_the_upstream_gives() {
    for fault in [Fault::NoTotal, Fault::ShortRange { bytes: 70_000 }] {
        let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
        let server = Server::start(&origin, dir.path()).await;
        let content = noise(3 * MIB, 2);
        let digest = origin.add_blob(REPOSITORY, content.clone());
        origin.once(Target::Digest(digest), Fault::Truncate { after: MIB as u64 });
        origin.always(Target::Digest(digest), fault.clone());
        let (status, body) = soon(server.fetch(&server.blob_url(&digest))).await;
        assert!(status == 200 && body.unwrap() == *content, "{fault:?}");
        server.stop().await;
    }
}
