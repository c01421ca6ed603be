//! Who teaches, and who is told, where clients have to say who they are.

use std::fs;

use headstart_layer_format::{digest::hex, profile::ProfileRequest, routes};
use headstart_loadtest::origin::{Auth, Origin};
use headstart_server::config::{AccessMethod, AccessRule};
use sha2::{Digest as _, Sha256};

use crate::{
    fleet::{Fleet, chunks_of, files, fleet_config, image_of, trace_of},
    support::{REPOSITORY, UPSTREAM},
};

fn rule(who: &str, repository: &str) -> AccessRule {
    let text = format!("who = [\"{who}\"]\nrepositories = [\"{repository}\"]");
    toml::from_str(&text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_nodes_that_say_who_they_are_teach_and_only_readers_are_told() {
    let all = files(3);
    let (open, secret) = (image_of(&all), image_of(&all[1..]));
    let origin = Origin::start(Auth::Anonymous);
    open.push(&origin, REPOSITORY, "v1");
    secret.push(&origin, "secret/app", "v1");
    let dir = tempfile::tempdir().unwrap();
    let mut config = fleet_config(&origin, &dir.path().join("data"));
    let lines = ["node-1", "node-2"].map(|name| format!("{name}:{}\n", hex(&Sha256::digest(name))));
    fs::write(dir.path().join("tokens"), lines.concat()).unwrap();
    config.access.methods = vec![AccessMethod::Token];
    config.access.token_file = Some(dir.path().join("tokens"));
    config.access.rules = vec![rule("*", REPOSITORY), rule("node-1", "secret/app")];
    let fleet = Fleet::with(config).await;
    let server = &fleet.server;
    let pulled = |repository: &str, image: &headstart_loadtest::corpus::SyntheticImage| {
        format!(
            "http://{}/v2/{repository}/manifests/{}?ns={UPSTREAM}",
            server.address, image.manifest_digest
        )
    };
    let node = server.client("Bearer node-1");
    assert_eq!(node.status(&pulled(REPOSITORY, &open)).await, 200);
    assert_eq!(node.status(&pulled("secret/app", &secret)).await, 200);
    let mut tocs = Vec::new();
    for layer in open.layers.iter().chain(&secret.layers) {
        tocs.push(node.ready(&layer.digest).await);
    }
    let (tocs, secrets) = tocs.split_at(3);
    let trace = trace_of(1, &chunks_of(tocs, &[&all[4]]));
    let teach = |who: &'static str, image: &headstart_loadtest::corpus::SyntheticImage, trace| {
        let url = format!("http://{}{}", server.address, routes::trace(&image.manifest_digest));
        let request = server.http.post(url).body(serde_json::to_vec(trace).unwrap());
        async move {
            let request = match who {
                "" => request,
                who => request.header("authorization", format!("Bearer {who}")),
            };
            request.send().await.unwrap().status().as_u16()
        }
    };
    // Anybody may read it; that is not enough to teach.
    assert_eq!(teach("", &open, &trace).await, 401);
    assert_eq!(teach("stranger", &open, &trace).await, 401);
    assert_eq!(teach("node-2", &open, &trace).await, 204);
    let hidden = trace_of(2, &chunks_of(secrets, &[&all[4]]));
    assert_eq!(teach("node-2", &secret, &hidden).await, 404);
    assert_eq!(teach("node-1", &secret, &hidden).await, 204);

    let told: headstart_layer_format::api::ImageStatus = server
        .anybody()
        .own(&routes::image(&open.manifest_digest))
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(told.profile.unwrap().chunk_count, 1);
    let status = node.own(&routes::image(&secret.manifest_digest)).await;
    let status: headstart_layer_format::api::ImageStatus = status.json().await.unwrap();
    let request = ProfileRequest {
        image: secret.manifest_digest,
        profile: status.profile.unwrap().digest,
        have: Default::default(),
    };
    assert_eq!(fleet.stream(&request).await.status(), 401, "nobody may read it without");
    let url = format!("http://{}{}", server.address, routes::CHUNKS);
    let with = |token: &'static str| {
        server
            .http
            .post(&url)
            .json(&request)
            .header("authorization", token)
            .send()
    };
    assert_eq!(with("Bearer node-2").await.unwrap().status(), 404);
    let answer = with("Bearer node-1").await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.bytes().await.unwrap().len() > 40);
    fleet.server.stop().await;
}
