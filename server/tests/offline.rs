//! `convert` and `dedup`: the real binary on layers from files, and `dedup` of images that a running server has.
//!
//! The figures of `dedup` are held against a real conversion's: what it says would be new is what was.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use headstart_layer_format::{ChunkDigest, Toc};
use headstart_loadtest::corpus::{
    Compression, Dialect, Flavor, LayerBuilder, Meta, Rng, SyntheticImage, SyntheticLayer,
};
use headstart_loadtest::origin::Origin;
use headstart_server::store::Store;
use serde_json::Value;
use support::binary::Binary;

const ADDED: usize = 5_000;
const FILES: u64 = 120;

/// Files of up to 30 KB and a large one; `second`: built again, so that every time is another, with one file more.
fn build(second: bool) -> SyntheticLayer {
    let meta = || Meta::default().mtime(1_700_000_000 + i64::from(second) * 1000, 0);
    let mut layer = LayerBuilder::new(Dialect::Pax);
    for i in 0..FILES {
        let mut rng = Rng::new(i + 1);
        let len = 100 + rng.below(30_000) as usize;
        layer.file(format!("lib/{i:03}"), meta(), rng.text(len));
        if i == FILES / 2 {
            layer.file("lib/large", meta(), Rng::new(1000).bytes(1_400_000));
            // Not a file that bodies could be compared by.
            layer.symlink("lib/link", meta(), "large");
            layer.file("lib/empty", meta(), "");
        }
        if second && i == 20 {
            layer.file("lib/added", meta(), Rng::new(2000).bytes(ADDED));
        }
    }
    layer.finish(Compression::Gzip)
}

fn base() -> SyntheticLayer {
    let mut layer = LayerBuilder::new(Dialect::Gnu);
    layer.file("etc/base", Meta::default(), Rng::new(3000).bytes(40_000));
    layer.finish(Compression::Zstd)
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("tmp")).unwrap();
        Self { dir }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headstart-server"));
        command.args(arguments).env("TMPDIR", self.dir.path().join("tmp"));
        command.output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(arguments);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn nothing_is_left(&self) -> bool {
        std::fs::read_dir(self.dir.path().join("tmp")).unwrap().next().is_none()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn way<'a>(step: &'a Value, name: &str) -> &'a Value {
    let ways = step["ways"].as_array().unwrap();
    ways.iter().find(|way| way["way"] == name).unwrap()
}

#[test]
fn what_dedup_says_is_what_a_conversion_stores() {
    let place = Place::new();
    let (first, second) = (build(false), build(true));
    let a = place.write("a.tar.gz", &first.blob);
    let b = place.write("b.tar.gz", &second.blob);
    let base = place.write("base.tar.zst", &base().blob);
    let (a, b, base) = (text(&a), text(&b), text(&base));

    let steps = place.json(&[
        "dedup", "--json", "--cut", "512/512", "--layers", base, a, "--", base, b,
    ]);
    let step = &steps[0];
    assert_eq!(steps.as_array().unwrap().len(), 1);
    assert_eq!((&step["layers_count"], &step["layers_shared"]), (&2.into(), &1.into()));
    assert_eq!(step["tar_bytes"], second.tar.len());
    assert_eq!(step["compressed_bytes"], second.blob.len());
    let files = way(step, "whole files");
    assert_eq!((&files["new_bytes"], &files["new_units"]), (&ADDED.into(), &1.into()));
    // Empty ones have no bytes to share.
    assert_eq!(files["units"], FILES + 2);
    for tar in ["chunks, headers left in", "tar, cut by content"] {
        assert_eq!(way(step, tar)["bytes"], second.tar.len(), "{tar}");
    }
    let bodies = way(step, "bodies, cut by content");
    assert_eq!(bodies["bytes"], files["bytes"]);
    let new = |name: &str| way(step, name)["new_bytes"].as_u64().unwrap();
    let chunks = new("chunks, as cut now");
    assert!(chunks >= ADDED as u64 && chunks < 1_200_000, "{chunks}");
    assert!(new("chunks, if 512/512 KiB") > chunks);
    // Other times in the headers make every group of small files another.
    assert!(new("chunks, headers left in") > 1_500_000 + chunks, "{step}");
    assert!(place.nothing_is_left());

    let data = place.dir.path().join("data");
    let convert = |files: &[&str]| {
        let arguments = [&["convert", "--json", "--data-dir", text(&data)], files].concat();
        place.json(&arguments)
    };
    convert(&[base, a]);
    let report = convert(&[base, b, b]);
    let layers = report["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2, "a blob named twice is converted once");
    assert_eq!(
        (&layers[0]["state"], &layers[1]["state"]),
        (&"already".into(), &"ready".into())
    );
    let ours = way(step, "chunks, as cut now");
    assert_eq!(layers[1]["new_chunk_bytes"], ours["new_bytes"]);
    assert_eq!(layers[1]["chunk_count"], ours["units"]);
    assert_eq!(layers[1]["data_bytes"], ours["bytes"]);
}

#[test]
fn a_converted_store_is_a_servers_store() {
    let place = Place::new();
    let (layer, base) = (build(false), base());
    // As in an OCI layout: the name is the digest.
    let named = format!("blobs/sha256/{}", layer.digest.hex());
    let a = place.write(&named, &layer.blob);
    let b = place.write("base", &base.blob);
    let data = place.dir.path().join("data");
    let report = place.json(&[
        "convert",
        "--json",
        "--jobs",
        "2",
        "--data-dir",
        text(&data),
        text(&a),
        text(&b),
    ]);
    for (row, layer) in report["layers"].as_array().unwrap().iter().zip([&layer, &base]) {
        assert_eq!(row["digest"], layer.digest.to_string());
        assert_eq!(row["compressed_bytes"], layer.blob.len());
        assert_eq!(row["tar_bytes"], layer.tar.len());
        // Two at a time: whose would it be?
        assert!(row["peak_rss_bytes"].is_null());
    }
    let total = &report["total"];
    let number = |value: &Value| value.as_u64().unwrap();
    let frames: u64 = report["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| number(&l["stored_bytes"]))
        .sum();
    assert!(
        number(&total["stored_bytes"]) > frames && frames > 1_400_000,
        "{report}"
    );
    assert!(
        number(&total["cpu_ms"]) > 0 && number(&total["peak_rss_bytes"]) > 1 << 20,
        "{report}"
    );

    let store = Store::open(&data).unwrap();
    for layer in [&layer, &base] {
        let (_, bytes) = store.toc(&layer.digest).unwrap().expect("it is ready");
        let toc = Toc::decode(&bytes).unwrap();
        assert_eq!(toc.diff_id(), &layer.diff_id);
        for c in toc.chunks().entries() {
            let frame = store.read_chunk(&c.digest).unwrap().expect("a chunk");
            let raw = zstd::bulk::decompress(&frame, c.raw_len as usize).unwrap();
            assert_eq!(ChunkDigest::of(&raw), c.digest);
        }
    }
    // While it is in use, nobody else writes there.
    let output = place.run(&["convert", "--data-dir", text(&data), text(&a)]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && error.contains("another process uses the store"),
        "{error}"
    );
}

#[test]
fn what_cannot_be_converted_is_said_and_the_rest_is_done() {
    let place = Place::new();
    let good = build(false);
    let a = place.write("good", &good.blob);
    let refused = place.write("refused", b"this is no tar");
    let lying = place.write(&format!("sha256/{}", good.digest.hex()), &base().blob);
    let arguments = ["convert", "--json", text(&refused), text(&a)];
    let output = place.run(&arguments);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let states: Vec<&Value> = report["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| &l["state"])
        .collect();
    assert_eq!(states, ["refused", "ready"]);
    // One after the other: memory is told.
    assert!(
        report["layers"][1]["peak_rss_bytes"].as_u64() > Some(1 << 20),
        "{report}"
    );
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("failed to convert 1 of 2 layers"), "{error}");

    let output = place.run(&["convert", text(&lying)]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && error.contains("its digest is wrong"),
        "{error}"
    );
    assert!(String::from_utf8(output.stdout).unwrap().contains("failed"));
    // (Against the layer that it claims to be, it would not be opened.)
    let output = place.run(&["dedup", "--layers", text(&refused), "--", text(&lying)]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && error.contains("the tar ends early"),
        "{error}"
    );
    let output = place.run(&["dedup", "--layers", text(&lying), "--", text(&a)]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && error.contains("its digest is wrong"),
        "{error}"
    );
    assert!(place.nothing_is_left());

    for wrong in [
        &["dedup", "--layers", text(&a)][..],
        &["dedup", "one"],
        &["dedup", "--cut", "1/2", "--layers", text(&a), "--", text(&a)],
        &["convert"],
    ] {
        assert_eq!(place.run(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_a_running_server_are_compared_like_files() {
    let place = Place::new();
    let (first, second) = (build(false), build(true));
    let images = [
        SyntheticImage::new(Flavor::Oci, vec![base(), first.clone()]),
        SyntheticImage::new(Flavor::Oci, vec![base(), second.clone()]),
    ];
    let origin = Origin::with_image("team/app", "v1", &images[0]);
    images[1].push(&origin, "team/app", "v2");
    let config = format!("[[upstreams]]\nname = \"up.test\"\nurl = \"{}\"", origin.url());
    let server = Binary::start(&config, "", &[]);
    let names = ["up.test/team/app:v1", "up.test/team/app:v2"];
    server.ask(&["warm", names[0], names[1]]);
    let asked: Value = serde_json::from_str(&server.ask(&["dedup", "--json", names[0], names[1]])).unwrap();
    assert_eq!(
        (&asked[0]["image"], &asked[0]["after"][0]),
        (&names[1].into(), &names[0].into())
    );

    let a = place.write("a", &first.blob);
    let b = place.write("b", &second.blob);
    let offline = place.json(&["dedup", "--json", "--layers", text(&a), "--", text(&b)]);
    assert_eq!(asked[0]["ways"], offline[0]["ways"]);
    assert_eq!(asked[0]["layers_shared"], 1);
    // One from there and one from here; the second is the one from here.
    let mixed = server.ask(&["dedup", names[0], "--layers", text(&b)]);
    assert!(
        mixed.contains("files behind --layers after up.test/team/app:v1"),
        "{mixed}"
    );
    assert!(mixed.contains("whole files"), "{mixed}");

    server.ask(&["rm", "--force", &second.digest.to_string()]);
    let why = server.ask_in_vain(&["dedup", names[0], names[1]]);
    assert!(
        why.contains(&second.digest.to_string()) && why.contains("warm fetches it"),
        "{why}"
    );
    let why = server.ask_in_vain(&["dedup", names[0], "up.test/team/app:v3"]);
    assert!(why.contains("up.test/team/app:v3: it is not here"), "{why}");
}
