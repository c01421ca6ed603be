//! Docker's `registry-mirrors`: no `ns`, `library/`, a ping first, and a resume that demands exactly the 206 it asked for.
//!
//! dockerd itself is not run: what its pull sends is done here, request by request.

use headstart_layer_format::BlobDigest;
use headstart_loadtest::origin::{Fault, Origin, Target};
use reqwest::{Client, Response, StatusCode, header};

use crate::support::{images, images::MultiArch, upstream::Upstream, with_bench};

/// What dockerd accepts of a manifest.
const ACCEPT: [&str; 6] = [
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/json",
];

struct Docker {
    http: Client,
    mirror: String,
}

impl Docker {
    fn new(mirror: String) -> Docker {
        let http = Client::builder()
            .no_proxy()
            .user_agent("docker/27.0 go/go1.22")
            .build()
            .unwrap();
        Docker { http, mirror }
    }

    async fn ping(&self) {
        let answer = self.http.get(format!("{}/v2/", self.mirror)).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["docker-distribution-api-version"], "registry/2.0");
        assert!(!answer.headers().contains_key(header::WWW_AUTHENTICATE));
    }

    async fn manifest(&self, repository: &str, reference: &str) -> (BlobDigest, Vec<u8>) {
        let mut request = self
            .http
            .get(format!("{}/v2/{repository}/manifests/{reference}", self.mirror));
        for accept in ACCEPT {
            request = request.header(header::ACCEPT, accept);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let said: BlobDigest = answer.headers()["docker-content-digest"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        let body = answer.bytes().await.unwrap().to_vec();
        assert_eq!(BlobDigest::of(&body), said);
        (said, body)
    }

    async fn blob(&self, repository: &str, digest: &BlobDigest, from: Option<u64>) -> Response {
        let mut request = self.http.get(format!("{}/v2/{repository}/blobs/{digest}", self.mirror));
        request = request.header(header::ACCEPT_ENCODING, "identity");
        if let Some(from) = from {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        request.send().await.unwrap()
    }
}

#[test]
fn docker_pulls_official_images_without_ns() {
    with_bench(|bench| async move {
        let upstream = Upstream::start(&bench, "upstream").await;
        let multi = MultiArch::new(900);
        upstream.push_multi("library/app", "latest", &multi).await;
        let proxy = bench.proxy("proxy", &[("docker.io", &upstream.url())], "").await;
        let docker = Docker::new(proxy.url());
        for round in ["cold", "warm"] {
            docker.ping().await;
            let (digest, body) = docker.manifest("library/app", "latest").await;
            assert_eq!(
                (digest, body.as_slice()),
                (multi.index_digest, multi.index.as_ref()),
                "{round}"
            );
            let amd64 = &multi.amd64;
            let (_, body) = docker.manifest("library/app", &amd64.manifest_digest.to_string()).await;
            assert_eq!(body, amd64.manifest);
            for digest in images::blobs(amd64) {
                let answer = docker.blob("library/app", &digest, None).await;
                assert_eq!(answer.status(), 200);
                let length = answer.content_length().unwrap();
                let body = answer.bytes().await.unwrap();
                assert_eq!((body.len() as u64, BlobDigest::of(&body)), (length, digest), "{round}");
            }
        }
    });
}

#[test]
fn docker_resumes_a_cut_layer_by_an_exact_206() {
    with_bench(|bench| async move {
        let image = images::image(910, &[3_000_000]);
        let origin = Origin::with_image("library/app", "latest", &image);
        let proxy = bench.proxy("proxy", &[("docker.io", &origin.url())], "").await;
        let docker = Docker::new(proxy.url());
        docker.manifest("library/app", "latest").await;
        let layer = &image.layers[0];
        let size = layer.blob.len() as u64;
        // The upstream brings half; docker has half and comes back for the rest, cold and then warm.
        let gate = origin.hold(Target::Digest(layer.digest), size / 2);
        let mut answer = docker.blob("library/app", &layer.digest, None).await;
        let mut have = Vec::new();
        while (have.len() as u64) < size / 2 {
            have.extend_from_slice(&answer.chunk().await.unwrap().unwrap());
        }
        drop(answer);
        origin.clear_faults();
        origin.always(
            Target::Digest(layer.digest),
            Fault::Throttle {
                bytes_per_sec: 50_000_000,
            },
        );
        gate.open();
        for round in ["cold", "warm"] {
            let from = have.len() as u64;
            let rest = docker.blob("library/app", &layer.digest, Some(from)).await;
            assert_eq!(rest.status(), StatusCode::PARTIAL_CONTENT, "{round}");
            assert_eq!(
                rest.headers()[header::CONTENT_RANGE],
                format!("bytes {from}-{}/{size}", size - 1)
            );
            assert_eq!(rest.content_length(), Some(size - from));
            let rest = rest.bytes().await.unwrap();
            assert_eq!(
                BlobDigest::of(&[have.as_slice(), &rest].concat()),
                layer.digest,
                "{round}"
            );
        }
        assert_eq!(origin.bytes_sent(&layer.digest), size, "upstream bytes are 1.0x");
    });
}
