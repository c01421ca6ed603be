//! Floods of HTTP/2: frames that cost the sender nothing and the server something.
//!
//! The stories: streams opened and reset at once, so that no limit on streams holds (rapid reset, CVE-2023-44487); headers
//! that never end (CONTINUATION, CVE-2024-27316); pings and settings whose answers pile up, because the sender does not
//! take them (CVE-2019-9512, CVE-2019-9515); more streams, or longer headers, than allowed.
//!
//! Here: each connection is ended by the server, or refused what is too much, and others are served meanwhile.

use std::time::Duration;

use headstart_loadtest::origin::{Auth, Origin};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::support::{self, REPOSITORY, Server};

/// Far more than any time-out below.
const NEVER: Duration = Duration::from_secs(40);

/// More than a server may swallow of a flood.
const FLOOD_MAX: usize = 64 << 20;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// `GET / HTTP/2` with an authority, by the static table of HPACK.
const GET_ROOT: &[u8] = &[0x82, 0x86, 0x84, 0x41, 1, b'a'];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut out = vec![len[1], len[2], len[3], kind, flags];
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

async fn server() -> (Server, Origin, tempfile::TempDir) {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let mut config = support::config(&origin, dir.path());
    config.http.header_timeout_ms = 2_000;
    config.http.idle_timeout_ms = 1_000;
    config.http.write_timeout_ms = 1_000;
    config.http.streams_max = 10;
    (Server::with(config).await, origin, dir)
}

/// A connection with its preface sent.
async fn connect(server: &Server) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    stream
}

/// Frames as they come, until the connection ends or `enough` says so.
async fn frames(stream: &mut TcpStream, enough: impl Fn(&[(u8, u32, Vec<u8>)]) -> bool) -> Vec<(u8, u32, Vec<u8>)> {
    let mut all = Vec::new();
    let reading = async {
        while !enough(&all) {
            let mut head = [0; 9];
            if stream.read_exact(&mut head).await.is_err() {
                return;
            }
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            if stream.read_exact(&mut payload).await.is_err() {
                return;
            }
            all.push((head[3], u32::from_be_bytes(head[5..9].try_into().unwrap()), payload));
        }
    };
    timeout(NEVER, reading).await.expect("the server says something");
    all
}

/// Sends `pieces` over and over until the server does not take them any more; how many bytes that were. Reads nothing.
async fn flood(mut stream: TcpStream, mut piece: impl FnMut() -> Vec<u8>) -> usize {
    let mut sent = 0;
    let sending = async {
        while sent < FLOOD_MAX {
            let piece = piece();
            if stream.write_all(&piece).await.is_err() {
                return;
            }
            sent += piece.len();
        }
    };
    timeout(NEVER, sending).await.expect("the server ends the connection");
    sent
}

/// `:status` (8 to 14 in the static table) as a literal: "431", plain or in Huffman's code.
fn is_431(head: &[u8]) -> bool {
    let status = &head[..head.len().min(6)];
    matches!(status.first(), Some(0x08 | 0x18 | 0x48..=0x4e)) && {
        let plain = status.windows(3).any(|w| w == b"431");
        // '4' is 011010, '3' 011001, '1' 00001: 01101001 10010000 1.
        let coded = status.windows(2).any(|w| w == [0b0110_1001, 0b1001_0000]);
        plain || coded
    }
}

async fn is_well(server: &Server) {
    let url = server.url(&format!("{REPOSITORY}/tags/list"));
    assert!([200, 404].contains(&server.get(&url).await.status().as_u16()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_reset_at_once_end_the_connection() {
    let (server, _origin, _dir) = server().await;
    let mut next = 1;
    let sent = flood(connect(&server).await, || {
        let mut piece = Vec::new();
        for _ in 0..100 {
            piece.extend(frame(HEADERS, END_STREAM | END_HEADERS, next, GET_ROOT));
            piece.extend(frame(RST_STREAM, 0, next, &8_u32.to_be_bytes()));
            next += 2;
        }
        piece
    })
    .await;
    assert!(sent < FLOOD_MAX, "{sent}");
    is_well(&server).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_without_an_end_end_the_connection() {
    let (server, _origin, _dir) = server().await;
    let mut stream = connect(&server).await;
    stream
        .write_all(&frame(HEADERS, END_STREAM, 1, GET_ROOT))
        .await
        .unwrap();
    // A literal without indexing, name "x", of 100 bytes.
    let mut field = vec![0, 1, b'x', 100];
    field.extend_from_slice(&[b'a'; 100]);
    let block = field.repeat(100);
    let sent = flood(stream, || frame(CONTINUATION, 0, 1, &block)).await;
    assert!(sent < FLOOD_MAX, "{sent}");
    is_well(&server).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_and_settings_without_a_reader_end_the_connection() {
    let (server, _origin, _dir) = server().await;
    for piece in [
        frame(PING, 0, 0, &[0; 8]),
        frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255]),
    ] {
        for asked in [false, true] {
            let mut stream = connect(&server).await;
            if asked {
                stream
                    .write_all(&frame(HEADERS, END_STREAM | END_HEADERS, 1, GET_ROOT))
                    .await
                    .unwrap();
                frames(&mut stream, |all| all.iter().any(|f| f.0 == HEADERS)).await;
            }
            let pieces = piece.repeat(1000);
            let sent = flood(stream, || pieces.clone()).await;
            assert!(sent < FLOOD_MAX, "{sent} of {:?}", &piece[..9]);
        }
    }
    is_well(&server).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_and_headers_have_their_number_and_size() {
    let (server, _origin, _dir) = server().await;
    let mut stream = connect(&server).await;
    let settings = frames(&mut stream, |all| !all.is_empty()).await;
    assert_eq!(settings[0].0, SETTINGS);
    let said = |id: u16| {
        let mut all = settings[0].2.chunks(6);
        let one = all.find(|s| s[..2] == id.to_be_bytes())?;
        Some(u32::from_be_bytes(one[2..].try_into().unwrap()))
    };
    // SETTINGS_MAX_CONCURRENT_STREAMS and SETTINGS_MAX_HEADER_LIST_SIZE.
    assert_eq!((said(3), said(6)), (Some(10), Some(32 << 10)));
    // Their bodies never come, so they stay open; those that are too many are refused (7), and could be asked again.
    let mut post = vec![0x83, 0x86, 0x41, 1, b'a', 0x44, 20];
    post.extend_from_slice(b"/headstart/v1/chunks");
    let open: Vec<u8> = (0..20)
        .flat_map(|i| frame(HEADERS, END_HEADERS, 1 + 2 * i, &post))
        .collect();
    stream.write_all(&open).await.unwrap();
    let refused = |f: &(u8, u32, Vec<u8>)| f.0 == RST_STREAM && f.2 == 7_u32.to_be_bytes();
    let got = frames(&mut stream, |all| all.iter().filter(|f| refused(f)).count() == 10).await;
    assert!(got.iter().filter(|f| refused(f)).all(|f| f.1 > 20), "{got:?}");

    // A head that ends, and is longer than allowed.
    let mut stream = connect(&server).await;
    let mut field = vec![0, 1, b'x', 100];
    field.extend_from_slice(&[b'a'; 100]);
    let large = field.repeat(150);
    let mut request = frame(HEADERS, END_STREAM, 1, GET_ROOT);
    for _ in 0..2 {
        request.extend(frame(CONTINUATION, 0, 1, &large));
    }
    request.extend(frame(CONTINUATION, END_HEADERS, 1, &large));
    stream.write_all(&request).await.unwrap();
    let got = frames(&mut stream, |all| {
        all.iter().any(|f| [HEADERS, RST_STREAM, GOAWAY].contains(&f.0))
    })
    .await;
    // 431, which has no index in the static table, or the end; never an answer to what was not read.
    let answer = got.iter().find(|f| f.0 == HEADERS).map(|f| f.2.clone());
    assert!(answer.is_none_or(|head| is_431(&head)), "{got:?}");
    is_well(&server).await;
    server.stop().await;
}
