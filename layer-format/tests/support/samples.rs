//! The TOCs of the golden files.
//!
//! In: nothing. Out: the worked example of FORMAT.md (a real tar, a real chunk), and one TOC with everything in it.

use headstart_layer_format::toc::{
    ChunkEntry, ChunkTable, Content, Entry, EntryId, Extent, Inode, InodeId, Kind, Mtime, SkeletonBuilder, Tree, Xattr,
};
use headstart_layer_format::{BlobDigest, ChunkDigest, DiffId, FileOffset, LayerOffset, LayerRange, Toc};

/// One block of a ustar tar.
pub fn tar_header(path: &[u8], typeflag: u8, mode: u32, size: u64, link: &[u8]) -> [u8; 512] {
    let mut b = [0; 512];
    b[..path.len()].copy_from_slice(path);
    b[100..108].copy_from_slice(format!("{mode:07o}\0").as_bytes());
    b[108..124].copy_from_slice(&b"0000000\0".repeat(2));
    b[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    b[136..148].copy_from_slice(format!("{:011o}\0", 1_700_000_000).as_bytes());
    b[156] = typeflag;
    b[157..157 + link.len()].copy_from_slice(link);
    b[257..265].copy_from_slice(b"ustar\x0000");
    b[148..156].fill(b' ');
    let sum: u32 = b.iter().map(|&x| u32::from(x)).sum();
    b[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    b
}

fn inode(mode: u16, kind: Kind) -> Inode {
    Inode {
        mode,
        uid: 0,
        gid: 0,
        mtime: Mtime {
            secs: 1_700_000_000,
            nanos: 0,
        },
        xattrs: Vec::new(),
        kind,
    }
}

fn entry(parent: u32, name: &[u8], inode: u32) -> Entry {
    Entry {
        parent: EntryId(parent),
        name: name.into(),
        inode: InodeId(inode),
    }
}

fn implied_root() -> Inode {
    Inode {
        mtime: Mtime::default(),
        ..inode(
            0o755,
            Kind::Directory {
                opaque: false,
                implied: true,
            },
        )
    }
}

/// The worked example: `etc/`, `etc/hi`, `etc/link -> hi`, `etc/.wh.old`, as a plain tar. Returns the tar too.
pub fn worked_example() -> (Toc, Vec<u8>) {
    let mut skeleton = SkeletonBuilder::new().unwrap();
    let mut tar = Vec::new();
    let literal = |skeleton: &mut SkeletonBuilder, bytes: &[u8]| {
        skeleton.literal(bytes).unwrap();
        bytes.to_vec()
    };
    tar.extend(literal(&mut skeleton, &tar_header(b"etc/", b'5', 0o755, 0, b"")));
    tar.extend(literal(&mut skeleton, &tar_header(b"etc/hi", b'0', 0o644, 6, b"")));
    let body = skeleton.body(6);
    tar.extend(b"hello\n");
    tar.extend(literal(&mut skeleton, &[0; 506]));
    tar.extend(literal(&mut skeleton, &tar_header(b"etc/link", b'2', 0o777, 0, b"hi")));
    tar.extend(literal(&mut skeleton, &tar_header(b"etc/.wh.old", b'0', 0, 0, b"")));
    tar.extend(literal(&mut skeleton, &[0; 1024]));

    let mut data = b"hello\n".to_vec();
    data.resize(4096, 0);
    let frame = zstd::bulk::compress(&data, 3).unwrap();
    let chunk = ChunkEntry {
        digest: ChunkDigest::of(&data),
        raw_len: 4096,
        frame_len: frame.len() as u32,
    };
    let inodes = vec![
        implied_root(),
        inode(
            0o755,
            Kind::Directory {
                opaque: false,
                implied: false,
            },
        ),
        inode(0o644, Kind::Regular(Content::whole(body))),
        inode(
            0o777,
            Kind::Symlink {
                target: b"hi".as_slice().into(),
            },
        ),
        inode(0, Kind::Whiteout),
    ];
    let entries = vec![
        entry(0, b"", 0),
        entry(0, b"etc", 1),
        entry(1, b"hi", 2),
        entry(1, b"link", 3),
        entry(1, b"old", 4),
    ];
    let toc = Toc::new(
        BlobDigest::of(&tar),
        DiffId::of(&tar),
        Tree::new(entries, inodes).unwrap(),
        ChunkTable::new(vec![chunk]).unwrap(),
        skeleton.finish().unwrap(),
    );
    (toc.unwrap(), tar)
}

/// Every kind, flag and number form; two chunks, a sparse file, a hard link, names and attributes that are not text.
pub fn everything() -> Toc {
    let mut skeleton = SkeletonBuilder::new().unwrap();
    skeleton.literal(b"headers").unwrap();
    let first = skeleton.body(5000);
    let second = skeleton.body(1);
    skeleton.literal(b"trailer").unwrap();
    let chunk = |n: u8, raw_len| ChunkEntry {
        digest: ChunkDigest::from_bytes([n; 32]),
        raw_len,
        frame_len: 100 + u32::from(n),
    };
    let extent = |offset, start, len| Extent {
        offset: FileOffset(offset),
        range: LayerRange {
            start: LayerOffset(start),
            len,
        },
    };
    let sparse = Content::sparse(1 << 33, vec![extent(0, 0, 4096), extent(1 << 32, 4096, 904)]).unwrap();
    let xattr = |name: &[u8], value: &[u8]| Xattr {
        name: name.into(),
        value: value.into(),
    };
    let mut inodes = vec![
        Inode {
            mode: 0o1777,
            ..inode(
                0,
                Kind::Directory {
                    opaque: true,
                    implied: false,
                },
            )
        },
        inode(
            0o660,
            Kind::BlockDevice {
                major: 7,
                minor: 1 << 20,
            },
        ),
        inode(0o666, Kind::CharDevice { major: 1, minor: 3 }),
        Inode {
            uid: u32::MAX,
            gid: 65_534,
            ..inode(0o4755, Kind::Regular(Content::whole(first)))
        },
        inode(
            0o755,
            Kind::Directory {
                opaque: false,
                implied: true,
            },
        ),
        inode(0o644, Kind::Regular(Content::EMPTY)),
        inode(0o600, Kind::Fifo),
        inode(
            0o777,
            Kind::Symlink {
                target: b"\xff/..".as_slice().into(),
            },
        ),
        inode(0, Kind::Whiteout),
        inode(0o644, Kind::Regular(Content::whole(second))),
        inode(0o644, Kind::Regular(sparse)),
    ];
    inodes[3].xattrs = vec![
        xattr(b"security.capability", &[1, 0, 0, 2, 0, 0x20, 0]),
        xattr(b"user.\xe9", b""),
    ];
    inodes[5].mtime = Mtime {
        secs: -2,
        nanos: 500_000_000,
    };
    inodes[10].mtime = Mtime {
        secs: i64::MAX,
        nanos: 999_999_999,
    };
    let names: [(u32, &[u8], u32); 12] = [
        (0, b"block", 1),
        (0, b"char", 2),
        (0, b"file", 3),
        (0, b"dir", 4),
        (0, b"empty", 5),
        (0, b"fifo", 6),
        (0, b"link", 7),
        (0, b"gone", 8),
        (4, b"hard", 3),
        (4, b"one-byte", 9),
        (4, b"sparse", 10),
        (4, b"z\xc3", 3),
    ];
    // Canonical order: by parent, then name; inodes by first use.
    let mut sorted: Vec<_> = names.to_vec();
    sorted.sort_by_key(|(parent, name, _)| (*parent, *name));
    let dir_at = 1 + sorted.iter().position(|(_, name, _)| *name == b"dir").unwrap() as u32;
    let mut order = vec![0];
    let mut entries = vec![entry(0, b"", 0)];
    for (parent, name, old) in sorted {
        let new = order.iter().position(|&o| o == old).unwrap_or_else(|| {
            order.push(old);
            order.len() - 1
        });
        entries.push(entry(if parent == 0 { 0 } else { dir_at }, name, new as u32));
    }
    let inodes = order.iter().map(|&old| inodes[old as usize].clone()).collect();
    Toc::new(
        BlobDigest::Sha512([0x5a; 64]),
        DiffId::of(b"everything"),
        Tree::new(entries, inodes).unwrap(),
        ChunkTable::new(vec![chunk(1, 8192), chunk(2, 4096)]).unwrap(),
        skeleton.finish().unwrap(),
    )
    .unwrap()
}
