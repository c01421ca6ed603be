//! Connections: accept, bound, drain.
//!
//! In: a listener and a router. Out: nothing, when told to stop and every answer is out or out of time.
//! Invariant: the number of connections, the size and time of request heads, and the time an answer may stand still are
//! bounded.
//! Not here: routes.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use http::{Request, Version};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::{stall::WriteStall, tls::Transport};
use crate::config::HttpConfig;

/// Header lines of a request; container clients send about ten.
const HEADERS_MAX: usize = 64;

/// Bytes of a request head, and of hyper's read buffer.
const HEAD_SIZE_MAX: usize = 32 << 10;

/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;

/// An idle HTTP/2 peer is asked for a sign of life this often.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// Pause after a failed accept: it fails for want of file descriptors, and trying at once would only burn CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop`, then drains.
pub async fn serve(
    listener: TcpListener,
    transport: Transport,
    router: Router,
    config: &HttpConfig,
    stop: CancellationToken,
) {
    let builder = Arc::new(builder(config));
    let connections = Arc::new(Semaphore::new(config.connections_max));
    let draining = GracefulShutdown::new();
    let write_timeout = Duration::from_millis(config.write_timeout_ms);
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = accept(&listener, &connections) => accepted,
        };
        let Some((stream, address, permit)) = accepted else {
            continue;
        };
        // Answers are written in large pieces; waiting to fill a packet only delays their ends.
        let _ = stream.set_nodelay(true);
        let (transport, router, builder) = (transport.clone(), router.clone(), builder.clone());
        let (watcher, stopping) = (draining.watcher(), stop.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let secured = tokio::select! {
                biased;
                secured = transport.secure(stream, address) => secured,
                // Nobody waits for an answer yet.
                () = stopping.cancelled() => return,
            };
            let (stream, peer) = match secured {
                Ok(secured) => secured,
                Err(error) => return tracing::debug!(%error, %address, "handshake failed"),
            };
            let windows = stream.windows().cloned();
            let service = router.map_request(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(peer.clone());
                // HTTP/2 cuts bodies into frames and may copy them.
                if let Some(windows) = windows.as_ref().filter(|_| request.version() <= Version::HTTP_11) {
                    request.extensions_mut().insert(windows.clone());
                }
                request
            });
            let service = TowerToHyperService::new(service);
            let io = TokioIo::new(WriteStall::new(stream, write_timeout));
            let connection = builder.serve_connection(io, service).into_owned();
            if let Err(error) = watcher.watch(connection).await {
                tracing::debug!(error, "connection ended");
            }
        });
    }
    drop(listener);
    let left = draining.count();
    if tokio::time::timeout(Duration::from_millis(config.drain_timeout_ms), draining.shutdown())
        .await
        .is_err()
    {
        tracing::warn!(
            connections = left,
            "some answers were not out when the time to stop was up"
        );
    }
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
        .header_read_timeout(Duration::from_millis(config.header_timeout_ms))
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_SIZE_MAX)
        .half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_SIZE_MAX as u32);
    builder
}
