//! An upstream's own limits: when it says "later", nothing that counts is sent until then.
//!
//! In: statuses and headers (`Retry-After`, `RateLimit-Remaining`, `RateLimit-Reset`). Out: whether a request may go.
//! Invariant: a hold has a bound, whatever the upstream says ([`HOLD_MAX`]); requests that cost nothing (HEAD) always
//! go, and may end a hold.
//! Not here: our own budgets ([`super::budget`]).

use std::{
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderMap, header};

use super::UpstreamError;

/// Longest time that an upstream can keep us from asking again.
const HOLD_MAX: Duration = Duration::from_secs(900);

/// A counter at zero without a time: Docker Hub's window slides, so something is free again soon.
const HOLD_EMPTY: Duration = Duration::from_secs(60);

/// What limits are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    /// GETs of manifests and lists: a "pull" of Docker Hub.
    Pulls,
    /// GETs of blobs.
    Blobs,
    /// HEAD.
    Nothing,
}

/// Holds of one origin.
#[derive(Debug, Default)]
pub(super) struct Holds {
    pulls: Mutex<Option<Hold>>,
    blobs: Mutex<Option<Hold>>,
}

#[derive(Clone, Copy, Debug)]
struct Hold {
    until: Instant,
    /// From a counter, which a later answer may show to be above zero again.
    by_counter: bool,
}

impl Holds {
    /// Whether such a request may be sent now.
    pub(super) fn check(&self, counted: Counted) -> Result<(), UpstreamError> {
        let Some(mut hold) = self.of(counted) else {
            return Ok(());
        };
        let left = hold.map_or(Duration::ZERO, |h| h.until.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            *hold = None;
            return Ok(());
        }
        Err(UpstreamError::TooManyRequests {
            retry_after_secs: Some(left.as_secs() + 1),
        })
    }

    /// Learns from an answer of the origin itself. Whether a hold began.
    pub(super) fn learn(&self, counted: Counted, status: u16, headers: &HeaderMap) -> bool {
        let mut began = false;
        if status == 429
            && let Some(mut hold) = self.of(counted)
            && let Some(wait) = retry_after(headers).filter(|w| !w.is_zero())
        {
            began |= hold.is_none();
            *hold = Some(Hold::new(wait, false));
        }
        match (first_number(headers, "ratelimit-remaining"), self.of(Counted::Pulls)) {
            (Some(0), Some(mut hold)) if hold.is_none() && counted != Counted::Blobs => {
                let reset = first_number(headers, "ratelimit-reset").map(Duration::from_secs);
                *hold = Some(Hold::new(reset.unwrap_or(HOLD_EMPTY), true));
                began = true;
            }
            (Some(1..), Some(mut hold)) if hold.is_some_and(|h| h.by_counter) => *hold = None,
            _ => {}
        }
        began
    }

    fn of(&self, counted: Counted) -> Option<MutexGuard<'_, Option<Hold>>> {
        let hold = match counted {
            Counted::Pulls => &self.pulls,
            Counted::Blobs => &self.blobs,
            Counted::Nothing => return None,
        };
        Some(hold.lock().unwrap_or_else(|e| e.into_inner()))
    }
}

impl Hold {
    fn new(wait: Duration, by_counter: bool) -> Self {
        Self {
            until: Instant::now() + wait.min(HOLD_MAX),
            by_counter,
        }
    }
}

/// `76;w=21600` is 76.
fn first_number(headers: &HeaderMap, name: &str) -> Option<u64> {
    let text = headers.get(name)?.to_str().ok()?;
    text.split([';', ',']).next()?.trim().parse().ok()
}

/// Seconds, or a date; the date is compared with the answer's own `Date`, so clocks need not agree.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(secs) = text.parse() {
        return Some(Duration::from_secs(secs));
    }
    let date = |text: &str| httpdate::parse_http_date(text).ok();
    let now = headers.get(header::DATE).and_then(|d| date(d.to_str().ok()?));
    let until = date(text)?;
    Some(
        until
            .duration_since(now.unwrap_or_else(SystemTime::now))
            .unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = lines.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap()));
        pairs
            .collect::<Vec<(http::HeaderName, http::HeaderValue)>>()
            .into_iter()
            .collect()
    }

    fn left(holds: &Holds, counted: Counted) -> Option<u64> {
        match holds.check(counted) {
            Ok(()) => None,
            Err(UpstreamError::TooManyRequests { retry_after_secs }) => retry_after_secs,
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn both_forms_of_retry_after() {
        let of = |lines: &[(&'static str, &str)]| retry_after(&headers(lines)).map(|d| d.as_secs());
        assert_eq!(of(&[("retry-after", "7")]), Some(7));
        let date = ("date", "Wed, 21 Oct 2015 07:27:00 GMT");
        assert_eq!(of(&[date, ("retry-after", "Wed, 21 Oct 2015 07:28:30 GMT")]), Some(90));
        assert_eq!(of(&[date, ("retry-after", "Wed, 21 Oct 2015 07:20:00 GMT")]), Some(0));
        assert_eq!(of(&[("retry-after", "soon")]), None);
        assert_eq!(of(&[("retry-after", "-1")]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn a_429_holds_what_was_refused_and_no_longer_than_the_bound() {
        let holds = Holds::default();
        assert!(holds.learn(Counted::Pulls, 429, &headers(&[("retry-after", "7")])));
        assert_eq!(left(&holds, Counted::Pulls), Some(7));
        assert_eq!(left(&holds, Counted::Blobs), None);
        assert_eq!(left(&holds, Counted::Nothing), None);
        holds.learn(Counted::Blobs, 429, &headers(&[("retry-after", "99999999999")]));
        assert_eq!(left(&holds, Counted::Blobs), Some(HOLD_MAX.as_secs()));
        // A plain 429 is only passed on.
        let holds = Holds::default();
        assert!(!holds.learn(Counted::Pulls, 429, &headers(&[])));
        assert_eq!(left(&holds, Counted::Pulls), None);
    }

    #[test]
    fn the_counter_of_docker_hub_begins_and_ends_a_hold() {
        let holds = Holds::default();
        let of = |remaining: &str| headers(&[("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", remaining)]);
        assert!(!holds.learn(Counted::Pulls, 200, &of("76;w=21600")));
        assert_eq!(left(&holds, Counted::Pulls), None);
        assert!(holds.learn(Counted::Pulls, 200, &of("0;w=21600")));
        assert_eq!(left(&holds, Counted::Pulls), Some(HOLD_EMPTY.as_secs()));
        assert!(
            !holds.learn(Counted::Nothing, 200, &of("0;w=21600")),
            "one hold, not prolonged"
        );
        assert!(!holds.learn(Counted::Nothing, 200, &of("3;w=21600")));
        assert_eq!(left(&holds, Counted::Pulls), None);
        // What was asked for expressly is kept.
        holds.learn(Counted::Pulls, 429, &headers(&[("retry-after", "7")]));
        holds.learn(Counted::Nothing, 200, &of("3;w=21600"));
        assert_eq!(left(&holds, Counted::Pulls), Some(7));
    }
}
