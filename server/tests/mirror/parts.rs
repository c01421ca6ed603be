//! Several ranges in one request: what podman and CRI-O read zstd:chunked layers by.

use std::ops::Range;

use headstart_layer_format::BlobDigest;
use headstart_loadtest::origin::{Auth, Origin};
use headstart_server::store::units::UNIT;

use crate::support::{REPOSITORY, Server, error_of, noise};

const MIB: usize = 1 << 20;

/// The parts of a multipart answer, as they come.
fn parts_of(content_type: &http::HeaderValue, body: &[u8]) -> Vec<(Range<usize>, Vec<u8>)> {
    let content_type = content_type.to_str().unwrap();
    let boundary = content_type.strip_prefix("multipart/byteranges; boundary=").unwrap();
    let (open, end) = (format!("--{boundary}\r\n"), format!("--{boundary}--\r\n"));
    let (mut rest, mut parts) = (body, Vec::new());
    while let Some(part) = rest.strip_prefix(open.as_bytes()) {
        let head_len = part.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let head = std::str::from_utf8(&part[..head_len]).unwrap();
        let range = head.rsplit_once("content-range: bytes ").unwrap().1;
        let (range, _) = range.split_once('/').unwrap();
        let (first, last) = range.split_once('-').unwrap();
        let range = first.parse().unwrap()..last.parse::<usize>().unwrap() + 1;
        let (bytes, after) = part[head_len + 4..].split_at(range.len());
        parts.push((range, bytes.to_vec()));
        rest = after.strip_prefix(b"\r\n").unwrap();
    }
    assert_eq!(rest, end.as_bytes());
    parts
}

/// As podman and CRI-O read a zstd:chunked layer: up to 1,024 ranges in one header, also ones that touch, and as many parts
/// in the answer, in this order. The 17th range made the answer the whole blob, and touching ones came as one part.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_ranges_are_a_thousand_parts() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let server = Server::start(&origin, dir.path()).await;
    let ask = |digest: &BlobDigest, range: &str| {
        let request = server.http.get(server.blob_url(digest)).header("range", range);
        async { request.send().await.unwrap() }
    };
    let content = noise(24 * MIB, 25);
    let digest = origin.add_blob(REPOSITORY, content.clone());
    // Pairs that touch; units 0 to 15 and none of the others.
    let mut ranges: Vec<_> = (0..512)
        .flat_map(|i| [i * 32_000..i * 32_000 + 500, i * 32_000 + 500..i * 32_000 + 507])
        .collect();
    // The file's order is not always the blob's.
    ranges.rotate_left(10);
    let header: Vec<_> = ranges.iter().map(|r| format!("{}-{}", r.start, r.end - 1)).collect();
    let header = format!("bytes={}", header.join(","));
    for warm in [false, true] {
        let response = ask(&digest, &header).await;
        assert_eq!(response.status(), 206, "warm: {warm}");
        let length = response.content_length().unwrap();
        let content_type = response.headers()["content-type"].clone();
        let body = response.bytes().await.unwrap();
        assert_eq!(body.len() as u64, length);
        let parts = parts_of(&content_type, &body);
        assert_eq!(parts.len(), ranges.len());
        for ((range, bytes), asked) in parts.iter().zip(&ranges) {
            assert_eq!(range, asked);
            assert!(bytes == &content[range.clone()]);
        }
        if !warm {
            assert!(
                origin.bytes_sent(&digest) <= 17 * UNIT,
                "what lies in between, and no more"
            );
            assert!(server.fetch(&server.blob_url(&digest)).await.1.unwrap() == content);
        }
    }
    // One more is refused before anybody is asked, in the way after which these clients ask for fewer and larger ones.
    let other = origin.add_blob(REPOSITORY, noise(MIB, 26));
    let header = format!("bytes=0-0{}", ",5-5".repeat(1024));
    let refused = ask(&other, &header).await;
    assert_eq!(error_of(refused).await, (400, "UNSUPPORTED".into()));
    assert_eq!(origin.bytes_sent(&other), 0);
    // Parts that would be longer than the blob are the blob; and overlapping ones are one, where the first of them was.
    let small: Vec<_> = (0..1024).map(|i| format!("{}-{}", i * 1000, i * 1000 + 900)).collect();
    let whole = ask(&other, &format!("bytes={}", small.join(","))).await;
    assert_eq!(
        (whole.status().as_u16(), whole.content_length()),
        (200, Some(MIB as u64))
    );
    let joined = ask(&other, "bytes=1000-1999,0-9,1500-2499").await;
    let content_type = joined.headers()["content-type"].clone();
    let parts = parts_of(&content_type, &joined.bytes().await.unwrap());
    let ranges: Vec<_> = parts.into_iter().map(|(range, _)| range).collect();
    assert_eq!(ranges, [1000..2500, 0..10]);
}
