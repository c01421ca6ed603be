//! A profile's chunks as one stream: in order, without what the node has, and no longer than it is wanted.

use std::time::Duration;

use futures_util::StreamExt as _;
use headstart_layer_format::{
    BlobDigest, ChunkDigest, ProfileDigest,
    profile::{Have, ProfileRequest},
    routes,
};

use crate::fleet::{Fleet, chunks_of, files, fleet_config, image_of, origin_of, trace_of};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_what_it_lacks_in_order() {
    let files = files(8);
    let image = image_of(&files);
    let origin = origin_of(&[&image]);
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&origin, dir.path()).await;
    let tocs = fleet.pull(&image).await;
    let wanted: Vec<_> = [20, 1, 9, 3, 17, 2, 12, 7, 22, 5, 11, 0].map(|n| &files[n]).into();
    let needed = chunks_of(&tocs, &wanted);
    assert_eq!(fleet.teach(1, &image, &trace_of(1, &needed)).await, 204);
    let digests: Vec<ChunkDigest> = needed.iter().map(|(_, digest)| *digest).collect();
    let (all, bytes) = fleet.chunks(&image, Have::default()).await;
    assert_eq!(all, digests);
    let profile = fleet.status(&image, "").await.profile.unwrap();
    assert_eq!(bytes, profile.bytes + 40 * digests.len() as u64);
    let (some, _) = fleet.chunks(&image, Have::of([0, 3, 4, digests.len() - 1])).await;
    let lacking = digests
        .iter()
        .enumerate()
        .filter(|(at, _)| ![0, 3, 4, digests.len() - 1].contains(at));
    assert_eq!(some, lacking.map(|(_, digest)| *digest).collect::<Vec<_>>());
    let (none, bytes) = fleet.chunks(&image, Have::of(0..digests.len())).await;
    assert!(none.is_empty() && bytes == 0);

    let request = |image, profile| ProfileRequest {
        image,
        profile,
        have: Have::default(),
    };
    let unknown = ProfileDigest::of(b"yesterday's");
    assert_eq!(
        fleet.stream(&request(image.manifest_digest, unknown)).await.status(),
        409
    );
    // Of an image that nobody pulled; where nothing is restricted, all that can be said is that it is not known.
    let elsewhere = BlobDigest::of(b"elsewhere");
    assert_eq!(fleet.stream(&request(elsewhere, profile.digest)).await.status(), 409);
    // A profile that was given out stays good for a moment, also when another one is given out now.
    let other = chunks_of(&tocs, &[&files[4]]);
    for node in 2..6 {
        assert_eq!(fleet.teach(node, &image, &trace_of(u64::from(node), &other)).await, 204);
    }
    assert_ne!(fleet.status(&image, "").await.profile.unwrap().digest, profile.digest);
    let old = fleet.stream(&request(image.manifest_digest, profile.digest)).await;
    assert_eq!(
        old.bytes().await.unwrap().len() as u64,
        profile.bytes + 40 * digests.len() as u64
    );
    fleet.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_its_client_and_its_place_is_free_again() {
    // More than sockets hold.
    let files = files(40);
    let image = image_of(&files);
    let origin = origin_of(&[&image]);
    let dir = tempfile::tempdir().unwrap();
    let mut config = fleet_config(&origin, dir.path());
    config.profile.image_percent_max = 100;
    config.profile.bytes_floor = 1 << 30;
    config.profile.streams_max = 2;
    let fleet = Fleet::with(config).await;
    let tocs = fleet.pull(&image).await;
    let every: Vec<_> = files.iter().collect();
    assert_eq!(
        fleet.teach(1, &image, &trace_of(1, &chunks_of(&tocs, &every))).await,
        204
    );
    let profile = fleet.status(&image, "").await.profile.unwrap();
    assert!(profile.bytes > 30 << 20, "{}", profile.bytes);
    let request = ProfileRequest {
        image: image.manifest_digest,
        profile: profile.digest,
        have: Have::default(),
    };
    // Each on a connection of its own, and read only a little.
    let mut begun = Vec::new();
    for _ in 0..2 {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = format!("http://{}{}", fleet.server.address, routes::CHUNKS);
        let answer = http.post(url).json(&request).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let mut body = answer.bytes_stream();
        assert!(body.next().await.unwrap().unwrap().len() >= 40);
        begun.push((http, body));
    }
    let refused = fleet.stream(&request).await;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    // Streams that nobody reads do not keep the disk from others' other requests.
    let list = serde_json::json!({"chunks": [tocs[0].chunks().entries()[0].digest]});
    let url = format!("http://{}{}", fleet.server.address, routes::CHUNKS);
    let single = fleet.server.http.post(url).json(&list).send().await.unwrap();
    assert!(single.bytes().await.unwrap().len() > 40);
    drop(begun);
    let mut tries = 0;
    let answer = loop {
        let answer = fleet.stream(&request).await;
        if answer.status() == 200 {
            break answer;
        }
        tries += 1;
        assert!(tries < 1500, "places of clients that went away stay taken");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let bytes = answer.bytes().await.unwrap().len() as u64;
    assert_eq!(bytes, profile.bytes + 40 * u64::from(profile.chunk_count));
    let text = fleet
        .server
        .get(&format!("http://{}/metrics", fleet.server.address))
        .await;
    let text = text.text().await.unwrap();
    assert!(text.contains("headstart_traces_total{outcome=\"counted\"} 1"), "{text}");
    assert!(text.contains("headstart_profiles 1"), "{text}");
    fleet.server.stop().await;
}
