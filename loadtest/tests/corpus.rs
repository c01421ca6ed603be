//! The corpus says the truth about its own tars: two independent readers agree with the oracle.

use std::collections::HashMap;
use std::io::Read;
use std::process::{Command, Stdio};

use headstart_layer_format::BlobDigest;
use headstart_loadtest::check::{FileTree, Marks, Overlook, compare_trees};
use headstart_loadtest::corpus::{
    Compression, Dialect, LayerBuilder, Meta, OracleKind, SparseForm, SyntheticImage, SyntheticLayer, ZooSpec, big_blob,
};

/// Extracts with GNU tar as root; returns what it complained about.
fn gnu_tar(layer: &SyntheticLayer, into: &std::path::Path) -> String {
    let mut tar = Command::new("tar")
        .args([
            "--numeric-owner",
            // Else it forgets a directory it comes back to later.
            "--delay-directory-restore",
            "--same-owner",
            "-p",
            "--xattrs",
            "--xattrs-include=*",
            "-xf",
            "-",
            "-C",
        ])
        .arg(into)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = tar.stdin.take().unwrap();
    let bytes = layer.tar.clone();
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &bytes));
    let output = tar.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn gnu_tar_unpacks_every_layer_as_the_oracle_says() {
    for spec in [SparseForm::OldGnu, SparseForm::Pax1].map(|form| ZooSpec {
        sparse: Some(form),
        ..ZooSpec::default()
    }) {
        for (i, layer) in SyntheticImage::zoo(7, &spec).layers.iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            let complaints = gnu_tar(layer, dir.path());
            // GNU tar does not replace a full directory by a symlink, as unpackers of layers do.
            let unexpected: Vec<&str> = complaints
                .lines()
                .filter(|l| {
                    !l.contains("opt/kind")
                        && !l.contains("previous errors")
                        && !l.contains("implausibly old")
                        && !l.contains("Removing leading")
                })
                .collect();
            assert!(unexpected.is_empty(), "layer {i}: {unexpected:#?}");
            let overlook = Overlook::nothing().path("opt/kind");
            let expected = FileTree::of_oracle(&layer.oracle, Marks::Files);
            let found = FileTree::of_directory(dir.path()).unwrap();
            let differences = compare_trees(&expected, &found, &overlook).unwrap();
            assert!(differences.is_empty(), "layer {i}: {differences}");
            assert!(differences.compared >= 5);
        }
    }
}

/// Without the prefix and the directory's slash.
fn plain(path: &[u8]) -> Vec<u8> {
    let path = path.strip_prefix(b"./").or(path.strip_prefix(b"/")).unwrap_or(path);
    path.strip_suffix(b"/").unwrap_or(path).to_vec()
}

#[test]
fn the_tar_crate_reads_the_same_names_and_bytes() {
    for layer in &SyntheticImage::seeded(8).layers {
        let mut seen: HashMap<Vec<u8>, Option<BlobDigest>> = HashMap::new();
        let mut archive = tar::Archive::new(layer.tar.as_ref());
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = plain(&entry.path_bytes());
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let is_file = matches!(
                entry.header().entry_type(),
                tar::EntryType::Regular | tar::EntryType::GNUSparse
            );
            let digest = match entry.header().entry_type() {
                tar::EntryType::Link => seen[&plain(&entry.link_name_bytes().unwrap())],
                _ => is_file.then(|| BlobDigest::of(&content)),
            };
            seen.insert(path, digest);
        }
        for e in &layer.oracle.entries {
            match &e.kind {
                OracleKind::Directory { implied: true, .. } | OracleKind::Whiteout => {}
                _ => assert_eq!(
                    seen.get(&e.path),
                    Some(&e.content_digest()),
                    "{}",
                    e.path.escape_ascii()
                ),
            }
        }
    }
}

#[test]
fn a_seed_names_an_image_for_ever() {
    let (a, b) = (SyntheticImage::seeded(1), SyntheticImage::seeded(1));
    assert_eq!(a.manifest, b.manifest);
    assert_ne!(SyntheticImage::seeded(2).manifest_digest, a.manifest_digest);
    // Changes only with the writer itself, never with a dependency.
    let tar = SyntheticImage::tiny(1).layers[0].diff_id.to_string();
    assert_eq!(
        tar,
        "sha256:d849737e7df1fa971ecc5cc89e3b147276a7712434a9b55962f1f3554a2975de"
    );
    assert_eq!(big_blob(5, 1001).len(), 1001);
}

#[test]
fn all_kinds_appear() {
    let image = SyntheticImage::seeded(3);
    let kinds: Vec<&OracleKind> = image
        .layers
        .iter()
        .flat_map(|l| &l.oracle.entries)
        .map(|e| &e.kind)
        .collect();
    let has = |test: fn(&OracleKind) -> bool| kinds.iter().any(|k| test(k));
    assert!(has(|k| matches!(k, OracleKind::Directory { opaque: true, .. })));
    assert!(has(|k| matches!(k, OracleKind::Directory { implied: true, .. })));
    assert!(has(|k| matches!(k, OracleKind::Symlink { .. })));
    assert!(has(|k| matches!(k, OracleKind::CharDevice { .. })));
    assert!(has(|k| matches!(k, OracleKind::BlockDevice { .. })));
    assert!(has(|k| matches!(k, OracleKind::Fifo)));
    assert!(has(|k| matches!(k, OracleKind::Whiteout)));
    assert!(has(|k| matches!(k, OracleKind::File { content } if content.is_empty())));
    assert!(has(
        |k| matches!(k, OracleKind::File { content } if content.len() > 2 << 20)
    ));
    let paths = || image.layers.iter().flat_map(|l| &l.oracle.entries).map(|e| &e.path);
    assert!(paths().any(|p| p.len() > 255) && paths().any(|p| std::str::from_utf8(p).is_err()));
}

#[test]
fn every_kind_of_difference_is_reported() {
    let layer = |change: fn(&mut LayerBuilder)| {
        let mut b = LayerBuilder::new(Dialect::Pax);
        b.dir("d", Meta::mode(0o755));
        b.file("d/f", Meta::default().xattr("user.a", "1"), "content");
        b.file("d/g", Meta::default(), "content");
        change(&mut b);
        FileTree::of_oracle(&b.finish(Compression::Plain).oracle, Marks::Overlay)
    };
    let same = layer(|_| {});
    let differences = |change| compare_trees(&same, &layer(change), &Overlook::nothing()).unwrap();
    assert!(differences(|_| {}).is_empty());
    type Change = fn(&mut LayerBuilder);
    let cases: [(&str, Change); 9] = [
        ("mode", |b| _ = b.file("d/g", Meta::mode(0o600), "content")),
        ("owner", |b| _ = b.file("d/g", Meta::default().owner(1, 0), "content")),
        ("mtime", |b| {
            _ = b.file("d/g", Meta::default().mtime(1_700_000_000, 1), "content")
        }),
        ("xattr user.a", |b| _ = b.file("d/f", Meta::default(), "content")),
        ("content differs from byte 3", |b| {
            _ = b.file("d/g", Meta::default(), "conTent")
        }),
        ("size", |b| _ = b.file("d/g", Meta::default(), "contents")),
        ("kind", |b| _ = b.fifo("d/g", Meta::default())),
        ("only on the right", |b| _ = b.whiteout("d/h")),
        ("one inode", |b| _ = b.hardlink("d/h", "d/g").hardlink("d/e", "d/g")),
    ];
    for (what, change) in cases {
        let found = differences(change);
        assert!(found.listed.iter().any(|l| l.contains(what)), "{what}: {found}");
    }
}
