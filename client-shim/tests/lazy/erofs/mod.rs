//! Our EROFS images, by the tools that know the format, and mounted.
//!
//! In: layers made by hand. Out: nothing. Invariant: what is mounted here is unmounted here.
//! Not here: the node that mounts them (`presentation`).

mod hostile;
mod image;
mod listing;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use headstart_layer_format::Toc;
use headstart_shim::erofs::{self, ErofsError, ShortTimes};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::support::TestLayer;

pub use listing::listing;

/// An image, its device, and its mount if it has one.
pub struct Image {
    dir: tempfile::TempDir,
    mounted: bool,
}

impl Image {
    /// Writes the image, and an empty data space of the right size.
    pub fn write(toc: &Toc, short: ShortTimes) -> Result<Self, ErofsError> {
        let dir = tempfile::tempdir().unwrap();
        let mut out = BufWriter::new(File::create(dir.path().join("image")).unwrap());
        let len = erofs::write(toc, short, &mut out)?;
        out.flush().unwrap();
        let image = Self { dir, mounted: false };
        assert_eq!(fs::metadata(image.path()).unwrap().len(), len);
        let data = File::create(image.data()).unwrap();
        data.set_len(toc.chunks().data_size()).unwrap();
        Ok(image)
    }

    /// The same with the layer's bytes.
    pub fn of(layer: &TestLayer, short: ShortTimes) -> Result<Self, ErofsError> {
        let image = Self::write(&layer.toc, short)?;
        let data = File::options().write(true).open(image.data()).unwrap();
        for chunk in layer.toc.chunks().iter() {
            let (frame, raw_len) = &layer.frames[&chunk.digest];
            let raw = zstd::bulk::decompress(frame, *raw_len as usize).unwrap();
            data.write_all_at(&raw, chunk.range.start.0).unwrap();
        }
        Ok(image)
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn mount(&mut self) -> PathBuf {
        let at = self.dir.path().join("mnt");
        fs::create_dir(&at).unwrap();
        let option = std::ffi::CString::new(format!("device={}", self.data().display())).unwrap();
        mount(self.path(), &at, "erofs", MountFlags::RDONLY, Some(option.as_c_str()))
            .unwrap_or_else(|e| panic!("the kernel refuses the image: {e}"));
        self.mounted = true;
        at
    }

    /// What `fsck.erofs` thinks: it walks the tree, and with `--extract` also the attributes and every file's blocks.
    pub fn check(&self) {
        for mode in [&[][..], &["--extract"][..]] {
            self.tool("fsck.erofs", mode);
        }
    }

    pub fn tool(&self, name: &str, arguments: &[&str]) -> String {
        // Of 1.5, in Debian 12, they do not look on the device for a file that names none; where it would begin is behind the image.
        let whole = self.dir.path().join("whole");
        let parts = [self.path(), self.data()].map(|path| fs::read(path).unwrap());
        fs::write(&whole, parts.concat()).unwrap();
        let out = Command::new(name)
            .args(arguments)
            .arg(format!("--device={}", self.data().display()))
            .arg(whole)
            .output()
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        assert!(out.status.success() && !text.contains("<E>"), "{name}: {text}");
        text
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if self.mounted {
            unmount(self.dir.path().join("mnt"), UnmountFlags::DETACH).unwrap();
        }
    }
}

/// The image of a layer, checked and mounted.
pub fn mounted(layer: &TestLayer, short: ShortTimes) -> (Image, PathBuf) {
    let mut image = Image::of(layer, short).unwrap();
    image.check();
    let dir = image.mount();
    (image, dir)
}

/// The bytes of an image.
pub fn bytes(toc: &Toc, short: ShortTimes) -> Result<Vec<u8>, ErofsError> {
    let mut out = Vec::new();
    erofs::write(toc, short, &mut out)?;
    Ok(out)
}

/// What this kernel can show: short inodes have times of their own since 6.15.
pub fn shown_here() -> Vec<ShortTimes> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|n| n.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
    match version >= (6, 15) {
        true => vec![ShortTimes::Common, ShortTimes::Own],
        false => vec![ShortTimes::Common],
    }
}
