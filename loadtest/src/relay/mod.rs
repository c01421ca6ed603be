//! A TCP relay on loopback that counts what passes, and delays it as a link would: wire truth for "bytes from the proxy".
//!
//! In: a target address, and the link between. Out: an address to connect to, and counters of both directions.
//! Invariant: bytes are passed unchanged and in order, and are counted before they are passed on, so that a reader who
//! has received N bytes finds at least N counted.
//! Not here: HTTP. Connection set-up and TCP's own headers are not counted.

mod pump;
pub mod shape;

use std::{
    collections::HashMap,
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use shape::Direction;
pub use shape::{LinkShape, Wire};

/// What has passed since the relay was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Traffic {
    pub connections: u64,
    /// From clients to the target.
    pub up_bytes: u64,
    /// From the target to clients.
    pub down_bytes: u64,
}

impl Traffic {
    /// What passed since `earlier`, a reading of the same relay.
    pub fn since(&self, earlier: &Traffic) -> Traffic {
        Traffic {
            connections: self.connections.saturating_sub(earlier.connections),
            up_bytes: self.up_bytes.saturating_sub(earlier.up_bytes),
            down_bytes: self.down_bytes.saturating_sub(earlier.down_bytes),
        }
    }
}

#[derive(Debug, Default)]
struct Counters {
    connections: AtomicU64,
    up_bytes: AtomicU64,
    down_bytes: AtomicU64,
}

/// Reads a relay's counters for as long as anybody likes, without keeping the relay.
#[derive(Clone, Debug)]
pub struct Meter(Arc<Counters>);

impl Meter {
    pub fn traffic(&self) -> Traffic {
        Traffic {
            connections: self.0.connections.load(Ordering::Relaxed),
            up_bytes: self.0.up_bytes.load(Ordering::Relaxed),
            down_bytes: self.0.down_bytes.load(Ordering::Relaxed),
        }
    }
}

/// Open connections, by number, so that they can be ended: the client's socket and the target's.
type Open = Mutex<HashMap<u64, [Arc<TcpStream>; 2]>>;

#[derive(Debug)]
struct Inner {
    target: SocketAddr,
    wire: Wire,
    counters: Arc<Counters>,
    open: Open,
    is_stopping: AtomicBool,
    is_cut: AtomicBool,
}

impl Inner {
    fn end_all(&self) {
        let open = std::mem::take(&mut *self.open.lock().unwrap_or_else(PoisonError::into_inner));
        for socket in open.into_values().flatten() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// A running relay. Dropping it closes the listener and every connection.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    listener: TcpListener,
    inner: Arc<Inner>,
    accepting: Option<JoinHandle<()>>,
}

impl Relay {
    /// A relay on a link of its own.
    pub async fn start(target: SocketAddr, shape: LinkShape) -> io::Result<Relay> {
        Relay::on(&Wire::new(shape), target)
    }

    /// Listens on a free loopback port and relays every connection to `target`, over `wire`.
    pub fn on(wire: &Wire, target: SocketAddr) -> io::Result<Relay> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let inner = Arc::new(Inner {
            target,
            wire: wire.clone(),
            counters: Arc::default(),
            open: Open::default(),
            is_stopping: AtomicBool::new(false),
            is_cut: AtomicBool::new(false),
        });
        let (ours, socket) = (inner.clone(), listener.try_clone()?);
        let accepting = thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || accept(&socket, &ours))?;
        Ok(Relay {
            address,
            listener,
            inner,
            accepting: Some(accepting),
        })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://` and the address.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on, or no more, the target looks as if it had been killed: what is open ends, and what is new closes at once.
    pub fn cut(&self, is_cut: bool) {
        self.inner.is_cut.store(is_cut, Ordering::SeqCst);
        if is_cut {
            self.inner.end_all();
        }
    }

    pub fn traffic(&self) -> Traffic {
        self.meter().traffic()
    }

    pub fn meter(&self) -> Meter {
        Meter(self.inner.counters.clone())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.inner.is_stopping.store(true, Ordering::SeqCst);
        // On Linux this wakes whoever waits in accept(2).
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        self.inner.end_all();
    }
}

fn accept(listener: &TcpListener, inner: &Arc<Inner>) {
    for number in 0.. {
        let accepted = listener.accept();
        if inner.is_stopping.load(Ordering::SeqCst) {
            return;
        }
        let started = accepted.and_then(|(client, _)| {
            let inner = inner.clone();
            thread::Builder::new()
                .name("relayed".to_owned())
                .spawn(move || connection(client, &inner, number))
        });
        // Out of descriptors or threads, or the client went away between SYN and accept: neither ends the relay.
        if started.is_err() {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// One connection, both ways, until both directions have ended or either failed.
fn connection(client: TcpStream, inner: &Inner, number: u64) {
    inner.counters.connections.fetch_add(1, Ordering::Relaxed);
    let open_at = Instant::now() + inner.wire.shape().rtt;
    // A target that is down looks to the client as a connection that closes at once.
    if inner.is_cut.load(Ordering::SeqCst) {
        return;
    }
    let Ok(server) = TcpStream::connect(inner.target) else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client, server) = (Arc::new(client), Arc::new(server));
    let all = || inner.open.lock().unwrap_or_else(PoisonError::into_inner);
    all().insert(number, [client.clone(), server.clone()]);
    // The relay may have been dropped, or cut, before it could know this connection.
    if inner.is_stopping.load(Ordering::SeqCst) || inner.is_cut.load(Ordering::SeqCst) {
        all().remove(&number);
        return;
    }
    let end = || {
        for socket in all().get(&number).into_iter().flatten() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    };
    let one_way = |from: &TcpStream, to: &TcpStream, count, direction| {
        // An error in one direction ends both, so that neither side waits for a peer that is gone.
        if pump::pass(from, to, count, &inner.wire, direction, open_at).is_err() {
            end();
        }
    };
    let counters = &inner.counters;
    thread::scope(|scope| {
        scope.spawn(|| one_way(&client, &server, &counters.up_bytes, Direction::Up));
        one_way(&server, &client, &counters.down_bytes, Direction::Down);
    });
    all().remove(&number);
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    async fn echo_server() -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = socket.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn passes_bytes_unchanged_and_counts_both_ways() {
        let relay = Relay::start(echo_server().await, LinkShape::default()).await.unwrap();
        let sent: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
        let mut socket = TcpStream::connect(relay.address()).await.unwrap();
        let (mut read, mut write) = socket.split();
        let mut received = Vec::new();
        let (w, r) = tokio::join!(
            async {
                write.write_all(&sent).await?;
                write.shutdown().await
            },
            read.read_to_end(&mut received)
        );
        w.unwrap();
        r.unwrap();
        assert_eq!(received, sent);
        let traffic = relay.traffic();
        assert_eq!(
            (traffic.connections, traffic.up_bytes, traffic.down_bytes),
            (1, 300_000, 300_000)
        );
    }

    #[tokio::test]
    async fn a_target_that_is_down_closes_the_connection() {
        let free = TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap();
        let relay = Relay::start(free, LinkShape::default()).await.unwrap();
        let mut socket = TcpStream::connect(relay.address()).await.unwrap();
        let mut received = Vec::new();
        let _ = socket.read_to_end(&mut received).await;
        assert!(received.is_empty());
    }

    #[tokio::test]
    async fn dropping_the_relay_ends_its_connections() {
        let relay = Relay::start(echo_server().await, LinkShape::default()).await.unwrap();
        let mut socket = TcpStream::connect(relay.address()).await.unwrap();
        socket.write_all(b"x").await.unwrap();
        assert_eq!(socket.read_u8().await.unwrap(), b'x');
        drop(relay);
        let ended = socket.read_u8().await;
        assert!(ended.is_err());
    }

    #[tokio::test]
    async fn a_cut_ends_connections_and_takes_none_until_it_is_mended() {
        let relay = Relay::start(echo_server().await, LinkShape::default()).await.unwrap();
        let connect = || TcpStream::connect(relay.address());
        let mut socket = connect().await.unwrap();
        socket.write_all(b"x").await.unwrap();
        assert_eq!(socket.read_u8().await.unwrap(), b'x');
        relay.cut(true);
        assert!(socket.read_u8().await.is_err());
        let mut other = connect().await.unwrap();
        assert!(other.read_u8().await.is_err());
        relay.cut(false);
        let mut socket = connect().await.unwrap();
        socket.write_all(b"y").await.unwrap();
        assert_eq!(socket.read_u8().await.unwrap(), b'y');
    }

    #[tokio::test]
    async fn a_link_costs_a_handshake_and_half_a_round_trip_each_way() {
        let shape = "60/8000".parse().unwrap();
        let relay = Relay::start(echo_server().await, shape).await.unwrap();
        let mut socket = TcpStream::connect(relay.address()).await.unwrap();
        let mut waits = Vec::new();
        for _ in 0..3 {
            let asked = Instant::now();
            socket.write_all(b"x").await.unwrap();
            socket.read_u8().await.unwrap();
            waits.push(asked.elapsed().as_millis());
        }
        // Lower bounds are exact; the upper one only says that it is no other order of magnitude.
        assert!(waits[0] >= 119, "{waits:?}");
        assert!(waits[1..].iter().all(|ms| (59..5_000).contains(ms)), "{waits:?}");
    }

    #[tokio::test]
    async fn connections_share_the_rate_and_bytes_stay_the_same() {
        // 8 MB at 16 MB/s, twice at once: a second.
        let relay = Relay::start(echo_server().await, "1/128".parse().unwrap())
            .await
            .unwrap();
        let address = relay.address();
        let one = |seed: u8| async move {
            let sent: Vec<u8> = (0..8_000_000_u32).map(|i| (i % 251) as u8 ^ seed).collect();
            let mut socket = TcpStream::connect(address).await.unwrap();
            let (mut read, mut write) = socket.split();
            let mut received = Vec::new();
            let (w, r) = tokio::join!(
                async {
                    write.write_all(&sent).await?;
                    write.shutdown().await
                },
                read.read_to_end(&mut received)
            );
            w.unwrap();
            r.unwrap();
            assert!(received == sent, "{} bytes came back", received.len());
        };
        let begun = Instant::now();
        tokio::join!(one(0), one(7));
        let took = begun.elapsed().as_secs_f64();
        assert!((0.99..30.0).contains(&took), "{took}");
        assert_eq!(relay.traffic().down_bytes, 16_000_000);
    }
}
