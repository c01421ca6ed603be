//! Blobs through a running server: one fetch with many readers, broken and lying upstreams, restarts.

mod support;

use std::time::Duration;

use futures_util::{StreamExt as _, future::join_all};
use headstart_layer_format::BlobDigest;
use headstart_loadtest::origin::{Auth, Fault, Origin, Target};
use support::{REPOSITORY, Server, UPSTREAM, answer, config, is_cut, noise, soon};

const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn eight_cold_clients_cause_one_fetch_and_each_begins_before_it_ends() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let content = noise(64 * MIB, 1);
    let digest = origin.add_blob(REPOSITORY, content.clone());
    let gate = origin.hold(Target::Digest(digest), 32 * MIB as u64);
    let server = Server::start(&origin, dir.path()).await;

    let begun = join_all((0..8).map(|_| async {
        let response = server.get(&server.blob_url(&digest)).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.content_length(), Some(64 * MIB as u64));
        let mut body = response.bytes_stream();
        let first = body.next().await.unwrap().unwrap();
        assert!(!first.is_empty());
        (first, body)
    }));
    // The gate is closed: these first bytes are here while half of the blob is not.
    let begun = soon(begun).await;
    gate.open();
    let ended = join_all(begun.into_iter().map(|(first, mut body)| async move {
        let mut bytes = first.to_vec();
        while let Some(piece) = body.next().await {
            bytes.extend_from_slice(&piece.unwrap());
        }
        bytes
    }));
    for bytes in soon(ended).await {
        assert!(bytes == content, "every client gets the blob");
    }
    assert_eq!(origin.gets(&digest).len(), 1);
    assert_eq!(origin.bytes_sent(&digest), 64 * MIB as u64);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_stops_nothing() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let digest = origin.add_blob(REPOSITORY, noise(4 * MIB, 2));
    let gate = origin.hold(Target::Digest(digest), MIB as u64);
    let server = Server::start(&origin, dir.path()).await;
    let mut body = server.get(&server.blob_url(&digest)).await.bytes_stream();
    soon(body.next()).await.unwrap().unwrap();
    drop(body);
    gate.open();
    origin
        .wait_for("the whole blob", |calls| calls.iter().any(|c| c.complete))
        .await;
    let (status, bytes) = soon(server.fetch(&server.blob_url(&digest))).await;
    assert_eq!((status, BlobDigest::of(&bytes.unwrap())), (200, digest));
    assert_eq!(origin.gets(&digest).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_a_broken_answer_and_leave_nothing_behind() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    for (size, at) in [(3 * MIB, 5), (3 * MIB, 3 * MIB - 1), (1000, 999)] {
        let digest = origin.add_blob(REPOSITORY, noise(size, size as u64 + at as u64));
        origin.once(Target::Digest(digest), Fault::WrongByte { at: at as u64 });
        let server = Server::start(&origin, dir.path()).await;
        let (status, body) = soon(server.fetch(&server.blob_url(&digest))).await;
        match size {
            // Nothing of it goes out before the verdict, so there is one before the head, and containerd's next host is asked.
            1000 => assert_eq!(status, 502),
            _ => assert!(is_cut(status, &body), "the answer is not complete"),
        }
        assert!(server.app.originals.get(&digest).unwrap().is_none());
        assert!(!server.app.originals.partial_path(&digest, UPSTREAM).exists());
        assert!(
            server
                .app
                .metrics
                .render()
                .contains("headstart_corruption_total{what=\"upstream_blob\"} 1")
        );

        let (status, bytes) = soon(server.fetch(&server.blob_url(&digest))).await;
        assert_eq!((status, BlobDigest::of(&bytes.unwrap())), (200, digest));
        server.stop().await;
    }
}

/// A range is never longer than what is fetched for it: of a blob of one unit, that is the blob.
#[tokio::test(flavor = "multi_thread")]
async fn a_range_in_the_middle_of_a_small_wrong_blob_is_not_completed_either() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let digest = origin.add_blob(REPOSITORY, noise(MIB, 3));
    origin.once(Target::Digest(digest), Fault::WrongByte { at: 100 });
    let server = Server::start(&origin, dir.path()).await;
    let request = server
        .http
        .get(server.blob_url(&digest))
        .header("range", "bytes=50-500000");
    let (status, _, body) = soon(answer(request)).await;
    assert!(is_cut(status, &body));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_breaks_off_is_resumed_where_it_was() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let content = noise(4 * MIB, 4);
    let digest = origin.add_blob(REPOSITORY, content.clone());
    origin.once(Target::Digest(digest), Fault::Truncate { after: MIB as u64 });
    origin.once(Target::Digest(digest), Fault::Reset { after: 2 * MIB as u64 });
    let server = Server::start(&origin, dir.path()).await;
    let (status, bytes) = soon(server.fetch(&server.blob_url(&digest))).await;
    assert_eq!(status, 200);
    assert!(bytes.unwrap() == content);
    let ranges: Vec<_> = origin.gets(&digest).into_iter().map(|c| c.range).collect();
    assert_eq!(ranges[0], None);
    assert!(ranges[1..].iter().all(Option::is_some), "{ranges:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_ignores_ranges_is_read_again_up_to_where_we_were() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let content = noise(2 * MIB, 5);
    let digest = origin.add_blob(REPOSITORY, content.clone());
    origin.once(Target::Digest(digest), Fault::Truncate { after: MIB as u64 });
    origin.always(Target::Digest(digest), Fault::IgnoreRange);
    let server = Server::start(&origin, dir.path()).await;
    let (status, bytes) = soon(server.fetch(&server.blob_url(&digest))).await;
    assert_eq!(status, 200);
    assert!(bytes.unwrap() == content);
    assert_eq!(origin.gets(&digest).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_in_the_middle_resumes_after_its_restart() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let content = noise(4 * MIB, 6);
    let digest = origin.add_blob(REPOSITORY, content.clone());
    let gate = origin.hold(Target::Digest(digest), 2 * MIB as u64);
    let server = Server::start(&origin, dir.path()).await;
    let mut body = server.get(&server.blob_url(&digest)).await.bytes_stream();
    let mut seen = 0;
    while seen < MIB {
        seen += soon(body.next()).await.unwrap().unwrap().len();
    }
    soon(server.stop()).await;
    origin.clear_faults();
    gate.open();
    let kept = headstart_server::store::originals::Originals::open(dir.path())
        .unwrap()
        .partial(&digest, UPSTREAM)
        .unwrap()
        .prefix();
    assert!(kept >= MIB as u64);
    origin.clear_calls();

    let server = Server::start(&origin, dir.path()).await;
    let (status, bytes) = soon(server.fetch(&server.blob_url(&digest))).await;
    assert_eq!(status, 200);
    assert!(bytes.unwrap() == content);
    assert_eq!(origin.bytes_sent(&digest), 4 * MIB as u64 - kept);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partial_that_is_wrong_costs_one_try() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let content = noise(MIB + MIB / 2, 7);
    let digest = origin.add_blob(REPOSITORY, content.clone());
    let server = Server::start(&origin, dir.path()).await;
    let left = |digest: &BlobDigest, bytes: &[u8], units: std::ops::Range<u64>| {
        let mut partial = server.app.originals.partial(digest, UPSTREAM).unwrap();
        partial.set_size(3 * MIB as u64 / 2).unwrap();
        partial.write_at(bytes, 0).unwrap();
        units.for_each(|unit| partial.mark(unit).unwrap());
    };
    left(&digest, &noise(MIB, 8), 0..1);
    let (status, body) = soon(server.fetch(&server.blob_url(&digest))).await;
    assert!(is_cut(status, &body));
    let (_, body) = soon(server.fetch(&server.blob_url(&digest))).await;
    assert!(body.unwrap() == content);
    // A whole one that was not renamed yet needs no byte of the upstream.
    let other = noise(MIB + MIB / 2, 9);
    let digest = origin.add_blob(REPOSITORY, other.clone());
    left(&digest, &other, 0..2);
    let (_, body) = soon(server.fetch(&server.blob_url(&digest))).await;
    assert!(body.unwrap() == other);
    assert_eq!(origin.bytes_sent(&digest), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_that_the_upstream_does_not_tell_and_redirects_work() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let server = Server::start(&origin, dir.path()).await;
    let content = noise(MIB, 10);
    let digest = origin.add_blob(REPOSITORY, content.clone());
    origin.once(Target::Digest(digest), Fault::NoLength);
    let (_, body) = soon(server.fetch(&server.blob_url(&digest))).await;
    assert!(body.unwrap() == content);

    origin.redirect_blobs(true);
    let content = noise(MIB, 11);
    let digest = origin.add_blob(REPOSITORY, content.clone());
    let (_, body) = soon(server.fetch(&server.blob_url(&digest))).await;
    assert!(body.unwrap() == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_of_one_repository_is_not_given_to_another() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let mut config = config(&origin, dir.path());
    // The other repository's "no" is believed for a moment, as any.
    config.fetch.negative_ttl_ms = 0;
    let server = Server::with(config).await;
    let digest = origin.add_blob("team/secret", noise(1000, 12));
    origin.add_blob(REPOSITORY, noise(10, 13));
    let secret = server.url(&format!("team/secret/blobs/{digest}"));
    assert_eq!(soon(server.fetch(&secret)).await.0, 200);
    assert_eq!(
        soon(server.error(&server.blob_url(&digest))).await,
        (404, "BLOB_UNKNOWN".into())
    );
    let head = server.http.head(server.blob_url(&digest)).send().await.unwrap();
    assert_eq!(head.status(), 404);
    // Once the other repository has it too, one HEAD is enough.
    origin.add_blob(REPOSITORY, noise(1000, 12));
    origin.clear_calls();
    assert_eq!(soon(server.fetch(&server.blob_url(&digest))).await.0, 200);
    assert_eq!(
        origin.calls().iter().map(|c| c.method.as_str()).collect::<Vec<_>>(),
        ["HEAD"]
    );
    assert_eq!(soon(server.fetch(&server.blob_url(&digest))).await.0, 200);
    assert_eq!(origin.calls().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_blob_does_not_wait_for_conversions() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let layers = [noise(2 * MIB, 30), noise(2 * MIB, 31)];
    let [stuck, other] = layers.clone().map(|bytes| origin.add_blob(REPOSITORY, bytes));
    let config = origin.add_blob(REPOSITORY, "{}");
    let layer = |digest: &BlobDigest| {
        serde_json::json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": digest.to_string(),
            "size": 2 * MIB,
        })
    };
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config.to_string(),
            "size": 2,
        },
        "layers": [layer(&stuck), layer(&other)],
    });
    origin.add_manifest(REPOSITORY, Some("tag"), media_type, manifest.to_string());
    let gate = origin.hold(Target::Digest(stuck), 100_000);
    let mut config = support::config(&origin, dir.path());
    config.ingest.workers = 1;
    let server = Server::with(config).await;
    assert_eq!(soon(server.fetch(&server.manifest_url("tag"))).await.0, 200);
    // The one worker reads the first layer, for as long as the gate is closed.
    origin
        .wait_for("the conversion", |calls| calls.iter().any(|c| c.digest == Some(stuck)))
        .await;
    let (status, bytes) = soon(server.fetch(&server.blob_url(&other))).await;
    assert_eq!(status, 200);
    assert!(bytes.unwrap() == layers[1]);
    // Nor do those who ask for the very layer.
    let mut body = soon(server.get(&server.blob_url(&stuck))).await.bytes_stream();
    let first = soon(body.next()).await.unwrap().unwrap();
    assert!(layers[0].starts_with(&first));
    gate.open();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_turn_in_vain_is_told_to_come_back() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let [held, content] = [noise(2 * MIB, 32), noise(2 * MIB, 33)];
    let (busy, waits) = (
        origin.add_blob(REPOSITORY, held),
        origin.add_blob(REPOSITORY, content.clone()),
    );
    let gate = origin.hold(Target::Digest(busy), 100_000);
    let mut config = support::config(&origin, dir.path());
    config.fetch.blobs_max = 1;
    config.fetch.turn_wait_ms = 300;
    let server = Server::with(config).await;
    let first = soon(server.get(&server.blob_url(&busy))).await;
    let refused = soon(server.get(&server.blob_url(&waits))).await;
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    gate.open();
    soon(first.bytes()).await.unwrap();
    let mut answer = soon(server.fetch(&server.blob_url(&waits))).await;
    // The first gives its turn back when it is on disk.
    while answer.0 == 429 {
        answer = soon(server.fetch(&server.blob_url(&waits))).await;
    }
    assert!(answer.1.unwrap() == content);
}

/// A fetch goes on when its client has left. Who asks for much and leaves keeps nobody else out.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_for_much_and_leaves_does_not_keep_others_out() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let content = noise(5000, 39);
    let small = origin.add_blob(REPOSITORY, content.clone());
    let mut config = support::config(&origin, dir.path());
    config.fetch.blobs_max = 4;
    let server = Server::with(config).await;
    let other = reqwest::Client::builder()
        .local_address(std::net::IpAddr::from([127, 0, 0, 2]))
        .build()
        .unwrap();
    let mut gates = Vec::new();
    for seed in 34..39 {
        let digest = origin.add_blob(REPOSITORY, noise(2 * MIB, seed));
        gates.push(origin.hold(Target::Digest(digest), 100_000));
        let asked = other
            .get(server.blob_url(&digest))
            .timeout(Duration::from_millis(500))
            .send();
        if let Ok(mut answer) = asked.await {
            let _ = answer.chunk().await;
        }
    }
    // For the last two there was no place: they wait for the client's own.
    let (status, body) = soon(server.fetch(&server.blob_url(&small))).await;
    assert_eq!(status, 200);
    assert!(body.unwrap() == content);
    gates.iter().for_each(|gate| gate.open());
}

/// There is no end of an empty body that could be withheld.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_answer_is_not_a_blob_that_has_bytes() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let server = Server::start(&origin, dir.path()).await;
    for (name, fault) in [("with a length", None), ("without one", Some(Fault::NoLength))] {
        let digest = BlobDigest::of(name.as_bytes());
        origin.add_blob_as(REPOSITORY, digest, "");
        if let Some(fault) = fault {
            origin.always(Target::Digest(digest), fault);
        }
        let url = server.blob_url(&digest);
        assert_eq!(soon(server.fetch(&url)).await.0, 502, "{name}");
        assert_ne!(
            soon(server.http.head(&url).send()).await.unwrap().status(),
            200,
            "{name}"
        );
        let open_ended = server.http.get(&url).header("range", "bytes=0-");
        assert!(!soon(open_ended.send()).await.unwrap().status().is_success(), "{name}");
        assert!(server.app.originals.get(&digest).unwrap().is_none());
    }
    let empty = origin.add_blob(REPOSITORY, "");
    for _ in 0..2 {
        let (status, body) = soon(server.fetch(&server.blob_url(&empty))).await;
        assert!(status == 200 && body.unwrap().is_empty());
    }
}

/// HTTP/2 has its own way to end a body.
#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_a_broken_answer_over_http_2_too() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let server = Server::start(&origin, dir.path()).await;
    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge();
    let client = client.build().unwrap();
    for range in [None, Some("bytes=0-"), Some("bytes=1-2000000,2000002-")] {
        let content = noise(3 * MIB, 40 + range.map_or(0, str::len) as u64);
        let digest = origin.add_blob(REPOSITORY, content.clone());
        origin.once(Target::Digest(digest), Fault::WrongByte { at: 7 });
        let ask = || {
            let request = client.get(server.blob_url(&digest));
            match range {
                Some(range) => request.header("range", range),
                None => request,
            }
        };
        let (status, _, body) = soon(answer(ask())).await;
        assert!(is_cut(status, &body), "{range:?} is complete");
        let right = soon(ask().send()).await.unwrap();
        assert_eq!(right.version(), http::Version::HTTP_2);
        let body = soon(right.bytes()).await.unwrap();
        assert!(body.windows(100).any(|w| w == &content[3 * MIB - 100..]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_drips_or_is_too_large_is_not_waited_for() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let mut config = support::config(&origin, dir.path());
    config.fetch.min_rate_bytes_per_sec = MIB as u64;
    config.fetch.min_rate_window_ms = 200;
    config.fetch.blob_size_max = 2 * MIB as u64;
    let server = Server::with(config).await;
    let content = noise(2 * MIB, 50);
    let digest = origin.add_blob(REPOSITORY, content.clone());
    // It would take half an hour, and never be idle.
    origin.once(Target::Digest(digest), Fault::Throttle { bytes_per_sec: 1000 });
    assert!(soon(server.fetch(&server.blob_url(&digest))).await.1.unwrap() == content);
    assert_eq!(origin.gets(&digest).len(), 2);

    let large = origin.add_blob(REPOSITORY, noise(2 * MIB + 1, 51));
    for range in ["", "bytes=5-6"] {
        let request = server.http.get(server.blob_url(&large));
        let request = match range {
            "" => request,
            range => request.header("range", range),
        };
        assert_eq!(soon(request.send()).await.unwrap().status(), 502, "{range}");
    }
    assert!(!server.app.originals.partial_path(&large, UPSTREAM).exists());
}

/// Nobody holds the fetch back for those who read it: not one that stands still, nor a hundred that leave.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stands_still_holds_nobody_up() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let content = noise(24 * MIB, 52);
    let digest = origin.add_blob(REPOSITORY, content.clone());
    let gate = origin.hold(Target::Digest(digest), 100_000);
    let server = Server::start(&origin, dir.path()).await;
    let still = soon(server.get(&server.blob_url(&digest))).await;
    let url = server.blob_url(&digest);
    let leaving = join_all((0..100).map(|_| server.get(&url)));
    drop(soon(leaving).await);
    gate.open();
    assert!(soon(server.fetch(&server.blob_url(&digest))).await.1.unwrap() == content);
    assert!(soon(still.bytes()).await.unwrap() == content);
    assert_eq!(origin.bytes_sent(&digest), content.len() as u64);
}

/// The kill came between the last byte and the name. Nobody may ever ask again, so it is not left to those who do.
#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_lacked_only_its_name_when_the_process_was_killed_gets_it_or_goes() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let content = noise(MIB + 5, 60);
    let (digest, lie, part) = (
        BlobDigest::of(&content),
        BlobDigest::of(b"lie"),
        BlobDigest::of(b"part"),
    );
    let left = headstart_server::store::originals::Originals::open(dir.path()).unwrap();
    for (digest, units) in [(&digest, 0..2), (&lie, 0..2), (&part, 1..2)] {
        let mut partial = left.partial(digest, UPSTREAM).unwrap();
        partial.set_size(content.len() as u64).unwrap();
        partial.write_at(&content, 0).unwrap();
        units.for_each(|unit| partial.mark(unit).unwrap());
    }
    let server = Server::start(&origin, dir.path()).await;
    let originals = &server.app.originals;
    let is_there = |digest: &BlobDigest| {
        let partial = originals.partial_path(digest, UPSTREAM);
        (
            originals.path(digest).exists(),
            partial.exists() || partial.with_extension("map").exists(),
        )
    };
    soon(async {
        while is_there(&digest) != (true, false) || is_there(&lie) != (false, false) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(is_there(&part), (false, true), "this is resumed when somebody asks");
    assert!(origin.calls().is_empty());
    // That it is here is no leave to read it.
    assert_eq!(soon(server.fetch(&server.blob_url(&digest))).await.0, 404);
    origin.add_blob(REPOSITORY, content.clone());
    let mut again = soon(server.fetch(&server.blob_url(&digest))).await;
    while again.0 == 404 {
        // What was said a moment ago is believed for a moment.
        tokio::time::sleep(Duration::from_millis(200)).await;
        again = soon(server.fetch(&server.blob_url(&digest))).await;
    }
    assert!(again.1.unwrap() == content);
    assert!(origin.gets(&digest).is_empty());
}
