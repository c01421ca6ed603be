//! The limits of the listening side, as clients meet them: turns, heads, and the end.
//!
//! In: a server with small limits. Out: who is refused and how, and that everybody else is served.
//! Not here: slow peers (`attacks/slowloris.rs`), HTTP/2 (`attacks/http2_floods.rs`), limits towards upstreams.

mod support;

use std::time::{Duration, Instant};

use headstart_layer_format::BlobDigest;
use headstart_loadtest::origin::{Auth, Gate, Origin, Target};
use headstart_server::config::HttpConfig;
use serde_json::json;
use support::{REPOSITORY, Server, UPSTREAM, config, error_of, noise};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Bytes of an answer that nobody reads: more than both sockets' buffers take (32 MiB and 4 on newer kernels).
const UNREAD: usize = 64 << 20;
/// Far more than any time below.
const NEVER: Duration = Duration::from_secs(30);

struct Setup {
    origin: Origin,
    server: Server,
    _dir: tempfile::TempDir,
}

async fn setup(change: impl FnOnce(&mut HttpConfig)) -> Setup {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let mut config = config(&origin, dir.path());
    change(&mut config.http);
    let server = Server::with(config).await;
    Setup {
        origin,
        server,
        _dir: dir,
    }
}

impl Setup {
    fn manifest(&self, seed: u32) -> BlobDigest {
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "seed": seed });
        self.origin.add_manifest(REPOSITORY, None, OCI_INDEX, index.to_string())
    }

    /// A request for a manifest that waits for the upstream, and has its turn.
    async fn waiting(&self, client: &str) -> (tokio::task::JoinHandle<u16>, Gate) {
        let digest = self.manifest(1);
        let gate = self.origin.hold(Target::Digest(digest), 0);
        let request = self.as_client(client, &self.server.manifest_url(digest));
        let answer = tokio::spawn(async move { request.send().await.unwrap().status().as_u16() });
        let deadline = Instant::now() + NEVER;
        while !self.origin.calls().iter().any(|c| c.path.contains(&digest.to_string())) {
            assert!(Instant::now() < deadline, "it does not come to the upstream");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (answer, gate)
    }

    /// A request through a trusted proxy.
    fn as_client(&self, client: &str, url: &str) -> reqwest::RequestBuilder {
        self.server.http.get(url).header("x-forwarded-for", client)
    }

    fn shed(&self, reason: &str) -> u64 {
        let text = self.server.app.metrics.render();
        let name = format!("headstart_shed_total{{reason=\"{reason}\"}} ");
        let line = text.lines().find_map(|l| l.strip_prefix(name.as_str()));
        line.map_or(0, |n| n.parse().unwrap())
    }
}

/// Status, code, and when to come back.
async fn refused(response: reqwest::Response) -> (u16, String, String) {
    assert_eq!(response.headers()["docker-distribution-api-version"], "registry/2.0");
    assert_eq!(response.headers()["oci-namespace"], support::UPSTREAM);
    let again = response.headers()["retry-after"].to_str().unwrap().to_owned();
    let (status, code) = error_of(response).await;
    (status, code, again)
}

/// A manifest is refused so that every client turns to its next mirror, a blob so that every client comes back here.
#[tokio::test(flavor = "multi_thread")]
async fn who_finds_no_turn_is_told_what_helps() {
    let setup = setup(|http| {
        http.requests_max = 1;
        http.queue_max = 0;
    })
    .await;
    let server = &setup.server;
    let blob = setup.origin.add_blob(REPOSITORY, noise(1000, 1));
    let other = setup.manifest(2);
    let (answer, gate) = setup.waiting("10.0.0.1").await;
    let manifest = server.get(&server.manifest_url(other)).await;
    assert_eq!(refused(manifest).await, (503, "UNAVAILABLE".into(), "1".into()));
    let refusal = server.get(&server.blob_url(&blob)).await;
    assert_eq!(refused(refusal).await, (429, "TOOMANYREQUESTS".into(), "1".into()));
    let head = server.http.head(server.blob_url(&blob)).send().await.unwrap();
    assert_eq!(
        (head.status().as_u16(), &head.headers()["retry-after"]),
        (429, &"1".parse().unwrap())
    );
    assert_eq!(setup.shed("queue_full"), 3);
    // Who looks after the server gets through.
    for path in ["healthz", "readyz", "metrics"] {
        let url = format!("http://{}/{path}", server.address);
        assert_eq!(server.get(&url).await.status(), 200, "{path}");
    }
    gate.open();
    assert_eq!(answer.await.unwrap(), 200);
    assert_eq!(server.get(&server.manifest_url(other)).await.status(), 200);
    assert_eq!(server.get(&server.blob_url(&blob)).await.status(), 200);
}

/// One client's requests wait for that client's own answers, and no longer than they are told; others do not notice.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_too_many_requests_waits_alone() {
    let setup = setup(|http| {
        http.client_requests_max = 1;
        http.client_queue_max = 1;
        http.queue_timeout_ms = 300;
        http.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    let url = setup.server.manifest_url(setup.manifest(2));
    let (answer, gate) = setup.waiting("10.0.0.1").await;
    let second = setup.as_client("10.0.0.1", &url).send().await.unwrap();
    assert_eq!(refused(second).await, (503, "UNAVAILABLE".into(), "1".into()));
    assert_eq!(setup.shed("queue_time"), 1);
    for other in ["10.0.0.2", "10.0.0.1, 10.0.0.3"] {
        assert_eq!(
            setup.as_client(other, &url).send().await.unwrap().status(),
            200,
            "{other}"
        );
    }
    gate.open();
    assert_eq!(answer.await.unwrap(), 200);
    assert_eq!(setup.as_client("10.0.0.1", &url).send().await.unwrap().status(), 200);
}

/// One more than may be open waits until another is closed, and is served then.
#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_bound_wait() {
    let setup = setup(|http| http.connections_max = 1).await;
    let ping = format!("GET /v2/?ns={UPSTREAM} HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut first = TcpStream::connect(setup.server.address).await.unwrap();
    let mut second = TcpStream::connect(setup.server.address).await.unwrap();
    let mut answer = [0; 12];
    first.write_all(ping.as_bytes()).await.unwrap();
    timeout(NEVER, first.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    second.write_all(ping.as_bytes()).await.unwrap();
    let early = timeout(Duration::from_millis(500), second.read(&mut answer)).await;
    assert!(early.is_err(), "the first is open");
    drop(first);
    timeout(NEVER, second.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

/// All answers to one client together are no faster than its rate, a second's worth apart.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_has_its_rate_over_all_its_connections() {
    const RATE: usize = 2 << 20;
    let setup = setup(|http| http.client_bytes_per_sec = RATE as u64).await;
    let content = noise(3 << 20, 5);
    let url = setup
        .server
        .blob_url(&setup.origin.add_blob(REPOSITORY, content.clone()));
    let began = Instant::now();
    let both = [(); 2].map(|()| async {
        // A connection each.
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        http.get(&url).send().await.unwrap().bytes().await.unwrap()
    });
    for got in timeout(NEVER, futures_util::future::join_all(both)).await.unwrap() {
        assert!(got == content);
    }
    // Two seconds, less what a socket's buffer takes of the end.
    assert!(began.elapsed() > Duration::from_millis(1_500), "{:?}", began.elapsed());
}

/// What the server answers to these bytes, until it closes the connection.
async fn answer_to(server: &Server, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    // It may answer, and close, before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = timeout(NEVER, stream.read_to_end(&mut answer))
        .await
        .expect("it ends the connection");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_and_bodies_have_a_size() {
    let setup = setup(|http| {
        http.headers_max = 20;
        http.header_size_max = 16 << 10;
        http.idle_timeout_ms = 1_000;
    })
    .await;
    let server = &setup.server;
    let lines = |count: usize| (0..count).map(|i| format!("X-{i}: a\r\n")).collect::<String>();
    let get = |path: &str, lines: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
    let large = format!("X-Large: {}\r\n", "a".repeat(17 << 10));
    for (request, status) in [
        (get("/v2/", &lines(10)), "200"),
        (get("/v2/", &lines(30)), "431"),
        (get("/v2/", &large), "431"),
        (get(&format!("/v2/{}", "a".repeat(17 << 10)), ""), "4"),
        ("\0\0\0\0\r\n\r\n".into(), "400"),
    ] {
        let answer = answer_to(server, request.as_bytes()).await;
        let shown = &request[..request.len().min(40)];
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{shown:?}: {answer}");
    }
    // A body for which there is no use is not waited for. As much as a manifest has is taken all the same, and then more than
    // that is not: a client that was reset while it sent could not read why.
    for (sent, all) in [(3 << 20, true), (64 << 20, false)] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let head = format!(
            "PUT /v2/{REPOSITORY}/manifests/a?ns={UPSTREAM} HTTP/1.1\r\nHost: a\r\nContent-Length: 1099511627776\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let body = vec![b'a'; sent];
        let taken = timeout(NEVER, stream.write_all(&body)).await.expect("it ends").is_ok();
        assert_eq!(taken, all, "{sent} bytes");
        if all {
            let mut answer = Vec::new();
            let ended = timeout(NEVER, stream.read_to_end(&mut answer)).await;
            let answer = String::from_utf8_lossy(&answer).into_owned();
            assert!(ended.is_ok() && answer.starts_with("HTTP/1.1 405"), "{answer}");
        }
    }
    let post = "POST /headstart/v1/chunks HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n{";
    let answer = answer_to(server, post.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert_eq!(server.get(&server.url("")).await.status(), 200);
}

/// After SIGTERM: who asks whether it is ready is told; running answers get out; nobody new gets in.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_lets_answers_out_and_nobody_in() {
    let setup = setup(|http| {
        http.drain_delay_ms = 1_500;
        http.drain_timeout_ms = 60_000;
    })
    .await;
    let content = noise(UNREAD, 3);
    let blob = setup.origin.add_blob(REPOSITORY, content.clone());
    let address = setup.server.address;
    let url = setup.server.blob_url(&blob);
    assert_eq!(setup.server.fetch(&url).await.0, 200);
    let mut running = setup.server.get(&url).await;
    let http = setup.server.http.clone();
    let stopped = tokio::spawn(setup.server.stop());
    let ready = format!("http://{address}/readyz");
    let deadline = Instant::now() + NEVER;
    // While it says so, everything else is answered.
    while http.get(&ready).send().await.unwrap().status() != 503 {
        assert!(Instant::now() < deadline);
    }
    assert_eq!(
        http.get(format!("http://{address}/v2/")).send().await.unwrap().status(),
        200
    );
    while TcpStream::connect(address).await.is_ok() {
        assert!(Instant::now() < deadline, "it still listens");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!stopped.is_finished(), "an answer is not out");
    let mut got = Vec::new();
    while let Some(part) = running.chunk().await.unwrap() {
        got.extend_from_slice(&part);
    }
    assert!(got == content);
    timeout(NEVER, stopped).await.expect("it ends when all is out").unwrap();
}

/// A client that does not take its answer cannot keep the server from stopping.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_has_a_deadline() {
    let setup = setup(|http| http.drain_timeout_ms = 500).await;
    let blob = setup.origin.add_blob(REPOSITORY, noise(UNREAD, 4));
    let url = setup.server.blob_url(&blob);
    assert_eq!(setup.server.fetch(&url).await.0, 200);
    let held = setup.server.get(&url).await;
    assert_eq!(held.status(), 200);
    timeout(NEVER, setup.server.stop()).await.expect("it stops");
    assert!(held.bytes().await.is_err(), "no complete body out of a broken answer");
}
