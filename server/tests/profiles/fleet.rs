//! A fleet of nodes before one server, and the images that it starts.
//!
//! In: an image, nodes by number. Out: statuses, traces, streams.
//! Invariant: a node is an address behind a trusted proxy, so each has its own vote.
//! Not here: what is checked.

use std::path::Path;

use headstart_layer_format::{
    ChunkDigest, Toc,
    api::ImageStatus,
    chunk_stream::{ChunkHeader, ChunkStatus, HEADER_LEN},
    profile::{Class, Have, ProfileRequest, StartId, Trace, TraceRead},
    routes,
};
use headstart_loadtest::{
    corpus::{Compression, Dialect, Flavor, LayerBuilder, Meta, SyntheticImage},
    origin::{Auth, Origin},
};
use headstart_server::config::Config;

use crate::support::{REPOSITORY, Server, config, noise};

/// Files are larger than what is packed together with others, and smaller than what is cut.
const FILE_SIZE: usize = 300 << 10;

/// A file of an image: layer, path, and what its bytes are made from.
#[derive(Clone, Debug)]
pub struct File(pub usize, pub String, pub u64);

/// `count` files in each of three layers.
pub fn files(count: usize) -> Vec<File> {
    let path = |layer: usize, n: usize| File(layer, format!("usr/lib{layer}/f{n:03}"), (layer * 1000 + n) as u64);
    (0..3)
        .flat_map(|layer| (0..count).map(move |n| path(layer, n)))
        .collect()
}

pub fn image_of(files: &[File]) -> SyntheticImage {
    let layer = |number: usize| {
        let mut layer = LayerBuilder::new(Dialect::Pax);
        layer.dir("usr", Meta::mode(0o755));
        layer.dir(format!("usr/lib{number}"), Meta::mode(0o755));
        for File(_, path, seed) in files.iter().filter(|file| file.0 == number) {
            layer.file(path, Meta::default(), noise(FILE_SIZE, *seed));
        }
        layer.finish(Compression::Gzip)
    };
    SyntheticImage::new(Flavor::Oci, (0..3).map(layer).collect())
}

pub fn origin_of(images: &[&SyntheticImage]) -> Origin {
    let origin = Origin::start(Auth::Anonymous);
    for (number, image) in images.iter().enumerate() {
        image.push(&origin, REPOSITORY, &format!("v{number}"));
    }
    origin
}

/// A configuration in which everybody on this machine is a proxy for nodes.
pub fn fleet_config(origin: &Origin, dir: &Path) -> Config {
    let mut config = config(origin, dir);
    config.http.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    config
}

pub struct Fleet {
    pub server: Server,
}

impl Fleet {
    pub async fn start(origin: &Origin, dir: &Path) -> Self {
        Self::with(fleet_config(origin, dir)).await
    }

    pub async fn with(config: Config) -> Self {
        Self {
            server: Server::with(config).await,
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.address)
    }

    /// Pulls the manifest, and waits until every layer is ready.
    pub async fn pull(&self, image: &SyntheticImage) -> Vec<Toc> {
        let (status, _) = self
            .server
            .fetch(&self.server.manifest_url(image.manifest_digest))
            .await;
        assert_eq!(status, 200);
        let mut tocs = Vec::new();
        for layer in &image.layers {
            tocs.push(self.server.anybody().ready(&layer.digest).await);
        }
        tocs
    }

    /// `query` begins with `?`, or is empty.
    pub async fn status(&self, image: &SyntheticImage, query: &str) -> ImageStatus {
        let answer = self
            .server
            .get(&self.url(&(routes::image(&image.manifest_digest) + query)))
            .await;
        assert_eq!(answer.status(), 200);
        answer.json().await.unwrap()
    }

    /// A trace of a node; the answer's status.
    pub async fn teach(&self, node: u8, image: &SyntheticImage, trace: &Trace) -> u16 {
        self.teach_bytes(node, image, serde_json::to_vec(trace).unwrap()).await
    }

    pub async fn teach_bytes(&self, node: u8, image: &SyntheticImage, body: Vec<u8>) -> u16 {
        let url = self.url(&routes::trace(&image.manifest_digest));
        let request = self
            .server
            .http
            .post(url)
            .header("x-forwarded-for", format!("10.0.0.{node}"));
        request.body(body).send().await.unwrap().status().as_u16()
    }

    pub async fn stream(&self, request: &ProfileRequest) -> reqwest::Response {
        let body = serde_json::to_vec(request).unwrap();
        self.server
            .http
            .post(self.url(routes::CHUNKS))
            .body(body)
            .send()
            .await
            .unwrap()
    }

    /// The chunks of a profile that come, verified, and how many bytes they took.
    pub async fn chunks(&self, image: &SyntheticImage, have: Have) -> (Vec<ChunkDigest>, u64) {
        let profile = self.status(image, "").await.profile.unwrap().digest;
        let answer = self
            .stream(&ProfileRequest {
                image: image.manifest_digest,
                profile,
                have,
            })
            .await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], routes::CHUNK_STREAM_MEDIA_TYPE);
        let bytes = answer.bytes().await.unwrap();
        let (mut rest, mut digests) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let header = ChunkHeader::decode(rest[..HEADER_LEN].try_into().unwrap()).unwrap();
            let ChunkStatus::Found { frame_len } = header.status else {
                panic!("{header:?}");
            };
            let frame = &rest[HEADER_LEN..HEADER_LEN + frame_len as usize];
            let raw = zstd::stream::decode_all(frame).unwrap();
            assert_eq!(ChunkDigest::of(&raw), header.digest);
            digests.push(header.digest);
            rest = &rest[HEADER_LEN + frame_len as usize..];
        }
        (digests, bytes.len() as u64)
    }
}

/// The chunks of files, in that order; most have one or two.
pub fn chunks_of(tocs: &[Toc], files: &[&File]) -> Vec<(u32, ChunkDigest)> {
    let mut chunks = Vec::new();
    for file in files {
        for (layer, index) in indices_of(tocs, file) {
            let chunk = (layer, tocs[layer as usize].chunks().chunk(index).unwrap().digest);
            if !chunks.contains(&chunk) {
                chunks.push(chunk);
            }
        }
    }
    chunks
}

/// Where in their layer's table they are.
pub fn indices_of(tocs: &[Toc], File(layer, path, _): &File) -> Vec<(u32, u32)> {
    let toc = &tocs[*layer];
    let entry = toc.tree().find(path.as_bytes()).expect("a file");
    let inode = toc.tree().entry(entry).unwrap().inode;
    let headstart_layer_format::toc::Kind::Regular(content) = &toc.tree().inode(inode).unwrap().kind else {
        panic!("{path} is no file");
    };
    let extents = content.extents().iter();
    let indices = extents.flat_map(|extent| toc.chunks().covering(extent.range));
    indices.map(|index| (*layer as u32, index)).collect()
}

/// The chunks that a status's profile names, in its order.
pub fn named(status: &ImageStatus, tocs: &[Toc]) -> Vec<(u32, ChunkDigest)> {
    let profile = status.profile.as_ref().expect("a profile");
    let chunk = |(layer, index): (u32, u32)| (layer, tocs[layer as usize].chunks().chunk(index).unwrap().digest);
    profile.positions().map(chunk).collect()
}

pub fn start_id(number: u64) -> StartId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.to_le_bytes());
    StartId(id)
}

/// A start that needed these chunks.
pub fn trace_of(start: u64, chunks: &[(u32, ChunkDigest)]) -> Trace {
    let read = |(ms, (layer, chunk)): (u32, &(u32, ChunkDigest))| TraceRead {
        layer: *layer,
        chunk: Some(*chunk),
        file: None,
        ms,
    };
    Trace {
        start: start_id(start),
        class: Class::default(),
        reads: (0..).zip(chunks).map(read).collect(),
    }
}
