//! Cache poisoning: what one upstream says must not be what clients of another get.
//!
//! The story: rpardini/docker-registry-proxy keyed its cache by path without the host, so that whoever ran one registry
//! could plant content for another; other proxies kept blobs and manifests by digest without ever comparing the digest.
//! What we do: nothing is an original before its digest was compared; bytes that are not verified yet (the parts of a
//! blob that came by Range) are kept by upstream, and given to clients of that upstream only; the end of a whole blob is
//! withheld until it is verified.

use headstart_layer_format::BlobDigest;
use headstart_loadtest::origin::{Auth, Origin, Target};
use headstart_server::config::UpstreamConfig;

use crate::support::{REPOSITORY, Server, config, is_cut, noise};

const MIB: usize = 1 << 20;

struct Two {
    honest: Origin,
    liar: Origin,
    server: Server,
    _dir: tempfile::TempDir,
}

impl Two {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (honest, liar) = (Origin::start(Auth::Anonymous), Origin::start(Auth::Anonymous));
        let mut config = config(&honest, dir.path());
        config.upstreams.push(UpstreamConfig::new("liar.test", liar.url()));
        let server = Server::with(config).await;
        Self {
            honest,
            liar,
            server,
            _dir: dir,
        }
    }

    /// The same digest in both, with other bytes in one.
    fn blob(&self, size: usize, seed: u64) -> (BlobDigest, Vec<u8>) {
        let content = noise(size, seed);
        let digest = self.honest.add_blob(REPOSITORY, content.clone());
        self.liar.add_blob_as(REPOSITORY, digest, noise(size, seed + 1000));
        (digest, content)
    }

    fn of_liar(&self, digest: &BlobDigest) -> String {
        format!(
            "http://{}/v2/{REPOSITORY}/blobs/{digest}?ns=liar.test",
            self.server.address
        )
    }

    async fn range(&self, url: &str) -> Vec<u8> {
        let request = self.server.http.get(url).header("range", "bytes=3000000-3000999");
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 206);
        response.bytes().await.unwrap().to_vec()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lying_range_does_not_reach_clients_of_another_upstream() {
    let two = Two::new().await;
    let (digest, content) = two.blob(8 * MIB, 1);
    // Nobody can tell yet that this is a lie; it is the liar's client who gets it.
    assert!(two.range(&two.of_liar(&digest)).await != content[3_000_000..3_001_000]);
    let honest = two.server.blob_url(&digest);
    assert!(two.range(&honest).await == content[3_000_000..3_001_000]);
    let (status, body) = two.server.fetch(&honest).await;
    assert_eq!(status, 200);
    assert!(body.unwrap() == content, "nothing of the lie is in the whole");
    // The answer is complete before the file has its name, and that is there before it is recorded as durable. Then it is
    // known, and the liar's clients get it too.
    while two.server.app.originals.kept(&digest).is_none() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(two.range(&two.of_liar(&digest)).await == content[3_000_000..3_001_000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lying_fetch_under_way_is_not_joined_by_clients_of_another_upstream() {
    let two = Two::new().await;
    let (digest, content) = two.blob(4 * MIB, 2);
    let gate = two.liar.hold(Target::Digest(digest), 2 * MIB as u64);
    let url = two.of_liar(&digest);
    let lied_to = two.server.get(&url).await;
    let (status, body) = two.server.fetch(&two.server.blob_url(&digest)).await;
    assert_eq!(status, 200);
    assert!(body.unwrap() == content);
    gate.open();
    let status = lied_to.status().as_u16();
    assert!(is_cut(status, &lied_to.bytes().await), "a lie is never complete");
    // The lie has not touched what was verified.
    let (_, body) = two.server.fetch(&two.server.blob_url(&digest)).await;
    assert!(body.unwrap() == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lie_alone_is_never_kept() {
    let two = Two::new().await;
    let (digest, content) = two.blob(2 * MIB, 3);
    let url = two.of_liar(&digest);
    for _ in 0..2 {
        let (status, body) = two.server.fetch(&url).await;
        assert!(is_cut(status, &body));
        assert!(two.server.app.originals.get(&digest).unwrap().is_none());
    }
    assert!(two.server.fetch(&two.server.blob_url(&digest)).await.1.unwrap() == content);
}

/// A manifest need not say its own type, and a liar with the same bytes gives them another: the honest upstream's clients
/// would find it unreadable, from a cache that asks nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_lie_about_a_type_is_for_the_liars_clients() {
    const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    for liar_first in [false, true] {
        let two = Two::new().await;
        let config = two.honest.add_blob(REPOSITORY, "{}");
        let descriptor = format!(
            "{{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"{config}\",\"size\":2}}"
        );
        let bytes = format!("{{\"schemaVersion\":2,\"config\":{descriptor},\"layers\":[]}}");
        let digest = two
            .honest
            .add_manifest(REPOSITORY, Some("a"), OCI_MANIFEST, bytes.clone());
        two.liar.add_blob(REPOSITORY, "{}");
        two.liar.add_manifest(REPOSITORY, Some("a"), "text/plain", bytes);
        let of = async |ns: &str| {
            let url = format!(
                "http://{}/v2/{REPOSITORY}/manifests/{digest}?ns={ns}",
                two.server.address
            );
            let answer = two.server.get(&url).await;
            assert_eq!(answer.status(), 200, "{ns}");
            answer.headers()["content-type"].to_str().unwrap().to_owned()
        };
        if liar_first {
            assert_eq!(of("liar.test").await, "text/plain");
        }
        for _ in 0..3 {
            assert_eq!(of("origin.test").await, OCI_MANIFEST);
            assert_eq!(of("liar.test").await, "text/plain");
        }
        // Each was asked once for its own word.
        for origin in [&two.honest, &two.liar] {
            assert_eq!(origin.gets(&digest).len(), 1, "{:#?}", origin.calls());
        }
    }
}
