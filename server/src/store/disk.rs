//! What packs and originals do to the file system, each operation by its name.
//!
//! In: files and paths. Out: what the kernel says. Invariant: nothing here decides anything; with a [`Witness`] (tests)
//! every operation is told before it is done, and fails if the witness says so.
//! Not here: sled's files, which are sled's own; maps of partials, which are worth nothing after a crash of the machine.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

/// One operation.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(test), expect(dead_code, reason = "read by witnesses only"))]
pub enum Op<'a> {
    /// A new or emptied file.
    Create(&'a Path),
    Open(&'a Path),
    Read(&'a Path, u64, usize),
    Write(&'a Path, u64, &'a [u8]),
    /// A hint, from where and how much: it promises nothing.
    StartWriting(&'a Path, u64, u64),
    SetLen(&'a Path, u64),
    Sync(&'a Path),
    SyncDir(&'a Path),
    Rename(&'a Path, &'a Path),
    Remove(&'a Path),
}

/// Sees everything, and may refuse it.
pub trait Witness: Debug + Send + Sync {
    fn about_to(&self, op: Op<'_>) -> io::Result<()>;
}

/// The file system, with a witness or without.
#[derive(Clone, Debug, Default)]
pub struct Disk(Option<Arc<dyn Witness>>);

impl Disk {
    #[cfg(test)]
    pub fn with(witness: Arc<dyn Witness>) -> Self {
        Self(Some(witness))
    }

    fn tell(&self, op: Op<'_>) -> io::Result<()> {
        match &self.0 {
            Some(witness) => witness.about_to(op),
            None => Ok(()),
        }
    }

    /// To read and write; empty.
    pub fn create(&self, path: &Path) -> io::Result<File> {
        self.tell(Op::Create(path))?;
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true).open(path)
    }

    /// To read and write; must not be there.
    pub fn create_new(&self, path: &Path) -> io::Result<File> {
        self.tell(Op::Create(path))?;
        File::options().read(true).write(true).create_new(true).open(path)
    }

    /// To read and write; must be there.
    pub fn open(&self, path: &Path) -> io::Result<File> {
        self.tell(Op::Open(path))?;
        File::options().read(true).write(true).open(path)
    }

    /// As many bytes as there are, up to `buf.len()`.
    pub fn read_at(&self, file: &File, path: &Path, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.tell(Op::Read(path, at, buf.len()))?;
        let mut done = 0;
        while done < buf.len() {
            match file.read_at(&mut buf[done..], at + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    pub fn write_all_at(&self, file: &File, path: &Path, bytes: &[u8], at: u64) -> io::Result<()> {
        self.tell(Op::Write(path, at, bytes))?;
        file.write_all_at(bytes, at)
    }

    /// Has the disk begin with what was written there, so that a later sync has less to wait for. Nothing is durable before
    /// that sync, which also tells what failed here.
    pub fn start_writing(&self, file: &File, path: &Path, at: u64, len: u64) {
        if self.tell(Op::StartWriting(path, at, len)).is_err() {
            return;
        }
        let (Ok(at), Ok(len)) = (at.try_into(), len.try_into()) else {
            return;
        };
        // SAFETY: plain numbers, and a descriptor that is open while `file` is.
        // Not every file system can: then nothing is begun.
        let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), at, len, libc::SYNC_FILE_RANGE_WRITE) };
    }

    pub fn set_len(&self, file: &File, path: &Path, len: u64) -> io::Result<()> {
        self.tell(Op::SetLen(path, len))?;
        file.set_len(len)
    }

    /// Bytes and length.
    pub fn sync(&self, file: &File, path: &Path) -> io::Result<()> {
        self.tell(Op::Sync(path))?;
        file.sync_data()
    }

    pub fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.tell(Op::SyncDir(path))?;
        File::open(path)?.sync_all()
    }

    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.tell(Op::Rename(from, to))?;
        std::fs::rename(from, to)
    }

    pub fn remove(&self, path: &Path) -> io::Result<()> {
        self.tell(Op::Remove(path))?;
        std::fs::remove_file(path)
    }
}

/// Whether an error says that bytes on the disk are lost. Anything else (no descriptor left, no memory) is a want of the
/// moment: what cannot be read now is not damaged, and must not be treated so.
pub fn is_damage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    // File systems with checksums have names of their own for it.
    const LOST: [Errno; 5] = [Errno::IO, Errno::UCLEAN, Errno::BADMSG, Errno::NODATA, Errno::REMOTEIO];
    let is = |errno: Errno| error.raw_os_error() == Some(errno.raw_os_error());
    error.kind() == io::ErrorKind::UnexpectedEof || LOST.into_iter().any(is)
}

/// Whether an error says that this process or this machine lacks something at the moment.
pub fn is_want(error: &io::Error) -> bool {
    use rustix::io::Errno;
    const WANTS: [Errno; 5] = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::AGAIN];
    let is = |errno: Errno| error.raw_os_error() == Some(errno.raw_os_error());
    error.kind() == io::ErrorKind::OutOfMemory || WANTS.into_iter().any(is)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_want_of_the_moment_is_no_damage() {
        let of = |errno: rustix::io::Errno| io::Error::from(errno);
        assert!(is_damage(&of(rustix::io::Errno::IO)) && is_damage(&io::ErrorKind::UnexpectedEof.into()));
        for errno in [
            rustix::io::Errno::MFILE,
            rustix::io::Errno::NOMEM,
            rustix::io::Errno::NFILE,
        ] {
            assert!(!is_damage(&of(errno)) && is_want(&of(errno)), "{errno}");
        }
        // Somebody changed the rights: neither.
        let access = of(rustix::io::Errno::ACCESS);
        assert!(!is_damage(&access) && !is_want(&access));
    }
}
