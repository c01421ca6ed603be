//! What must hold for any trace that a node posts and any profile that is imported: entry points for fuzzers.
//!
//! In: bytes. Out: whether they taught something; a panic if what was learnt names anything but chunks of the image, is over a
//! bound, or cannot be kept and given out. Invariant: pure functions of their input; the image is made up, in memory.
//! Not here: making inputs (`server/tests/fuzz`, `fuzz/`), HTTP, the catalog.

use std::collections::{HashMap, HashSet};

use headstart_layer_format::{
    BlobDigest, ChunkDigest, DiffId,
    api::TocSummary,
    limits::{PROFILE_CHUNKS_MAX, TRACE_READS_MAX},
    profile::{Origin, Profile, StartId, Trace},
    toc::{
        ChunkEntry, ChunkTable, Content, Entry, EntryId, Extent, Inode, InodeId, Kind, Mtime, SkeletonBuilder, Toc,
        Tree,
    },
};
use headstart_layer_format::{FileOffset, LayerOffset, LayerRange};

use super::{
    answer::{Answer, Choice, Parts},
    export::{self, Export},
    image::{Image, Place},
    learned::{Checked, Known, Learned, SPANS_A_CHUNK},
    merge::{Weighing, merge},
    object::Object,
    place::place,
    trace::check,
};
use crate::{config::ProfileConfig, read::seekable::LayerData};

/// Pieces of the sample's sparse file.
const HOLES: u64 = 4096;
/// Blocks of the sample's long file, each a chunk of its own.
const WIDE: u64 = 100;
const BLOCK: u64 = 4096;
const NOW_MS: u64 = 1_800_000_000_000;

/// The body of `POST images/{manifest-digest}/trace`.
pub fn trace(data: &[u8]) -> bool {
    let Ok(trace) = serde_json::from_slice::<Trace>(data) else {
        return false;
    };
    let written = serde_json::to_vec(&trace).expect("a trace can be written");
    assert_eq!(serde_json::from_slice::<Trace>(&written).ok().as_ref(), Some(&trace));
    let image = sample(1);
    let checked = match check(&trace, &image, None, "node".into(), NOW_MS) {
        Ok(checked) => checked,
        Err(error) => {
            let _ = error.to_string();
            return false;
        }
    };
    let learned = taught(&image, &checked, trace.class.clone());
    // What is known already changes what is looked up, and not what is needed.
    let again = check(&trace, &image, Some(&learned), "node".into(), NOW_MS).expect("it was right before");
    let needed = |checked: &Checked| checked.reads.iter().map(|(known, _)| known.digest).collect::<Vec<_>>();
    assert_eq!(needed(&again), needed(&checked));
    true
}

/// A profile that was exported elsewhere.
pub fn profile_file(data: &[u8]) -> bool {
    let Ok(file) = serde_json::from_slice::<Export>(data) else {
        return false;
    };
    let image = sample(1);
    let Ok(checked) = export::import(&image, &file, NOW_MS) else {
        return false;
    };
    taught(&image, &checked, file.class);
    true
}

/// A profile of the sample, as it is exported: a seed.
pub fn profile_file_of(trace: &Trace) -> Option<Vec<u8>> {
    let image = sample(1);
    let checked = check(trace, &image, None, "node".into(), NOW_MS).ok()?;
    let mut learned = Learned::new(image.config, trace.class.clone());
    learned.add(checked, &[], 16);
    let answer = answer(&image, &learned, &ProfileConfig::default())?;
    serde_json::to_vec(&export::export(&image, &answer, &HashMap::new())).ok()
}

/// Digests of the sample's chunks, by layer: for seeds, and for mutations that know something.
pub fn sample_chunks() -> Vec<Vec<ChunkDigest>> {
    let image = sample(1);
    let layers = (0..).take(image.layer_count());
    layers
        .map(|layer| chunks(&image, layer).map(|(_, digest)| digest).collect())
        .collect()
}

fn chunks<'i>(image: &'i Image<'_>, layer: u32) -> impl Iterator<Item = (Place, ChunkDigest)> + 'i {
    let places = (0..).map(move |index| Place { layer, index });
    places.map_while(|place| Some((place, image.chunk(place)?.digest)))
}

/// Lets a start be learnt, and checks everything that follows from it.
fn taught(image: &Image<'_>, checked: &Checked, class: headstart_layer_format::profile::Class) -> Learned {
    assert!(checked.reads.len() <= TRACE_READS_MAX);
    let digests: HashSet<_> = checked.reads.iter().map(|(known, _)| known.digest).collect();
    assert_eq!(digests.len(), checked.reads.len(), "a chunk is needed first twice");
    for (known, _) in &checked.reads {
        let one = HashSet::from([known.digest]);
        assert!(!image.places_in(known.layer, &one).is_empty(), "a chunk of no layer");
        assert!(known.spans.len() <= SPANS_A_CHUNK);
    }
    let mut learned = Learned::new(image.config, class);
    assert_eq!(learned.add(checked.clone(), &[], 16), !checked.reads.is_empty());
    assert!(!learned.add(checked.clone(), &[], 16), "a start counts twice");
    // Another node needed half of it, later, and the other way round.
    let mut other = checked.clone();
    other.id = StartId([0xee; 16]);
    other.node = "other".into();
    other.unix_ms += 1000;
    other.reads = other.reads.into_iter().step_by(2).rev().collect();
    learned.add(other, &[], 16);
    assert!(learned.is_sound());
    let object = Object::Profile(learned.clone());
    let encoded = object.encode().expect("what was learnt can be kept");
    assert_eq!(Object::decode(&encoded), Some(object));
    let small = ProfileConfig {
        bytes_floor: 0,
        image_percent_max: 10,
        ..ProfileConfig::default()
    };
    for config in [ProfileConfig::default(), small] {
        // The image itself, and another build of it.
        for image in [image, &sample(2)] {
            if let Some(answer) = answer(image, &learned, &config) {
                given(image, &answer, &config);
            }
        }
    }
    learned
}

fn answer(image: &Image<'_>, learned: &Learned, config: &ProfileConfig) -> Option<Answer> {
    let weighing = Weighing {
        share_min: f64::from(config.share_percent_min) / 100.0,
        half_life_ms: config.half_life_ms,
    };
    let order = merge(learned, weighing);
    let known: Vec<&Known> = order.iter().map(|ranked| &learned.chunks[ranked.at]).collect();
    let placed = place(image, &known, true);
    assert!(placed.found <= known.len());
    let parts = Parts {
        origin: Origin::Learned,
        class: learned.class.clone(),
        starts: 2,
        pinned: Vec::new(),
        needed: placed.places,
    };
    let choice = Choice {
        tocs: image.tocs(),
        objects: Vec::new(),
        pins: Vec::new(),
    };
    Answer::new(image, parts, choice, config)
}

/// What is given out is about chunks of the image, within the bounds, and says the same in both of its forms.
fn given(image: &Image<'_>, answer: &Answer, config: &ProfileConfig) {
    let profile = &answer.profile;
    let percent = image.bytes() / 100 * u64::from(config.image_percent_max);
    assert!(profile.bytes <= percent.max(config.bytes_floor));
    assert!(answer.chunks.len() <= PROFILE_CHUNKS_MAX && answer.chunks.len() == profile.chunk_count as usize);
    let positions: Vec<_> = profile
        .positions()
        .map(|(layer, index)| {
            let chunk = image.chunk(Place { layer, index });
            (layer, chunk.expect("a run of chunks that are not there").digest)
        })
        .collect();
    assert_eq!(positions, answer.chunks);
    let json = serde_json::to_vec(profile).expect("a profile can be written");
    assert_eq!(serde_json::from_slice::<Profile>(&json).ok().as_ref(), Some(profile));
    // What is exported leads to the same chunks.
    let file = export::export(image, answer, &HashMap::new());
    let start = export::import(image, &file, NOW_MS).expect("it is of this image");
    let named: HashSet<_> = start.reads.iter().map(|(known, _)| known.digest).collect();
    assert!(
        answer
            .chunks
            .iter()
            .take(TRACE_READS_MAX)
            .all(|(_, digest)| named.contains(digest))
    );
}

/// Two layers with what images have: small files in one chunk, a long file, one with more pieces than anybody reads, links, a
/// name that is no text, whiteouts. Builds differ in every digest, and in what a few bytes more move.
fn sample(build: u8) -> Image<'static> {
    let lower = layer(build, 0);
    let upper = layer(build, 1);
    Image::of(BlobDigest::of(&[build]), vec![lower, upper])
}

fn inode(kind: Kind) -> Inode {
    Inode {
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: Mtime::default(),
        xattrs: Vec::new(),
        kind,
    }
}

fn layer(build: u8, position: u8) -> (LayerData, Toc) {
    let mut skeleton = SkeletonBuilder::new().expect("memory for an encoder");
    let dir = |opaque| Kind::Directory { opaque, implied: false };
    let link = |target: &[u8]| Kind::Symlink { target: target.into() };
    let mut file = |len: u64| Kind::Regular(Content::whole(skeleton.body(len)));
    // Parent, name, kind; `None` is a second name of the inode before. The root's children begin at 1.
    let named: Vec<(u32, &[u8], Option<Kind>)> = match position {
        0 => {
            let (conf, tool) = (file(u64::from(build) * 100), file(3 * BLOCK + u64::from(build)));
            let (wide, odd) = (file(WIDE * BLOCK), file(7));
            vec![
                (0, b"bin", Some(dir(false))),
                (0, b"data", Some(dir(false))),
                (0, b"etc", Some(dir(false))),
                (0, b"up", Some(link(b"../bin/./round"))),
                (1, b"round", Some(link(b"/up"))),
                (1, b"tool", Some(tool)),
                (1, b"tool2", None),
                (2, b"holes", None),
                (2, b"wide", Some(wide)),
                (2, b"\xff", Some(odd)),
                (3, b"conf", Some(conf)),
                (3, b"null", Some(Kind::Fifo)),
            ]
        }
        _ => vec![
            (0, b"bin", Some(dir(false))),
            (0, b"data", Some(dir(true))),
            (0, b"etc", Some(dir(false))),
            (1, b"more", Some(file(5000))),
            (1, b"tool", Some(link(b"more"))),
            (3, b"conf", Some(Kind::Whiteout)),
            (3, b"empty", Some(file(0))),
        ],
    };
    let holes = skeleton.body(2 * HOLES);
    let (mut entries, mut inodes) = (Vec::new(), vec![inode(dir(false))]);
    let entry = |parent, name: &[u8], inode: usize| Entry {
        parent: EntryId(parent),
        name: name.into(),
        inode: InodeId(inode as u32),
    };
    entries.push(entry(0, b"", 0));
    for (parent, name, kind) in named {
        match kind {
            None if name == b"holes" => inodes.push(inode(Kind::Regular(sparse(holes)))),
            None => {}
            Some(kind) => inodes.push(inode(kind)),
        }
        entries.push(entry(parent, name, inodes.len() - 1));
    }
    let skeleton = skeleton.finish().expect("memory for an encoder");
    let toc = Toc::new(
        BlobDigest::of(&[build, position]),
        DiffId::of(&[build, position]),
        Tree::new(entries, inodes).expect("the sample is a tree"),
        table(build, position, skeleton.data_size()),
        skeleton,
    );
    let toc = toc.expect("the sample is a layer");
    let encoded = toc.encode().expect("the sample is a layer");
    let summary = TocSummary {
        digest: Toc::digest(&encoded),
        size: encoded.len() as u64,
        data_size: toc.chunks().data_size(),
        blob_size: toc.chunks().blob_size(),
        chunk_count: u64::from(toc.chunks().len()),
        entry_count: toc.tree().entries().len() as u64,
    };
    (LayerData::of(&toc, summary), toc)
}

/// Two bytes of every four.
fn sparse(body: LayerRange) -> Content {
    let piece = |at: u64| Extent {
        offset: FileOffset(at * 4),
        range: LayerRange {
            start: LayerOffset(body.start.0 + at * 2),
            len: 2,
        },
    };
    Content::sparse(HOLES * 4, (0..HOLES).map(piece).collect()).expect("extents in order")
}

/// Blocks, of which the first and the last hold several files. One chunk is twice in a layer, and in both.
fn table(build: u8, position: u8, data_size: u64) -> ChunkTable {
    let mut left = data_size;
    let mut entries = Vec::new();
    while left > 0 {
        let raw_len = if entries.len() as u64 > WIDE {
            left
        } else {
            left.min(BLOCK)
        };
        let digest = match entries.len() {
            1 | 3 => ChunkDigest::of(&[build]),
            at => ChunkDigest::of(&[build, position, at as u8]),
        };
        entries.push(ChunkEntry {
            digest,
            raw_len: raw_len as u32,
            frame_len: 100,
        });
        left -= raw_len;
    }
    ChunkTable::new(entries).expect("chunks within the bounds")
}
