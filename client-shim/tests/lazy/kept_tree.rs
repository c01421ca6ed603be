//! Trees as this node's disk keeps them: for the next start, damaged, torn, or not at all.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::time::{Duration, Instant};

use headstart_shim::counters::Counters;
use headstart_shim::fuse::node_id::Node;
use headstart_shim::fuse::tree_fs::{FsError, TreeFs};

use crate::support::{Item, LayerBuilder, TestLayer, What};
use crate::tree::{Shown, check, list, runtime, shown, walk};

impl Shown {
    /// As after a restart.
    fn again(self) -> Self {
        let counters = Arc::new(Counters::default());
        let tree = TreeFs::new(self.dir.path(), &counters);
        assert!(tree.add(Arc::clone(&self.layer)));
        Self { tree, counters, ..self }
    }

    fn damages(&self) -> u64 {
        self.counters.damaged_trees.get()
    }

    /// One byte of every block, in the very file that is open.
    fn damage(&self) {
        let file = File::options()
            .read(true)
            .write(true)
            .open(self.layer.file().tree())
            .unwrap();
        for at in (1234..file.metadata().unwrap().len()).step_by(4096) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        }
    }
}

/// Names, attributes and files for some blocks of each kind.
fn some_blocks() -> Arc<TestLayer> {
    let mut layer = LayerBuilder::new();
    for at in 0..300 {
        let path = format!("directory-{}/a-file-with-a-name-{at}", at % 3);
        let item = match at % 10 {
            0 => Item::new(What::Symlink(vec![b'x'; 200])),
            1 => Item::file("text").xattr("user.long", &[7; 3000]),
            _ => Item::file(format!("text {at}")),
        };
        layer = layer.add(path, item);
    }
    layer.build(1 << 20)
}

const READS: [(u64, u32); 1] = [(1, 100)];

#[test]
fn a_tree_is_kept_for_the_next_start_and_not_believed_when_it_is_damaged() {
    let (runtime, layer) = (runtime(), some_blocks());
    let shown = shown(&runtime, &layer);
    check(&shown, &layer, 50, &READS);
    let path = shown.layer.file().tree();
    let (number, good) = (fs::metadata(&path).unwrap().ino(), fs::read(&path).unwrap());
    assert!(good.len() > 20 * 4096);

    let shown = shown.again();
    check(&shown, &layer, 50, &READS);
    assert_eq!(
        (shown.damages(), fs::metadata(&path).unwrap().ino()),
        (0, number),
        "nothing was made"
    );

    shown.damage();
    let shown = shown.again();
    check(&shown, &layer, 50, &READS);
    assert_eq!(
        (shown.damages(), fs::read(&path).unwrap() == good),
        (1, true),
        "made anew"
    );

    // As power loss may leave it, and as another version would.
    for bytes in [&good[..good.len() / 2 + 99], &[0; 4096 * 30], b"", b"headstart tree 0"] {
        fs::write(&path, bytes).unwrap();
        let shown = Shown {
            tree: TreeFs::new(shown.dir.path(), &shown.counters),
            dir: tempfile::tempdir().unwrap(),
            layer: Arc::clone(&shown.layer),
            counters: Arc::clone(&shown.counters),
            slot: shown.slot,
        };
        assert!(shown.tree.add(Arc::clone(&shown.layer)));
        check(&shown, &layer, 50, &READS);
        assert!(fs::read(&path).unwrap() == good);
    }
    assert_eq!(shown.damages(), 5);
}

#[test]
fn a_tree_that_is_damaged_while_it_is_shown_is_mended_under_its_readers() {
    let (runtime, layer) = (runtime(), some_blocks());
    let shown = shown(&runtime, &layer);
    shown.tree.prepare(shown.slot);
    shown.damage();
    // In the midst of a listing, whose first names came from blocks that were read before.
    let root = Node::layer_root(shown.slot);
    let directory = walk(&shown.tree, b"directory-1", root);
    assert_eq!(shown.damages(), 1);
    assert_eq!(list(&shown.tree, directory.node, 7).len(), 102);
    // Twice is the disk: from now on the tree is where no disk can damage it.
    let shown = shown.again();
    shown.tree.prepare(shown.slot);
    shown.damage();
    shown.tree.attr(root).unwrap();
    assert_eq!(shown.damages(), 1);
    shown.damage();
    walk(&shown.tree, b"directory-1", root);
    assert_eq!(shown.damages(), 2);
    // Of most blocks nothing was read yet.
    shown.damage();
    check(&shown, &layer, 50, &READS);
    assert_eq!(shown.damages(), 2);
}

#[test]
fn a_listing_that_comes_upon_damage_gives_each_name_once() {
    let (runtime, layer) = (runtime(), some_blocks());
    let shown = shown(&runtime, &layer);
    let root = Node::layer_root(shown.slot);
    let directory = walk(&shown.tree, b"directory-1", root);
    let expected: Vec<Vec<u8>> = list(&shown.tree, directory.node, 1000)
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    let shown = shown.again();
    let mut names = Vec::new();
    shown
        .tree
        .read_dir(directory.node, 0, &mut |item| {
            names.push(item.name.to_vec());
            if names.len() == 5 {
                shown.damage();
            }
            true
        })
        .unwrap();
    assert_eq!((names, shown.damages()), (expected, 1));
}

#[test]
fn without_its_toc_a_damaged_tree_is_an_io_error_until_it_is_back() {
    let (runtime, layer) = (runtime(), some_blocks());
    let encoded = layer.encoded.clone();
    let shown = shown(&runtime, &layer);
    shown.tree.prepare(shown.slot);
    shown.damage();
    let toc = shown.layer.file().tree().with_file_name("toc");
    // Nobody has it in memory, either.
    let (items, root) = (layer.items.len(), Node::layer_root(shown.slot));
    drop(layer);
    fs::remove_file(&toc).unwrap();
    assert_eq!(shown.tree.attr(root), Err(FsError::Io));
    assert_eq!(shown.tree.lookup(root, b"directory-1"), Err(FsError::Io));
    assert_eq!(shown.tree.xattr_names(root), Err(FsError::Io));
    fs::write(&toc, encoded).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while shown.tree.attr(root) == Err(FsError::Io) {
        assert!(Instant::now() < deadline, "it is back");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(list(&shown.tree, root, 50).len() + 300, items + 1, "dots, and no root");
}

#[test]
fn a_tree_for_which_there_is_no_room_is_in_memory() {
    let (runtime, layer) = (runtime(), some_blocks());
    let shown = shown(&runtime, &layer);
    // Nothing can be made there.
    fs::create_dir(shown.layer.file().tree().with_extension("new")).unwrap();
    check(&shown, &layer, 50, &READS);
    assert_eq!((shown.damages(), shown.layer.file().tree().exists()), (0, false));
}

/// Memory is not where it stays: once there is room the tree goes to the disk, under whoever asks.
#[test]
fn a_tree_goes_to_the_disk_once_there_is_room() {
    let (runtime, layer) = (runtime(), some_blocks());
    let shown = shown(&runtime, &layer);
    let path = shown.layer.file().tree();
    fs::create_dir(path.with_extension("new")).unwrap();
    check(&shown, &layer, 50, &READS);
    shown.tree.settle();
    assert!(!path.exists());
    fs::remove_dir(path.with_extension("new")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !path.exists() {
        assert!(Instant::now() < deadline, "it stays in memory");
        std::thread::sleep(Duration::from_millis(100));
        shown.tree.settle();
    }
    let number = fs::metadata(&path).unwrap().ino();
    // What is asked from now on comes from there: else nobody would notice this.
    shown.damage();
    check(&shown, &layer, 50, &READS);
    assert_eq!(shown.damages(), 1);
    // And it is settled.
    shown.tree.settle();
    assert_ne!(fs::metadata(&path).unwrap().ino(), number, "made anew, for the damage");
}
