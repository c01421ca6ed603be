//! Nodes that lie, and profiles that are wrong: they cost bounded bytes, and nobody's bytes are wrong for it.

use headstart_layer_format::{
    BlobDigest, ChunkDigest, Toc,
    limits::{TRACE_READS_MAX, TRACE_SIZE_MAX},
    profile::{Have, TraceRead},
};

use crate::fleet::{Fleet, chunks_of, files, fleet_config, image_of, named, origin_of, start_id, trace_of};

fn every_chunk(tocs: &[Toc]) -> Vec<(u32, ChunkDigest)> {
    let layers = (0..).zip(tocs);
    let all = layers.flat_map(|(layer, toc)| toc.chunks().entries().iter().map(move |chunk| (layer, chunk.digest)));
    all.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_the_images_teaches_nothing() {
    let files = files(4);
    let image = image_of(&files);
    let origin = origin_of(&[&image]);
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&origin, dir.path()).await;
    let tocs = fleet.pull(&image).await;
    let good = chunks_of(&tocs, &[&files[1], &files[6]]);
    let other_layer = (2, good[0].1);
    let unknown = (0, ChunkDigest::of(b"another image's"));
    for strange in [unknown, other_layer, (3, good[0].1), (u32::MAX, good[0].1)] {
        let mut chunks = good.clone();
        chunks.push(strange);
        assert_eq!(fleet.teach(1, &image, &trace_of(1, &chunks)).await, 422, "{strange:?}");
    }
    let with = |change: &dyn Fn(&mut TraceRead)| {
        let mut trace = trace_of(1, &good);
        change(trace.reads.last_mut().unwrap());
        trace
    };
    let of_file = |path: &'static str| with(&move |read| read.file = Some(path.into()));
    for path in ["usr/lib1/nothing", "usr/lib1", "../etc/passwd", "usr/lib1/f001"] {
        // The last is another file than the chunk is of.
        let status = fleet.teach(1, &image, &of_file(path)).await;
        assert_eq!(status, 422, "{path}");
    }
    let nothing = with(&|read| read.chunk = None);
    assert_eq!(fleet.teach(1, &image, &nothing).await, 400);
    let mut backwards = trace_of(1, &good);
    backwards.reads[0].ms = 1_000;
    assert_eq!(fleet.teach(1, &image, &backwards).await, 400);
    let mut empty = trace_of(1, &good);
    empty.reads.clear();
    assert_eq!(fleet.teach(1, &image, &empty).await, 400);
    for text in ["", "{}", "[1]", "{\"start\":\"xx\",\"reads\":[]}"] {
        assert_eq!(fleet.teach_bytes(1, &image, text.into()).await, 400, "{text}");
    }
    let many: Vec<_> = (0..=TRACE_READS_MAX).map(|_| good[0]).collect();
    assert_eq!(fleet.teach(1, &image, &trace_of(1, &many)).await, 413);
    assert_eq!(fleet.teach_bytes(1, &image, vec![b' '; TRACE_SIZE_MAX + 1]).await, 413);
    let mut elsewhere = image.clone();
    elsewhere.manifest_digest = BlobDigest::of(b"no such image");
    assert_eq!(fleet.teach(1, &elsewhere, &trace_of(1, &good)).await, 404);
    assert_eq!(fleet.status(&image, "").await.profile, None);
    assert_eq!(fleet.teach(1, &image, &trace_of(1, &good)).await, 204);
    assert_eq!(named(&fleet.status(&image, "").await, &tocs), good);
    fleet.server.stop().await;
}

/// One that has all votes, since nobody else taught: it may say "everything, backwards", and costs what is configured.
#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_profile_wastes_bounded_bytes_and_gives_no_wrong_one() {
    let files = files(12);
    let image = image_of(&files);
    let origin = origin_of(&[&image]);
    let dir = tempfile::tempdir().unwrap();
    let mut config = fleet_config(&origin, dir.path());
    (config.profile.bytes_floor, config.profile.image_percent_max) = (1 << 20, 20);
    let fleet = Fleet::with(config).await;
    let tocs = fleet.pull(&image).await;
    let all: u64 = tocs.iter().map(|toc| toc.chunks().blob_size()).sum();
    let bound = all / 100 * 20;
    let mut everything = every_chunk(&tocs);
    everything.reverse();
    for start in 0..20 {
        assert_eq!(fleet.teach(66, &image, &trace_of(start, &everything)).await, 204);
    }
    let profile = fleet.status(&image, "").await.profile.unwrap();
    assert!(profile.bytes <= bound, "{} of {bound}", profile.bytes);
    assert!(profile.starts <= 4, "one node's share: {}", profile.starts);
    // Every chunk that comes is verified.
    let (chunks, bytes) = fleet.chunks(&image, Have::default()).await;
    assert_eq!(chunks.len(), profile.chunk_count as usize);
    assert!(bytes <= bound + 40 * chunks.len() as u64);

    // Honest nodes come, and it is outvoted.
    let needed = chunks_of(&tocs, &[&files[30], &files[2], &files[15]]);
    for node in 1..4 {
        assert_eq!(
            fleet
                .teach(node, &image, &trace_of(100 + u64::from(node), &needed))
                .await,
            204
        );
    }
    assert_eq!(named(&fleet.status(&image, "").await, &tocs), needed);
    // Whatever it says next, in the name of whatever class.
    for (start, class) in (200..).zip(["", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]) {
        let mut trace = trace_of(start, &everything);
        trace.class = class.parse().unwrap();
        assert_eq!(fleet.teach(66, &image, &trace).await, 204);
    }
    assert_eq!(named(&fleet.status(&image, "").await, &tocs), needed);
    fleet.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_profiles_are_bounded() {
    let files = files(2);
    let image = image_of(&files);
    let origin = origin_of(&[&image]);
    let dir = tempfile::tempdir().unwrap();
    let mut config = fleet_config(&origin, dir.path());
    config.profile.classes_max = 3;
    let fleet = Fleet::with(config).await;
    let tocs = fleet.pull(&image).await;
    let chunks = chunks_of(&tocs, &[&files[1]]);
    for class in 0..12u32 {
        let mut trace = trace_of(u64::from(class), &chunks);
        trace.class = format!("{class:x}").parse().unwrap();
        trace.start = start_id(u64::from(class));
        assert_eq!(fleet.teach(1, &image, &trace).await, 204);
    }
    assert_eq!(fleet.server.app.profiles.list().len(), 3);
    let objects = std::fs::read_dir(dir.path().join("profiles")).unwrap().count();
    assert_eq!(objects, 3);
    fleet.server.stop().await;
}
