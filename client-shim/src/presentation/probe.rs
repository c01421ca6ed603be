//! Whether this kernel shows layers as EROFS rightly: tried, not concluded from its version.
//!
//! In: the FUSE mount with its file of known bytes, or a local file of the same. Out: nothing, or what went wrong. Invariant: what
//! is mounted here is unmounted here; a kernel that hangs costs [`PATIENCE`], not the start.
//! Not here: what is done about it (`choice.rs`).

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use headstart_layer_format::toc::{
    ChunkEntry, ChunkTable, Content, Entry, EntryId, Inode, InodeId, Kind, Mtime, Name, SkeletonBuilder, Toc, TocError,
    Tree,
};
use headstart_layer_format::{BlobDigest, ChunkDigest, DiffId, LayerRange};
use rustix::mount::{MountFlags, mount};

use super::FuseTree;
use super::device::Device;
use super::erofs_tree::{mount_image, undo, write_image};
use crate::erofs::{ErofsError, ShortTimes};
use crate::fuse::probe_file::{self, PROBE_NAME, PROBE_SIZE};

/// It takes some milliseconds; a busy machine may need more.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where the data space of the probe is cut in two files.
const FIRST: u64 = PROBE_SIZE / 2 + 4096;
const READAHEAD_KIB: u32 = 512;
/// No layer's directory: the store takes no notice of it.
const FILE_NAME: &str = "probe";
/// Of a file of one block, which an image describes otherwise than longer ones.
const SMALL: u64 = 4096;
/// Modification times of two files, apart from each other and from everything else's.
const TIMES: [(&str, Mtime); 2] = [
    (
        "first",
        Mtime {
            secs: 1 << 30,
            nanos: 0,
        },
    ),
    ("second", Mtime { secs: 1, nanos: 0 }),
];

/// Each text completes "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("{0}: {1}")]
    Step(&'static str, io::Error),
    #[error("make a layer to try: {0}")]
    Toc(#[from] TocError),
    #[error(transparent)]
    Image(#[from] ErofsError),
    #[error("see in {0} what the layer says")]
    Differs(&'static str),
    #[error("finish the trial in {} s", PATIENCE.as_secs())]
    Late,
}

/// Mounts a small image over the FUSE mount's probe file, below `dir`, looks, and puts overlayfs on top, and on that again.
pub(super) fn probe(dir: &Path, fuse: &FuseTree) -> Result<(), ProbeError> {
    let device = Device::asked(fuse.device(PROBE_NAME), READAHEAD_KIB);
    patiently(dir, move |dir| run(dir, &device))
}

/// Mounts the same image over a local file in `store`, to be read past the page cache, and looks.
pub(super) fn try_direct(dir: &Path, store: &Path) -> Result<(), ProbeError> {
    try_local(&dir.join("direct"), store, |dir, file| {
        run_local(dir, file, true, ShortTimes::Common)
    })
}

/// Mounts an image whose short inodes have times of their own over a local file in `store`, and looks.
pub(super) fn try_short_times(dir: &Path, store: &Path) -> Result<(), ProbeError> {
    try_local(&dir.join("times"), store, |dir, file| {
        run_local(dir, file, false, ShortTimes::Own)
    })
}

fn try_local(
    dir: &Path,
    store: &Path,
    run: impl FnOnce(&Path, PathBuf) -> Result<(), ProbeError> + Send + 'static,
) -> Result<(), ProbeError> {
    // One that is late goes on beside the next: each has a directory and a file of its own.
    let trial = dir.file_name().unwrap_or_default().to_string_lossy();
    let file = store.join(format!("{FILE_NAME}-{trial}"));
    let result = patiently(dir, {
        let file = file.clone();
        move |dir| run(dir, file)
    });
    // One that is left over is written anew.
    let _ = std::fs::remove_file(file);
    // Unless another trial is still there.
    let _ = dir.parent().map(std::fs::remove_dir);
    result
}

fn patiently(dir: &Path, run: impl FnOnce(&Path) -> Result<(), ProbeError> + Send + 'static) -> Result<(), ProbeError> {
    let dir = dir.to_owned();
    let (done, outcome) = mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("erofs-probe".into())
        .spawn(move || {
            let result = run(&dir);
            // Left over only if it is still mounted; the next start clears it.
            let _ = std::fs::remove_dir_all(&dir);
            // Nobody listens any more if it was late.
            let _ = done.send(result);
        })
        .map_err(|e| ProbeError::Step("start a thread", e))?;
    outcome.recv_timeout(PATIENCE).unwrap_or(Err(ProbeError::Late))
}

fn run(dir: &Path, device: &Device) -> Result<(), ProbeError> {
    let step = |what| move |e| ProbeError::Step(what, e);
    let at = |name: &str| dir.join(name);
    for name in ["img", "below/opaque", "merged", "again"] {
        std::fs::create_dir_all(at(name)).map_err(step("make a directory"))?;
    }
    for name in ["below/gone", "below/opaque/gone", "below/kept"] {
        std::fs::write(at(name), name).map_err(step("write a file"))?;
    }
    write_image(&layer()?, ShortTimes::Common, &at("image"))?;
    mount_image(&at("image"), device, &at("img")).map_err(step("mount an image"))?;
    let _image = Mounted(at("img"));
    look(&at("img"), "an image")?;
    overlay(&[&at("img"), &at("below")], &at("merged")).map_err(step("mount overlayfs on an image"))?;
    let _merged = Mounted(at("merged"));
    look(&at("merged"), "overlayfs on an image")?;
    let hides = |name: &str| !at("merged").join(name).exists();
    if !hides("gone") || !hides("opaque/gone") || hides("kept") {
        return Err(ProbeError::Differs("overlayfs on an image"));
    }
    // Containers may stack what they see once more.
    overlay(&[&at("merged"), &at("below")], &at("again")).map_err(step("mount overlayfs twice on an image"))?;
    let _again = Mounted(at("again"));
    look(&at("again"), "overlayfs twice on an image")
}

fn run_local(dir: &Path, file: PathBuf, direct: bool, short: ShortTimes) -> Result<(), ProbeError> {
    let step = |what| move |e| ProbeError::Step(what, e);
    let at = dir.join("img");
    std::fs::create_dir_all(&at).map_err(step("make a directory"))?;
    std::fs::write(&file, probe_file::bytes(0, PROBE_SIZE)).map_err(step("write a file"))?;
    write_image(&layer()?, short, &dir.join("image"))?;
    let device = Device::local(file, direct, READAHEAD_KIB);
    mount_image(&dir.join("image"), &device, &at).map_err(step("mount an image on a local file"))?;
    let _image = Mounted(at.clone());
    look(&at, "an image on a local file")
}

fn look(dir: &Path, place: &'static str) -> Result<(), ProbeError> {
    let step = |what| move |e| ProbeError::Step(what, e);
    for (name, from, len) in [
        ("small", FIRST, SMALL),
        ("second", FIRST, PROBE_SIZE - FIRST),
        ("first", 0, FIRST),
    ] {
        let bytes = std::fs::read(dir.join(name)).map_err(step("read a file of an image"))?;
        if bytes != probe_file::bytes(from, len) {
            return Err(ProbeError::Differs(place));
        }
    }
    for (name, time) in TIMES {
        let stat = std::fs::metadata(dir.join(name)).map_err(step("look at a file of an image"))?;
        if (stat.mtime(), stat.mtime_nsec()) != (time.secs, i64::from(time.nanos)) {
            return Err(ProbeError::Differs(place));
        }
    }
    Ok(())
}

fn overlay(lowers: &[&Path], at: &Path) -> io::Result<()> {
    let lowers: Vec<&[u8]> = lowers.iter().map(|l| l.as_os_str().as_bytes()).collect();
    let option = [b"lowerdir=", &lowers.join(&b':')[..]].concat();
    let option = CString::new(option).map_err(io::Error::other)?;
    Ok(mount(
        "overlay",
        at,
        "overlay",
        MountFlags::RDONLY,
        Some(option.as_c_str()),
    )?)
}

struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        undo(&self.0);
    }
}

/// Two files that share the probe file, one of a block of it, a whiteout, and an opaque directory.
fn layer() -> Result<Toc, ProbeError> {
    let mut skeleton = SkeletonBuilder::new().map_err(|e| ProbeError::Step("make a layer to try", e))?;
    let (first, second) = (skeleton.body(FIRST), skeleton.body(PROBE_SIZE - FIRST));
    let file = |range: LayerRange| Kind::Regular(Content::whole(range));
    let directory = |opaque| Kind::Directory { opaque, implied: false };
    let small = LayerRange { len: SMALL, ..second };
    let children: [(&[u8], Kind); 5] = [
        (b"first", file(first)),
        (b"gone", Kind::Whiteout),
        (b"opaque", directory(true)),
        (b"second", file(second)),
        (b"small", file(small)),
    ];
    let mut entries = vec![Entry {
        parent: EntryId::ROOT,
        name: Name::default(),
        inode: InodeId::ROOT,
    }];
    let mut inodes = vec![inode(directory(false))];
    for (name, kind) in children {
        entries.push(Entry {
            parent: EntryId::ROOT,
            name: name.into(),
            inode: InodeId(inodes.len() as u32),
        });
        let mut inode = inode(kind);
        let time = TIMES.iter().find(|(of, _)| of.as_bytes() == name);
        inode.mtime = time.map_or(inode.mtime, |(_, time)| *time);
        inodes.push(inode);
    }
    let chunk = ChunkEntry {
        digest: ChunkDigest::of(b""),
        raw_len: PROBE_SIZE as u32,
        frame_len: 1,
    };
    Ok(Toc::new(
        BlobDigest::of(b"probe"),
        DiffId::of(b"probe"),
        Tree::new(entries, inodes)?,
        ChunkTable::new(vec![chunk])?,
        skeleton.finish()?,
    )?)
}

fn inode(kind: Kind) -> Inode {
    Inode {
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: Mtime::default(),
        xattrs: Vec::new(),
        kind,
    }
}
