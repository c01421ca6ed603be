//! How many lines one place in the code may write.
//!
//! In: events. Out: whether each becomes a line; and, now and then, how many did not.
//! Invariant: whatever clients and upstreams do, a place writes at most `log.lines_per_sec_max` lines a second, so a
//! client that asks for nonsense fills no disk. What is left out is counted, and the count is logged. Levels below `info`
//! are for somebody who is looking for something, and `log.access = "all"` asks for every request: those have no bound.
//! Not here: levels and targets (the filter).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::{Event, Level, Metadata, Subscriber, callsite::Identifier, subscriber::Interest};
use tracing_subscriber::layer::{Context, Filter};

use crate::config::{AccessLog, LogConfig};

/// The target of lines about single requests.
pub const ACCESS: &str = "headstart_server::access";

const WINDOW: Duration = Duration::from_secs(1);
/// Counts of what was left out are logged this often.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// See the file's comment.
#[derive(Debug)]
pub struct Limit {
    /// 0: none.
    lines_max: u32,
    every_request: bool,
    /// Bounded by the number of places in the code.
    places: Mutex<HashMap<Identifier, Place>>,
}

#[derive(Debug)]
struct Place {
    meta: &'static Metadata<'static>,
    since: Instant,
    lines: u32,
    left_out: u64,
}

impl Limit {
    pub fn new(config: &LogConfig) -> Self {
        Self {
            lines_max: config.lines_per_sec_max,
            every_request: config.access == AccessLog::All,
            places: Mutex::default(),
        }
    }

    pub(super) fn filter(self: Arc<Self>) -> Limited {
        Limited(self)
    }

    fn admits(&self, meta: &'static Metadata<'static>, now: Instant) -> bool {
        let unbounded =
            self.lines_max == 0 || *meta.level() > Level::INFO || (self.every_request && meta.target() == ACCESS);
        if unbounded {
            return true;
        }
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places.entry(meta.callsite()).or_insert(Place {
            meta,
            since: now,
            lines: 0,
            left_out: 0,
        });
        if now.duration_since(place.since) >= WINDOW {
            (place.since, place.lines) = (now, 0);
        }
        let admitted = place.lines < self.lines_max;
        match admitted {
            true => place.lines += 1,
            false => place.left_out += 1,
        }
        admitted
    }

    /// What was left out since the last time.
    fn take(&self) -> Vec<(&'static Metadata<'static>, u64)> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let left_out = places.values_mut().filter(|place| place.left_out > 0);
        left_out
            .map(|place| (place.meta, std::mem::take(&mut place.left_out)))
            .collect()
    }

    /// Logs how much was not logged.
    pub fn report(&self) {
        for (meta, lines) in self.take() {
            let (target, line) = (meta.target(), meta.line().unwrap_or_default());
            tracing::warn!(lines, of_target = target, of_line = line, "log lines were left out");
        }
    }

    /// The same, every so often, for as long as the process runs.
    pub async fn keep_reporting(self: Arc<Self>) {
        loop {
            tokio::time::sleep(REPORT_INTERVAL).await;
            self.report();
        }
    }
}

/// [`Limit`] as a filter.
#[derive(Debug)]
pub struct Limited(Arc<Limit>);

impl<S: Subscriber> Filter<S> for Limited {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn callsite_enabled(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::always()
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        self.0.admits(event.metadata(), Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(event: impl FnOnce()) -> &'static Metadata<'static> {
        struct Catch(Arc<Mutex<Option<&'static Metadata<'static>>>>);
        impl<S: Subscriber> tracing_subscriber::Layer<S> for Catch {
            fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
                *self.0.lock().unwrap() = Some(event.metadata());
            }
        }
        use tracing_subscriber::layer::SubscriberExt as _;
        let caught = Arc::default();
        let subscriber = tracing_subscriber::registry().with(Catch(Arc::clone(&caught)));
        tracing::subscriber::with_default(subscriber, event);
        let found = *caught.lock().unwrap();
        found.unwrap()
    }

    #[test]
    fn a_place_has_its_lines_a_second_and_the_rest_is_counted() {
        let (here, there) = (meta(|| tracing::warn!("here")), meta(|| tracing::info!("there")));
        let fine = meta(|| tracing::debug!("fine"));
        let limit = Limit::new(&LogConfig {
            lines_per_sec_max: 3,
            ..LogConfig::default()
        });
        let start = Instant::now();
        let admitted = |meta, at| (0..10).filter(|_| limit.admits(meta, at)).count();
        assert_eq!(admitted(here, start), 3);
        assert_eq!(admitted(there, start), 3);
        assert_eq!(admitted(fine, start), 10);
        assert_eq!(admitted(here, start + WINDOW), 3);
        let mut left_out: Vec<_> = limit.take().iter().map(|(_, lines)| *lines).collect();
        left_out.sort_unstable();
        assert_eq!(left_out, [7, 14]);
        assert!(limit.take().is_empty());
    }

    #[test]
    fn who_wants_every_request_gets_every_request() {
        let line = meta(|| tracing::info!(target: ACCESS, "request"));
        let limit = |access| {
            Limit::new(&LogConfig {
                lines_per_sec_max: 1,
                access,
                ..LogConfig::default()
            })
        };
        let now = Instant::now();
        let admitted = |limit: &Limit| (0..10).filter(|_| limit.admits(line, now)).count();
        assert_eq!(admitted(&limit(AccessLog::All)), 10);
        assert_eq!(admitted(&limit(AccessLog::Errors)), 1);
    }
}
