//! `scripts/peers/nydus_image.py`: what it asks of nydus-image, and what a registry has afterwards.
//!
//! In: a synthetic image as an OCI layout, a real docker-registry, a stand-in for nydus-image, whose blob of a layer is
//! its tar and whose metadata name the blobs. Out: the image's manifest, config and blobs there.
//! Not here: the real program, which takes minutes to compile, and starting such an image (`headstart-loadtest
//! coldstart`).

use std::fs::{self, Permissions};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use headstart_layer_format::DiffId;
use headstart_loadtest::corpus::{Compression, Dialect, Flavor, LayerBuilder, Meta, SyntheticImage, SyntheticLayer};
use headstart_loadtest::playground::{
    lab::{self, ImageFacts},
    registry::Registry,
    workdir::WorkDir,
};

const REPOSITORY: &str = "bench/some";

/// Of layers without files there is no blob.
const STAND_IN: &str = r#"#!/bin/sh -e
verb=$1; shift
[ "$(cat)" = / ] || { echo "nothing is to be fetched ahead" >&2; exit 1; }
case $verb in
create)
    for tar; do :; done
    while [ $# -gt 1 ]; do
        case $1 in --blob-dir) dir=$2 ;; --bootstrap) to=$2 ;; --output-json) said=$2 ;; esac
        shift
    done
    name=$(sha256sum <"$tar" | cut -d' ' -f1)
    echo "of $name" >"$to"
    if grep -q DATA "$tar"; then cp "$tar" "$dir/$name"; echo "{\"blobs\": [\"$name\"]}" >"$said"
    else echo '{"blobs": []}' >"$said"; fi ;;
merge)
    while [ "$1" != --bootstrap ]; do shift; done
    to=$2; shift 2
    for part; do echo "$(basename "$part"): $(cat "$part")"; done >"$to" ;;
esac
"#;

fn with_file(name: &str, compression: Compression) -> SyntheticLayer {
    let mut layer = LayerBuilder::new(Dialect::Pax);
    layer.file(name, Meta::mode(0o644), format!("DATA of {name}"));
    layer.finish(compression)
}

fn without_files() -> SyntheticLayer {
    let mut layer = LayerBuilder::new(Dialect::Pax);
    layer.dir("empty", Meta::mode(0o755));
    layer.finish(Compression::Plain)
}

fn layout(dir: &Path, image: &SyntheticImage) -> PathBuf {
    let (layout, blobs) = (dir.join("layout"), dir.join("layout/blobs/sha256"));
    fs::create_dir_all(&blobs).unwrap();
    let hex = |mut digest: String| digest.split_off("sha256:".len());
    let blobs_of = image.layers.iter().map(|l| (l.digest, &l.blob));
    for (digest, bytes) in blobs_of.chain([
        (image.config_digest, &image.config),
        (image.manifest_digest, &image.manifest),
    ]) {
        fs::write(blobs.join(hex(digest.to_string())), bytes).unwrap();
    }
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [{ "digest": image.manifest_digest }] });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    layout
}

struct Ground {
    registry: Registry,
    work: WorkDir,
}

impl Ground {
    async fn new() -> Ground {
        let work = WorkDir::create().unwrap();
        let storage = work.dir("storage").unwrap();
        let registry = Registry::start(&work, "registry", &storage, false).await.unwrap();
        Ground { registry, work }
    }

    fn convert(&self, image: &SyntheticImage, program: &str) -> Output {
        let program = self.work.write("nydus-image", program).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/peers/nydus_image.py");
        Command::new(script)
            .arg(program)
            .arg(layout(self.work.path(), image))
            .args([&self.registry.address.to_string(), REPOSITORY, "nydus"])
            // A registry on this machine is not asked through these.
            .envs([
                ("http_proxy", "http://127.0.0.1:1"),
                ("TMPDIR", self.work.path().to_str().unwrap()),
            ])
            .output()
            .unwrap()
    }

    async fn facts(&self) -> Option<ImageFacts> {
        lab::image_facts(&self.registry, REPOSITORY, "nydus").await.ok()
    }
}

#[tokio::test]
async fn layers_become_blobs_once_each_and_one_more_layer_with_their_metadata_in_order() {
    let ground = Ground::new().await;
    let (first, empty) = (with_file("a", Compression::Gzip), without_files());
    let third = with_file("b", Compression::Plain);
    let image = SyntheticImage::new(
        Flavor::Oci,
        vec![first.clone(), empty.clone(), third.clone(), first.clone()],
    );
    let output = ground.convert(&image, STAND_IN);
    assert!(output.status.success(), "{output:?}");

    let facts = ground.facts().await.unwrap();
    let manifest = fs::read(ground.registry.blob(&facts.manifest)).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let (first_id, third_id) = (first.diff_id.to_string(), third.diff_id.to_string());
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 3, "{layers:?}");
    for (layer, (name, tar)) in layers.iter().zip([(&first_id, &first.tar), (&third_id, &third.tar)]) {
        assert_eq!(
            layer["digest"].as_str(),
            Some(name.as_str()),
            "its blob is its tar here"
        );
        assert_eq!(layer["size"].as_u64(), Some(tar.len() as u64));
        assert_eq!(layer["annotations"]["containerd.io/snapshot/nydus-blob"], "true");
    }
    let (metadata, config) = (&layers[2], &facts.diff_ids);
    assert_eq!(
        metadata["annotations"]["containerd.io/snapshot/nydus-bootstrap"],
        "true"
    );
    assert_eq!(metadata["annotations"]["containerd.io/snapshot/nydus-fs-version"], "6");
    assert_eq!(
        [config[0], config[1]].map(|d| d.to_string()),
        [first_id.clone(), third_id.clone()]
    );

    let blob = fs::File::open(ground.registry.blob(&facts.layers[2].0)).unwrap();
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(blob).read_to_end(&mut tar).unwrap();
    assert_eq!(config[2], DiffId::of(&tar));
    let packed = ground.work.path().join("metadata.tar");
    fs::write(&packed, &tar).unwrap();
    let unpacked = Command::new("tar")
        .arg("-xOf")
        .arg(packed)
        .arg("image/image.boot")
        .output()
        .unwrap();
    let hex = |id: &str| id["sha256:".len()..].to_owned();
    let (first, third) = (hex(&first_id), hex(&third_id));
    let line = |hex: &str| format!("{hex}.boot: of {hex}\n");
    let of_empty = format!("metadata: of {}\n", hex(&empty.diff_id.to_string()));
    let expected = [line(&first), of_empty, line(&third), line(&first)].concat();
    assert_eq!(String::from_utf8(unpacked.stdout).unwrap(), expected);
}

#[tokio::test]
async fn what_cannot_be_converted_is_not_tagged() {
    let ground = Ground::new().await;
    let misnamed = STAND_IN.replace(r#"cp "$tar" "$dir/$name""#, r#"echo other >"$dir/$name""#);
    for (compression, program, why) in [
        (
            Compression::Gzip,
            "#!/bin/sh\necho no such luck; exit 3\n",
            "no such luck",
        ),
        (Compression::Zstd, STAND_IN, "neither gzip nor plain tar"),
        (Compression::Gzip, misnamed.as_str(), "has the digest"),
    ] {
        let image = SyntheticImage::new(Flavor::Oci, vec![with_file("a", compression)]);
        let output = ground.convert(&image, program);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(why), "{why}: {output:?}");
        assert!(ground.facts().await.is_none(), "{why}");
    }
    let image = SyntheticImage::new(Flavor::Oci, vec![with_file("a", Compression::Gzip)]);
    assert!(
        ground.convert(&image, STAND_IN).status.success(),
        "the ground itself is sound"
    );
    assert!(ground.facts().await.is_some());
}
