//! What the origin was asked, and what it really sent.
//!
//! In: requests as they arrive, bytes as they leave. Out: [`Call`]s in order of arrival.
//! Invariant: a call is recorded before its answer starts, and `body_sent` counts bytes handed to the connection, so a
//! client that hung up early shows. At most [`CALLS_MAX`] are kept; the oldest go first.
//! Not here: judging them; that is the test's.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use headstart_layer_format::BlobDigest;

/// More than any test makes; a runaway client must not eat the machine.
const CALLS_MAX: usize = 200_000;

/// Which of the origin's two listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    Registry,
    /// The other host that blobs are redirected to.
    Cdn,
}

/// One request, as seen from the origin.
#[derive(Clone, Debug)]
pub struct Call {
    pub listener: Listener,
    pub method: String,
    pub path: String,
    pub query: Option<String>,
    pub host: Option<String>,
    pub range: Option<String>,
    pub accept: Vec<String>,
    pub accept_encoding: Option<String>,
    /// The whole header, credentials and all: the origin is a test's, and leaks are what it looks for.
    pub authorization: Option<String>,
    /// The trace that it is part of, as W3C says.
    pub traceparent: Option<String>,
    /// The digest that was asked for, or that a tag resolved to.
    pub digest: Option<BlobDigest>,
    /// 0 until the answer's head was made.
    pub status: u16,
    /// Body bytes handed to the connection so far.
    pub body_sent: u64,
    /// The body was sent to its end (not cut by a fault or by the client).
    pub complete: bool,
}

impl Call {
    pub fn is_token(&self) -> bool {
        self.listener == Listener::Registry && self.path == "/token"
    }

    pub fn is_blob(&self) -> bool {
        self.listener == Listener::Cdn || self.path.contains("/blobs/")
    }

    pub fn is_manifest(&self) -> bool {
        self.path.contains("/manifests/")
    }
}

/// The live side of a [`Call`].
#[derive(Debug)]
pub(super) struct Record {
    call: Mutex<Call>,
    status: AtomicU16,
    body_sent: AtomicU64,
    complete: AtomicBool,
}

impl Record {
    pub(super) fn answered(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    pub(super) fn about(&self, digest: BlobDigest) {
        self.call.lock().expect("no holder panics").digest = Some(digest);
    }

    pub(super) fn sent(&self, bytes: u64) {
        self.body_sent.fetch_add(bytes, Ordering::SeqCst);
    }

    pub(super) fn completed(&self) {
        self.complete.store(true, Ordering::SeqCst);
    }

    fn snapshot(&self) -> Call {
        Call {
            status: self.status.load(Ordering::SeqCst),
            body_sent: self.body_sent.load(Ordering::SeqCst),
            complete: self.complete.load(Ordering::SeqCst),
            ..self.call.lock().expect("no holder panics").clone()
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct CallLog(Mutex<VecDeque<Arc<Record>>>);

impl CallLog {
    pub(super) fn begin(&self, call: Call) -> Arc<Record> {
        let record = Arc::new(Record {
            call: Mutex::new(call),
            status: AtomicU16::new(0),
            body_sent: AtomicU64::new(0),
            complete: AtomicBool::new(false),
        });
        let mut log = self.0.lock().expect("no holder panics");
        if log.len() == CALLS_MAX {
            log.pop_front();
        }
        log.push_back(record.clone());
        record
    }

    pub(super) fn snapshot(&self) -> Vec<Call> {
        let log = self.0.lock().expect("no holder panics");
        log.iter().map(|r| r.snapshot()).collect()
    }

    pub(super) fn clear(&self) {
        self.0.lock().expect("no holder panics").clear();
    }
}
