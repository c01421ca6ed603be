//! Warm blobs over HTTP/1: the kernel sends them from their files. Bytes are right whatever clients and files do.

mod support;

use std::{
    net::SocketAddr,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::future::join_all;
use headstart_layer_format::BlobDigest;
use headstart_loadtest::origin::{Auth, Origin};
use support::{REPOSITORY, Server, UPSTREAM, noise, soon};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const MIB: usize = 1 << 20;

/// A server that has fetched a blob of `len` bytes.
async fn warm(dir: &Path, len: usize) -> (Server, BlobDigest, Vec<u8>) {
    let origin = Origin::start(Auth::Anonymous);
    let content = noise(len, 7);
    let digest = origin.add_blob(REPOSITORY, content.clone());
    let server = Server::start(&origin, dir).await;
    let (status, body) = soon(server.fetch(&server.blob_url(&digest))).await;
    assert!(status == 200 && body.unwrap() == content);
    // The original takes its place just after the last byte has gone out.
    let path = server.app.originals.path(&digest);
    soon(async {
        while !path.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    (server, digest, content)
}

fn head(address: SocketAddr, digest: &BlobDigest, more: &str) -> String {
    format!("GET /v2/{REPOSITORY}/blobs/{digest}?ns={UPSTREAM} HTTP/1.1\r\nHost: {address}\r\n{more}\r\n")
}

/// A connection that has asked for a blob and has read the head of the answer.
async fn asked(address: SocketAddr, digest: &BlobDigest) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head(address, digest, "").as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 200 "));
    stream
}

/// Open descriptors of this process, in which the server runs, below `dir`.
fn open_below(dir: &Path) -> Vec<PathBuf> {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    targets.filter(|path| path.starts_with(dir)).collect()
}

/// Ranges that begin and end on, before and after the edges of windows and pages.
fn ranges(len: usize) -> Vec<Range<usize>> {
    let edges = [
        0,
        1,
        4095,
        4096,
        65_536,
        MIB - 1,
        MIB,
        MIB + 1,
        2 * MIB + 17,
        len - 1,
        len,
    ];
    let all = edges.iter().flat_map(|&a| edges.iter().map(move |&b| a..b));
    all.filter(|r| r.start < r.end).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_with_ranges_get_their_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (server, digest, content) = warm(dir.path(), 3 * MIB + 333).await;
    let url = server.blob_url(&digest);
    let clients = (0..24).map(|client| {
        let (http, url, content) = (server.http.clone(), url.clone(), &content);
        async move {
            let ranges = ranges(content.len());
            for range in ranges.iter().cycle().skip(client * 7).take(20) {
                let asked = format!("bytes={}-{}", range.start, range.end - 1);
                let answer = http.get(&url).header("range", asked).send().await.unwrap();
                assert_eq!(answer.status(), 206);
                assert!(answer.bytes().await.unwrap() == content[range.clone()], "{range:?}");
            }
            let whole = http.get(&url).send().await.unwrap().bytes().await.unwrap();
            assert!(whole == content[..], "client {client}");
        }
    });
    soon(join_all(clients)).await;
    server.stop().await;
}

/// Heads of parts and windows alternate in what is written at once.
#[tokio::test(flavor = "multi_thread")]
async fn several_ranges_in_one_answer() {
    let dir = tempfile::tempdir().unwrap();
    let (server, digest, content) = warm(dir.path(), 2 * MIB).await;
    let wanted = [10..20, 70_000..70_001, 100_000..1_500_000, 1_600_000..2 * MIB];
    let list: Vec<_> = wanted.iter().map(|r| format!("{}-{}", r.start, r.end - 1)).collect();
    let request = server.http.get(server.blob_url(&digest));
    let answer = request.header("range", format!("bytes={}", list.join(","))).send();
    let body = soon(async { answer.await.unwrap().bytes().await.unwrap() }).await;
    let mut rest = &body[..];
    for range in wanted {
        let mark = format!(
            "content-range: bytes {}-{}/{}\r\n\r\n",
            range.start,
            range.end - 1,
            content.len()
        );
        let at = rest.windows(mark.len()).position(|w| w == mark.as_bytes()).unwrap() + mark.len();
        assert!(rest[at..at + range.len()] == content[range.clone()], "{range:?}");
        rest = &rest[at + range.len()..];
    }
    assert!(rest.starts_with(b"\r\n--") && rest.ends_with(b"--\r\n") && rest.len() < 200);
    server.stop().await;
}

/// The second answer may begin while the end of the first is still queued.
#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_sent_ahead_are_answered_one_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let (server, digest, content) = warm(dir.path(), MIB + 5).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let (first, last) = (
        head(server.address, &digest, ""),
        head(server.address, &digest, "Connection: close\r\n"),
    );
    stream
        .write_all([&first[..], &first, &last].concat().as_bytes())
        .await
        .unwrap();
    let mut all = Vec::new();
    soon(stream.read_to_end(&mut all)).await.unwrap();
    let mut rest = &all[..];
    for _ in 0..3 {
        let end = rest.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        assert!(rest.starts_with(b"HTTP/1.1 200 ") && rest[end..end + content.len()] == content[..]);
        rest = &rest[end + content.len()..];
    }
    assert!(rest.is_empty());
    server.stop().await;
}

/// HTTP/2 over a plain connection: copies instead of windows.
#[tokio::test(flavor = "multi_thread")]
async fn http_2_gets_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (server, digest, content) = warm(dir.path(), 2 * MIB + 1).await;
    let client = reqwest::Client::builder()
        .no_proxy()
        .http2_prior_knowledge()
        .build()
        .unwrap();
    let answer = client.get(server.blob_url(&digest)).send().await.unwrap();
    assert_eq!(answer.version(), reqwest::Version::HTTP_2);
    assert!(soon(answer.bytes()).await.unwrap() == content);
    server.stop().await;
}

/// The original goes away, and another file takes its name, while a slow client is in the middle of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_gets_the_file_it_began_with() {
    let dir = tempfile::tempdir().unwrap();
    // More than the sockets' buffers hold.
    let (server, digest, content) = warm(dir.path(), 24 * MIB).await;
    let path = server.app.originals.path(&digest);
    let mut removed = asked(server.address, &digest).await;
    let mut replaced = asked(server.address, &digest).await;
    let mut got = (vec![0; MIB], vec![0; MIB]);
    removed.read_exact(&mut got.0).await.unwrap();
    replaced.read_exact(&mut got.1).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    std::fs::write(&path, vec![0xee; content.len()]).unwrap();
    for (stream, got) in [(&mut removed, &mut got.0), (&mut replaced, &mut got.1)] {
        got.resize(content.len(), 0);
        soon(stream.read_exact(&mut got[MIB..])).await.unwrap();
        assert!(*got == content);
    }
    server.stop().await;
}

/// Somebody cut the file, which nobody may. No byte of what is not there is made up, and the process lives.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_cut_breaks_the_answer_off() {
    let dir = tempfile::tempdir().unwrap();
    let (server, digest, content) = warm(dir.path(), 24 * MIB).await;
    let path = server.app.originals.path(&digest);
    let mut stream = asked(server.address, &digest).await;
    let mut got = vec![0; MIB];
    stream.read_exact(&mut got).await.unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(20 * MIB as u64).unwrap();
    // Reset or end of stream: in any case before the end of the body.
    let _ = soon(stream.read_to_end(&mut got)).await;
    assert!(
        got.len() <= 20 * MIB && got[..] == content[..got.len()],
        "{}",
        got.len()
    );
    let (status, _) = soon(server.fetch(&server.url(""))).await;
    assert_eq!(status, 200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_go_away_leave_no_file_open_but_the_one_at_hand() {
    let dir = tempfile::tempdir().unwrap();
    let (server, digest, content) = warm(dir.path(), 24 * MIB).await;
    let originals = dir.path().join("originals");
    for round in 0..10 {
        let gone = join_all((0..8).map(|_| asked(server.address, &digest))).await;
        if round == 0 {
            assert!(!open_below(&originals).is_empty(), "they are being sent");
        }
        drop(gone);
    }
    // One that stays, and has everything.
    let mut idle = asked(server.address, &digest).await;
    let mut got = vec![0; content.len()];
    soon(idle.read_exact(&mut got)).await.unwrap();
    assert!(got == content);
    soon(async {
        while open_below(&originals).len() > 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    // What is evicted must be closed, or its space is not free.
    server.app.originals.remove(&digest).unwrap();
    assert_eq!(open_below(&originals), Vec::<PathBuf>::new());
    drop(idle);
    server.stop().await;
}
