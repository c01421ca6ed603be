//! A small disk: a filesystem of its own in a file, with nothing else on it. ext4, where nothing else is asked for.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    pub at: PathBuf,
}

impl Disk {
    pub fn make(dir: &Path, bytes: u64) -> Self {
        Self::make_at(dir, dir.join("disk.mnt"), bytes)
    }

    /// Mounted at `at`, its file in `dir`.
    pub fn make_at(dir: &Path, at: PathBuf, bytes: u64) -> Self {
        Self::format(Command::new("mkfs.ext4").args(["-q", "-b", "4096"]), dir, at, bytes)
    }

    /// Of another filesystem. `bytes`: XFS wants 300 MiB; what is not written takes no room.
    #[allow(dead_code, reason = "tests of the cache use it")]
    pub fn make_of(filesystem: &str, dir: &Path, bytes: u64) -> Self {
        let mut mkfs = Command::new(format!("mkfs.{filesystem}"));
        Self::format(mkfs.arg("-q"), dir, dir.join("disk.mnt"), bytes)
    }

    fn format(mkfs: &mut Command, dir: &Path, at: PathBuf, bytes: u64) -> Self {
        let image = dir.join("disk");
        fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        run(mkfs.arg(&image));
        Self::mount(image, at)
    }

    /// Bytes in use, once everything is written.
    #[allow(dead_code, reason = "tests of the cache use it")]
    pub fn used(&self) -> u64 {
        rustix::fs::syncfs(fs::File::open(&self.at).unwrap()).unwrap();
        let now = rustix::fs::statvfs(&self.at).unwrap();
        (now.f_blocks - now.f_bfree) * now.f_frsize
    }

    /// Leaves no block of it, not even for root.
    #[allow(dead_code, reason = "tests of whole nodes use it")]
    pub fn fill(&self) {
        let path = self.at.join("filling");
        let mut file = fs::File::create(&path).unwrap();
        for len in [1 << 20, 4096] {
            // What is only promised may come to less on the disk: until nothing is got after that either.
            loop {
                let mut got = 0;
                let error = loop {
                    match file.write(&vec![1; len]) {
                        Ok(n) => got += n,
                        Err(error) => break error,
                    }
                };
                assert_eq!(error.kind(), io::ErrorKind::StorageFull);
                file.sync_all().unwrap();
                if got == 0 {
                    break;
                }
            }
        }
        let more = self.at.join("more");
        let full = fs::write(&more, "x").unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        fs::remove_file(&more).unwrap();
    }

    fn mount(image: PathBuf, at: PathBuf) -> Self {
        fs::create_dir(&at).unwrap();
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at));
        Self { image, at }
    }

    /// As after power loss now: what the file holds is what a disk would hold. Writes that nobody synced are in the kernel's
    /// memory, and not in it.
    pub fn after_power_loss(&self, dir: &Path, n: usize) -> Self {
        let image = dir.join(format!("copy{n}"));
        fs::copy(&self.image, &image).unwrap();
        Self::mount(image, dir.join(format!("copy{n}.mnt")))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH);
        let _ = fs::remove_file(&self.image);
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}
