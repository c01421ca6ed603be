//! containerd's own unpacker, asked to unpack one layer into a directory: what a runtime makes of it.
//!
//! In: containerd's socket, a blob, its media type, a directory. Out: the directory as an overlay snapshot's would be, and
//! the DiffID that containerd computed; or why it would not unpack it.
//! Invariant: containerd's code path of a pull (its content store, its differ, its whiteouts for overlayfs), but for the
//! mount: the differ writes to the upper directory of an overlay's options without mounting it.
//! Not here: starting containerd ([`crate::playground`]).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use headstart_layer_format::BlobDigest;
use tokio_stream::StreamExt;
use tonic::transport::Channel;

use crate::cri::{CriError, connect};

#[allow(missing_debug_implementations, clippy::all)]
mod proto {
    pub mod containerd {
        pub mod services {
            pub mod content {
                pub mod v1 {
                    tonic::include_proto!("containerd.services.content.v1");
                }
            }
            pub mod diff {
                pub mod v1 {
                    tonic::include_proto!("containerd.services.diff.v1");
                }
            }
        }
        pub mod types {
            tonic::include_proto!("containerd.types");
        }
    }
}

use proto::containerd::services::{
    content::v1::{WriteAction, WriteContentRequest, content_client::ContentClient},
    diff::v1::{ApplyRequest, diff_client::DiffClient},
};
use proto::containerd::types::{Descriptor, Mount};

/// Bytes in one message; containerd takes up to 16 MiB.
const MESSAGE: usize = 1 << 20;
/// A layer of a gigabyte on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(300);
const NAMESPACE: &str = "unpack";

/// A connection to a containerd.
#[derive(Clone, Debug)]
pub struct Unpacker {
    content: ContentClient<Channel>,
    diff: DiffClient<Channel>,
}

fn request<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(TIMEOUT);
    let namespace = tonic::metadata::MetadataValue::from_static(NAMESPACE);
    request.metadata_mut().insert("containerd-namespace", namespace);
    request
}

impl Unpacker {
    pub async fn connect(socket: &Path) -> Result<Self, CriError> {
        let channel = connect(socket).await?;
        Ok(Self {
            content: ContentClient::new(channel.clone()),
            diff: DiffClient::new(channel),
        })
    }

    /// Unpacks into `upper`, which is empty; `lower` are the directories of the layers below, topmost first. The inner
    /// error is what containerd says about the layer.
    pub async fn unpack(
        &self,
        blob: Bytes,
        media_type: &str,
        upper: &Path,
        lower: &[PathBuf],
    ) -> Result<Result<String, String>, CriError> {
        let digest = BlobDigest::of(&blob).to_string();
        let size = blob.len() as i64;
        let lower: Vec<_> = lower.iter().map(|l| l.display().to_string()).collect();
        let mut options = vec![format!("upperdir={}", upper.display()), "workdir=/nowhere".to_owned()];
        if !lower.is_empty() {
            options.push(format!("lowerdir={}", lower.join(":")));
        }
        let message = ApplyRequest {
            diff: Some(Descriptor {
                media_type: media_type.to_owned(),
                digest: digest.clone(),
                size,
            }),
            mounts: vec![Mount {
                r#type: "overlay".to_owned(),
                source: "overlay".to_owned(),
                target: String::new(),
                options,
            }],
        };
        loop {
            self.put(&digest, blob.clone()).await?;
            return Ok(match self.diff.clone().apply(request(message.clone())).await {
                Ok(answer) => Ok(answer.into_inner().applied.unwrap_or_default().digest),
                // Nothing holds the blob, and its garbage collector runs now and then.
                Err(status) if status.message().contains("reader from content store") => continue,
                Err(status) => Err(status.message().to_owned()),
            });
        }
    }

    async fn put(&self, digest: &str, blob: Bytes) -> Result<(), CriError> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            match self.try_put(digest, &blob).await {
                // Somebody else puts the same one.
                Err(CriError::Call { status, .. })
                    if status.code() == tonic::Code::Unavailable && Instant::now() < deadline =>
                {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                other => return other,
            }
        }
    }

    async fn try_put(&self, digest: &str, blob: &Bytes) -> Result<(), CriError> {
        let total = blob.len() as i64;
        let base = WriteContentRequest {
            r#ref: digest.to_owned(),
            total,
            expected: digest.to_owned(),
            ..Default::default()
        };
        let mut messages = Vec::new();
        for at in (0..blob.len()).step_by(MESSAGE) {
            messages.push(WriteContentRequest {
                action: WriteAction::Write.into(),
                offset: at as i64,
                data: blob[at..blob.len().min(at + MESSAGE)].to_vec(),
                ..base.clone()
            });
        }
        messages.push(WriteContentRequest {
            action: WriteAction::Commit.into(),
            offset: total,
            ..base
        });
        let failed = |status: tonic::Status| match status.code() {
            tonic::Code::AlreadyExists => Ok(()),
            _ => Err(CriError::call("write content", status)),
        };
        let mut answers = match self.content.clone().write(request(tokio_stream::iter(messages))).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return failed(status),
        };
        while let Some(answer) = answers.next().await {
            if let Err(status) = answer {
                return failed(status);
            }
        }
        Ok(())
    }
}
