//! One cell: one server, one kind of request, a number of connections, a while.
//!
//! In: a peer and what to ask it. Out: a [`Sample`].
//! Invariant: connections are open before the clock starts; the clock and the CPU account stop before any is closed. An
//! answer that is not the expected one is an error, and never a fast answer.
//! Not here: what samples mean together ([`super::report`]).

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::{sync::Barrier, task::JoinSet};

use super::{alone, content::Asked, http, peers::Peer, usage};
use crate::playground::{PlaygroundError, Result};

/// After a cell: closed connections are taken down at the server's expense, which is not the next cell's.
const PAUSE: Duration = Duration::from_millis(60);

/// A cell without a byte and without an error is given this much longer.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Opening `connections` on a loaded machine.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);

/// Slower answers are counted as this slow.
const LATENCY_MAX_US: u64 = 120_000_000;

/// What was measured.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Sample {
    pub seconds: f64,
    /// Whole answers.
    pub requests: u64,
    /// Body bytes, also of answers that were under way at the end.
    pub bytes: u64,
    pub errors: u64,
    pub first_error: Option<String>,
    pub cpu_seconds: f64,
    /// Of whole answers, when there was one.
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub memory_bytes: u64,
}

#[derive(Debug, Default)]
struct Counters {
    requests: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    first_error: Mutex<Option<String>>,
}

impl Counters {
    fn answered(&self, begin: Instant, latencies: &Mutex<Histogram<u64>>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut latencies = latencies.lock().unwrap_or_else(PoisonError::into_inner);
        latencies.saturating_record(begin.elapsed().as_micros() as u64);
    }

    fn note(&self, error: &std::io::Error) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        let mut first = self.first_error.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| error.to_string());
    }
}

/// What asks: a task for each connection, or a thread for the only one.
#[derive(Default)]
struct Load {
    tasks: JoinSet<()>,
    lone: Option<(JoinHandle<()>, alone::End)>,
    stop: Arc<AtomicBool>,
}

impl Load {
    async fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some((thread, end)) = self.lone.take() {
            end.now();
            // It waits for nothing but its socket.
            let _ = tokio::task::spawn_blocking(|| thread.join()).await;
        }
        self.tasks.shutdown().await;
    }
}

/// The only connection.
struct Lone {
    address: SocketAddr,
    request: Arc<[u8]>,
    size: u64,
    counters: Arc<Counters>,
    latencies: Arc<Mutex<Histogram<u64>>>,
    go: Arc<Barrier>,
}

impl Lone {
    fn start(self, stop: &Arc<AtomicBool>) -> io::Result<(JoinHandle<()>, alone::End)> {
        let connection = alone::Connection::open(self.address)?;
        let (end, stop, runtime) = (connection.end()?, stop.clone(), tokio::runtime::Handle::current());
        let run = move || {
            runtime.block_on(self.go.wait());
            self.run(connection, &stop);
        };
        Ok((thread::Builder::new().spawn(run)?, end))
    }

    /// Until it is stopped, or its connection breaks: a server that breaks the only one has failed the cell.
    fn run(&self, mut connection: alone::Connection, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let begin = Instant::now();
            match connection.get(&self.request, self.size, &self.counters.bytes) {
                Ok(()) => self.counters.answered(begin, &self.latencies),
                Err(_) if stop.load(Ordering::Relaxed) => return,
                Err(error) => return self.counters.note(&error),
            }
        }
    }
}

pub async fn measure(peer: &Peer, asked: &Asked, connections: usize, length: Duration) -> Result<Sample> {
    let request: Arc<[u8]> = http::request(peer.address, &asked.path).into();
    let counters = Arc::new(Counters::default());
    let latencies = Arc::new(Mutex::new(
        Histogram::<u64>::new_with_bounds(1, LATENCY_MAX_US, 3)
            .map_err(|e| PlaygroundError::unexpected("make a histogram", e))?,
    ));
    let go = Arc::new(Barrier::new(connections + 1));
    let mut load = Load::default();
    let opened = async {
        if connections == 1 {
            let lone = Lone {
                address: peer.address,
                request: request.clone(),
                size: asked.body.len() as u64,
                counters: counters.clone(),
                latencies: latencies.clone(),
                go: go.clone(),
            };
            let started = lone.start(&load.stop);
            load.lone = Some(started.map_err(PlaygroundError::io(format!("connect to {}", peer.label)))?);
            return Ok(());
        }
        for _ in 0..connections {
            let mut connection = http::Connection::open(peer.address)
                .await
                .map_err(PlaygroundError::io(format!("connect to {}", peer.label)))?;
            let (request, counters, latencies, go) = (request.clone(), counters.clone(), latencies.clone(), go.clone());
            let (address, size) = (peer.address, asked.body.len() as u64);
            load.tasks.spawn(async move {
                go.wait().await;
                loop {
                    let begin = Instant::now();
                    match connection.get(&request, size, &counters.bytes).await {
                        Ok(()) => counters.answered(begin, &latencies),
                        Err(error) => {
                            counters.note(&error);
                            tokio::time::sleep(PAUSE).await;
                            if let Ok(new) = http::Connection::open(address).await {
                                connection = new;
                            }
                        }
                    }
                }
            });
        }
        Ok::<_, PlaygroundError>(())
    };
    tokio::time::timeout(OPEN_TIMEOUT, opened)
        .await
        .map_err(|_| PlaygroundError::unexpected(format!("connect to {}", peer.label), "it takes too long"))??;
    let pids = usage::family(peer.process.pid());
    let cpu = usage::cpu(&pids);
    let begin = Instant::now();
    go.wait().await;
    tokio::time::sleep(length).await;
    // A machine that has other work may have given nobody a turn yet.
    let silent = || counters.bytes.load(Ordering::Relaxed) == 0 && counters.errors.load(Ordering::Relaxed) == 0;
    while silent() && begin.elapsed() < length + SILENCE_MAX {
        tokio::time::sleep(PAUSE).await;
    }
    let (seconds, cpu) = (begin.elapsed().as_secs_f64(), usage::cpu(&pids).saturating_sub(cpu));
    let total = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (requests, bytes, errors) = (
        total(&counters.requests),
        total(&counters.bytes),
        total(&counters.errors),
    );
    let memory_bytes = usage::memory(&pids);
    load.end().await;
    tokio::time::sleep(PAUSE).await;
    let latencies = latencies.lock().unwrap_or_else(PoisonError::into_inner);
    let quantile = |q| (!latencies.is_empty()).then(|| latencies.value_at_quantile(q) as f64 / 1000.0);
    let first_error = counters
        .first_error
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    Ok(Sample {
        seconds,
        requests,
        bytes,
        errors,
        first_error,
        cpu_seconds: cpu.as_secs_f64(),
        p50_ms: quantile(0.5),
        p99_ms: quantile(0.99),
        memory_bytes,
    })
}
