//! `Accept` headers that name nothing, at an upstream that wants names.

use headstart_loadtest::origin::{Auth, Origin};
use reqwest::Method;
use serde_json::json;

use crate::support::{REPOSITORY, Server, config, error_of};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// distribution compares media types as text: to a client that says `*/*` it denies an OCI manifest that it has, and of a
/// Docker list it gives one platform's manifest. Whoever says so is one class with container runtimes, which were denied the
/// tag after somebody's curl, or were given one platform's.
#[tokio::test(flavor = "multi_thread")]
async fn a_wildcard_neither_denies_a_tag_nor_changes_it_for_others() {
    const WILD: [&str; 3] = ["*/*", "application/*", "text/html, */*;q=0.1"];
    let runtime = format!("{OCI_INDEX}, {OCI_MANIFEST}, {DOCKER_LIST}, {DOCKER_MANIFEST}, */*");
    for first in WILD.into_iter().chain([runtime.as_str()]) {
        let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
        let mut config = config(&origin, dir.path());
        config.fetch.negative_ttl_ms = 60_000;
        let server = Server::with(config).await;
        origin.strict_accept(true);
        let child = json!({ "schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "layers": [] }).to_string();
        let child = origin.add_manifest(REPOSITORY, None, DOCKER_MANIFEST, child);
        let list = json!({ "schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [{
            "mediaType": DOCKER_MANIFEST, "digest": child, "size": 1,
            "platform": { "os": "linux", "architecture": "amd64" },
        }]});
        let list = origin.add_manifest(REPOSITORY, Some("list"), DOCKER_LIST, list.to_string());
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] });
        let oci = origin.add_manifest(REPOSITORY, Some("oci"), OCI_INDEX, index.to_string());
        let ask = |reference: &str, method: Method, accept: &str| {
            let request = server.http.request(method, server.manifest_url(reference));
            let request = request.header("accept", accept);
            async { request.send().await.unwrap() }
        };
        for (tag, digest) in [("oci", oci), ("list", list)] {
            // Cold, then warm and confirmed each time.
            for accept in [first, &runtime].into_iter().chain(WILD).chain([runtime.as_str()]) {
                for method in [Method::HEAD, Method::GET] {
                    let answer = ask(tag, method, accept).await;
                    assert_eq!(answer.status(), 200, "{tag} for {accept:?}, {first:?} first");
                    assert_eq!(
                        answer.headers()["docker-content-digest"],
                        digest.to_string(),
                        "{accept:?}"
                    );
                }
            }
        }
        // A client that really takes less is told the upstream's "no", and keeps it to itself.
        let narrow = ask("oci", Method::GET, DOCKER_MANIFEST).await;
        assert_eq!(error_of(narrow).await, (404, "MANIFEST_UNKNOWN".into()));
        assert_eq!(ask("oci", Method::GET, &runtime).await.status(), 200);
    }
}
