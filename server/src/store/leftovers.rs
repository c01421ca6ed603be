//! Unfinished fetches that nobody finishes.
//!
//! In: the directory of originals, and an age. Out: it is rid of them.
//! Invariant: a fetch under way is never touched: the caller says what is in use, file by file, while it keeps others
//! from beginning. A map goes before its bytes.
//! Not here: when to sweep (`read/sweep.rs`), and space for new blobs (that is eviction).

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::{
    originals::{PARTIAL_SUFFIX, ignore_missing},
    partial::MAP_SUFFIX,
    units::UnitMap,
};

/// Removes partials untouched for `age`, and maps without a partial. Returns how many of either kind.
/// `unless_in_use` is given the path of a partial, and runs what it is given while no fetch of that can begin.
pub(super) fn sweep(root: &Path, age: Duration, mut unless_in_use: impl FnMut(&Path, Remove<'_>)) -> io::Result<u64> {
    let (mut swept, mut failed) = (0, Ok(()));
    let mut attempt = |partial: &Path, remove: &dyn Fn() -> io::Result<bool>| {
        unless_in_use(partial, &mut || match remove() {
            Ok(removed) => swept += u64::from(removed),
            Err(error) => failed = Err(error),
        });
        Ok(())
    };
    each(root, PARTIAL_SUFFIX, |path| attempt(path, &|| remove_if_old(path, age)))?;
    each(root, MAP_SUFFIX, |path| {
        let partial = path.with_extension(PARTIAL_SUFFIX);
        attempt(&partial, &|| {
            if partial.exists() {
                return Ok(false);
            }
            ignore_missing(fs::remove_file(path))?;
            Ok(true)
        })
    })?;
    failed.map(|()| swept)
}

/// Partials of which every unit is there, according to their maps.
pub(super) fn whole(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    each(root, MAP_SUFFIX, |map| {
        let partial = map.with_extension(PARTIAL_SUFFIX);
        if let Some((_, marks)) = UnitMap::load(map)?
            && marks.present.iter().all(|here| *here)
            && fs::metadata(&partial).is_ok_and(|file| file.len() == marks.size)
        {
            found.push(partial);
        }
        Ok(())
    })?;
    Ok(found)
}

/// The same for one partial.
pub(super) fn remove_old(
    path: &Path,
    age: Duration,
    unless_in_use: &mut impl FnMut(&Path, Remove<'_>),
) -> io::Result<u64> {
    let mut done = Ok(false);
    unless_in_use(path, &mut || done = remove_if_old(path, age));
    done.map(u64::from)
}

fn remove_if_old(path: &Path, age: Duration) -> io::Result<bool> {
    if !is_old(path, age)? {
        return Ok(false);
    }
    ignore_missing(fs::remove_file(path.with_extension(MAP_SUFFIX)))?;
    ignore_missing(fs::remove_file(path))?;
    Ok(true)
}

/// Removes one unfinished fetch, if it is time.
pub type Remove<'a> = &'a mut dyn FnMut();

/// Visits every file with this suffix.
pub(super) fn each(root: &Path, suffix: &str, mut visit: impl FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    for algorithm in directories(root)? {
        for shard in directories(&algorithm)? {
            for entry in fs::read_dir(shard)? {
                let path = entry?.path();
                if path.extension().is_some_and(|e| e == suffix) {
                    visit(&path)?;
                }
            }
        }
    }
    Ok(())
}

fn is_old(path: &Path, age: Duration) -> io::Result<bool> {
    let modified = match fs::metadata(path) {
        Ok(metadata) => metadata.modified()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    // A clock that was set back makes a file of the future, which is not old.
    Ok(SystemTime::now().duration_since(modified).is_ok_and(|old| old >= age))
}

pub(super) fn directories(of: &Path) -> io::Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for entry in fs::read_dir(of)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            out.push(entry.path());
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use headstart_layer_format::BlobDigest;

    use super::*;
    use crate::store::originals::Originals;

    #[test]
    fn the_old_and_the_widowed_go_and_the_new_and_the_used_stay() {
        let dir = tempfile::tempdir().unwrap();
        let originals = Originals::open(dir.path()).unwrap();
        let hour = Duration::from_secs(3600);
        let make = |name: &[u8], age: Duration| {
            let digest = BlobDigest::of(name);
            let mut partial = originals.partial(&digest, "u").unwrap();
            partial.set_size(3).unwrap();
            partial.mark(0).unwrap();
            partial.file().set_modified(SystemTime::now() - age).unwrap();
            originals.partial_path(&digest, "u")
        };
        let (new, old, used) = (make(b"new", hour / 2), make(b"old", hour * 2), make(b"used", hour * 2));
        let widow = make(b"widow", Duration::ZERO);
        fs::remove_file(&widow).unwrap();
        let swept = originals.sweep_leftovers(hour, |path, remove| {
            if path != used {
                remove();
            }
        });
        assert_eq!(swept.unwrap(), 2);
        for (path, stays) in [(&new, true), (&used, true), (&old, false)] {
            assert_eq!(path.exists(), stays, "{path:?}");
            assert_eq!(path.with_extension(MAP_SUFFIX).exists(), stays, "{path:?}");
        }
        assert!(!widow.with_extension(MAP_SUFFIX).exists());
    }
}
