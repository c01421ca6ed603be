//! Tells the service manager that a long start goes on.
//!
//! In: steps of the start. Out: a notice now and then. Invariant: it is said only because of a step, so a start that hangs is
//! ended as ever. Not here: readiness (`service_manager.rs`), health after that (`watchdog.rs`).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::ServiceManager;

/// What a step may take from now on: as long as our unit allows the whole start of a node with few layers. One is a TOC read
/// and checked, or an image written and mounted: seconds for the widest, on the slowest disk.
const STEP_MAX: Duration = Duration::from_secs(60);
/// Often enough, and little to say.
const EVERY: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, Default)]
pub struct Progress(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    manager: Arc<ServiceManager>,
    told: Mutex<Option<Instant>>,
}

impl Progress {
    /// Nobody wants to know.
    pub fn untold() -> Self {
        Self::default()
    }

    pub fn to(manager: Option<&Arc<ServiceManager>>) -> Self {
        let inner = manager.map(|manager| Inner {
            manager: Arc::clone(manager),
            told: Mutex::default(),
        });
        Self(inner.map(Arc::new))
    }

    /// Something was done. Cheap.
    pub fn step(&self) {
        let Some(inner) = &self.0 else {
            return;
        };
        let mut told = inner.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|at| at.elapsed() >= EVERY) {
            *told = Some(Instant::now());
            inner.manager.starting(STEP_MAX);
        }
    }
}
