//! A profile's chunks as one stream, and traces on their way to a server.
//!
//! In: requests of FORMAT.md's "`chunks` of a profile" and "trace". Out: headers and frames, one after the other.
//! Invariant: memory is one frame and one piece of a body; silence within a frame is short, for a reader may wait for it.
//! Not here: which chunks, and what becomes of them (`profile/stream.rs`).

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use headstart_layer_format::api::ChunksRequest;
use headstart_layer_format::chunk_stream::{ChunkHeader, HEADER_LEN};
use headstart_layer_format::profile::{ProfileRequest, Trace};
use headstart_layer_format::{BlobDigest, routes};
use http::StatusCode;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{RequestBuilder, Response};
use serde::Serialize;

use super::body;
use super::error::FetchError;
use super::servers::{Server, Servers, header};

/// Silence within a frame.
const FRAME_IDLE_MAX: Duration = Duration::from_secs(1);
/// A server with too many streams is asked again so often, after what it says but at most this.
const BUSY_TRIES: u32 = 3;
const BUSY_PAUSE: Duration = Duration::from_millis(200);
const BUSY_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Frames to come.
#[derive(Debug)]
pub(crate) struct ProfileStream {
    response: Response,
    buffer: BytesMut,
    idle: Duration,
}

impl Servers {
    /// From the first server that can. `listed` says the same by digests, for servers that do not know the profile.
    pub(crate) async fn profile_stream(
        &self,
        request: &ProfileRequest,
        listed: &ChunksRequest,
    ) -> Result<ProfileStream, FetchError> {
        let mut error = FetchError::Deadline;
        for server in self.order() {
            match self.profile_stream_from(&server, request, listed).await {
                Ok(stream) => return Ok(stream),
                Err(e) => error = e,
            }
        }
        Err(error)
    }

    async fn profile_stream_from(
        &self,
        server: &Server,
        request: &ProfileRequest,
        listed: &ChunksRequest,
    ) -> Result<ProfileStream, FetchError> {
        let mut response = self.ask_chunks(server, request).await?;
        // Another form than it knows, or a profile that it has forgotten.
        if matches!(response.status(), StatusCode::BAD_REQUEST | StatusCode::CONFLICT) {
            response = self.ask_chunks(server, listed).await?;
        }
        if response.status() != StatusCode::OK {
            return Err(refused(response.status()));
        }
        if header(&response, CONTENT_TYPE.as_str()) != Some(routes::CHUNK_STREAM_MEDIA_TYPE) {
            return Err(FetchError::Malformed("chunks came in an unknown form"));
        }
        Ok(ProfileStream {
            response,
            buffer: BytesMut::new(),
            idle: self.idle(),
        })
    }

    async fn ask_chunks(&self, server: &Server, body: &impl Serialize) -> Result<Response, FetchError> {
        let request = || {
            self.client()
                .post(format!("{}{}", server.base, routes::CHUNKS))
                .json(body)
        };
        self.send_patiently(server, request).await
    }

    /// Tells one server what a start read. What it says to that is its own affair: there is no second try but when it is busy.
    pub(crate) async fn post_trace(&self, manifest: &BlobDigest, trace: &Trace) -> Result<(), FetchError> {
        let mut error = FetchError::Deadline;
        for server in self.order() {
            let url = format!("{}{}", server.base, routes::trace(manifest));
            let posted = self
                .send_patiently(&server, || self.client().post(&url).json(trace))
                .await;
            match posted {
                Ok(response) if response.status().is_success() => return Ok(()),
                Ok(response) => return Err(refused(response.status())),
                // Not taken anywhere yet.
                Err(e) => error = e,
            }
        }
        Err(error)
    }

    /// Sends; again a little later if the server is busy.
    async fn send_patiently(
        &self,
        server: &Server,
        request: impl Fn() -> RequestBuilder,
    ) -> Result<Response, FetchError> {
        let mut tries = 1;
        loop {
            let response = self.send(server, request(), Duration::ZERO).await?;
            if response.status() != StatusCode::SERVICE_UNAVAILABLE || tries >= BUSY_TRIES {
                return Ok(response);
            }
            tries += 1;
            let after = header(&response, RETRY_AFTER.as_str()).and_then(|secs| secs.parse().ok());
            let pause = after.map_or(BUSY_PAUSE, Duration::from_secs).min(BUSY_PAUSE_MAX);
            drop(response);
            tokio::time::sleep(pause).await;
        }
    }
}

/// That a server has no time for hints says nothing of how it serves readers.
fn refused(status: StatusCode) -> FetchError {
    FetchError::Rejected {
        status: status.as_u16(),
    }
}

impl ProfileStream {
    /// What comes next; `None` at the end.
    pub(crate) async fn header(&mut self) -> Result<Option<ChunkHeader>, FetchError> {
        if !self.fill(HEADER_LEN, self.idle).await? {
            return match self.buffer.is_empty() {
                true => Ok(None),
                false => Err(FetchError::Unreachable("a body ended early".into())),
            };
        }
        let bytes = self.buffer.split_to(HEADER_LEN);
        let bytes: &[u8; HEADER_LEN] = bytes[..]
            .try_into()
            .map_err(|_| FetchError::Malformed("a chunk header is short"))?;
        ChunkHeader::decode(bytes)
            .map(Some)
            .map_err(|_| FetchError::Malformed("a chunk header is not one"))
    }

    /// The frame that a header announced; its length is within the format's limit.
    pub(crate) async fn frame(&mut self, len: u32) -> Result<Bytes, FetchError> {
        let len = len as usize;
        match self.fill(len, self.idle.min(FRAME_IDLE_MAX)).await? {
            true => Ok(self.buffer.split_to(len).freeze()),
            false => Err(FetchError::Unreachable("a body ended early".into())),
        }
    }

    async fn fill(&mut self, len: usize, idle: Duration) -> Result<bool, FetchError> {
        while self.buffer.len() < len {
            match body::piece(&mut self.response, idle).await? {
                Some(piece) => self.buffer.extend_from_slice(&piece),
                None => return Ok(false),
            }
        }
        Ok(true)
    }
}
