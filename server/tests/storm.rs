//! Many clients at once: what they cost the upstream.
//!
//! In: a scripted origin, the storm driver (whose nodes verify every byte), plain clients. Out: bytes and calls at the
//! origin.
//! Not here: crowds that mean harm (`hostile/`), real clients (`loadtest/tests/clients/crowd.rs`).

mod support;

use std::time::Duration;

use futures_util::future::join_all;
use headstart_loadtest::corpus::SyntheticImage;
use headstart_loadtest::origin::{Auth, Call, Fault, Origin, Target};
use headstart_loadtest::storm::{self, StormConfig};
use headstart_server::config::TagPolicy;
use support::{REPOSITORY, Server, UPSTREAM, config, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_storm_costs_the_upstream_one_pull() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let image = SyntheticImage::seeded(21);
    image.push(&origin, REPOSITORY, "v1");
    let server = Server::start(&origin, dir.path()).await;
    let storm = StormConfig {
        server: format!("http://{}", server.address),
        ns: UPSTREAM.to_owned(),
        repository: REPOSITORY.to_owned(),
        reference: "v1".to_owned(),
        nodes: 6,
        ..StormConfig::default()
    };

    let whole = storm::run(storm.clone()).await.unwrap();
    assert_eq!((whole.errors, whole.image.count()), (0, 6), "{whole}");
    let lazy = storm::run(StormConfig {
        lazy: true,
        lazy_fraction: 0.5,
        ..storm
    })
    .await
    .unwrap();
    assert_eq!((lazy.errors, lazy.image.count()), (0, 6), "{lazy}");
    // TOCs of all layers, and at least one chunk.
    assert!(lazy.blob.count() > 6 * image.layers.len() as u64, "{lazy}");

    for layer in &image.layers {
        assert_eq!(origin.bytes_sent(&layer.digest), layer.blob.len() as u64);
    }
    server.stop().await;
}

/// A token is good for all that is read of a repository, and who comes while it is on its way waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_costs_one_token_for_each_repository() {
    let (origin, dir) = (Origin::start(Auth::bearer()), tempfile::tempdir().unwrap());
    let image = SyntheticImage::seeded(22);
    let server = Server::start(&origin, dir.path()).await;
    for (number, repository) in [REPOSITORY, "team/other"].into_iter().enumerate() {
        image.push(&origin, repository, "v1");
        origin.always(Target::Token, Fault::DelayHeaders(Duration::from_millis(300)));
        let mut paths = vec![
            "manifests/v1".to_owned(),
            format!("manifests/{}", image.manifest_digest),
        ];
        paths.extend(image.layers.iter().map(|layer| format!("blobs/{}", layer.digest)));
        paths.push("tags/list".into());
        let asked = (0..100).map(|n| {
            let url = server.url(&format!("{repository}/{}", paths[n % paths.len()]));
            let server = &server;
            async move { (server.fetch(&url).await.0, url) }
        });
        for (status, url) in join_all(asked).await {
            assert_eq!(status, 200, "{url}");
        }
        let calls = origin.calls();
        let tokens = calls.iter().filter(|call| call.is_token());
        let scopes: Vec<_> = tokens.filter_map(|call| call.query.clone()).collect();
        assert_eq!(scopes.len(), 1 + number, "{scopes:?}");
        let shown = |call: &Call| call.authorization.is_some();
        assert!(
            calls.iter().filter(|call| shown(call)).count() > paths.len(),
            "they use it"
        );
    }
}

/// However many ask for a tag when its time is over, and again after the next.
#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_costs_one_head_for_each_time_to_live() {
    const TTL: Duration = Duration::from_secs(1);
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let mut config = config(&origin, dir.path());
    config.upstreams[0].tags.policy = Some(TagPolicy::Ttl);
    config.upstreams[0].tags.ttl_ms = TTL.as_millis() as u64;
    let server = Server::with(config).await;
    let image = SyntheticImage::tiny(23);
    image.push(&origin, REPOSITORY, "v1");
    let url = server.manifest_url("v1");
    assert_eq!(server.fetch(&url).await.0, 200);
    // Of an image that is not here, more is asked.
    for digest in image
        .layers
        .iter()
        .map(|layer| &layer.digest)
        .chain([&image.config_digest])
    {
        assert_eq!(server.fetch(&server.blob_url(digest)).await.0, 200);
        until("the blob is kept", || server.app.originals.path(digest).exists()).await;
    }
    for round in 0..3 {
        tokio::time::sleep(TTL + Duration::from_millis(50)).await;
        origin.clear_calls();
        origin.clear_faults();
        let gate = origin.hold_heads(Target::ManifestHeads);
        let asked = join_all((0..50).map(|_| server.fetch(&url)));
        let opened = async {
            let first = |calls: &[Call]| calls.iter().any(Call::is_manifest);
            origin.wait_for("the question", first).await;
            // The others come meanwhile.
            tokio::time::sleep(Duration::from_millis(200)).await;
            gate.open();
        };
        let (answers, ()) = tokio::join!(asked, opened);
        for (status, body) in answers {
            assert_eq!((status, body.unwrap()), (200, image.manifest.clone()));
        }
        let methods: Vec<_> = origin.calls().into_iter().map(|call| call.method).collect();
        assert_eq!(methods, ["HEAD"], "round {round}");
    }
}
