//! Users and the hashes of their passwords.
//!
//! In: a file of `name:hash` lines, as `htpasswd -B` writes them. Out: hashes by name.
//! Invariant: every hash is bcrypt of a bounded cost: other schemes are no protection for a file that leaks, and a
//! huge cost would let anybody keep our cores busy. An error names a line, never what is in it.
//! Not here: checking passwords ([`super::passwords`]).

use std::{collections::HashMap, fmt};

/// One more doubles the time of a check; 14 is about a second.
const COST_MAX: u32 = 14;

/// A bcrypt hash: `$2y$`, two digits, `$`, 22 characters of salt and 31 of hash.
const HASH_LEN: usize = 60;

/// Longest name: what certificates may have too.
const NAME_LEN_MAX: usize = 255;

/// The users of one version of the file.
pub struct Htpasswd(HashMap<String, String>);

impl fmt::Debug for Htpasswd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Htpasswd({} users)", self.0.len())
    }
}

impl Htpasswd {
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
        let mut users = HashMap::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim_end();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let bad = |why: &str| format!("line {}: {why}", at + 1);
            let (name, hash) = line.split_once(':').ok_or_else(|| bad("it is not name:hash"))?;
            if name.is_empty() || name.len() > NAME_LEN_MAX {
                return Err(bad("a name has 1 to 255 bytes"));
            }
            let cost = cost(hash).ok_or_else(|| bad("the hash is not bcrypt; htpasswd -B makes such"))?;
            if cost > COST_MAX {
                return Err(bad("the cost of the hash is over 14"));
            }
            if users.insert(name.to_owned(), hash.to_owned()).is_some() {
                return Err(bad("the name is there twice"));
            }
        }
        Ok(Self(users))
    }

    pub fn hash(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Any hash, to spend the time of a check on a name that is not there.
    pub fn any_hash(&self) -> Option<&str> {
        self.0.values().next().map(String::as_str)
    }
}

/// The cost in a bcrypt hash.
fn cost(hash: &str) -> Option<u32> {
    if hash.len() != HASH_LEN || !hash.is_ascii() {
        return None;
    }
    let rest = ["$2y$", "$2b$", "$2a$"].iter().find_map(|p| hash.strip_prefix(p))?;
    let (cost, rest) = rest.split_once('$')?;
    let is_text = rest
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'/');
    (cost.len() == 2 && is_text).then(|| cost.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bcrypt_lines_only() {
        let hash = bcrypt::hash("secret", 4).unwrap();
        let users = Htpasswd::parse(format!("# users\n\nalice:{hash}\r\nbob:{hash}\n").as_bytes()).unwrap();
        assert_eq!(users.hash("alice"), Some(hash.as_str()));
        assert_eq!(users.hash("carol"), None);
        assert_eq!(format!("{users:?}"), "Htpasswd(2 users)");
        let costly = hash.replacen("$04$", "$31$", 1);
        for bad in [
            "alice:$apr1$abc$def",
            "alice:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=",
            "alice:plain",
            "alice",
            &format!(":{hash}"),
            &format!("alice:{costly}"),
            &format!("a:{hash}\na:{hash}"),
            &format!("a:{}", &hash[..59]),
        ] {
            let error = Htpasswd::parse(bad.as_bytes()).unwrap_err();
            assert!(error.starts_with("line "), "{error}");
            assert!(!error.contains("alice") && !error.contains('$'), "{error}");
        }
    }
}
