//! What is asked of a mounted image.
//!
//! In: a directory. Out: nothing, or why it did not answer. Invariant: every way is asked for the same names and the same
//! bytes, in the same order; what is counted on the way must be right.
//! Not here: times.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::playground::{PlaygroundError, Result};

/// The large file's name.
pub const BIG: &str = "big.bin";
const MISSES: usize = 20_000;
const OPENED: usize = 1_500;
const RANDOM_READS: u64 = 2_000;
const RANDOM_BYTES: usize = 4096;
/// What `cat` and `cp` ask for at once, roughly.
const SEQUENTIAL_BYTES: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    Walk,
    Stat,
    Misses,
    Open,
    Import,
    Sequential,
    Random,
}

/// Names below the image's root.
#[derive(Clone, Debug)]
pub struct Tree {
    directories: Arc<[PathBuf]>,
    files: Arc<[PathBuf]>,
}

impl Tree {
    /// Of an image with `files` files and the large one.
    pub fn of(root: &Path, files: usize) -> io::Result<Self> {
        let (mut directories, mut names) = (Vec::new(), Vec::new());
        walk(root, root, &mut |path, is_directory| {
            let list = if is_directory { &mut directories } else { &mut names };
            list.push(path.to_owned());
        })?;
        names.retain(|n| n != Path::new(BIG));
        if names.len() != files {
            return Err(io::Error::other(format!("{} files of {files}", names.len())));
        }
        names.sort();
        directories.sort();
        Ok(Self {
            directories: directories.into(),
            files: names.into(),
        })
    }

    /// The small ones, in order.
    pub fn files(&self) -> Arc<[PathBuf]> {
        Arc::clone(&self.files)
    }
}

impl Row {
    pub const ALL: [Self; 7] = [
        Self::Walk,
        Self::Stat,
        Self::Misses,
        Self::Open,
        Self::Import,
        Self::Sequential,
        Self::Random,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Walk => "walk",
            Self::Stat => "stat all",
            Self::Misses => "20k misses",
            Self::Open => "open+read 1,500",
            Self::Import => "python import",
            Self::Sequential => "read in order",
            Self::Random => "2k random 4 KiB",
        }
    }

    /// `python`: where an image with a python is.
    pub fn ask(self, tree: &Tree, root: &Path, python: &Path) -> io::Result<()> {
        match self {
            Self::Walk => {
                let mut count = 0;
                walk(root, root, &mut |_, _| count += 1)?;
                same("names", count, tree.files.len() + tree.directories.len() + 1)
            }
            Self::Stat => {
                for name in tree.files.iter().chain(&*tree.directories) {
                    fs::symlink_metadata(root.join(name))?;
                }
                Ok(())
            }
            Self::Misses => {
                let directories = tree.directories.iter().cycle();
                let mut found = 0;
                for (directory, i) in directories.zip(0..MISSES) {
                    match fs::symlink_metadata(root.join(directory).join(format!("absent-{i}"))) {
                        Ok(_) => found += 1,
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        // A mount that nobody answers for is no quick miss.
                        Err(error) => return Err(error),
                    }
                }
                same("names that are not there", found, 0)
            }
            Self::Open => {
                let step = (tree.files.len() / OPENED).max(1);
                let mut bytes = Vec::new();
                for name in tree.files.iter().step_by(step).take(OPENED) {
                    bytes.clear();
                    File::open(root.join(name))?.read_to_end(&mut bytes)?;
                }
                Ok(())
            }
            Self::Import => import(python),
            Self::Sequential => {
                let (mut file, mut part) = (File::open(root.join(BIG))?, vec![0; SEQUENTIAL_BYTES]);
                while file.read(&mut part)? > 0 {}
                Ok(())
            }
            Self::Random => {
                let file = File::open(root.join(BIG))?;
                let blocks = file.metadata()?.len() / RANDOM_BYTES as u64;
                let (mut part, mut at) = ([0; RANDOM_BYTES], 1u64);
                for _ in 0..RANDOM_READS {
                    at = at
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    file.read_exact_at(&mut part, (at >> 20) % blocks * RANDOM_BYTES as u64)?;
                }
                Ok(())
            }
        }
    }
}

/// What a service does before it listens.
fn import(root: &Path) -> io::Result<()> {
    let mut command = Command::new("chroot");
    command
        .arg(root)
        .args(["/usr/bin/python3", "-c", "import flask, requests"])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    match command.status()? {
        status if status.success() => Ok(()),
        status => Err(io::Error::other(format!("python in the image: {status}"))),
    }
}

/// Gives every name below `dir`, relative to `root`, and whether it is a directory. Asks for no attributes.
fn walk(root: &Path, dir: &Path, visit: &mut dyn FnMut(&Path, bool)) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let (entry, is_directory) = entry.and_then(|e| Ok((e.path(), e.file_type()?.is_dir())))?;
        visit(entry.strip_prefix(root).unwrap_or(&entry), is_directory);
        if is_directory {
            walk(root, &entry, visit)?;
        }
    }
    Ok(())
}

/// Reads every layer of a shim's mount to its end, so that it has all: also what no image shows, because a higher layer or a
/// later entry replaced it.
pub fn read_spaces(mount: &Path) -> io::Result<()> {
    let mut part = vec![0; SEQUENTIAL_BYTES];
    for entry in fs::read_dir(mount.join("layers"))? {
        let mut file = File::open(mount.join("data").join(entry?.file_name()))?;
        while file.read(&mut part)? > 0 {}
    }
    Ok(())
}

/// Reads every file of a mounted image to its end, whether it is a large one or not.
pub fn read_files(root: &Path) -> io::Result<()> {
    let (mut names, mut part) = (Vec::new(), vec![0; SEQUENTIAL_BYTES]);
    walk(root, root, &mut |path, is_directory| {
        if !is_directory {
            names.push(root.join(path));
        }
    })?;
    for name in names {
        if fs::symlink_metadata(&name)?.is_file() {
            let mut file = File::open(&name)?;
            while file.read(&mut part)? > 0 {}
        }
    }
    Ok(())
}

/// On a thread of its own: relays and servers of this process go on.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| PlaygroundError::unexpected("ask a mounted image", e))?
        .map_err(PlaygroundError::io("ask a mounted image"))
}

fn same(what: &str, found: usize, expected: usize) -> io::Result<()> {
    match found == expected {
        true => Ok(()),
        false => Err(io::Error::other(format!("{found} {what} instead of {expected}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_there_is_a_miss() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("part")).unwrap();
        fs::write(root.path().join("part/file"), b"x").unwrap();
        let tree = Tree::of(root.path(), 1).unwrap();
        let ask = || Row::Misses.ask(&tree, root.path(), root.path());
        ask().unwrap();
        fs::write(root.path().join("part/absent-7"), b"").unwrap();
        assert!(ask().unwrap_err().to_string().contains("instead of 0"));
        // Another error than that the name is not there.
        fs::remove_dir_all(root.path().join("part")).unwrap();
        fs::write(root.path().join("part"), b"").unwrap();
        assert_eq!(ask().unwrap_err().kind(), io::ErrorKind::NotADirectory);
    }
}
