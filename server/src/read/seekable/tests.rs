//! What a layer's table costs, and what a part is.

use std::io;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::store::crash::layers;
use crate::store::disk::{Disk, Op, Witness};

/// Counts reads of packs, which take a while.
#[derive(Debug, Default)]
struct Reads(AtomicUsize);

impl Witness for Reads {
    fn about_to(&self, op: Op<'_>) -> io::Result<()> {
        if matches!(op, Op::Read(..)) {
            self.0.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(30));
        }
        Ok(())
    }
}

#[test]
fn a_table_that_many_ask_for_at_once_is_read_once() {
    const MANY: usize = 12;
    let dir = tempfile::tempdir().unwrap();
    let reads = Arc::new(Reads::default());
    let store = Store::open_on(Disk::with(reads.clone()), dir.path(), 1 << 20).unwrap();
    let (layer, toc) = layers::publish(&store, "layer", 0..40);
    let seekable = Seekable::new(store.clone());
    reads.0.store(0, Ordering::SeqCst);
    let barrier = Barrier::new(MANY);
    std::thread::scope(|scope| {
        for _ in 0..MANY {
            scope.spawn(|| {
                barrier.wait();
                let opened = seekable.open(&layer).unwrap().unwrap();
                assert_eq!(opened.table().len(), 40);
                assert_eq!(opened.summary.blob_size, toc.chunks().blob_size());
            });
        }
    });
    assert_eq!(reads.0.load(Ordering::SeqCst), 1);
    assert!(seekable.open(&layer).unwrap().is_some());
    assert_eq!(reads.0.load(Ordering::SeqCst), 1, "it is kept");
    // Not of a layer that went back, and again when it is ready again.
    store.unconvert_layer(&layer, "a test").unwrap();
    assert!(seekable.open(&layer).unwrap().is_none());
    store.publish_layer(&layer, &toc).unwrap();
    assert!(seekable.open(&layer).unwrap().is_some());
}

#[test]
fn parts_are_bounded_by_bytes_and_hold_everything_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut rng = headstart_loadtest::corpus::Rng::new(3);
    let sizes = [900_000, 300_000, 2_000_000, 10, 10, 10, 600_000, 400_000];
    // The last makes the data space end at a page, as it must.
    let small = std::iter::repeat_n(20, 100).chain([466]);
    let chunks = sizes
        .into_iter()
        .chain(small)
        .map(|size| layers::put_chunk(&store, &rng.bytes(size)));
    let chunks: Vec<_> = chunks.collect();
    let layer = BlobDigest::of(b"layer");
    store
        .publish_layer(&layer, &layers::toc_of(&layer, chunks.clone()))
        .unwrap();
    let seekable = Seekable::new(store);
    let opened = seekable.open(&layer).unwrap().unwrap();
    let whole: Vec<u8> = chunks
        .iter()
        .flat_map(|chunk| seekable.store.read_chunk(&chunk.digest).unwrap().unwrap())
        .collect();
    for range in [
        0..whole.len(),
        5..whole.len() - 7,
        1_000_000..1_200_001,
        3_200_000..3_200_011,
    ] {
        let bytes = range.start as u64..range.end as u64;
        let covering = opened.covering(&bytes);
        let (mut at, mut out, mut parts) = (covering.start, Vec::new(), 0);
        while at < covering.end {
            let (frames, next) = seekable.part(&opened, &bytes, at).unwrap();
            assert!(next > at && frames.len() == (next - at) as usize && frames.len() <= FRAMES_MAX);
            let len: usize = chunks[at as usize..next as usize]
                .iter()
                .map(|c| c.frame_len as usize)
                .sum();
            assert!(frames.len() == 1 || len as u64 <= PART_BYTES, "{len} bytes");
            (at, parts) = (next, parts + 1);
            out.extend(frames.concat());
        }
        assert!(out == whole[range.clone()], "{range:?}");
        assert!(parts < 8);
    }
    let wanted: Vec<_> = chunks.iter().map(|chunk| Wanted::Chunk(chunk.digest)).collect();
    let (mut at, mut bytes) = (0, 0);
    while at < wanted.len() {
        let (frames, count) = seekable.framed(&wanted[at..]).unwrap();
        let len: usize = frames.iter().map(Bytes::len).sum();
        assert!(count == 1 || len as u64 <= PART_BYTES + 64 * FRAMES_MAX as u64);
        (at, bytes) = (at + count, bytes + len);
    }
    let heads = headstart_layer_format::chunk_stream::HEADER_LEN * wanted.len();
    assert_eq!(bytes, whole.len() + heads);
}
