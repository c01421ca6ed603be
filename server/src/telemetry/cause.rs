//! What something that outlives its request was begun by: a fetch, a conversion.
//!
//! In: the span that is current where it begins. Out: the parent of its own span, and the request's name for its log lines.
//! Invariant: a cause holds no span: a span ends when nobody holds it, and a request must not seem to last as long as what
//! it began.
//! Not here: where spans go ([`super::Traces`]), where lines go ([`crate::log`]).

use std::{fmt, sync::Arc};

use headstart_telemetry::Ancestor;
use tracing::{
    Dispatch, Level, Span, Subscriber, dispatcher,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{
    Layer, Registry,
    filter::{LevelFilter, filter_fn},
    layer,
    registry::LookupSpan,
};

use super::OWN_TARGET;

/// The field of a span that has a request's name.
const REQUEST_ID: &str = "request_id";

/// See the file's comment.
#[derive(Clone, Debug)]
pub struct Cause {
    ancestor: Ancestor,
    request: Option<Arc<str>>,
}

impl Cause {
    /// The span that is current here.
    pub fn here() -> Self {
        Self {
            ancestor: Ancestor::here(),
            request: dispatcher::get_default(current_request),
        }
    }

    /// Makes `span`, which has no parent in this process, a child of the cause. It gets the request's name, if it has a
    /// field for it.
    pub fn of(&self, span: Span) -> Span {
        self.ancestor.adopt(&span);
        if let Some(request) = &self.request {
            span.record(REQUEST_ID, tracing::field::display(request));
        }
        span
    }

    /// The span that is current here is also about what the cause does.
    pub fn link(&self) {
        self.ancestor.link(&Span::current());
    }
}

fn current_request(dispatch: &Dispatch) -> Option<Arc<str>> {
    let registry = dispatch.downcast_ref::<Registry>()?;
    let current = dispatch.current_span();
    let span = registry.span(current.id()?)?;
    span.scope()
        .find_map(|span| span.extensions().get::<Request>().map(|request| request.0.clone()))
}

/// A request's name, kept with its span.
struct Request(Arc<str>);

/// What keeps it there. Without this layer, causes know no names.
pub fn requests<S>() -> impl Layer<S> + Send + Sync
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    let ours = |meta: &tracing::Metadata<'_>| {
        meta.is_span() && *meta.level() <= Level::INFO && meta.target().starts_with(OWN_TARGET)
    };
    Requests.with_filter(filter_fn(ours).with_max_level_hint(LevelFilter::INFO))
}

struct Requests;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Requests {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: layer::Context<'_, S>) {
        let mut name = Name(None);
        attributes.record(&mut name);
        keep(name, id, &context);
    }

    fn on_record(&self, id: &Id, record: &Record<'_>, context: layer::Context<'_, S>) {
        let mut name = Name(None);
        record.record(&mut name);
        keep(name, id, &context);
    }
}

fn keep<S: Subscriber + for<'a> LookupSpan<'a>>(name: Name, id: &Id, context: &layer::Context<'_, S>) {
    if let (Some(name), Some(span)) = (name.0, context.span(id)) {
        span.extensions_mut().replace(Request(name.into()));
    }
}

struct Name(Option<String>);

impl Visit for Name {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == REQUEST_ID {
            self.0 = Some(format!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == REQUEST_ID {
            self.0 = Some(value.to_owned());
        }
    }
}
