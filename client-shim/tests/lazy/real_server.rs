//! The same mount, from the real server in this process and a registry behind it: every entry kind there is.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use headstart_loadtest::corpus::{Oracle, OracleKind, SyntheticImage};

use crate::mount::compare_items;
use crate::support::node::lazy_config;
use crate::support::{Body, Converted, Item, Node, What};

/// What the corpus says a layer contains, in this suite's own terms.
pub fn items(oracle: &Oracle) -> BTreeMap<Vec<u8>, Item> {
    let mut first_names: HashMap<u32, Vec<u8>> = HashMap::new();
    let mut out = BTreeMap::new();
    for entry in &oracle.entries {
        let first = entry
            .link_group
            .map(|group| first_names.entry(group).or_insert_with(|| entry.path.clone()));
        let what = match (&entry.kind, first) {
            (_, Some(first)) if *first != entry.path => What::Link(first.clone()),
            (OracleKind::Directory { opaque, implied }, _) => What::Dir {
                opaque: *opaque,
                // containerd passes over an entry for the root.
                implied: *implied || entry.path.is_empty(),
            },
            (OracleKind::File { content }, _) => What::File(Body::whole(content.to_vec())),
            (OracleKind::Symlink { target }, _) => What::Symlink(target.clone()),
            (OracleKind::CharDevice { major, minor }, _) => What::Char(*major, *minor),
            (OracleKind::BlockDevice { major, minor }, _) => What::Block(*major, *minor),
            (OracleKind::Fifo, _) => What::Fifo,
            (OracleKind::Whiteout, _) => What::Whiteout,
        };
        // As containerd unpacks: times before 1970 become 1970, and a symbolic link has no mode of its own.
        let mtime = match entry.meta.mtime_secs {
            secs @ 0.. => (secs, entry.meta.mtime_nanos),
            _ => (0, 0),
        };
        let mode = match what {
            What::Symlink(_) => 0o777,
            _ => entry.meta.mode as u16,
        };
        let mut item = Item::new(what)
            .mode(mode)
            .owner(entry.meta.uid, entry.meta.gid)
            .mtime(mtime.0, mtime.1);
        item.xattrs = entry.meta.xattrs.iter().cloned().collect();
        out.insert(entry.path.clone(), item);
    }
    out
}

#[test]
fn every_layer_of_a_seeded_image_is_shown_as_its_tar_says() {
    let image = SyntheticImage::seeded(11);
    let mut server = Converted::start(&image);
    let root = tempfile::tempdir().unwrap();
    let node = Node::open_with(root.path(), &[server.url.clone()], lazy_config()).unwrap();
    for layer in &image.layers {
        let presented = node.present_within(&layer.digest, Duration::from_secs(25)).unwrap();
        assert_eq!(presented.diff_id, layer.diff_id);
        compare_items(&items(&layer.oracle), &presented.lowerdir);
    }
    assert_eq!(node.counters().corrupt_chunks.get(), 0);

    // The server is gone; what was read is not.
    server.down();
    for layer in &image.layers {
        let presented = node.layers.present_known(&layer.digest).unwrap();
        compare_items(&items(&layer.oracle), &presented.lowerdir);
    }
    assert_eq!(node.counters().read_errors.get(), 0);
}
