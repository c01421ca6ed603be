//! Many nodes that start one image at once from one proxy: simulated, because what counts is the proxy.
//!
//! In: a [`Rig`]'s image, how many nodes, which chunks each wants. Out: [`CrowdReport`]: when each had all its bytes, the server's
//! CPU, what the upstream was asked for; with the proxy cold, and again warm.
//! Invariant: all nodes begin together, have connections of their own and share the proxy's one link; every node gets the same
//! bytes (compared by SHA-256), and one node's are decompressed and checked against their digests. The clients run on this
//! machine too: the server's CPU is its process's alone, the times are everybody's.
//! Not here: containers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use comfy_table::{CellAlignment, Table};
use hdrhistogram::Histogram;
use headstart_layer_format::{
    BlobDigest, ChunkDigest, Toc,
    api::{ChunksRequest, ImageStatus},
    chunk_stream::{ChunkHeader, ChunkStatus, HEADER_LEN},
    limits::{CHUNK_LAYERS_MAX, CHUNK_REQUEST_MAX, CHUNK_SIZE_MAX, TOC_SIZE_MAX},
    profile::{Have, ProfileRequest},
    routes,
};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::{sync::Barrier, task::JoinSet};

use super::{load, rig::Rig, rounds, table::megabytes};
use crate::{
    corpus::Rng,
    playground::{
        PlaygroundError, Result,
        lab::{ImageFacts, RelayedProxy},
        measure,
        node::{Pulls, REGISTRY_NAME},
        progress::Progress,
    },
};

pub const NODES_MAX: usize = 1_000;
/// What one node may keep to be checked afterwards.
const KEPT_BYTES_MAX: u64 = 1 << 30;
/// Longest conversion that nodes wait for.
const READY_WAIT: Duration = Duration::from_secs(600);

/// An hour, in microseconds: the longest time told apart.
const TIME_US_MAX: u64 = 3_600_000_000;

/// Which chunks a node wants.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// This share of the image's, chosen by the seed; the same for every node.
    Share { fraction: f64, seed: u64 },
    /// These, in this order.
    List(Vec<ChunkDigest>),
    /// What the proxy has learnt of the image's starts, as one stream. A real node starts it first.
    Profile,
}

/// One request for chunks, and what its answer must be.
struct Ask {
    body: Vec<u8>,
    expected: Vec<ChunkDigest>,
}

impl Wanted {
    /// A list: a digest a line; what follows it, and lines that begin with `#`, are for people.
    pub fn parse(text: &str) -> std::result::Result<Wanted, String> {
        let words = text.lines().map(|l| l.split_whitespace().next().unwrap_or_default());
        let words = words.filter(|w| !w.is_empty() && !w.starts_with('#'));
        let list: Vec<ChunkDigest> = words
            .map(|w| w.parse().map_err(|e| format!("{w}: {e}")))
            .collect::<std::result::Result<_, _>>()?;
        if list.is_empty() {
            return Err("it has no digests".to_owned());
        }
        Ok(Wanted::List(list))
    }

    /// The requests of one node that has read the image's state and TOCs.
    fn asks(&self, image: &ImageFacts, status: &ImageStatus, tocs: &[Toc]) -> Result<Vec<Ask>> {
        let wrong = |why: String| PlaygroundError::unexpected("ask for chunks", why);
        let list: Vec<ChunkDigest> = match self {
            Wanted::List(list) => list.clone(),
            Wanted::Share { fraction, seed } => {
                let mut rng = Rng::new(*seed);
                let threshold = (fraction * 1e9) as u64;
                let all = tocs.iter().flat_map(|t| t.chunks().iter());
                all.filter(|_| rng.below(1_000_000_000) < threshold)
                    .map(|c| c.digest)
                    .collect()
            }
            Wanted::Profile => {
                let profile = status
                    .profile
                    .as_ref()
                    .ok_or_else(|| wrong("there is no profile".to_owned()))?;
                let digest = |(layer, index): (u32, u32)| Some(tocs.get(layer as usize)?.chunks().chunk(index)?.digest);
                let expected: Option<Vec<ChunkDigest>> = profile.positions().map(digest).collect();
                let request = ProfileRequest {
                    image: image.manifest,
                    profile: profile.digest,
                    have: Have::default(),
                };
                return Ok(vec![Ask {
                    body: serde_json::to_vec(&request).map_err(|e| wrong(e.to_string()))?,
                    expected: expected.ok_or_else(|| wrong("a profile names chunks that are not there".to_owned()))?,
                }]);
            }
        };
        let layers: Vec<BlobDigest> = image.layers.iter().map(|(l, _)| *l).take(CHUNK_LAYERS_MAX).collect();
        let batches = list.chunks(CHUNK_REQUEST_MAX).map(|batch| {
            let request = ChunksRequest {
                chunks: batch.to_vec(),
                layers: layers.clone(),
            };
            Ok(Ask {
                body: serde_json::to_vec(&request).map_err(|e| wrong(e.to_string()))?,
                expected: batch.to_vec(),
            })
        });
        batches.collect()
    }
}

#[derive(Debug, Serialize)]
pub struct CrowdReport {
    pub image: String,
    pub nodes: usize,
    pub compressed_bytes: u64,
    pub link: String,
    pub is_debug_build: bool,
    pub phases: Vec<Phase>,
}

/// All nodes at once, once.
#[derive(Debug, Serialize)]
pub struct Phase {
    pub name: &'static str,
    pub chunks: usize,
    /// Frames of one node.
    pub bytes_each: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    /// On the link, all nodes together.
    pub wire_bytes: u64,
    pub server_cpu_s: f64,
    pub upstream_bytes: u64,
    pub load_average: f64,
}

impl Phase {
    pub fn cpu_s_per_gb(&self) -> f64 {
        self.server_cpu_s / (self.wire_bytes.max(1) as f64 / 1e9)
    }
}

/// The first image of the rig.
pub async fn run(rig: &Rig, nodes: usize, wanted: &Wanted, progress: &Progress) -> Result<CrowdReport> {
    let case = rig
        .cases
        .first()
        .ok_or_else(|| PlaygroundError::unexpected("start a crowd", "there is no image"))?;
    let image = &case.subject.image;
    many_files();
    let proxy = rig.lab.proxy("crowd").await?;
    let mut report = CrowdReport {
        image: case.name.clone(),
        nodes,
        compressed_bytes: image.compressed_bytes(),
        link: rig.lab.links.node.title(),
        is_debug_build: cfg!(debug_assertions),
        phases: Vec::new(),
    };
    let phases: &[&'static str] = match wanted {
        Wanted::Profile => {
            progress.step(format!("one node starts {}", case.name));
            rounds::converted(&rig.lab, &proxy, image).await?;
            let node = rig.lab.node("first", Pulls::Lazy, Some(&proxy)).await?;
            measure::start_of(&rig.lab, &node, Some(&proxy), &case.subject).await?;
            rounds::profiled(&proxy, image).await;
            &["warm"]
        }
        Wanted::Share { .. } | Wanted::List(_) => &["cold", "warm"],
    };
    for name in phases.iter().copied() {
        progress.step(format!("{nodes} nodes start {} at once, proxy {name}", case.name));
        let cpu = || proxy.proxy.cpu().unwrap_or_default().as_secs_f64();
        let wire = || proxy.mirror_link.traffic().down_bytes + proxy.shim_link.traffic().down_bytes;
        let upstream = || rig.lab.proxy_link.traffic().down_bytes;
        let before = (cpu(), wire(), upstream());
        let load_average = load::average();
        let outcomes = all_at_once(&proxy, image, nodes, wanted).await?;
        let first = &outcomes[0];
        let mut times = Histogram::<u64>::new_with_bounds(1, TIME_US_MAX, 3).expect("constant bounds are valid");
        for outcome in &outcomes {
            times.saturating_record(outcome.took.as_micros() as u64);
            if outcome.sum != first.sum {
                return Err(PlaygroundError::unexpected("compare what nodes got", "they differ"));
            }
        }
        check(first)?;
        let ms = |us: u64| us as f64 / 1000.0;
        report.phases.push(Phase {
            name,
            chunks: first.frames.len(),
            bytes_each: first.frames.iter().map(|(_, f)| f.len() as u64).sum(),
            p50_ms: ms(times.value_at_quantile(0.5)),
            p99_ms: ms(times.value_at_quantile(0.99)),
            max_ms: ms(times.max()),
            wire_bytes: wire() - before.1,
            server_cpu_s: cpu() - before.0,
            upstream_bytes: upstream() - before.2,
            load_average,
        });
    }
    Ok(report)
}

/// A node has a connection for each TOC, and the relay two descriptors for each connection.
fn many_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where that may not be, connections fail and say so.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// What one node got.
struct Outcome {
    took: Duration,
    /// Of all headers and frames.
    sum: [u8; 32],
    /// The first node's alone.
    frames: Vec<(ChunkDigest, Vec<u8>)>,
}

async fn all_at_once(proxy: &RelayedProxy, image: &ImageFacts, nodes: usize, wanted: &Wanted) -> Result<Vec<Outcome>> {
    let barrier = Arc::new(Barrier::new(nodes));
    let mut running = JoinSet::new();
    for number in 0..nodes {
        let (barrier, image, wanted) = (barrier.clone(), image.clone(), wanted.clone());
        let (mirror, shim) = (proxy.mirror_link.url(), proxy.shim_link.url());
        running.spawn(async move {
            let http = reqwest::Client::builder()
                .no_proxy()
                .build()
                .map_err(failed("make a client"))?;
            barrier.wait().await;
            let begun = Instant::now();
            let (status, tocs) = announce_and_read_tocs(&http, &mirror, &shim, &image).await?;
            let asks = wanted.asks(&image, &status, &tocs)?;
            let mut outcome = read_chunks(&http, &shim, &asks, number == 0).await?;
            outcome.took = begun.elapsed();
            Ok::<_, PlaygroundError>((number, outcome))
        });
    }
    let mut outcomes = Vec::new();
    while let Some(ended) = running.join_next().await {
        outcomes.push(ended.map_err(|e| PlaygroundError::unexpected("run a node", e))??);
    }
    outcomes.sort_by_key(|(number, _)| *number);
    Ok(outcomes.into_iter().map(|(_, outcome)| outcome).collect())
}

fn failed(what: &'static str) -> impl FnOnce(reqwest::Error) -> PlaygroundError {
    move |e| PlaygroundError::unexpected(what, e)
}

/// As containerd and a shim ask: the manifest, the image's state until it is ready, then all TOCs at once.
async fn announce_and_read_tocs(
    http: &reqwest::Client,
    mirror: &str,
    shim: &str,
    image: &ImageFacts,
) -> Result<(ImageStatus, Vec<Toc>)> {
    let url = format!(
        "{mirror}/v2/{}/manifests/{}?ns={REGISTRY_NAME}",
        image.repository, image.tag
    );
    let accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";
    let request = http.get(url).header(http::header::ACCEPT, accept);
    bytes(request, "read a manifest", 8 << 20).await?;
    let deadline = Instant::now() + READY_WAIT;
    let status = loop {
        let url = format!(
            "{shim}{}?{}=10000",
            routes::image(&image.manifest),
            routes::WAIT_MS_QUERY
        );
        let body = bytes(http.get(url), "read an image's state", 8 << 20).await?;
        let status: ImageStatus =
            serde_json::from_slice(&body).map_err(|e| PlaygroundError::unexpected("read an image's state", e))?;
        if status.is_ready() {
            break status;
        }
        if Instant::now() > deadline {
            return Err(PlaygroundError::unexpected(
                "wait for a conversion",
                "it takes too long",
            ));
        }
    };
    let tocs = image.layers.iter().map(|(layer, _)| async move {
        let url = format!("{shim}{}", routes::layer_toc(layer));
        let request = http.get(url).header(http::header::ACCEPT, routes::TOC_MEDIA_TYPE);
        let body = bytes(request, "read a TOC", TOC_SIZE_MAX as usize).await?;
        Toc::decode(&body).map_err(|e| PlaygroundError::unexpected("read a TOC", e))
    });
    Ok((status, futures_util::future::try_join_all(tocs).await?))
}

async fn bytes(request: reqwest::RequestBuilder, what: &'static str, max: usize) -> Result<Vec<u8>> {
    let answer = request
        .send()
        .await
        .map_err(failed(what))?
        .error_for_status()
        .map_err(failed(what))?;
    let mut answer = answer;
    let mut out = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(failed(what))? {
        if out.len() + piece.len() > max {
            return Err(PlaygroundError::unexpected(what, format!("more than {max} bytes came")));
        }
        out.extend_from_slice(&piece);
    }
    Ok(out)
}

async fn read_chunks(http: &reqwest::Client, shim: &str, asks: &[Ask], keep: bool) -> Result<Outcome> {
    const WHAT: &str = "read chunks";
    let wrong = |why: String| PlaygroundError::unexpected(WHAT, why);
    let (mut sum, mut frames, mut kept) = (Sha256::new(), Vec::new(), 0);
    for ask in asks {
        let request = http
            .post(format!("{shim}{}", routes::CHUNKS))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(ask.body.clone());
        let mut answer = request
            .send()
            .await
            .map_err(failed(WHAT))?
            .error_for_status()
            .map_err(failed(WHAT))?;
        let mut waiting: Vec<u8> = Vec::new();
        let mut expected = ask.expected.iter();
        while let Some(piece) = answer.chunk().await.map_err(failed(WHAT))? {
            sum.update(&piece);
            waiting.extend_from_slice(&piece);
            let mut at = 0;
            while let Some(header) = waiting.get(at..at + HEADER_LEN).and_then(|h| h.try_into().ok()) {
                let header = ChunkHeader::decode(header).map_err(|e| wrong(e.to_string()))?;
                let ChunkStatus::Found { frame_len } = header.status else {
                    return Err(wrong(format!("the server has no {}", header.digest)));
                };
                let end = at + HEADER_LEN + frame_len as usize;
                let Some(frame) = waiting.get(at + HEADER_LEN..end) else {
                    break;
                };
                if expected.next() != Some(&header.digest) {
                    return Err(wrong(format!("{} came out of order", header.digest)));
                }
                kept += u64::from(frame_len);
                frames.push((
                    header.digest,
                    if keep && kept <= KEPT_BYTES_MAX {
                        frame.to_vec()
                    } else {
                        Vec::new()
                    },
                ));
                at = end;
            }
            waiting.drain(..at);
        }
        if expected.next().is_some() || !waiting.is_empty() {
            return Err(wrong("the stream ended early".to_owned()));
        }
    }
    Ok(Outcome {
        took: Duration::ZERO,
        sum: sum.finalize().into(),
        frames,
    })
}

/// Decompresses the first node's frames and compares digests.
fn check(outcome: &Outcome) -> Result<()> {
    for (digest, frame) in outcome.frames.iter().filter(|(_, f)| !f.is_empty()) {
        let raw = zstd::bulk::decompress(frame, CHUNK_SIZE_MAX as usize)
            .map_err(|e| PlaygroundError::unexpected(format!("decompress {digest}"), e))?;
        if ChunkDigest::of(&raw) != *digest {
            return Err(PlaygroundError::unexpected(
                format!("verify {digest}"),
                "its bytes are others",
            ));
        }
    }
    Ok(())
}

impl CrowdReport {
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::ASCII_MARKDOWN);
        table.set_header([
            "proxy",
            "p50 s",
            "p99 s",
            "max s",
            "MB a node",
            "MB on the link",
            "server CPU s",
            "CPU s/GB",
            "upstream MB",
            "of the image",
        ]);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for phase in &self.phases {
            table.add_row([
                phase.name.to_owned(),
                format!("{:.2}", phase.p50_ms / 1000.0),
                format!("{:.2}", phase.p99_ms / 1000.0),
                format!("{:.2}", phase.max_ms / 1000.0),
                megabytes(Some(phase.bytes_each as f64)),
                megabytes(Some(phase.wire_bytes as f64)),
                format!("{:.2}", phase.server_cpu_s),
                format!("{:.2}", phase.cpu_s_per_gb()),
                megabytes(Some(phase.upstream_bytes as f64)),
                format!(
                    "{:.2}",
                    phase.upstream_bytes as f64 / self.compressed_bytes.max(1) as f64
                ),
            ]);
        }
        format!(
            "{} nodes start {} ({} MB compressed) at once from one proxy; time until a node had its {} chunks.\n{table}\n\
             Link of the proxy: {}. Load average {:.1}{}.\n",
            self.nodes,
            self.image,
            megabytes(Some(self.compressed_bytes as f64)),
            self.phases.first().map_or(0, |p| p.chunks),
            self.link,
            self.phases.first().map_or(0.0, |p| p.load_average),
            if self.is_debug_build { "; DEBUG BUILD" } else { "" },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_chunks_are_digests_with_notes() {
        let (a, b) = (ChunkDigest::of(b"a"), ChunkDigest::of(b"b"));
        match Wanted::parse(&format!("# first\n{a}  bin/sh\n\n{b}\n")) {
            Ok(Wanted::List(list)) => assert_eq!(list, [a, b]),
            other => panic!("{other:?}"),
        }
        assert!(Wanted::parse("# nothing\n").is_err());
        assert!(Wanted::parse("sha256:12\n").is_err());
    }
}
