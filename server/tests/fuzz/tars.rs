//! Mutations of tars that keep them tars: blocks move, fields change, extended headers come and go.
//!
//! In: a tar, another one, random numbers. Out: a tar that lies somewhere. Checksums are left wrong: the entry points try
//! each input as it is and with all checksums put right.
//! Invariant: what is inserted is whole blocks. Not here: changes that know nothing (`mutate.rs`).

use headstart_loadtest::corpus::{BLOCK, Dialect, Rng, TarWriter, pax_record};

use headstart_loadtest::fuzzing::mutate::{LEN_MAX, below, edge, pick};

/// Offset and length of numbers in a header: mode, owners, size, time, device, GNU's sparse map and real size.
const NUMBERS: [(usize, usize); 11] = [
    (100, 8),
    (108, 8),
    (116, 8),
    (124, 12),
    (124, 12),
    (136, 12),
    (329, 8),
    (337, 8),
    (386, 12),
    (398, 12),
    (483, 12),
];

/// Names that mean something, or collide.
const NAMES: [&str; 24] = [
    "a",
    "a/b",
    "a/b/c",
    "./a",
    "/a",
    "a/",
    "..",
    "../a",
    "a/../b",
    "",
    ".",
    "/",
    "a/.wh.b",
    ".wh.a",
    ".wh..wh..opq",
    "a/.wh..wh..opq",
    ".wh..wh.plnk",
    ".wh.",
    ".wh..",
    "a//b",
    "b",
    "l",
    "l/x",
    "a/b/c/../../d",
];

const TYPES: &[u8] = b"0123456\0xgLKSLKSVMDNA7\xff";

const KEYS: [&str; 20] = [
    "path",
    "linkpath",
    "size",
    "uid",
    "gid",
    "mtime",
    "SCHILY.xattr.user.a",
    "SCHILY.xattr.",
    "SCHILY.xattr.security.capability",
    "GNU.sparse.major",
    "GNU.sparse.minor",
    "GNU.sparse.name",
    "GNU.sparse.size",
    "GNU.sparse.realsize",
    "GNU.sparse.numblocks",
    "GNU.sparse.map",
    "GNU.sparse.offset",
    "GNU.sparse.numbytes",
    "comment",
    "hdrcharset",
];

/// Starts of the blocks that look like headers.
fn headers(tar: &[u8]) -> Vec<usize> {
    let blocks = tar.as_chunks::<BLOCK>().0.iter().enumerate();
    blocks
        .filter(|(_, b)| b[257..262] == *b"ustar")
        .map(|(i, _)| i * BLOCK)
        .collect()
}

pub fn mutate(rng: &mut Rng, tar: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..1 + rng.below(5) {
        let headers = headers(tar);
        if headers.is_empty() || rng.below(6) == 0 {
            blocks(rng, tar, other);
            continue;
        }
        let at = *pick(rng, &headers);
        match rng.below(10) {
            0..3 => number(rng, &mut tar[at..at + BLOCK]),
            3 => tar[at + 156] = *pick(rng, TYPES),
            4 | 5 => name(rng, tar, at, &headers),
            6 => insert(rng, tar, at, extended),
            7 => insert(rng, tar, at, member),
            8 => {
                let magic = *pick(rng, &[*b"ustar\x0000", *b"ustar  \0", *b"ustar   "]);
                tar[at + 257..at + 265].copy_from_slice(&magic);
                if rng.below(3) == 0 {
                    tar[at + 508..at + 512].copy_from_slice(b"tar\0");
                }
            }
            _ => in_body(rng, tar, at),
        }
    }
    tar.truncate(LEN_MAX);
}

/// Duplicates, swaps, drops and moves whole blocks.
fn blocks(rng: &mut Rng, tar: &mut Vec<u8>, other: &[u8]) {
    let count = tar.len() / BLOCK;
    if count == 0 {
        *tar = other.to_vec();
        return;
    }
    let block = |i: usize| i * BLOCK..(i + 1) * BLOCK;
    let (a, b) = (below(rng, count), below(rng, count));
    match rng.below(6) {
        0 => tar.copy_within(block(a), b * BLOCK),
        1 => {
            let (one, two) = (tar[block(a)].to_vec(), tar[block(b)].to_vec());
            tar[block(a)].copy_from_slice(&two);
            tar[block(b)].copy_from_slice(&one);
        }
        2 => drop(tar.drain(block(a))),
        3 => {
            let run = a * BLOCK..(a + 1 + below(rng, 6)).min(count) * BLOCK;
            let copied = tar[run].to_vec();
            tar.splice(b * BLOCK..b * BLOCK, copied);
        }
        4 if other.len() >= BLOCK => {
            let from = below(rng, other.len() / BLOCK) * BLOCK;
            let piece = other[from..other.len().min(from + 8 * BLOCK)].to_vec();
            tar.splice(b * BLOCK..b * BLOCK, piece);
        }
        _ => tar.truncate(b * BLOCK + below(rng, 2) * below(rng, BLOCK)),
    }
}

/// A number as some writer would write it, or as none would.
fn number(rng: &mut Rng, block: &mut [u8]) {
    let (at, len) = *pick(rng, &NUMBERS);
    let at = if at == 386 || at == 398 {
        at + 24 * below(rng, 4)
    } else {
        at
    };
    let field = &mut block[at..at + len];
    let n = edge(rng);
    match rng.below(5) {
        0..3 => {
            let text = format!("{n:0width$o}\0", width = len - 1);
            let text = text.as_bytes();
            field.copy_from_slice(&text[text.len() - len..]);
        }
        3 => {
            let wide = [[if rng.below(3) == 0 { 0xff } else { 0 }; 8], n.to_be_bytes()].concat();
            field.copy_from_slice(&wide[16 - len..]);
            field[0] |= 0x80;
        }
        _ => field[below(rng, len)] = *pick(rng, b" \x0078-\x80\xff"),
    }
    if at > 380 {
        block[482] = rng.below(2) as u8;
    }
}

/// The name, link or prefix becomes one that is there already, or one that means something.
fn name(rng: &mut Rng, tar: &mut [u8], at: usize, headers: &[usize]) {
    let (field, len) = *pick(rng, &[(0, 100), (157, 100), (345, 155)]);
    let mut text = vec![0; len];
    if rng.below(2) == 0 {
        let from = *pick(rng, headers);
        let n = len.min(100);
        text[..n].copy_from_slice(&tar[from..from + n]);
    } else {
        let name = pick(rng, &NAMES).as_bytes();
        text[..name.len()].copy_from_slice(name);
    }
    tar[at + field..at + field + len].copy_from_slice(&text);
}

fn insert(rng: &mut Rng, tar: &mut Vec<u8>, at: usize, what: impl Fn(&mut Rng) -> Vec<u8>) {
    let made = what(rng);
    tar.splice(at..at, made);
}

/// Without the end marks.
fn written(typeflag: u8, path: &[u8], link: &[u8], body: &[u8]) -> Vec<u8> {
    let mut writer = TarWriter::new();
    writer.member(Dialect::Gnu, path, typeflag, link, body);
    writer.into_bytes()
}

/// An `x`, `g`, `L` or `K` member.
fn extended(rng: &mut Rng) -> Vec<u8> {
    let typeflag = *pick(rng, b"xxxxxgLK");
    let mut body = Vec::new();
    if matches!(typeflag, b'L' | b'K') {
        let name = pick(rng, &NAMES).as_bytes();
        body = name.repeat(1 + below(rng, 60) * below(rng, 2));
        body.push(0);
    } else {
        for _ in 0..1 + rng.below(4) {
            let key = *pick(rng, &KEYS);
            let value = value(rng, key);
            body.extend(pax_record(key.as_bytes(), &value));
        }
        if rng.below(12) == 0 {
            let at = below(rng, body.len());
            body[at] ^= 1 << rng.below(8);
        }
    }
    written(typeflag, b"PaxHeaders/0", b"", &body)
}

fn value(rng: &mut Rng, key: &str) -> Vec<u8> {
    let n = edge(rng);
    match rng.below(8) {
        0 => Vec::new(),
        1 => pick(rng, &NAMES).as_bytes().to_vec(),
        2 => {
            let len = below(rng, 700);
            rng.bytes(len)
        }
        _ if key.ends_with("map") => format!("0,{},{},{}", rng.below(600), n, rng.below(600)).into_bytes(),
        _ if key.ends_with("or") => rng.below(2).to_string().into_bytes(),
        _ if key == "mtime" => format!("-{}.{}", n % 3, rng.next_u64()).into_bytes(),
        _ if key.ends_with("path") || key.ends_with("name") => pick(rng, &NAMES)
            .repeat(1 + below(rng, 300) * below(rng, 2))
            .into_bytes(),
        _ => n.to_string().into_bytes(),
    }
}

fn member(rng: &mut Rng) -> Vec<u8> {
    let typeflag = *pick(rng, b"0000112234567S");
    let (path, link) = (pick(rng, &NAMES).as_bytes(), pick(rng, &NAMES).as_bytes());
    let len = match rng.below(4) {
        0 => 0,
        1 => *pick(rng, &[1, 511, 512, 513, 4095, 4096, 4097]),
        _ => below(rng, 3000),
    };
    let body = rng.text(if typeflag == b'0' { len } else { 0 });
    written(typeflag, path, link, &body)
}

/// A byte of what follows a header: PAX records, maps, contents.
fn in_body(rng: &mut Rng, tar: &mut [u8], header: usize) {
    let at = header + BLOCK + below(rng, BLOCK);
    if let Some(byte) = tar.get_mut(at) {
        *byte = match rng.below(3) {
            0 => *pick(rng, b"\0\n =0179,/"),
            1 => byte.wrapping_add(1),
            _ => *byte ^ (1 << rng.below(8)),
        };
    }
}
