//! A small client of the Container Runtime Interface, as the kubelet is one.
//!
//! In: the runtime's unix socket and image references. Out: image IDs and repository digests.
//! Invariant: every call has a deadline, so a runtime that hangs fails a test and does not hang it.
//! Not here: pods ([`pods`]).

pub mod pods;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tonic::transport::{Channel, Endpoint, Uri};

#[allow(missing_debug_implementations, clippy::all)]
mod proto {
    tonic::include_proto!("runtime.v1");
}

use proto::{image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient};

/// Longest a pull may take. The demo image takes seconds; a busy two-core machine may need ten times that.
const PULL_TIMEOUT: Duration = Duration::from_secs(300);
/// Longest any other call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a call to the runtime failed.
#[derive(Debug, thiserror::Error)]
pub enum CriError {
    #[error("connect to the runtime at {}: {source}", socket.display())]
    Connect {
        socket: PathBuf,
        source: tonic::transport::Error,
    },
    #[error("{call}: {}: {}", status.code(), status.message())]
    Call {
        call: &'static str,
        status: Box<tonic::Status>,
    },
}

/// What the runtime says about an image it has.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ImageIdentity {
    /// Digest of the image config.
    pub id: String,
    pub repo_tags: Vec<String>,
    pub repo_digests: Vec<String>,
    pub size: u64,
}

/// A connection to one runtime.
#[derive(Clone, Debug)]
pub struct Cri {
    images: ImageServiceClient<Channel>,
    runtime: RuntimeServiceClient<Channel>,
}

fn failed(call: &'static str) -> impl FnOnce(tonic::Status) -> CriError {
    move |status| CriError::Call {
        call,
        status: Box::new(status),
    }
}

fn request<T>(message: T, timeout: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(timeout);
    request
}

fn spec(image: &str) -> Option<proto::ImageSpec> {
    Some(proto::ImageSpec {
        image: image.to_owned(),
        annotations: Default::default(),
    })
}

impl From<proto::Image> for ImageIdentity {
    fn from(i: proto::Image) -> ImageIdentity {
        ImageIdentity {
            id: i.id,
            repo_tags: i.repo_tags,
            repo_digests: i.repo_digests,
            size: i.size,
        }
    }
}

impl CriError {
    pub(crate) fn call(call: &'static str, status: tonic::Status) -> Self {
        failed(call)(status)
    }
}

/// Connects to the socket, which must exist and accept.
pub(crate) async fn connect(socket: &Path) -> Result<Channel, CriError> {
    let path = socket.to_owned();
    // The address is a placeholder: the connector below ignores it. gRPC sends it as the authority.
    Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move {
                let stream = tokio::net::UnixStream::connect(path).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        }))
        .await
        .map_err(|source| CriError::Connect {
            socket: socket.to_owned(),
            source,
        })
}

impl Cri {
    /// Connects to the socket, which must exist and accept.
    pub async fn connect(socket: &Path) -> Result<Cri, CriError> {
        let channel = connect(socket).await?;
        Ok(Cri {
            images: ImageServiceClient::new(channel.clone()),
            runtime: RuntimeServiceClient::new(channel),
        })
    }

    /// Name and version of the runtime; also how to see that its CRI plugin is up.
    pub async fn version(&self) -> Result<String, CriError> {
        let message = proto::VersionRequest::default();
        let answer = self
            .runtime
            .clone()
            .version(request(message, CALL_TIMEOUT))
            .await
            .map_err(failed("version"))?;
        let v = answer.into_inner();
        Ok(format!("{} {}", v.runtime_name, v.runtime_version))
    }

    /// Pulls and unpacks. Returns the image ID.
    pub async fn pull(&self, image: &str) -> Result<String, CriError> {
        let message = proto::PullImageRequest { image: spec(image) };
        let answer = self
            .images
            .clone()
            .pull_image(request(message, PULL_TIMEOUT))
            .await
            .map_err(failed("pull image"))?;
        Ok(answer.into_inner().image_ref)
    }

    /// The image, if the runtime has it.
    pub async fn image(&self, image: &str) -> Result<Option<ImageIdentity>, CriError> {
        let message = proto::ImageStatusRequest {
            image: spec(image),
            verbose: false,
        };
        let answer = self
            .images
            .clone()
            .image_status(request(message, CALL_TIMEOUT))
            .await
            .map_err(failed("image status"))?;
        Ok(answer.into_inner().image.map(ImageIdentity::from))
    }

    pub async fn images(&self) -> Result<Vec<ImageIdentity>, CriError> {
        let message = proto::ListImagesRequest {};
        let answer = self
            .images
            .clone()
            .list_images(request(message, CALL_TIMEOUT))
            .await
            .map_err(failed("list images"))?;
        Ok(answer
            .into_inner()
            .images
            .into_iter()
            .map(ImageIdentity::from)
            .collect())
    }

    /// Bytes and inodes that all images occupy, as the runtime has it from its snapshotter.
    pub async fn image_usage(&self) -> Result<(u64, u64), CriError> {
        let message = proto::ImageFsInfoRequest {};
        let answer = self
            .images
            .clone()
            .image_fs_info(request(message, CALL_TIMEOUT))
            .await
            .map_err(failed("image file system"))?;
        let systems = answer.into_inner().image_filesystems;
        let value = |v: &Option<proto::UInt64Value>| v.as_ref().map_or(0, |v| v.value);
        Ok(systems.iter().fold((0, 0), |(bytes, inodes), fs| {
            (bytes + value(&fs.used_bytes), inodes + value(&fs.inodes_used))
        }))
    }

    pub async fn remove(&self, image: &str) -> Result<(), CriError> {
        let message = proto::RemoveImageRequest { image: spec(image) };
        self.images
            .clone()
            .remove_image(request(message, CALL_TIMEOUT))
            .await
            .map_err(failed("remove image"))?;
        Ok(())
    }
}
