//! The origin behaves as a registry, and misbehaves as told.

use std::time::Duration;

use headstart_layer_format::BlobDigest;
use headstart_loadtest::corpus::{SyntheticImage, big_blob};
use headstart_loadtest::origin::{Auth, Fault, Listener, Origin, Target, basic_header};
use reqwest::{Client, Response, StatusCode};

fn client() -> Client {
    Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap()
}

fn blob_url(origin: &Origin, digest: &BlobDigest) -> String {
    format!("{}/v2/a/b/blobs/{digest}", origin.url())
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |v| v.to_str().unwrap())
}

#[tokio::test]
async fn an_image_is_served_as_by_a_real_registry() {
    let image = SyntheticImage::tiny(1);
    let origin = Origin::with_image("a/b", "v1", &image);
    let http = client();
    let url = format!("{}/v2/a/b/manifests/v1", origin.url());
    let head = http.head(&url).send().await.unwrap();
    assert_eq!(head.status(), 200);
    assert_eq!(header(&head, "content-length"), image.manifest.len().to_string());
    assert_eq!(
        header(&head, "docker-content-digest"),
        image.manifest_digest.to_string()
    );
    assert_eq!(header(&head, "content-type"), image.manifest_media_type);
    assert_eq!(
        http.get(&url).send().await.unwrap().bytes().await.unwrap(),
        image.manifest
    );

    let layer = &image.layers[0];
    let part = http
        .get(blob_url(&origin, &layer.digest))
        .header("range", "bytes=10-19")
        .send()
        .await
        .unwrap();
    assert_eq!(part.status(), 206);
    assert_eq!(
        header(&part, "content-range"),
        format!("bytes 10-19/{}", layer.blob.len())
    );
    assert_eq!(part.bytes().await.unwrap(), layer.blob.slice(10..20));
    let past = http
        .get(blob_url(&origin, &layer.digest))
        .header("range", "bytes=99999999-")
        .send()
        .await
        .unwrap();
    assert_eq!(past.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    let gone = http.get(blob_url(&origin, &BlobDigest::of(b"?"))).send().await.unwrap();
    assert_eq!(gone.status(), 404);
    assert!(gone.text().await.unwrap().contains("BLOB_UNKNOWN"));

    let calls = origin.calls();
    assert_eq!(calls.len(), 5);
    assert_eq!((calls[0].method.as_str(), calls[0].body_sent), ("HEAD", 0));
    assert_eq!(calls[1].body_sent, image.manifest.len() as u64);
    assert_eq!(calls[2].range.as_deref(), Some("bytes=10-19"));
    assert_eq!(origin.bytes_sent(&layer.digest), 10);
}

#[tokio::test]
async fn basic_and_bearer_are_asked_for_and_recorded() {
    let image = SyntheticImage::tiny(2);
    let origin = Origin::with_image("a/b", "v1", &image);
    let http = client();
    let url = format!("{}/v2/a/b/manifests/v1", origin.url());
    origin.set_auth(Auth::basic("u", "p"));
    let refused = http.get(&url).send().await.unwrap();
    assert_eq!(refused.status(), 401);
    assert!(header(&refused, "www-authenticate").starts_with("Basic "));
    let allowed = http.get(&url).basic_auth("u", Some("p")).send().await.unwrap();
    assert_eq!(allowed.status(), 200);
    assert_eq!(origin.calls()[1].authorization, Some(basic_header("u", "p")));

    origin.set_auth(Auth::bearer());
    let refused = http.get(&url).send().await.unwrap();
    let challenge = header(&refused, "www-authenticate").to_owned();
    assert!(challenge.contains("scope=\"repository:a/b:pull\""), "{challenge}");
    let token_url = format!("{}/token?service=x&scope=repository%3Aa%2Fb%3Apull", origin.url());
    let answer = http.get(token_url).send().await.unwrap().text().await.unwrap();
    let token = serde_json::from_str::<serde_json::Value>(&answer).unwrap()["token"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(http.get(&url).bearer_auth(&token).send().await.unwrap().status(), 200);
    let other = format!("{}/v2/other/blobs/{}", origin.url(), image.config_digest);
    assert_eq!(http.get(other).bearer_auth(&token).send().await.unwrap().status(), 401);
    origin.expire_tokens();
    assert_eq!(http.get(&url).bearer_auth(&token).send().await.unwrap().status(), 401);
    assert_eq!(origin.calls().iter().filter(|c| c.is_token()).count(), 1);
}

#[tokio::test]
async fn redirects_lead_to_the_other_host() {
    let origin = Origin::start(Auth::Anonymous);
    let blob = big_blob(1, 100_000);
    let digest = origin.add_blob("a/b", blob.clone());
    origin.redirect_blobs(true);
    let http = client();
    let first = http.get(blob_url(&origin, &digest)).send().await.unwrap();
    assert_eq!(first.status(), 307);
    let location = header(&first, "location").to_owned();
    assert!(location.starts_with(&format!("http://{}/", origin.cdn_address())));
    assert_eq!(http.get(&location).send().await.unwrap().bytes().await.unwrap(), blob);
    let leaky = http.get(&location).bearer_auth("x").send().await.unwrap();
    assert_eq!(leaky.status(), 400);
    origin.expire_signatures();
    assert_eq!(http.get(&location).send().await.unwrap().status(), 403);
    let cdn: Vec<_> = origin
        .calls()
        .into_iter()
        .filter(|c| c.listener == Listener::Cdn)
        .collect();
    assert_eq!(cdn.len(), 3);
    assert_eq!(cdn[1].authorization.as_deref(), Some("Bearer x"));
}

/// Body bytes that arrived, and whether the body ended well.
async fn drain(mut response: Response) -> (Vec<u8>, bool) {
    let mut got = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(piece)) => got.extend_from_slice(&piece),
            Ok(None) => return (got, true),
            Err(_) => return (got, false),
        }
    }
}

#[tokio::test]
async fn faults_do_what_they_say_as_often_as_told() {
    let origin = Origin::start(Auth::Anonymous);
    let blob = big_blob(2, 300_000);
    let digest = origin.add_blob("a/b", blob.clone());
    let http = client();
    let get = || http.get(blob_url(&origin, &digest)).send();
    let target = || Target::Digest(digest);

    origin.times(
        2,
        target(),
        Fault::Status {
            code: 503,
            retry_after_secs: Some(7),
        },
    );
    for _ in 0..2 {
        let refused = get().await.unwrap();
        assert_eq!((refused.status().as_u16(), header(&refused, "retry-after")), (503, "7"));
    }
    assert_eq!(drain(get().await.unwrap()).await, (blob.to_vec(), true));

    origin.once(target(), Fault::Truncate { after: 100_001 });
    let cut = get().await.unwrap();
    assert_eq!(header(&cut, "content-length"), "300000");
    assert_eq!(drain(cut).await, (blob[..100_001].to_vec(), false));

    origin.once(target(), Fault::Reset { after: 70_000 });
    let (got, well) = match get().await {
        Ok(response) => drain(response).await,
        Err(_) => (Vec::new(), false),
    };
    assert!(!well && got.len() <= 70_000 && blob.starts_with(&got));

    origin.once(target(), Fault::ResetAtOnce);
    assert!(get().await.is_err());

    origin.once(target(), Fault::WrongByte { at: 12_345 });
    let (got, well) = drain(get().await.unwrap()).await;
    let wrong: Vec<usize> = (0..blob.len()).filter(|&i| got[i] != blob[i]).collect();
    assert!(well);
    assert_eq!(wrong, [12_345]);

    origin.once(target(), Fault::IgnoreRange);
    let whole = http
        .get(blob_url(&origin, &digest))
        .header("range", "bytes=5-9")
        .send()
        .await
        .unwrap();
    assert_eq!(whole.status(), 200);
    drain(whole).await;

    origin.once(target(), Fault::WrongDigestHeader);
    assert_ne!(
        header(&get().await.unwrap(), "docker-content-digest"),
        digest.to_string()
    );
    origin.once(target(), Fault::NoLength);
    let chunked = get().await.unwrap();
    assert_eq!(header(&chunked, "content-length"), "");
    assert_eq!(drain(chunked).await, (blob.to_vec(), true));
    let slow = [
        Fault::DelayHeaders(Duration::from_millis(5)),
        Fault::Throttle {
            bytes_per_sec: 3_000_000,
        },
        Fault::Stall {
            after: 1000,
            pause: Duration::from_millis(5),
        },
    ];
    for fault in slow {
        origin.once(target(), fault);
        assert_eq!(drain(get().await.unwrap()).await, (blob.to_vec(), true));
    }
    assert!(origin.calls().last().unwrap().complete);
}

#[tokio::test]
async fn a_gate_holds_the_tail_until_it_is_opened() {
    let origin = Origin::start(Auth::Anonymous);
    let blob = big_blob(3, 200_000);
    let digest = origin.add_blob("a/b", blob.clone());
    let gate = origin.hold(Target::Digest(digest), 150_000);
    let mut response = client().get(blob_url(&origin, &digest)).send().await.unwrap();
    let mut got = Vec::new();
    while got.len() < 150_000 {
        got.extend_from_slice(&response.chunk().await.unwrap().unwrap());
    }
    assert_eq!(got.len(), 150_000);
    assert_eq!(origin.bytes_sent(&digest), 150_000);
    gate.open();
    while let Some(piece) = response.chunk().await.unwrap() {
        got.extend_from_slice(&piece);
    }
    assert_eq!(got, blob);
    origin.wait_for("the whole body", |calls| calls[0].complete).await;
}

#[tokio::test]
async fn a_stopped_origin_refuses_and_comes_back_on_its_port() {
    let origin = Origin::start(Auth::Anonymous);
    let blob = big_blob(4, 1000);
    let digest = origin.add_blob("a/b", blob.clone());
    // A new client each time: none may reuse a connection.
    let get = || client().get(blob_url(&origin, &digest)).send();
    assert_eq!(get().await.unwrap().status(), 200);
    for _ in 0..2 {
        origin.stop();
        assert!(get().await.unwrap_err().is_connect());
        origin.restart();
        assert_eq!(get().await.unwrap().bytes().await.unwrap(), blob);
    }
}

#[tokio::test]
async fn a_strict_one_takes_accept_by_the_letter() {
    const LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
    const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
    let origin = Origin::start(Auth::Anonymous);
    origin.strict_accept(true);
    let child = origin.add_manifest("a/b", None, DOCKER, "{}");
    let list = serde_json::json!({ "manifests": [
        { "digest": child, "platform": { "os": "linux", "architecture": "amd64" } },
    ]});
    let list = origin.add_manifest("a/b", Some("list"), LIST, list.to_string());
    let oci = origin.add_manifest("a/b", Some("oci"), OCI, "{ }");
    let http = client();
    for (reference, accept, want) in [
        ("list".to_owned(), format!("text/x, {LIST};q=0.5"), Some(list)),
        ("list".into(), "*/*".into(), Some(child)),
        (list.to_string(), "*/*".into(), Some(list)),
        ("oci".into(), OCI.into(), Some(oci)),
        ("oci".into(), "*/*".into(), None),
        (oci.to_string(), "*/*".into(), None),
    ] {
        for method in [reqwest::Method::HEAD, reqwest::Method::GET] {
            let request = http.request(method, format!("{}/v2/a/b/manifests/{reference}", origin.url()));
            let answer = request.header("accept", &accept).send().await.unwrap();
            assert_eq!(
                answer.status().as_u16(),
                if want.is_some() { 200 } else { 404 },
                "{reference} {accept}"
            );
            let digest = want.map(|digest| digest.to_string()).unwrap_or_default();
            assert_eq!(header(&answer, "docker-content-digest"), digest, "{reference} {accept}");
        }
    }
}
