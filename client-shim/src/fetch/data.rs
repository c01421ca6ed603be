//! Chunk frames over the wire.
//!
//! In: chunks of one layer. Out: their frames, one after the other, as they arrive.
//! Invariant: a run of neighbours is one Range of `layers/{digest}/data`; scattered chunks, or a layer whose seekable
//! blob is not laid out as our TOC says, are one `POST chunks`. Memory is one frame and one piece of a body.
//! Not here: verification. A frame is just bytes until `fetch/verify.rs` has opened it.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use headstart_layer_format::api::ChunksRequest;
use headstart_layer_format::chunk_stream::{ChunkHeader, ChunkStatus, HEADER_LEN};
use headstart_layer_format::toc::Chunk;
use headstart_layer_format::{BlobDigest, TocDigest, routes};
use http::StatusCode;
use http::header::{CONTENT_RANGE, CONTENT_TYPE, RANGE};
use reqwest::Response;
use std::time::Duration;

use super::body;
use super::error::FetchError;
use super::servers::{Server, Servers, header, refusal};

/// Which layer's chunks, and the TOC their places come from.
#[derive(Clone, Copy, Debug)]
pub struct LayerKey {
    pub layer: BlobDigest,
    pub toc: TocDigest,
}

/// Frames still to come, in order.
#[derive(Debug)]
pub(super) struct Frames {
    response: Response,
    buffer: BytesMut,
    expected: VecDeque<Chunk>,
    framing: Framing,
    idle: Duration,
}

#[derive(Clone, Copy, Debug)]
enum Framing {
    /// Frames back to back, lengths as the TOC says.
    Range,
    /// Each frame after a header.
    Stream,
}

/// A frame, or that the server has not got it.
#[derive(Debug)]
pub(super) enum Frame {
    Found(Bytes),
    Missing,
}

impl Servers {
    /// Frames of neighbouring chunks by one Range.
    pub(super) async fn range_frames(
        &self,
        server: &Server,
        key: &LayerKey,
        chunks: Vec<Chunk>,
    ) -> Result<Frames, FetchError> {
        let (Some(first), Some(last)) = (chunks.first(), chunks.last()) else {
            return Err(FetchError::Malformed("an empty run"));
        };
        let (start, end) = (first.frame.start.0, last.frame.end().0 - 1);
        let request = self
            .client()
            .get(format!("{}{}", server.base, routes::layer_data(&key.layer)))
            .header(RANGE, format!("bytes={start}-{end}"));
        let response = self.send(server, request, Duration::ZERO).await?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {}
            StatusCode::OK => return Err(FetchError::Malformed("a Range was answered with everything")),
            StatusCode::ACCEPTED => return Err(FetchError::Rejected { status: 202 }),
            status => return Err(refusal(server, status)),
        }
        // Bytes of another layout would only fail verification, one by one and late.
        if header(&response, routes::TOC_DIGEST_HEADER).is_some_and(|d| d != key.toc.to_string()) {
            return Err(FetchError::Malformed("the seekable blob is of another TOC"));
        }
        if !header(&response, CONTENT_RANGE.as_str()).is_some_and(|r| covers(r, start, end)) {
            return Err(FetchError::Malformed("a Range was answered with another"));
        }
        Ok(Frames::new(self, response, chunks, Framing::Range))
    }

    /// Frames of any chunks by their digests.
    pub(super) async fn listed_frames(
        &self,
        server: &Server,
        key: &LayerKey,
        chunks: Vec<Chunk>,
    ) -> Result<Frames, FetchError> {
        let ask = ChunksRequest {
            chunks: chunks.iter().map(|c| c.digest).collect(),
            layers: vec![key.layer],
        };
        let request = self
            .client()
            .post(format!("{}{}", server.base, routes::CHUNKS))
            .json(&ask);
        let response = self.send(server, request, Duration::ZERO).await?;
        if response.status() != StatusCode::OK {
            return Err(refusal(server, response.status()));
        }
        if header(&response, CONTENT_TYPE.as_str()) != Some(routes::CHUNK_STREAM_MEDIA_TYPE) {
            return Err(FetchError::Malformed("chunks came in an unknown form"));
        }
        Ok(Frames::new(self, response, chunks, Framing::Stream))
    }
}

impl Frames {
    fn new(servers: &Servers, response: Response, chunks: Vec<Chunk>, framing: Framing) -> Self {
        Self {
            response,
            buffer: BytesMut::new(),
            expected: chunks.into(),
            framing,
            idle: servers.idle(),
        }
    }

    /// The next chunk's frame; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<(Chunk, Frame)>, FetchError> {
        let Some(chunk) = self.expected.pop_front() else {
            return Ok(None);
        };
        let frame_len = match self.framing {
            Framing::Range => usize::try_from(chunk.frame.len).ok(),
            Framing::Stream => self.header(&chunk).await?,
        };
        let frame = match frame_len {
            Some(len) => Frame::Found(self.take(len).await?),
            None => Frame::Missing,
        };
        Ok(Some((chunk, frame)))
    }

    /// Length of the frame that follows a header, `None` for a missing chunk.
    async fn header(&mut self, chunk: &Chunk) -> Result<Option<usize>, FetchError> {
        let bytes = self.take(HEADER_LEN).await?;
        let bytes: &[u8; HEADER_LEN] = bytes[..]
            .try_into()
            .map_err(|_| FetchError::Malformed("a chunk header is short"))?;
        let header = ChunkHeader::decode(bytes).map_err(|_| FetchError::Malformed("a chunk header is not one"))?;
        if header.digest != chunk.digest {
            return Err(FetchError::Malformed("chunks came in another order"));
        }
        Ok(match header.status {
            // At most limits::FRAME_SIZE_MAX: the decoder checked it.
            ChunkStatus::Found { frame_len } => Some(frame_len as usize),
            ChunkStatus::Missing => None,
        })
    }

    async fn take(&mut self, len: usize) -> Result<Bytes, FetchError> {
        while self.buffer.len() < len {
            match body::piece(&mut self.response, self.idle).await? {
                Some(piece) => self.buffer.extend_from_slice(&piece),
                None => return Err(FetchError::Unreachable("a body ended early".into())),
            }
        }
        Ok(self.buffer.split_to(len).freeze())
    }
}

/// Whether `Content-Range: bytes START-END/SIZE` is the range asked.
fn covers(content_range: &str, start: u64, end: u64) -> bool {
    content_range
        .strip_prefix("bytes ")
        .and_then(|r| r.split_once('/'))
        .is_some_and(|(range, _)| range == format!("{start}-{end}"))
}

#[cfg(test)]
mod tests {
    use super::covers;

    #[test]
    fn only_the_range_asked_will_do() {
        assert!(covers("bytes 5-9/100", 5, 9));
        assert!(covers("bytes 5-9/*", 5, 9));
        for bad in ["bytes 5-8/100", "bytes */100", "5-9/100", "items 5-9/100", "bytes 5-9"] {
            assert!(!covers(bad, 5, 9), "{bad}");
        }
    }
}
