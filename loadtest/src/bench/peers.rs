//! The servers that are compared.
//!
//! In: the content. Out: running servers that all have it.
//! Invariant: every one is configured as its operators would for speed: no access log, keep-alive without a limit,
//! descriptors cached, sendfile where there is one. Headstart answers tags for an hour without asking again, because a
//! plain registry and nginx ask nobody; the proxying registry asks its upstream each time, as it always does.
//! Not here: measuring.

use std::{net::SocketAddr, path::Path, process::Command, time::Duration};

use headstart_layer_format::{BlobDigest, routes};

use super::{
    BenchConfig,
    content::{Content, REPOSITORY, TAG},
    usage,
};
use crate::playground::{
    PlaygroundError, Result, ports,
    process::Process,
    registry::{Registry, answers},
    tools,
    workdir::WorkDir,
};

/// A loaded two-core machine may need much of it.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// One a core of the machines this is run on; more only take turns.
const NGINX_WORKERS: u32 = 2;

/// A server is quiet when it uses less CPU than this in one look.
const QUIET: Duration = Duration::from_millis(20);
const LOOK: Duration = Duration::from_millis(400);
const LOOKS_MAX: usize = 150;

#[derive(Debug)]
pub struct Peer {
    pub label: String,
    pub address: SocketAddr,
    pub process: Process,
}

/// The upstream comes first, because the others need it.
pub async fn start(work: &WorkDir, config: &BenchConfig, content: &Content) -> Result<Vec<Peer>> {
    let wants = |name: &str| config.peers.iter().any(|peer| peer == name);
    let upstream = Registry::start(work, "registry", &work.dir("registry.storage")?, false).await?;
    push(&upstream.url(), content).await?;
    let url = upstream.url();
    let mut peers = vec![Peer {
        label: "registry".into(),
        address: upstream.address,
        process: upstream.process,
    }];
    if wants("registry-proxy") {
        peers.push(registry_proxy(work, &url).await?);
    }
    if wants("nginx") {
        peers.push(nginx(work, content).await?);
    }
    for (i, binary) in config.headstart.iter().enumerate() {
        let (label, path) = match binary.split_once('=') {
            Some((label, path)) => (label.to_owned(), path),
            None if i == 0 => ("headstart".to_owned(), binary.as_str()),
            None => (format!("headstart-{}", i + 1), binary.as_str()),
        };
        peers.push(headstart(work, label, Path::new(path), &url).await?);
    }
    Ok(peers)
}

async fn registry_proxy(work: &WorkDir, upstream: &str) -> Result<Peer> {
    let address = ports::free()?;
    let storage = work.dir(format!("registry-proxy-{}.storage", address.port()))?;
    let config = format!(
        "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\n\
         storage:\n  filesystem: {{rootdirectory: {}}}\n  cache: {{blobdescriptor: inmemory}}\n\
         http: {{addr: '{address}'}}\nproxy: {{remoteurl: '{upstream}'}}\n",
        // JSON strings are YAML strings.
        serde_json::Value::from(storage.to_string_lossy().into_owned()),
    );
    let config = work.write("registry-proxy.yml", &config)?;
    let mut command = Command::new(tools::find("docker-registry").unwrap_or_else(|| "docker-registry".into()));
    command.arg("serve").arg(config);
    spawn(work, "registry-proxy".into(), command, address, "/v2/").await
}

async fn nginx(work: &WorkDir, content: &Content) -> Result<Peer> {
    let root = work.dir("nginx.root")?;
    let io = |e| PlaygroundError::io("write nginx's files")(e);
    content.write_files(&root).map_err(io)?;
    std::fs::write(root.join("ready"), "").map_err(io)?;
    nginx_with(work, "nginx", &format!("root {};", root.display()), "").await
}

/// A proxy that keeps what passes through it, as its operators would set it up before a registry.
pub(super) async fn caching_proxy(work: &WorkDir, name: &str, upstream: &str) -> Result<Peer> {
    match name {
        "nginx" => {
            let label = format!("nginx-{}", ports::free()?.port());
            let kept = work.dir(format!("{label}.kept"))?;
            let path = format!("proxy_cache_path {} keys_zone=blobs:10m;\n  ", kept.display());
            let address = upstream.trim_start_matches("http://");
            let location = "location = /ready { return 200; } location / { proxy_pass http://up; proxy_cache blobs; \
                            proxy_cache_lock on; proxy_cache_valid 200 1h; proxy_http_version 1.1; \
                            proxy_set_header Connection \"\"; }";
            let upstreams = format!("upstream up {{ server {address}; keepalive 16; }}\n  {path}");
            nginx_with(work, &label, location, &upstreams).await
        }
        "registry-proxy" => registry_proxy(work, upstream).await,
        other => Err(PlaygroundError::unexpected(
            "start a proxy to compare with",
            format!("{other} is not known"),
        )),
    }
}

/// `what`: of the server; `beside`: of what is around it.
async fn nginx_with(work: &WorkDir, label: &str, what: &str, beside: &str) -> Result<Peer> {
    let binary = tools::find("nginx").ok_or_else(|| PlaygroundError::ToolsMissing(vec!["nginx".into()]))?;
    let address = ports::free()?;
    let dir = work.dir(label)?;
    let dir = dir.display();
    // As root its workers would become somebody who cannot read the work directory.
    let user = if rustix::process::geteuid().is_root() {
        "user root;\n"
    } else {
        ""
    };
    let config = format!(
        "{user}daemon off;\nworker_processes {NGINX_WORKERS};\npid {dir}/pid;\nerror_log stderr error;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n  access_log off;\n  sendfile on;\n  tcp_nopush on;\n  open_file_cache max=100;\n  \
         keepalive_timeout 60;\n  keepalive_requests 1000000000;\n  default_type application/octet-stream;\n  \
         client_body_temp_path {dir}/a;\n  proxy_temp_path {dir}/b;\n  fastcgi_temp_path {dir}/c;\n  \
         uwsgi_temp_path {dir}/d;\n  scgi_temp_path {dir}/e;\n  {beside}\
         server {{ listen {address}; {what} }}\n}}\n"
    );
    let config = work.write(format!("{label}.conf"), &config)?;
    let mut command = Command::new(binary);
    command.arg("-c").arg(config).arg("-e").arg("stderr");
    spawn(work, label.into(), command, address, "/ready").await
}

async fn headstart(work: &WorkDir, label: String, binary: &Path, upstream: &str) -> Result<Peer> {
    if !binary.is_file() {
        return Err(PlaygroundError::BinaryMissing(binary.to_owned()));
    }
    let address = ports::free()?;
    let data_dir = toml::Value::from(work.dir(format!("{label}.data"))?.to_string_lossy().into_owned());
    let config = format!(
        "listen = \"{address}\"\ndata_dir = {data_dir}\ndefault_upstream = \"bench.test\"\n\
         [fetch]\ntag_fresh_ms = 3600000\n\
         [log]\nfilter = \"warn\"\n\
         [[upstreams]]\nname = \"bench.test\"\nurl = \"{upstream}\"\n"
    );
    let config = work.write(format!("{label}.toml"), &config)?;
    let mut command = Command::new(binary);
    command.arg("--config").arg(config);
    spawn(work, label, command, address, routes::READYZ).await
}

pub(super) async fn spawn(
    work: &WorkDir,
    label: String,
    mut command: Command,
    address: SocketAddr,
    ready: &str,
) -> Result<Peer> {
    // REGISTRY_* would override the registry's file, RUST_LOG ours.
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("REGISTRY_") || key == "RUST_LOG" {
            command.env_remove(key);
        }
    }
    let mut process = Process::spawn(&label, command, work, false)?;
    process
        .until_ready(START_TIMEOUT, || async { answers(address, ready).await })
        .await?;
    Ok(Peer {
        label,
        address,
        process,
    })
}

impl Peer {
    /// Every answer, compared byte for byte.
    pub async fn check(&self, content: &Content) -> Result<()> {
        let client = client()?;
        for asked in content.asked() {
            let what = format!("get {} from {}", asked.name, self.label);
            let failed = |e: reqwest::Error| PlaygroundError::unexpected(what.clone(), e);
            let url = format!("http://{}{}", self.address, asked.path);
            let answer = client
                .get(url)
                .header(http::header::ACCEPT, content.manifest_type())
                .send()
                .await
                .and_then(reqwest::Response::error_for_status)
                .map_err(failed)?;
            if answer.bytes().await.map_err(failed)? != asked.body {
                return Err(PlaygroundError::unexpected(what, "it has other bytes"));
            }
        }
        Ok(())
    }
}

/// Waits until what the first requests started (conversions, copies into caches) is over.
pub async fn settle(peers: &[Peer]) {
    let cpu = || -> Duration {
        let pids: Vec<u32> = peers.iter().flat_map(|p| usage::family(p.process.pid())).collect();
        usage::cpu(&pids)
    };
    let mut last = cpu();
    for _ in 0..LOOKS_MAX {
        tokio::time::sleep(LOOK).await;
        let now = cpu();
        if now.saturating_sub(last) <= QUIET {
            return;
        }
        last = now;
    }
}

fn client() -> Result<reqwest::Client> {
    reqwest::Client::builder()
        .no_proxy()
        .timeout(START_TIMEOUT)
        .build()
        .map_err(|e| PlaygroundError::unexpected("make an HTTP client", e))
}

/// Uploads the image to a registry.
async fn push(registry: &str, content: &Content) -> Result<()> {
    let client = client()?;
    let failed = |e: reqwest::Error| PlaygroundError::unexpected("push the content", e);
    let blobs = content.layers.iter().map(|l| &l.blob).chain([&content.config]);
    for blob in blobs {
        let begun = client
            .post(format!("{registry}/v2/{REPOSITORY}/blobs/uploads/"))
            .send()
            .await
            .and_then(reqwest::Response::error_for_status)
            .map_err(failed)?;
        let location = begun
            .headers()
            .get(http::header::LOCATION)
            .and_then(|v| v.to_str().ok());
        let location = location.ok_or_else(|| PlaygroundError::unexpected("push the content", "no Location"))?;
        let mut url = begun
            .url()
            .join(location)
            .map_err(|e| PlaygroundError::unexpected("push the content", e))?;
        url.query_pairs_mut()
            .append_pair("digest", &BlobDigest::of(blob).to_string());
        let put = client.put(url).body(blob.clone()).send().await;
        put.and_then(reqwest::Response::error_for_status).map_err(failed)?;
    }
    let put = client
        .put(format!("{registry}/v2/{REPOSITORY}/manifests/{TAG}"))
        .header(http::header::CONTENT_TYPE, content.manifest_type())
        .body(content.manifest.clone())
        .send()
        .await;
    put.and_then(reqwest::Response::error_for_status).map_err(failed)?;
    Ok(())
}
