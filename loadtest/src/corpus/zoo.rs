//! The seeded images: every kind of entry, in every dialect.
//!
//! In: a seed and a [`ZooSpec`]. Out: [`SyntheticImage`]s. Invariant: same seed and spec, same bytes.
//! Not here: hostile layers; those belong to the test that needs them.

use super::compress::Compression;
use super::image::{Flavor, SyntheticImage};
use super::layer::{LayerBuilder, SyntheticLayer};
use super::oracle::Meta;
use super::rng::Rng;
use super::tar_writer::{Dialect, SparseForm};

/// How much of everything.
#[derive(Clone, Debug)]
pub struct ZooSpec {
    /// Ordinary small files per layer, besides the special ones.
    pub files: usize,
    /// Size of the one large file in the base layer.
    pub large_bytes: usize,
    /// Whether sparse files appear, and how.
    pub sparse: Option<SparseForm>,
}

impl Default for ZooSpec {
    fn default() -> Self {
        Self {
            files: 60,
            large_bytes: 3 << 20,
            sparse: Some(SparseForm::OldGnu),
        }
    }
}

/// A Linux file capability (`cap_net_raw=ep`): binary, with zero bytes inside.
pub const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

impl SyntheticImage {
    /// Four layers, all kinds, four compressions: some 4 MB.
    pub fn seeded(seed: u64) -> Self {
        Self::zoo(seed, &ZooSpec::default())
    }

    pub fn zoo(seed: u64, spec: &ZooSpec) -> Self {
        let mut rng = Rng::new(seed);
        let layers = vec![
            base(&mut rng, spec),
            changes(&mut rng, spec),
            links(&mut rng, spec),
            small(&mut rng),
        ];
        Self::new(Flavor::Oci, layers)
    }

    /// One gzip layer of a few small files: the least that is an image.
    pub fn tiny(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut b = LayerBuilder::new(Dialect::Pax);
        b.dir("etc", Meta::mode(0o755));
        b.file("etc/os-release", Meta::default(), rng.text(200));
        b.file("etc/hello", Meta::mode(0o755), rng.text(5000));
        Self::new(Flavor::Oci, vec![b.finish(Compression::Gzip)])
    }
}

/// Directories full of small files of many sizes, 0 and one byte off a page among them.
fn bulk(b: &mut LayerBuilder, rng: &mut Rng, dir: &str, count: usize) {
    b.dir(dir, Meta::mode(0o755));
    for i in 0..count {
        if i % 16 == 0 {
            b.dir(
                format!("{dir}/d{}", i / 16),
                Meta::mode(0o755).mtime(1_600_000_000 + i as i64, 0),
            );
        }
        let len = match i % 8 {
            0 => 0,
            1 => 1,
            2 => 4095 + rng.below(3) as usize,
            3 => 512,
            _ => rng.below(20_000) as usize,
        };
        let content = if i % 3 == 0 { rng.bytes(len) } else { rng.text(len) };
        let meta =
            Meta::mode(if i % 5 == 0 { 0o755 } else { 0o644 }).mtime(1_500_000_000 + rng.below(1 << 27) as i64, 0);
        b.file(format!("{dir}/d{}/f{i}", i / 16), meta, content);
    }
}

/// All kinds, PAX, several gzip members.
fn base(rng: &mut Rng, spec: &ZooSpec) -> SyntheticLayer {
    let mut b = LayerBuilder::new(Dialect::Pax);
    b.prefix("./").root(Meta::mode(0o755).mtime(1_650_000_000, 123_456_789));
    for dir in ["bin", "dev", "etc", "usr", "var"] {
        b.dir(dir, Meta::mode(0o755));
    }
    b.dir("tmp", Meta::mode(0o1777));
    bulk(&mut b, rng, "usr/lib", spec.files);
    b.file("bin/su", Meta::mode(0o4755), rng.text(9000));
    b.file("bin/wall", Meta::mode(0o2755).owner(0, 5), rng.text(7000));
    b.file(
        "bin/ping",
        Meta::mode(0o755).xattr("security.capability", CAPABILITY),
        rng.text(6000),
    );
    b.dir(
        "var/mail",
        Meta::mode(0o2775).owner(8, 8).xattr("user.purpose", "mail\n=\0x"),
    );
    b.file(
        "etc/attributed",
        Meta::mode(0o600)
            .owner(1000, 1000)
            .mtime(1_700_000_001, 1)
            .xattr("user.comment", "a = b\nc")
            .xattr("user.big", rng.bytes(900))
            .xattr("trusted.note", "kept for root"),
        rng.text(300),
    );
    b.file("etc/empty", Meta::mode(0o640).mtime(0, 0), "");
    b.file("etc/before-1970", Meta::default().mtime(-2, 500_000_000), "old");
    b.file(
        "etc/odd-owner",
        Meta::default().owner(3_000_000_000, 2_097_152),
        "big ids",
    );
    b.file("etc/nanos", Meta::default().mtime(1_712_345_678, 987_654_321), "ns");
    b.symlink(
        "etc/mtab",
        Meta::default().mtime(1_500_000_000, 5),
        "../proc/self/mounts",
    );
    b.symlink("etc/dangling", Meta::default().owner(7, 7), "far-away-".repeat(17));
    b.fifo("var/fifo", Meta::mode(0o600));
    b.char_device("dev/null", Meta::mode(0o666), 1, 3);
    b.char_device("dev/wide", Meta::mode(0o600), 300, 70_000);
    b.block_device("dev/loop0", Meta::mode(0o660).owner(0, 6), 7, 0);
    b.file("usr/large", Meta::mode(0o755), rng.bytes(spec.large_bytes));
    b.hardlink("bin/login", "bin/su");
    b.hardlink("usr/large-too", "usr/large");
    b.finish(Compression::GzipMembers(3))
}

/// Changes to the base: whiteouts, opaque marks, repeated paths, long and odd names; GNU, zstd.
fn changes(rng: &mut Rng, spec: &ZooSpec) -> SyntheticLayer {
    let mut b = LayerBuilder::new(Dialect::Gnu);
    b.whiteout("etc/dangling");
    b.whiteout("usr/lib/d0");
    b.whiteout("bin/wall");
    b.dir("var/mail", Meta::mode(0o2770).owner(8, 8));
    b.opaque("var/mail");
    b.file("var/mail/root", Meta::mode(0o600).owner(0, 8), rng.text(700));
    bulk(&mut b, rng, "opt/app", spec.files / 2);
    let long = format!("opt/{}/{}", "long-directory-name-".repeat(6), "file-".repeat(20));
    b.file(&long, Meta::default(), rng.text(50));
    let longer = format!("opt/{}", vec!["component-of-forty-bytes-".repeat(2); 8].join("/"));
    b.dir(&longer, Meta::mode(0o700));
    b.file(format!("{longer}/{}", "n".repeat(255)), Meta::default(), rng.text(60));
    b.symlink("opt/long-link", Meta::default(), &longer);
    b.hardlink("opt/long-hardlink", &long);
    b.file(b"opt/caf\xe9", Meta::default(), "latin-1 name");
    b.file(b"opt/\xff\xfe\x80", Meta::default(), "no text at all");
    b.file("opt/ünïcode ☃", Meta::default(), "utf-8 name");
    b.file("opt/new\nline \\ \"quote\"", Meta::default(), "odd ascii");
    b.file(
        "opt/owned",
        Meta::default().owner(4_000_000_000, 65534),
        "base-256 owner",
    );
    // Written twice: the first content must not be seen, but keeps living under its other name.
    b.file("opt/twice", Meta::default(), rng.text(3000));
    b.hardlink("opt/first-of-twice", "opt/twice");
    b.file("opt/twice", Meta::mode(0o600), rng.text(2000));
    b.dir("opt/kind", Meta::mode(0o755));
    b.file("opt/kind/lost", Meta::default(), "gone");
    b.symlink("opt/kind", Meta::default(), "twice");
    b.dir("opt/app", Meta::mode(0o711).mtime(1_655_555_555, 0));
    if let Some(form) = spec.sparse {
        let data = [
            (0, rng.bytes(4096)),
            (1 << 20, rng.bytes(10_240)),
            (3 << 20, rng.bytes(512)),
        ];
        b.sparse(form, "opt/sparse", Meta::default(), 4 << 20, &data);
        let many: Vec<(u64, Vec<u8>)> = (0..30).map(|i| (i * 16_384, rng.bytes(4096))).collect();
        b.sparse(form, "opt/sparse-many", Meta::default(), 30 * 16_384, &many);
        b.sparse(form, "opt/all-hole", Meta::default(), 1 << 20, &[]);
    }
    b.finish(Compression::Zstd)
}

/// Implied parents, link groups and PAX long names; plain gzip.
fn links(rng: &mut Rng, spec: &ZooSpec) -> SyntheticLayer {
    let mut b = LayerBuilder::new(Dialect::Ustar);
    b.file("srv/implied/deep/file", Meta::default(), rng.text(100));
    b.file("srv/a", Meta::mode(0o644).owner(1, 2), rng.text(5000));
    for name in ["srv/b", "srv/other/c", "srv/d"] {
        b.hardlink(name, "srv/a");
    }
    b.symlink("srv/s", Meta::default(), "a");
    b.hardlink("srv/hard-to-soft", "srv/s");
    b.dialect(Dialect::Pax);
    let long = format!("srv/{}/end", vec!["ünïcode-☃-".repeat(10); 4].join("/"));
    b.file(&long, Meta::default(), "long and not ascii");
    let raw = [b"srv/".as_slice(), &b"\xfc\xff".repeat(60), b"/", &b"z\xe9".repeat(100)].concat();
    b.file(&raw, Meta::default().mtime(1, 1), "long and not utf-8");
    b.hardlink("srv/raw-link", &raw);
    bulk(&mut b, rng, "srv/more", spec.files / 4);
    b.finish(Compression::Gzip)
}

/// A few bytes, uncompressed, absolute paths.
fn small(rng: &mut Rng) -> SyntheticLayer {
    let mut b = LayerBuilder::new(Dialect::Ustar);
    b.prefix("/");
    b.whiteout("srv/d");
    b.file("etc/hostname", Meta::default(), rng.text(12));
    b.finish(Compression::Plain)
}
