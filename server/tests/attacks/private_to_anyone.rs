//! Private images for anyone who can reach the mirror.
//!
//! The documentation of distribution's proxy says it of itself: with credentials for the upstream, "private resources
//! that this user has access to" become readable by everybody. Here: mode `upstream`. A repository is read with the
//! client's own right to it, also when every byte is here already; the server's credentials open nothing for others.

use headstart_layer_format::routes;
use headstart_loadtest::{
    corpus::SyntheticImage,
    origin::{Auth, Origin, User, basic_header},
};
use headstart_server::config::AccessMode;

use crate::support::{Server, config};

const PRIVATE: &str = "alice/private";
const PUBLIC: &str = "open/image";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cached_for_one_is_not_for_all() {
    for bearer in [false, true] {
        let users = [
            User::new("alice", "alice's secret", &[PRIVATE]),
            User::new("mallory", "mallory's secret", &["mallory/own"]),
        ];
        let origin = Origin::start(Auth::users(bearer, &users, &[PUBLIC]));
        let (image, open) = (SyntheticImage::tiny(41), SyntheticImage::tiny(42));
        image.push(&origin, PRIVATE, "latest");
        open.push(&origin, PUBLIC, "latest");
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(&origin, dir.path());
        config.access.mode = AccessMode::Upstream;
        let server = Server::with(config).await;
        let layer = image.layers[0].digest;
        let paths = [
            format!("{PRIVATE}/manifests/latest"),
            format!("{PRIVATE}/manifests/{}", image.manifest_digest),
            format!("{PRIVATE}/blobs/{layer}"),
            format!("{PRIVATE}/tags/list"),
        ];
        let own = [
            routes::layer_toc(&layer),
            routes::layer_data(&layer),
            routes::image(&image.manifest_digest),
            routes::chain(&image.chain_ids()[0]),
        ];

        // Everything becomes known here; and in no cache on the way, which could not tell one client from another.
        let alice = server.client(basic_header("alice", "alice's secret"));
        for path in &paths[..3] {
            let answer = alice.get(&server.url(path)).await;
            assert_eq!(answer.status(), 200, "{path}");
            let cache = answer.headers()["cache-control"].to_str().unwrap();
            assert!(
                cache.starts_with("private, max-age=") || cache == "no-cache",
                "{path}: {cache}"
            );
        }
        let toc = alice.ready(&layer).await;
        let chunks: Vec<_> = toc.chunks().entries().iter().map(|c| c.digest).collect();

        let others = [
            server.anybody(),
            server.client(basic_header("mallory", "mallory's secret")),
            server.client(basic_header("alice", "wrong")),
            server.client("Bearer made-up"),
            server.client("Basic !"),
            server.client("nonsense"),
        ];
        for other in &others {
            for path in &paths {
                for url in [
                    server.url(path),
                    format!("http://{}/v2/origin.test/{path}", server.address),
                ] {
                    let answer = other.get(&url).await;
                    let status = answer.status().as_u16();
                    assert!(matches!(status, 401 | 403), "{status} {url} {:?}", other.authorization);
                    assert_eq!(answer.headers().contains_key("www-authenticate"), status == 401);
                    let text = answer.text().await.unwrap();
                    assert!(text.contains("UNAUTHORIZED") || text.contains("DENIED"), "{text}");
                    assert!(!text.contains("secret"), "{text}");
                }
            }
            for path in &own {
                assert_eq!(other.own_status(path).await, 404, "{path} {:?}", other.authorization);
            }
            let found = other.chunks(chunks.clone(), vec![layer]).await.unwrap();
            assert!(found.iter().all(|found| !found));
        }

        // Alice still reads it, and everybody reads what is public, unchallenged, lazily too.
        for path in &own[..3] {
            assert_eq!(alice.own_status(path).await, 200, "{path}");
        }
        let found = alice.chunks(chunks.clone(), vec![layer]).await.unwrap();
        assert!(found.iter().all(|found| *found));
        let anybody = server.anybody();
        assert_eq!(anybody.status(&format!("http://{}/v2/", server.address)).await, 200);
        assert_eq!(
            anybody.status(&server.url(&format!("{PUBLIC}/manifests/latest"))).await,
            200
        );
        let open_layer = open.layers[0].digest;
        assert_eq!(
            anybody
                .status(&server.url(&format!("{PUBLIC}/blobs/{open_layer}")))
                .await,
            200
        );
        anybody.ready(&open_layer).await;
        server.stop().await;
    }
}
