//! One synthetic layer: its tar, its blob, and what it must turn into.
//!
//! In: entries, in the order the tar shall have. Out: [`SyntheticLayer`].
//! Invariant: tar and oracle are written by the same calls, so they say the same. A path must not go below a name that
//! is not a directory, and a name must not be both whited out and present: unpackers differ on both.
//! Not here: hostile tars; a test makes those with [`super::TarWriter::raw`] and [`SyntheticLayer::of_tar`].

use bytes::Bytes;
use headstart_layer_format::{BlobDigest, DiffId};

use super::compress::Compression;
use super::oracle::{Meta, Oracle, OracleBuilder, OracleKind};
use super::tar_writer::{Dialect, Header, SparseForm, TarWriter};

#[derive(Clone, Debug)]
pub struct SyntheticLayer {
    /// As a registry holds it.
    pub blob: Bytes,
    pub digest: BlobDigest,
    pub diff_id: DiffId,
    pub media_type: String,
    /// Uncompressed.
    pub tar: Bytes,
    pub oracle: Oracle,
}

impl SyntheticLayer {
    /// A layer of any bytes at all, valid tar or not.
    pub fn of_tar(tar: impl Into<Bytes>, compression: Compression, oracle: Oracle) -> Self {
        let tar = tar.into();
        let blob = Bytes::from(compression.compress(&tar));
        Self {
            digest: BlobDigest::of(&blob),
            diff_id: DiffId::of(&tar),
            media_type: compression.media_type().to_owned(),
            blob,
            tar,
            oracle,
        }
    }
}

/// Writes tar and oracle together.
#[derive(Debug)]
pub struct LayerBuilder {
    tar: TarWriter,
    oracle: OracleBuilder,
    dialect: Dialect,
    prefix: &'static [u8],
}

impl LayerBuilder {
    pub fn new(dialect: Dialect) -> Self {
        Self {
            tar: TarWriter::new(),
            oracle: OracleBuilder::new(),
            dialect,
            prefix: b"",
        }
    }

    /// The dialect of the entries that follow.
    pub fn dialect(&mut self, dialect: Dialect) -> &mut Self {
        self.dialect = dialect;
        self
    }

    /// Written in front of every path that follows: `""`, `"./"` or `"/"`.
    pub fn prefix(&mut self, prefix: &'static str) -> &mut Self {
        self.prefix = prefix.as_bytes();
        self
    }

    /// Direct access to the writer, for entries the oracle shall not know of (`g` headers, padding).
    pub fn writer(&mut self) -> &mut TarWriter {
        &mut self.tar
    }

    /// The root itself, `./`.
    pub fn root(&mut self, meta: Meta) -> &mut Self {
        self.write(b"./", b'5', &meta, b"", (0, 0), b"");
        self.oracle.put(b"", directory(), meta);
        self
    }

    pub fn dir(&mut self, path: impl AsRef<[u8]>, meta: Meta) -> &mut Self {
        let path = path.as_ref();
        self.write(&[self.prefix, path, b"/"].concat(), b'5', &meta, b"", (0, 0), b"");
        self.oracle.put(path, directory(), meta);
        self
    }

    pub fn file(&mut self, path: impl AsRef<[u8]>, meta: Meta, content: impl Into<Bytes>) -> &mut Self {
        let (path, content) = (path.as_ref(), content.into());
        self.named(path, b'0', &meta, b"", (0, 0), &content);
        self.oracle.put(path, OracleKind::File { content }, meta);
        self
    }

    pub fn symlink(&mut self, path: impl AsRef<[u8]>, meta: Meta, target: impl AsRef<[u8]>) -> &mut Self {
        let meta = Meta { mode: 0o777, ..meta };
        let target = target.as_ref();
        self.named(path.as_ref(), b'2', &meta, target, (0, 0), b"");
        let kind = OracleKind::Symlink {
            target: target.to_vec(),
        };
        self.oracle.put(path.as_ref(), kind, meta);
        self
    }

    /// One more name for `target`, which the layer has already. The header repeats the inode's metadata.
    pub fn hardlink(&mut self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> &mut Self {
        let (path, target) = (path.as_ref(), target.as_ref());
        let meta = Meta {
            xattrs: Vec::new(),
            ..self.oracle.meta(target).clone()
        };
        self.named(path, b'1', &meta, &[self.prefix, target].concat(), (0, 0), b"");
        self.oracle.link(path, target);
        self
    }

    pub fn fifo(&mut self, path: impl AsRef<[u8]>, meta: Meta) -> &mut Self {
        self.named(path.as_ref(), b'6', &meta, b"", (0, 0), b"");
        self.oracle.put(path.as_ref(), OracleKind::Fifo, meta);
        self
    }

    pub fn char_device(&mut self, path: impl AsRef<[u8]>, meta: Meta, major: u32, minor: u32) -> &mut Self {
        self.named(path.as_ref(), b'3', &meta, b"", (major, minor), b"");
        self.oracle
            .put(path.as_ref(), OracleKind::CharDevice { major, minor }, meta);
        self
    }

    pub fn block_device(&mut self, path: impl AsRef<[u8]>, meta: Meta, major: u32, minor: u32) -> &mut Self {
        self.named(path.as_ref(), b'4', &meta, b"", (major, minor), b"");
        self.oracle
            .put(path.as_ref(), OracleKind::BlockDevice { major, minor }, meta);
        self
    }

    /// Hides `path` of the layers below.
    pub fn whiteout(&mut self, path: impl AsRef<[u8]>) -> &mut Self {
        let path = path.as_ref();
        let cut = path.iter().rposition(|&b| b == b'/').map_or(0, |i| i + 1);
        let mark = [&path[..cut], b".wh.", &path[cut..]].concat();
        let meta = Meta::mode(0);
        self.named(&mark, b'0', &meta, b"", (0, 0), b"");
        self.oracle.put(path, OracleKind::Whiteout, meta);
        self
    }

    /// Hides everything in `dir` of the layers below.
    pub fn opaque(&mut self, dir: impl AsRef<[u8]>) -> &mut Self {
        let mark = [dir.as_ref(), b"/.wh..wh..opq"].concat();
        self.named(&mark, b'0', &Meta::mode(0), b"", (0, 0), b"");
        self.oracle.opaque(dir.as_ref());
        self
    }

    /// A file of `size` bytes with data at some offsets (ascending, apart) and holes elsewhere.
    pub fn sparse(
        &mut self,
        form: SparseForm,
        path: impl AsRef<[u8]>,
        meta: Meta,
        size: u64,
        data: &[(u64, Vec<u8>)],
    ) -> &mut Self {
        let full = [self.prefix, path.as_ref()].concat();
        let slices: Vec<(u64, &[u8])> = data.iter().map(|(at, d)| (*at, d.as_slice())).collect();
        let h = header(&full, b'0', &meta);
        self.tar.sparse(form, &h, size, &slices);
        let mut content = vec![0; size as usize];
        for (at, bytes) in data {
            content[*at as usize..*at as usize + bytes.len()].copy_from_slice(bytes);
        }
        let kind = OracleKind::File {
            content: content.into(),
        };
        self.oracle.put(path.as_ref(), kind, meta);
        self
    }

    pub fn finish(self, compression: Compression) -> SyntheticLayer {
        SyntheticLayer::of_tar(self.tar.finish(), compression, self.oracle.finish())
    }

    fn named(&mut self, path: &[u8], typeflag: u8, meta: &Meta, link: &[u8], device: (u32, u32), body: &[u8]) {
        self.write(&[self.prefix, path].concat(), typeflag, meta, link, device, body);
    }

    fn write(&mut self, path: &[u8], typeflag: u8, meta: &Meta, link: &[u8], device: (u32, u32), body: &[u8]) {
        let h = Header {
            size: body.len() as u64,
            link,
            device,
            ..header(path, typeflag, meta)
        };
        self.tar.entry(self.dialect, &h, body);
    }
}

fn header<'a>(path: &'a [u8], typeflag: u8, meta: &'a Meta) -> Header<'a> {
    Header {
        path,
        typeflag,
        meta,
        size: 0,
        link: b"",
        device: (0, 0),
    }
}

fn directory() -> OracleKind {
    OracleKind::Directory {
        opaque: false,
        implied: false,
    }
}
