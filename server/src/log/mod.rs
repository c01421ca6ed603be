//! Lines on standard error.
//!
//! In: `[log]`, events of `tracing`. Out: lines, as JSON or for people, each with the spans it is in and so with the name
//! of its request.
//! Invariant: libraries print headers and bodies in their traces, so nothing below [`FOREIGN_LEVEL`] is taken from them,
//! whatever the filter says: no secret gets into a log. How many lines a place may write is bounded ([`limit`]).
//! Not here: what is logged, and spans' way to a collector ([`crate::telemetry`]).

pub mod limit;

use std::{io::IsTerminal as _, sync::Arc};

use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{FilterExt as _, filter_fn},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::{
    config::{LogConfig, LogFormat},
    telemetry::{self, Traces},
};
use limit::Limit;

/// See the file's comment.
const FOREIGN_LEVEL: tracing::Level = tracing::Level::DEBUG;

/// The variable that wins over `log.filter`.
const VARIABLE: &str = "RUST_LOG";

/// Starts logging, and sending spans if there is somewhere to send them to. Once in a process.
pub fn to_stderr(config: &LogConfig, traces: Option<&Traces>) -> Arc<Limit> {
    let variable = std::env::var(VARIABLE).ok().filter(|text| !text.is_empty());
    let (filter, refused) = match variable.as_deref().map(|text| EnvFilter::builder().parse(text)) {
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new(&config.filter), Some(error)),
        None => (EnvFilter::new(&config.filter), None),
    };
    let own = filter_fn(|meta| meta.target().starts_with("headstart") || *meta.level() <= FOREIGN_LEVEL);
    let limit = Arc::new(Limit::new(config));
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let lines = match config.format {
        LogFormat::Human => lines.boxed(),
        LogFormat::Json => lines.json().with_current_span(false).boxed(),
    };
    tracing_subscriber::registry()
        .with(telemetry::requests())
        .with(lines.with_filter(filter.and(own).and(Arc::clone(&limit).filter())))
        .with(traces.map(Traces::layer))
        .init();
    if let Some(error) = refused {
        tracing::warn!(%error, variable = VARIABLE, "the variable is no filter; log.filter is used");
    }
    limit
}
