//! The span by which something that outlives it was begun.
//!
//! In: the span that is current where it begins. Out: the parent of its own span, or a link to it.
//! Invariant: an ancestor holds no span: a span ends when nobody holds it, and a request must not seem to last as long as
//! what it began.
//! Not here: the parent that a request's header names ([`super::adopt`]).

use opentelemetry::{
    Context,
    trace::{SpanContext, TraceContextExt as _},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// See the file's comment.
#[derive(Clone, Debug)]
pub struct Ancestor(SpanContext);

impl Ancestor {
    /// The span that is current here.
    pub fn here() -> Self {
        Self(Span::current().context().span().span_context().clone())
    }

    /// Nobody.
    pub fn none() -> Self {
        Self(SpanContext::empty_context())
    }

    /// Makes `span`, which has no parent in this process, a child.
    pub fn adopt(&self, span: &Span) {
        if self.0.is_valid() {
            // Fails only without the layer, and then there is no trace.
            let _ = span.set_parent(Context::new().with_remote_span_context(self.0.clone()));
        }
    }

    /// `span` is also about what this one began.
    pub fn link(&self, span: &Span) {
        if self.0.is_valid() {
            span.add_link(self.0.clone());
        }
    }
}
