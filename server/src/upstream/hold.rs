//! An upstream's own limits: when it says "later", nothing of the kind is sent until then.
//!
//! In: statuses and headers (`Retry-After`, `RateLimit-Remaining`, `RateLimit-Reset`). Out: whether a request may go.
//! Invariant: a hold has a bound, whatever the upstream says ([`HOLD_MAX`]); what it says of one kind of requests holds no other,
//! so that requests that cost nothing (HEAD) go while others are held, and may end a hold.
//! Not here: our own budgets ([`super::budget`]).

use std::{
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderMap, header};

use super::UpstreamError;

/// Longest time that an upstream can keep us from asking again.
pub(super) const HOLD_MAX: Duration = Duration::from_secs(900);

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
    pulls: Slot,
    blobs: Slot,
    heads: Slot,
}

/// A hold of one kind of requests, or none.
#[derive(Debug, Default)]
pub(super) struct Slot(Mutex<Option<Hold>>);

#[derive(Clone, Copy, Debug)]
struct Hold {
    until: Instant,
    why: Why,
}

/// What the upstream said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// 429.
    Limit,
    /// A counter, which a later answer may show to be above zero again.
    Counter,
    /// 503.
    Unavailable,
}

impl Holds {
    /// Whether such a request may be sent now.
    pub(super) fn check(&self, counted: Counted) -> Result<(), UpstreamError> {
        self.of(counted).check()
    }

    /// Learns from an answer of the origin itself. Whether a hold began.
    pub(super) fn learn(&self, counted: Counted, status: u16, headers: &HeaderMap) -> bool {
        let why = match status {
            429 => Some(Why::Limit),
            503 => Some(Why::Unavailable),
            _ => None,
        };
        let mut began = false;
        if let Some(why) = why
            && let Some(wait) = retry_after(headers)
        {
            began |= self.of(counted).begin(wait, why);
        }
        let mut pulls = self.pulls.lock();
        match first_number(headers, "ratelimit-remaining") {
            Some(0) if pulls.is_none() && counted != Counted::Blobs => {
                let reset = first_number(headers, "ratelimit-reset").map(Duration::from_secs);
                *pulls = Some(Hold::new(reset.unwrap_or(HOLD_EMPTY), Why::Counter));
                began = true;
            }
            Some(1..) if pulls.is_some_and(|hold| hold.why == Why::Counter) => *pulls = None,
            _ => {}
        }
        began
    }

    fn of(&self, counted: Counted) -> &Slot {
        match counted {
            Counted::Pulls => &self.pulls,
            Counted::Blobs => &self.blobs,
            Counted::Nothing => &self.heads,
        }
    }
}

impl Slot {
    pub(super) fn check(&self) -> Result<(), UpstreamError> {
        let mut slot = self.lock();
        let Some(hold) = *slot else { return Ok(()) };
        let left = hold.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            *slot = None;
            return Ok(());
        }
        let secs = left.as_secs() + 1;
        Err(match hold.why {
            Why::Limit | Why::Counter => UpstreamError::TooManyRequests {
                retry_after_secs: Some(secs),
            },
            Why::Unavailable => UpstreamError::Unavailable { retry_after_secs: secs },
        })
    }

    /// Learns from how a request ended. Whether a hold began.
    pub(super) fn learn(&self, error: &UpstreamError) -> bool {
        let (secs, why) = match error {
            UpstreamError::TooManyRequests {
                retry_after_secs: Some(secs),
            } => (*secs, Why::Limit),
            UpstreamError::Unavailable { retry_after_secs } => (*retry_after_secs, Why::Unavailable),
            _ => return false,
        };
        self.begin(Duration::from_secs(secs), why)
    }

    fn begin(&self, wait: Duration, why: Why) -> bool {
        if wait.is_zero() {
            return false;
        }
        self.lock().replace(Hold::new(wait, why)).is_none()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Hold>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Hold {
    fn new(wait: Duration, why: Why) -> Self {
        Self {
            until: Instant::now() + wait.min(HOLD_MAX),
            why,
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
            Err(UpstreamError::Unavailable { retry_after_secs }) => Some(retry_after_secs),
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
        holds.learn(Counted::Nothing, 429, &headers(&[("retry-after", "9")]));
        assert_eq!(left(&holds, Counted::Nothing), Some(9));
        assert_eq!(left(&holds, Counted::Pulls), Some(7), "each its own");
        // A plain 429 is only passed on.
        let holds = Holds::default();
        assert!(!holds.learn(Counted::Pulls, 429, &headers(&[])));
        assert_eq!(left(&holds, Counted::Pulls), None);
    }

    #[test]
    fn a_503_that_says_when_holds_too_and_is_no_limit() {
        let holds = Holds::default();
        for said in [headers(&[]), headers(&[("retry-after", "0")])] {
            assert!(!holds.learn(Counted::Pulls, 503, &said));
            assert_eq!(holds.check(Counted::Pulls), Ok(()));
        }
        assert!(holds.learn(Counted::Pulls, 503, &headers(&[("retry-after", "99999999999")])));
        assert!(matches!(
            holds.check(Counted::Pulls),
            Err(UpstreamError::Unavailable { retry_after_secs: 900 })
        ));
        assert_eq!(holds.check(Counted::Blobs), Ok(()));
        assert_eq!(holds.check(Counted::Nothing), Ok(()));
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
        // Where it says when the counter begins anew, the hold is as long, and no longer than any other.
        for (reset, secs) in [
            ("7", 7),
            ("600", 600),
            ("99999999999", HOLD_MAX.as_secs()),
            ("soon", HOLD_EMPTY.as_secs()),
        ] {
            let holds = Holds::default();
            let said = headers(&[("ratelimit-remaining", "0;w=21600"), ("ratelimit-reset", reset)]);
            assert!(holds.learn(Counted::Pulls, 200, &said));
            assert_eq!(left(&holds, Counted::Pulls), Some(secs), "{reset}");
        }
        // What was asked for expressly is kept.
        holds.learn(Counted::Pulls, 429, &headers(&[("retry-after", "7")]));
        holds.learn(Counted::Nothing, 200, &of("3;w=21600"));
        assert_eq!(left(&holds, Counted::Pulls), Some(7));
    }
}
