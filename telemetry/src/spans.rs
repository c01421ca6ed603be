//! The way of spans to the collector.
//!
//! In: spans of `tracing`, of one target. Out: they are handed over; at the end, what was not sent yet is.
//! Invariant: the end waits for no collector longer than it was told, and not at all for one that took nothing before.
//! Not here: where the collector is ([`super::Collector`]).

use std::{
    fmt::Display,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use opentelemetry::trace::{Status, TracerProvider as _};
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::{sync::oneshot, time::timeout};
use tracing::{Metadata, Span, Subscriber, level_filters::LevelFilter};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{Layer, filter::filter_fn, registry::LookupSpan};

/// See the file's comment.
#[derive(Debug)]
pub struct Spans {
    provider: SdkTracerProvider,
    is_failing: Arc<AtomicBool>,
}

impl Spans {
    pub(super) fn new(provider: SdkTracerProvider, is_failing: Arc<AtomicBool>) -> Self {
        Self { provider, is_failing }
    }

    /// What hands spans of `target` over.
    pub fn layer<S>(&self, target: &'static str) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer(target))
            .with_location(false)
            .with_threads(false)
            .with_filter(filter_fn(move |meta| is_span_of(meta, target)).with_max_level_hint(LevelFilter::INFO))
    }

    /// The end: sends what was not sent yet, if that is done within `max`.
    pub async fn finish(self, max: Duration) {
        if self.is_failing.load(Ordering::Relaxed) {
            return;
        }
        let (done, wait) = oneshot::channel();
        // A thread that nobody waits for: the end of the runtime would wait for one of its own.
        let flush = move || {
            let _ = self.provider.force_flush();
            let _ = done.send(());
        };
        if std::thread::Builder::new().spawn(flush).is_ok() {
            let _ = timeout(max, wait).await;
        }
    }
}

/// Whether this is a span of `target`, or of what is below it.
pub fn is_span_of(meta: &Metadata<'_>, target: &str) -> bool {
    meta.is_span() && meta.target().starts_with(target)
}

/// That what a span is about went wrong, and why. The text is one that clients, or the log, may have.
pub fn failed(span: &Span, why: impl Display) {
    if !span.is_disabled() {
        span.set_status(Status::error(why.to_string()));
    }
}

/// A number as spans have it: of an unsigned one the layer would make a text.
pub fn number(n: impl TryInto<i64>) -> i64 {
    n.try_into().unwrap_or(i64::MAX)
}
