//! W3C trace context in headers (<https://www.w3.org/TR/trace-context/>).
//!
//! In: headers of a request. Out: the parent of its span, or a link; the same headers for somebody else.
//! Invariant: who is not trusted decides nothing about our traces: neither their name nor whether they are sent.
//! Not here: who is trusted, and who is told.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator as _},
    trace::TraceContextExt as _,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// A request's span continues the trace of whoever asks if that is trusted, and points to it if not.
pub fn adopt(span: &Span, headers: &HeaderMap, is_trusted: bool) {
    if !headers.contains_key("traceparent") {
        return;
    }
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &Carrier(headers));
    let theirs = context.span().span_context().clone();
    if !theirs.is_valid() {
        return;
    }
    if is_trusted {
        // Fails only without the layer, and then there is no trace.
        let _ = span.set_parent(context);
    } else {
        span.add_link(theirs);
    }
}

/// Tells whoever gets these headers the trace of the current span.
pub fn inject(headers: &mut HeaderMap) {
    TraceContextPropagator::new().inject_context(&Span::current().context(), &mut CarrierMut(headers));
}

struct Carrier<'a>(&'a HeaderMap);

impl Extractor for Carrier<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct CarrierMut<'a>(&'a mut HeaderMap);

impl Injector for CarrierMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}
