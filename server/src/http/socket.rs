//! What the kernel knows of a connection: how much the peer has taken and sent.
//!
//! In: a TCP socket. Out: [`Taken`].
//! Invariant: reads only. Buffers of the kernel hold megabytes, so what was written says little about what a slow peer
//! has taken; what it has acknowledged does.
//! Not here: what follows from it ([`super::connection`]).

use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Offsets in `struct tcp_info` of linux/tcp.h, which only ever grows at its end; both fields are there since Linux 4.1.
const BYTES_ACKED: usize = 120;
const BYTES_RECEIVED: usize = 128;
const TCP_INFO_LEN: usize = 136;

/// Bytes over the life of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Sent by us and acknowledged by the peer.
    pub acked: u64,
    pub received: u64,
}

/// `None` when the kernel does not say.
pub fn taken(socket: BorrowedFd<'_>) -> Option<Taken> {
    let mut info = [0_u8; TCP_INFO_LEN];
    let mut len = TCP_INFO_LEN as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `info`, which is that long; the descriptor is borrowed, so open.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &mut len,
        )
    };
    if result != 0 || (len as usize) < TCP_INFO_LEN {
        return None;
    }
    let number = |at: usize| {
        let bytes = info[at..at + 8].try_into().ok()?;
        Some(u64::from_ne_bytes(bytes))
    };
    Some(Taken {
        acked: number(BYTES_ACKED)?,
        received: number(BYTES_RECEIVED)?,
    })
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
        os::fd::AsFd as _,
        time::Duration,
    };

    use super::*;

    #[test]
    fn bytes_of_both_directions_are_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        let before = taken(near.as_fd()).unwrap();
        near.write_all(&[0; 3000]).unwrap();
        far.read_exact(&mut [0; 3000]).unwrap();
        far.write_all(&[0; 500]).unwrap();
        near.read_exact(&mut [0; 500]).unwrap();
        for _ in 0..500 {
            let after = taken(near.as_fd()).unwrap();
            if after.acked - before.acked == 3000 && after.received - before.received == 500 {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{:?}", taken(near.as_fd()));
    }
}
