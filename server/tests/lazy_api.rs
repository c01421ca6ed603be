//! The road from a served manifest to chunks, over HTTP, and a server that is killed on it.
//!
//! In: a scripted origin with a synthetic image. Out: image state, TOC and chunks that rebuild the exact tars.
//! The killed server is the real binary; the others run in this process.

use std::io::Write as _;
use std::net::TcpListener as StdListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use headstart_layer_format::api::{ChainStatus, ChunksRequest, ImageStatus, LayerState};
use headstart_layer_format::chunk_stream::{ChunkHeader, ChunkStatus, HEADER_LEN};
use headstart_layer_format::{BlobDigest, ChunkDigest, DiffId, Toc, routes};
use headstart_loadtest::corpus::{Compression, Dialect, Flavor, LayerBuilder, Meta, Rng, SyntheticImage};
use headstart_loadtest::origin::{Origin, Target};
use headstart_server::app::{App, serve};
use headstart_server::config::{Config, UpstreamConfig};
use tokio_util::sync::CancellationToken;

const REPOSITORY: &str = "library/thing";

struct Server {
    url: String,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

async fn start(data_dir: &Path, origin: &Origin) -> Server {
    let config = Config {
        data_dir: data_dir.to_owned(),
        default_upstream: Some("up".into()),
        upstreams: vec![UpstreamConfig::new("up", origin.url())],
        ..Config::default()
    };
    let app = App::open(config).await.expect("open the server");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    let task = tokio::spawn(async move { serve(app, listener, stopping).await.expect("serve") });
    Server { url, stop, task }
}

impl Server {
    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

async fn get(url: String) -> reqwest::Response {
    client().get(url).send().await.expect("an answer")
}

async fn pull_manifest(url: &str, image: &SyntheticImage) {
    let answer = get(format!("{url}/v2/{REPOSITORY}/manifests/{}", image.manifest_digest)).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.bytes().await.unwrap(), image.manifest);
}

/// Asks until no layer is under way.
async fn settled(url: &str, image: &SyntheticImage) -> ImageStatus {
    for _ in 0..20 {
        let route = routes::image(&image.manifest_digest);
        let answer = get(format!("{url}{route}?wait_ms=20000")).await;
        assert_eq!(answer.status(), 200);
        let status: ImageStatus = answer.json().await.unwrap();
        let under_way = |s: LayerState| matches!(s, LayerState::Queued | LayerState::Converting | LayerState::Unknown);
        if !status.layers.iter().any(|l| under_way(l.state)) {
            return status;
        }
    }
    panic!("the image does not settle");
}

async fn toc(url: &str, layer: &BlobDigest) -> (Vec<u8>, Toc) {
    let answer = get(format!("{url}{}", routes::layer_toc(layer))).await;
    assert_eq!(answer.status(), 200);
    // It said "immutable": a cache in between would have kept an old TOC beside the data of a new one for a year.
    assert_eq!(answer.headers()["cache-control"], "no-cache");
    let named = answer.headers()[routes::TOC_DIGEST_HEADER].to_str().unwrap().to_owned();
    let bytes = answer.bytes().await.unwrap().to_vec();
    assert_eq!(named, Toc::digest(&bytes).to_string());
    let toc = Toc::decode(&bytes).unwrap();
    (bytes, toc)
}

async fn post_chunks(url: &str, chunks: Vec<ChunkDigest>) -> Vec<(ChunkHeader, Vec<u8>)> {
    let request = ChunksRequest {
        chunks,
        layers: Vec::new(),
    };
    let body = serde_json::to_vec(&request).unwrap();
    let answer = client()
        .post(format!("{url}{}", routes::CHUNKS))
        .body(body)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    let bytes = answer.bytes().await.unwrap();
    let mut rest = &bytes[..];
    let mut out = Vec::new();
    while !rest.is_empty() {
        let header = ChunkHeader::decode(rest[..HEADER_LEN].try_into().unwrap()).unwrap();
        let len = match header.status {
            ChunkStatus::Found { frame_len } => frame_len as usize,
            ChunkStatus::Missing => 0,
        };
        out.push((header, rest[HEADER_LEN..HEADER_LEN + len].to_vec()));
        rest = &rest[HEADER_LEN + len..];
    }
    assert!(
        out.iter().map(|(h, _)| h.digest).eq(request.chunks),
        "in the order asked"
    );
    out
}

/// The tar from skeleton and chunks, all over HTTP.
async fn rebuild(url: &str, toc: &Toc) -> Vec<u8> {
    let digests = toc.chunks().entries().iter().map(|c| c.digest).collect();
    let mut data = Vec::new();
    for (chunk, (_, frame)) in toc.chunks().entries().iter().zip(post_chunks(url, digests).await) {
        let raw = zstd::bulk::decompress(&frame, chunk.raw_len as usize).expect("a frame");
        assert_eq!(ChunkDigest::of(&raw), chunk.digest);
        data.extend(raw);
    }
    let mut tar = Vec::new();
    toc.skeleton()
        .write_tar(&mut tar, |range, out| {
            out.extend_from_slice(&data[range.start.0 as usize..range.end().0 as usize]);
            Ok(())
        })
        .unwrap();
    tar
}

async fn assert_whole(url: &str, image: &SyntheticImage) {
    let status = settled(url, image).await;
    assert!(status.is_ready(), "{status:?}");
    let found: Vec<DiffId> = status.layers.iter().filter_map(|l| l.diff_id).collect();
    assert_eq!(found, image.diff_ids());
    for layer in &image.layers {
        let (_, toc) = toc(url, &layer.digest).await;
        assert!(rebuild(url, &toc).await == layer.tar);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_served_manifest_makes_its_layers_seekable() {
    let image = SyntheticImage::seeded(21);
    let origin = Origin::with_image(REPOSITORY, "latest", &image);
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &origin).await;
    let url = server.url.clone();
    let unknown = get(format!("{url}{}", routes::image(&image.manifest_digest))).await;
    assert_eq!(unknown.status(), 404);
    let unknown = get(format!("{url}{}", routes::layer_toc(&image.layers[0].digest))).await;
    assert_eq!(unknown.status(), 404);
    pull_manifest(&url, &image).await;
    assert_whole(&url, &image).await;
    for (chain, layer) in image.chain_ids().iter().zip(&image.layers) {
        let status: ChainStatus = get(format!("{url}{}", routes::chain(chain)))
            .await
            .json()
            .await
            .unwrap();
        assert_eq!((status.layer_digest, status.diff_id), (layer.digest, layer.diff_id));
        assert_eq!(status.images, [image.manifest_digest]);
    }

    let (_, toc) = toc(&url, &image.layers[0].digest).await;
    let data_url = format!("{url}{}", routes::layer_data(&image.layers[0].digest));
    let whole = get(data_url.clone()).await.bytes().await.unwrap();
    assert_eq!(whole.len() as u64, toc.chunks().blob_size());
    let last = toc.chunks().iter().last().unwrap();
    let frame = post_chunks(&url, vec![last.digest, ChunkDigest::of(b"nowhere"), last.digest]).await;
    assert_eq!(frame[1].0.status, ChunkStatus::Missing);
    assert_eq!(frame[0].1, frame[2].1);
    let at = last.frame.start.0 as usize;
    assert_eq!(whole[at..], frame[0].1);
    let (from, to) = (at - 10, at + 9);
    let part = client()
        .get(&data_url)
        .header("range", format!("bytes={from}-{to}"))
        .send()
        .await
        .unwrap();
    assert_eq!(part.status(), 206);
    assert_eq!(part.bytes().await.unwrap(), whole[from..=to]);
    let beyond = client()
        .get(&data_url)
        .header("range", format!("bytes={}-", whole.len()))
        .send()
        .await
        .unwrap();
    assert_eq!(beyond.status(), 416);
    let json = client()
        .get(format!("{url}{}", routes::layer_toc(&image.layers[0].digest)))
        .header("accept", "application/json")
        .send();
    let json: serde_json::Value = json.await.unwrap().json().await.unwrap();
    assert_eq!(json["diff_id"], image.layers[0].diff_id.to_string());
    for body in ["", "{}", "{\"chunks\":[\"sha256:00\"]}", "[]"] {
        let answer = client()
            .post(format!("{url}{}", routes::CHUNKS))
            .body(body)
            .send()
            .await
            .unwrap();
        assert!(answer.status().is_client_error(), "{body}: {}", answer.status());
    }
    server.stop().await;

    // Upstream gone, index gone: the same TOCs and chunks.
    origin.stop();
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let server = start(dir.path(), &origin).await;
    assert_whole(&server.url, &image).await;
    server.stop().await;
}

/// As older builders push it: Docker's media types, and gzip.
#[tokio::test(flavor = "multi_thread")]
async fn a_docker_schema_2_image_with_gzip_layers_is_converted() {
    let layers = (0..3).map(|seed| {
        let mut layer = LayerBuilder::new(Dialect::Gnu);
        layer.dir("usr", Meta::mode(0o755));
        layer.file("usr/file", Meta::mode(0o644), Rng::new(seed).bytes(300_000));
        layer.file("usr/text", Meta::mode(0o600), Rng::new(seed).text(90_000));
        layer.finish(Compression::Gzip)
    });
    let image = SyntheticImage::new(Flavor::Docker, layers.collect());
    let manifest = "application/vnd.docker.distribution.manifest.v2+json";
    assert_eq!(image.manifest_media_type, manifest);
    assert_eq!(
        image.layers[0].media_type,
        "application/vnd.docker.image.rootfs.diff.tar.gzip"
    );
    let origin = Origin::with_image(REPOSITORY, "latest", &image);
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &origin).await;
    let answer = get(format!("{}/v2/{REPOSITORY}/manifests/latest", server.url)).await;
    assert_eq!(answer.headers()["content-type"], manifest);
    assert_eq!(answer.bytes().await.unwrap(), image.manifest);
    assert_whole(&server.url, &image).await;
    server.stop().await;
}

/// An image whose config claims a DiffID that is not the layer's: refused for that image, ready for the honest one.
#[tokio::test(flavor = "multi_thread")]
async fn a_lying_config_refuses_the_layer_for_its_own_image_only() {
    let honest = SyntheticImage::tiny(22);
    let mut layers = honest.layers.clone();
    layers[0].diff_id = DiffId::of(b"another tar");
    let lying = SyntheticImage::new(Flavor::Oci, layers);
    let origin = Origin::with_image(REPOSITORY, "lying", &lying);
    honest.push(&origin, REPOSITORY, "honest");
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &origin).await;
    pull_manifest(&server.url, &lying).await;
    // The config is read beside the conversion; both must be known before the verdict.
    let mut status = settled(&server.url, &lying).await;
    for _ in 0..200 {
        if status.layers[0].state == LayerState::Refused {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        status = settled(&server.url, &lying).await;
    }
    assert_eq!(status.layers[0].state, LayerState::Refused, "{status:?}");
    pull_manifest(&server.url, &honest).await;
    assert_whole(&server.url, &honest).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_no_tar_is_refused_and_a_broken_upstream_is_a_failure_that_passes() {
    let mut image = SyntheticImage::tiny(23);
    let garbage = headstart_loadtest::corpus::SyntheticLayer::of_tar(
        &b"this is not a tar"[..],
        Compression::Gzip,
        Default::default(),
    );
    image.layers.push(garbage);
    let image = SyntheticImage::new(Flavor::Oci, image.layers);
    let origin = Origin::with_image(REPOSITORY, "latest", &image);
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path(), &origin).await;
    // A GET would begin what is to be lost.
    let head = client().head(format!(
        "{}/v2/{REPOSITORY}/manifests/{}",
        server.url, image.manifest_digest
    ));
    assert_eq!(head.send().await.unwrap().status(), 200);
    origin.remove(REPOSITORY, &image.layers[0].digest);
    let status = settled(&server.url, &image).await;
    assert_eq!(status.layers[0].state, LayerState::Failed, "{status:?}");
    assert_eq!(status.layers[1].state, LayerState::Refused, "{status:?}");
    let answer = get(format!("{}{}", server.url, routes::layer_toc(&image.layers[1].digest))).await;
    assert_eq!(answer.status(), 422);
    origin.add_blob(REPOSITORY, image.layers[0].blob.clone());
    let mut ready = false;
    for _ in 0..300 {
        let answer = get(format!(
            "{}{}?wait_ms=5000",
            server.url,
            routes::layer_toc(&image.layers[0].digest)
        ))
        .await;
        ready = answer.status() == 200;
        if ready {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(ready, "a failed layer is tried again");
    server.stop().await;
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The real binary; waits until it answers.
async fn spawn(dir: &Path, origin: &Origin) -> (Process, String) {
    let port = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    let config = dir.join("server.toml");
    let mut file = std::fs::File::create(&config).unwrap();
    let data = dir.join("data");
    write!(
        file,
        "listen = \"127.0.0.1:{port}\"\ndata_dir = {data:?}\ndefault_upstream = \"up\"\n[[upstreams]]\nname = \"up\"\nurl = \"{}\"\n",
        origin.url()
    )
    .unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_headstart-server"))
        .arg("--config")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let process = Process(child);
    for _ in 0..600 {
        if let Ok(answer) = client().get(format!("{url}{}", routes::READYZ)).send().await
            && answer.status() == 200
        {
            return (process, url);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the server does not start");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_of_a_conversion_the_next_request_completes_it() {
    let mut rng = Rng::new(24);
    let mut b = LayerBuilder::new(Dialect::Gnu);
    for i in 0..40 {
        b.file(format!("f{i}"), Meta::default(), rng.bytes(300_000));
    }
    let image = SyntheticImage::new(Flavor::Oci, vec![b.finish(Compression::Gzip)]);
    let layer = &image.layers[0];
    let origin = Origin::with_image(REPOSITORY, "latest", &image);
    let gate = origin.hold(Target::Digest(layer.digest), layer.blob.len() as u64 / 2);
    let dir = tempfile::tempdir().unwrap();
    let (process, url) = spawn(dir.path(), &origin).await;
    pull_manifest(&url, &image).await;
    let mut converted = 0;
    for _ in 0..600 {
        let status: ImageStatus = get(format!("{url}{}", routes::image(&image.manifest_digest)))
            .await
            .json()
            .await
            .unwrap();
        assert!(!status.is_ready());
        converted = status.layers[0].converted.unwrap_or(0);
        if converted > layer.blob.len() as u64 / 4 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(converted > 0, "the conversion was under way");
    // SIGKILL.
    drop(process);
    gate.open();
    let (process, url) = spawn(dir.path(), &origin).await;
    assert_whole(&url, &image).await;
    let before = toc(&url, &layer.digest).await.0;
    drop(process);
    std::fs::remove_dir_all(dir.path().join("data/index")).unwrap();
    let (_process, url) = spawn(dir.path(), &origin).await;
    assert_whole(&url, &image).await;
    assert_eq!(toc(&url, &layer.digest).await.0, before);
}
