//! kill -9 in the middle of cold pulls, again and again, over one data directory.
//!
//! In: the real binary, a scripted origin that is slow, clients that pull whole blobs and ranges of them, and
//! `HEADSTART_KILL_ROUNDS` (CI: 6; a campaign: 200 or more). Out: after each restart every blob is right, none is stuck,
//! and nothing is left over in the data directory.
//! Invariant: a body that ended properly has the right bytes, also in the moment before a kill; what a client saw of a
//! body that broke off is a prefix of the right bytes.
//! Not here: kills in the middle of a conversion (`lazy_api.rs`) and damage at rest (`store.rs`).

use std::{
    fmt::Write as _,
    io::Write as _,
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, future::join_all};
use headstart_layer_format::{BlobDigest, api::ImageStatus, routes};
use headstart_loadtest::{
    corpus::{Compression, Dialect, Flavor, LayerBuilder, Meta, Rng, SyntheticImage},
    origin::{Auth, Fault, Origin, Target},
};

const UPSTREAM: &str = "origin.test";
const REPOSITORY: &str = "team/app";

/// Blobs come at this rate while there is killing, so that most kills hit a fetch.
const SLOW_BYTES_PER_SEC: u64 = 6 << 20;
/// The latest moment of a kill: a little more than the slowest pull takes.
const KILL_AFTER_MS_MAX: u64 = 900;
/// Rounds over one data directory; then a fresh one, so that the disk does not fill.
const ROUNDS_A_DIRECTORY: u64 = 25;
/// The server's log, for whoever has to find out why a round failed.
const LOG: &str = "log";
const LOG_LINES_TOLD: usize = 60;
/// Nothing that works takes this long, on any machine.
const STUCK: Duration = Duration::from_secs(90);

fn rounds() -> u64 {
    let asked = std::env::var("HEADSTART_KILL_ROUNDS");
    asked.ok().and_then(|text| text.parse().ok()).unwrap_or(6)
}

/// The real binary over a data directory that outlives it.
struct Process {
    child: Child,
    url: String,
}

impl Process {
    async fn start(dir: &Path, origin: &Origin, http: &reqwest::Client) -> Self {
        let config = dir.join("server.toml");
        let mut file = std::fs::File::create(&config).unwrap();
        // Port 0: a port that was free a moment ago may be another test's server by now.
        write!(
            file,
            "listen = \"127.0.0.1:0\"\ndata_dir = {:?}\n[[upstreams]]\nname = \"{UPSTREAM}\"\nurl = \"{}\"\n[log]\nformat = \"json\"\n",
            data(dir),
            origin.url()
        )
        .unwrap();
        let log = dir.join(LOG);
        let child = Command::new(env!("CARGO_BIN_EXE_headstart-server"))
            .arg("--config")
            .arg(&config)
            .env_remove("RUST_LOG")
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut process = Self {
            child,
            url: String::new(),
        };
        for _ in 0..1200 {
            let text = std::fs::read_to_string(&log).unwrap();
            let address = text.lines().find_map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).ok()?;
                line["fields"]["listen"].as_str().map(str::to_owned)
            });
            if let Some(address) = address {
                process.url = format!("http://{address}");
                if let Ok(answer) = http.get(format!("{}{}", process.url, routes::READYZ)).send().await
                    && answer.status() == 200
                {
                    return process;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the server does not come back");
    }

    fn blob(&self, digest: &BlobDigest) -> String {
        format!("{}/v2/{REPOSITORY}/blobs/{digest}?ns={UPSTREAM}", self.url)
    }

    fn manifest(&self, image: &SyntheticImage) -> String {
        let digest = &image.manifest_digest;
        format!("{}/v2/{REPOSITORY}/manifests/{digest}?ns={UPSTREAM}", self.url)
    }

    fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).map_or(0, Iterator::count)
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
struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
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

fn data(dir: &Path) -> PathBuf {
    dir.join("data")
}

/// What one client got: the status, the bytes, and whether the body ended properly.
async fn read(http: &reqwest::Client, url: String, range: Option<&Range<u64>>) -> Option<(u16, Vec<u8>, bool)> {
    let mut request = http.get(url);
    if let Some(range) = range {
        request = request.header("range", format!("bytes={}-{}", range.start, range.end - 1));
    }
    let response = request.send().await.ok()?;
    let status = response.status().as_u16();
    let mut body = response.bytes_stream();
    let mut bytes = Vec::new();
    loop {
        match body.next().await {
            Some(Ok(piece)) => bytes.extend_from_slice(&piece),
            Some(Err(_)) => return Some((status, bytes, false)),
            None => return Some((status, bytes, true)),
        }
    }
}

/// Checks an answer as far as it came. Whether it was whole.
fn check(answer: Option<(u16, Vec<u8>, bool)>, content: &Bytes, range: Option<&Range<u64>>) -> bool {
    let Some((status, bytes, ended)) = answer else {
        return false;
    };
    let wanted = match (status, range) {
        (206, Some(range)) => content.slice(range.start as usize..range.end as usize),
        (200, _) => content.clone(),
        _ => return false,
    };
    assert!(
        wanted.starts_with(&bytes),
        "wrong bytes, status {status}, range {range:?}"
    );
    assert!(
        !ended || bytes.len() == wanted.len(),
        "a body that ended too early ended properly"
    );
    ended
}

/// What one round pulls.
struct Round {
    image: SyntheticImage,
    blobs: Vec<(BlobDigest, Bytes)>,
}

impl Round {
    fn new(origin: &Origin, rng: &mut Rng) -> Self {
        let layer = |rng: &mut Rng| {
            let mut layer = LayerBuilder::new(Dialect::Pax);
            for i in 0..6 {
                let len = 1000 + rng.below(400_000) as usize;
                layer.file(format!("f{i}"), Meta::default(), rng.bytes(len));
            }
            layer.finish(Compression::Gzip)
        };
        let image = SyntheticImage::new(Flavor::Oci, vec![layer(rng), layer(rng)]);
        image.push(origin, REPOSITORY, "latest");
        let mut blobs: Vec<_> = image.layers.iter().map(|l| (l.digest, l.blob.clone())).collect();
        let len = (2 << 20) + rng.below(3 << 20) as usize;
        let big = Bytes::from(rng.bytes(len));
        blobs.push((origin.add_blob(REPOSITORY, big.clone()), big));
        Self { image, blobs }
    }

    /// Clients that pull until the server is gone.
    async fn pull(self: Arc<Self>, process: Arc<Process>, http: reqwest::Client, seed: u64) {
        let mut rng = Rng::new(seed);
        let _ = http.get(process.manifest(&self.image)).send().await;
        for _ in 0..4 {
            let (digest, content) = &self.blobs[rng.below(self.blobs.len() as u64) as usize];
            let range = (rng.below(2) == 0).then(|| {
                let start = rng.below(content.len() as u64);
                start..start + 1 + rng.below(content.len() as u64 - start)
            });
            check(
                read(&http, process.blob(digest), range.as_ref()).await,
                content,
                range.as_ref(),
            );
        }
    }

    /// Everything, from a server that nobody kills.
    async fn verify(&self, process: &Process, http: &reqwest::Client) {
        for (digest, content) in &self.blobs {
            let part = 100..content.len() as u64 / 2;
            let answer = soon(read(http, process.blob(digest), Some(&part))).await;
            assert!(
                check(answer, content, Some(&part)),
                "a range of {digest} is stuck or broken"
            );
            let answer = soon(read(http, process.blob(digest), None)).await;
            assert!(check(answer, content, None), "{digest} is stuck or broken");
        }
        let manifest = soon(read(http, process.manifest(&self.image), None)).await;
        assert!(check(manifest, &self.image.manifest, None));
        let status = format!(
            "{}{}?wait_ms=20000",
            process.url,
            routes::image(&self.image.manifest_digest)
        );
        for _ in 0..5 {
            let answer = soon(http.get(&status).send()).await.unwrap();
            if answer.status() == 200 && answer.json::<ImageStatus>().await.unwrap().is_ready() {
                return;
            }
        }
        panic!("the image does not get ready after a kill");
    }
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(STUCK, work).await.expect("nothing is stuck")
}

/// Files below `originals/` that are no verified original, except the mark of the boot. Waits until fetches are out.
async fn leftovers(dir: &Path) -> String {
    let mut found = String::new();
    for _ in 0..100 {
        found.clear();
        let mut todo = vec![data(dir).join("originals")];
        while let Some(next) = todo.pop() {
            for entry in std::fs::read_dir(next).unwrap().flatten() {
                let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
                if path.is_dir() {
                    todo.push(path);
                } else if name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
                    // A file may be published between the look and here, never taken back.
                    let digest = BlobDigest::of(&std::fs::read(&path).unwrap());
                    assert_eq!(digest.hex(), name, "an original is not what its name says");
                } else if name != "boot-id" {
                    let _ = writeln!(found, "{}", path.display());
                }
            }
        }
        if found.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_of_cold_pulls_it_comes_back_with_the_right_bytes_and_nothing_else() {
    let origin = Origin::start(Auth::Anonymous);
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let rounds = rounds();
    let seed = u64::from(std::process::id());
    println!("{rounds} rounds, seed {seed}");
    let mut rng = Rng::new(seed);
    let mut dir = Directory::new();
    for n in 0..rounds {
        if n > 0 && n % ROUNDS_A_DIRECTORY == 0 {
            dir = Directory::new();
        }
        origin.clear_faults();
        let round = Arc::new(Round::new(&origin, &mut rng));
        origin.always(
            Target::Blobs,
            Fault::Throttle {
                bytes_per_sec: SLOW_BYTES_PER_SEC,
            },
        );
        // Twice, so that a fetch which was resumed is killed, too.
        for _ in 0..2 {
            let process = Arc::new(Process::start(dir.path(), &origin, &http).await);
            let clients = (0..4).map(|_| {
                let pull = round.clone().pull(process.clone(), http.clone(), rng.next_u64());
                tokio::spawn(pull)
            });
            let clients: Vec<_> = clients.collect();
            tokio::time::sleep(Duration::from_millis(rng.below(KILL_AFTER_MS_MAX))).await;
            // SIGKILL while the clients read; they see broken answers and go on to check what they got.
            let killed = kill_now(process.child.id());
            assert!(killed, "the server was running until it was killed");
            for client in join_all(clients).await {
                client.unwrap();
            }
        }
        origin.clear_faults();
        let process = Process::start(dir.path(), &origin, &http).await;
        round.verify(&process, &http).await;
        // Clients that hang up must not leave a file open, either.
        let before = process.open_files();
        for (digest, _) in &round.blobs {
            for _ in 0..20 {
                let mut body = http.get(process.blob(digest)).send().await.unwrap().bytes_stream();
                let _first = body.next().await;
            }
        }
        let mut after = process.open_files();
        for _ in 0..100 {
            if after <= before + 8 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            after = process.open_files();
        }
        assert!(after <= before + 8, "{after} open files, {before} before");
        let left = leftovers(dir.path()).await;
        assert!(left.is_empty(), "round {n} left files:\n{left}");
    }
}

/// SIGKILL by pid; the child is reaped when its owner is dropped.
fn kill_now(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok())
}
