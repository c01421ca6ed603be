//! TOCs that no server of ours would send: an error, or an image that says what the TOC says.

use std::fs;

use headstart_layer_format::toc::{
    ChunkEntry, ChunkTable, Content, Entry, EntryId, Extent, Inode, InodeId, Kind, Mtime, Name, SkeletonBuilder, Tree,
    Xattr,
};
use headstart_layer_format::{BlobDigest, ChunkDigest, DiffId, FileOffset, LayerOffset, LayerRange, Toc};

use super::{Image, shown_here};
use crate::support::noise;

/// A generator without surprises.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Bodies that fill a data space, and files whose extents point anywhere into it.
fn made_up(rng: &mut Rng) -> (Toc, Vec<u8>, Vec<Content>) {
    let (mut skeleton, mut data) = (SkeletonBuilder::new().unwrap(), Vec::new());
    for _ in 0..1 + rng.below(6) {
        skeleton.literal(&[0; 512]).unwrap();
        let len = 1 + rng.below(20_000);
        let range = skeleton.body(len);
        data.extend(noise(len as usize, range.start.0 + 1));
        data.resize(range.end().align_up().0 as usize, 0);
    }
    let contents: Vec<Content> = (0..1 + rng.below(4)).map(|_| content(rng, data.len() as u64)).collect();
    let inode = |kind| Inode {
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Mtime {
            secs: i64::MIN,
            nanos: 999_999_999,
        },
        xattrs: Vec::new(),
        kind,
    };
    let mut inodes = vec![inode(Kind::Directory {
        opaque: true,
        implied: false,
    })];
    let mut entries = vec![Entry {
        parent: EntryId::ROOT,
        name: Name::default(),
        inode: InodeId::ROOT,
    }];
    for (at, content) in contents.iter().enumerate() {
        let mut inode = inode(Kind::Regular(content.clone()));
        inode.xattrs = attributes(rng);
        inodes.push(inode);
        let name = Name::from(&[b'a' + at as u8][..]);
        entries.push(Entry {
            parent: EntryId::ROOT,
            name,
            inode: InodeId(at as u32 + 1),
        });
    }
    let chunk = ChunkEntry {
        digest: ChunkDigest::of(&data),
        raw_len: data.len() as u32,
        frame_len: 9,
    };
    let toc = Toc::new(
        BlobDigest::of(b"hostile"),
        DiffId::of(b"hostile"),
        Tree::new(entries, inodes).unwrap(),
        ChunkTable::new(vec![chunk]).unwrap(),
        skeleton.finish().unwrap(),
    );
    (toc.unwrap(), data, contents)
}

/// Mostly on blocks, where most of what could go wrong is.
fn content(rng: &mut Rng, data_size: u64) -> Content {
    let offset = |rng: &mut Rng, below: u64| match rng.below(30) {
        0 => rng.below(below),
        _ => rng.below(below) / 4096 * 4096,
    };
    let (mut extents, mut end) = (Vec::new(), 0);
    for _ in 0..rng.below(4) {
        let file = match rng.below(3) {
            0 => end,
            _ => (end + offset(rng, 40_000)).next_multiple_of(if rng.below(20) == 0 { 1 } else { 4096 }),
        };
        let start = offset(rng, data_size);
        let len = match rng.below(5) {
            1.. => 4096 * (1 + rng.below(4)),
            0 => 1 + rng.below(9_000),
        };
        let len = len.min(data_size - start);
        let range = LayerRange {
            start: LayerOffset(start),
            len,
        };
        extents.push(Extent {
            offset: FileOffset(file),
            range,
        });
        end = file + len;
    }
    // Sometimes longer than any image could map.
    let size = match rng.below(20) {
        0 => i64::MAX as u64 - rng.below(5_000),
        _ => end + offset(rng, 30_000),
    };
    Content::sparse(size, extents).unwrap()
}

fn attributes(rng: &mut Rng) -> Vec<Xattr> {
    let names = [
        "com.apple.x",
        "security.x",
        "system.posix_acl_access",
        "trusted.overlay.opaque",
        "user.",
        "user.x",
    ];
    let chosen = names.iter().filter(|_| rng.below(4) == 0).map(|n| n.as_bytes().into());
    chosen
        .collect::<Vec<Box<[u8]>>>()
        .into_iter()
        .map(|name| Xattr {
            name,
            value: noise(rng.below(70) as usize, 1).into(),
        })
        .collect()
}

fn expected(content: &Content, data: &[u8]) -> Vec<u8> {
    let mut out = vec![0; content.size() as usize];
    for e in content.extents() {
        let (at, from) = (e.offset.0 as usize, e.range.start.0 as usize);
        let len = e.range.len as usize;
        out[at..at + len].copy_from_slice(&data[from..from + len]);
    }
    out
}

#[test]
fn what_is_accepted_is_shown_exactly_and_the_rest_is_an_error() {
    let (mut accepted, mut refused) = (0, 0);
    for seed in 1..=110u64 {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (toc, data, contents) = made_up(&mut rng);
        let shorts = shown_here();
        let Ok(mut image) = Image::write(&toc, shorts[seed as usize % shorts.len()]) else {
            refused += 1;
            continue;
        };
        accepted += 1;
        fs::write(image.data(), &data).unwrap();
        // A tool for each would take longer than it tells; the kernel looks at all of them.
        if accepted % 8 == 0 {
            image.tool("fsck.erofs", &[]);
        }
        let dir = image.mount();
        for (at, content) in contents.iter().enumerate() {
            let file = dir.join(std::str::from_utf8(&[b'a' + at as u8]).unwrap());
            assert_eq!(fs::metadata(&file).unwrap().len(), content.size(), "seed {seed}");
            if content.size() < 1 << 30 {
                assert!(
                    fs::read(&file).unwrap() == expected(content, &data),
                    "seed {seed}, file {at}"
                );
            }
        }
        assert_eq!(
            xattr::get(&dir, "trusted.overlay.opaque").unwrap().as_deref(),
            Some(&b"y"[..])
        );
    }
    assert!(
        accepted > 20 && refused > 20,
        "{accepted} accepted, {refused} refused: the generator is lopsided"
    );
}
