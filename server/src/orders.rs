//! A thread of the server's own, and the orders it is given.
//!
//! In: orders, from tasks and threads. Out: each is answered once: by what the thread made of it, or by why not.
//! Invariant: the orders that wait are bounded; one that meets a stop is answered; the thread ends at its next step after
//! [`Worker::stop`], or when its last owner goes.
//! Not here: what is ordered ([`crate::reclaim`], [`crate::scrub`]).

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use tokio::sync::oneshot;

use crate::store::bell::Bell;

/// How the thread answers.
pub type Reply<R> = oneshot::Sender<Result<R, String>>;

/// Fits "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    #[error("{0}: too many orders are waiting")]
    Busy(&'static str),
    #[error("{0}: the server is stopping")]
    Stopping(&'static str),
    #[error("{0}")]
    Failed(String),
}

/// What waits for the thread.
#[derive(Debug)]
pub struct Orders<O, R> {
    /// For errors: "reclaim".
    verb: &'static str,
    waiting_max: usize,
    bell: Bell,
    waiting: Mutex<VecDeque<(O, Reply<R>)>>,
}

impl<O, R> Orders<O, R> {
    /// `bell` wakes the thread.
    pub fn new(verb: &'static str, waiting_max: usize, bell: Bell) -> Self {
        Self {
            verb,
            waiting_max,
            bell,
            waiting: Mutex::default(),
        }
    }

    /// Has an order carried out; waits for it.
    pub async fn order(&self, order: O) -> Result<R, OrderError> {
        self.outcome(self.give(order)?.await)
    }

    /// The same for a thread.
    pub fn order_blocking(&self, order: O) -> Result<R, OrderError> {
        self.outcome(self.give(order)?.blocking_recv())
    }

    /// For the thread: the next one.
    pub fn next(&self) -> Option<(O, Reply<R>)> {
        self.waiting().pop_front()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting().is_empty()
    }

    /// At the thread's end: those who wait are told that the server stops.
    pub fn refuse_all(&self) {
        self.waiting().clear();
    }

    fn give(&self, order: O) -> Result<oneshot::Receiver<Result<R, String>>, OrderError> {
        let (reply, answer) = oneshot::channel();
        {
            let mut waiting = self.waiting();
            if waiting.len() >= self.waiting_max {
                return Err(OrderError::Busy(self.verb));
            }
            waiting.push_back((order, reply));
        }
        self.bell.ring(|rung| rung.order = true);
        if self.bell.is_stopping() {
            // The thread may have looked for the last time already.
            self.refuse_all();
        }
        Ok(answer)
    }

    fn outcome(&self, answer: Result<Result<R, String>, oneshot::error::RecvError>) -> Result<R, OrderError> {
        match answer {
            Ok(done) => done.map_err(OrderError::Failed),
            Err(_) => Err(OrderError::Stopping(self.verb)),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<(O, Reply<R>)>> {
        // Only whole pushes and pops happen under the lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread, which ends when nobody can give it orders any more.
#[derive(Debug)]
pub struct Worker {
    name: &'static str,
    bell: Bell,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Worker {
    /// `work` returns when the bell says stop. Of `niceness`: serving goes first.
    pub fn start(
        name: &'static str,
        niceness: i32,
        bell: Bell,
        work: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<Self> {
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            // Linux: nice values are per thread.
            if let Err(error) = rustix::process::setpriority_process(None, niceness) {
                tracing::warn!(name, %error, "a thread runs at the server's own priority");
            }
            work();
        })?;
        Ok(Self {
            name,
            bell,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Ends the thread at its next step. Blocks.
    pub fn stop(&self) {
        self.bell.ring(|rung| rung.stop = true);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!(name = self.name, "a thread panicked");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.bell.ring(|rung| rung.stop = true);
    }
}
