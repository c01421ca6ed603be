//! The real binary over a data directory that outlives it.
//!
//! In: a directory, an origin, lines for the configuration. Out: a process that answers, its URLs, its end.
//! Invariant: a process ends by SIGKILL and in no other way. When a test fails, the end of the log is told.
//! Not here: servers that are stopped, or that nobody starts again (`support/binary.rs`).

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use headstart_layer_format::{BlobDigest, routes};
use headstart_loadtest::{
    corpus::{Rng, SyntheticImage},
    origin::Origin,
};

use crate::{REPOSITORY, UPSTREAM};

/// The server's log, for whoever has to find out why a round failed.
const LOG: &str = "log";
const LOG_LINES_TOLD: usize = 60;
/// The latest moment of a kill that waits for nothing: a start takes about as long.
const KILL_AT_START_MS_MAX: u64 = 300;

pub struct Process {
    child: Child,
    pub url: String,
}

impl Process {
    /// `more`: tables of the configuration.
    pub async fn start(dir: &Path, origin: &Origin, more: &str, http: &reqwest::Client) -> Self {
        let mut process = Self::spawn(dir, origin, more);
        process.answers(dir, http).await;
        process
    }

    /// One that is killed as early as it may be: in the middle of its recovery.
    pub async fn start_in_vain(dir: &Path, origin: &Origin, more: &str, rng: &mut Rng) {
        let process = Self::spawn(dir, origin, more);
        tokio::time::sleep(Duration::from_millis(rng.below(KILL_AT_START_MS_MAX))).await;
        process.kill();
    }

    fn spawn(dir: &Path, origin: &Origin, more: &str) -> Self {
        let config = config_file(dir);
        let mut file = std::fs::File::create(&config).unwrap();
        // Port 0: a port that was free a moment ago may be another test's server by now.
        write!(
            file,
            "listen = \"127.0.0.1:0\"\ndata_dir = {:?}\n[[upstreams]]\nname = \"{UPSTREAM}\"\nurl = \"{}\"\n[log]\nformat = \"json\"\n{more}",
            data(dir),
            origin.url()
        )
        .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_headstart-server"))
            .arg("--config")
            .arg(&config)
            .env_remove("RUST_LOG")
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.join(LOG)).unwrap())
            .spawn()
            .unwrap();
        Self {
            child,
            url: String::new(),
        }
    }

    /// Waits until it does.
    async fn answers(&mut self, dir: &Path, http: &reqwest::Client) {
        let log = dir.join(LOG);
        for _ in 0..1200 {
            let text = std::fs::read_to_string(&log).unwrap();
            let address = text.lines().find_map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).ok()?;
                line["fields"]["listen"].as_str().map(str::to_owned)
            });
            if let Some(address) = address {
                self.url = format!("http://{address}");
                if let Ok(answer) = http.get(format!("{}{}", self.url, routes::READYZ)).send().await
                    && answer.status() == 200
                {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the server does not come back");
    }

    pub fn blob(&self, digest: &BlobDigest) -> String {
        format!("{}/v2/{REPOSITORY}/blobs/{digest}?ns={UPSTREAM}", self.url)
    }

    pub fn manifest(&self, image: &SyntheticImage) -> String {
        let digest = &image.manifest_digest;
        format!("{}/v2/{REPOSITORY}/manifests/{digest}?ns={UPSTREAM}", self.url)
    }

    /// What its open files are, as far as they are files.
    pub fn open_files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(format!("/proc/{}/fd", self.child.id()));
        let links = entries
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| std::fs::read_link(entry.path()));
        links.flatten().collect()
    }

    /// SIGKILL, while others have it in their hands; it is reaped when the last drops it.
    pub fn kill(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let killed = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        assert!(killed.is_ok(), "the server was running until it was killed");
    }
}

/// SIGKILL.
impl Drop for Process {
    fn drop(&mut self) {
        let dead = self.child.try_wait();
        if std::thread::panicking() {
            println!("the server before its end: {dead:?}");
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the process lives. When a round fails, the end of the log is told.
pub struct Directory(tempfile::TempDir);

impl Directory {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let log = std::fs::read_to_string(self.path().join(LOG)).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        println!("{}", lines[lines.len().saturating_sub(LOG_LINES_TOLD)..].join("\n"));
    }
}

pub fn data(dir: &Path) -> PathBuf {
    dir.join("data")
}

/// Of the last process.
pub fn config_file(dir: &Path) -> PathBuf {
    dir.join("server.toml")
}
