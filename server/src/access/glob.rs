//! Patterns for names.
//!
//! In: a pattern, a name. Out: yes or no.
//! Invariant: `*` is any run of characters but `/`, `**` any run at all, everything else is itself. Time is at most the
//! product of the two lengths, whatever the pattern.
//! Not here: what a match allows.

/// Longest pattern: names have at most 255 bytes.
const PATTERN_LEN_MAX: usize = 255;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(Vec<Token>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Byte(u8),
    /// `*`
    Component,
    /// `**`
    Anything,
}

impl Glob {
    pub fn new(pattern: &str) -> Result<Self, String> {
        if pattern.is_empty() || pattern.len() > PATTERN_LEN_MAX {
            return Err(format!("a pattern has 1 to {PATTERN_LEN_MAX} bytes"));
        }
        let mut tokens = Vec::new();
        for byte in pattern.bytes() {
            match (byte, tokens.last_mut()) {
                (b'*', Some(last @ Token::Component)) => *last = Token::Anything,
                // More stars than two say nothing new.
                (b'*', Some(Token::Anything)) => {}
                (b'*', _) => tokens.push(Token::Component),
                (byte, _) => tokens.push(Token::Byte(byte)),
            }
        }
        Ok(Self(tokens))
    }

    /// Whether it is one name and no pattern.
    pub fn is_plain(&self) -> bool {
        self.0.iter().all(|t| matches!(t, Token::Byte(_)))
    }

    /// Whether it matches everything.
    pub fn is_everything(&self) -> bool {
        self.0 == [Token::Anything]
    }

    pub fn matches(&self, name: &str) -> bool {
        let name = name.as_bytes();
        // reachable[i]: the tokens so far can have eaten exactly the first i bytes.
        let mut reachable = vec![false; name.len() + 1];
        reachable[0] = true;
        for token in &self.0 {
            match token {
                Token::Byte(byte) => {
                    for at in (0..name.len()).rev() {
                        reachable[at + 1] = reachable[at] && name[at] == *byte;
                    }
                    reachable[0] = false;
                }
                wild => {
                    for at in 0..name.len() {
                        let passes = *wild == Token::Anything || name[at] != b'/';
                        reachable[at + 1] |= reachable[at] && passes;
                    }
                }
            }
        }
        reachable[name.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stay_in_their_component_and_two_do_not() {
        for (pattern, yes, no) in [
            (
                "library/alpine",
                &["library/alpine"][..],
                &["library/alpin", "library/alpine2", "xlibrary/alpine"][..],
            ),
            (
                "library/*",
                &["library/alpine", "library/"],
                &["library/a/b", "library", "other/a"],
            ),
            ("team/**", &["team/a", "team/a/b/c"], &["team", "steam/a"]),
            ("**", &["", "a", "a/b"], &[]),
            ("*", &["", "a"], &["a/b"]),
            ("*/app-*", &["x/app-1", "x/app-"], &["x/y/app-1", "x/app", "app-1"]),
            ("a/**/z", &["a/b/z", "a/b/c/z", "a//z"], &["a/z", "a/b/zz"]),
            ("a***", &["a", "a/b"], &["b"]),
            ("a**b*c", &["a/x/bc", "abyc", "a/b/bxc"], &["a/b/x/c"]),
        ] {
            let glob = Glob::new(pattern).unwrap();
            for name in yes {
                assert!(glob.matches(name), "{pattern} {name}");
            }
            for name in no {
                assert!(!glob.matches(name), "{pattern} {name}");
            }
        }
        assert!(Glob::new("").is_err() && Glob::new(&"a".repeat(256)).is_err());
        assert!(Glob::new("a/b").unwrap().is_plain() && !Glob::new("a/*").unwrap().is_plain());
    }

    /// Backtracking matchers take exponential time for this.
    #[test]
    fn many_stars_cost_no_more_than_their_length() {
        let glob = Glob::new(&"*a".repeat(120)).unwrap();
        for _ in 0..100 {
            assert!(!glob.matches(&format!("{}b", "a".repeat(254))));
        }
    }
}
