//! An exporter that says when it begins to fail, and when it no longer does.
//!
//! In: an exporter. Out: the same, with a line in the log for each change.
//! Invariant: a collector that is away for a day makes one line, not one for each export; the line has no more of the
//! collector's words than its first [`REASON_LEN_MAX`] characters.
//! Not here: retries; what cannot be sent is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

const REASON_LEN_MAX: usize = 200;

/// See the file's comment.
#[derive(Debug)]
pub(super) struct Reported<E> {
    exporter: E,
    /// Shared with whoever decides by it.
    is_failing: Arc<AtomicBool>,
}

impl<E> Reported<E> {
    pub(super) fn new(exporter: E, is_failing: Arc<AtomicBool>) -> Self {
        Self { exporter, is_failing }
    }

    fn report(&self, result: OTelSdkResult) -> OTelSdkResult {
        let was = self.is_failing.swap(result.is_err(), Ordering::Relaxed);
        match &result {
            Err(error) if !was => {
                let error: String = error.to_string().chars().take(REASON_LEN_MAX).collect();
                tracing::warn!(error, "the collector takes no spans; they are dropped until it does");
            }
            Ok(()) if was => tracing::info!("the collector takes spans again"),
            _ => {}
        }
        result
    }
}

impl<E: SpanExporter> SpanExporter for Reported<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.report(self.exporter.export(batch).await)
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
