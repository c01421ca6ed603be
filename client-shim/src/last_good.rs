//! The configuration of the last start that became ready, for a start whose own cannot be used while readers wait.
//!
//! In: a configuration that was good; later a file that is not. Out: the former, if a predecessor's mount is kept; with nothing
//! to start from, readers who get errors instead of waiting for ever. Invariant: where nobody waits a file that cannot be used is an
//! error, as ever; a running shim's mount is never touched.
//! Not here: what a good configuration is (`config.rs`), taking mounts over (`app.rs`).
//!
//! It is `<root_dir>/last-good.toml`, the file's text as it was read. Of a file that cannot be understood `root_dir` is still looked
//! for, in its first lines; without one the default's is tried.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crate::app::{OPEN_AGAIN, OPEN_MAX};
use crate::atomic_file;
use crate::config::{CONFIG_SIZE_MAX, Config};
use crate::dir_lock::DirLock;
use crate::presentation;
use crate::survival::{KeepWith, Keeper, ServiceManager};

const FILE: &str = "last-good.toml";

/// After a start that became ready. Not to have it costs a later start.
pub(crate) fn keep(config: &Config) {
    if config.refused.is_some() {
        return;
    }
    if let Err(error) = write(&config.root_dir, &config.text) {
        tracing::warn!(%error, "configuration-not-kept");
    }
}

fn write(root: &Path, text: &str) -> io::Result<()> {
    let path = root.join(FILE);
    if atomic_file::read_bounded(&path, CONFIG_SIZE_MAX).is_ok_and(|kept| kept == text.as_bytes()) {
        return Ok(());
    }
    let new = path.with_extension("new");
    // What is in it is for whoever may read the original.
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, &path)
}

/// For looking at a node whose file cannot be used, for that reason.
pub fn of(path: Option<&Path>, why: &str) -> Option<Config> {
    let text = atomic_file::read_bounded(&root_of(path).join(FILE), CONFIG_SIZE_MAX).ok()?;
    let mut config: Config = String::from_utf8(text).ok()?.parse().ok()?;
    config.refused = Some(why.to_owned());
    Some(config)
}

/// What to start with although the file cannot be used, because readers wait. Where there is nothing usable, the file is tried `again`
/// for a while since `begun`, and then readers get errors. Blocks.
pub fn instead(
    path: Option<&Path>,
    why: &str,
    manager: Option<&Arc<ServiceManager>>,
    is_usable: impl Fn(&Config) -> bool,
    again: impl Fn() -> Option<Config>,
    begun: Instant,
) -> Option<Config> {
    let root = root_of(path);
    // Whoever has it serves the mount.
    let lock = DirLock::take(&root).ok()??;
    let keeper = Keeper::new(KeepWith::Nobody, &root, manager).ok()?;
    if !keeper.has_left() {
        return None;
    }
    // Something that both name may be gone: a certificate, say.
    if let Some(config) = of(path, why).filter(&is_usable) {
        return Some(config);
    }
    eprintln!("headstart-shim: readers wait, and no configuration is known that can be used: trying again");
    while begun.elapsed() < OPEN_MAX {
        std::thread::sleep(OPEN_AGAIN);
        if let Some(config) = again() {
            return Some(config);
        }
    }
    eprintln!("headstart-shim: the mount is given up: containers get errors from it");
    keeper.let_go();
    if let Err(error) = presentation::detach_stale(&root.join(presentation::MOUNT)) {
        eprintln!("headstart-shim: failed to detach it: {error}");
    }
    drop(lock);
    None
}

/// As far as it can be told of a file that may be anything.
fn root_of(path: Option<&Path>) -> PathBuf {
    let text = path.and_then(|path| {
        let mut bytes = Vec::new();
        let file = File::open(path).ok()?;
        io::Read::read_to_end(&mut io::Read::take(file, CONFIG_SIZE_MAX), &mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    });
    let named = |text: &str| {
        let root = text
            .parse::<toml::Table>()
            .ok()?
            .get("root_dir")?
            .as_str()
            .map(PathBuf::from)?;
        root.is_absolute().then_some(root)
    };
    let text = text.unwrap_or_default();
    let mut lines = text.lines().take_while(|line| !line.trim_start().starts_with('['));
    named(&text)
        .or_else(|| lines.find_map(named))
        .unwrap_or_else(|| Config::default().root_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_found_in_files_that_nobody_can_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shim.toml");
        let default = Config::default().root_dir;
        for (text, root) in [
            ("root_dir = '/a'\nsocket = 7", Path::new("/a")),
            ("root_dir = '/a'\n[lazy]\nno_such_key = 1", Path::new("/a")),
            ("# text\n  root_dir = \"/a\" # it\nsocket = \n[[[", Path::new("/a")),
            ("socket = \n[lazy]\nroot_dir = '/b'", &default),
            ("root_dir = 'relative'", &default),
            ("root_dir = 7\n\u{0}", &default),
            ("", &default),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(root_of(Some(&path)), root, "{text}");
        }
        std::fs::write(&path, b"root_dir = '/a'\nsocket = \xff").unwrap();
        assert_eq!(root_of(Some(&path)), Path::new("/a"));
        assert_eq!(root_of(Some(&dir.path().join("absent"))), default);
        assert_eq!(root_of(None), default);
    }
}
