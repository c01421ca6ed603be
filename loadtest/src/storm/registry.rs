//! A registry client that pulls as containerd does, and believes nothing.
//!
//! In: a base URL and names. Out: verified bytes, and when they came.
//! Invariant: every byte is hashed against the digest it was asked by; bodies kept in memory are bounded.
//! Not here: unpacking, retries (a failed request is a result of the storm), and credentials.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use headstart_layer_format::BlobDigest;
use reqwest::{Client, Response};
use serde::Deserialize;

use super::config::StormConfig;
use crate::check::{ByteChecker, CheckError};

/// Manifests and configs kept in memory: the distribution spec asks for at least 4 MiB.
const DOCUMENT_MAX: usize = 8 << 20;

#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error("{what}: {source}")]
    Http { what: String, source: reqwest::Error },
    #[error("{what}: HTTP status {status}")]
    Status { what: String, status: u16 },
    #[error("{what}: {source}")]
    Check { what: String, source: CheckError },
    #[error("{0}")]
    Content(String),
}

/// When the bytes of a blob came.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub first_byte: Duration,
    pub whole: Duration,
    pub bytes: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Descriptor {
    pub digest: BlobDigest,
    #[serde(default)]
    pub platform: Option<Platform>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
}

/// An image manifest or an index.
#[derive(Clone, Debug, Deserialize)]
struct Document {
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

/// What a pull needs to know of an image.
#[derive(Clone, Debug)]
pub struct Image {
    pub manifest: BlobDigest,
    pub config: BlobDigest,
    pub layers: Vec<BlobDigest>,
}

#[derive(Clone, Debug)]
pub struct Registry {
    http: Client,
    base: String,
    repository: String,
    query: String,
}

impl Registry {
    /// A client with its own connections: one node.
    pub fn new(config: &StormConfig) -> Result<Self, PullError> {
        let http = Client::builder()
            .no_proxy()
            .read_timeout(Duration::from_millis(config.idle_timeout_ms))
            .connect_timeout(Duration::from_millis(config.idle_timeout_ms))
            .user_agent("containerd/1.6.20 headstart-loadtest")
            .build()
            .map_err(|source| PullError::Http {
                what: "setting up a client".to_owned(),
                source,
            })?;
        Ok(Self {
            http,
            base: config.server.trim_end_matches('/').to_owned(),
            repository: config.repository.clone(),
            query: match config.ns.as_str() {
                "" => String::new(),
                ns => format!("?ns={ns}"),
            },
        })
    }

    pub fn http(&self) -> &Client {
        &self.http
    }

    pub fn base(&self) -> &str {
        &self.base
    }

    /// HEAD by tag, GET by digest, down to this platform's image.
    pub async fn image(&self, reference: &str) -> Result<Image, PullError> {
        let mut digest = match reference.parse() {
            Ok(digest) => digest,
            Err(_) => self.resolve(reference).await?,
        };
        // An index may name an index; deeper is nobody's use.
        for _ in 0..3 {
            let what = format!("manifest {digest}");
            let response = self.get("manifests", &digest.to_string()).await?;
            let bytes = document(response, &what, digest).await?;
            let parsed: Document =
                serde_json::from_slice(&bytes).map_err(|e| PullError::Content(format!("{what}: {e}")))?;
            if let Some(config) = parsed.config {
                return Ok(Image {
                    manifest: digest,
                    config: config.digest,
                    layers: parsed.layers.into_iter().map(|l| l.digest).collect(),
                });
            }
            let ours = parsed
                .manifests
                .iter()
                .find(|m| m.platform.as_ref().is_some_and(is_ours));
            digest = ours
                .or(parsed.manifests.first())
                .ok_or_else(|| PullError::Content(format!("{what}: neither an image nor an index")))?
                .digest;
        }
        Err(PullError::Content("indexes nested too deep".to_owned()))
    }

    async fn resolve(&self, tag: &str) -> Result<BlobDigest, PullError> {
        let what = format!("tag {tag}");
        let url = self.url("manifests", tag);
        let request = self.http.head(url).header("accept", ACCEPT);
        let response = ok(request.send().await, &what)?;
        let digest = response.headers().get("docker-content-digest");
        digest
            .and_then(|v| v.to_str().ok()?.parse().ok())
            .ok_or_else(|| PullError::Content(format!("{what}: no Docker-Content-Digest")))
    }

    /// Streams a blob through a checker.
    pub async fn blob(&self, digest: &BlobDigest) -> Result<Timing, PullError> {
        let what = format!("blob {digest}");
        let start = Instant::now();
        let mut response = self.get("blobs", &digest.to_string()).await?;
        let mut checker = ByteChecker::new(*digest);
        let mut first_byte = None;
        while let Some(piece) = next(&mut response, &what).await? {
            first_byte.get_or_insert_with(|| start.elapsed());
            checker.update(&piece);
        }
        let whole = start.elapsed();
        let bytes = checker.finish().map_err(|source| PullError::Check { what, source })?;
        Ok(Timing {
            first_byte: first_byte.unwrap_or(whole),
            whole,
            bytes,
        })
    }

    async fn get(&self, kind: &str, reference: &str) -> Result<Response, PullError> {
        let mut request = self.http.get(self.url(kind, reference));
        if kind == "manifests" {
            request = request.header("accept", ACCEPT);
        }
        ok(request.send().await, &format!("{kind} {reference}"))
    }

    fn url(&self, kind: &str, reference: &str) -> String {
        format!("{}/v2/{}/{kind}/{reference}{}", self.base, self.repository, self.query)
    }
}

/// What containerd accepts as a manifest.
const ACCEPT: &str = "application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, */*";

fn is_ours(platform: &Platform) -> bool {
    platform.os == "linux"
        && platform.architecture
            == if cfg!(target_arch = "aarch64") {
                "arm64"
            } else {
                "amd64"
            }
}

/// A successful response, or why not.
pub fn ok(response: reqwest::Result<Response>, what: &str) -> Result<Response, PullError> {
    match response {
        Ok(response) if response.status().is_success() => Ok(response),
        Ok(response) => Err(PullError::Status {
            what: what.to_owned(),
            status: response.status().as_u16(),
        }),
        Err(source) => Err(PullError::Http {
            what: what.to_owned(),
            source,
        }),
    }
}

/// The next piece of a body.
pub async fn next(response: &mut Response, what: &str) -> Result<Option<Bytes>, PullError> {
    response.chunk().await.map_err(|source| PullError::Http {
        what: what.to_owned(),
        source,
    })
}

/// A whole body of at most `max` bytes.
pub async fn whole(mut response: Response, what: &str, max: usize) -> Result<Bytes, PullError> {
    let mut out = BytesMut::new();
    while let Some(piece) = next(&mut response, what).await? {
        if out.len() + piece.len() > max {
            return Err(PullError::Content(format!("{what}: more than {max} bytes")));
        }
        out.extend_from_slice(&piece);
    }
    Ok(out.freeze())
}

async fn document(response: Response, what: &str, digest: BlobDigest) -> Result<Bytes, PullError> {
    let bytes = whole(response, what, DOCUMENT_MAX).await?;
    let mut checker = ByteChecker::new(digest);
    checker.update(&bytes);
    checker.finish().map_err(|source| PullError::Check {
        what: what.to_owned(),
        source,
    })?;
    Ok(bytes)
}
