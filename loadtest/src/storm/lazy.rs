//! A lazy node: states, TOCs, and some chunks.
//!
//! In: an image that the registry side has served. Out: verified chunks, and when they came.
//! Invariant: each chunk is decompressed within its announced size and hashed; a TOC must be for the layer asked.
//! Not here: presenting files; the shim does that.

use std::time::{Duration, Instant};

use headstart_layer_format::api::ImageStatus;
use headstart_layer_format::limits::{TOC_SIZE_MAX, TOC_WAIT_MS_MAX};
use headstart_layer_format::routes::{self, TOC_MEDIA_TYPE, WAIT_MS_QUERY};
use headstart_layer_format::toc::Chunk;
use headstart_layer_format::{BlobDigest, ChunkDigest, Toc};

use super::config::StormConfig;
use super::registry::{PullError, Registry, Timing, next, ok, whole};
use crate::corpus::Rng;

/// A status is some hundred bytes a layer.
const STATUS_MAX: usize = 4 << 20;

/// Waits until every layer is ready; an error says which is not.
pub async fn converted(registry: &Registry, config: &StormConfig, manifest: &BlobDigest) -> Result<(), PullError> {
    let deadline = Instant::now() + Duration::from_millis(config.convert_wait_ms);
    let url = format!("{}{}", registry.base(), routes::image(manifest));
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).as_millis() as u64;
        // Below the idle time-out, or a patient server would look like a dead one.
        let wait = left.min(TOC_WAIT_MS_MAX).min(config.idle_timeout_ms / 2);
        let request = registry.http().get(format!("{url}?{WAIT_MS_QUERY}={wait}"));
        let response = ok(request.send().await, "image status")?;
        let bytes = whole(response, "image status", STATUS_MAX).await?;
        let status: ImageStatus =
            serde_json::from_slice(&bytes).map_err(|e| PullError::Content(format!("image status: {e}")))?;
        if status.is_ready() {
            return Ok(());
        }
        if left == 0 {
            let states: Vec<_> = status.layers.iter().map(|l| (l.state, &l.reason)).collect();
            return Err(PullError::Content(format!("layers are not ready: {states:?}")));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub async fn toc(registry: &Registry, layer: &BlobDigest) -> Result<(Toc, Timing), PullError> {
    let what = format!("toc of {layer}");
    let start = Instant::now();
    let url = format!("{}{}", registry.base(), routes::layer_toc(layer));
    let request = registry.http().get(url).header("accept", TOC_MEDIA_TYPE);
    let response = ok(request.send().await, &what)?;
    if response.status() != 200 {
        return Err(PullError::Status {
            what,
            status: response.status().as_u16(),
        });
    }
    let first_byte = start.elapsed();
    let bytes = whole(response, &what, TOC_SIZE_MAX as usize).await?;
    let timing = Timing {
        first_byte,
        whole: start.elapsed(),
        bytes: bytes.len() as u64,
    };
    let toc = Toc::decode(&bytes).map_err(|e| PullError::Content(format!("{what}: {e}")))?;
    if toc.layer_digest() != layer {
        return Err(PullError::Content(format!("{what}: is of {}", toc.layer_digest())));
    }
    Ok((toc, timing))
}

/// A share of a layer's chunks, in table order.
pub fn choose(toc: &Toc, fraction: f64, rng: &mut Rng) -> Vec<Chunk> {
    let threshold = (fraction * 1e9) as u64;
    toc.chunks()
        .iter()
        .filter(|_| rng.below(1_000_000_000) < threshold)
        .collect()
}

/// One chunk by Range.
pub async fn chunk(registry: &Registry, layer: &BlobDigest, chunk: &Chunk) -> Result<Timing, PullError> {
    let what = format!("chunk {} of {layer}", chunk.index);
    let start = Instant::now();
    let url = format!("{}{}", registry.base(), routes::layer_data(layer));
    let range = format!("bytes={}-{}", chunk.frame.start.0, chunk.frame.end().0 - 1);
    let mut response = ok(registry.http().get(url).header("range", range).send().await, &what)?;
    if response.status() != 206 {
        return Err(PullError::Status {
            what,
            status: response.status().as_u16(),
        });
    }
    let mut frame = Vec::with_capacity(chunk.frame.len as usize);
    let mut first_byte = None;
    while let Some(piece) = next(&mut response, &what).await? {
        first_byte.get_or_insert_with(|| start.elapsed());
        if frame.len() + piece.len() > chunk.frame.len as usize {
            return Err(PullError::Content(format!("{what}: more bytes than asked for")));
        }
        frame.extend_from_slice(&piece);
    }
    let elapsed = start.elapsed();
    let raw = zstd::bulk::decompress(&frame, chunk.range.len as usize)
        .map_err(|e| PullError::Content(format!("{what}: {e}")))?;
    if raw.len() as u64 != chunk.range.len || ChunkDigest::of(&raw) != chunk.digest {
        return Err(PullError::Content(format!("{what}: wrong bytes")));
    }
    Ok(Timing {
        first_byte: first_byte.unwrap_or(elapsed),
        whole: elapsed,
        bytes: frame.len() as u64,
    })
}
