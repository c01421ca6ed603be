//! Good inputs of every entry point, small ones: what mutations begin with, and the seed corpus in `fuzz/seeds`.
//!
//! In: the name of an entry point. Out: named inputs. Invariant: deterministic; the ones of [`of`] have some kilobytes.
//! Not here: inputs that failed once (`fuzz/found`).

use headstart_layer_format::chunk_stream::{ChunkHeader, ChunkStatus};
use headstart_layer_format::profile::{Class, Have, Origin, Profile, ProfileRequest, Run, StartId, Trace, TraceRead};
use headstart_layer_format::{BlobDigest, ChunkDigest};
use headstart_loadtest::corpus::{
    BLOCK, CAPABILITY, Compression, Dialect, Header, LayerBuilder, Meta, Rng, SparseForm, SyntheticImage, TarWriter,
    ZooSpec, pax_record, wild_tar,
};
use headstart_server::fuzz::{pack_of, profile_file_of, sample_chunks, toc_of};
use serde_json::json;

use crate::layers;

pub type Seed = (String, Vec<u8>);

/// The seeds of an entry point; none for a name that is not one.
pub fn of(target: &str) -> Vec<Seed> {
    let tocs = || {
        tars()
            .into_iter()
            .filter_map(|(name, tar)| Some((name, toc_of(&tar)?.0)))
    };
    match target {
        "inflate" => (0..layers::KINDS)
            .map(|kind| (format!("kind-{kind}"), layers::compress(&tars()[1].1, kind)))
            .collect(),
        "tar" | "layer" => tars(),
        "toc" => tocs().collect(),
        "toc_metadata" => tocs()
            .map(|(name, toc)| (name, metadata(&toc)))
            .chain([("attribute-twice".to_owned(), attribute_twice())])
            .collect(),
        "chunk_stream" => chunk_streams(),
        "pack" => scripts()
            .into_iter()
            .map(|(name, script)| (name, pack_of(&script)))
            .collect(),
        "pack_damage" => scripts(),
        "range" => ranges(),
        "manifest" => manifests(),
        "trace" => traces()
            .into_iter()
            .map(|(name, trace)| (name.to_owned(), json(&trace)))
            .collect(),
        "profile" => profiles(),
        "profile_file" => traces()
            .into_iter()
            .filter_map(|(name, trace)| Some((name.to_owned(), profile_file_of(&trace)?)))
            .collect(),
        _ => Vec::new(),
    }
}

/// More and longer tars, not kept in the repository.
pub fn zoo_tars() -> Vec<Vec<u8>> {
    let forms = [SparseForm::OldGnu, SparseForm::Pax1];
    let zoo = forms.into_iter().flat_map(|form| {
        let spec = ZooSpec {
            files: 4,
            large_bytes: 9000,
            sparse: Some(form),
        };
        SyntheticImage::zoo(7, &spec).layers
    });
    zoo.map(|layer| shortened(layer.tar.to_vec())).collect()
}

/// Two zero blocks at the end are enough.
fn shortened(mut tar: Vec<u8>) -> Vec<u8> {
    let end = tar.iter().rposition(|&b| b != 0).map_or(0, |i| i + 1);
    tar.truncate(end.next_multiple_of(BLOCK));
    tar.resize(tar.len() + 2 * BLOCK, 0);
    tar
}

fn built(dialect: Dialect, build: impl FnOnce(&mut LayerBuilder)) -> Vec<u8> {
    let mut builder = LayerBuilder::new(dialect);
    build(&mut builder);
    shortened(builder.finish(Compression::Plain).tar.to_vec())
}

fn tars() -> Vec<Seed> {
    let file = Meta::default;
    let dir = || Meta::mode(0o755);
    let every_kind = built(Dialect::Ustar, |b| {
        b.dir("a", dir())
            .file("a/b", file(), "content")
            .symlink("l", file(), "a");
        b.hardlink("a/hard", "a/b").fifo("fifo", file());
        b.char_device("null", file(), 1, 3).block_device("loop", file(), 7, 0);
        b.file("empty", file(), "").file("page", file(), Rng::new(1).text(4097));
    });
    let pax = built(Dialect::Pax, |b| {
        b.prefix("./").root(dir().mtime(1_650_000_000, 5));
        let meta = file().owner(3_000_000_000, 1).mtime(-2, 500_000_000);
        let meta = meta.xattr("security.capability", CAPABILITY).xattr("user.a", "=\n\0");
        b.file("a", meta, "x").file("long/".repeat(40) + "end", file(), "deep");
        b.file(b"\xff\xfe".repeat(60), file(), "no text");
    });
    let gnu = built(Dialect::Gnu, |b| {
        b.file("n".repeat(200), file().owner(4_000_000_000, 65_534), "long");
        b.symlink("l", file(), "t".repeat(150))
            .hardlink("hard/".repeat(30) + "x", "n".repeat(200));
    });
    let whiteouts = built(Dialect::Pax, |b| {
        b.whiteout("a/gone")
            .dir("a", dir())
            .opaque("a")
            .file("a/new", file(), "n")
            .whiteout("b");
    });
    let repeated = built(Dialect::Gnu, |b| {
        b.file("a", file(), "first")
            .hardlink("kept", "a")
            .file("a", Meta::mode(0o600), "second");
        b.dir("d", dir()).file("d/x", file(), "lost").symlink("d", file(), "a");
        b.file("implied/deep/x", file(), "x").dir("implied", Meta::mode(0o700));
    });
    let sparse = |form| {
        built(Dialect::Gnu, |b| {
            let data = |n: u64| (0..n).map(|i| (i * 8192, vec![b'x'; 301])).collect::<Vec<_>>();
            b.sparse(form, "few", file(), 1 << 20, &data(2))
                .sparse(form, "many", file(), 1 << 20, &data(9));
            b.sparse(form, "hole", file(), 1 << 33 >> 20, &[]);
        })
    };
    let mut all = vec![
        ("every-kind", every_kind),
        ("pax", pax),
        ("gnu", gnu),
        ("whiteouts", whiteouts),
        ("repeated", repeated),
        ("sparse-old", sparse(SparseForm::OldGnu)),
        ("sparse-pax", sparse(SparseForm::Pax1)),
        ("sparse-00", sparse(SparseForm::Pax00)),
        ("sparse-01", sparse(SparseForm::Pax01)),
        ("sparse-records", sparse_records()),
        ("through-links", through_links()),
        ("nothing", vec![0; 2 * BLOCK]),
    ];
    all.push(("behind-the-end", [&all[0].1, &b"more bytes"[..]].concat()));
    let wild = (0..).map(wild_tar).map(shortened).filter(|tar| toc_of(tar).is_some());
    let wild = (1..5).zip(wild).map(|(n, tar)| (format!("wild-{n}"), tar));
    let all = all.into_iter().map(|(name, tar)| (name.to_owned(), tar));
    all.chain(wild).collect()
}

fn entry(writer: &mut TarWriter, typeflag: u8, path: &str, link: &str, body: &[u8]) {
    let header = Header {
        path: path.as_bytes(),
        typeflag,
        meta: &Meta::default(),
        size: body.len() as u64,
        link: link.as_bytes(),
        device: (0, 0),
    };
    writer.entry(Dialect::Gnu, &header, body);
}

/// GNU's sparse forms 0.0 and 0.1, and a global header.
fn sparse_records() -> Vec<u8> {
    let mut writer = TarWriter::new();
    entry(&mut writer, b'g', "global", "", &pax_record(b"comment", b"of all"));
    let pairs: [(&str, &str); 5] = [
        ("GNU.sparse.size", "10000"),
        ("GNU.sparse.numblocks", "1"),
        ("GNU.sparse.offset", "4096"),
        ("GNU.sparse.numbytes", "5"),
        ("GNU.sparse.name", "real"),
    ];
    let records = |pairs: &[(&str, &str)]| -> Vec<u8> {
        pairs
            .iter()
            .flat_map(|(k, v)| pax_record(k.as_bytes(), v.as_bytes()))
            .collect()
    };
    entry(&mut writer, b'x', "x", "", &records(&pairs));
    entry(&mut writer, b'0', "zero", "", b"abcde");
    let pairs = [
        ("GNU.sparse.major", "0"),
        ("GNU.sparse.minor", "1"),
        ("GNU.sparse.size", "10000"),
        ("GNU.sparse.numblocks", "2"),
        ("GNU.sparse.map", "0,2,512,3"),
    ];
    entry(&mut writer, b'x', "x", "", &records(&pairs));
    entry(&mut writer, b'0', "one", "", b"abcde");
    shortened(writer.finish())
}

/// Paths that go through symlinks of the same layer.
fn through_links() -> Vec<u8> {
    let mut writer = TarWriter::new();
    entry(&mut writer, b'5', "a/b/", "", b"");
    entry(&mut writer, b'2', "l", "a/../a//./b", b"");
    entry(&mut writer, b'2', "up", "../../l", b"");
    entry(&mut writer, b'0', "up/x", "", b"in a/b");
    entry(&mut writer, b'1', "y", "/l/x", b"");
    entry(&mut writer, b'0', "l/.wh.z", "", b"");
    shortened(writer.finish())
}

/// Metadata in which a file has one attribute two times: the one thing about attributes that no mutation of these seeds
/// found out when the check for it was taken away.
fn attribute_twice() -> Vec<u8> {
    let tar = built(Dialect::Pax, |b| {
        let meta = Meta::default().xattr("user.a", "1").xattr("user.b", "2");
        b.file("f", meta, "");
    });
    let (toc, _) = toc_of(&tar).expect("an ordinary tar");
    let mut metadata = metadata(&toc);
    let at = metadata.windows(6).position(|w| w == b"user.b").expect("the attribute");
    metadata[at + 5] = b'a';
    metadata
}

/// The metadata section of an encoded TOC, inflated.
fn metadata(toc: &[u8]) -> Vec<u8> {
    let len = u64::from_le_bytes(toc[16..24].try_into().unwrap()) as usize;
    zstd::stream::decode_all(&toc[40..40 + len]).unwrap()
}

fn chunk_streams() -> Vec<Seed> {
    let head = |n: u8, status| {
        let digest = ChunkDigest::from_bytes([n; 32]);
        ChunkHeader { digest, status }.encode().to_vec()
    };
    let found = |n: u8, len: u32| [head(n, ChunkStatus::Found { frame_len: len }), vec![n; len as usize]].concat();
    let missing = |n| head(n, ChunkStatus::Missing);
    let mixed = [found(1, 9), missing(2), found(3, 300), found(4, 1)].concat();
    vec![
        ("mixed".into(), mixed),
        ("missing".into(), missing(5)),
        ("found".into(), found(6, 5)),
    ]
}

fn scripts() -> Vec<Seed> {
    let script = |n: u64| (format!("script-{n}"), Rng::new(n).bytes(120));
    (1..=6).map(script).collect()
}

fn ranges() -> Vec<Seed> {
    let sizes: [(u64, u8); 5] = [(3000, 0), (0, 0), (u64::MAX, 0), (u64::MAX, 24), (1 << 20, 0)];
    let texts = [
        "bytes=500-1499",
        "bytes=500-",
        "bytes=-500",
        "bytes=0-0,-1",
        "BYTES=0-",
        "bytes=500-0, ,700-18446744073709551615",
        "bytes=0-1,4-5,8-9,12-13,2-3,6-7,10-11,1048576-1048577",
    ];
    let seed = |i: usize, text: &str| {
        let (size, shift) = sizes[i % sizes.len()];
        [&size.to_le_bytes()[..], &[shift], text.as_bytes()].concat()
    };
    let cases = texts
        .iter()
        .enumerate()
        .map(|(i, text)| (format!("range-{i}"), seed(i, text)));
    cases.collect()
}

fn manifests() -> Vec<Seed> {
    let oci = |kind: &str| format!("application/vnd.oci.image.{kind}");
    let descriptor = |media_type: &str, of: &str| json!({ "mediaType": media_type, "digest": BlobDigest::of(of.as_bytes()).to_string(), "size": 5 });
    let (layer, config) = (oci("layer.v1.tar+gzip"), oci("config.v1+json"));
    let image = json!({
        "schemaVersion": 2, "mediaType": oci("manifest.v1+json"), "config": descriptor(&config, "c"),
        "layers": [descriptor(&layer, "a"), descriptor(&layer, "b"), descriptor(&layer, "a")],
    });
    let docker = "application/vnd.docker.";
    let docker_image = json!({
        "schemaVersion": 2, "mediaType": format!("{docker}distribution.manifest.v2+json"),
        "config": descriptor(&format!("{docker}container.image.v1+json"), "c"),
        "layers": [descriptor(&format!("{docker}image.rootfs.diff.tar.gzip"), "a")],
    });
    let mut child = descriptor(&oci("manifest.v1+json"), "m");
    child["platform"] = json!({ "os": "linux", "architecture": "amd64" });
    let index = json!({ "schemaVersion": 2, "manifests": [child], "mediaType": oci("index.v1+json") });
    let list = json!({ "manifests": [child] });
    let first_schema = json!({ "fsLayers": [{ "blobSum": BlobDigest::of(b"x").to_string() }], "history": [] });
    // The number of the media type they are served with.
    let cases = [
        (0, "index", index),
        (1, "image", image),
        (2, "list", list),
        (3, "docker", docker_image),
    ];
    let cases = cases.into_iter().chain([(4, "first-schema", first_schema)]);
    cases
        .map(|(kind, name, value)| (name.to_owned(), [&[kind], value.to_string().as_bytes()].concat()))
        .collect()
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

/// Of the sample image in `server/src/profile/fuzz.rs`.
fn traces() -> Vec<(&'static str, Trace)> {
    let chunks = sample_chunks();
    let read = |layer: u32, chunk: Option<usize>, file: Option<&str>, ms| TraceRead {
        layer,
        chunk: chunk.map(|at| chunks[layer as usize][at]),
        file: file.map(str::to_owned),
        ms,
    };
    let trace = |class: &str, reads| Trace {
        start: StartId([7; 16]),
        class: class.parse::<Class>().unwrap(),
        reads,
    };
    let of_chunks = vec![
        read(0, Some(3), None, 0),
        read(1, Some(1), None, 5),
        read(0, Some(70), None, 5),
    ];
    let of_files = vec![
        read(0, None, Some("bin/tool2"), 1),
        read(0, None, Some("data/wide"), 2),
        read(1, None, Some("bin/more"), 2),
    ];
    let last = chunks[0].len() - 1;
    let of_both = vec![
        read(0, Some(last), Some("data/holes"), 0),
        read(0, Some(60), Some("data/wide"), 1),
        read(0, Some(60), Some("data/wide"), 1),
        read(1, Some(0), Some("bin/more"), u32::MAX),
    ];
    vec![
        ("chunks", trace("", of_chunks)),
        ("files", trace("ab01", of_files)),
        ("both", trace("", of_both)),
    ]
}

fn profiles() -> Vec<Seed> {
    let run = |layer, first, count| Run {
        layer,
        first,
        count,
        bytes: u64::from(count) * 100,
    };
    let runs = vec![run(0, 7, 3), run(2, 0, 1), run(0, u32::MAX - 2, 9)];
    let profile = Profile {
        digest: Profile::digest_of(&[], &runs),
        origin: Origin::Derived,
        class: "00ff".parse().unwrap(),
        starts: 3,
        chunk_count: 13,
        bytes: 1300,
        runs,
    };
    let request = ProfileRequest {
        image: BlobDigest::of(b"m"),
        profile: profile.digest,
        have: Have::of([0, 3, 4, 100]),
    };
    vec![("profile".into(), json(&profile)), ("request".into(), json(&request))]
}
