//! The credentials of `Authorization: Basic`.
//!
//! In: base64 text. Out: user and password. Invariant: what is not exactly base64 (padded or not), UTF-8 and
//! `user:password` is nothing. Not here: whether they are right.
//!
//! RFC 7617.

/// User and password; only the password may contain a colon.
pub fn decode(text: &str) -> Option<(String, String)> {
    let text = String::from_utf8(from_base64(text)?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    let trimmed = text.trim_end_matches('=');
    if text.len() - trimmed.len() > 2 || trimmed.len() % 4 == 1 {
        return None;
    }
    let (mut out, mut bits, mut held) = (Vec::with_capacity(trimmed.len() * 3 / 4), 0u32, 0u32);
    for byte in trimmed.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        held = held << 6 | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push((held >> bits) as u8);
            held &= (1 << bits) - 1;
        }
    }
    (held == 0).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc() {
        let pair = |u: &str, p: &str| Some((u.to_owned(), p.to_owned()));
        assert_eq!(decode("QWxhZGRpbjpvcGVuIHNlc2FtZQ=="), pair("Aladdin", "open sesame"));
        assert_eq!(decode("dGVzdDoxMjPCow=="), pair("test", "123£"));
        assert_eq!(decode("dTphOmI="), pair("u", "a:b"));
        assert_eq!(decode("dTphOmI"), pair("u", "a:b"));
    }

    #[test]
    fn what_is_not_base64_is_nothing() {
        for bad in ["", "Q", "QQ==", "dTph===", "dT ph", "dTp-", "dTphOmK=", "/////w=="] {
            assert_eq!(decode(bad), None, "{bad:?}");
        }
    }
}
