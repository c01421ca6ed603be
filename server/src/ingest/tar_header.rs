//! One 512-byte tar header block.
//!
//! In: a block. Out: [`Header`], or an error. Invariant: the checksum was right and every number parsed; nothing is
//! guessed. Follows what Go's `archive/tar` (hence every common runtime) reads, so that no two readers disagree about
//! where an entry ends: POSIX.1-1988 with base-256 numbers, ustar and star prefixes, GNU.
//! Not here: PAX records ([`super::pax`]), sparse maps ([`super::sparse`]), the order of blocks ([`super::tar_scan`]).

use super::error::{ConvertError, malformed};

pub const BLOCK: usize = 512;
pub type Block = [u8; BLOCK];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub mode: u64,
    pub uid: u64,
    pub gid: u64,
    pub size: u64,
    pub mtime_secs: i64,
    pub typeflag: u8,
    pub dev_major: u64,
    pub dev_minor: u64,
    pub is_gnu: bool,
}

/// Text up to the first NUL.
pub fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    &field[..end]
}

/// Octal, or base-256 when the top bit of the first byte is set (then it may be negative).
pub fn number(field: &[u8]) -> Result<i64, ConvertError> {
    let bad = || malformed("a number in a header");
    let (&first, rest) = field.split_first().ok_or_else(bad)?;
    if first & 0x80 == 0 {
        return octal(field);
    }
    // Two's complement, big-endian, bit 6 of the first byte is the sign.
    let invert = if first & 0x40 != 0 { 0xff } else { 0 };
    let mut value = u64::from((first ^ invert) & 0x7f);
    for &b in rest {
        if value >> 55 > 0 {
            return Err(bad());
        }
        value = value << 8 | u64::from(b ^ invert);
    }
    let value = i64::try_from(value).map_err(|_| bad())?;
    Ok(if invert == 0xff { !value } else { value })
}

fn octal(field: &[u8]) -> Result<i64, ConvertError> {
    let bad = || malformed("a number in a header");
    let blank = |b: &u8| *b == b' ' || *b == 0;
    let start = field.iter().position(|b| !blank(b));
    let Some(start) = start else { return Ok(0) };
    let end = field.iter().rposition(|b| !blank(b)).map_or(start, |e| e + 1);
    let digits = text(&field[start..end]);
    if digits.is_empty() {
        return Err(bad());
    }
    digits.iter().try_fold(0i64, |n, &d| match d {
        b'0'..=b'7' => n
            .checked_mul(8)
            .and_then(|n| n.checked_add(i64::from(d - b'0')))
            .ok_or_else(bad),
        _ => Err(bad()),
    })
}

fn unsigned(field: &[u8], what: &'static str) -> Result<u64, ConvertError> {
    u64::try_from(number(field)?).map_err(|_| malformed(what))
}

impl Header {
    pub fn parse(block: &Block) -> Result<Self, ConvertError> {
        check_sum(block)?;
        let is_ustar = block[257..263] == *b"ustar\0";
        let is_star = is_ustar && block[508..512] == *b"tar\0";
        let is_gnu = block[257..265] == *b"ustar  \0";
        let mut name = text(&block[..100]).to_vec();
        let prefix = match (is_star, is_ustar, is_gnu) {
            (true, ..) => text(&block[345..476]),
            (_, true, _) => text(&block[345..500]),
            // Some old writers put a prefix where GNU has access and change time; then those are no numbers.
            (.., true) if gnu_times_are_text(block) => {
                let prefix = text(&block[345..500]);
                if prefix.is_ascii() { prefix } else { b"" }
            }
            _ => b"",
        };
        if !prefix.is_empty() {
            name = [prefix, b"/", &name].concat();
        }
        if is_star {
            // Access and change time: not kept, but readers fail on others.
            number(&block[476..488])?;
            number(&block[488..500])?;
        }
        let (dev_major, dev_minor) = if is_ustar || is_gnu {
            let what = "a negative device number";
            (unsigned(&block[329..337], what)?, unsigned(&block[337..345], what)?)
        } else {
            (0, 0)
        };
        Ok(Self {
            name,
            link: text(&block[157..257]).to_vec(),
            mode: unsigned(&block[100..108], "a negative mode")?,
            uid: unsigned(&block[108..116], "a negative owner")?,
            gid: unsigned(&block[116..124], "a negative group")?,
            size: unsigned(&block[124..136], "a negative size")?,
            mtime_secs: number(&block[136..148])?,
            typeflag: block[156],
            dev_major,
            dev_minor,
            is_gnu,
        })
    }
}

fn gnu_times_are_text(block: &Block) -> bool {
    [&block[345..357], &block[357..369]]
        .iter()
        .any(|time| time[0] != 0 && number(time).is_err())
}

/// The sum of all bytes, the sum field itself counted as blanks. Old writers added signed bytes.
fn check_sum(block: &Block) -> Result<(), ConvertError> {
    let stated = octal(&block[148..156])?;
    let byte = |i: usize| if (148..156).contains(&i) { b' ' } else { block[i] };
    let unsigned: i64 = (0..BLOCK).map(|i| i64::from(byte(i))).sum();
    let signed: i64 = (0..BLOCK).map(|i| i64::from(byte(i) as i8)).sum();
    if stated == unsigned || stated == signed {
        Ok(())
    } else {
        Err(malformed("a header's checksum is wrong"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_all_writers() {
        let good: [(&[u8], i64); 9] = [
            (b"0000644\0", 0o644),
            (b"   644 \0", 0o644),
            (b"00000000011\0", 9),
            (b"\0\0\0\0", 0),
            (b"\x80\0\0\x01", 1),
            (b"\x80\0\0\0\0\0\0\0\x02\x54\x0b\xe4\0", 10_000_000_000 & !0xff),
            (b"\xff\xff\xff\xff", -1),
            (b"\xff\xff\xff\xfe", -2),
            (b"777\0junk", 0o777),
        ];
        for (field, value) in good {
            assert_eq!(number(field).ok(), Some(value), "{field:x?}");
        }
        let bad: [&[u8]; 5] = [b"9", b"-1", b"12 34", b"0x1f", b"\x80\x01\0\0\0\0\0\0\0\0\0\0"];
        for field in bad {
            assert!(number(field).is_err(), "{field:x?}");
        }
    }
}
