//! Connections: accept, bound, drain.
//!
//! In: a listener and the way in. Out: nothing, when told to stop and every answer is out or out of time.
//! Invariant: the number of connections (of all clients and of one), the size and time of request heads, the time an
//! answer may stand still and the time a connection may be idle are bounded.
//! Not here: routes, and when a peer has had its time ([`super::connection`]).

use std::{
    convert::Infallible,
    net::SocketAddr,
    os::fd::{AsRawFd as _, BorrowedFd, RawFd},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::Either;
use http::{Request, Version};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    beside::Beside,
    clients::{Clients, Guest},
    connection::{Connection, Times, Verdict},
    front::Front,
    socket,
    tls::Transport,
};
use crate::{
    config::HttpConfig,
    metrics::{
        Metrics,
        label::{cut, shed},
        names::{Count, Level},
    },
};

/// An idle HTTP/2 peer is asked for a sign of life this often.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// Streams that an HTTP/2 peer has reset and we have not seen to the end yet; more and it is told to be calm and cut off
/// (rapid reset, CVE-2023-44487). A client that goes away in the middle of an image resets a handful.
const RESET_STREAMS_MAX: usize = 20;

/// Streams reset by us for a peer's errors, over the life of a connection; more and the connection ends.
const LOCAL_RESETS_MAX: usize = 128;

/// Body bytes of one HTTP/2 answer that wait for the peer's window: two pieces as they are read.
const SEND_BUFFER: usize = 128 << 10;

/// What an HTTP/2 peer may send unasked: lists of chunks, of half a MiB.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// Pause after a failed accept: it fails for want of file descriptors, and trying at once would only burn CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What every connection needs.
struct Server {
    builder: auto::Builder<TokioExecutor>,
    transport: Transport,
    front: Front,
    metrics: Metrics,
    times: Times,
    /// No new requests.
    stop: CancellationToken,
    /// No more time.
    cut: CancellationToken,
}

/// Serves until `stop`, then drains.
pub async fn serve(
    listener: TcpListener,
    transport: Transport,
    front: Front,
    config: &HttpConfig,
    metrics: &Metrics,
    stop: CancellationToken,
) {
    let server = Arc::new(Server {
        builder: builder(config),
        transport,
        front,
        metrics: metrics.clone(),
        times: Times::new(config),
        stop: stop.clone(),
        cut: CancellationToken::new(),
    });
    let connections = Arc::new(Semaphore::new(config.connections_max));
    let clients = Clients::new(config);
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = accept(&listener, &connections) => accepted,
        };
        let Some((stream, address, permit)) = accepted else {
            continue;
        };
        let Some(guest) = clients.welcome(address.ip()) else {
            metrics.add(Count::Shed, 1, &[shed::CLIENT_CONNECTIONS]);
            tracing::debug!(%address, "a client has too many connections");
            continue;
        };
        let server = server.clone();
        tasks.spawn(async move {
            let _permit = permit;
            server.attend(stream, address, guest).await;
        });
    }
    drop(listener);
    tasks.close();
    let time_max = Duration::from_millis(config.drain_timeout_ms);
    if tokio::time::timeout(time_max, tasks.wait()).await.is_err() {
        let left = tasks.len();
        tracing::warn!(
            connections = left,
            "some answers were not out when the time to stop was up"
        );
        server.cut.cancel();
        tasks.wait().await;
    }
}

impl Server {
    /// One connection, from its handshake to its end.
    async fn attend(&self, stream: TcpStream, address: SocketAddr, guest: Guest) {
        let _held = self.metrics.hold(Level::Connections, &[]);
        // Answers are written in large pieces; waiting to fill a packet only delays their ends.
        let _ = stream.set_nodelay(true);
        let socket = stream.as_raw_fd();
        let secured = tokio::select! {
            biased;
            secured = self.transport.secure(stream, address, guest.key()) => secured,
            // Nobody waits for an answer yet.
            () = self.stop.cancelled() => return,
        };
        let (stream, peer) = match secured {
            Ok(secured) => secured,
            Err(error) => return tracing::debug!(%error, %address, "handshake failed"),
        };
        let connection = Connection::new(self.times, Instant::now());
        let windows = stream.windows().cloned();
        let service = hyper::service::service_fn(|mut request: Request<Incoming>| {
            let extensions = request.extensions_mut();
            extensions.insert(peer.clone());
            extensions.insert(connection.clone());
            // HTTP/2 cuts bodies into frames and may copy them.
            if let Some(windows) = windows.as_ref().filter(|_| request.version() <= Version::HTTP_11) {
                request.extensions_mut().insert(windows.clone());
            }
            let front = self.front.clone();
            async move { Ok::<_, Infallible>(front.answer(request).await) }
        });
        let mut served = pin!(self.builder.serve_connection(TokioIo::new(stream), service));
        let mut told = false;
        let mut ticks = tokio::time::interval(self.times.tick());
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let was_told = told;
            let seldom = pin!(async {
                tokio::select! {
                    biased;
                    () = self.stop.cancelled(), if !was_told => Seldom::Stop,
                    () = self.cut.cancelled() => Seldom::Cut,
                    _ = ticks.tick() => Seldom::Tick,
                }
            });
            match Beside::new(served.as_mut(), seldom).await {
                Either::Left(ended) => {
                    if let Err(error) = ended {
                        tracing::debug!(error, "connection ended");
                    }
                    return;
                }
                Either::Right(Seldom::Stop) => {
                    told = true;
                    served.as_mut().graceful_shutdown();
                }
                Either::Right(Seldom::Cut) => return self.metrics.add(Count::Cut, 1, &[cut::DRAIN]),
                Either::Right(Seldom::Tick) => {
                    match connection.look(Instant::now(), self.times.tick(), taken(socket)) {
                        Verdict::Fine => {}
                        Verdict::Idle => {
                            self.metrics.add(Count::Cut, 1, &[cut::IDLE]);
                            served.as_mut().graceful_shutdown();
                        }
                        Verdict::Cut(why) => {
                            tracing::debug!(why, %address, "a client had its time");
                            return self.metrics.add(Count::Cut, 1, &[why]);
                        }
                    }
                }
            }
        }
    }
}

/// What happens to a connection beside its requests.
enum Seldom {
    Stop,
    Cut,
    Tick,
}

/// Asked only while the connection lives that owns the socket.
fn taken(socket: RawFd) -> Option<socket::Taken> {
    // SAFETY: the descriptor is open, see above, and is only used for this one call.
    socket::taken(unsafe { BorrowedFd::borrow_raw(socket) })
}

type Permit = tokio::sync::OwnedSemaphorePermit;

async fn accept(listener: &TcpListener, connections: &Arc<Semaphore>) -> Option<(TcpStream, SocketAddr, Permit)> {
    // A permit first: connections that we cannot serve stay in the kernel's backlog.
    let permit = connections.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, address)) => Some((stream, address, permit)),
        Err(error) => {
            tracing::warn!(%error, "accept failed");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

fn builder(config: &HttpConfig) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // Heads and idle connections have their times in `connection.rs`; hyper's own cannot tell one from the other.
        .header_read_timeout(None)
        .max_headers(config.headers_max)
        .max_buf_size(config.header_size_max as usize)
        .half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .max_concurrent_streams(config.streams_max)
        .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
        .max_local_error_reset_streams(LOCAL_RESETS_MAX)
        .max_send_buf_size(SEND_BUFFER)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(config.header_size_max);
    builder
}
