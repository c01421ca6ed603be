//! zstd:chunked and eStargz layers as the tools make them that people use.
//!
//! In: an OCI layout of a synthetic image; skopeo and podman, of this machine's Debian and a newer one, which push it as
//! zstd:chunked; the stargz snapshotter's converter, which makes both forms. Out: whatever they made of each layer becomes
//! what containerd unpacks.
//! Invariant: a layer is in the form that is asked for: it has the annotations of it, and the footer.
//! Not here: such layers made by hand, with what tools do not write ([`super::stargz`], [`super::compressed`]).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use headstart_layer_format::BlobDigest;
use headstart_loadtest::corpus::{Compression, Flavor, SyntheticImage, SyntheticLayer, ZooSpec};
use headstart_loadtest::playground::containerd::Release;
use headstart_loadtest::playground::debian_tree::{DebianTree, Suite};
use headstart_loadtest::playground::gzip_tools::GzipTools;
use headstart_loadtest::playground::site::Site;
use headstart_loadtest::playground::workdir::WorkDir;
use serde_json::{Value, json};

use crate::compressed::{GZIP, ZSTD};
use crate::runtime::Runtime;

/// The image's tag in each layout.
const TAG: &str = "zoo";
const NAME: &str = "images.test/a";

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn put(dir: &Path, bytes: &[u8]) -> String {
    let digest = BlobDigest::of(bytes).to_string();
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes).unwrap();
    digest
}

fn blob(dir: &Path, digest: &Value) -> Vec<u8> {
    let name = digest.as_str().unwrap().trim_start_matches("sha256:");
    fs::read(dir.join("blobs/sha256").join(name)).unwrap()
}

/// The image as an OCI layout.
fn layout(dir: &Path, image: &SyntheticImage) {
    put(dir, &image.config);
    image.layers.iter().for_each(|layer| _ = put(dir, &layer.blob));
    let digest = put(dir, &image.manifest);
    let manifest = json!({
        "mediaType": image.manifest_media_type, "digest": digest, "size": image.manifest.len(),
        "annotations": {"org.opencontainers.image.ref.name": TAG},
    });
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// The layers of a layout's one image: annotations' keys, media type, bytes.
fn layers(dir: &Path) -> Vec<(Vec<String>, String, Vec<u8>)> {
    let index: Value = serde_json::from_slice(&fs::read(dir.join("index.json")).unwrap()).unwrap();
    let manifest: Value = serde_json::from_slice(&blob(dir, &index["manifests"][0]["digest"])).unwrap();
    let layer = |layer: &Value| {
        let keys = layer["annotations"]
            .as_object()
            .map(|all| all.keys().cloned().collect());
        let media_type = layer["mediaType"].as_str().unwrap().to_owned();
        (keys.unwrap_or_default(), media_type, blob(dir, &layer["digest"]))
    };
    manifest["layers"].as_array().unwrap().iter().map(layer).collect()
}

/// Of the machine's Debian.
fn old_skopeo(work: &WorkDir, from: &Path) -> PathBuf {
    let to = work.path().join("old-skopeo");
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["--insecure-policy", "copy", "--dest-compress-format", "zstd:chunked"]);
    run(skopeo.arg(in_layout(from)).arg(in_layout(&to)));
    to
}

/// As people push: through podman's storage. (buildah and skopeo of the same release make the same blobs with it.)
fn podman(work: &WorkDir, tree: &DebianTree, from: &Path) -> PathBuf {
    let to = work.path().join("podman");
    let policy = work
        .write("policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#)
        .unwrap();
    let storage = work.dir("podman-storage").unwrap();
    let podman = |arguments: &[&str]| {
        let mut podman = tree.command(work, "/usr/bin/podman");
        podman.arg("--root").arg(storage.join("root"));
        podman.arg("--runroot").arg(storage.join("run"));
        podman.args(["--storage-driver", "vfs"]).args(arguments);
        podman.arg("--signature-policy").arg(&policy);
        podman
    };
    let id = run(podman(&["pull", "--quiet"]).arg(in_layout(from)));
    let push = ["push", "--quiet", "--compression-format", "zstd:chunked"];
    run(podman(&push).arg(id.trim()).arg(in_layout(&to)));
    to
}

fn in_layout(dir: &Path) -> String {
    format!("oci:{}:{TAG}", dir.display())
}

/// What the stargz snapshotter's `ctr` makes of the image in a content store.
fn converted(runtime: &Runtime, tools: &GzipTools, name: &str, form: &[&str]) -> PathBuf {
    let (to, source) = (runtime.work().dir(name).unwrap(), format!("{NAME}:{TAG}"));
    let (target, archive) = (format!("{NAME}:{name}"), to.join("archive"));
    let convert = ["images", "convert", "--oci"];
    run(ctr(runtime, tools).args(convert).args(form).args([&source, &target]));
    run(ctr(runtime, tools)
        .args(["images", "export"])
        .arg(&archive)
        .arg(&target));
    run(Command::new("tar").arg("-C").arg(&to).arg("-xf").arg(&archive));
    to
}

fn ctr(runtime: &Runtime, tools: &GzipTools) -> Command {
    let mut ctr = Command::new(tools.find("ctr-remote"));
    ctr.arg("--address").arg(runtime.socket()).args(["--namespace", "made"]);
    ctr
}

#[test]
fn what_real_tools_make_for_lazy_readers_becomes_what_containerd_unpacks() {
    let site = Site::of_this_executable().unwrap();
    let (tools, runtime) = (GzipTools::open(&site).unwrap(), Runtime::start(Release::Machine));
    let work = runtime.work();
    let tree = runtime.wait(DebianTree::open(Suite::Forky, &site, work)).unwrap();

    let spec = ZooSpec {
        files: 40,
        large_bytes: 5_000_000,
        sparse: None,
    };
    // The second one has paths that are there twice, which podman's storage does not take.
    let mut zoo = SyntheticImage::zoo(21, &spec).layers;
    zoo.remove(1);
    let as_gzip = |layer: SyntheticLayer| SyntheticLayer::of_tar(layer.tar, Compression::Gzip, layer.oracle);
    let image = SyntheticImage::new(Flavor::Oci, zoo.into_iter().map(as_gzip).collect());
    let from = work.dir("from").unwrap();
    layout(&from, &image);
    let archive = work.path().join("from.tar");
    run(Command::new("tar")
        .arg("-C")
        .arg(&from)
        .arg("-cf")
        .arg(&archive)
        .arg("."));
    let import = [
        "images",
        "import",
        "--no-unpack",
        "--all-platforms",
        "--base-name",
        NAME,
    ];
    run(ctr(&runtime, &tools).args(import).arg(&archive));

    const CHUNKED: &str = "zstd-chunked.manifest-checksum";
    const INDEXED: &str = "stargz/toc.digest";
    let estargz = |name: &str, more: &[&str]| converted(&runtime, &tools, name, &[&["--estargz"], more].concat());
    let made = [
        ("zstd:chunked, old", CHUNKED, ZSTD, old_skopeo(work, &from)),
        (
            "zstd:chunked, with tar-split",
            CHUNKED,
            ZSTD,
            podman(work, &tree, &from),
        ),
        (
            "zstd:chunked, stargz's",
            CHUNKED,
            ZSTD,
            converted(&runtime, &tools, "zstd", &["--zstdchunked"]),
        ),
        ("eStargz", INDEXED, GZIP, estargz("estargz", &[])),
        (
            "eStargz, files in parts",
            INDEXED,
            GZIP,
            estargz("parts", &["--estargz-chunk-size", "65536"]),
        ),
    ];
    for (name, annotation, wanted, dir) in made {
        let layers = layers(&dir);
        assert_eq!(layers.len(), image.layers.len(), "{name}");
        for (at, (annotations, media_type, blob)) in layers.iter().enumerate() {
            let has = |key: &str| annotations.iter().any(|k| k.ends_with(key));
            assert!(
                media_type == wanted && has(annotation),
                "{name}: {media_type} {annotations:?}"
            );
            let footer: &[u8] = if wanted == ZSTD { b"gnulinux" } else { b"stargz" };
            let end = &blob[blob.len() - 64..];
            assert!(
                end.windows(footer.len())
                    .any(|bytes| bytes.eq_ignore_ascii_case(footer)),
                "{name}: {end:?}"
            );
            let verdicts = runtime.unpack(blob, media_type);
            assert_eq!(verdicts.difference(), None, "{name}, layer {at}");
            let (theirs, ours) = (verdicts.theirs.as_ref().err(), verdicts.ours.as_ref().err());
            assert!(verdicts.unpacked(), "{name}, layer {at}: {theirs:?} {ours:?}");
        }
    }
}
