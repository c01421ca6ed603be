//! A Headstart server as far as a node sees it, which can be told to misbehave, be killed, and come back.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream;
use headstart_layer_format::api::{ChainStatus, ChunksRequest, ImageStatus, LayerState, LayerStatus, TocSummary};
use headstart_layer_format::chunk_stream::{ChunkHeader, ChunkStatus};
use headstart_layer_format::profile::{Class, Origin, Profile, ProfileRequest, Run, Trace};
use headstart_layer_format::{BlobDigest, ChainId, ProfileDigest, Toc, routes};
use tokio::runtime::Runtime;
use tokio::sync::{Barrier, Semaphore};

use super::TestLayer;

/// What the server does wrong when asked for chunks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    None,
    Status(u16),
    /// Right lengths, wrong content: a valid frame of other bytes where the protocol allows it.
    WrongBytes,
    /// The connection breaks in the middle of the body.
    Truncate,
    /// Half of the body, then silence.
    Stall,
    /// Not even headers.
    Silence,
    /// 200 and the whole blob; by digest all is well.
    IgnoreRange,
    /// The headers name another TOC; by digest all is well.
    OtherToc,
    /// By digest too: chunks it has not got.
    Missing,
}

/// A profile, and what comes when its chunks are asked for.
#[derive(Clone, Debug)]
pub struct Script {
    pub runs: Vec<Run>,
    /// Headers and frames, each sent with a permit of the gate; none whose position in the profile the node has.
    pub parts: Vec<(Option<usize>, Vec<u8>)>,
    pub gate: Arc<Semaphore>,
}

impl Script {
    /// All chunks of `layer`, as an honest server sends them, through a gate that is open.
    pub fn honest(position: u32, layer: &TestLayer) -> Self {
        let chunks: Vec<_> = layer.toc.chunks().iter().collect();
        Self {
            runs: vec![Run {
                layer: position,
                first: 0,
                count: chunks.len() as u32,
                bytes: layer.blob.len() as u64,
            }],
            parts: (0..)
                .zip(&chunks)
                .map(|(at, c)| (Some(at), part(layer, c.index, 0)))
                .collect(),
            gate: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS / 2)),
        }
    }

    pub fn shut(mut self) -> Self {
        self.gate = Arc::new(Semaphore::new(0));
        self
    }
}

/// A chunk as it is sent, its frame `padding` bytes longer than need be.
pub fn part(layer: &TestLayer, index: u32, padding: u32) -> Vec<u8> {
    let digest = layer.toc.chunks().chunk(index).unwrap().digest;
    let mut frame = Vec::new();
    if padding > 0 {
        // A skippable frame: RFC 8878, section 3.1.2.
        frame.extend_from_slice(&[0x50, 0x2a, 0x4d, 0x18]);
        frame.extend_from_slice(&padding.to_le_bytes());
        frame.resize(8 + padding as usize, 0);
    }
    frame.extend_from_slice(&layer.frames[&digest].0);
    let status = ChunkStatus::Found {
        frame_len: frame.len() as u32,
    };
    [&ChunkHeader { digest, status }.encode()[..], &frame].concat()
}

#[derive(Debug)]
struct Shared {
    profiles: Mutex<HashMap<BlobDigest, Script>>,
    streams: Mutex<Vec<ProfileRequest>>,
    /// What the next that are asked for get instead.
    refusals: Mutex<VecDeque<StatusCode>>,
    streamed_bytes: AtomicUsize,
    traces: Mutex<Vec<Trace>>,
    /// Method and path of every request.
    log: Mutex<Vec<String>>,
    /// The same, and its `traceparent`, of those that had one.
    traced: Mutex<Vec<(String, String)>>,
    /// Answers about TOCs wait until so many are asked for at once.
    toc_barrier: Mutex<Option<Arc<Barrier>>>,
    layers: Mutex<HashMap<BlobDigest, Arc<TestLayer>>>,
    images: Mutex<HashMap<BlobDigest, Vec<BlobDigest>>>,
    states: Mutex<HashMap<BlobDigest, Vec<LayerState>>>,
    lying_toc: Mutex<Option<Vec<u8>>>,
    fault: Mutex<Fault>,
    latency: Mutex<Duration>,
    muted: Mutex<Option<BlobDigest>>,
    ranges: Mutex<Vec<String>>,
    toc_requests: AtomicUsize,
    list_requests: AtomicUsize,
}

#[derive(Debug)]
pub struct FakeServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl FakeServer {
    pub fn start() -> Self {
        let shared = Arc::new(Shared {
            profiles: Mutex::default(),
            streams: Mutex::default(),
            refusals: Mutex::default(),
            streamed_bytes: AtomicUsize::new(0),
            traces: Mutex::default(),
            log: Mutex::default(),
            traced: Mutex::default(),
            toc_barrier: Mutex::default(),
            layers: Mutex::default(),
            images: Mutex::default(),
            states: Mutex::default(),
            lying_toc: Mutex::default(),
            fault: Mutex::new(Fault::None),
            latency: Mutex::new(Duration::ZERO),
            muted: Mutex::default(),
            ranges: Mutex::default(),
            toc_requests: AtomicUsize::new(0),
            list_requests: AtomicUsize::new(0),
        });
        let mut server = Self {
            shared,
            address: "127.0.0.1:0".parse().unwrap(),
            runtime: None,
        };
        server.up();
        server
    }

    /// Listens (again, on the same port).
    pub fn up(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind(self.address)).unwrap();
        self.address = listener.local_addr().unwrap();
        let app = Router::new()
            .route(routes::LAYER_TOC_TEMPLATE, get(toc))
            .route(routes::LAYER_DATA_TEMPLATE, get(data))
            .route(routes::CHUNKS, post(chunks))
            .route(routes::IMAGE_TEMPLATE, get(image))
            .route(routes::CHAIN_TEMPLATE, get(chain))
            .route(routes::TRACE_TEMPLATE, post(trace))
            .layer(middleware::from_fn_with_state(Arc::clone(&self.shared), log))
            .with_state(Arc::clone(&self.shared));
        runtime.spawn(async move { axum::serve(listener, app).await });
        self.runtime = Some(runtime);
    }

    /// Gone, with all its connections.
    pub fn down(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn serve(&self, layer: &Arc<TestLayer>) {
        let mut layers = self.shared.layers.lock().unwrap();
        layers.insert(layer.digest, Arc::clone(layer));
    }

    /// An image of these layers, bottom first, all ready.
    #[allow(dead_code, reason = "tests of whole nodes use it")]
    pub fn serve_image(&self, manifest: BlobDigest, layers: &[Arc<TestLayer>]) {
        layers.iter().for_each(|layer| self.serve(layer));
        let layers = layers.iter().map(|l| l.digest).collect();
        self.shared.images.lock().unwrap().insert(manifest, layers);
    }

    /// What the image's status says, and what its chunks are asked for with.
    pub fn profile(&self, manifest: BlobDigest, script: Script) {
        self.shared.profiles.lock().unwrap().insert(manifest, script);
    }

    /// The next so many streams are refused.
    pub fn refuse_streams(&self, status: u16, times: usize) {
        let status = StatusCode::from_u16(status).unwrap();
        *self.shared.refusals.lock().unwrap() = std::iter::repeat_n(status, times).collect();
    }

    pub fn refusals_left(&self) -> usize {
        self.shared.refusals.lock().unwrap().len()
    }

    /// Requests for a profile's chunks.
    pub fn streams(&self) -> Vec<ProfileRequest> {
        self.shared.streams.lock().unwrap().clone()
    }

    /// What starts were told of.
    #[allow(dead_code, reason = "tests of starts use it")]
    pub fn traces(&self) -> Vec<Trace> {
        self.shared.traces.lock().unwrap().clone()
    }

    /// Method and path of every request so far, without our prefix.
    #[allow(dead_code, reason = "tests of whole nodes use it")]
    pub fn log(&self) -> Vec<String> {
        self.shared.log.lock().unwrap().clone()
    }

    /// Method and path of the requests that came with a `traceparent`, and that.
    #[allow(dead_code, reason = "tests of traces use it")]
    pub fn traced(&self) -> Vec<(String, String)> {
        self.shared.traced.lock().unwrap().clone()
    }

    /// From now on TOCs are answered in groups of so many requests.
    #[allow(dead_code, reason = "tests of whole nodes use it")]
    pub fn group_tocs(&self, size: usize) {
        *self.shared.toc_barrier.lock().unwrap() = Some(Arc::new(Barrier::new(size)));
    }

    pub fn streamed_bytes(&self) -> usize {
        self.shared.streamed_bytes.load(Ordering::SeqCst)
    }

    /// The next answers for this layer's TOC are these states; then it is ready.
    pub fn states(&self, layer: &BlobDigest, states: &[LayerState]) {
        self.shared.states.lock().unwrap().insert(*layer, states.to_vec());
    }

    /// Sends these bytes as every TOC, with the header they deserve.
    pub fn lie_about_tocs(&self, bytes: Vec<u8>) {
        *self.shared.lying_toc.lock().unwrap() = Some(bytes);
    }

    pub fn fault(&self, fault: Fault) {
        *self.shared.fault.lock().unwrap() = fault;
    }

    pub fn latency(&self, latency: Duration) {
        *self.shared.latency.lock().unwrap() = latency;
    }

    /// Ranges of this layer are not answered until another is named, or none.
    pub fn mute(&self, layer: Option<BlobDigest>) {
        *self.shared.muted.lock().unwrap() = layer;
    }

    /// `Range` headers seen so far.
    pub fn ranges(&self) -> Vec<String> {
        self.shared.ranges.lock().unwrap().clone()
    }

    pub fn toc_requests(&self) -> usize {
        self.shared.toc_requests.load(Ordering::SeqCst)
    }

    pub fn list_requests(&self) -> usize {
        self.shared.list_requests.load(Ordering::SeqCst)
    }

    /// Requests for chunks, of both kinds.
    pub fn chunk_requests(&self) -> usize {
        self.ranges().len() + self.list_requests()
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.down();
    }
}

impl Shared {
    fn layer(&self, digest: &str) -> Option<Arc<TestLayer>> {
        self.layers.lock().unwrap().get(&digest.parse().ok()?).cloned()
    }
}

async fn log(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let path = request.uri().path_and_query().unwrap().as_str();
    let line = format!("{} {}", request.method(), path.trim_start_matches(routes::PREFIX));
    if let Some(told) = request.headers().get("traceparent") {
        let told = told.to_str().unwrap().to_owned();
        shared.traced.lock().unwrap().push((line.clone(), told));
    }
    shared.log.lock().unwrap().push(line);
    next.run(request).await
}

async fn chain(State(shared): State<Arc<Shared>>, Path(chain): Path<String>) -> Response {
    let chain_id: ChainId = chain.parse().unwrap();
    let images = shared.images.lock().unwrap().clone();
    for (manifest, layers) in images {
        let layers: Vec<_> = layers.iter().map(|l| shared.layer(&l.to_string()).unwrap()).collect();
        let diff_ids: Vec<_> = layers.iter().map(|l| *l.toc.diff_id()).collect();
        if let Some(at) = ChainId::chain(&diff_ids).iter().position(|c| *c == chain_id) {
            return axum::Json(ChainStatus {
                chain_id,
                layer_digest: layers[at].digest,
                diff_id: diff_ids[at],
                images: vec![manifest],
                image: image_status(&shared, manifest),
            })
            .into_response();
        }
    }
    StatusCode::NOT_FOUND.into_response()
}

async fn toc(State(shared): State<Arc<Shared>>, Path(digest): Path<String>) -> Response {
    shared.toc_requests.fetch_add(1, Ordering::SeqCst);
    let barrier = shared.toc_barrier.lock().unwrap().clone();
    if let Some(barrier) = barrier {
        barrier.wait().await;
    }
    let Some(layer) = shared.layer(&digest) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let state = {
        let mut states = shared.states.lock().unwrap();
        let next = states.entry(layer.digest).or_default();
        if next.is_empty() {
            LayerState::Ready
        } else {
            next.remove(0)
        }
    };
    let status = match state {
        LayerState::Ready => {
            let lie = shared.lying_toc.lock().unwrap().clone();
            let bytes = lie.unwrap_or_else(|| layer.encoded.clone());
            return ([(routes::TOC_DIGEST_HEADER, Toc::digest(&bytes).to_string())], bytes).into_response();
        }
        LayerState::Refused => StatusCode::UNPROCESSABLE_ENTITY,
        LayerState::Failed => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::ACCEPTED,
    };
    let body = LayerStatus {
        digest: layer.digest,
        state,
        reason: Some("because".into()),
        diff_id: None,
        chain_id: None,
        media_type: None,
        size: None,
        converted: None,
        toc: None,
    };
    (status, axum::Json(body)).into_response()
}

async fn image(State(shared): State<Arc<Shared>>, Path(digest): Path<String>) -> Response {
    match image_status(&shared, digest.parse().unwrap()) {
        Some(status) => axum::Json(status).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

fn image_status(shared: &Shared, manifest_digest: BlobDigest) -> Option<ImageStatus> {
    let layers = shared.images.lock().unwrap().get(&manifest_digest).cloned()?;
    let layers = layers.iter().map(|digest| LayerStatus {
        digest: *digest,
        state: LayerState::Ready,
        reason: None,
        diff_id: shared.layer(&digest.to_string()).map(|l| *l.toc.diff_id()),
        chain_id: None,
        media_type: None,
        size: None,
        converted: None,
        toc: shared.layer(&digest.to_string()).map(|l| TocSummary {
            digest: Toc::digest(&l.encoded),
            size: l.encoded.len() as u64,
            data_size: l.toc.chunks().data_size(),
            blob_size: l.blob.len() as u64,
            chunk_count: l.toc.chunks().len().into(),
            entry_count: l.toc.tree().entries().len() as u64,
        }),
    });
    let script = shared.profiles.lock().unwrap().get(&manifest_digest).cloned();
    let profile = script.map(|script| Profile {
        digest: digest_of(shared, &manifest_digest, &script),
        origin: Origin::Learned,
        class: Class::default(),
        starts: 1,
        chunk_count: script.runs.iter().fold(0u32, |n, r| n.saturating_add(r.count)),
        bytes: script.runs.iter().fold(0u64, |n, r| n.saturating_add(r.bytes)),
        runs: script.runs,
    });
    Some(ImageStatus {
        manifest_digest,
        config_digest: BlobDigest::of(b"config"),
        layers: layers.collect(),
        profile,
    })
}

async fn trace(State(shared): State<Arc<Shared>>, body: Bytes) -> StatusCode {
    shared
        .traces
        .lock()
        .unwrap()
        .push(serde_json::from_slice(&body).unwrap());
    StatusCode::NO_CONTENT
}

async fn profile_chunks(shared: Arc<Shared>, ask: ProfileRequest) -> Response {
    if let Some(status) = shared.refusals.lock().unwrap().pop_front() {
        return status.into_response();
    }
    let script = shared.profiles.lock().unwrap().get(&ask.image).cloned();
    let Some(script) = script.filter(|s| digest_of(&shared, &ask.image, s) == ask.profile) else {
        return StatusCode::CONFLICT.into_response();
    };
    shared.streams.lock().unwrap().push(ask.clone());
    let parts = script.parts.into_iter();
    let parts = parts.filter(move |(at, _)| at.is_none_or(|at| !ask.have.has(at)));
    let gate = script.gate;
    let body = stream::unfold((parts, gate, shared), |(mut parts, gate, shared)| async move {
        let (_, part) = parts.next()?;
        gate.acquire().await.ok()?.forget();
        shared.streamed_bytes.fetch_add(part.len(), Ordering::SeqCst);
        Some((Ok::<_, Infallible>(Bytes::from(part)), (parts, gate, shared)))
    });
    Response::builder()
        .header("content-type", routes::CHUNK_STREAM_MEDIA_TYPE)
        .body(Body::from_stream(body))
        .unwrap()
}

fn digest_of(shared: &Shared, manifest: &BlobDigest, script: &Script) -> ProfileDigest {
    let images = shared.images.lock().unwrap();
    let tocs = images[manifest]
        .iter()
        .map(|l| Toc::digest(&shared.layer(&l.to_string()).unwrap().encoded));
    Profile::digest_of(&tocs.collect::<Vec<_>>(), &script.runs)
}

async fn data(State(shared): State<Arc<Shared>>, Path(digest): Path<String>, headers: HeaderMap) -> Response {
    let range = headers["range"].to_str().unwrap().to_owned();
    shared.ranges.lock().unwrap().push(range.clone());
    let Some(layer) = shared.layer(&digest) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let latency = *shared.latency.lock().unwrap();
    tokio::time::sleep(latency).await;
    while *shared.muted.lock().unwrap() == Some(layer.digest) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (start, end) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let (start, end): (usize, usize) = (start.parse().unwrap(), end.parse().unwrap());
    let mut bytes = layer.blob[start..=end].to_vec();
    let fault = *shared.fault.lock().unwrap();
    let toc = match fault {
        Fault::OtherToc => Toc::digest(b"another"),
        _ => Toc::digest(&layer.encoded),
    };
    match fault {
        Fault::WrongBytes => bytes.iter_mut().for_each(|b| *b ^= 0x55),
        Fault::IgnoreRange => return layer.blob.clone().into_response(),
        Fault::Missing => return StatusCode::NOT_FOUND.into_response(),
        _ => {}
    }
    let content_range = format!("bytes {start}-{end}/{}", layer.blob.len());
    let response = Response::builder()
        .status(206)
        .header("content-range", content_range)
        .header(routes::TOC_DIGEST_HEADER, toc.to_string());
    faulty(fault, response, bytes).await
}

async fn chunks(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    if let Ok(ask) = serde_json::from_slice::<ProfileRequest>(&body) {
        return profile_chunks(shared, ask).await;
    }
    let Ok(ask) = serde_json::from_slice::<ChunksRequest>(&body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    shared.list_requests.fetch_add(1, Ordering::SeqCst);
    let fault = *shared.fault.lock().unwrap();
    let layers: Vec<_> = shared.layers.lock().unwrap().values().cloned().collect();
    let mut out = Vec::new();
    for digest in ask.chunks {
        let found = layers.iter().find_map(|l| l.frames.get(&digest));
        let frame = match (found, fault) {
            (None, _) | (_, Fault::Missing) => None,
            (Some((_, raw_len)), Fault::WrongBytes) => {
                Some(zstd::bulk::compress(&vec![b'X'; *raw_len as usize], 1).unwrap())
            }
            (Some((frame, _)), _) => Some(frame.clone()),
        };
        let status = match &frame {
            Some(frame) => ChunkStatus::Found {
                frame_len: frame.len() as u32,
            },
            None => ChunkStatus::Missing,
        };
        out.extend_from_slice(&ChunkHeader { digest, status }.encode());
        out.extend(frame.unwrap_or_default());
    }
    let response = Response::builder().header("content-type", routes::CHUNK_STREAM_MEDIA_TYPE);
    faulty(fault, response, out).await
}

async fn faulty(fault: Fault, response: axum::http::response::Builder, bytes: Vec<u8>) -> Response {
    let half = Bytes::copy_from_slice(&bytes[..bytes.len() / 2]);
    let response = response.header("content-length", bytes.len());
    let body = match fault {
        Fault::Status(code) => return StatusCode::from_u16(code).unwrap().into_response(),
        Fault::Silence => std::future::pending().await,
        Fault::Truncate => Body::from_stream(stream::iter([Ok(half), Err(std::io::Error::other("cut"))])),
        Fault::Stall => {
            let first = stream::iter([Ok::<_, Infallible>(half)]);
            Body::from_stream(futures_util::StreamExt::chain(first, stream::pending()))
        }
        _ => Body::from(bytes),
    };
    response.body(body).unwrap()
}
