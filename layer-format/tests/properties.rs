//! Properties of the format over arbitrary layers.

mod support;

use std::io::Write;

use headstart_layer_format::toc::{Kind, Piece};
use headstart_layer_format::{BlobOffset, BlobRange, LayerOffset, LayerRange, Toc};
use proptest::prelude::*;
use support::arbitrary::{Sample, sample, skeleton, tar_parts};

/// Indices of the intervals that share a byte with `start..start+len`, the slow way.
fn naive(intervals: &[(u64, u64)], start: u64, len: u64) -> Vec<u32> {
    let end = start.saturating_add(len);
    let hits = |&(s, l): &(u64, u64)| len > 0 && s < end && start < s + l;
    (0..intervals.len())
        .filter(|&i| hits(&intervals[i]))
        .map(|i| i as u32)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_encoded_is_decoded(Sample { toc, .. } in sample()) {
        let bytes = toc.encode().unwrap();
        let back = Toc::decode(&bytes).unwrap();
        prop_assert_eq!(&back, &toc);
        prop_assert_eq!(back.encode().unwrap(), bytes);
        prop_assert_eq!(back.view().entries.len(), toc.tree().entries().len());
    }

    #[test]
    fn skeleton_and_data_are_the_exact_tar(Sample { toc, tar, data } in sample()) {
        let mut out = Vec::new();
        toc.skeleton().write_tar(&mut out, |r, out| out.write_all(&data[r.start.0 as usize..r.end().0 as usize])).unwrap();
        prop_assert_eq!(&out, &tar);
        prop_assert_eq!(toc.skeleton().tar_size(), tar.len() as u64);
        prop_assert_eq!(toc.skeleton().data_size(), data.len() as u64);
        let pieces: u64 = toc.skeleton().pieces().map(|p| match p { Piece::Literal { len } => len, Piece::Body(r) => r.len }).sum();
        prop_assert_eq!(pieces, tar.len() as u64);
    }

    #[test]
    fn a_skeleton_of_any_parts_survives(parts in tar_parts()) {
        let (skeleton, tar, data, _) = skeleton(&parts.0, &parts.1);
        let mut out = Vec::new();
        skeleton.write_tar(&mut out, |r, out| out.write_all(&data[r.start.0 as usize..r.end().0 as usize])).unwrap();
        prop_assert_eq!(out, tar);
    }

    #[test]
    fn chunks_are_a_gapless_partition(Sample { toc, data, .. } in sample(), probes in prop::collection::vec((any::<u16>(), any::<u16>()), 20)) {
        let table = toc.chunks();
        let (mut layer, mut blob) = (0, 0);
        for (i, c) in table.iter().enumerate() {
            prop_assert_eq!(c.index as usize, i);
            prop_assert_eq!((c.range.start.0, c.frame.start.0), (layer, blob));
            prop_assert!(c.range.len > 0 && c.frame.len > 0);
            (layer, blob) = (c.range.end().0, c.frame.end().0);
        }
        prop_assert_eq!((layer, blob), (table.data_size(), table.blob_size()));
        prop_assert_eq!(layer, data.len() as u64);
        prop_assert_eq!(table.chunk(table.len()), None);

        let layers: Vec<_> = table.iter().map(|c| (c.range.start.0, c.range.len)).collect();
        let frames: Vec<_> = table.iter().map(|c| (c.frame.start.0, c.frame.len)).collect();
        for (start, len) in probes.iter().map(|&(s, l)| (u64::from(s), u64::from(l))).chain([(0, u64::MAX), (u64::MAX, 1), (layer, 1), (0, 0)]) {
            let found = table.covering(LayerRange { start: LayerOffset(start), len });
            prop_assert_eq!(found.clone().collect::<Vec<_>>(), naive(&layers, start, len));
            let by_frame = table.covering_frames(BlobRange { start: BlobOffset(start), len });
            prop_assert_eq!(by_frame.collect::<Vec<_>>(), naive(&frames, start, len));
            let run = table.frames(found.clone());
            let expected: u64 = found.clone().map(|i| frames[i as usize].1).sum();
            prop_assert_eq!(run.len, expected);
            if !found.is_empty() {
                prop_assert_eq!(run.start.0, frames[found.start as usize].0);
            }
        }
    }

    #[test]
    fn the_tree_is_found_by_path_and_by_listing(Sample { toc, .. } in sample()) {
        let tree = toc.tree();
        for (i, e) in tree.entries().iter().enumerate() {
            let id = headstart_layer_format::toc::EntryId(i as u32);
            prop_assert_eq!(tree.find(&tree.path(id)), Some(id));
            let listed = tree.children(id).count();
            let counted = tree.entries().iter().skip(1).filter(|c| c.parent == id).count();
            prop_assert_eq!(listed, counted);
            let names = tree.entries().iter().filter(|o| o.inode == e.inode).count() as u32;
            prop_assert_eq!(tree.nlink(e.inode), names);
            if let Some(Kind::Regular(c)) = tree.inode(e.inode).map(|i| &i.kind) {
                prop_assert!(c.extents().iter().all(|x| x.range.end().0 <= toc.chunks().data_size()));
            }
        }
    }
}
