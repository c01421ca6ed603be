//! Files that an operator wants first, whatever starts say: for a repository, whichever image of it is started.
//!
//! In: paths, or a list that `ctr-remote image optimize` recorded for eStargz. Out: [`Pins`], and spans of whole files.
//! Invariant: bounded in paths and bytes; a path is relative to the root, without empty parts, dots or NUL.
//! Not here: where pins are kept ([`super::catalog`]), and pins of images, which protect from eviction (`store/pins.rs`).

use headstart_layer_format::limits::PATH_LEN_MAX;
use serde::{Deserialize, Serialize};

use super::learned::Span;
use crate::store::facts::Source;

/// Files of one repository; what eStargz's tools record of a start are some thousands.
pub const PATHS_MAX: usize = 16_384;
/// Bytes of their paths.
const PATHS_LEN_MAX: usize = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pins {
    pub source: Source,
    pub generation: u64,
    /// In the order in which they are wanted.
    pub paths: Vec<String>,
}

/// Why a list is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    #[error("pin files: {0:?} is no path in an image")]
    BadPath(String),
    #[error("pin files: more than {PATHS_MAX}, or than {PATHS_LEN_MAX} bytes of paths")]
    TooMany,
    #[error("read the list of files: line {0} is not {{\"path\": \"...\"}}")]
    BadLine(usize),
}

/// A line of a record: further fields (the manifest's digest, the layer's position) are another image's business.
#[derive(Deserialize)]
struct Recorded {
    path: String,
}

/// JSON lines, as eStargz's tools record them with `--record-out` and take them with `--estargz-record-in`.
pub fn record_in(text: &str) -> Result<Vec<String>, PinError> {
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let paths = lines.map(|(number, line)| {
        let line: Recorded = serde_json::from_str(line).map_err(|_| PinError::BadLine(number))?;
        Ok(line.path)
    });
    paths.collect()
}

/// A path as pins have it.
pub fn clean(path: &str) -> Result<String, PinError> {
    let bad = || PinError::BadPath(path.chars().take(200).collect());
    if path.contains('\0') || path.len() > PATH_LEN_MAX {
        return Err(bad());
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    match parts.is_empty() || parts.contains(&"..") {
        true => Err(bad()),
        false => Ok(parts.join("/")),
    }
}

impl Pins {
    pub fn new(source: Source) -> Self {
        Self {
            source,
            generation: 0,
            paths: Vec::new(),
        }
    }

    /// Pins or unpins; how many that changed. Nothing, when any of them is wrong or they are too many.
    pub fn set(&mut self, paths: &[String], pinned: bool) -> Result<usize, PinError> {
        let mut now = self.paths.clone();
        let mut known: std::collections::HashSet<String> = now.iter().cloned().collect();
        let mut changed = 0;
        let mut gone = std::collections::HashSet::new();
        for path in paths {
            let path = clean(path)?;
            if pinned && known.insert(path.clone()) {
                now.push(path);
                changed += 1;
            } else if !pinned && known.remove(&path) {
                gone.insert(path);
                changed += 1;
            }
        }
        now.retain(|path| !gone.contains(path));
        if now.len() > PATHS_MAX || now.iter().map(String::len).sum::<usize>() > PATHS_LEN_MAX {
            return Err(PinError::TooMany);
        }
        if changed > 0 {
            self.paths = now;
            self.generation += 1;
        }
        Ok(changed)
    }

    /// Whole files.
    pub fn spans(&self) -> impl Iterator<Item = Span> + '_ {
        self.paths.iter().map(|path| (path.clone(), 0, u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pins() -> Pins {
        Pins::new(Source {
            upstream: "u".into(),
            repository: "r".into(),
        })
    }

    #[test]
    fn a_recorded_list_is_read_line_by_line() {
        let text =
            "{\"path\":\"bin/sh\",\"manifestDigest\":\"sha256:00\",\"layerIndex\":0}\n\n{\"path\":\"/etc/passwd\"}\n";
        assert_eq!(record_in(text).unwrap(), ["bin/sh", "/etc/passwd"]);
        assert_eq!(record_in("{\"path\":\"a\"}\nbin/sh\n"), Err(PinError::BadLine(2)));
    }

    #[test]
    fn paths_are_cleaned_counted_once_and_bounded() {
        let mut pins = pins();
        let list = ["/bin/./sh".to_owned(), "bin//sh".into(), "etc/x".into()];
        assert_eq!(pins.set(&list, true).unwrap(), 2);
        assert_eq!(pins.paths, ["bin/sh", "etc/x"]);
        assert_eq!(pins.set(&["bin/sh".into(), "no".into()], false).unwrap(), 1);
        assert_eq!((pins.paths.len(), pins.generation), (1, 2));
        for bad in ["", "/", "a/../b", "a\0b"] {
            assert!(
                matches!(pins.set(&[bad.into()], true), Err(PinError::BadPath(_))),
                "{bad:?}"
            );
        }
        let many: Vec<String> = (0..PATHS_MAX).map(|n| format!("f{n}")).collect();
        assert_eq!(pins.set(&many, true), Err(PinError::TooMany));
        assert_eq!(pins.paths, ["etc/x"], "nothing of it");
    }
}
