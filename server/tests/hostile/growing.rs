//! What grows with a layer's contents, kind by kind: for tests of memory.

use headstart_loadtest::corpus::{Rng, SparseForm, TarWriter, pax_record};

use crate::{MIB, entry, sparse};

/// One thing that grows with a layer, so many times.
pub struct Growing {
    /// 0: other bounds come first.
    pub too_much: usize,
    pub fits: usize,
    pub write: fn(&mut TarWriter, usize),
}

const fn growing(too_much: usize, fits: usize, write: fn(&mut TarWriter, usize)) -> Growing {
    Growing { too_much, fits, write }
}

pub fn empty(w: &mut TarWriter, path: impl AsRef<[u8]>) {
    entry(w, path.as_ref(), b'0', b"", b"");
}

/// Numbers at the default budget.
pub const GROWING: [(&str, Growing); 11] = [
    (
        "files",
        growing(900_000, 480_000, |w, n| {
            (0..n).for_each(|i| empty(w, format!("d/f{i}")))
        }),
    ),
    (
        "implied directories",
        growing(400_000, 150_000, |w, n| {
            (0..n).for_each(|i| empty(w, format!("d{i}/e/f")))
        }),
    ),
    (
        "directories with long paths",
        growing(50_000, 10_000, |w, n| {
            (0..n).for_each(|i| entry(w, format!("{i}{}", "/e".repeat(40)).as_bytes(), b'5', b"", b""));
        }),
    ),
    (
        "long names",
        growing(240_000, 110_000, |w, n| {
            (0..n).for_each(|i| empty(w, format!("{i:0255}")))
        }),
    ),
    (
        "one name again and again",
        growing(900_000, 480_000, |w, n| (0..n).for_each(|_| empty(w, "same"))),
    ),
    (
        "targets",
        growing(30_000, 6_500, |w, n| {
            let target = "t/".repeat(2000);
            (0..n).for_each(|i| entry(w, format!("l{i}").as_bytes(), b'2', target.as_bytes(), b""));
        }),
    ),
    (
        "attributes that do not compress",
        growing(2_400, 250, |w, n| {
            for i in 0..n {
                let value = Rng::new(i as u64).bytes(60_000);
                entry(w, b"pax", b'x', b"", &pax_record(b"SCHILY.xattr.user.big", &value));
                empty(w, format!("f{i}"));
            }
        }),
    ),
    (
        "small attributes",
        growing(480, 80, |w, n| {
            let record = |i| pax_record(format!("SCHILY.xattr.user.{i}").as_bytes(), b"");
            let records: Vec<u8> = (0..9000).flat_map(record).collect();
            for i in 0..n {
                entry(w, b"pax", b'x', b"", &records);
                empty(w, format!("f{i}"));
            }
        }),
    ),
    (
        "stretches",
        growing(6_000_000, 1_500_000, |w, n| {
            let data: Vec<(u64, &[u8])> = (0..n as u64).map(|i| (i * 2, &b"x"[..])).collect();
            sparse(w, SparseForm::OldGnu, 1 << 33, &data);
        }),
    ),
    (
        "bodies",
        growing(0, 900_000, |w, n| (0..n).for_each(|_| entry(w, b"./", b'0', b"", b"x"))),
    ),
    (
        "bytes beside bodies that do not compress",
        growing(240 * MIB, 44 * MIB, |w, n| {
            w.raw(&[0; 1024]);
            w.raw(&Rng::new(3).bytes(n));
        }),
    ),
];
