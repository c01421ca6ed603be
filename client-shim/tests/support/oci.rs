//! A small runnable image from this machine's own shell, as an archive that `ctr image import` takes.
//!
//! In: directory trees, one a layer. Out: the archive and the layers' DiffIDs. Invariant: no network, no registry.
//! Not here: compressed layers (the server's business).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use headstart_layer_format::{BlobDigest, DiffId};
use serde_json::json;

/// Programs of the image; a shell that has `echo`, `test` and `read` built in needs little else.
const PROGRAMS: [&str; 4] = ["/bin/sh", "/bin/cat", "/bin/rm", "/bin/mv"];

pub struct Archive {
    pub path: PathBuf,
    pub diff_ids: Vec<DiffId>,
    /// The layers' trees, bottom first.
    pub trees: Vec<PathBuf>,
}

/// A base layer with a shell, and an upper one. `whiteout`: the upper one deletes a file of the base.
pub fn build(dir: &Path, name: &str, whiteout: bool) -> Archive {
    let base = dir.join("base");
    for program in PROGRAMS {
        copy_program(&base, program);
    }
    fs::create_dir_all(base.join("etc")).unwrap();
    fs::write(base.join("etc/removed"), "still here\n").unwrap();
    fs::write(base.join("etc/kept"), "kept\n").unwrap();
    let top = dir.join("top");
    fs::create_dir_all(top.join("etc")).unwrap();
    fs::write(top.join("greeting"), "hello from a snapshot\n").unwrap();
    if whiteout {
        fs::write(top.join("etc/.wh.removed"), "").unwrap();
    }
    pack(dir, name, vec![base, top])
}

/// Copies a program and the libraries that `ldd` names.
fn copy_program(root: &Path, program: &str) {
    let ldd = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8(ldd.stdout).unwrap();
    let libraries = text.split_whitespace().filter(|word| word.starts_with('/'));
    for file in libraries.chain([program]) {
        let to = root.join(file.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, to).unwrap();
    }
}

fn pack(dir: &Path, name: &str, trees: Vec<PathBuf>) -> Archive {
    let image = dir.join("oci");
    let blobs = image.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = BlobDigest::of(bytes);
        fs::write(blobs.join(digest.hex()), bytes).unwrap();
        (digest.to_string(), bytes.len())
    };
    let mut layers = Vec::new();
    let mut diff_ids = Vec::new();
    for tree in &trees {
        let tar = tar(tree, &[]);
        let (digest, size) = put(&tar);
        diff_ids.push(DiffId::of(&tar));
        layers.push(json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size,
        }));
    }
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let (config, size) = put(config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": size},
        "layers": layers,
    });
    let (manifest, size) = put(manifest.to_string().as_bytes());
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": size,
            "annotations": {"io.containerd.image.name": name},
        }],
    });
    fs::write(image.join("index.json"), index.to_string()).unwrap();
    fs::write(image.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let path = dir.join("image.tar");
    fs::write(&path, tar(&image, &["oci-layout", "index.json", "blobs"])).unwrap();
    Archive { path, diff_ids, trees }
}

fn tar(dir: &Path, members: &[&str]) -> Vec<u8> {
    let members: &[&str] = if members.is_empty() { &["."] } else { members };
    let out = Command::new("tar")
        .args(["--numeric-owner", "--sort=name", "-cf", "-", "-C"])
        .arg(dir)
        .args(members)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}
