//! The origin's sockets: its own thread, its own runtime, two ports.
//!
//! In: "stop" and "restart". Out: connections served by [`super::answer`].
//! Invariant: the ports stay the origin's while it is stopped (bound: connections are refused), so a
//! restart is on the same port. The thread ends when the [`Control`] is dropped.
//! Not here: anything about registries.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as std_mpsc;
use std::task::{Context, Poll};

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answer::answer;
use super::calls::Listener;
use super::state::State;

pub(super) enum Command {
    /// Refuse connections and cut those there are.
    Stop(std_mpsc::Sender<io::Result<()>>),
    Restart(std_mpsc::Sender<io::Result<()>>),
}

/// Dropping it ends the thread.
pub(super) type Control = mpsc::UnboundedSender<Command>;

/// Two ports: registry and CDN. Each is held by a socket that is bound and never listens, because nothing else on the
/// machine is given a port that somebody has bound; between a listener and the next one there is no gap for others.
pub(super) struct Ports {
    registry: SocketAddr,
    cdn: SocketAddr,
    _held: (TcpSocket, TcpSocket),
}

impl Ports {
    pub(super) fn reserve() -> io::Result<Self> {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let held = (bound(any)?, bound(any)?);
        Ok(Self {
            registry: held.0.local_addr()?,
            cdn: held.1.local_addr()?,
            _held: held,
        })
    }

    pub(super) fn registry(&self) -> SocketAddr {
        self.registry
    }

    pub(super) fn cdn(&self) -> SocketAddr {
        self.cdn
    }

    fn listen(&self) -> io::Result<(TcpListener, TcpListener)> {
        Ok((bound(self.registry)?.listen(1024)?, bound(self.cdn)?.listen(1024)?))
    }
}

fn bound(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Serves until the control is dropped. Reports once whether it listens.
pub(super) fn run(
    state: Arc<State>,
    ports: Ports,
    mut commands: mpsc::UnboundedReceiver<Command>,
    up: &std_mpsc::Sender<io::Result<()>>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            let _ = up.send(Err(e));
            return;
        }
    };
    runtime.block_on(async {
        let mut serving = match ports.listen() {
            Ok(listeners) => {
                let _ = up.send(Ok(()));
                Some(serve(&state, listeners))
            }
            Err(e) => {
                let _ = up.send(Err(e));
                return;
            }
        };
        while let Some(command) = commands.recv().await {
            match command {
                Command::Stop(done) => {
                    if let Some(serving) = serving.take() {
                        serving.shutdown().await;
                    }
                    let _ = done.send(Ok(()));
                }
                Command::Restart(done) if serving.is_none() => {
                    let _ = done.send(ports.listen().map(|l| serving = Some(serve(&state, l))));
                }
                Command::Restart(done) => {
                    let _ = done.send(Ok(()));
                }
            }
        }
    });
}

/// The listeners and their connections.
struct Serving {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Serving {
    /// Returns when every socket is closed.
    async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn serve(state: &Arc<State>, (registry, cdn): (TcpListener, TcpListener)) -> Serving {
    let serving = Serving {
        stop: CancellationToken::new(),
        tasks: TaskTracker::new(),
    };
    for (socket, listener) in [(registry, Listener::Registry), (cdn, Listener::Cdn)] {
        let (state, stop, tasks) = (state.clone(), serving.stop.clone(), serving.tasks.clone());
        serving.tasks.spawn(async move {
            while let Some(accepted) = stop.run_until_cancelled(socket.accept()).await {
                if let Ok((stream, _)) = accepted {
                    let (state, stop) = (state.clone(), stop.clone());
                    tasks.spawn(async move { stop.run_until_cancelled(connection(state, stream, listener)).await });
                }
            }
        });
    }
    serving
}

async fn connection(state: Arc<State>, stream: TcpStream, listener: Listener) {
    let _ = stream.set_nodelay(true);
    let link = Arc::new(Link::default());
    let io = TokioIo::new(Linked {
        stream,
        link: link.clone(),
    });
    let service = tower::service_fn(move |request: http::Request<_>| {
        answer(
            state.clone(),
            listener,
            request.map(axum::body::Body::new),
            link.clone(),
        )
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new());
    // An error here is a client that went away, or a fault at work.
    let _ = server.serve_connection(io, TowerToHyperService::new(service)).await;
}

/// What a body can do to the connection it is sent on.
#[derive(Debug, Default)]
pub(super) struct Link {
    reset: AtomicBool,
    flushes: watch::Sender<u64>,
}

impl Link {
    /// Ends the connection in a TCP reset when it is dropped.
    pub(super) fn reset_at_end(&self) {
        self.reset.store(true, Ordering::SeqCst);
    }

    /// Waits until the kernel has everything that was handed over so far: hyper flushes when a body has nothing to say,
    /// and drops what it still holds when a body fails.
    pub(super) async fn flushed(&self) {
        // The sender lives in self, so waiting cannot fail.
        let _ = self.flushes.subscribe().changed().await;
    }
}

/// A stream with its [`Link`].
struct Linked {
    stream: TcpStream,
    link: Arc<Link>,
}

impl Drop for Linked {
    fn drop(&mut self) {
        if self.link.reset.load(Ordering::SeqCst) {
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Linked {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Linked {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if flushed.is_ready() {
            self.link.flushes.send_modify(|n| *n += 1);
        }
        flushed
    }

    /// A shutdown would send a FIN first.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.link.reset.load(Ordering::SeqCst) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
