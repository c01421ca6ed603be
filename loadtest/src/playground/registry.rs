//! The upstream: Debian's docker-registry, on a loopback port, over a directory.
//!
//! In: a storage directory. Out: a running registry and its address.
//! Invariant: its configuration names only this playground's paths; a registry over the image cache is read-only, so that
//! any number of them may run at once.
//! Not here: what is in the storage ([`super::image`]).

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use headstart_layer_format::BlobDigest;

use super::{Result, ports, process::Process, tools, workdir::WorkDir};

/// It starts in well under a second; a loaded two-core machine may need much longer.
const START_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Registry {
    pub process: Process,
    pub address: SocketAddr,
    pub storage: PathBuf,
}

impl Registry {
    pub async fn start(work: &WorkDir, name: &str, storage: &Path, read_only: bool) -> Result<Registry> {
        Registry::start_with(work, name, storage, read_only, None).await
    }

    /// `tls`: certificate and key.
    pub async fn start_with(
        work: &WorkDir,
        name: &str,
        storage: &Path,
        read_only: bool,
        tls: Option<(&Path, &Path)>,
    ) -> Result<Registry> {
        let address = ports::free()?;
        // JSON strings are YAML strings.
        let quoted = |path: &Path| serde_json::Value::from(path.to_string_lossy().into_owned());
        let tls = tls.map(|(certificate, key)| {
            let (certificate, key) = (quoted(certificate), quoted(key));
            format!(", tls: {{certificate: {certificate}, key: {key}}}")
        });
        let config = format!(
            "version: 0.1\n\
             log: {{level: warn, accesslog: {{disabled: true}}}}\n\
             storage:\n  filesystem: {{rootdirectory: {storage}}}\n  cache: {{blobdescriptor: inmemory}}\n  \
             maintenance: {{readonly: {{enabled: {read_only}}}, uploadpurging: {{enabled: false}}}}\n\
             http: {{addr: '{address}'{more}}}\n",
            storage = quoted(storage),
            more = tls.as_deref().unwrap_or_default(),
        );
        let config = work.write(format!("{name}.yml"), &config)?;
        let mut command = Command::new(tools::find("docker-registry").unwrap_or_else(|| "docker-registry".into()));
        // REGISTRY_* variables would override the file.
        for (key, _) in std::env::vars_os().filter(|(k, _)| k.to_string_lossy().starts_with("REGISTRY_")) {
            command.env_remove(key);
        }
        command.arg("serve").arg(config);
        let mut process = Process::spawn(name, command, work, false)?;
        process
            .until_ready(START_TIMEOUT, || async {
                match tls {
                    None => answers(address, "/v2/").await,
                    Some(_) => tokio::net::TcpStream::connect(address).await.is_ok(),
                }
            })
            .await?;
        Ok(Registry {
            process,
            address,
            storage: storage.to_owned(),
        })
    }

    /// The file of a blob.
    pub fn blob(&self, digest: &BlobDigest) -> PathBuf {
        let hex = digest.to_string().split_off("sha256:".len());
        let blobs = self.storage.join("docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(&hex).join("data")
    }

    /// Has a repository have a blob, without a push.
    pub fn put(&self, repository: &str, digest: &BlobDigest, bytes: &[u8]) -> io::Result<()> {
        let link = self
            .storage
            .join("docker/registry/v2/repositories")
            .join(repository)
            .join("_layers")
            .join(digest.to_string().replace(':', "/"))
            .join("link");
        for (path, bytes) in [(self.blob(digest), bytes), (link, digest.to_string().as_bytes())] {
            if let Some(dir) = path.parent() {
                fs::create_dir_all(dir)?;
            }
            fs::write(path, bytes)?;
        }
        Ok(())
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Whether `GET path` is answered with 200.
pub async fn answers(address: SocketAddr, path: &str) -> bool {
    let Ok(client) = reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(2))
        .build()
    else {
        return false;
    };
    client
        .get(format!("http://{address}{path}"))
        .send()
        .await
        .is_ok_and(|r| r.status().is_success())
}
