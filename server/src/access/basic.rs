//! The credentials of `Authorization: Basic`.
//!
//! In: base64 text. Out: user and password. Invariant: what is not exactly base64 (padded or not), UTF-8 and
//! `user:password` is nothing. Not here: whether they are right.
//!
//! RFC 7617.

use crate::upstream::base64::decoded;

/// User and password; only the password may contain a colon.
pub fn decode(text: &str) -> Option<(String, String)> {
    let text = String::from_utf8(decoded(text)?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
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
        for bad in ["", "Q", "QQ==", "dT ph", "dTp-", "/////w=="] {
            assert_eq!(decode(bad), None, "{bad:?}");
        }
    }
}
