//! Slowloris, and its mirror image.
//!
//! The story: a client that sends its request a byte at a time, or takes its answer a byte at a time, holds a
//! connection, a task, a file; a few thousand of them hold a server (Slowloris, 2009; for HTTP/2 with a window that is
//! never opened, CVE-2019-9517). Spegel #551 is the same from the other side: a peer that stalls.
//!
//! Here: each kind of slowness is ended by the server within its time, and meanwhile others are served.

use std::time::Duration;

use headstart_loadtest::origin::{Auth, Origin};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::support::{self, REPOSITORY, Server, UPSTREAM, noise};

/// Far more than any time-out below: what has not ended by then never will.
const NEVER: Duration = Duration::from_secs(30);

struct Setup {
    server: Server,
    blob: String,
    _origin: Origin,
    _dir: tempfile::TempDir,
}

/// A server with short times and one blob of 32 MiB, more than all buffers on the way.
async fn setup() -> Setup {
    setup_with(1_500, 0).await
}

async fn setup_with(write_timeout_ms: u64, min_rate_bytes_per_sec: u64) -> Setup {
    let origin = Origin::start(Auth::Anonymous);
    let digest = origin.add_blob(REPOSITORY, noise(32 << 20, 7));
    let dir = tempfile::tempdir().unwrap();
    let mut config = support::config(&origin, dir.path());
    config.http.header_timeout_ms = 1_000;
    config.http.write_timeout_ms = write_timeout_ms;
    config.http.idle_timeout_ms = 1_000;
    config.http.min_rate_window_ms = 2_000;
    config.http.min_rate_bytes_per_sec = min_rate_bytes_per_sec;
    config.http.client_connections_max = 50;
    let server = Server::with(config).await;
    // Warm, so that nothing below waits for the upstream.
    let (status, body) = server.fetch(&server.blob_url(&digest)).await;
    assert_eq!((status, body.unwrap().len()), (200, 32 << 20));
    Setup {
        blob: format!("/v2/{REPOSITORY}/blobs/{digest}?ns={UPSTREAM}"),
        server,
        _origin: origin,
        _dir: dir,
    }
}

fn cut(server: &Server, reason: &str) -> u64 {
    let text = server.app.metrics.render();
    let name = format!("headstart_connections_cut_total{{reason=\"{reason}\"}} ");
    let line = text.lines().find_map(|l| l.strip_prefix(name.as_str()));
    line.map_or(0, |n| n.parse().unwrap())
}

/// Reads until the connection ends, however it does.
async fn until_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut part = vec![0; 64 << 10];
    let reading = async {
        while let Ok(n @ 1..) = stream.read(&mut part).await {
            all.extend_from_slice(&part[..n]);
        }
    };
    timeout(NEVER, reading).await.expect("the server ends the connection");
    all
}

/// Waits until the server has counted it.
async fn is_cut(server: &Server, reason: &str) {
    for _ in 0..600 {
        if cut(server, reason) > 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("nothing was cut for {reason}: {}", server.app.metrics.render());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_head_is_ended_on_a_new_and_on_a_used_connection() {
    let setup = setup().await;
    for first in ["", "GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n"] {
        let before = cut(&setup.server, "head");
        let mut stream = TcpStream::connect(setup.server.address).await.unwrap();
        stream.write_all(first.as_bytes()).await.unwrap();
        if !first.is_empty() {
            assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
        let (mut reader, mut writer) = stream.into_split();
        let dripping = tokio::spawn(async move {
            for byte in b"GET /v2/ HTTP/1.1\r\nX-Slow: ".iter().chain(std::iter::repeat(&b'a')) {
                if writer.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        let mut rest = Vec::new();
        let _ = timeout(NEVER, reader.read_to_end(&mut rest)).await.expect("ended");
        dripping.abort();
        assert_eq!(cut(&setup.server, "head"), before + 1, "{first:?}");
    }
    setup.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_request_body_is_ended() {
    let setup = setup().await;
    let mut stream = TcpStream::connect(setup.server.address).await.unwrap();
    let head = "POST /headstart/v1/chunks HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = until_end(&mut stream).await;
    assert!(
        answer.starts_with(b"HTTP/1.1 408"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    setup.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_takes_nothing_is_cut_off() {
    let setup = setup().await;
    let ask = format!("GET {} HTTP/1.1\r\nHost: a\r\n\r\n", setup.blob);
    let mut stopped = TcpStream::connect(setup.server.address).await.unwrap();
    stopped.write_all(ask.as_bytes()).await.unwrap();
    is_cut(&setup.server, "stall").await;
    let got = until_end(&mut stopped).await;
    assert!(got.len() < 32 << 20, "a part, and no end: {}", got.len());
    setup.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_takes_too_little_is_cut_off() {
    let setup = setup_with(60_000, 20 << 20).await;
    let ask = format!("GET {} HTTP/1.1\r\nHost: a\r\n\r\n", setup.blob);
    let mut slow = TcpStream::connect(setup.server.address).await.unwrap();
    slow.write_all(ask.as_bytes()).await.unwrap();
    // Some 600 KiB a second: it moves all the time, and is far below the rate.
    let dripping = tokio::spawn(async move {
        let mut part = vec![0; 64 << 10];
        while let Ok(1..) = slow.read(&mut part).await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    is_cut(&setup.server, "slow").await;
    dripping.abort();
    assert_eq!(setup.server.get(&setup.server.url("")).await.status(), 200);
    setup.server.stop().await;
}

/// The connection answers pings; only the stream's window stays closed. The write side never waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_http2_window_is_cut_off() {
    let setup = setup().await;
    let stream = TcpStream::connect(setup.server.address).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
        .initial_stream_window_size(20_000)
        .handshake(io)
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::get(format!("http://a{}", setup.blob))
        .body(http_body_util::Empty::<bytes::Bytes>::new())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    // Held, and not read.
    let ended = timeout(NEVER, connection)
        .await
        .expect("the server ends the connection");
    drop((ended, response));
    assert_eq!(cut(&setup.server, "stall"), 1);
    setup.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_are_closed_and_one_address_has_only_so_many() {
    let setup = setup().await;
    let mut idle = Vec::new();
    let mut refused = 0;
    for _ in 0..60 {
        let mut stream = TcpStream::connect(setup.server.address).await.unwrap();
        let _ = stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n").await;
        match timeout(NEVER, stream.read(&mut [0; 4096])).await.unwrap() {
            Ok(1..) => idle.push(stream),
            _ => refused += 1,
        }
    }
    // A slow machine may have closed some of them already, which makes room for others.
    assert!(refused > 0 || cut(&setup.server, "idle") > 0, "{refused}");
    for stream in &mut idle {
        assert!(until_end(stream).await.is_empty());
    }
    assert!(cut(&setup.server, "idle") as usize >= idle.len());
    assert_eq!(setup.server.get(&setup.server.url("")).await.status(), 200);
    setup.server.stop().await;
}
