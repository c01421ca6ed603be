//! A tar writer that does what it is told.
//!
//! In: headers field by field and bodies. Out: tar bytes in the ustar, GNU or PAX dialect.
//! Invariant: nothing is normalised: odd names, odd numbers and wrong orders go out as given, because the readers under
//! test must meet them. What a dialect cannot say in a header goes into a PAX record, as Go's writer does.
//! Not here: what the entries mean ([`super::oracle`]).
//!
//! Fields: POSIX.1-2017 `pax`, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format" and "Sparse Formats".

use super::oracle::Meta;

/// Block of a tar.
pub const BLOCK: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `ustar\0` `00`, prefix field for paths up to 255 bytes.
    Ustar,
    /// `ustar  \0`, `L` and `K` entries for long names, base-256 numbers.
    Gnu,
    /// ustar with an `x` entry whenever something does not fit.
    Pax,
}

/// How a sparse file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SparseForm {
    /// Type `S`, map in the header and extension blocks.
    OldGnu,
    /// PAX records `GNU.sparse.offset` and `GNU.sparse.numbytes`, again and again.
    Pax00,
    /// A PAX record `GNU.sparse.map`.
    Pax01,
    /// PAX records `GNU.sparse.major=1`, map in front of the data.
    Pax1,
}

/// One header. Paths are written exactly as given (directories get their slash from the caller).
#[derive(Clone, Debug)]
pub struct Header<'a> {
    pub path: &'a [u8],
    pub typeflag: u8,
    pub meta: &'a Meta,
    pub size: u64,
    pub link: &'a [u8],
    pub device: (u32, u32),
}

#[derive(Debug, Default)]
pub struct TarWriter {
    out: Vec<u8>,
}

impl TarWriter {
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes as they are, for tars that lie.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Header, extension headers, body and padding. `h.size` is written as given even if the body differs.
    pub fn entry(&mut self, dialect: Dialect, h: &Header<'_>, body: &[u8]) {
        let block = self.extended(dialect, h, &[]);
        self.raw(&sealed(block));
        self.padded(body);
    }

    /// A member of the simplest kind: default attributes, as its size what the body has, as a device that of /dev/null.
    pub fn member(&mut self, dialect: Dialect, path: &[u8], typeflag: u8, link: &[u8], body: &[u8]) {
        let meta = Meta::default();
        let header = Header {
            path,
            typeflag,
            meta: &meta,
            size: body.len() as u64,
            link,
            device: (1, 3),
        };
        self.entry(dialect, &header, body);
    }

    /// A sparse file of `size` bytes with `data` at the given offsets, in order.
    pub fn sparse(&mut self, form: SparseForm, h: &Header<'_>, size: u64, data: &[(u64, &[u8])]) {
        // The map always ends with an empty segment at the end of the file, as GNU tar writes it.
        let mut map: Vec<(u64, u64)> = data.iter().map(|(at, bytes)| (*at, bytes.len() as u64)).collect();
        map.push((size, 0));
        let body: Vec<u8> = data.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
        match form {
            SparseForm::OldGnu => self.sparse_old(h, size, &map, &body),
            SparseForm::Pax00 | SparseForm::Pax01 => self.sparse_records(form, h, size, &map, &body),
            SparseForm::Pax1 => self.sparse_pax(h, size, &map, &body),
        }
    }

    /// Everything so far, without end marks.
    pub fn into_bytes(self) -> Vec<u8> {
        self.out
    }

    /// Two zero blocks, and zeros up to a record of 20 blocks.
    pub fn finish(mut self) -> Vec<u8> {
        self.out.extend_from_slice(&[0; 2 * BLOCK]);
        let record = 20 * BLOCK;
        self.out.resize(self.out.len().div_ceil(record) * record, 0);
        self.out
    }

    fn sparse_old(&mut self, h: &Header<'_>, size: u64, map: &[(u64, u64)], body: &[u8]) {
        let h = Header {
            typeflag: b'S',
            size: body.len() as u64,
            ..h.clone()
        };
        let mut block = self.extended(Dialect::Gnu, &h, &[]);
        let segment = |block: &mut [u8], at: usize, (offset, len): (u64, u64)| {
            gnu_number(&mut block[at..at + 12], offset as i128);
            gnu_number(&mut block[at + 12..at + 24], len as i128);
        };
        let (first, rest) = map.split_at(map.len().min(4));
        for (i, &s) in first.iter().enumerate() {
            segment(&mut block, 386 + 24 * i, s);
        }
        block[482] = u8::from(!rest.is_empty());
        gnu_number(&mut block[483..495], size as i128);
        self.raw(&sealed(block));
        for (i, more) in rest.chunks(21).enumerate() {
            let mut extension = [0; BLOCK];
            for (j, &s) in more.iter().enumerate() {
                segment(&mut extension, 24 * j, s);
            }
            extension[504] = u8::from((i + 1) * 21 < rest.len());
            self.raw(&extension);
        }
        self.padded(body);
    }

    fn sparse_records(&mut self, form: SparseForm, h: &Header<'_>, size: u64, map: &[(u64, u64)], body: &[u8]) {
        let number = |n: u64| n.to_string().into_bytes();
        let mut records: Vec<(&[u8], Vec<u8>)> = vec![
            (b"GNU.sparse.size", number(size)),
            (b"GNU.sparse.numblocks", number(map.len() as u64)),
        ];
        if form == SparseForm::Pax00 {
            for &(offset, len) in map {
                records.push((b"GNU.sparse.offset", number(offset)));
                records.push((b"GNU.sparse.numbytes", number(len)));
            }
        } else {
            let numbers: Vec<_> = map.iter().map(|(offset, len)| format!("{offset},{len}")).collect();
            records.push((b"GNU.sparse.name", h.path.to_vec()));
            records.push((b"GNU.sparse.map", numbers.join(",").into_bytes()));
        }
        let h = Header {
            size: body.len() as u64,
            ..h.clone()
        };
        let block = self.extended(Dialect::Pax, &h, &records);
        self.raw(&sealed(block));
        self.padded(body);
    }

    fn sparse_pax(&mut self, h: &Header<'_>, size: u64, map: &[(u64, u64)], body: &[u8]) {
        let mut stored = format!("{}\n", map.len()).into_bytes();
        for (offset, len) in map {
            stored.extend_from_slice(format!("{offset}\n{len}\n").as_bytes());
        }
        stored.resize(stored.len().next_multiple_of(BLOCK), 0);
        stored.extend_from_slice(body);
        let records: [(&[u8], Vec<u8>); 4] = [
            (b"GNU.sparse.major", b"1".to_vec()),
            (b"GNU.sparse.minor", b"0".to_vec()),
            (b"GNU.sparse.name", h.path.to_vec()),
            (b"GNU.sparse.realsize", size.to_string().into_bytes()),
        ];
        let cut = h.path.iter().rposition(|&b| b == b'/').map_or(0, |i| i + 1);
        let name = [&h.path[..cut], b"GNUSparseFile.0/", &h.path[cut..]].concat();
        let h = Header {
            path: &name,
            size: stored.len() as u64,
            ..h.clone()
        };
        let block = self.extended(Dialect::Pax, &h, &records);
        self.raw(&sealed(block));
        self.padded(&stored);
    }

    /// Writes the extension entries `h` needs, and returns its own header block without a checksum.
    fn extended(&mut self, dialect: Dialect, h: &Header<'_>, more: &[(&[u8], Vec<u8>)]) -> [u8; BLOCK] {
        let mut records: Vec<(Vec<u8>, Vec<u8>)> = more.iter().map(|(k, v)| (k.to_vec(), v.clone())).collect();
        let (name, prefix) = match split(h.path) {
            Some(parts) if dialect != Dialect::Gnu => parts,
            _ if dialect == Dialect::Gnu && h.path.len() <= 100 => (h.path, &b""[..]),
            _ if dialect == Dialect::Gnu => {
                self.long(b'L', h.path);
                (&h.path[..100], &b""[..])
            }
            _ => {
                records.push((b"path".to_vec(), h.path.to_vec()));
                (&h.path[..100], &b""[..])
            }
        };
        if h.link.len() > 100 && dialect == Dialect::Gnu {
            self.long(b'K', h.link);
        } else if h.link.len() > 100 {
            records.push((b"linkpath".to_vec(), h.link.to_vec()));
        }
        for (key, id) in [("uid", h.meta.uid), ("gid", h.meta.gid)] {
            if id > 0o7_777_777 && dialect != Dialect::Gnu {
                records.push((key.into(), id.to_string().into_bytes()));
            }
        }
        if h.meta.mtime_nanos != 0 || h.meta.mtime_secs < 0 {
            records.push((b"mtime".to_vec(), pax_time(h.meta)));
        }
        for (key, value) in &h.meta.xattrs {
            records.push(([b"SCHILY.xattr.", key.as_slice()].concat(), value.clone()));
        }
        if !records.is_empty() {
            self.pax(&records);
        }
        plain(dialect, h, name, prefix)
    }

    fn pax(&mut self, records: &[(Vec<u8>, Vec<u8>)]) {
        let body: Vec<u8> = records.iter().flat_map(|(k, v)| pax_record(k, v)).collect();
        let meta = Meta::default();
        let h = Header {
            path: b"PaxHeaders/0",
            typeflag: b'x',
            meta: &meta,
            size: body.len() as u64,
            link: b"",
            device: (0, 0),
        };
        self.raw(&sealed(plain(Dialect::Pax, &h, h.path, b"")));
        self.padded(&body);
    }

    fn long(&mut self, typeflag: u8, value: &[u8]) {
        let body = [value, b"\0"].concat();
        let meta = Meta::mode(0);
        let h = Header {
            path: b"././@LongLink",
            typeflag,
            meta: &meta,
            size: body.len() as u64,
            link: b"",
            device: (0, 0),
        };
        self.raw(&sealed(plain(Dialect::Gnu, &h, h.path, b"")));
        self.padded(&body);
    }

    fn padded(&mut self, body: &[u8]) {
        self.raw(body);
        self.out.resize(self.out.len().next_multiple_of(BLOCK), 0);
    }
}

/// `<length> <key>=<value>\n`, where the length counts itself.
pub fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    let mut out = format!("{len} ").into_bytes();
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
    out
}

/// Decimal seconds. Before 1970 the fraction counts away from zero in text, and towards the future in a timespec.
fn pax_time(meta: &Meta) -> Vec<u8> {
    let (secs, nanos) = (meta.mtime_secs, meta.mtime_nanos);
    let text = match (secs < 0, nanos) {
        (_, 0) => format!("{secs}"),
        (false, n) => format!("{secs}.{n:09}"),
        (true, n) => format!("-{}.{:09}", -(secs + 1), 1_000_000_000 - n),
    };
    text.into_bytes()
}

/// Name and prefix fields of ustar, if the path fits them.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= 100 {
        return Some((path, b""));
    }
    let cut = (0..path.len().min(156))
        .rev()
        .find(|&i| path[i] == b'/' && i > 0 && i + 1 < path.len() && path.len() - i - 1 <= 100)?;
    Some((&path[cut + 1..], &path[..cut]))
}

fn plain(dialect: Dialect, h: &Header<'_>, name: &[u8], prefix: &[u8]) -> [u8; BLOCK] {
    let mut b = [0; BLOCK];
    b[..name.len()].copy_from_slice(name);
    let number = |field: &mut [u8], n: i128| match dialect {
        Dialect::Gnu => gnu_number(field, n),
        _ => octal(field, n),
    };
    number(&mut b[100..108], i128::from(h.meta.mode));
    number(&mut b[108..116], i128::from(h.meta.uid));
    number(&mut b[116..124], i128::from(h.meta.gid));
    number(&mut b[124..136], i128::from(h.size));
    number(&mut b[136..148], i128::from(h.meta.mtime_secs));
    b[156] = h.typeflag;
    let link = &h.link[..h.link.len().min(100)];
    b[157..157 + link.len()].copy_from_slice(link);
    b[257..265].copy_from_slice(if dialect == Dialect::Gnu {
        b"ustar  \0"
    } else {
        b"ustar\x0000"
    });
    if matches!(h.typeflag, b'3' | b'4') {
        number(&mut b[329..337], i128::from(h.device.0));
        number(&mut b[337..345], i128::from(h.device.1));
    }
    b[345..345 + prefix.len()].copy_from_slice(prefix);
    b
}

/// Fills in the checksum.
fn sealed(mut block: [u8; BLOCK]) -> [u8; BLOCK] {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

/// Octal digits and a NUL; 0 for what does not fit (a PAX record says it then).
fn octal(field: &mut [u8], n: i128) {
    let digits = field.len() - 1;
    let fits = n >= 0 && n < 1 << (3 * digits);
    let text = format!("{:0digits$o}\0", if fits { n } else { 0 });
    field.copy_from_slice(text.as_bytes());
}

/// Octal if it fits, else GNU's base-256 with the top bit set.
fn gnu_number(field: &mut [u8], n: i128) {
    let digits = field.len() - 1;
    if n >= 0 && n < 1 << (3 * digits) {
        return octal(field, n);
    }
    let bytes = n.to_be_bytes();
    let len = field.len();
    field.copy_from_slice(&bytes[bytes.len() - len..]);
    field[0] |= 0x80;
}
