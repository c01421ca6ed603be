//! Bearer tokens, by their hashes.
//!
//! In: a file of `name:sha256` lines, and a token that a client shows. Out: the token's name.
//! Invariant: the file has no token, only SHA-256 of some; tokens are random, so a fast hash will do. A comparison takes
//! the same time wherever it fails.
//! Not here: names of people ([`super::htpasswd`]).

use std::{collections::HashMap, fmt, hint::black_box};

use sha2::{Digest as _, Sha256};

/// Longest name: what certificates may have too.
const NAME_LEN_MAX: usize = 255;

/// The tokens of one version of the file.
pub struct Tokens(HashMap<[u8; 32], String>);

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokens({})", self.0.len())
    }
}

impl Tokens {
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
        let mut tokens = HashMap::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let bad = |why: &str| format!("line {}: {why}", at + 1);
            let (name, hash) = line.rsplit_once(':').ok_or_else(|| bad("it is not name:sha256"))?;
            if name.is_empty() || name.len() > NAME_LEN_MAX {
                return Err(bad("a name has 1 to 255 bytes"));
            }
            let hash = from_hex(hash).ok_or_else(|| bad("a token is given as the 64 hex digits of its SHA-256"))?;
            if tokens.insert(hash, name.to_owned()).is_some() {
                return Err(bad("the token is there twice"));
            }
        }
        Ok(Self(tokens))
    }

    /// Whose token it is. A name may have several tokens, so that they can be changed one after the other.
    pub fn name(&self, token: &str) -> Option<&str> {
        let shown: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        // The look-up goes by keyed hashes of SHA-256, which nobody can steer; equality is confirmed in constant time.
        let (known, name) = self.0.get_key_value(&shown)?;
        same(known, &shown).then_some(name.as_str())
    }

    /// Whether somebody of this name has a token.
    pub fn knows(&self, name: &str) -> bool {
        self.0.values().any(|known| known == name)
    }
}

fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    black_box(a.iter().zip(b).fold(0, |differences, (a, b)| differences | (a ^ b))) == 0
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_known_by_their_hashes() {
        // printf tokentoken | sha256sum
        let hash = headstart_layer_format::digest::hex(&Sha256::digest(b"tokentoken"));
        let file = format!("# nodes\nsystem:node:a:{hash}\nb:{}\n", "AB".repeat(32));
        let tokens = Tokens::parse(file.as_bytes()).unwrap();
        assert_eq!(tokens.name("tokentoken"), Some("system:node:a"));
        for wrong in ["", "tokentoke", "tokentoken ", &hash] {
            assert_eq!(tokens.name(wrong), None, "{wrong}");
        }
        assert_eq!(format!("{tokens:?}"), "Tokens(2)");
        assert!(tokens.knows("b") && !tokens.knows("c"));
        for bad in [
            "a",
            "a:tokentoken",
            ":00",
            &format!("x:{hash}\ny:{hash}"),
            &format!("a:+{}", &hash[1..]),
        ] {
            let error = Tokens::parse(bad.as_bytes()).unwrap_err();
            assert!(error.starts_with("line ") && !error.contains("tokentoken"), "{error}");
        }
    }
}
