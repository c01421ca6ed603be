//! A small disk: an ext4 of its own in a file, with nothing else on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    pub at: PathBuf,
}

impl Disk {
    pub fn make(dir: &Path, bytes: u64) -> Self {
        let image = dir.join("disk");
        fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-b", "4096"]).arg(&image));
        Self::mount(image, dir.join("disk.mnt"))
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
