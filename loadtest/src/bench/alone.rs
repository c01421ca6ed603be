//! A connection that is alone: a thread that waits in its socket.
//!
//! In: request bytes, made once. Out: answers, counted, as [`super::http`] does.
//! Invariant: with one connection nothing hides what the client itself costs between two requests, so it is as little
//! as can be: one call to send, one that waits for the answer and has it. A runtime and its poll would be a tenth of a
//! fast server's round trip.
//! Not here: several connections, which a thread each would only make wait for each other ([`super::http`]).

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::net::RecvFlags;

use super::http::{HEAD_MAX, SINK, bad, begin, end_of_head};

#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    head: Vec<u8>,
    /// Never touched by the kernel, so it costs only address space.
    sink: Vec<u8>,
}

/// Ends what a connection waits for, from another thread.
#[derive(Debug)]
pub struct End(TcpStream);

impl Connection {
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            head: vec![0; HEAD_MAX],
            sink: vec![0; SINK],
        })
    }

    pub fn end(&self) -> io::Result<End> {
        Ok(End(self.stream.try_clone()?))
    }

    /// One request, one answer. `received` counts body bytes as they come.
    pub fn get(&mut self, request: &[u8], size: u64, received: &AtomicU64) -> io::Result<()> {
        self.stream.write_all(request)?;
        let mut filled = 0;
        let end = loop {
            let n = self.stream.read(&mut self.head[filled..])?;
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
            let len = usize::try_from(left).unwrap_or(SINK).min(SINK);
            let n = rustix::net::recv(&self.stream, &mut self.sink[..len], RecvFlags::TRUNC)?.1;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            received.fetch_add(n as u64, Ordering::Relaxed);
            left -= n as u64;
        }
        Ok(())
    }
}

impl End {
    pub fn now(&self) {
        // Closed already is as good.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Answers each request with the next of `answers`.
    fn server(answers: Vec<Vec<u8>>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for answer in answers {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    request.push(byte[0]);
                }
                for half in answer.chunks(answer.len() / 2 + 1) {
                    stream.write_all(half).unwrap();
                }
            }
            // Says no more, and stays.
            let _ = stream.read(&mut [0]);
        });
        address
    }

    #[test]
    fn answers_are_counted_and_others_are_errors() {
        let body = vec![7; 3 << 20];
        let whole = [&b"HTTP/1.1 200 OK\r\ncontent-length: 3145728\r\n\r\n"[..], &body].concat();
        let other = b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n".to_vec();
        let address = server(vec![whole.clone(), whole, other]);
        let mut connection = Connection::open(address).unwrap();
        let request = super::super::http::request(address, "/x");
        let received = AtomicU64::new(0);
        for _ in 0..2 {
            connection.get(&request, body.len() as u64, &received).unwrap();
        }
        assert_eq!(received.load(Ordering::Relaxed), 2 * body.len() as u64);
        assert!(connection.get(&request, body.len() as u64, &received).is_err());
    }

    #[test]
    fn a_wait_can_be_ended() {
        let address = server(vec![]);
        let mut connection = Connection::open(address).unwrap();
        let end = connection.end().unwrap();
        let waits = std::thread::spawn(move || connection.get(b"GET", 1, &AtomicU64::new(0)));
        end.now();
        assert!(waits.join().unwrap().is_err());
    }
}
