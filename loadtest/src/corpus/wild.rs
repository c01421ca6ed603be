//! Random tars of few names, so that everything happens to everything: replaced, linked, hidden, walked through.
//!
//! In: a seed. Out: a tar, mostly one that an unpacker takes. Invariant: same seed, same bytes; every form that a tar can
//! have and an unpacker knows appears in some thousand seeds; no oracle: what a tar means is asked of a real unpacker.
//! Not here: tars that are damaged (`server/tests/fuzz`), tars with an oracle ([`super::zoo`]).

use super::oracle::Meta;
use super::rng::Rng;
use super::tar_writer::{Dialect, Header, SparseForm, TarWriter, pax_record};
use super::zoo::CAPABILITY;

const NAMES: [&[u8]; 9] = [b"a", b"b", b"c", b"d", b"l", b"m", b"caf\xe9", b"\xff", b"ab"];
const DIALECTS: [Dialect; 3] = [Dialect::Ustar, Dialect::Gnu, Dialect::Pax];
const SPARSE: [SparseForm; 3] = [SparseForm::Pax00, SparseForm::Pax01, SparseForm::Pax1];
/// AUFS's own files, and names that only look special.
const MARKS: [&[u8]; 7] = [
    b".wh..wh.plnk",
    b".wh..wh.aufs",
    b".wh..wh..opq",
    b".wh..wh.orph/x",
    b".wh.a/b",
    b".whale",
    b".wh..wh..opq/x",
];

/// A random tar.
pub fn wild_tar(seed: u64) -> Vec<u8> {
    let mut wild = Wild {
        rng: Rng::new(seed ^ 0x7769_6c64),
        tar: TarWriter::new(),
        seen: Vec::new(),
    };
    for _ in 0..2 + wild.rng.below(24) {
        wild.member();
    }
    let end = wild.rng.below(12);
    match end {
        // No end marks; one; bytes behind them. All legal to readers.
        0 => wild.tar.into_bytes(),
        1 => [wild.tar.into_bytes(), vec![0; 512]].concat(),
        2 => [wild.tar.finish(), b"behind the end".to_vec()].concat(),
        _ => wild.tar.finish(),
    }
}

struct Wild {
    rng: Rng,
    tar: TarWriter,
    /// Paths written so far.
    seen: Vec<Vec<u8>>,
}

impl Wild {
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.below(of.len() as u64) as usize]
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.rng.below(n) == 0
    }

    fn path(&mut self) -> Vec<u8> {
        if !self.seen.is_empty() && self.one_in(4) {
            return self.known();
        }
        let mut path = Vec::new();
        for i in 0..1 + self.rng.below(3) {
            if i > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(self.pick(&NAMES));
        }
        if self.one_in(20) {
            path.extend(b"/".iter().chain(&b"n".repeat(60 + self.rng.below(190) as usize)));
        }
        path
    }

    fn known(&mut self) -> Vec<u8> {
        let at = self.rng.below(self.seen.len() as u64) as usize;
        self.seen[at].clone()
    }

    /// The same path, written as nobody should.
    fn decorated(&mut self, path: &[u8]) -> Vec<u8> {
        match self.rng.below(16) {
            0 => [b"/", path].concat(),
            1 => [b"./", path].concat(),
            2 => [b"../", path].concat(),
            3 => [b".//", path].concat(),
            4 => [b"x/../", path].concat(),
            5 => [b"//", path, b"/."].concat(),
            6 => path
                .iter()
                .flat_map(|&c| if c == b'/' { vec![c; 2] } else { vec![c] })
                .collect(),
            7 => [b"l/../", path].concat(),
            _ => path.to_vec(),
        }
    }

    fn meta(&mut self) -> Meta {
        let mode = match self.rng.below(3) {
            0 => self.rng.below(0o10000) as u32,
            // Bits of the file type, as old writers put them there.
            1 => 0o100644,
            _ => 0o755,
        };
        let owner = self.pick(&[0, 0, 0, 1, 1000, 65534, 2_097_152, 3_000_000_000, 4_294_967_294]);
        let group = self.pick(&[0, 0, 5, 2_097_151]);
        let mut meta = Meta::mode(mode).owner(owner, group);
        let secs = self.pick(&[
            0,
            1,
            1_700_000_000,
            1_600_000_001,
            -1,
            -5_000_000_000,
            9_223_372_036,
            9_223_372_037,
        ]);
        let nanos = self.pick(&[0, 0, 0, 1, 500_000_000, 999_999_999]);
        (meta.mtime_secs, meta.mtime_nanos) = (secs, nanos);
        while self.one_in(4) {
            let (name, value): (&[u8], &[u8]) = self.pick(&[
                (b"user.a", b"1"),
                (b"user.b", b"a = b\nc\0d"),
                (b"user.empty", b""),
                (b"user.caf\xe9", b"\xff\xfe"),
                (b"trusted.t", b"root only"),
                (b"security.capability", &CAPABILITY),
                (b"security.other", b"x"),
                (b"nonsense.n", b"x"),
            ]);
            meta.xattrs.retain(|x| x.0 != name);
            meta = meta.xattr(name, value);
        }
        meta
    }

    fn write(&mut self, path: &[u8], typeflag: u8, meta: &Meta, link: &[u8], device: (u32, u32), body: &[u8]) {
        let dialect = self.pick(&DIALECTS);
        let header = Header {
            path,
            typeflag,
            meta,
            size: body.len() as u64,
            link,
            device,
        };
        self.tar.entry(dialect, &header, body);
    }

    fn member(&mut self) {
        let plain = self.path();
        let path = self.decorated(&plain);
        let meta = self.meta();
        match self.rng.below(32) {
            0..9 => {
                let len = self.pick(&[0, 1, 511, 512, 513, 4096, 5000]);
                let body = self.rng.text(len);
                let typeflag = self.pick(b"000\0");
                self.write(&path, typeflag, &meta, b"", (0, 0), &body);
            }
            9..15 => {
                let slash = self.pick(&[&b"/"[..], b""]);
                let typeflag = if slash.is_empty() { b'5' } else { self.pick(b"55\0") };
                self.write(&[&path, slash].concat(), typeflag, &meta, b"", (0, 0), b"");
            }
            15..19 => {
                let target = self.target();
                self.write(&path, b'2', &meta, &target, (0, 0), b"");
            }
            19..23 if !self.seen.is_empty() => {
                let target = self.known();
                let target = self.decorated(&target);
                self.write(&path, b'1', &meta, &target, (0, 0), b"");
            }
            23 => self.write(&path, b'6', &meta, b"", (0, 0), b""),
            24 => {
                let device = self.pick(&[(1, 3), (0, 0), (300, 70_000), (4095, 1_048_575), (5000, 2_000_000)]);
                let typeflag = self.pick(b"34");
                self.write(&path, typeflag, &meta, b"", device, b"");
            }
            25 | 26 => self.whiteout(&plain, &meta),
            27 => self.write(&[&path, &b"/.wh..wh..opq"[..]].concat(), b'0', &meta, b"", (0, 0), b""),
            28 => {
                let mark = self.pick(&MARKS);
                let typeflag = self.pick(b"005");
                self.write(mark, typeflag, &meta, b"", (0, 0), b"");
            }
            29 => self.global(&path),
            30 => self.write(b"./", b'5', &meta, b"", (0, 0), b""),
            _ => self.sparse(&path, &meta),
        }
        self.seen.push(plain);
    }

    fn target(&mut self) -> Vec<u8> {
        let path = self.path();
        match self.rng.below(8) {
            0 => [b"/", &path[..]].concat(),
            1 => [b"../", &path[..]].concat(),
            2 => [b"./", &path[..], b"/"].concat(),
            3 => [b"nowhere/../", &path[..]].concat(),
            4 => b"..".to_vec(),
            _ => path,
        }
    }

    fn whiteout(&mut self, path: &[u8], meta: &Meta) {
        let cut = path.iter().rposition(|&b| b == b'/').map_or(0, |i| i + 1);
        let name: &[u8] = match self.rng.below(8) {
            0 => b"hidden",
            _ => &path[cut..],
        };
        let typeflag = self.pick(b"0005");
        self.write(
            &[&path[..cut], b".wh.", name].concat(),
            typeflag,
            meta,
            b"",
            (0, 0),
            b"",
        );
    }

    /// A global extended header, which Go's reader hands out as an entry of its own.
    fn global(&mut self, path: &[u8]) {
        let name: &[u8] = self.pick(&[b"pax_global_header", b"tmp/GlobalHead.1.1"]);
        let name = if self.one_in(3) { path } else { name };
        let body = match self.rng.below(3) {
            0 => pax_record(b"path", b"named/by/record"),
            1 => pax_record(b"mtime", b"12.5"),
            _ => pax_record(b"comment", b"0123456789abcdef"),
        };
        self.write(&name[..name.len().min(100)], b'g', &Meta::default(), b"", (0, 0), &body);
    }

    fn sparse(&mut self, path: &[u8], meta: &Meta) {
        let form = self.pick(&SPARSE);
        let (mut data, mut at) = (Vec::new(), 0);
        for _ in 0..self.rng.below(6) {
            at += self.rng.below(3) * 1000;
            let len = 1 + self.rng.below(3000);
            data.push((at, self.rng.text(len as usize)));
            at += len;
        }
        let size = at + self.rng.below(2) * 10_000;
        let slices: Vec<(u64, &[u8])> = data.iter().map(|(at, bytes)| (*at, bytes.as_slice())).collect();
        let header = Header {
            path,
            typeflag: b'0',
            meta,
            size: 0,
            link: b"",
            device: (0, 0),
        };
        self.tar.sparse(form, &header, size, &slices);
    }
}
