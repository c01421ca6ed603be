//! What is kept in memory is never more than what the disk, the index and the upstream would say.

mod support;

use std::time::Duration;

use headstart_layer_format::BlobDigest;
use headstart_loadtest::corpus::{OCI_INDEX, SyntheticImage};
use headstart_loadtest::origin::{Auth, Origin};
use support::{REPOSITORY, Server, noise};

/// Until the original has taken its place and nobody's fetch has it any more, and twice more, so that everything is at hand.
async fn warm(server: &Server, url: &str, digest: &BlobDigest) {
    for _ in 0..3 {
        let (status, body) = server.fetch(url).await;
        assert_eq!((status, BlobDigest::of(&body.unwrap())), (200, *digest));
        let settles = async {
            while !server.app.originals.path(digest).exists() || server.app.blobs.is_arriving(digest) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let settled = tokio::time::timeout(Duration::from_secs(30), settles).await;
        settled.expect("the original takes its place");
    }
}

/// CVE-2024-39897: a blob that is here for one repository is not given to another's readers.
#[tokio::test(flavor = "multi_thread")]
async fn another_repository_is_not_granted_what_is_at_hand() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let image = SyntheticImage::tiny(1);
    image.push(&origin, REPOSITORY, "v1");
    let blob = origin.add_blob(REPOSITORY, noise(200_000, 1));
    origin.add_blob("other/app", noise(10, 2));
    let server = Server::start(&origin, dir.path()).await;
    warm(&server, &server.blob_url(&blob), &blob).await;
    warm(
        &server,
        &server.manifest_url(image.manifest_digest),
        &image.manifest_digest,
    )
    .await;
    let of_other = [
        format!("other/app/blobs/{blob}"),
        format!("other/app/manifests/{}", image.manifest_digest),
    ];
    for path in &of_other {
        assert_eq!(server.fetch(&server.url(path)).await.0, 404, "{path}");
    }
    // Nor once it has been at hand for somebody: the other repository gets it later, and then may have it.
    let (status, _) = server.fetch(&server.blob_url(&blob)).await;
    assert_eq!(status, 200);
    assert_eq!(server.fetch(&server.url(&of_other[0])).await.0, 404);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_removed_is_fetched_again() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let blob = origin.add_blob(REPOSITORY, noise(200_000, 1));
    let manifest = origin.add_manifest(REPOSITORY, None, OCI_INDEX, index("a"));
    let server = Server::start(&origin, dir.path()).await;
    for (url, digest) in [
        (server.blob_url(&blob), blob),
        (server.manifest_url(manifest), manifest),
    ] {
        warm(&server, &url, &digest).await;
        origin.clear_calls();
        warm(&server, &url, &digest).await;
        assert_eq!(origin.gets(&digest).len(), 0);
        server.app.originals.remove(&digest).unwrap();
        warm(&server, &url, &digest).await;
        assert_eq!(origin.gets(&digest).len(), 1, "{url}");
        // Somebody else's hand: the path decides for whoever comes next.
        origin.clear_calls();
        if digest == blob {
            std::fs::remove_file(server.app.originals.path(&digest)).unwrap();
            warm(&server, &url, &digest).await;
            assert_eq!(origin.gets(&digest).len(), 1, "{url}");
        }
    }
    server.stop().await;
}

/// A tag may be answered from memory while it is fresh, and not a moment longer.
/// What is not known of is not looked for before the upstream is asked; but it is looked for before the upstream's
/// trouble becomes the client's.
#[tokio::test(flavor = "multi_thread")]
async fn an_original_that_somebody_put_back_is_served_while_the_upstream_is_down() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let content = noise(200_000, 4);
    let digest = origin.add_blob(REPOSITORY, content.clone());
    let server = Server::start(&origin, dir.path()).await;
    let url = server.blob_url(&digest);
    warm(&server, &url, &digest).await;
    server.app.originals.remove(&digest).unwrap();
    let path = server.app.originals.path(&digest);
    assert!(!path.exists());
    origin.stop();
    assert_ne!(server.fetch(&url).await.0, 200);
    std::fs::write(&path, &content).unwrap();
    let (status, body) = server.fetch(&url).await;
    assert_eq!(status, 200);
    assert!(body.unwrap() == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moves_is_followed_when_it_is_no_longer_fresh() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let first = origin.add_manifest(REPOSITORY, Some("v1"), OCI_INDEX, index("a"));
    let mut config = support::config(&origin, dir.path());
    config.fetch.tag_fresh_ms = 3_000;
    let server = Server::with(config).await;
    let url = server.manifest_url("v1");
    let get = async || BlobDigest::of(&server.fetch(&url).await.1.unwrap());
    assert_eq!(get().await, first);
    let second = origin.add_manifest(REPOSITORY, Some("v1"), OCI_INDEX, index("b"));
    tokio::time::timeout(Duration::from_secs(60), async {
        while get().await != second {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("it is noticed");
    // And it does not come back.
    for _ in 0..20 {
        assert_eq!(get().await, second);
    }
    server.stop().await;
}

fn index(note: &str) -> String {
    format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"{OCI_INDEX}\",\"manifests\":[],\"annotations\":{{\"note\":\"{note}\"}}}}"
    )
}
