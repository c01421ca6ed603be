//! The seekable blob by ranges, and the chunks of a whole image in one stream.
//!
//! In: a synthetic image, converted. Out: several ranges of `layers/data` are what the whole has there; `POST chunks` answers
//! for all layers in the order asked, with damage in between told as missing, not as an end.
//! Not here: that chunks rebuild tars (`lazy_api.rs`), ranges of blobs (`blobs.rs`).

#[path = "support/layers.rs"]
mod layers;
mod support;

use headstart_layer_format::api::ChunksRequest;
use headstart_layer_format::chunk_stream::{ChunkHeader, ChunkStatus, HEADER_LEN};
use headstart_layer_format::{ChunkDigest, routes};
use headstart_loadtest::corpus::SyntheticImage;
use headstart_loadtest::origin::Origin;
use support::{REPOSITORY, Server};

/// A server with the image converted, and the chunk tables of its layers.
async fn converted(image: &SyntheticImage, origin: &Origin, data: &std::path::Path) -> Server {
    let server = Server::start(origin, data).await;
    let (status, _) = server.fetch(&server.manifest_url("v1")).await;
    assert_eq!(status, 200);
    for layer in &image.layers {
        server.anybody().ready(&layer.digest).await;
    }
    server
}

/// Parts of a multipart/byteranges body: range and bytes.
fn parts(boundary: &str, body: &[u8]) -> Vec<(usize, Vec<u8>)> {
    let find = |of: &[u8], what: &[u8]| of.windows(what.len()).position(|w| w == what);
    let delimiter = format!("--{boundary}");
    let (mut rest, mut out) = (body, Vec::new());
    while let Some(at) = find(rest, delimiter.as_bytes()) {
        rest = &rest[at + delimiter.len()..];
        if rest.starts_with(b"--") {
            break;
        }
        let head = find(rest, b"\r\n\r\n").unwrap();
        let text = std::str::from_utf8(&rest[..head]).unwrap().to_lowercase();
        let range = text.split("content-range: bytes ").nth(1).unwrap();
        let (first, last) = range.split('/').next().unwrap().split_once('-').unwrap();
        let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
        rest = &rest[head + 4..];
        out.push((first, rest[..=last - first].to_vec()));
        rest = &rest[last - first + 1..];
    }
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn several_ranges_of_the_data_are_what_the_whole_has_there() {
    let (image, dir) = (SyntheticImage::seeded(71), tempfile::tempdir().unwrap());
    let origin = Origin::with_image(REPOSITORY, "v1", &image);
    let server = converted(&image, &origin, dir.path()).await;
    let mut asked = 0;
    for layer in &image.layers {
        let url = format!("http://{}{}", server.address, routes::layer_data(&layer.digest));
        let whole = server.get(&url).await.bytes().await.unwrap();
        let size = whole.len();
        if size < 100 {
            continue;
        }
        asked += 1;
        let ask = |range: String| server.http.get(&url).header("range", range).send();
        let one = ask(format!("bytes=1-{}", size - 2)).await.unwrap();
        assert_eq!(one.status(), 206);
        assert!(one.bytes().await.unwrap() == whole[1..size - 1]);
        let third = size / 3;
        let several = ask(format!("bytes=0-9, {third}-{}, -5", 2 * third)).await.unwrap();
        assert_eq!(several.status(), 206);
        let media_type = several.headers()["content-type"].to_str().unwrap().to_owned();
        let boundary = media_type.strip_prefix("multipart/byteranges; boundary=").unwrap();
        let body = several.bytes().await.unwrap();
        let expected = [(0, 10), (third, 2 * third + 1), (size - 5, size)];
        let expected: Vec<_> = expected.map(|(from, to)| (from, whole[from..to].to_vec())).to_vec();
        let found = parts(boundary.trim_matches('"'), &body);
        let places = |parts: &[(usize, Vec<u8>)]| -> Vec<_> { parts.iter().map(|(at, b)| (*at, b.len())).collect() };
        assert_eq!(places(&found), places(&expected), "of {size}");
        assert!(found == expected);
        assert_eq!(ask(format!("bytes={size}-")).await.unwrap().status(), 416);
    }
    assert!(asked > 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chunks_of_a_whole_image_come_in_one_stream_in_the_order_asked() {
    let (image, dir) = (SyntheticImage::seeded(72), tempfile::tempdir().unwrap());
    let origin = Origin::with_image(REPOSITORY, "v1", &image);
    let server = converted(&image, &origin, dir.path()).await;
    let mut chunks = Vec::new();
    for layer in &image.layers {
        let toc = server.anybody().ready(&layer.digest).await;
        chunks.extend(toc.chunks().entries().iter().map(|c| c.digest));
    }
    assert!(chunks.len() > 4 && image.layers.len() > 1);
    // Top layer first, one that nobody has in the middle, and the first once more.
    chunks.reverse();
    let missing = ChunkDigest::of(b"nowhere");
    chunks.insert(chunks.len() / 2, missing);
    chunks.push(chunks[0]);
    let damaged = damage_a_chunk(dir.path());
    assert!(chunks.contains(&damaged));
    let request = ChunksRequest {
        chunks: chunks.clone(),
        layers: image.layers.iter().map(|layer| layer.digest).collect(),
    };
    let url = format!("http://{}{}", server.address, routes::CHUNKS);
    let body = serde_json::to_vec(&request).unwrap();
    let answer = server.http.post(url).body(body).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let bytes = answer.bytes().await.unwrap();
    let (mut rest, mut order) = (&bytes[..], Vec::new());
    while !rest.is_empty() {
        let header = ChunkHeader::decode(rest[..HEADER_LEN].try_into().unwrap()).unwrap();
        rest = &rest[HEADER_LEN..];
        match header.status {
            ChunkStatus::Found { frame_len } => {
                let (frame, later) = rest.split_at(frame_len as usize);
                let raw = zstd::bulk::decompress(frame, 4 << 20).unwrap();
                assert_eq!(ChunkDigest::of(&raw), header.digest);
                rest = later;
            }
            ChunkStatus::Missing => assert!(header.digest == missing || header.digest == damaged),
        }
        order.push(header.digest);
    }
    assert_eq!(order, chunks);
    server.stop().await;
}

/// The last byte of the second chunk's record of the first pack.
fn damage_a_chunk(data: &std::path::Path) -> ChunkDigest {
    let path = layers::packs(data).remove(0);
    let mut pack = std::fs::read(&path).unwrap();
    let word = |at: usize| u32::from_le_bytes(pack[at..at + 4].try_into().unwrap()) as usize;
    let (mut at, mut seen) = (24, 0);
    loop {
        let end = at + 28 + usize::from(pack[at + 9]) + word(at + 16);
        seen += usize::from(pack[at + 8] == 1);
        if seen == 2 {
            let digest = ChunkDigest::from_bytes(pack[at + 28..at + 60].try_into().unwrap());
            pack[end - 1] ^= 1;
            // In place: the server has it open.
            use std::os::unix::fs::FileExt as _;
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.write_all_at(&pack[end - 1..end], end as u64 - 1).unwrap();
            return digest;
        }
        at = end;
    }
}
