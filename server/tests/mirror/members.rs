//! Where not everybody may read everything, a blob that is here is given to a repository only if its upstream has said
//! that it is there. A manifest that names such blobs is no use without that word.

use headstart_layer_format::BlobDigest;
use headstart_loadtest::origin::{Auth, Origin};
use headstart_server::config::{AccessRule, Config};
use serde_json::json;

use crate::support::{Server, config, noise, until};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const FIRST: &str = "team/a";
const SECOND: &str = "team/b";

/// Everybody may read everything, but the server does not know that.
fn restricted(origin: &Origin, dir: &std::path::Path) -> Config {
    let mut config = config(origin, dir);
    config.access.rules = vec![AccessRule {
        who: vec!["*".into()],
        upstreams: vec![],
        repositories: vec![],
    }];
    config
}

/// An artifact, of which the server itself fetches nothing: two blobs, in both repositories.
struct Shared {
    blobs: [BlobDigest; 2],
    manifest: BlobDigest,
    index: BlobDigest,
}

impl Shared {
    fn push(origin: &Origin) -> Self {
        let push = |repository: &str| {
            let blobs = [1, 2].map(|seed| origin.add_blob(repository, noise(1000, seed)));
            let text = json!({
                "schemaVersion": 2, "mediaType": MANIFEST,
                "config": { "mediaType": "application/vnd.example.config", "digest": blobs[0], "size": 1000 },
                "layers": [{ "mediaType": "application/vnd.example", "digest": blobs[1], "size": 1000 }],
            });
            let manifest = origin.add_manifest(repository, Some("v1"), MANIFEST, text.to_string());
            let child = json!({ "mediaType": MANIFEST, "digest": manifest, "size": 1 });
            let text = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [child] });
            let index = origin.add_manifest(repository, Some("multi"), INDEX, text.to_string());
            Self { blobs, manifest, index }
        };
        push(SECOND);
        push(FIRST)
    }
}

async fn status(server: &Server, path: String) -> u16 {
    server.fetch(&server.url(&path)).await.0
}

/// The manifest and all blobs, until they are here.
async fn pull(server: &Server, repository: &str, image: &Shared) {
    assert_eq!(status(server, format!("{repository}/manifests/v1")).await, 200);
    for digest in &image.blobs {
        assert_eq!(status(server, format!("{repository}/blobs/{digest}")).await, 200);
        until("the blob is published", || server.app.originals.path(digest).exists()).await;
    }
}

/// The second repository's manifest came when its blobs were not here; then the first one's client brought them. Without
/// the upstream nobody can say whether they are the second's, too: its manifest was served, and its blobs were not.
#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_is_no_promise_of_blobs_that_are_another_repositorys() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let image = Shared::push(&origin);
    let server = Server::with(restricted(&origin, dir.path())).await;
    for tag in ["multi", "v1"] {
        assert_eq!(status(&server, format!("{SECOND}/manifests/{tag}")).await, 200);
    }
    pull(&server, FIRST, &image).await;
    origin.stop();
    for reference in [
        "v1".to_owned(),
        image.manifest.to_string(),
        "multi".into(),
        image.index.to_string(),
    ] {
        // What the first has as a whole is no answer for the second.
        assert_eq!(
            status(&server, format!("{FIRST}/manifests/{}", image.manifest)).await,
            200
        );
        let manifest = server
            .error(&server.url(&format!("{SECOND}/manifests/{reference}")))
            .await;
        assert_eq!(manifest.1, "UNAVAILABLE", "{reference}");
    }
    // Of one of them the upstream was asked before it went, to learn whether it gives blobs at all.
    let [_, unasked] = image.blobs;
    assert_ne!(status(&server, format!("{SECOND}/blobs/{unasked}")).await, 200);
    for digest in &image.blobs {
        assert_eq!(status(&server, format!("{FIRST}/blobs/{digest}")).await, 200);
    }
    server.stop().await;
}

/// A client that has the layers takes the manifest alone, and the next one comes in an outage: what is here already is
/// confirmed while there is somebody to ask, once.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_here_is_confirmed_for_the_next_repository_while_its_upstream_is_up() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let image = Shared::push(&origin);
    let server = Server::with(restricted(&origin, dir.path())).await;
    pull(&server, FIRST, &image).await;
    origin.clear_calls();
    for reference in ["multi".to_owned(), image.manifest.to_string()] {
        assert_eq!(status(&server, format!("{SECOND}/manifests/{reference}")).await, 200);
    }
    let blob_calls = || origin.calls().into_iter().filter(|c| c.is_blob());
    let heads = || blob_calls().filter(|c| c.method == "HEAD").count();
    origin.wait_for("a HEAD for each blob", |_| heads() >= 2).await;
    // The word is written down after it is given.
    let store = server.app.store.clone();
    let source = headstart_server::store::facts::Source {
        upstream: crate::support::UPSTREAM.into(),
        repository: SECOND.into(),
    };
    until("both are known", || {
        image
            .blobs
            .iter()
            .all(|digest| store.is_member(&source, digest).unwrap())
    })
    .await;
    assert_eq!(status(&server, format!("{SECOND}/manifests/v1")).await, 200);
    assert_eq!(blob_calls().count(), 2, "one HEAD each, and no bytes");
    origin.stop();
    let both = async |server: &Server| {
        for reference in ["multi", "v1"] {
            assert_eq!(status(server, format!("{SECOND}/manifests/{reference}")).await, 200);
        }
        for digest in &image.blobs {
            assert_eq!(status(server, format!("{SECOND}/blobs/{digest}")).await, 200);
        }
    };
    both(&server).await;
    drop(store);
    server.stop().await;
    let mut config = restricted(&origin, dir.path());
    config.fetch.offline = true;
    let server = Server::with(config).await;
    both(&server).await;
    server.stop().await;
}

/// The second repository does not have what it names: it is not confirmed, and its manifest says so as soon as a client
/// has found out.
#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_here_and_not_the_repositorys_withholds_the_manifest() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let image = Shared::push(&origin);
    origin.remove(SECOND, &image.blobs[1]);
    let server = Server::with(restricted(&origin, dir.path())).await;
    pull(&server, FIRST, &image).await;
    // One of its blobs is there. That the other is not may be found out in the background before the answer.
    let first = status(&server, format!("{SECOND}/manifests/v1")).await;
    assert!(matches!(first, 200 | 404), "{first}");
    assert_eq!(status(&server, format!("{SECOND}/blobs/{}", image.blobs[0])).await, 200);
    assert_eq!(status(&server, format!("{SECOND}/blobs/{}", image.blobs[1])).await, 404);
    assert_eq!(status(&server, format!("{SECOND}/manifests/v1")).await, 404);
    assert_eq!(status(&server, format!("{FIRST}/manifests/v1")).await, 200);
    server.stop().await;
}

/// Where everybody may read everything, a manifest's word is enough, and so is that of an index for the manifests in it:
/// an image that another repository brought is given on the index of this one, to its last blob, in an outage, too.
#[tokio::test(flavor = "multi_thread")]
async fn where_a_manifests_word_is_enough_it_is_enough_for_what_its_images_name() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let image = Shared::push(&origin);
    let server = Server::start(&origin, dir.path()).await;
    pull(&server, FIRST, &image).await;
    assert_eq!(status(&server, format!("{SECOND}/manifests/multi")).await, 200);
    origin.stop();
    assert_eq!(
        status(&server, format!("{SECOND}/manifests/{}", image.index)).await,
        200
    );
    assert_eq!(
        status(&server, format!("{SECOND}/manifests/{}", image.manifest)).await,
        200
    );
    for digest in &image.blobs {
        assert_eq!(status(&server, format!("{SECOND}/blobs/{digest}")).await, 200);
    }
    server.stop().await;
}
