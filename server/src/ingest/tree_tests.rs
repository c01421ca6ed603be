//! Bounds of the tree builder, with small numbers; what trees come out is compared in `server/tests/unpack`.

use headstart_layer_format::offset::{LayerOffset, LayerRange};

use super::super::config::IngestConfig;
use super::super::pax::XATTRS_OF_ONE_MAX;
use super::*;

fn memory() -> Memory {
    Memory::start(&IngestConfig::default()).unwrap()
}

fn file(xattr_len: usize) -> Member {
    Member {
        path: b"f".to_vec(),
        kind: MemberKind::File { sparse: None },
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Mtime::default(),
        xattrs: vec![(b"user.x".to_vec(), vec![0; xattr_len])],
        body_len: 0,
    }
}

/// One name, written over and over: the tree stays small, but what it has replaced is still in memory.
#[test]
fn what_members_leave_in_memory_is_bounded_before_the_tree_is_whole() {
    let mut memory = memory();
    let mut tree = TreeBuilder::new(1000);
    tree.bytes_left = 3 * 1007;
    for _ in 0..3 {
        tree.add(&file(1000), Content::EMPTY, &mut memory).unwrap();
    }
    let why = tree.add(&file(1000), Content::EMPTY, &mut memory).unwrap_err();
    assert!(why.to_string().contains("names and attributes"), "{why}");

    let mut tree = TreeBuilder::new(1000);
    tree.extents_left = 1;
    let start = LayerOffset(0);
    let body = || Content::whole(LayerRange { start, len: 1 });
    tree.add(&file(0), body(), &mut memory).unwrap();
    let why = tree.add(&file(0), body(), &mut memory).unwrap_err().to_string();
    assert!(why.contains("extents"), "{why}");
}

fn member(path: &[u8], kind: MemberKind) -> Member {
    Member {
        path: path.to_vec(),
        kind,
        xattrs: Vec::new(),
        ..file(0)
    }
}

fn symlink_to(target: Vec<u8>) -> MemberKind {
    MemberKind::Symlink { target }
}

#[test]
fn a_target_that_no_unpacker_can_make_is_refused_at_once() {
    let mut tree = TreeBuilder::new(1000);
    let long = |len| member(b"l", symlink_to(vec![b'x'; len]));
    tree.add(&long(PATH_LEN_MAX), Content::EMPTY, &mut memory()).unwrap();
    assert!(
        tree.add(&long(PATH_LEN_MAX + 1), Content::EMPTY, &mut memory())
            .is_err()
    );
}

/// Every path through these links walks some thousands of components, and a tar may have a million such paths.
#[test]
fn walking_through_symlinks_is_bounded_for_the_layer() {
    let mut memory = memory();
    let mut tree = TreeBuilder::new(1000);
    let link = member(b"l", symlink_to(b"./".repeat(2000)));
    tree.add(&link, Content::EMPTY, &mut memory).unwrap();
    tree.link_parts_left = 3 * 2001;
    let fifo = member(b"l/f", MemberKind::Fifo);
    for _ in 0..3 {
        tree.add(&fifo, Content::EMPTY, &mut memory).unwrap();
    }
    let why = tree.add(&fifo, Content::EMPTY, &mut memory).unwrap_err();
    assert!(why.to_string().contains("symlinks"), "{why}");
}

#[test]
fn attributes_of_a_directory_that_is_named_again_and_again_are_bounded() {
    let mut memory = memory();
    let mut tree = TreeBuilder::new(1000);
    let mut dir = member(b"d", MemberKind::Directory);
    for i in 0..XATTRS_OF_ONE_MAX {
        dir.xattrs = vec![(format!("user.{i}").into_bytes(), Vec::new())];
        tree.add(&dir, Content::EMPTY, &mut memory).unwrap();
    }
    dir.xattrs = vec![(b"user.more".to_vec(), Vec::new())];
    assert!(tree.add(&dir, Content::EMPTY, &mut memory).is_err());
}
