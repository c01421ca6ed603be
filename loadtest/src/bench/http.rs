//! The smallest HTTP/1.1 client that can load a server without being the bottleneck.
//!
//! In: request bytes, made once. Out: answers, counted.
//! Invariant: an answer counts when its status is 200 and exactly the expected number of bytes came; body bytes beyond the
//! first read are thrown away inside the kernel (MSG_TRUNC), so that the client's copying does not set the pace.
//! Not here: a connection that is alone ([`super::alone`]); anything a general client needs: chunked bodies, redirects,
//! TLS. Bytes are compared outside of the timed part ([`super::peers::Peer::check`]).

use std::{
    io,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::net::RecvFlags;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::TcpStream,
};

/// Heads of answers; ours have about 600 bytes.
pub(super) const HEAD_MAX: usize = 16 << 10;

/// Thrown away with one call.
pub(super) const SINK: usize = 1 << 20;

#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    head: Vec<u8>,
    /// Never touched by the kernel, so it costs only address space.
    sink: Vec<u8>,
}

/// A request for `path`, as containerd would send it.
pub fn request(address: SocketAddr, path: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: headstart-bench\r\nAccept: \
         application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
         application/vnd.docker.distribution.manifest.v2+json, */*\r\n\r\n"
    )
    .into()
}

impl Connection {
    pub async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            head: vec![0; HEAD_MAX],
            sink: vec![0; SINK],
        })
    }

    /// One request, one answer. `received` counts body bytes as they come.
    pub async fn get(&mut self, request: &[u8], size: u64, received: &AtomicU64) -> io::Result<()> {
        self.stream.write_all(request).await?;
        let mut filled = 0;
        let end = loop {
            let n = self.stream.read(&mut self.head[filled..]).await?;
            if n == 0 {
                return Err(bad("the answer's head ends early, or is too long"));
            }
            let from = filled.saturating_sub(3);
            filled += n;
            if let Some(end) = end_of_head(&self.head[..filled], from) {
                break end;
            }
        };
        let mut left = begin(&self.head[..filled], end, size, received)?;
        while left > 0 {
            let n = self.discard(left).await?;
            received.fetch_add(n, Ordering::Relaxed);
            left -= n;
        }
        Ok(())
    }

    async fn discard(&mut self, left: u64) -> io::Result<u64> {
        let len = usize::try_from(left).unwrap_or(SINK).min(SINK);
        let (stream, sink) = (&self.stream, &mut self.sink[..len]);
        let n = stream
            .async_io(Interest::READABLE, || {
                Ok(rustix::net::recv(stream, &mut *sink, RecvFlags::TRUNC)?.1)
            })
            .await?;
        match n {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            n => Ok(n as u64),
        }
    }
}

/// Where the body begins, if the head ends behind `from`.
pub(super) fn end_of_head(filled: &[u8], from: usize) -> Option<usize> {
    let at = filled[from..].windows(4).position(|w| w == b"\r\n\r\n")?;
    Some(from + at + 4)
}

/// Looks at the head, which ends at `end`, and counts what came of the body with it. What is still to come.
pub(super) fn begin(filled: &[u8], end: usize, size: u64, received: &AtomicU64) -> io::Result<u64> {
    let length = content_length(&filled[..end])?;
    let begun = (filled.len() - end) as u64;
    if length != size || begun > length {
        return Err(bad("the answer has another length"));
    }
    received.fetch_add(begun, Ordering::Relaxed);
    Ok(length - begun)
}

/// Of a 200 only.
fn content_length(head: &[u8]) -> io::Result<u64> {
    if head.get(9..12) != Some(b"200") {
        let line = head.split(|&b| b == b'\r').next().unwrap_or_default();
        return Err(bad(format!("the answer is {:?}", String::from_utf8_lossy(line))));
    }
    let value = head.split(|&b| b == b'\n').find_map(|line| {
        let colon = line.iter().position(|&b| b == b':')?;
        let name = &line[..colon];
        name.eq_ignore_ascii_case(b"content-length")
            .then(|| std::str::from_utf8(&line[colon + 1..]).ok()?.trim().parse().ok())
            .flatten()
    });
    value.ok_or_else(|| bad("the answer has no Content-Length"))
}

pub(super) fn bad(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_200_is_found_whatever_the_case() {
        let head = b"HTTP/1.1 200 OK\r\nA: b\r\ncontent-LENGTH: 17\r\n\r\n";
        assert_eq!(content_length(head).unwrap(), 17);
        assert!(content_length(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n").is_err());
        assert!(content_length(b"HTTP/1.1 503 No\r\nContent-Length: 17\r\n\r\n").is_err());
        assert!(content_length(b"HTTP").is_err());
    }
}
