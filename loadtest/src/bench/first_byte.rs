//! Time to the first byte of a cold blob: through the mirror, beside asking its upstream directly, and through other caching
//! proxies.
//!
//! In: a [`FirstByteConfig`]. Out: a [`Report`]: for each situation the times, and their ratios.
//! Invariant: every blob is asked for once at each, in turns, over a new connection, so that each is cold for the mirror
//! and neither has an open way there. The upstream is the same for both: one in this process, which can be as far away as
//! wanted, or a real docker-registry on this machine. Of a situation "with ingest"
//! only asks count before and after which conversions were under way.
//! Not here: warm blobs and rates ([`super::run`]).

use std::{fmt::Write as _, net::SocketAddr, path::PathBuf, process::Command, time::Duration, time::Instant};

use headstart_layer_format::{BlobDigest, routes};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{
    http, peers,
    report::{number, plain_table},
};
use crate::{
    corpus::{Compression, Dialect, LayerBuilder, Meta, Rng, SyntheticImage, SyntheticLayer},
    origin::{Auth, Fault, Origin, Target},
    playground::{
        PlaygroundError, Result, ports,
        progress::Progress,
        registry::{Registry, answers},
        report::median,
        workdir::WorkDir,
    },
};

const REPOSITORY: &str = "bench/first-byte";

/// Longest time to a first byte; longer is an error.
const ASK_TIMEOUT: Duration = Duration::from_secs(60);
/// Until the ingest has begun.
const INGEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Conversions at this level use the CPU for long without needing much data.
const ZSTD_LEVEL: u32 = 19;
const CONVERSIONS: &str = "headstart_conversions_in_progress";

/// What is measured.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FirstByteConfig {
    /// headstart-server's binary.
    pub headstart: PathBuf,
    /// What the upstream lets pass before its head: the way to it. One situation each.
    pub upstream_delay_ms: Vec<u64>,
    /// Also a situation with a docker-registry on this machine.
    pub registry: bool,
    pub rounds: usize,
    /// Other caching proxies, for comparison: `nginx`, `registry-proxy`.
    pub peers: Vec<String>,
    /// Between two rounds: spreads them over the ingest.
    pub pause_ms: u64,
    pub blob_bytes: usize,
    /// Layers whose conversion is ahead, and the bytes of each before compression.
    pub ingest_layers: usize,
    pub ingest_layer_bytes: usize,
    pub json: Option<PathBuf>,
}

impl Default for FirstByteConfig {
    fn default() -> Self {
        Self {
            headstart: PathBuf::new(),
            upstream_delay_ms: vec![0, 20],
            registry: true,
            rounds: 60,
            peers: vec!["nginx".into(), "registry-proxy".into()],
            pause_ms: 500,
            blob_bytes: 2 << 20,
            ingest_layers: 24,
            ingest_layer_bytes: 32 << 20,
            json: None,
        }
    }
}

/// One ask.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Times {
    pub head_ms: f64,
    pub first_byte_ms: f64,
}

#[derive(Debug, Serialize)]
pub struct Situation {
    pub upstream: String,
    pub ingest: bool,
    /// From the first ask to the end of the last: conversions that were under way all that time were so much work ahead.
    pub asks_secs: f64,
    pub direct: Vec<Times>,
    pub mirror: Vec<Times>,
    /// Of other proxies, by name. They have nothing to convert.
    pub peers: Vec<(String, Vec<Times>)>,
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub situations: Vec<Situation>,
}

pub async fn run(config: &FirstByteConfig, progress: &Progress) -> Result<Report> {
    let work = WorkDir::create()?;
    let mut situations = Vec::new();
    let mut seed = 0;
    for &delay_ms in &config.upstream_delay_ms {
        for ingest in [false, true] {
            let upstream = Source::Scripted(Origin::start(Auth::Anonymous));
            let label = format!("{delay_ms} ms away");
            situations.push(situation(&work, config, progress, (upstream, label), delay_ms, ingest, &mut seed).await?);
        }
    }
    if config.registry {
        let storage = work.dir("first-byte-registry")?;
        let registry = Registry::start(&work, "first-byte-registry", &storage, false).await?;
        let upstream = (Source::Registry(registry), "docker-registry".to_owned());
        situations.push(situation(&work, config, progress, upstream, 0, false, &mut seed).await?);
    }
    Ok(Report { situations })
}

/// The upstream.
enum Source {
    Scripted(Origin),
    Registry(Registry),
}

impl Source {
    fn address(&self) -> SocketAddr {
        match self {
            Self::Scripted(origin) => origin.address(),
            Self::Registry(registry) => registry.address,
        }
    }

    fn add_blob(&self, bytes: Vec<u8>) -> Result<BlobDigest> {
        match self {
            Self::Scripted(origin) => Ok(origin.add_blob(REPOSITORY, bytes)),
            Self::Registry(registry) => {
                let what = "put a blob into the registry's storage";
                let digest = BlobDigest::of(&bytes);
                registry
                    .put(REPOSITORY, &digest, &bytes)
                    .map_err(PlaygroundError::io(what))?;
                Ok(digest)
            }
        }
    }

    fn remove(&self, blob: &BlobDigest) {
        match self {
            Self::Scripted(origin) => origin.remove(REPOSITORY, blob),
            Self::Registry(registry) => {
                let _ = std::fs::remove_file(registry.blob(blob));
            }
        }
    }
}

async fn situation(
    work: &WorkDir,
    config: &FirstByteConfig,
    progress: &Progress,
    (upstream, label): (Source, String),
    delay_ms: u64,
    ingest: bool,
    seed: &mut u64,
) -> Result<Situation> {
    let url = format!("http://{}", upstream.address());
    let mut mirror = start(work, config, &url).await?;
    let mut peers = Vec::new();
    for name in config.peers.iter().filter(|_| !ingest) {
        peers.push(peers::caching_proxy(work, name, &url).await?);
    }
    let mut situation = Situation {
        upstream: label,
        ingest,
        asks_secs: 0.0,
        direct: Vec::new(),
        mirror: Vec::new(),
        peers: peers.iter().map(|peer| (peer.label.clone(), Vec::new())).collect(),
    };
    if let Source::Scripted(origin) = &upstream {
        if ingest {
            progress.step("making layers to convert");
            begin_ingest(config, origin, mirror.address).await?;
        }
        origin.always(Target::Blobs, Fault::DelayHeaders(Duration::from_millis(delay_ms)));
    }
    let begun = Instant::now();
    for round in 0..config.rounds {
        progress.step(format!(
            "upstream {}, {}: round {} of {}",
            situation.upstream,
            if ingest { "conversions ahead" } else { "idle" },
            round + 1,
            config.rounds
        ));
        *seed += 1;
        let blob = upstream.add_blob(Rng::new(*seed).bytes(config.blob_bytes))?;
        let path = format!("/v2/{REPOSITORY}/blobs/{blob}");
        if ingest && conversions(mirror.address).await? == 0 {
            return Err(ended_early());
        }
        // Whoever comes second finds the blob in the upstream's memory.
        let (direct, through) = if round % 2 == 0 {
            let direct = ask(upstream.address(), &path).await?;
            (direct, ask(mirror.address, &path).await?)
        } else {
            let through = ask(mirror.address, &path).await?;
            (ask(upstream.address(), &path).await?, through)
        };
        if ingest && conversions(mirror.address).await? == 0 {
            return Err(ended_early());
        }
        situation.asks_secs = begun.elapsed().as_secs_f64();
        situation.direct.push(direct);
        situation.mirror.push(through);
        for (peer, (_, times)) in peers.iter().zip(&mut situation.peers) {
            times.push(ask(peer.address, &path).await?);
        }
        tokio::time::sleep(Duration::from_millis(config.pause_ms)).await;
        upstream.remove(&blob);
    }
    mirror.process.stop();
    for mut peer in peers {
        peer.process.stop();
    }
    Ok(situation)
}

fn ended_early() -> PlaygroundError {
    PlaygroundError::unexpected(
        "measure with conversions ahead",
        "they ended before the measuring did: ask for more or larger layers",
    )
}

async fn start(work: &WorkDir, config: &FirstByteConfig, url: &str) -> Result<peers::Peer> {
    if !config.headstart.is_file() {
        return Err(PlaygroundError::BinaryMissing(config.headstart.clone()));
    }
    let address = ports::free()?;
    let label = format!("headstart-{}", address.port());
    let data_dir = toml::Value::from(work.dir(format!("{label}.data"))?.to_string_lossy().into_owned());
    let text = format!(
        "listen = \"{address}\"\ndata_dir = {data_dir}\ndefault_upstream = \"bench.test\"\n\
         [ingest]\nzstd_level = {ZSTD_LEVEL}\n[log]\nfilter = \"warn\"\n\
         [[upstreams]]\nname = \"bench.test\"\nurl = \"{url}\"\n"
    );
    let mut command = Command::new(&config.headstart);
    command.arg("--config").arg(work.write(format!("{label}.toml"), &text)?);
    peers::spawn(work, label, command, address, routes::READYZ).await
}

/// Has the mirror begin to convert an image.
async fn begin_ingest(config: &FirstByteConfig, origin: &Origin, mirror: SocketAddr) -> Result<()> {
    let layers = (0..config.ingest_layers).map(|i| layer(i as u64, config.ingest_layer_bytes));
    SyntheticImage::new(Default::default(), layers.collect()).push(origin, REPOSITORY, "ahead");
    let deadline = Instant::now() + INGEST_TIMEOUT;
    while !answers(mirror, &format!("/v2/{REPOSITORY}/manifests/ahead")).await || conversions(mirror).await? == 0 {
        if Instant::now() > deadline {
            return Err(PlaygroundError::unexpected("begin conversions", "none is under way"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

fn layer(seed: u64, bytes: usize) -> SyntheticLayer {
    let mut layer = LayerBuilder::new(Dialect::Ustar);
    layer.file(format!("text-{seed}"), Meta::mode(0o644), Rng::new(seed).text(bytes));
    layer.finish(Compression::Gzip)
}

/// Conversions under way, as the mirror says.
async fn conversions(mirror: SocketAddr) -> Result<u64> {
    let what = "read the mirror's metrics";
    let answer = reqwest::get(format!("http://{mirror}{}", routes::METRICS)).await;
    let text = match answer {
        Ok(answer) => answer.text().await,
        Err(error) => Err(error),
    };
    let text = text.map_err(|e| PlaygroundError::unexpected(what, e))?;
    let lines = text.lines().filter(|line| line.starts_with(CONVERSIONS));
    let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    Ok(values.sum::<f64>() as u64)
}

/// From before the connection to the head's end, and to the first byte behind it.
async fn ask(address: SocketAddr, path: &str) -> Result<Times> {
    let what = format!("get a blob from {address}");
    let asked = async {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(&http::request(address, path)).await?;
        let (mut got, mut head) = (Vec::with_capacity(1 << 17), None);
        loop {
            if stream.read_buf(&mut got).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let end = got.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4);
            let Some(end) = end else { continue };
            let head = *head.get_or_insert(begun.elapsed());
            if got.get(9..12) != Some(b"200") {
                return Err(std::io::Error::other("it is not a 200"));
            }
            if got.len() > end {
                let ms = |time: Duration| time.as_secs_f64() * 1e3;
                return Ok(Times {
                    head_ms: ms(head),
                    first_byte_ms: ms(begun.elapsed()),
                });
            }
        }
    };
    match timeout(ASK_TIMEOUT, asked).await {
        Ok(times) => times.map_err(PlaygroundError::io(what)),
        Err(_) => Err(PlaygroundError::unexpected(what, "no byte came in time")),
    }
}

/// The value that a share of all are below.
fn quantile(times: &[Times], share: f64, of: fn(&Times) -> f64) -> f64 {
    let mut values: Vec<f64> = times.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    let at = (values.len().saturating_sub(1) as f64 * share).round() as usize;
    values.get(at).copied().unwrap_or(f64::NAN)
}

impl Situation {
    /// Median of the mirror's times by that of the direct ones.
    pub fn ratio(&self, of: fn(&Times) -> f64) -> f64 {
        self.ratio_of(&self.mirror, of)
    }

    fn ratio_of(&self, times: &[Times], of: fn(&Times) -> f64) -> f64 {
        median(times.iter().map(of)) / median(self.direct.iter().map(of))
    }
}

impl Report {
    pub fn table(&self) -> String {
        let columns = [
            "upstream",
            "conversions",
            "asked",
            "head p50 ms",
            "first byte p50 ms",
            "p90 ms",
            "p99 ms",
            "head ratio",
            "first byte ratio",
        ];
        let mut table = plain_table(&columns);
        for situation in &self.situations {
            let own = [("upstream", &situation.direct), ("mirror", &situation.mirror)];
            let peers = situation.peers.iter().map(|(name, times)| (name.as_str(), times));
            for (asked, times) in own.into_iter().chain(peers) {
                let first = |share| number(quantile(times, share, |t| t.first_byte_ms));
                let ratio = |of| match asked {
                    "upstream" => "-".to_owned(),
                    _ => number(situation.ratio_of(times, of)),
                };
                table.add_row([
                    situation.upstream.clone(),
                    if situation.ingest { "ahead" } else { "none" }.to_owned(),
                    asked.to_owned(),
                    number(quantile(times, 0.5, |t| t.head_ms)),
                    first(0.5),
                    first(0.9),
                    first(0.99),
                    ratio(|t| t.head_ms),
                    ratio(|t| t.first_byte_ms),
                ]);
            }
        }
        let mut text = format!("Time to the first byte of a cold blob.\n{table}\n");
        for situation in self.situations.iter().filter(|s| s.ingest) {
            let _ = writeln!(
                text,
                "With an upstream {}, conversions were under way during all {} asks, which took {:.0} s.",
                situation.upstream,
                situation.mirror.len(),
                situation.asks_secs
            );
        }
        text
    }

    /// Blobs that were asked for.
    pub fn asks(&self) -> usize {
        self.situations.iter().map(|s| s.mirror.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_that_of_the_medians() {
        let times = |all: &[f64]| -> Vec<Times> {
            let of = |&ms: &f64| Times {
                head_ms: ms,
                first_byte_ms: 2.0 * ms,
            };
            all.iter().map(of).collect()
        };
        let situation = Situation {
            upstream: "20 ms away".into(),
            ingest: true,
            asks_secs: 31.0,
            direct: times(&[10.0, 1.0, 1000.0]),
            mirror: times(&[11.0, 500.0, 9.0]),
            peers: vec![("nginx".into(), times(&[25.0]))],
        };
        assert!((situation.ratio(|t| t.head_ms) - 1.1).abs() < 1e-9);
        assert!((quantile(&situation.mirror, 0.9, |t| t.first_byte_ms) - 1000.0).abs() < 1e-9);
        let table = Report {
            situations: vec![situation],
        }
        .table();
        assert!(table.contains("1.10") && table.contains("all 3 asks"), "{table}");
        assert!(table.contains("nginx") && table.contains("2.50"), "{table}");
    }
}
