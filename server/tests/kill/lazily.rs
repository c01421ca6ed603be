//! What a node asks of a server that may be killed at any moment, and what it may be told.
//!
//! In: a server's URL and a layer. Out: its state; its TOC, or nothing; its tar, put together again.
//! Invariant: an answer that ended properly has the right bytes, or is none of the kind that has bytes.
//! Not here: ordinary pulls ([`super::pulls`]).

use headstart_layer_format::{BlobDigest, ChunkDigest, Toc, TocDigest, api::ImageStatus, routes};
use headstart_loadtest::corpus::{Rng, SyntheticLayer};

/// A 200 for a TOC whose body was whole; `None`: anything else that a server may say, or that was killed.
pub async fn toc(http: &reqwest::Client, url: &str, layer: &SyntheticLayer, wait_ms: u64) -> Option<(TocDigest, Toc)> {
    let route = routes::layer_toc(&layer.digest);
    let answer = http.get(format!("{url}{route}?wait_ms={wait_ms}")).send().await.ok()?;
    match answer.status().as_u16() {
        200 => {}
        // 404 is "nobody named it to me", 422 a refusal; whether it may be refused is the caller's question.
        202 | 404 | 422 | 503 => return None,
        status => panic!("status {status} for a TOC"),
    }
    let named = answer.headers()[routes::TOC_DIGEST_HEADER].to_str().unwrap().to_owned();
    let bytes = answer.bytes().await.ok()?;
    let digest = Toc::digest(&bytes);
    assert_eq!(named, digest.to_string(), "a TOC is what its name says");
    let toc = Toc::decode(&bytes).expect("a TOC that ended properly is one");
    assert_eq!((toc.layer_digest(), toc.diff_id()), (&layer.digest, &layer.diff_id));
    Some((digest, toc))
}

/// Reads a few neighbouring chunks; whether they came. They were right then.
pub async fn chunks(http: &reqwest::Client, url: &str, layer: &BlobDigest, toc: &Toc, rng: &mut Rng) -> bool {
    let all: Vec<_> = toc.chunks().iter().collect();
    if all.is_empty() {
        return true;
    }
    let first = rng.below(all.len() as u64) as usize;
    let some = &all[first..all.len().min(first + 4)];
    let (from, to) = (some[0].frame.start.0, some[some.len() - 1].frame.end().0);
    let request = http.get(format!("{url}{}", routes::layer_data(layer)));
    let Ok(answer) = request.header("range", format!("bytes={from}-{}", to - 1)).send().await else {
        return false;
    };
    if answer.status() != 206 {
        // Evicted since the TOC came, and perhaps under conversion again.
        assert!(
            matches!(answer.status().as_u16(), 202 | 404 | 503),
            "{}",
            answer.status()
        );
        return false;
    }
    let Ok(bytes) = answer.bytes().await else { return false };
    assert_eq!(
        bytes.len() as u64,
        to - from,
        "a body that ended too early ended properly"
    );
    for chunk in some {
        let frame = &bytes[(chunk.frame.start.0 - from) as usize..(chunk.frame.end().0 - from) as usize];
        let raw = zstd::bulk::decompress(frame, chunk.range.len as usize).expect("a frame");
        assert_eq!(ChunkDigest::of(&raw), chunk.digest);
    }
    true
}

/// The tar from TOC and data; `None` when the data broke off.
pub async fn tar(http: &reqwest::Client, url: &str, layer: &SyntheticLayer) -> Option<Vec<u8>> {
    let (_, toc) = toc(http, url, layer, 20_000).await?;
    let answer = http.get(format!("{url}{}", routes::layer_data(&layer.digest))).send();
    let answer = answer.await.ok()?;
    let blob = match answer.status().as_u16() {
        200 => answer.bytes().await.ok()?,
        _ => return None,
    };
    let mut data = Vec::new();
    for chunk in toc.chunks().iter() {
        let frame = &blob[chunk.frame.start.0 as usize..chunk.frame.end().0 as usize];
        let raw = zstd::bulk::decompress(frame, chunk.range.len as usize).expect("a frame");
        assert_eq!(ChunkDigest::of(&raw), chunk.digest);
        data.extend(raw);
    }
    let mut tar = Vec::new();
    let written = toc.skeleton().write_tar(&mut tar, |range, out| {
        out.extend_from_slice(&data[range.start.0 as usize..range.end().0 as usize]);
        Ok(())
    });
    written.expect("it fits");
    Some(tar)
}

/// `None`: it is not known, or the server is gone.
pub async fn image(http: &reqwest::Client, url: &str, manifest: &BlobDigest, wait_ms: u64) -> Option<ImageStatus> {
    let route = routes::image(manifest);
    let answer = http.get(format!("{url}{route}?wait_ms={wait_ms}")).send().await.ok()?;
    match answer.status().as_u16() {
        200 => answer.json().await.ok(),
        404 | 503 => None,
        status => panic!("status {status} for an image"),
    }
}

/// The sum of a metric's series that have all of `labels`.
pub async fn metric(http: &reqwest::Client, url: &str, name: &str, labels: &[&str]) -> u64 {
    let text = http
        .get(format!("{url}/metrics"))
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    let values = text.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let is_it = series == name || series.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'));
        (is_it && labels.iter().all(|label| series.contains(label))).then(|| value.parse::<f64>().unwrap())
    });
    values.sum::<f64>() as u64
}
