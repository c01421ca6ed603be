//! What something that outlives its call was begun by: a layer presented ahead, a prefetch.
//!
//! In: the span that is current where it begins. Out: the parent of its own span.
//! Invariant: a cause holds no span: a span ends when nobody holds it, and a call must not seem to last as long as what it began.
//! Not here: where spans go ([`super::Traces`]).

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, TraceContextExt as _};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::STARTED;

/// See the file's comment.
#[derive(Clone, Debug)]
pub struct Cause(Option<SpanContext>);

impl Cause {
    /// The span that is current here.
    pub fn here() -> Self {
        Self(
            STARTED
                .get()
                .map(|_| Span::current().context().span().span_context().clone()),
        )
    }

    /// Makes `span`, which has no parent in this process, a child of the cause.
    pub fn of(&self, span: Span) -> Span {
        if let Some(context) = self.0.as_ref().filter(|context| context.is_valid()) {
            let _ = span.set_parent(Context::new().with_remote_span_context(context.clone()));
        }
        span
    }
}
