//! A snapshotter on a socket, and a scripted lazy side behind it.
//!
//! In: a script ([`FakeNode`]). Out: containerd's generated client, connected. Invariant: everything lives in one temp
//! directory and ends with the [`Harness`].
//! Not here: assertions.
#![allow(dead_code, reason = "each test binary uses another part")]

pub mod containerd;
pub mod fake;
pub mod log;
pub mod oci;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fake::FakeNode;
use headstart_shim::app::{self, AppError};
use headstart_shim::config::Config;
use headstart_shim::proto::Mount;
use headstart_shim::proto::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest,
    RemoveSnapshotRequest, StatSnapshotRequest, UpdateSnapshotRequest, UsageRequest, ViewSnapshotRequest,
    snapshots_client::SnapshotsClient,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// A running snapshotter.
pub struct Harness {
    pub dir: tempfile::TempDir,
    pub config: Config,
    pub node: FakeNode,
    pub client: Client,
    stop: CancellationToken,
    serving: JoinHandle<Result<(), AppError>>,
}

impl Harness {
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// `snapshotter`: lines of that section of the configuration.
    pub async fn start_with(snapshotter: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "root_dir = '{0}/root'\nsocket = '{0}/run/shim.sock'\n[snapshotter]\n{snapshotter}\n",
            dir.path().display()
        );
        let config: Config = text.parse().unwrap();
        let node = FakeNode::new(&dir.path().join("layers"));
        Self::serve(dir, config, node).await
    }

    async fn serve(dir: tempfile::TempDir, config: Config, node: FakeNode) -> Self {
        let stop = CancellationToken::new();
        let serving = {
            let (config, node, stop) = (config.clone(), node.clone(), stop.clone());
            tokio::spawn(async move { app::serve(&config, node, stop).await })
        };
        let client = Client::connect(&config.socket, None).await;
        Self {
            dir,
            config,
            node,
            client,
            stop,
            serving,
        }
    }

    /// Stops the snapshotter cleanly; what is on disk stays.
    pub async fn stop(self) -> Stopped {
        self.stop.cancel();
        drop(self.client);
        self.serving.await.unwrap().unwrap();
        Stopped {
            dir: self.dir,
            config: self.config,
            node: self.node,
        }
    }

    /// Stop, then start on the same state.
    pub async fn restart(self) -> Self {
        self.stop().await.start().await
    }

    pub fn snapshots_dir(&self) -> PathBuf {
        self.config.root_dir.join("snapshots")
    }
}

/// What a stopped snapshotter leaves.
pub struct Stopped {
    pub dir: tempfile::TempDir,
    pub config: Config,
    pub node: FakeNode,
}

impl Stopped {
    pub async fn start(self) -> Harness {
        Harness::serve(self.dir, self.config, self.node).await
    }
}

pub type Labels<'a> = &'a [(&'a str, &'a str)];

fn owned(labels: Labels<'_>) -> HashMap<String, String> {
    labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
}

/// The generated client with short arguments.
#[derive(Clone)]
pub struct Client {
    inner: SnapshotsClient<Channel>,
    /// When talking to containerd itself instead of a snapshotter.
    namespace: Option<&'static str>,
    /// What calls say they are part of.
    pub traceparent: Option<String>,
}

impl Client {
    /// Waits until something listens on `socket`.
    pub async fn connect(socket: &Path, namespace: Option<&'static str>) -> Self {
        let mut tries = 0;
        while UnixStream::connect(socket).await.is_err() {
            tries += 1;
            assert!(tries < 1500, "nothing listens on {}", socket.display());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let socket = socket.to_owned();
        let dial = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://unix").connect_with_connector_lazy(dial);
        Self {
            inner: SnapshotsClient::new(channel),
            namespace,
            traceparent: None,
        }
    }

    fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        if let Some(namespace) = self.namespace {
            let value = tonic::metadata::MetadataValue::from_static(namespace);
            request.metadata_mut().insert("containerd-namespace", value);
        }
        if let Some(traceparent) = &self.traceparent {
            let value = traceparent.parse().unwrap();
            request.metadata_mut().insert("traceparent", value);
        }
        request
    }

    fn snapshotter() -> String {
        "headstart".into()
    }

    pub async fn prepare(&self, key: &str, parent: &str, labels: Labels<'_>) -> Result<Vec<Mount>, Status> {
        let request = self.request(PrepareSnapshotRequest {
            snapshotter: Self::snapshotter(),
            key: key.into(),
            parent: parent.into(),
            labels: owned(labels),
        });
        Ok(self.inner.clone().prepare(request).await?.into_inner().mounts)
    }

    pub async fn view(&self, key: &str, parent: &str, labels: Labels<'_>) -> Result<Vec<Mount>, Status> {
        let request = self.request(ViewSnapshotRequest {
            snapshotter: Self::snapshotter(),
            key: key.into(),
            parent: parent.into(),
            labels: owned(labels),
        });
        Ok(self.inner.clone().view(request).await?.into_inner().mounts)
    }

    pub async fn mounts(&self, key: &str) -> Result<Vec<Mount>, Status> {
        let request = self.request(MountsRequest {
            snapshotter: Self::snapshotter(),
            key: key.into(),
        });
        Ok(self.inner.clone().mounts(request).await?.into_inner().mounts)
    }

    pub async fn commit(&self, name: &str, key: &str, labels: Labels<'_>) -> Result<(), Status> {
        let request = self.request(CommitSnapshotRequest {
            snapshotter: Self::snapshotter(),
            name: name.into(),
            key: key.into(),
            labels: owned(labels),
        });
        self.inner.clone().commit(request).await.map(|_| ())
    }

    pub async fn remove(&self, key: &str) -> Result<(), Status> {
        let request = self.request(RemoveSnapshotRequest {
            snapshotter: Self::snapshotter(),
            key: key.into(),
        });
        self.inner.clone().remove(request).await.map(|_| ())
    }

    pub async fn stat(&self, key: &str) -> Result<Info, Status> {
        let request = self.request(StatSnapshotRequest {
            snapshotter: Self::snapshotter(),
            key: key.into(),
        });
        Ok(self.inner.clone().stat(request).await?.into_inner().info.unwrap())
    }

    pub async fn update(&self, name: &str, labels: Labels<'_>, paths: &[&str]) -> Result<Info, Status> {
        let paths = paths.iter().map(|p| p.to_string()).collect();
        let request = self.request(UpdateSnapshotRequest {
            snapshotter: Self::snapshotter(),
            info: Some(Info {
                name: name.into(),
                labels: owned(labels),
                ..Info::default()
            }),
            update_mask: Some(prost_types::FieldMask { paths }),
        });
        Ok(self.inner.clone().update(request).await?.into_inner().info.unwrap())
    }

    pub async fn list(&self, filters: &[&str]) -> Result<Vec<Info>, Status> {
        let request = self.request(ListSnapshotsRequest {
            snapshotter: Self::snapshotter(),
            filters: filters.iter().map(|f| f.to_string()).collect(),
        });
        let mut stream = self.inner.clone().list(request).await?.into_inner();
        let mut all = Vec::new();
        while let Some(batch) = stream.message().await? {
            all.extend(batch.info);
        }
        Ok(all)
    }

    /// Names of what `list` finds, sorted.
    pub async fn names(&self, filters: &[&str]) -> Vec<String> {
        let infos = self.list(filters).await.unwrap();
        let mut names: Vec<String> = infos.into_iter().map(|i| i.name).collect();
        names.sort();
        names
    }

    /// Bytes and inodes.
    pub async fn usage(&self, key: &str) -> Result<(i64, i64), Status> {
        let request = self.request(UsageRequest {
            snapshotter: Self::snapshotter(),
            key: key.into(),
        });
        let usage = self.inner.clone().usage(request).await?.into_inner();
        Ok((usage.size, usage.inodes))
    }

    pub async fn cleanup(&self) -> Result<(), Status> {
        let request = self.request(CleanupRequest {
            snapshotter: Self::snapshotter(),
        });
        self.inner.clone().cleanup(request).await.map(|_| ())
    }
}

/// The code a call failed with.
pub fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.expect_err("the call should fail").code()
}

/// The value of `name=` among a single mount's options.
pub fn option<'a>(mounts: &'a [Mount], name: &str) -> Option<&'a str> {
    assert_eq!(mounts.len(), 1, "{mounts:?}");
    let prefix = format!("{name}=");
    mounts[0].options.iter().find_map(|o| o.strip_prefix(&prefix))
}

/// Waits until `done` holds; panics after a time no machine needs.
pub async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..1500 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never happened: {what}");
}
