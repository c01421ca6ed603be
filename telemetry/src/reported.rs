//! Exporters that say when they begin to fail, and when they no longer do.
//!
//! In: an exporter. Out: the same, with a line in the log for each change.
//! Invariant: a collector that is away for a day makes one line, not one for each export; the line has no more of the
//! collector's words than its first [`REASON_LEN_MAX`] characters.
//! Not here: retries; what cannot be sent is dropped.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    metrics::{Temporality, data::ResourceMetrics, exporter::PushMetricExporter},
    trace::{SpanData, SpanExporter},
};

const REASON_LEN_MAX: usize = 200;

/// See the file's comment.
#[derive(Debug)]
pub(super) struct Reported<E> {
    exporter: E,
    what: &'static str,
    /// Shared with whoever decides by it.
    is_failing: Arc<AtomicBool>,
}

impl<E> Reported<E> {
    pub(super) fn new(exporter: E, what: &'static str, is_failing: Arc<AtomicBool>) -> Self {
        Self {
            exporter,
            what,
            is_failing,
        }
    }

    fn report(&self, result: OTelSdkResult) -> OTelSdkResult {
        let (what, was) = (self.what, self.is_failing.swap(result.is_err(), Ordering::Relaxed));
        match &result {
            Err(error) if !was => {
                let error: String = error.to_string().chars().take(REASON_LEN_MAX).collect();
                tracing::warn!(what, error, "the collector takes nothing; it is dropped until it does");
            }
            Ok(()) if was => tracing::info!(what, "the collector takes it again"),
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

impl<E: PushMetricExporter> PushMetricExporter for Reported<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        self.report(self.exporter.export(metrics).await)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}
