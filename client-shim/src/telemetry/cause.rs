//! What something that outlives its call was begun by: a layer presented ahead, a prefetch.
//!
//! In: the span that is current where it begins. Out: the parent of its own span.
//! Invariant: a cause holds no span: a span ends when nobody holds it, and a call must not seem to last as long as what it began.
//! Not here: where spans go ([`super::Traces`]).

use headstart_telemetry::Ancestor;
use tracing::Span;

use super::STARTED;

/// See the file's comment.
#[derive(Clone, Debug)]
pub struct Cause(Ancestor);

impl Cause {
    /// The span that is current here.
    pub fn here() -> Self {
        // Without telemetry, even a look is too much.
        Self(STARTED.get().map_or_else(Ancestor::none, |_| Ancestor::here()))
    }

    /// Makes `span`, which has no parent in this process, a child of the cause.
    pub fn of(&self, span: Span) -> Span {
        self.0.adopt(&span);
        span
    }
}
