//! The Debian mirror this machine uses.
//!
//! In: apt's sources, in both of apt's formats, or the environment. Out: one URL.
//! Invariant: no mirror is built in: what the administrator configured is used, also offline and behind caches.
//! Not here: installing packages.

use std::{fs, path::Path};

use super::{PlaygroundError, Result};

/// Overrides what the sources say.
pub const MIRROR_VARIABLE: &str = "HEADSTART_DEBIAN_MIRROR";

/// The mirror from the environment, else the first Debian archive in the machine's sources.
pub fn mirror() -> Result<String> {
    if let Ok(url) = std::env::var(MIRROR_VARIABLE) {
        return Ok(url);
    }
    let mut files = vec![Path::new("/etc/apt/sources.list").to_owned()];
    let mut listed: Vec<_> = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .collect();
    listed.sort();
    files.extend(listed);
    files
        .iter()
        .filter_map(|f| fs::read_to_string(f).ok())
        .find_map(|text| in_sources(&text))
        .ok_or(PlaygroundError::NoDebianMirror)
}

/// The first `http` archive that carries a main suite of Debian: not security, not updates, not another vendor's.
fn in_sources(text: &str) -> Option<String> {
    one_line(text).or_else(|| deb822(text))
}

/// Release names of Debian that have what the recipe needs, and their aliases.
fn is_main_suite(suite: &str) -> bool {
    [
        "bookworm",
        "stable",
        "oldstable",
        "trixie",
        "testing",
        "sid",
        "unstable",
    ]
    .contains(&suite)
}

/// `deb [options] URL SUITE COMPONENT...`
fn one_line(text: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let line = line.trim().strip_prefix("deb ")?.trim_start();
        let line = if line.starts_with('[') {
            line.split_once(']')?.1
        } else {
            line
        };
        let mut fields = line.split_whitespace();
        let (url, suite) = (fields.next()?, fields.next()?);
        let wanted = url.starts_with("http") && is_main_suite(suite) && fields.any(|c| c == "main");
        wanted.then(|| url.to_owned())
    })
}

/// Stanzas of `Key: value`, blank line between.
fn deb822(text: &str) -> Option<String> {
    text.split("\n\n").find_map(|stanza| {
        let value = |key: &str| {
            stanza.lines().find_map(|l| {
                let (k, v) = l.split_once(':')?;
                k.trim().eq_ignore_ascii_case(key).then(|| v.trim())
            })
        };
        let enabled = value("Enabled").is_none_or(|v| !v.eq_ignore_ascii_case("no"));
        let is_deb = value("Types")?.split_whitespace().any(|t| t == "deb");
        let suite = value("Suites")?.split_whitespace().any(is_main_suite);
        let main = value("Components")?.split_whitespace().any(|c| c == "main");
        let url = value("URIs")?.split_whitespace().find(|u| u.starts_with("http"))?;
        (enabled && is_deb && suite && main).then(|| url.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_sources_with_options_and_other_vendors() {
        let text = "# deb http://commented.test/debian bookworm main\n\
                    deb https://other.test/apt vendor main\n\
                    deb http://mirror.test/debian-security bookworm-security main\n\
                    deb [signed-by=/k.gpg arch=amd64] http://mirror.test/debian bookworm main contrib\n";
        assert_eq!(in_sources(text).as_deref(), Some("http://mirror.test/debian"));
    }

    #[test]
    fn deb822_sources_skip_disabled_and_security_stanzas() {
        let text = "Types: deb\nURIs: http://off.test/debian\nSuites: bookworm\nComponents: main\nEnabled: no\n\n\
                    Types: deb\nURIs: http://sec.test/debian-security\nSuites: bookworm-security\nComponents: main\n\n\
                    Types: deb deb-src\nURIs: http://mirror.test/debian\nSuites: bookworm bookworm-updates\nComponents: main\n";
        assert_eq!(in_sources(text).as_deref(), Some("http://mirror.test/debian"));
    }

    #[test]
    fn no_debian_is_no_answer() {
        assert_eq!(in_sources("deb http://archive.test/ubuntu jammy main\n"), None);
        assert_eq!(in_sources(""), None);
    }
}
