//! A token service that answers without end, or with a token that would be repeated in every request
//! (CVE-2020-1702, containers/image: error and token bodies read into memory without a bound).
//!
//! In: token and error bodies of tens of megabytes. Out: an error, and few bytes read.
//! Invariant: a token answer beyond 64 KiB is not read, a token beyond 32 KiB is not used, an error's body neither.
//! Not here: manifests (`huge_inputs`).

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use headstart_server::{
    config::{FetchConfig, UpstreamConfig},
    metrics::Metrics,
    upstream::{Caller, Upstream, UpstreamError},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// What the attacker would send.
const FLOOD_SIZE: u64 = 64 << 20;

/// Socket buffers on both sides take this much without anybody reading it.
const READ_SIZE_MAX: u64 = 32 << 20;

#[derive(Clone, Copy)]
enum Evil {
    TokenBody,
    Token,
    ErrorBody,
}

async fn answer(mut stream: TcpStream, own: String, evil: Evil, sent: Arc<AtomicU64>) -> std::io::Result<()> {
    let mut request = vec![0; 64 << 10];
    let n = stream.read(&mut request).await?;
    let is_token = request[..n].starts_with(b"GET /token");
    let flood = match evil {
        Evil::TokenBody if is_token => "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"token\":\"",
        Evil::ErrorBody => "HTTP/1.1 404 Not Found\r\nconnection: close\r\n\r\n{\"errors\":[",
        Evil::Token if is_token => {
            let body = format!("{{\"token\":\"{}\"}}", "t".repeat(60 << 10));
            let head = format!(
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            return stream.write_all((head + &body).as_bytes()).await;
        }
        _ => {
            let challenge = format!(
                "HTTP/1.1 401 Unauthorized\r\nconnection: close\r\ncontent-length: 0\r\n\
                 www-authenticate: Bearer realm=\"{own}/token\",service=\"s\"\r\n\r\n"
            );
            return stream.write_all(challenge.as_bytes()).await;
        }
    };
    stream.write_all(flood.as_bytes()).await?;
    let piece = vec![b'x'; 64 << 10];
    while sent.load(Ordering::SeqCst) < FLOOD_SIZE {
        stream.write_all(&piece).await?;
        sent.fetch_add(piece.len() as u64, Ordering::SeqCst);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_without_end_are_left_and_huge_tokens_are_none() {
    for (evil, expected) in [
        (
            Evil::TokenBody,
            UpstreamError::BadAnswer("no token in the token answer"),
        ),
        (Evil::Token, UpstreamError::BadAnswer("no token in the token answer")),
        (Evil::ErrorBody, UpstreamError::NotFound { name_unknown: false }),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let sent = Arc::new(AtomicU64::new(0));
        let serving = tokio::spawn({
            let (url, sent) = (url.clone(), sent.clone());
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(answer(stream, url.clone(), evil, sent.clone()));
                }
            }
        });
        let config = UpstreamConfig::new("u", url);
        let upstream = Upstream::new(&config, "u", &FetchConfig::default(), Metrics::new()).unwrap();
        let tag = "a".parse().unwrap();
        let answer = upstream.manifest("r", &Caller::Server, &tag, &[], 1 << 20).await;
        assert_eq!(answer.unwrap_err(), expected);
        assert!(sent.load(Ordering::SeqCst) < READ_SIZE_MAX, "the rest was not taken");
        serving.abort();
    }
}
