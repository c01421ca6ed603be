//! Layers made by hand: a path -> item model, and the TOC and frames a server would have made of it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use headstart_layer_format::toc::{
    ChunkEntry, ChunkTable, Content, Entry, EntryId, Extent, Inode, InodeId, Kind, Mtime, SkeletonBuilder, Tree, Xattr,
};
use headstart_layer_format::{BlobDigest, ChunkDigest, DiffId, FileOffset, LayerRange, Toc};

/// A regular file: pieces at offsets, zeros between.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Body {
    pub size: u64,
    pub pieces: Vec<(u64, Vec<u8>)>,
}

impl Body {
    pub fn whole(bytes: Vec<u8>) -> Self {
        if bytes.is_empty() {
            return Self::default();
        }
        Self {
            size: bytes.len() as u64,
            pieces: vec![(0, bytes)],
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = vec![0; self.size as usize];
        for (at, piece) in &self.pieces {
            out[*at as usize..][..piece.len()].copy_from_slice(piece);
        }
        out
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum What {
    Dir {
        opaque: bool,
        implied: bool,
    },
    File(Body),
    Symlink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
    Whiteout,
    /// Another name of the file at this path.
    Link(Vec<u8>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    pub what: What,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Item {
    pub fn new(what: What) -> Self {
        Self {
            what,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: (1_600_000_000, 123_456_789),
            xattrs: BTreeMap::new(),
        }
    }

    pub fn dir() -> Self {
        Self::new(What::Dir {
            opaque: false,
            implied: false,
        })
        .mode(0o755)
    }

    pub fn file(bytes: impl Into<Vec<u8>>) -> Self {
        Self::new(What::File(Body::whole(bytes.into())))
    }

    pub fn mode(mut self, mode: u16) -> Self {
        self.mode = mode;
        self
    }

    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    pub fn mtime(mut self, secs: i64, nanos: u32) -> Self {
        self.mtime = (secs, nanos);
        self
    }

    pub fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        self.xattrs.insert(name.as_bytes().to_vec(), value.to_vec());
        self
    }
}

/// Path (no leading slash; empty for the root) -> item.
#[derive(Clone, Debug)]
pub struct LayerBuilder {
    pub items: BTreeMap<Vec<u8>, Item>,
    diff_id: Option<DiffId>,
}

#[derive(Debug)]
pub struct TestLayer {
    pub digest: BlobDigest,
    pub toc: Arc<Toc>,
    pub encoded: Vec<u8>,
    /// The seekable blob.
    pub blob: Vec<u8>,
    pub frames: HashMap<ChunkDigest, (Vec<u8>, u32)>,
    pub items: BTreeMap<Vec<u8>, Item>,
}

impl TestLayer {
    /// As another server keeps it: the same chunks in longer frames. `admits_it`: under another TOC.
    pub fn with_longer_frames(&self, admits_it: bool) -> Self {
        // A skippable frame (RFC 8878, section 3.1.2) of 99 bytes.
        let padding = [&[0x50, 0x2a, 0x4d, 0x18, 99, 0, 0, 0][..], &[0; 99]].concat();
        let longer = |frame: &[u8]| [&padding[..], frame].concat();
        let chunks = (0..self.toc.chunks().len()).filter_map(|i| self.toc.chunks().chunk(i));
        let mut encoded = self.encoded.clone();
        if admits_it {
            encoded.push(0);
        }
        Self {
            digest: self.digest,
            toc: Arc::clone(&self.toc),
            encoded,
            blob: chunks.flat_map(|c| longer(&self.frames[&c.digest].0)).collect(),
            frames: self
                .frames
                .iter()
                .map(|(digest, (frame, raw_len))| (*digest, (longer(frame), *raw_len)))
                .collect(),
            items: self.items.clone(),
        }
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

impl LayerBuilder {
    pub fn new() -> Self {
        Self {
            items: BTreeMap::from([(Vec::new(), Item::dir())]),
            diff_id: None,
        }
    }

    /// The TOC claims this DiffID instead of the right one.
    pub fn lying(mut self) -> Self {
        self.diff_id = Some(DiffId::of(b"another layer"));
        self
    }

    /// Adds an item; missing parents become implied directories.
    pub fn add(mut self, path: impl AsRef<[u8]>, item: Item) -> Self {
        let path = path.as_ref();
        let mut parent = split(path).0;
        while !parent.is_empty() && !self.items.contains_key(parent) {
            let implied = Item::new(What::Dir {
                opaque: false,
                implied: true,
            });
            self.items.insert(parent.to_vec(), implied.mode(0o755));
            parent = split(parent).0;
        }
        self.items.insert(path.to_vec(), item);
        self
    }

    /// Chunks of `chunk_size` bytes (a multiple of 4096).
    pub fn build(self, chunk_size: usize) -> Arc<TestLayer> {
        let items = self.items;
        let mut children: HashMap<&[u8], Vec<&[u8]>> = HashMap::new();
        for path in items.keys().filter(|p| !p.is_empty()) {
            children.entry(split(path).0).or_default().push(path);
        }
        let mut skeleton = SkeletonBuilder::new().unwrap();
        let mut data: Vec<u8> = Vec::new();
        let mut inodes: Vec<Inode> = Vec::new();
        let mut ids: HashMap<&[u8], InodeId> = HashMap::new();
        let mut entries: Vec<Entry> = Vec::new();
        let mut queue: VecDeque<(EntryId, &[u8])> = VecDeque::from([(EntryId::ROOT, &b""[..])]);
        while let Some((parent, path)) = queue.pop_front() {
            let target: &[u8] = match &items[path].what {
                What::Link(target) => target,
                _ => path,
            };
            let inode = *ids.entry(target).or_insert_with(|| {
                skeleton.literal(&[b'h'; 512]).unwrap();
                inodes.push(inode(&items[target], &mut skeleton, &mut data));
                InodeId(inodes.len() as u32 - 1)
            });
            let id = EntryId(entries.len() as u32);
            entries.push(Entry {
                parent,
                name: split(path).1.into(),
                inode,
            });
            let mut below = children.remove(path).unwrap_or_default();
            below.sort_by_key(|p| split(p).1);
            queue.extend(below.into_iter().map(|p| (id, p)));
        }
        let mut blob = Vec::new();
        let mut frames = HashMap::new();
        let mut table = Vec::new();
        for raw in data.chunks(chunk_size) {
            let frame = zstd::bulk::compress(raw, 1).unwrap();
            let digest = ChunkDigest::of(raw);
            table.push(ChunkEntry {
                digest,
                raw_len: raw.len() as u32,
                frame_len: frame.len() as u32,
            });
            blob.extend_from_slice(&frame);
            frames.insert(digest, (frame, raw.len() as u32));
        }
        let digest = BlobDigest::of(format!("{items:?}").as_bytes());
        let skeleton = skeleton.finish().unwrap();
        let mut tar = Vec::new();
        let body = |range: LayerRange, out: &mut Vec<u8>| {
            out.extend_from_slice(&data[range.start.0 as usize..range.end().0 as usize]);
            Ok(())
        };
        skeleton.write_tar(&mut tar, body).unwrap();
        let toc = Toc::new(
            digest,
            self.diff_id.unwrap_or_else(|| DiffId::of(&tar)),
            Tree::new(entries, inodes).unwrap(),
            ChunkTable::new(table).unwrap(),
            skeleton,
        )
        .unwrap();
        Arc::new(TestLayer {
            digest,
            encoded: toc.encode().unwrap(),
            toc: Arc::new(toc),
            blob,
            frames,
            items,
        })
    }
}

fn inode(item: &Item, skeleton: &mut SkeletonBuilder, data: &mut Vec<u8>) -> Inode {
    let kind = match &item.what {
        What::Dir { opaque, implied } => Kind::Directory {
            opaque: *opaque,
            implied: *implied,
        },
        What::File(body) => {
            let extents = body
                .pieces
                .iter()
                .map(|(at, piece)| {
                    let range = skeleton.body(piece.len() as u64);
                    data.resize(range.start.0 as usize, 0);
                    data.extend_from_slice(piece);
                    data.resize(range.end().align_up().0 as usize, 0);
                    Extent {
                        offset: FileOffset(*at),
                        range,
                    }
                })
                .collect();
            Kind::Regular(Content::sparse(body.size, extents).unwrap())
        }
        What::Symlink(target) => Kind::Symlink {
            target: target.clone().into(),
        },
        What::Char(major, minor) => Kind::CharDevice {
            major: *major,
            minor: *minor,
        },
        What::Block(major, minor) => Kind::BlockDevice {
            major: *major,
            minor: *minor,
        },
        What::Fifo => Kind::Fifo,
        What::Whiteout => Kind::Whiteout,
        What::Link(_) => panic!("a link to a link"),
    };
    Inode {
        mode: item.mode,
        uid: item.uid,
        gid: item.gid,
        mtime: Mtime {
            secs: item.mtime.0,
            nanos: item.mtime.1,
        },
        xattrs: item
            .xattrs
            .iter()
            .map(|(name, value)| Xattr {
                name: name.clone().into(),
                value: value.clone().into(),
            })
            .collect(),
        kind,
    }
}
