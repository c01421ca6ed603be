//! Mode `upstream`: rights are proven there, remembered for a while, and counted at the origin.

use std::time::Duration;

use headstart_loadtest::{
    corpus::SyntheticImage,
    origin::{Auth, Call, Fault, Origin, Target, User, basic_header},
};
use headstart_server::config::{AccessMethod, AccessMode, Config};

use crate::support::{Server, config, error_of};

const PRIVATE: &str = "alice/app";
const SHARED: &str = "team/shared";
const PUBLIC: &str = "open/app";

fn users() -> [User; 2] {
    [
        User::new("alice", "alice's", &[PRIVATE, SHARED]),
        User::new("bob", "bob's", &[SHARED]),
    ]
}

fn three_repositories(bearer: bool) -> (Origin, SyntheticImage) {
    let origin = Origin::start(Auth::users(bearer, &users(), &[PUBLIC]));
    let image = SyntheticImage::tiny(81);
    for repository in [PRIVATE, SHARED, PUBLIC] {
        image.push(&origin, repository, "latest");
    }
    (origin, image)
}

fn asking(origin: &Origin, dir: &std::path::Path) -> Config {
    let mut config = config(origin, dir);
    config.access.mode = AccessMode::Upstream;
    config
}

fn calls_of(origin: &Origin, repository: &str, which: impl Fn(&Call) -> bool) -> usize {
    let path = format!("/v2/{repository}/");
    origin
        .calls()
        .iter()
        .filter(|c| c.path.starts_with(&path) && which(c))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_client_has_its_own_rights_and_decisions_are_remembered() {
    for bearer in [false, true] {
        let (origin, image) = three_repositories(bearer);
        let dir = tempfile::tempdir().unwrap();
        let server = Server::with(asking(&origin, dir.path())).await;
        let clients = [
            (server.anybody(), [401, 401, 200]),
            (server.client(basic_header("alice", "alice's")), [200, 200, 200]),
            (server.client(basic_header("bob", "bob's")), [401, 200, 200]),
            (server.client(basic_header("bob", "wrong")), [401, 401, 200]),
        ];
        let layer = image.layers[0].digest;
        for (client, wants) in &clients {
            for (repository, want) in [PRIVATE, SHARED, PUBLIC].iter().zip(wants) {
                for path in [format!("manifests/{}", image.manifest_digest), format!("blobs/{layer}")] {
                    let answer = client.get(&server.url(&format!("{repository}/{path}"))).await;
                    assert_eq!(answer.status(), *want, "{repository} {path} {:?}", client.authorization);
                    assert_eq!(answer.headers().contains_key("www-authenticate"), *want == 401);
                    answer.bytes().await.unwrap();
                }
            }
        }
        // Warm: nobody is asked about anything for as long as the decisions are good, also not about what is refused.
        origin.clear_calls();
        for _ in 0..3 {
            for (client, wants) in &clients {
                for (repository, want) in [PRIVATE, SHARED, PUBLIC].iter().zip(wants) {
                    let url = server.url(&format!("{repository}/blobs/{layer}"));
                    assert_eq!(client.status(&url).await, *want, "{repository}");
                }
            }
        }
        assert!(origin.calls().is_empty(), "{:?}", origin.calls());
        server.stop().await;
    }
}

/// A hundred clients at once are one question.
#[tokio::test(flavor = "multi_thread")]
async fn questions_are_shared() {
    let (origin, image) = three_repositories(true);
    let dir = tempfile::tempdir().unwrap();
    let server = Server::with(asking(&origin, dir.path())).await;
    let url = server.url(&format!("{PUBLIC}/blobs/{}", image.layers[0].digest));
    let anybody = server.anybody();
    let all = futures_util::future::join_all((0..100).map(|_| anybody.status(&url))).await;
    assert!(all.iter().all(|s| *s == 200));
    let is_head = |c: &Call| c.method == "HEAD" && c.status == 200;
    // One for the right; the fetch itself may ask one more.
    assert!(calls_of(&origin, PUBLIC, is_head) <= 2, "{:?}", origin.calls());
    server.stop().await;
}

/// Where there is room for one decision, the upstream is asked again about whoever has none; nobody loses or gains a
/// right.
#[tokio::test(flavor = "multi_thread")]
async fn decisions_without_room_are_asked_for_again() {
    let (origin, image) = three_repositories(false);
    let dir = tempfile::tempdir().unwrap();
    let mut config = asking(&origin, dir.path());
    config.access.decisions_max = 1;
    let server = Server::with(config).await;
    let url = server.url(&format!("{SHARED}/blobs/{}", image.layers[0].digest));
    let shown = ["alice", "bob"].map(|name| basic_header(name, &format!("{name}'s")));
    let clients = [&shown[0], &shown[1]].map(|shown| server.client(shown.as_str()));
    let stranger = server.client(basic_header("bob", "wrong"));
    for client in &clients {
        assert_eq!(client.status(&url).await, 200);
    }
    // The blob is here: from now on the upstream is asked about rights only.
    origin.clear_calls();
    for _ in 0..60 {
        for client in &clients {
            assert_eq!(client.status(&url).await, 200);
            assert_eq!(stranger.status(&url).await, 401);
        }
        let asked = |shown: &String| calls_of(&origin, SHARED, |call| call.authorization.as_ref() == Some(shown));
        if shown.iter().all(|shown| asked(shown) > 1) {
            return server.stop().await;
        }
        // What is over the bound goes now and then, and not at once.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("decisions are kept for which there is no room: {:?}", origin.calls());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_revoked_ends_with_its_time_to_live() {
    let (origin, image) = three_repositories(false);
    let dir = tempfile::tempdir().unwrap();
    let mut config = asking(&origin, dir.path());
    config.access.ttl_ms = 1_500;
    config.access.public_ttl_ms = 1_500;
    config.access.refused_ttl_ms = 100;
    config.access.stale_grace_ms = 60_000;
    let server = Server::with(config).await;
    let blob = |repository: &str| server.url(&format!("{repository}/blobs/{}", image.layers[0].digest));
    let (alice, anybody) = (server.client(basic_header("alice", "alice's")), server.anybody());
    assert_eq!(alice.status(&blob(PRIVATE)).await, 200);
    assert_eq!(anybody.status(&blob(PUBLIC)).await, 200);

    // Alice loses her repository, and the public one is public no more. A grace is for outages, not for a no.
    origin.set_auth(Auth::users(false, &[User::new("alice", "alice's", &[])], &[]));
    tokio::time::sleep(Duration::from_millis(1_600)).await;
    assert_eq!(alice.status(&blob(PRIVATE)).await, 401);
    assert_eq!(anybody.status(&blob(PUBLIC)).await, 401);

    // And gets it back.
    origin.set_auth(Auth::users(false, &users(), &[PUBLIC]));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(alice.status(&blob(PRIVATE)).await, 200);
    assert_eq!(anybody.status(&blob(PUBLIC)).await, 200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_outlived_by_the_grace_alone() {
    for (grace_ms, want) in [(0, 502), (60_000, 200)] {
        let (origin, image) = three_repositories(false);
        let dir = tempfile::tempdir().unwrap();
        let mut config = asking(&origin, dir.path());
        config.access.ttl_ms = 1;
        config.access.public_ttl_ms = 1;
        config.access.refused_ttl_ms = 60_000;
        config.access.stale_grace_ms = grace_ms;
        let server = Server::with(config).await;
        let url = server.url(&format!("{PRIVATE}/blobs/{}", image.layers[0].digest));
        let (alice, bob) = (
            server.client(basic_header("alice", "alice's")),
            server.client(basic_header("bob", "bob's")),
        );
        assert_eq!(alice.status(&url).await, 200);
        origin.stop();
        let got = alice.status(&url).await;
        assert!(got == want || (want == 502 && got == 503), "{grace_ms}: {got}");
        // Nobody gains a right by an outage.
        assert_ne!(bob.status(&url).await, 200);
        server.stop().await;
    }
}

/// What is not there is 404 for whoever may look, and not a challenge.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_challenges_nobody() {
    let (origin, _) = three_repositories(true);
    let dir = tempfile::tempdir().unwrap();
    let server = Server::with(asking(&origin, dir.path())).await;
    let answer = server
        .anybody()
        .get(&server.url(&format!("{PUBLIC}/manifests/nope")))
        .await;
    assert!(!answer.headers().contains_key("www-authenticate"));
    assert_eq!(error_of(answer).await, (404, "MANIFEST_UNKNOWN".to_owned()));
    // Nor does who asks again and again keep the upstream busy.
    let asked = origin.calls().len();
    for _ in 0..5 {
        let url = server.url(&format!("{PUBLIC}/manifests/nope"));
        assert_eq!(server.anybody().status(&url).await, 404);
    }
    assert_eq!(origin.calls().len(), asked);
    let answer = server.anybody().get(&format!("http://{}/v2/", server.address)).await;
    assert_eq!(answer.status(), 200);
    server.stop().await;
}

/// A client's own bearer token goes to its upstream as it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_clients_own_token_is_shown_to_its_upstream() {
    let (origin, image) = three_repositories(true);
    let scope = format!("repository%3A{}%3Apull", PRIVATE.replace('/', "%2F"));
    let token = reqwest::Client::builder().no_proxy().build().unwrap();
    let token = token.get(format!("{}/token?service=origin.test&scope={scope}", origin.url()));
    let token: serde_json::Value = token
        .basic_auth("alice", Some("alice's"))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let token = token["token"].as_str().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let server = Server::with(asking(&origin, dir.path())).await;
    let url = |repository: &str| server.url(&format!("{repository}/blobs/{}", image.layers[0].digest));
    let alice = server.client(format!("Bearer {token}"));
    assert_eq!(alice.status(&url(PRIVATE)).await, 200);
    assert_eq!(alice.status(&url(SHARED)).await, 401, "the token is for one repository");
    server.stop().await;
}

/// What is meant for this server goes to no upstream: a token that was replaced, and a good one under a wrong name.
#[tokio::test(flavor = "multi_thread")]
async fn our_own_tokens_are_shown_to_no_upstream() {
    use sha2::{Digest as _, Sha256};
    let (origin, image) = three_repositories(false);
    let dir = tempfile::tempdir().unwrap();
    let mut config = asking(&origin, &dir.path().join("data"));
    let hash = headstart_layer_format::digest::hex(&Sha256::digest("new-token"));
    std::fs::write(dir.path().join("tokens"), format!("node-1:{hash}\n")).unwrap();
    config.access.methods = vec![AccessMethod::Token];
    config.access.token_file = Some(dir.path().join("tokens"));
    let server = Server::with(config).await;
    let url = server.url(&format!("{PRIVATE}/blobs/{}", image.layers[0].digest));
    for (user, password) in [("node-1", "old-token"), ("somebody", "new-token")] {
        assert_eq!(
            server.client(basic_header(user, password)).status(&url).await,
            401,
            "{user}"
        );
        let shown: Vec<_> = origin.calls().into_iter().filter_map(|c| c.authorization).collect();
        assert!(shown.is_empty(), "{shown:?}");
    }
    // Others' credentials are for the upstream to judge.
    assert_eq!(server.client(basic_header("alice", "alice's")).status(&url).await, 200);
    server.stop().await;
}

/// Where a redirect may lead: what the path says is answered. Its URL, and how often it was asked what.
async fn elsewhere() -> (String, std::sync::Arc<std::sync::Mutex<Vec<String>>>) {
    use axum::http::{HeaderMap, Method, StatusCode, Uri};
    let asked = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let answer = {
        let asked = asked.clone();
        move |method: Method, uri: Uri, request: HeaderMap| {
            asked.lock().unwrap().push(format!("{method} {}", uri.path()));
            let ranged = method == Method::GET && request.contains_key("range");
            let (status, kind, body): (u16, &str, &str) = match uri.path() {
                "/page" => (200, "text/html; charset=utf-8", "<form>user, password</form>"),
                "/part-of-a-page" if ranged => (206, "text/html", "<"),
                "/part-of-a-page" => (200, "text/html", "<form>"),
                "/json" => (200, "application/json", "{\"error\":\"login_required\"}"),
                "/nameless" => (200, "", "log in"),
                "/signed" | "/rangeless" if method == Method::HEAD => (403, "application/xml", ""),
                "/signed" if ranged => (206, "application/octet-stream", "x"),
                "/rangeless" => (200, "binary/octet-stream", "xxxxxxxxxx"),
                status => (status[1..].parse().unwrap(), "application/json", "{}"),
            };
            let mut head = HeaderMap::new();
            if !kind.is_empty() {
                head.insert("content-type", kind.parse().unwrap());
            }
            if status == 206 {
                head.insert("content-range", "bytes 0-0/10".parse().unwrap());
            }
            let body = axum::body::Body::from(body);
            async move { (StatusCode::from_u16(status).unwrap(), head, body) }
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = axum::Router::new().fallback(answer);
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, asked)
}

/// A gateway sends whoever shows nothing to its login: that is no yes, whatever the login says to a question of ours. What
/// is here of a private repository stays there.
#[tokio::test(flavor = "multi_thread")]
async fn being_led_to_a_login_is_no_right() {
    let (origin, image) = three_repositories(false);
    let dir = tempfile::tempdir().unwrap();
    let mut config = asking(&origin, dir.path());
    config.access.ttl_ms = 600_000;
    config.access.public_ttl_ms = 600_000;
    config.access.refused_ttl_ms = 1;
    let server = Server::with(config).await;
    let alice = server.client(basic_header("alice", "alice's"));
    let urls = [
        server.url(&format!("{PRIVATE}/blobs/{}", image.layers[0].digest)),
        server.url(&format!("{PRIVATE}/manifests/{}", image.manifest_digest)),
        server.url(&format!("{PRIVATE}/tags/list")),
    ];
    for url in &urls {
        assert_eq!(alice.status(url).await, 200);
    }
    let (login, _) = elsewhere().await;
    origin.set_auth(Auth::Anonymous);
    let made_up = server.url(&format!(
        "{PRIVATE}/blobs/{}",
        headstart_layer_format::BlobDigest::of(b"?")
    ));
    for way in [
        "page",
        "part-of-a-page",
        "json",
        "nameless",
        "401",
        "403",
        "404",
        "405",
        "410",
        "500",
    ] {
        origin.clear_faults();
        let location = format!("{login}/{way}");
        origin.always(Target::Path(PRIVATE.to_owned()), Fault::Redirect { location });
        for url in urls.iter().chain([&made_up]) {
            let status = server.anybody().status(url).await;
            assert_ne!(status, 200, "{way} {url}");
            if way.ends_with("page") {
                assert_eq!(status, 401, "credentials may help: {way} {url}");
            }
        }
        // Whose right was proven keeps it, and it was never anybody's.
        assert_eq!(alice.status(&urls[0]).await, 200, "{way}");
    }
    server.stop().await;
}

/// Registries lead to stores with links that are signed for GET alone, and some of those know no ranges.
#[tokio::test(flavor = "multi_thread")]
async fn being_led_to_a_store_that_gives_the_blob_is_one() {
    let (origin, image) = three_repositories(false);
    let dir = tempfile::tempdir().unwrap();
    let mut config = asking(&origin, dir.path());
    config.access.public_ttl_ms = 1;
    config.access.refused_ttl_ms = 1;
    let server = Server::with(config).await;
    let url = server.url(&format!("{PUBLIC}/blobs/{}", image.layers[0].digest));
    assert_eq!(server.anybody().status(&url).await, 200);
    let (store, asked) = elsewhere().await;
    for way in ["signed", "rangeless"] {
        origin.clear_faults();
        let location = format!("{store}/{way}");
        origin.always(Target::Path(PUBLIC.to_owned()), Fault::Redirect { location });
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(server.anybody().status(&url).await, 200, "{way}");
        assert!(asked.lock().unwrap().contains(&format!("GET /{way}")), "{asked:?}");
    }
    // And the origin's own store.
    origin.clear_faults();
    origin.redirect_blobs(true);
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(server.anybody().status(&url).await, 200);
    server.stop().await;
}
