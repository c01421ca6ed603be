//! Clients that ask for what takes an upstream's time, and leave: what they have begun is bounded, and is theirs.

mod support;

use std::{net::SocketAddr, time::Duration};

use headstart_loadtest::origin::{Auth, Origin, Target};
use serde_json::json;
use support::{REPOSITORY, Server, UPSTREAM, config, until};
use tokio::{io::AsyncWriteExt as _, net::TcpSocket};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What one client has under way at once of each kind, at most.
const ONE_MAX: usize = 192;

/// Asks, by a connection of its own from an address of its own.
async fn asked(server: SocketAddr, request: String) -> tokio::net::TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut stream = socket.connect(server).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_a_silent_upstream_for_much_and_leaves_is_bounded_and_keeps_nobody_out() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] }).to_string();
    origin.add_manifest(REPOSITORY, Some("latest"), OCI_INDEX, index.clone());
    let mut config = config(&origin, dir.path());
    config.fetch.header_timeout_ms = 60_000;
    let server = Server::with(config).await;
    let mut all_gates = Vec::new();
    let digest = |n: usize| headstart_layer_format::BlobDigest::of(&n.to_le_bytes());
    for (kind, method) in [
        ("manifests/left-", "GET"),
        ("manifests/sha256:", "GET"),
        ("blobs/sha256:", "HEAD"),
    ] {
        let gate = origin.hold_heads(Target::Path(kind.into()));
        let calls = || origin.calls().iter().filter(|call| call.path.contains(kind)).count();
        for round in 0..4 {
            let mut streams = Vec::new();
            for n in 0..100 {
                let n = round * 100 + n;
                let last = match kind.ends_with(':') {
                    true => digest(n).to_string().split_off("sha256:".len()),
                    false => n.to_string(),
                };
                let path = format!("/v2/{REPOSITORY}/{kind}{last}?ns={UPSTREAM}");
                let request = format!("{method} {path} HTTP/1.1\r\nhost: h\r\n\r\n");
                streams.push(asked(server.address, request).await);
            }
            // Those for whom there is a turn have come to the upstream when their clients leave.
            let due = ((round + 1) * 100).min(ONE_MAX);
            until("they come to the upstream", || calls() >= due).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(calls(), ONE_MAX, "{kind}");
        // Nobody else waits for them.
        let (status, body) = tokio::time::timeout(Duration::from_secs(5), server.fetch(&server.manifest_url("latest")))
            .await
            .expect("it does not wait");
        assert_eq!(status, 200, "{kind}");
        assert!(body.unwrap() == index);
        all_gates.push(gate);
    }
    // Its own further requests wait, and are told to come back; of what is known it gets what that was.
    let other = reqwest::Client::builder()
        .no_proxy()
        .local_address(std::net::IpAddr::from([127, 0, 0, 2]))
        .build()
        .unwrap();
    let ask = |tag| other.get(server.manifest_url(tag)).send();
    let (known, unknown) = tokio::join!(ask("latest"), ask("other"));
    let (known, unknown) = (known.unwrap(), unknown.unwrap());
    assert_eq!(known.status(), 200);
    assert!(known.headers().contains_key("warning"));
    assert_eq!(unknown.status(), 503);
    assert!(unknown.headers().contains_key("retry-after"));
    all_gates.iter().for_each(|gate| gate.open());
    server.stop().await;
}
