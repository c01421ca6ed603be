//! Whole images as containerd unpacks them, and as each presentation shows them: every name, attribute and byte.
//!
//! Synthetic ones with everything a layer may have; `HEADSTART_IMAGES` (directories, separated by colons) adds the OCI layouts that are
//! in or directly below each.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use headstart_layer_format::api::LayerState;
use headstart_layer_format::toc::{EntryId, Kind};
use headstart_layer_format::{BlobDigest, ChainId, DiffId, Toc, routes};
use headstart_loadtest::check::{Field, Overlook, compare_directories};
use headstart_loadtest::corpus::{OCI_MANIFEST, SparseForm, SyntheticImage, ZooSpec};
use headstart_loadtest::origin::{Auth, Origin};
use headstart_loadtest::playground::lab::Lab;
use headstart_loadtest::playground::node::{Node, Pulls};
use headstart_loadtest::playground::proxy::Proxy;
use serde_json::Value;

use crate::support::{declines, with_lab};

const REGISTRY: &str = "corpus.test";
const SEEDS: [u64; 2] = [1, 20];

/// An image that an origin has.
struct Image {
    repository: String,
    manifest: BlobDigest,
    layers: Vec<BlobDigest>,
    chain: ChainId,
    is_synthetic: bool,
}

fn synthetic(origin: &Origin, seed: u64) -> Image {
    // Of the forms of sparse files the one that containerd can unpack.
    let spec = ZooSpec {
        sparse: Some(SparseForm::Pax1),
        ..ZooSpec::default()
    };
    let image = SyntheticImage::zoo(seed, &spec);
    let repository = format!("corpus/seed-{seed}");
    image.push(origin, &repository, "v1");
    Image {
        manifest: image.manifest_digest,
        layers: image.layers.iter().map(|l| l.digest).collect(),
        chain: image.chain_ids().pop().unwrap(),
        repository,
        is_synthetic: true,
    }
}

fn layouts() -> Vec<PathBuf> {
    let named = std::env::var_os("HEADSTART_IMAGES").unwrap_or_default();
    let mut out = Vec::new();
    for dir in std::env::split_paths(&named).filter(|d| !d.as_os_str().is_empty()) {
        let below = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path());
        out.extend(
            [dir.clone()]
                .into_iter()
                .chain(below)
                .filter(|d| d.join("index.json").is_file()),
        );
    }
    out
}

/// Puts an image of an OCI layout into the origin: the first that is one, or that an index says is for this machine.
fn from_layout(origin: &Origin, dir: &Path, at: usize) -> Image {
    let repository = format!("corpus/layout-{at}");
    let json = |path: &Path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let blob = |digest: &str| dir.join("blobs").join(digest.replace(':', "/"));
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let mut manifest = json(&dir.join("index.json"));
    let mut descriptor = Value::Null;
    while let Some(among) = manifest["manifests"].as_array() {
        let fits = |d: &&Value| d["platform"].is_null() || d["platform"]["architecture"] == "amd64";
        descriptor = among.iter().find(fits).expect("an image for this machine").clone();
        manifest = json(&blob(&text(&descriptor["digest"])));
    }
    let layers: Vec<String> = manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| text(&l["digest"]))
        .collect();
    let config = text(&manifest["config"]["digest"]);
    for digest in layers.iter().chain([&config]) {
        origin.add_blob(&repository, std::fs::read(blob(digest)).unwrap());
    }
    let bytes = std::fs::read(blob(&text(&descriptor["digest"]))).unwrap();
    let media_type = descriptor["mediaType"].as_str().unwrap_or(OCI_MANIFEST);
    let diff_ids = json(&blob(&config))["rootfs"]["diff_ids"].clone();
    let diff_ids: Vec<DiffId> = serde_json::from_value(diff_ids).unwrap();
    Image {
        manifest: origin.add_manifest(&repository, Some("v1"), media_type, bytes),
        layers: layers.iter().map(|d| d.parse().unwrap()).collect(),
        chain: ChainId::chain(&diff_ids).pop().unwrap(),
        repository,
        is_synthetic: false,
    }
}

/// Asks for the image as a first pull does, and waits until nothing of it is under way.
async fn convert(proxy: &Proxy, image: &Image) {
    let path = format!("/v2/{}/manifests/v1?ns={REGISTRY}", image.repository);
    let accept = format!("{OCI_MANIFEST}, application/vnd.docker.distribution.manifest.v2+json");
    assert!(proxy.get(&path, &accept).await.unwrap().0.is_success());
    let deadline = Instant::now() + Duration::from_secs(240);
    loop {
        let status = proxy.image(&image.manifest, 5_000).await.unwrap();
        let done = |state: &LayerState| matches!(state, LayerState::Ready | LayerState::Refused);
        if status.is_some_and(|s| s.layers.iter().all(|l| done(&l.state))) {
            return;
        }
        assert!(Instant::now() < deadline, "{} was never ready", image.repository);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Directories that a layer has without an entry for them: when they were changed is when they were unpacked.
async fn implied(proxy: &Proxy, image: &Image) -> BTreeSet<Vec<u8>> {
    let mut out = BTreeSet::new();
    for layer in &image.layers {
        let (code, bytes) = proxy
            .get(&routes::layer_toc(layer), routes::TOC_MEDIA_TYPE)
            .await
            .unwrap();
        if !code.is_success() {
            continue;
        }
        let toc = Toc::decode(&bytes).unwrap();
        for (at, entry) in toc.tree().entries().iter().enumerate() {
            if matches!(
                toc.tree().inode(entry.inode).map(|i| &i.kind),
                Some(Kind::Directory { implied: true, .. })
            ) {
                out.insert(toc.tree().path(EntryId(at as u32)));
            }
        }
    }
    out
}

async fn node(lab: &Lab, proxy: &Proxy, pulls: Pulls) -> Node {
    let (name, hosts) = (format!("node-{pulls:?}"), [proxy.url()]);
    let shim = (&*lab.binaries.shim, &*proxy.url());
    Node::start(&lab.work, &name, pulls, &hosts, shim).await.unwrap()
}

#[test]
fn images_look_as_unpacked_under_both_presentations() {
    with_lab(|turn| async move {
        let lab = &turn.lab;
        let origin = Origin::start(Auth::Anonymous);
        let mut images: Vec<Image> = SEEDS.iter().map(|seed| synthetic(&origin, *seed)).collect();
        images.extend(
            layouts()
                .iter()
                .enumerate()
                .map(|(at, dir)| from_layout(&origin, dir, at)),
        );
        let upstream = (REGISTRY, &*origin.url());
        let proxy = Proxy::start(&lab.work, "corpus", &lab.binaries.server, upstream)
            .await
            .unwrap();
        for image in &images {
            convert(&proxy, image).await;
        }
        let plain = node(lab, &proxy, Pulls::Ordinary).await;
        for pulls in [Pulls::Lazy, Pulls::LazyFuse] {
            let lazy = node(lab, &proxy, pulls).await;
            for image in &images {
                let reference = format!("{REGISTRY}/{}:v1", image.repository);
                plain.containerd.cri.pull(&reference).await.unwrap();
                lazy.containerd.cri.pull(&reference).await.unwrap();
                if image.is_synthetic {
                    assert_eq!(declines(&lazy), Vec::<String>::new(), "{reference}");
                }
                let views = (
                    lazy.mount_view(&image.chain).await.unwrap(),
                    plain.mount_view(&image.chain).await.unwrap(),
                );
                // An ordinary unpack leaves in the root the time at which it unpacked, unless a layer says otherwise.
                let mut overlook = Overlook::nothing().field_at("", Field::Mtime);
                for path in implied(&proxy, image).await {
                    overlook = overlook.field_at(path, Field::Mtime);
                }
                let (left, right) = (views.0.path.clone(), views.1.path.clone());
                let differences = tokio::task::spawn_blocking(move || compare_directories(&left, &right, &overlook));
                let differences = differences.await.unwrap().unwrap();
                assert!(
                    differences.is_empty(),
                    "{reference}, {pulls:?} (left) against ordinary (right): {differences}"
                );
                assert!(differences.compared > 100, "{reference}: {differences}");
            }
        }
    });
}
