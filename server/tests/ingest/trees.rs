//! What layers become: trees, chunks and skeletons.
//!
//! In: synthetic layers, in every compression, in pieces of any size. Out: the oracle's tree, and the exact tar.
//! Not here: tars that lie ([`super::tars`]).

use std::io::{self, Cursor, Read};

use headstart_layer_format::toc::Kind;
use headstart_layer_format::{BlobDigest, DiffId};
use headstart_loadtest::corpus::{Compression, Oracle, SparseForm, SyntheticImage, SyntheticLayer, ZooSpec};

use crate::tars::tar_of;
use crate::{BEFORE_1970, assert_like_oracle, file_bytes, room};

#[test]
fn every_kind_of_entry_becomes_what_the_oracle_says_and_the_parts_rebuild_the_tar() {
    for (seed, form) in [(1, SparseForm::OldGnu), (2, SparseForm::Pax1)] {
        let spec = ZooSpec {
            sparse: Some(form),
            ..ZooSpec::default()
        };
        let room = room();
        for layer in &SyntheticImage::zoo(seed, &spec).layers {
            let toc = room.convert(&layer.digest, &layer.blob[..]).unwrap();
            assert_eq!(toc.diff_id(), &layer.diff_id);
            assert_eq!(toc.layer_digest(), &layer.digest);
            let tar = room.rebuild(&toc);
            assert_eq!(DiffId::of(&tar), layer.diff_id);
            assert!(tar == layer.tar);
            assert_like_oracle(&room, &toc, layer);
        }
    }
}

#[test]
fn a_time_before_1970_becomes_1970_as_in_unpackers() {
    let room = room();
    let layer = &SyntheticImage::seeded(3).layers[0];
    let toc = room.convert(&layer.digest, &layer.blob[..]).unwrap();
    let id = toc.tree().find(BEFORE_1970.as_bytes()).unwrap();
    let inode = toc.tree().inode(toc.tree().entry(id).unwrap().inode).unwrap();
    assert_eq!((inode.mtime.secs, inode.mtime.nanos), (0, 0));
}

#[test]
fn compressions_of_one_tar_share_tree_and_chunks() {
    let room = room();
    let tar = SyntheticImage::seeded(4).layers[0].tar.clone();
    let kinds = [
        Compression::Plain,
        Compression::Gzip,
        Compression::GzipMembers(5),
        Compression::Zstd,
    ];
    let tocs = kinds.map(|c| {
        let layer = SyntheticLayer::of_tar(tar.clone(), c, Oracle::default());
        room.convert(&layer.digest, &layer.blob[..]).unwrap()
    });
    for toc in &tocs {
        assert_eq!(toc.tree(), tocs[0].tree());
        assert_eq!(toc.chunks(), tocs[0].chunks());
        assert_eq!(toc.diff_id(), tocs[0].diff_id());
    }
    // Several zstd frames, a skippable one in front.
    let (a, b) = tar.split_at(tar.len() / 3);
    let mut blob = vec![0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
    blob.extend(zstd::bulk::compress(a, 1).unwrap());
    blob.extend(zstd::bulk::compress(b, 5).unwrap());
    let toc = room.convert(&BlobDigest::of(&blob), &blob[..]).unwrap();
    assert_eq!(toc.tree(), tocs[0].tree());
}

/// Gives bytes in pieces of the given sizes.
struct Dribble<'a>(&'a [u8], Vec<usize>, usize);

impl Read for Dribble<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.2 += 1;
        let want = self.1[self.2 % self.1.len()].min(buf.len()).min(self.0.len());
        buf[..want].copy_from_slice(&self.0[..want]);
        self.0 = &self.0[want..];
        Ok(want)
    }
}

#[test]
fn the_toc_does_not_depend_on_how_the_bytes_arrive() {
    for layer in &SyntheticImage::seeded(5).layers {
        let whole = room().convert(&layer.digest, &layer.blob[..]).unwrap();
        for sizes in [vec![1], vec![511, 1, 3], vec![65_537, 2]] {
            let dribble = Dribble(&layer.blob, sizes, 0);
            let toc = room().convert(&layer.digest, dribble).unwrap();
            assert_eq!(toc.encode().unwrap(), whole.encode().unwrap());
        }
    }
}

#[test]
fn another_writer_and_reader_agree() {
    let mut builder = tar::Builder::new(Vec::new());
    let long = format!("{}/file", vec!["directory"; 40].join("/"));
    let contents: Vec<(String, Vec<u8>)> = (0..50)
        .map(|i| (format!("d/f{i}"), vec![i as u8; i * 997]))
        .chain([(long, b"deep".to_vec())])
        .collect();
    for (path, content) in &contents {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o640);
        builder.append_data(&mut header, path, &content[..]).unwrap();
    }
    let tar = builder.into_inner().unwrap();
    let room = room();
    let toc = room.convert_tar(&tar).unwrap();
    let data = room.data_space(&toc);
    for (path, content) in &contents {
        let id = toc.tree().find(path.as_bytes()).expect("the file");
        match &toc.tree().inode(toc.tree().entry(id).unwrap().inode).unwrap().kind {
            Kind::Regular(c) => assert!(&file_bytes(c, &data) == content),
            other => panic!("{other:?}"),
        }
    }
    let rebuilt = room.rebuild(&toc);
    let mut archive = tar::Archive::new(Cursor::new(rebuilt));
    assert_eq!(archive.entries().unwrap().filter(|e| e.is_ok()).count(), contents.len());
}

/// A blob of no bytes, and a tar of end marks: runtimes make an empty directory of both.
#[test]
fn layers_without_files_are_layers() {
    let room = room();
    for tar in [&b""[..], &[0; 512], &[0; 1024], &[0; 10_240]] {
        let toc = room.convert_tar(tar).unwrap();
        assert_eq!(toc.tree().entries().len(), 1);
        assert_eq!(toc.diff_id(), &DiffId::of(tar));
        assert!(room.rebuild(&toc) == tar);
    }
}

#[test]
fn trailing_bytes_belong_to_the_tar() {
    let room = room();
    let mut tar = tar_of(&[("f", b'0', "content")]);
    tar.extend_from_slice(&[0; 10_240]);
    tar.extend_from_slice(b"behind the end");
    let toc = room.convert_tar(&tar).unwrap();
    assert!(room.rebuild(&toc) == tar);
    assert_eq!(toc.diff_id(), &DiffId::of(&tar));
}
