//! Originals from the page cache to the socket without a copy through this process.
//!
//! In: a complete original's open file, and a range. Out: a body whose pieces are *windows*: slices of a private, read-only
//! mapping of the file, which all its answers share; and a [`Socket`] that recognises windows among what it is given to write and has the kernel
//! send those bytes from the file, `sendfile(2)`.
//! hyper has no such path: a body is memory to it. A window is memory by its address, so nothing between body and
//! socket needs to know, and whoever does read it reads the right bytes. On the way it is meant for, nobody does.
//!
//! Invariant: what is sent for a window is the file's content at the window's place, whatever became of the path: both
//! the mapping and `sendfile` refer to the open file. An address is looked up while its mapping is alive (a `Weak`
//! that upgrades), so a match cannot be other memory at a reused address. A file that became shorter breaks the
//! connection. Windows are given out only to HTTP/1 on a plain socket, where only [`Socket`] looks at them: reading a
//! mapping of a file that became shorter would be a SIGBUS, so TLS and HTTP/2 get copies ([`crate::read::blobs`]).
//! A window is not given out before its pages are in the page cache, or were a moment ago: `sendfile` would otherwise
//! wait for the disk on a thread of the runtime.
//! Not here: originals that are still arriving, and records of packs; both are read and checked on their way.

use std::{
    fs::File,
    io::{self, IoSlice},
    ops::Range,
    os::unix::fs::FileExt as _,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use rustix::net::{SendAncillaryBuffer, SendFlags};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

use super::resident::is_resident;
use crate::{
    read::{ReadError, blocking::blocking},
    store::opened::Opened,
};

/// Bytes handed to a connection at once when they are in memory: about what a socket's buffer grows to.
const WINDOW: u64 = 4 << 20;

/// And when they come from the disk first: the client waits for all of them.
const COLD_WINDOW: u64 = 1 << 20;

/// Pages of a cold window are fetched with reads of this size.
const WARM_BLOCK: usize = 256 << 10;

/// Ranges below this are copied: a mapping would cost more than it saves.
const WORTHWHILE: u64 = 64 << 10;

/// A file whose bytes one answer may send. Alive while the answer, or a part of it, is on its way.
#[derive(Debug)]
struct Mapped(Arc<Opened>);

/// Shares the mapping with whoever still has a part of it to send.
#[derive(Debug)]
struct Owner(Arc<Mapped>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        self.0.memory()
    }
}

impl Mapped {
    fn memory(&self) -> &[u8] {
        // Only what has one is given out.
        self.0.map().map_or(&[], |map| map)
    }

    fn file(&self) -> &Arc<File> {
        self.0.file()
    }

    /// Where in the file `bytes` are, if they are inside the mapping.
    fn offset_of(&self, bytes: &[u8]) -> Option<u64> {
        let memory = self.memory();
        let start = (bytes.as_ptr() as usize).checked_sub(memory.as_ptr() as usize)?;
        let end = start.checked_add(bytes.len())?;
        (end <= memory.len()).then_some(start as u64)
    }

    fn is_warm(&self, range: &Range<u64>) -> bool {
        if range.end <= self.0.size() && self.0.was_resident() {
            return true;
        }
        let is_warm = self.0.map().is_some_and(|map| is_resident(self.file(), map, range));
        if is_warm && *range == (0..self.0.size()) {
            self.0.saw_resident();
        }
        is_warm
    }
}

/// The files that one connection is sending from.
#[derive(Clone, Debug, Default)]
pub struct Windows(Arc<Mutex<Vec<Weak<Mapped>>>>);

impl Windows {
    /// For one answer. `None` when the file is to be read in the ordinary way.
    pub fn open(&self, opened: &Arc<Opened>) -> Option<Windowed> {
        if opened.size() < WORTHWHILE || opened.map().is_none() {
            return None;
        }
        let mapped = Arc::new(Mapped(opened.clone()));
        let mut alive = self.lock();
        // What is left is bounded by what hyper queues for one connection.
        alive.retain(|mapped| mapped.strong_count() > 0);
        alive.push(Arc::downgrade(&mapped));
        drop(alive);
        Some(Windowed {
            bytes: Bytes::from_owner(Owner(mapped.clone())),
            mapped,
        })
    }

    /// The file and the place in it that `bytes` are a window of.
    fn find(&self, bytes: &[u8]) -> Option<(Arc<Mapped>, u64)> {
        if bytes.is_empty() {
            return None;
        }
        self.lock().iter().rev().find_map(|mapped| {
            let mapped = mapped.upgrade()?;
            let offset = mapped.offset_of(bytes)?;
            Some((mapped, offset))
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Mapped>>> {
        // Only whole inserts and removes happen under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A mapped original of one answer.
#[derive(Clone, Debug)]
pub struct Windowed {
    mapped: Arc<Mapped>,
    /// All of it.
    bytes: Bytes,
}

impl Windowed {
    /// The bytes of `range`, which must be inside the size.
    pub fn stream(&self, range: Range<u64>) -> impl Stream<Item = Result<Bytes, ReadError>> + Send + use<> {
        stream::try_unfold((self.clone(), range), |(windowed, mut range)| async move {
            if range.start >= range.end {
                return Ok(None);
            }
            let end = |len| range.end.min(range.start.saturating_add(len));
            let (wide, narrow) = (range.start..end(WINDOW), range.start..end(COLD_WINDOW));
            let bytes = match windowed.mapped.is_warm(&wide) {
                true => windowed.slice(wide)?,
                false => windowed.window(narrow).await?,
            };
            range.start += bytes.len() as u64;
            Ok(Some((bytes, (windowed, range))))
        })
    }

    async fn window(&self, window: Range<u64>) -> Result<Bytes, ReadError> {
        if !self.mapped.is_warm(&window) {
            let (file, window) = (self.mapped.file().clone(), window.clone());
            let warmed = blocking(move || Ok(warm(&file, window)?)).await;
            warmed.inspect_err(|_| self.mapped.0.doubt())?;
        }
        self.slice(window)
    }

    fn slice(&self, window: Range<u64>) -> Result<Bytes, ReadError> {
        let outside = || ReadError::from(io::Error::from(io::ErrorKind::UnexpectedEof));
        let at = |offset: u64| usize::try_from(offset).ok().filter(|at| *at <= self.bytes.len());
        let (start, end) = (at(window.start), at(window.end));
        let (start, end) = start.zip(end).ok_or_else(outside)?;
        Ok(self.bytes.slice(start..end))
    }
}

/// Brings `range` into the page cache. An error of the disk, or a file that became shorter, shows here.
fn warm(file: &File, mut range: Range<u64>) -> io::Result<()> {
    let mut block = vec![0; WARM_BLOCK];
    while range.start < range.end {
        let len = usize::try_from(range.end - range.start)
            .unwrap_or(WARM_BLOCK)
            .min(WARM_BLOCK);
        file.read_exact_at(&mut block[..len], range.start)?;
        range.start += len as u64;
    }
    Ok(())
}

/// A TCP connection that sends windows from their files.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    windows: Windows,
}

/// How what is to be written begins.
enum Begins {
    /// No window in it.
    Plain,
    /// So many buffers are ordinary, then a window follows.
    Before(usize),
    Window(Arc<Mapped>, u64, usize),
}

impl Socket {
    pub fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            windows: Windows::default(),
        }
    }

    pub fn windows(&self) -> &Windows {
        &self.windows
    }

    fn begins(&self, bufs: &[IoSlice<'_>]) -> Begins {
        for (i, buf) in bufs.iter().enumerate() {
            if let Some((mapped, offset)) = self.windows.find(buf) {
                // Empty buffers in front of it are as good as none.
                return match bufs[..i].iter().all(|b| b.is_empty()) {
                    true => Begins::Window(mapped, offset, buf.len()),
                    false => Begins::Before(i),
                };
            }
        }
        Begins::Plain
    }

    /// Repeats `op` until it did something or the socket is full.
    fn poll_send(&self, cx: &mut Context<'_>, mut op: impl FnMut() -> io::Result<usize>) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.stream.try_io(Interest::WRITABLE, &mut op) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn poll_window(&self, cx: &mut Context<'_>, from: &Mapped, offset: u64, len: usize) -> Poll<io::Result<usize>> {
        self.poll_send(cx, || {
            let mut at = offset;
            match rustix::fs::sendfile(&self.stream, &**from.file(), Some(&mut at), len)? {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                n => Ok(n),
            }
        })
    }

    /// Ordinary bytes with a window behind them: the kernel may put both into one packet.
    fn poll_more(&self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
        self.poll_send(cx, || {
            let sent = rustix::net::sendmsg(&self.stream, bufs, &mut SendAncillaryBuffer::default(), flags);
            Ok(sent?)
        })
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.begins(bufs) {
            Begins::Plain => Pin::new(&mut self.stream).poll_write_vectored(cx, bufs),
            Begins::Before(plain) => self.poll_more(cx, &bufs[..plain]),
            Begins::Window(from, offset, len) => self.poll_window(cx, &from, offset, len),
        }
    }

    /// Or hyper would copy everything into one buffer first.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{TryStreamExt as _, future::poll_fn};
    use tokio::{io::AsyncReadExt as _, net::TcpListener};

    use super::*;
    use crate::store::opened::RESIDENT_FOR;

    const LEN: usize = 300_000;

    fn content() -> Vec<u8> {
        (0..LEN).map(|i| ((i / 3) ^ i) as u8).collect()
    }

    fn file() -> (tempfile::NamedTempFile, Arc<Opened>) {
        let named = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(named.path(), content()).unwrap();
        let file = Opened::new(File::options().read(true).write(true).open(named.path()).unwrap()).unwrap();
        (named, Arc::new(file))
    }

    async fn pair() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (far, near) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (Socket::new(near.unwrap().0), far.unwrap())
    }

    async fn write(socket: &mut Socket, bufs: &[&[u8]]) -> io::Result<usize> {
        let bufs: Vec<_> = bufs.iter().map(|b| IoSlice::new(b)).collect();
        poll_fn(|cx| Pin::new(&mut *socket).poll_write_vectored(cx, &bufs)).await
    }

    #[tokio::test]
    async fn windows_and_other_bytes_arrive_in_order() {
        let (_named, file) = file();
        let (mut socket, mut far) = pair().await;
        let windowed = socket.windows().open(&file).unwrap();
        let window = windowed.window(5_000..250_000).await.unwrap();
        assert_eq!(write(&mut socket, &[b"", b"he", b"ad", &window]).await.unwrap(), 4);
        let sender = tokio::spawn(async move {
            let mut sent = 0;
            while sent < window.len() {
                sent += write(&mut socket, &[b"", &window[sent..], b"tail"])
                    .await
                    .unwrap()
                    .min(window.len());
            }
            write(&mut socket, &[b"tail"]).await.unwrap();
        });
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        sender.await.unwrap();
        assert!(
            got[..4] == b"head"[..] && got[4..245_004] == content()[5_000..250_000] && got[245_004..] == b"tail"[..]
        );
    }

    /// Were the memory read, the kernel would say EFAULT.
    #[tokio::test]
    async fn a_window_is_sent_from_the_file_and_not_from_memory() {
        let (named, file) = file();
        let (mut socket, _far) = pair().await;
        let windowed = socket.windows().open(&file).unwrap();
        let window = windowed.window(0..LEN as u64).await.unwrap();
        named.as_file().set_len(100).unwrap();
        assert_eq!(write(&mut socket, &[&window]).await.unwrap(), 100);
        let error = write(&mut socket, &[&window[100..]]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        // And a new window of what is not there is not given out, once it is looked again.
        tokio::time::sleep(RESIDENT_FOR).await;
        assert!(windowed.window(200_000..250_000).await.is_err());
    }

    #[tokio::test]
    async fn only_living_windows_of_this_connection_are_found() {
        let (_named, file) = file();
        let (socket, _far) = pair().await;
        let windowed = socket.windows().open(&file).unwrap();
        let window = windowed.window(1..LEN as u64).await.unwrap();
        assert_eq!(socket.windows().find(&window).map(|(_, at)| at), Some(1));
        assert!(Windows::default().find(&window).is_none() && socket.windows().find(b"else").is_none());
        drop((windowed, window));
        let again = socket.windows().open(&file).unwrap();
        assert_eq!(socket.windows().lock().len(), 1, "the dead are forgotten");
        file.file().set_len(WORTHWHILE - 1).unwrap();
        let small = Opened::new(file.file().try_clone().unwrap()).unwrap();
        assert!(socket.windows().open(&Arc::new(small)).is_none());
        drop(again);
    }

    #[tokio::test]
    async fn cold_pages_are_fetched_first() {
        let (named, file) = file();
        named.as_file().sync_all().unwrap();
        rustix::fs::fadvise(named.as_file(), 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let windows = Windows::default();
        let windowed = windows.open(&file).unwrap();
        let pieces: Vec<Bytes> = windowed.stream(7..LEN as u64).try_collect().await.unwrap();
        assert!(pieces.concat() == content()[7..]);
        // Some filesystems keep everything in memory anyway; all of them have it there now.
        assert!(windowed.mapped.is_warm(&(0..LEN as u64)));
        assert!(!windowed.mapped.is_warm(&(0..LEN as u64 + 1)));
    }
}
