//! The calls of the snapshots service: how many, how long, how many failed.
//!
//! In: a call's beginning and end. Out: numbers. Invariant: a closed set of calls. "Already exists" and "not found" are
//! answers that containerd works with, not failures.
//! Not here: the calls.

use std::sync::Arc;
use std::time::Instant;

use tonic::{Code, Response, Status};

use crate::counters::{Counter, Histogram};

/// A call of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Prepare,
    View,
    Mounts,
    Commit,
    Remove,
    Stat,
    Update,
    List,
    Usage,
    Cleanup,
}

impl Call {
    pub const ALL: [Call; 10] = [
        Call::Prepare,
        Call::View,
        Call::Mounts,
        Call::Commit,
        Call::Remove,
        Call::Stat,
        Call::Update,
        Call::List,
        Call::Usage,
        Call::Cleanup,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Call::Prepare => "prepare",
            Call::View => "view",
            Call::Mounts => "mounts",
            Call::Commit => "commit",
            Call::Remove => "remove",
            Call::Stat => "stat",
            Call::Update => "update",
            Call::List => "list",
            Call::Usage => "usage",
            Call::Cleanup => "cleanup",
        }
    }
}

/// Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Calls(Arc<[(Histogram, Counter); Call::ALL.len()]>);

/// Whether containerd works with it.
pub fn is_answer(status: &Status) -> bool {
    matches!(status.code(), Code::AlreadyExists | Code::NotFound)
}

impl Calls {
    /// Counts a call and its outcome.
    pub async fn counted<T>(
        &self,
        call: Call,
        work: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<Response<T>, Status> {
        let begun = Instant::now();
        let outcome = work.await;
        let (seconds, failures) = &self.0[call as usize];
        seconds.record(begun.elapsed());
        if let Err(status) = &outcome
            && !is_answer(status)
        {
            failures.add(1);
        }
        outcome
    }

    pub fn seconds(&self, call: Call) -> &Histogram {
        &self.0[call as usize].0
    }

    pub fn failures(&self, call: Call) -> u64 {
        self.0[call as usize].1.get()
    }

    pub fn total(&self) -> u64 {
        self.0.iter().map(|(seconds, _)| seconds.count()).sum()
    }
}
