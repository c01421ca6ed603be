//! A TCP relay on loopback that counts what passes: wire truth for "bytes from the proxy".
//!
//! In: a target address and the shape of the link. Out: an address to connect to, and counters of both directions.
//! Invariant: bytes are passed unchanged and in order, and are counted before they are passed on, so that a reader who
//! has received N bytes finds at least N counted.
//! Not here: HTTP. Connection set-up and TCP's own headers are not counted.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinSet,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// One read of one direction: what a loopback socket hands over at once.
const BUFFER_BYTES: usize = 64 << 10;

/// What kind of link to pretend to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkShape {
    /// Waited before each connection is made, once: what a handshake costs.
    pub connect_delay: Duration,
    /// At most this many bytes a second from the target to a client, over each connection; `None` is unlimited.
    pub down_bytes_per_second_max: Option<u64>,
}

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

/// A running relay. Dropping it closes the listener and every connection.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    counters: Arc<Counters>,
    _stop: DropGuard,
}

impl Relay {
    /// Listens on a free loopback port and relays every connection to `target`.
    pub async fn start(target: SocketAddr, shape: LinkShape) -> io::Result<Relay> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let counters = Arc::new(Counters::default());
        let stop = CancellationToken::new();
        let work = accept(listener, target, shape, counters.clone());
        let stopped = stop.clone();
        tokio::spawn(async move { stopped.run_until_cancelled(work).await });
        Ok(Relay {
            address,
            counters,
            _stop: stop.drop_guard(),
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

    pub fn traffic(&self) -> Traffic {
        Traffic {
            connections: self.counters.connections.load(Ordering::Relaxed),
            up_bytes: self.counters.up_bytes.load(Ordering::Relaxed),
            down_bytes: self.counters.down_bytes.load(Ordering::Relaxed),
        }
    }
}

/// Accepts until dropped; the connections live in the set, so that they end with it.
async fn accept(listener: TcpListener, target: SocketAddr, shape: LinkShape, counters: Arc<Counters>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    connections.spawn(connection(client, target, shape, counters.clone()));
                }
                // Out of descriptors, or the client went away between SYN and accept: neither ends the relay.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection, both ways, until both directions have ended or either failed.
async fn connection(client: TcpStream, target: SocketAddr, shape: LinkShape, counters: Arc<Counters>) {
    counters.connections.fetch_add(1, Ordering::Relaxed);
    tokio::time::sleep(shape.connect_delay).await;
    // A target that is down looks to the client as a connection that closes at once.
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    // An error in one direction drops both, so that neither side waits for a peer that is gone.
    let _ = tokio::try_join!(
        pass(client_read, server_write, &counters.up_bytes, None),
        pass(
            server_read,
            client_write,
            &counters.down_bytes,
            shape.down_bytes_per_second_max
        ),
    );
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, count: &AtomicU64, rate: Option<u64>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return to.shutdown().await;
        }
        count.fetch_add(n as u64, Ordering::Relaxed);
        to.write_all(&buffer[..n]).await?;
        if let Some(rate) = rate {
            tokio::time::sleep(Duration::from_secs_f64(n as f64 / rate.max(1) as f64)).await;
        }
    }
}

#[cfg(test)]
mod tests {
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
}
