//! The shim under test, as a process.
//!
//! In: its binary, a root directory, the servers it may ask. Out: a snapshotter on a unix socket.
//! Invariant: nobody keeps its mounts, unless its configuration says so; it is stopped after its containerd and before its directory is unmounted and removed.
//! Not here: containerd ([`super::containerd`]).

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    os::unix::{fs::MetadataExt, net::UnixStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use super::{PlaygroundError, Result, mounts, process::Process, proxy::Counters, sources::Sources, workdir::WorkDir};

const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Of one read of its metrics, which take it a millisecond, and the text's length: some 20 KiB.
const METRICS_TIMEOUT: Duration = Duration::from_secs(5);
const METRICS_MAX: u64 = 1 << 20;

#[derive(Debug)]
pub struct Shim {
    pub process: Process,
    pub socket: PathBuf,
    pub root: PathBuf,
    binary: PathBuf,
    config: PathBuf,
}

impl Shim {
    /// `more`: what its configuration has besides. Its mounts show in every mount namespace that is made later, also in
    /// forky's.
    pub async fn start(work: &WorkDir, name: &str, binary: &Path, server_url: &str, more: &str) -> Result<Shim> {
        let root = work.dir(format!("{name}.root"))?;
        mounts::share(&root).map_err(PlaygroundError::io("share the shim's mounts"))?;
        let socket = work.path().join(format!("{name}.sock"));
        let quoted = |s: &str| toml::Value::from(s).to_string();
        // The work directory is removed with all that is mounted in it.
        let nobody = match more.contains("[survival]") {
            true => "",
            false => "[survival]\nkeep_with = \"nobody\"\n",
        };
        let config = format!(
            "root_dir = {}\nsocket = {}\nservers = [{}]\n{nobody}{more}",
            quoted(&root.to_string_lossy()),
            quoted(&socket.to_string_lossy()),
            quoted(server_url),
        );
        let config = work.write(format!("{name}.toml"), &config)?;
        let process = Self::run(work, name, binary, &config, &socket).await?;
        Ok(Shim {
            process,
            socket,
            root,
            binary: binary.to_owned(),
            config,
        })
    }

    /// Another process on the same state, in place of one that has ended.
    pub async fn successor(&self, work: &WorkDir, name: &str) -> Result<Process> {
        Self::run(work, name, &self.binary, &self.config, &self.socket).await
    }

    async fn run(work: &WorkDir, name: &str, binary: &Path, config: &Path, socket: &Path) -> Result<Process> {
        let mut command = Command::new(binary);
        command.arg("--config").arg(config);
        let mut process = Process::spawn(name, command, work, false)?;
        process
            .until_ready(START_TIMEOUT, || {
                let probe = socket.to_owned();
                async move { tokio::net::UnixStream::connect(probe).await.is_ok() }
            })
            .await?;
        Ok(process)
    }

    /// Ends whoever keeps mounts of the shim on `root`, also if containers still use them: they get errors from then on.
    /// Without this, and without a shim, whoever looks at such a mount waits for ever.
    pub fn end_holder(root: &Path) {
        use rustix::net::{
            AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send, socket_with,
        };
        let quit = || -> rustix::io::Result<()> {
            let address = SocketAddrUnix::new(root.join("holder.sock"))?;
            let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
            connect(&socket, &address)?;
            // The protocol is in client-shim/src/survival/holder.rs.
            send(&socket, b"quit", SendFlags::NOSIGNAL)?;
            let mut answer = [0; 16];
            rustix::net::recv(&socket, &mut answer, rustix::net::RecvFlags::empty())?;
            Ok(())
        };
        // Nobody there is the usual case.
        let _ = quit();
    }

    /// What it has said so far.
    pub fn log_text(&self) -> String {
        fs::read_to_string(self.process.log()).unwrap_or_default()
    }

    /// Compressed size of the chunks that containers have read through it, as `status` says; `None` if it says nothing.
    pub fn read_bytes(&self) -> Option<u64> {
        let status = self.status()?;
        // A layer of several images is read once.
        let mut layers = BTreeMap::new();
        for layer in status["images"]
            .as_array()?
            .iter()
            .filter_map(|i| i["layers"].as_array())
            .flatten()
        {
            layers.insert(layer["digest"].as_str()?, layer["read_bytes"].as_u64()?);
        }
        Some(layers.values().sum())
    }

    /// When a container first read something of a lazy layer, of the image that was prepared last; `None` if the shim saw
    /// none.
    pub fn first_read(&self) -> Option<SystemTime> {
        let ms = self.status()?["prefetches"][0]["first_read_unix_ms"].as_u64()?;
        Some(SystemTime::UNIX_EPOCH + Duration::from_millis(ms))
    }

    /// Where its chunks came from until now; `None` if it does not say. One exchange on its admin socket.
    pub fn sources(&self) -> Option<Sources> {
        let stem = self.socket.file_stem()?.to_string_lossy();
        let mut stream = UnixStream::connect(self.socket.with_file_name(format!("{stem}-admin.sock"))).ok()?;
        stream.set_read_timeout(Some(METRICS_TIMEOUT)).ok()?;
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: shim\r\nConnection: close\r\n\r\n")
            .ok()?;
        let mut answer = String::new();
        stream.take(METRICS_MAX).read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let is_there = head.starts_with("HTTP/1.1 200") && body.contains("headstart_shim_fetched_bytes_total");
        is_there.then(|| Sources::of(&Counters::parse(body)))
    }

    fn status(&self) -> Option<serde_json::Value> {
        let mut command = Command::new(&self.binary);
        command.arg("--config").arg(&self.config).args(["status", "--json"]);
        let output = command.output().ok()?;
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Bytes its files take on disk: cache files are sparse, so this is what was fetched, uncompressed. Mounts below are
    /// not entered.
    pub fn disk_bytes(&self) -> u64 {
        let Ok(top) = fs::symlink_metadata(&self.root) else {
            return 0;
        };
        let mut sum = 0;
        let mut dirs = vec![self.root.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                let Ok(meta) = fs::symlink_metadata(entry.path()) else {
                    continue;
                };
                if meta.dev() != top.dev() {
                    continue;
                }
                if meta.is_dir() {
                    dirs.push(entry.path());
                } else {
                    sum += meta.blocks() * 512;
                }
            }
        }
        sum
    }
}
