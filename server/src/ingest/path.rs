//! Paths as a tar gives them, made into components under the layer's root.
//!
//! In: bytes. Out: components without `.`, `..` or empty ones. Invariant: cleaning is lexical and never leaves the root,
//! as containerd's unpacker does it (`filepath.Clean`, then joined to the root).
//! Not here: symlinks in the way ([`super::tree`]).

use headstart_layer_format::limits::{DEPTH_MAX, NAME_LEN_MAX, PATH_LEN_MAX};

use super::error::Refusal;

/// Components of the cleaned path; empty for the root itself.
pub fn components(path: &[u8]) -> Result<Vec<&[u8]>, Refusal> {
    if path.contains(&0) {
        return Err(Refusal::Path("it has a NUL"));
    }
    let mut out: Vec<&[u8]> = Vec::new();
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                out.pop();
            }
            name if name.len() > NAME_LEN_MAX => return Err(Refusal::Path("a name is longer than 255 bytes")),
            name => out.push(name),
        }
    }
    let len: usize = out.iter().map(|n| n.len() + 1).sum();
    if len > PATH_LEN_MAX || out.len() > DEPTH_MAX {
        return Err(Refusal::Path("it is too long or too deep"));
    }
    Ok(out)
}

/// What a base name means by AUFS's conventions, which OCI layers use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whiteout<'a> {
    /// An ordinary name.
    No,
    /// `.wh..wh..opq`: the directory hides everything below it.
    Opaque,
    /// `.wh.NAME`. AUFS's own files (`.wh..wh.plnk`) are that as well to containerd: they hide a name that nobody has.
    Of(&'a [u8]),
}

pub fn whiteout(name: &[u8]) -> Whiteout<'_> {
    if name == b".wh..wh..opq" {
        Whiteout::Opaque
    } else if let Some(hidden) = name.strip_prefix(b".wh.") {
        Whiteout::Of(hidden)
    } else {
        Whiteout::No
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaning_stays_below_the_root() {
        let clean = |p: &str| components(p.as_bytes()).map(|c| c.join(&b'/')).ok();
        for (path, cleaned) in [
            ("./a/b", "a/b"),
            ("/a//b/", "a/b"),
            ("a/../b", "b"),
            ("../../etc/passwd", "etc/passwd"),
            ("a/../../..//b/./c", "b/c"),
            (".", ""),
            ("", ""),
        ] {
            assert_eq!(clean(path).as_deref(), Some(cleaned.as_bytes()), "{path}");
        }
        assert!(clean("a\0b").is_none());
        assert!(clean(&"n".repeat(256)).is_none());
        assert!(clean(&"d/".repeat(2049)).is_none());
    }
}
