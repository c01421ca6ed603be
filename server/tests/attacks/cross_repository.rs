//! Deduplication that crosses authorization.
//!
//! CVE-2024-39897 (zot): a blob that was cached for one repository was given to whoever asked another repository for its
//! digest. CVE-2026-35172 (distribution): the same by a cached descriptor. Layers are shared globally here too, and
//! digests are no secrets: they are in SBOMs, logs and public manifests. The attacker may even push: their own manifest
//! names the victim's digests, and a mirror that takes a manifest's word for what its repository holds is fooled.
//!
//! The origin here never has the victim's blobs in the attacker's repository, so any byte of them that the attacker gets
//! is a leak.

use headstart_layer_format::{BlobDigest, DiffId, routes};
use headstart_loadtest::{
    corpus::SyntheticImage,
    origin::{Auth, Origin},
};
use headstart_server::config::{AccessMethod, AccessRule};
use sha2::{Digest as _, Sha256};

use crate::support::{Server, config, noise, until};

const VICTIM: &str = "team/victim";
const ATTACKER: &str = "team/attacker";

fn rule(who: &str, repository: &str) -> AccessRule {
    AccessRule {
        who: vec![who.into()],
        upstreams: vec![],
        repositories: vec![repository.into()],
    }
}

async fn two_tenants(origin: &Origin, dir: &std::path::Path) -> Server {
    let hex = |token: &str| headstart_layer_format::digest::hex(&Sha256::digest(token));
    let tokens = dir.join("tokens");
    let lines = format!("victim:{}\nattacker:{}\n", hex("token-v"), hex("token-a"));
    std::fs::write(&tokens, lines).unwrap();
    let mut config = config(origin, &dir.join("data"));
    config.access.methods = vec![AccessMethod::Token];
    config.access.token_file = Some(tokens);
    config.access.rules = vec![rule("victim", VICTIM), rule("attacker", ATTACKER)];
    Server::with(config).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_digest_is_no_right() {
    let origin = Origin::start(Auth::Anonymous);
    let image = SyntheticImage::seeded(31);
    image.push(&origin, VICTIM, "latest");
    // The attacker's own image, of which they may read everything.
    let own = SyntheticImage::tiny(32);
    own.push(&origin, ATTACKER, "own");
    // And a manifest of theirs that names the victim's layers and config. A registry need not check it.
    origin.add_manifest(
        ATTACKER,
        Some("evil"),
        image.manifest_media_type,
        image.manifest.clone(),
    );

    let dir = tempfile::tempdir().unwrap();
    let server = two_tenants(&origin, dir.path()).await;
    let (victim, attacker) = (server.client("Bearer token-v"), server.client("Bearer token-a"));
    let blob_of = |repository: &str, digest: &BlobDigest| server.url(&format!("{repository}/blobs/{digest}"));

    // Everything of the victim is here.
    assert_eq!(
        victim.status(&server.url(&format!("{VICTIM}/manifests/latest"))).await,
        200
    );
    let layer = image.layers.iter().max_by_key(|l| l.tar.len()).unwrap();
    assert_eq!(victim.status(&blob_of(VICTIM, &layer.digest)).await, 200);
    // All of it: a manifest whose blobs are neither here nor to be had is withheld.
    for digest in image.layers.iter().map(|l| l.digest).chain([image.config_digest]) {
        assert_eq!(victim.status(&blob_of(VICTIM, &digest)).await, 200);
        while !server.app.originals.path(&digest).exists() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
    let toc = victim.ready(&layer.digest).await;
    let chunks: Vec<_> = toc.chunks().entries().iter().map(|c| c.digest).collect();
    assert!(!chunks.is_empty());
    let chain = image.chain_ids().pop().unwrap();

    // The attacker's manifest is theirs, and is read and recorded. What it names is not: so there is nothing that it could
    // be pulled with, and it is withheld as any manifest without blobs, though all of them are here.
    assert_eq!(
        attacker
            .status(&server.url(&format!("{ATTACKER}/manifests/evil")))
            .await,
        404
    );
    for round in 0..2 {
        assert_eq!(attacker.status(&blob_of(VICTIM, &layer.digest)).await, 403);
        let (blob, toc) = (blob_of(ATTACKER, &layer.digest), routes::layer_toc(&layer.digest));
        assert_eq!(attacker.status(&blob).await, 404, "round {round}");
        assert_eq!(attacker.own_status(&toc).await, 404, "round {round}");
        assert_eq!(attacker.own_status(&routes::layer_data(&layer.digest)).await, 404);
        assert_eq!(attacker.own_status(&routes::chain(&chain)).await, 404);
        // Naming one's own repository helps as little as naming the victim's.
        for repository in [ATTACKER, VICTIM] {
            let hint = format!("{toc}?ns=origin.test&repository={repository}");
            assert_eq!(attacker.own_status(&hint).await, 404, "{repository}");
        }
        for layers in [vec![], vec![layer.digest], vec![layer.digest, own.layers[0].digest]] {
            let found = attacker.chunks(chunks.clone(), layers.clone()).await.unwrap();
            assert!(found.iter().all(|found| !found), "{layers:?}");
        }
    }
    // The state of an image tells nothing of layers that are somebody else's.
    let status: headstart_layer_format::api::ImageStatus = attacker
        .own(&routes::image(&image.manifest_digest))
        .await
        .json()
        .await
        .unwrap();
    for layer in &status.layers {
        assert!(layer.toc.is_none() && layer.converted.is_none(), "{layer:?}");
    }

    // What is refused to the attacker is there for the victim, and the attacker has what is theirs.
    let found = victim.chunks(chunks.clone(), vec![layer.digest]).await.unwrap();
    assert!(found.iter().all(|found| *found));
    assert_eq!(victim.own_status(&routes::layer_data(&layer.digest)).await, 200);
    assert_eq!(
        attacker.status(&server.url(&format!("{ATTACKER}/manifests/own"))).await,
        200
    );
    assert_eq!(attacker.status(&blob_of(ATTACKER, &own.layers[0].digest)).await, 200);
    let theirs = attacker.ready(&own.layers[0].digest).await;
    let own_chunks: Vec<_> = theirs.chunks().entries().iter().map(|c| c.digest).collect();
    let found = attacker
        .chunks(own_chunks.clone(), vec![own.layers[0].digest])
        .await
        .unwrap();
    assert!(found.iter().all(|found| *found));
    let mixed = [own_chunks[..1].to_vec(), chunks[..1].to_vec()].concat();
    let shared = own_chunks.contains(&chunks[0]);
    let found = attacker.chunks(mixed, vec![own.layers[0].digest]).await.unwrap();
    assert_eq!(found, [true, shared]);
    server.stop().await;
}

/// An honest layer in two repositories: the second one's client is not refused for being second, however the first got
/// there, and the upstream is asked for it once.
#[tokio::test(flavor = "multi_thread")]
async fn a_shared_layer_is_confirmed_once() {
    let origin = Origin::start(Auth::Anonymous);
    let image = SyntheticImage::tiny(33);
    image.push(&origin, VICTIM, "latest");
    image.push(&origin, ATTACKER, "latest");
    let dir = tempfile::tempdir().unwrap();
    let server = two_tenants(&origin, dir.path()).await;
    let layer = image.layers[0].digest;
    let (first, second) = (server.client("Bearer token-v"), server.client("Bearer token-a"));
    assert_eq!(
        first.status(&server.url(&format!("{VICTIM}/manifests/latest"))).await,
        200
    );
    first.ready(&layer).await;
    assert_eq!(
        second
            .status(&server.url(&format!("{ATTACKER}/manifests/latest")))
            .await,
        200
    );
    for _ in 0..3 {
        second.ready(&layer).await;
        assert_eq!(
            second.status(&server.url(&format!("{ATTACKER}/blobs/{layer}"))).await,
            200
        );
    }
    let asked = origin.calls();
    let asked: Vec<_> = asked
        .iter()
        .filter(|c| c.path == format!("/v2/{ATTACKER}/blobs/{layer}"))
        .collect();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(asked[0].method, "HEAD");
    assert_eq!(DiffId::of(&image.layers[0].tar), image.layers[0].diff_id);
    server.stop().await;
}

/// The victim's layer is here in part, as a fetch left it that nobody needed to the end. Its bytes are no more the
/// attacker's than those of a whole one, nor does a part that is given make the layer theirs.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_a_fetch_is_no_right() {
    const SIZE: usize = 3 << 20;
    let origin = Origin::start(Auth::Anonymous);
    let digest = origin.add_blob(VICTIM, noise(SIZE, 34));
    let dir = tempfile::tempdir().unwrap();
    let server = two_tenants(&origin, dir.path()).await;
    let asked = || {
        origin
            .calls()
            .iter()
            .filter(|c| c.path.contains(ATTACKER) && c.is_blob())
            .count()
    };
    let part = async |token: &str, repository: &str| {
        let url = server.url(&format!("{repository}/blobs/{digest}"));
        let request = server.http.get(url).header("Range", "bytes=0-99");
        let request = request.header("Authorization", format!("Bearer {token}"));
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(part("token-v", VICTIM).await, 206);
    // Until the fetch has waited for its next reader, and is gone.
    until("the fetch is over", || !server.app.blobs.is_arriving(&digest)).await;
    assert_eq!(part("token-a", ATTACKER).await, 404);
    assert_eq!(asked(), 1, "by its own upstream's word");
    let sources = server.app.store.sources(&digest).unwrap();
    assert!(sources.iter().all(|source| source.repository == VICTIM), "{sources:?}");
    // The victim's part costs nothing, and nobody's word is asked for it again.
    origin.clear_calls();
    assert_eq!(part("token-v", VICTIM).await, 206);
    assert!(origin.calls().is_empty(), "{:?}", origin.calls());
    server.stop().await;
}
