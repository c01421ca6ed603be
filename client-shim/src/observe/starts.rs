//! How often a shim was started on this root directory.
//!
//! In: the directory. Out: a number that grows with each start. Invariant: a file that says nonsense counts as zero; one
//! that cannot be written changes nothing else.
//! Not here: why it was started again (the journal has it).

use std::path::Path;

const NAME: &str = "starts";
/// Digits of a u64, and a newline.
const SIZE_MAX: u64 = 32;

/// Counts this start; the number of starts so far, this one included.
pub fn count(root: &Path) -> u64 {
    let path = root.join(NAME);
    let small = std::fs::metadata(&path).is_ok_and(|m| m.len() <= SIZE_MAX);
    let before = small.then(|| std::fs::read_to_string(&path).ok()).flatten();
    let before: u64 = before.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let now = before.saturating_add(1);
    let new = path.with_extension("new");
    let written = std::fs::write(&new, format!("{now}\n")).and_then(|()| std::fs::rename(&new, &path));
    if let Err(error) = written {
        tracing::warn!(path = %path.display(), %error, "start not counted");
    }
    now
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_start_counts_whatever_the_file_says() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!((count(dir.path()), count(dir.path())), (1, 2));
        std::fs::write(dir.path().join(NAME), "many").unwrap();
        assert_eq!(count(dir.path()), 1);
        std::fs::write(dir.path().join(NAME), u64::MAX.to_string()).unwrap();
        assert_eq!(count(dir.path()), u64::MAX);
    }
}
