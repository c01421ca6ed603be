//! PAX extended header records.
//!
//! In: the data of an `x` or `g` member. Out: [`Pax`]. Invariant: a record that is not exactly `LEN KEY=VALUE\n` makes the tar
//! malformed: guessing on would desynchronise us from other readers. Values are bytes, not text.
//! Not here: what a global (`g`) header's records apply to (nothing but its own name, by Go's reader).

use headstart_layer_format::limits::XATTRS_LEN_MAX;
use headstart_layer_format::toc::Mtime;

use super::error::{ConvertError, Limit, Refusal, malformed};

/// Attributes of one file: as many as `listxattr(2)` can name, with names of a letter behind `user.`.
pub const XATTRS_OF_ONE_MAX: usize = XATTRS_LEN_MAX / 7;

/// What an `x` header says about the next member. `None`: the header block's own field counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<Mtime>,
    /// `SCHILY.xattr.` records by name; of two of one name the later one.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: PaxSparse,
}

/// GNU.sparse records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PaxSparse {
    pub major: Option<Vec<u8>>,
    pub minor: Option<Vec<u8>>,
    pub name: Option<Vec<u8>>,
    /// `GNU.sparse.size` or, failing that, `GNU.sparse.realsize`.
    pub size: Option<u64>,
    pub real_size: Option<u64>,
    pub block_count: Option<u64>,
    /// Offsets and lengths: of `GNU.sparse.map` (0.1), or gathered from repeated records (0.0).
    pub map: Option<Vec<u64>>,
}

const XATTR: &[u8] = b"SCHILY.xattr.";

impl Pax {
    pub fn parse(mut data: &[u8]) -> Result<Self, ConvertError> {
        let mut pax = Self::default();
        while !data.is_empty() {
            let (key, value, rest) = record(data)?;
            pax.apply(key, value)?;
            data = rest;
        }
        // Sorted once: looking for each name among the others took minutes for a header of a megabyte.
        pax.xattrs.reverse();
        pax.xattrs.sort_by(|a, b| a.0.cmp(&b.0));
        pax.xattrs.dedup_by(|later, kept| later.0 == kept.0);
        if pax.xattrs.len() > XATTRS_OF_ONE_MAX {
            return Err(too_many_xattrs());
        }
        Ok(pax)
    }

    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), ConvertError> {
        if let Some(name) = key.strip_prefix(XATTR) {
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Ok(());
        }
        // An empty value takes an earlier record back: the header's own field counts.
        let present = !value.is_empty();
        let text = || present.then(|| value.to_vec());
        let number = || present.then(|| decimal(value)).transpose();
        match key {
            b"path" | b"linkpath" | b"uname" | b"gname" if value.contains(&0) => {
                return Err(malformed("a PAX name has a NUL"));
            }
            b"path" => self.path = text(),
            b"linkpath" => self.link = text(),
            b"size" => self.size = number()?,
            b"uid" => self.uid = number()?,
            b"gid" => self.gid = number()?,
            // Not kept, but readers fail on others.
            b"atime" | b"ctime" => drop(present.then(|| time(value)).transpose()?),
            b"mtime" => self.mtime = present.then(|| time(value)).transpose()?,
            b"GNU.sparse.major" => self.sparse.major = text(),
            b"GNU.sparse.minor" => self.sparse.minor = text(),
            b"GNU.sparse.name" if value.contains(&0) => return Err(malformed("a PAX path has a NUL")),
            b"GNU.sparse.name" => self.sparse.name = text(),
            b"GNU.sparse.size" => self.sparse.size = number()?,
            b"GNU.sparse.realsize" => self.sparse.real_size = number()?,
            b"GNU.sparse.numblocks" => self.sparse.block_count = number()?,
            b"GNU.sparse.map" => {
                let numbers = value.split(|&b| b == b',').map(decimal);
                self.sparse.map = present.then(|| numbers.collect()).transpose()?;
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                let map = self.sparse.map.get_or_insert_default();
                // Strictly alternating: offset, length, offset, ...
                if map.len() % 2 != usize::from(key.ends_with(b"numbytes")) {
                    return Err(malformed("sparse records are out of order"));
                }
                map.push(decimal(value)?);
            }
            _ => {}
        }
        Ok(())
    }
}

pub fn too_many_xattrs() -> ConvertError {
    let (what, max) = ("attributes of one file", XATTRS_OF_ONE_MAX as u64);
    Refusal::OverBudget {
        limit: Limit::Format,
        what,
        max,
    }
    .into()
}

/// Key, value, and what follows the record.
type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// One `LEN KEY=VALUE\n`.
fn record(data: &[u8]) -> Result<Record<'_>, ConvertError> {
    let bad = || malformed("a PAX record");
    let space = data.iter().take(21).position(|&b| b == b' ').ok_or_else(bad)?;
    let len = usize::try_from(decimal(&data[..space])?).map_err(|_| bad())?;
    if len <= space + 1 || len > data.len() || data[len - 1] != b'\n' {
        return Err(bad());
    }
    let body = &data[space + 1..len - 1];
    let equals = body.iter().position(|&b| b == b'=').ok_or_else(bad)?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    if key.is_empty() || key.contains(&0) {
        return Err(bad());
    }
    Ok((key, value, &data[len..]))
}

/// Digits only, and below 2^63 as in every reader that uses signed numbers.
pub fn decimal(digits: &[u8]) -> Result<u64, ConvertError> {
    let bad = || malformed("a decimal number");
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(bad());
    }
    let value = digits.iter().try_fold(0u64, |n, d| {
        n.checked_mul(10).and_then(|n| n.checked_add(u64::from(d - b'0')))
    });
    value.filter(|&v| v <= i64::MAX as u64).ok_or_else(bad)
}

/// `[-]SECONDS[.FRACTION]`, cut to nanoseconds.
fn time(value: &[u8]) -> Result<Mtime, ConvertError> {
    let bad = || malformed("a PAX time");
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let mut halves = value.splitn(2, |&b| b == b'.');
    let whole = decimal(halves.next().unwrap_or_default())? as i64;
    let fraction = halves.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(bad());
    }
    let nanos = (0..9).fold(0u32, |n, i| n * 10 + fraction.get(i).map_or(0, |d| u32::from(d - b'0')));
    Ok(match (negative, nanos) {
        (false, nanos) => Mtime { secs: whole, nanos },
        (true, 0) => Mtime { secs: -whole, nanos: 0 },
        // -1.25 is 0.75 after -2.
        (true, nanos) => Mtime {
            secs: -whole - 1,
            nanos: 1_000_000_000 - nanos,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rec(key: &str, value: &[u8]) -> Vec<u8> {
        let mut len = key.len() + value.len() + 3;
        while len != key.len() + value.len() + 3 + len.to_string().len() {
            len = key.len() + value.len() + 3 + len.to_string().len();
        }
        [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
    }

    #[test]
    fn records_are_binary_safe_and_the_last_wins() {
        let data = [
            rec("path", b"a\nb=c"),
            rec("size", b"9"),
            rec("SCHILY.xattr.user.x", b"\0\n="),
            rec("SCHILY.xattr.user.x", b"\0\nnew"),
            rec("size", b"10"),
            rec("mtime", b"-1.25"),
        ]
        .concat();
        let pax = Pax::parse(&data).unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a\nb=c"[..]));
        assert_eq!(pax.size, Some(10));
        assert_eq!(pax.xattrs, [(b"user.x".to_vec(), b"\0\nnew".to_vec())]);
        let expected = Mtime {
            secs: -2,
            nanos: 750_000_000,
        };
        assert_eq!(pax.mtime, Some(expected));
    }

    /// Such a header, repeated, kept a core busy for hours.
    #[test]
    fn more_attributes_than_a_file_can_have_are_refused() {
        let many = |n: usize| -> Vec<u8> { (0..n).flat_map(|i| rec(&format!("SCHILY.xattr.{i:x}"), b"")).collect() };
        assert_eq!(
            Pax::parse(&many(XATTRS_OF_ONE_MAX)).unwrap().xattrs.len(),
            XATTRS_OF_ONE_MAX
        );
        assert!(Pax::parse(&many(XATTRS_OF_ONE_MAX + 1)).is_err());
    }

    #[test]
    fn malformed_records_are_errors() {
        let bad: [&[u8]; 10] = [
            b"x",
            b"5 a=b",
            b"99 a=b\n",
            b"6 a=b\nx",
            b"0 a=b\n",
            b" 6 a=b\n",
            b"+6 a=b\n",
            b"5 ab\n",
            b"5 =b\n",
            b"12 path=a\0b\n",
        ];
        for data in bad {
            assert!(Pax::parse(data).is_err(), "{data:?}");
        }
        for value in ["-1", "1x", "9223372036854775808"] {
            assert!(Pax::parse(&rec("size", value.as_bytes())).is_err(), "{value}");
        }
    }
}
