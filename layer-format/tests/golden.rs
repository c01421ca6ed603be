//! The golden files and FORMAT.md say what the codec does.
//!
//! `UPDATE_GOLDEN=1` writes the files again: for a new version of the format, or a zstd that compresses differently (old
//! files must then still decode, so keep them).

mod support;

use std::path::PathBuf;

use headstart_layer_format::{BlobDigest, ChunkDigest, DiffId, Toc};
use support::by_hand::Meta;
use support::samples::{everything, worked_example};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn expect(name: &str, actual: &[u8]) {
    let path = golden(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, actual).unwrap();
    }
    let wanted = std::fs::read(&path).unwrap();
    assert!(wanted == actual, "{name} differs; see the head of this file");
}

fn check(name: &str, toc: &Toc) {
    let bytes = toc.encode().unwrap();
    expect(&format!("{name}.toc"), &bytes);
    let json = serde_json::to_string_pretty(&toc.view()).unwrap() + "\n";
    expect(&format!("{name}.json"), json.as_bytes());
    let read = std::fs::read(golden(&format!("{name}.toc"))).unwrap();
    assert_eq!(&Toc::decode(&read).unwrap(), toc);
}

#[test]
fn tocs_are_written_and_read_as_in_the_golden_files() {
    check("worked-example", &worked_example().0);
    check("everything", &everything());
}

#[test]
fn an_empty_layer_by_hand_is_read() {
    let bytes = Meta::empty().toc();
    let toc = Toc::decode(&bytes).unwrap();
    assert_eq!((toc.tree().entries().len(), toc.chunks().data_size()), (1, 0));
}

/// Bytes of the fenced block called `name` in FORMAT.md: hex before each `|`.
fn block(format: &str, name: &str) -> Vec<u8> {
    let fence = format!("```text {name}\n");
    let start = format
        .find(&fence)
        .unwrap_or_else(|| panic!("FORMAT.md has no block {name}"))
        + fence.len();
    let text = &format[start..start + format[start..].find("```").unwrap()];
    let hex: String = text.lines().filter_map(|l| l.split('|').next()).collect();
    let digits: Vec<char> = hex.chars().filter(|c| !c.is_whitespace()).collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

#[test]
fn the_worked_example_is_the_golden_file() {
    let format = std::fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("FORMAT.md")).unwrap();
    let bytes = std::fs::read(golden("worked-example.toc")).unwrap();
    assert_eq!(block(&format, "example-header"), bytes[..40]);
    let frame_len = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) as usize;
    let meta = zstd::stream::decode_all(&bytes[40..40 + frame_len]).unwrap();
    assert_eq!(block(&format, "example-metadata"), meta);

    let (toc, tar) = worked_example();
    for stated in [
        DiffId::of(&tar).to_string(),
        toc.chunks().entries()[0].digest.to_string(),
        Toc::digest(&bytes).to_string(),
    ] {
        assert!(format.contains(&stated), "FORMAT.md does not say {stated}");
    }
    let mut data = b"hello\n".to_vec();
    data.resize(4096, 0);
    assert_eq!(toc.chunks().entries()[0].digest, ChunkDigest::of(&data));
    assert_eq!(toc.layer_digest(), &BlobDigest::of(&tar));
    let json = std::fs::read_to_string(golden("worked-example.json")).unwrap();
    let fence = "```json example\n";
    let start = format.find(fence).unwrap() + fence.len();
    assert!(
        format[start..].starts_with(&json),
        "the JSON of FORMAT.md is not the golden file"
    );
}

/// Every limit that FORMAT.md states is the one in the code.
#[test]
fn the_limits_are_the_stated_ones() {
    use headstart_layer_format::limits as l;
    let format = std::fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("FORMAT.md")).unwrap();
    let limits = [
        ("BODY_ALIGN", l::BODY_ALIGN),
        ("NAME_LEN_MAX", l::NAME_LEN_MAX as u64),
        ("PATH_LEN_MAX", l::PATH_LEN_MAX as u64),
        ("PATHS_LEN_MAX", l::PATHS_LEN_MAX),
        ("DEPTH_MAX", l::DEPTH_MAX as u64),
        ("XATTR_NAME_LEN_MAX", l::XATTR_NAME_LEN_MAX as u64),
        ("XATTR_VALUE_LEN_MAX", l::XATTR_VALUE_LEN_MAX as u64),
        ("XATTRS_MAX", l::XATTRS_MAX),
        ("ENTRIES_MAX", l::ENTRIES_MAX),
        ("EXTENTS_MAX", l::EXTENTS_MAX),
        ("BODIES_MAX", l::BODIES_MAX),
        ("DATA_SIZE_MAX", l::DATA_SIZE_MAX),
        ("CHUNK_SIZE_MAX", u64::from(l::CHUNK_SIZE_MAX)),
        ("FRAME_SIZE_MAX", u64::from(l::FRAME_SIZE_MAX)),
        ("CHUNKS_MAX", l::CHUNKS_MAX),
        ("META_SIZE_MAX", l::META_SIZE_MAX),
        ("SKELETON_SIZE_MAX", l::SKELETON_SIZE_MAX),
        ("TOC_SIZE_MAX", l::TOC_SIZE_MAX),
        ("CHUNK_REQUEST_MAX", l::CHUNK_REQUEST_MAX as u64),
        ("CHUNK_LAYERS_MAX", l::CHUNK_LAYERS_MAX as u64),
        ("PROFILE_CHUNKS_MAX", l::PROFILE_CHUNKS_MAX as u64),
        ("TRACE_READS_MAX", l::TRACE_READS_MAX as u64),
        ("TRACE_SIZE_MAX", l::TRACE_SIZE_MAX as u64),
        ("CLASS_LEN_MAX", l::CLASS_LEN_MAX as u64),
        ("TOC_WAIT_MS_MAX", l::TOC_WAIT_MS_MAX),
        ("LAYERS_MAX", l::LAYERS_MAX as u64),
        ("CHAIN_IMAGES_MAX", l::CHAIN_IMAGES_MAX as u64),
    ];
    for (name, value) in limits {
        assert!(
            format.contains(&format!("| `{name}` | {value} |")),
            "FORMAT.md does not say {name} = {value}"
        );
    }
}
