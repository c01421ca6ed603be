//! One direction of one relayed connection.
//!
//! In: a socket to read, a socket to write, a counter, a wire. Out: the same bytes at the other end, when the wire says.
//! Invariant: unchanged and in order; counted before they are passed on; at most [`WINDOW_PIECES`] pieces are held.
//! Blocking threads and their sleeps, because an asynchronous runtime's timers are too coarse for a quarter of a millisecond.
//! Not here: who ends a connection whose peer hangs (the relay's drop does).

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Instant,
};

use super::shape::{Direction, Wire};

/// One read: what a loopback socket hands over at once.
const BUFFER_BYTES: usize = 64 << 10;
/// Pieces under way on one connection: 1 MiB, as much as the WAN profile carries in one round trip.
const WINDOW_PIECES: usize = 16;

/// Passes until either side ends.
pub fn pass(
    mut from: &TcpStream,
    mut to: &TcpStream,
    count: &AtomicU64,
    wire: &Wire,
    direction: Direction,
    open_at: Instant,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    if wire.shape().is_transparent() {
        loop {
            let n = read(&mut from, &mut buffer)?;
            if n == 0 {
                return to.shutdown(Shutdown::Write);
            }
            count.fetch_add(n as u64, Ordering::Relaxed);
            to.write_all(&buffer[..n])?;
        }
    }
    let (sender, pieces) = mpsc::sync_channel::<(Instant, Box<[u8]>)>(WINDOW_PIECES);
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || -> io::Result<()> {
            while let Ok((arrives, piece)) = pieces.recv() {
                std::thread::sleep(arrives.saturating_duration_since(Instant::now()));
                to.write_all(&piece)?;
            }
            to.shutdown(Shutdown::Write)
        });
        let outcome = loop {
            let n = match read(&mut from, &mut buffer) {
                Ok(0) => break Ok(()),
                Ok(n) => n,
                Err(e) => break Err(e),
            };
            count.fetch_add(n as u64, Ordering::Relaxed);
            let arrives = wire.send(direction, n, open_at);
            // The writer is gone: its error says why.
            if sender.send((arrives, buffer[..n].into())).is_err() {
                break Ok(());
            }
        };
        drop(sender);
        let written = writer.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
        outcome.and(written)
    })
}

fn read(from: &mut &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
