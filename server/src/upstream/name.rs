//! Repository names, tags and references: the grammar of the distribution specification.
//!
//! In: text from a path. Out: types whose values are safe in a path, a cache key and a log line.
//! Invariant: a [`RepositoryName`] has 1 to 255 bytes, lowercase components without `.` or `..` among them; a [`Tag`]
//! has 1 to 128.
//! Not here: digests (`headstart_layer_format::BlobDigest`).

use std::{fmt, str::FromStr};

use headstart_layer_format::{BlobDigest, DigestError};

/// Longest repository name: what distribution and Docker Hub accept.
const NAME_LEN_MAX: usize = 255;

/// Longest tag, from the specification's expression.
const TAG_LEN_MAX: usize = 128;

/// Why a text is not a name, tag or reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a repository name has at most 255 bytes")]
    NameTooLong,
    #[error("a repository name consists of lowercase components separated by slashes")]
    BadName,
    #[error("a tag has 1 to 128 letters, digits, '_', '.' or '-', and does not begin with '.' or '-'")]
    BadTag,
    #[error(transparent)]
    BadDigest(#[from] DigestError),
}

/// `component ("/" component)*` with `component = [a-z0-9]+ ((\.|_|__|-+) [a-z0-9]+)*`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RepositoryName(String);

impl RepositoryName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RepositoryName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.len() > NAME_LEN_MAX {
            return Err(NameError::NameTooLong);
        }
        if text.split('/').all(is_component) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::BadName)
        }
    }
}

fn is_component(text: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends_well = bytes.first().copied().is_some_and(alnum) && bytes.last().copied().is_some_and(alnum);
    // Between two runs of letters and digits: one dot, one or two underscores, or any number of hyphens.
    ends_well
        && bytes
            .split(|&b| alnum(b))
            .filter(|s| !s.is_empty())
            .all(|separator| matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|&b| b == b'-'))
}

/// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tag(String);

impl Tag {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let good = text.len() <= TAG_LEN_MAX
            && text.bytes().next().is_some_and(word)
            && text.bytes().all(|b| word(b) || b == b'.' || b == b'-');
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::BadTag)
        }
    }
}

/// The last path element of a manifest request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    Tag(Tag),
    Digest(BlobDigest),
}

impl FromStr for Reference {
    type Err = NameError;

    /// A colon cannot be part of a tag, so it tells them apart.
    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.contains(':') {
            Ok(Self::Digest(text.parse()?))
        } else {
            text.parse().map(Self::Tag)
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(&tag.0),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_specification() {
        for good in [
            "a",
            "library/alpine",
            "a/b/c/d",
            "a.b",
            "a_b",
            "a__b",
            "a-b",
            "a---b",
            "0/1",
            "a.b_c-d/e__f",
        ] {
            assert!(good.parse::<RepositoryName>().is_ok(), "{good}");
        }
        for bad in [
            "", "/", "a/", "/a", "a//b", "A", "a/B", ".a", "a.", "a..b", "a___b", "a._b", "-a", "a-", "_a", "a b",
            "..", "a/../b", "ä", "a:b", "a%2f",
        ] {
            assert!(bad.parse::<RepositoryName>().is_err(), "{bad}");
        }
        assert!("a".repeat(255).parse::<RepositoryName>().is_ok());
        assert_eq!("a".repeat(256).parse::<RepositoryName>(), Err(NameError::NameTooLong));
    }

    #[test]
    fn references_are_tags_or_digests() {
        let digest = BlobDigest::of(b"x");
        assert_eq!(digest.to_string().parse(), Ok(Reference::Digest(digest)));
        for good in ["latest", "_x", "1.2.3-rc.1", &"t".repeat(128)] {
            assert!(matches!(good.parse(), Ok(Reference::Tag(_))), "{good}");
        }
        for bad in ["", ".x", "-x", "a/b", "a b", "ä", &"t".repeat(129)] {
            assert_eq!(bad.parse::<Reference>(), Err(NameError::BadTag), "{bad}");
        }
        for bad in ["sha256:", "sha256:zz", "md5:00", ":"] {
            assert!(
                matches!(bad.parse::<Reference>(), Err(NameError::BadDigest(_))),
                "{bad}"
            );
        }
    }
}
