//! What this node tells about itself: status for people, metrics for Prometheus.
//!
//! In: the running snapshotter. Out: answers on a socket of root's, and on a second address if one is configured.
//! Invariant: never in the way: nothing here is asked by containerd or a container, every connection has a time and a
//! size, and an address that cannot be had costs a warning, not the start.
//! Not here: what the numbers mean ([`crate::metrics`]), and showing them to people ([`crate::cli`]).

pub mod calls;
pub mod http;
pub mod listen;
pub mod pulls;
pub mod starts;
pub mod status;

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::metrics::{self, Seen};
use crate::snapshotter::engine::Engine;
use crate::snapshotter::lazy::LazyLayers;
use listen::Listener;

/// What is asked when somebody asks.
#[derive(Debug)]
struct Observer<B: LazyLayers> {
    engine: Arc<Engine<B>>,
    config: Config,
    started: Instant,
    started_at: SystemTime,
    starts: u64,
}

/// Serves status and metrics until `stop`, in the background.
pub fn start<B: LazyLayers>(config: &Config, engine: Arc<Engine<B>>, stop: CancellationToken) {
    let observer = Arc::new(Observer {
        engine,
        config: config.clone(),
        started: Instant::now(),
        started_at: SystemTime::now(),
        starts: starts::count(&config.root_dir),
    });
    let (admin, asked) = (config.admin_socket(), observer.clone());
    serve(&format!("unix:{}", admin.display()), stop.clone(), move |path| {
        asked.answer(path, true)
    });
    if !config.metrics.listen.is_empty() {
        serve(&config.metrics.listen, stop, move |path| observer.answer(path, false));
    }
}

fn serve(address: &str, stop: CancellationToken, answer: impl Fn(&str) -> Option<http::Body> + Send + Sync + 'static) {
    match Listener::bind(address) {
        Ok(listener) => drop(tokio::spawn(http::serve(listener, stop, Arc::new(answer)))),
        Err(error) => tracing::warn!(address, %error, "status and metrics are not served here"),
    }
}

impl<B: LazyLayers> Observer<B> {
    /// Blocks for as long as looking at the disk takes. `admin`: whoever asks is root, and may see names.
    fn answer(&self, path: &str, admin: bool) -> Option<http::Body> {
        match path {
            "/metrics" => Some(http::Body::text(metrics::text(&self.seen()))),
            "/status" if admin => Some(http::Body::json(&self.status())),
            _ => None,
        }
    }

    fn seen(&self) -> Seen {
        Seen {
            lazy: self.engine.node_status(),
            snapshots: self.engine.snapshots(),
            pulls: self.engine.pulls().totals(),
            calls: self.engine.calls().clone(),
            process: metrics::process::Process::now(),
            starts: self.starts,
        }
    }

    fn status(&self) -> status::Status {
        let lazy = self.engine.node_status();
        let snapshots = self.engine.snapshots();
        status::Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            started_at: self.started_at.into(),
            up_secs: self.started.elapsed().as_secs(),
            starts: self.starts,
            root_dir: self.config.root_dir.clone(),
            socket: self.config.socket.clone(),
            servers: self.config.servers.clone(),
            config_refused: self.config.refused.clone(),
            obstacle: self.engine.obstacle().map(|reason| reason.as_str().into()),
            presentation: lazy.as_ref().map(|l| l.presentation.into()),
            calls: self.engine.calls().total(),
            resident_bytes: metrics::process::Process::now().resident_bytes,
            snapshots: status::Snapshots::of(&snapshots),
            images: status::images(&snapshots, lazy.as_ref()),
            waiting: self.engine.waits(),
            pulls: self.engine.pulls().latest(),
            prefetches: lazy.map(|l| l.prefetches).unwrap_or_default(),
        }
    }
}
