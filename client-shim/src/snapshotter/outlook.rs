//! Whether to go on waiting for a conversion.
//!
//! In: how far it is, look by look. Out: yes or no. Invariant: up to the configured time yes; longer only while it gets on, would
//! be done before an ordinary pull begun now could be, and not for ever.
//! Not here: asking ([`super::decide`]), what people are shown ([`super::waits`]).

use std::time::{Duration, Instant};

use super::waits::Waiting;

/// Compressed bytes a second that a node unpacks at best. Two cores with a local disk unpack 9 to 20 MB of the benchmark's images.
/// Where a pull would be slower than that because of its network, the conversion waits for the same bytes.
const UNPACKED_PER_SEC: u64 = 40_000_000;
/// No pull waits longer, whatever a server says.
const WAIT_MAX: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub(super) struct Outlook {
    /// Configured; also the longest that a wait goes on without getting on.
    wait: Duration,
    begun: Instant,
    /// When somebody looked first, and how many bytes were converted then.
    first: Option<(Instant, u64)>,
    /// When bytes were last seen to have been converted, and how many.
    last: Option<(Instant, u64)>,
}

impl Outlook {
    pub(super) fn new(wait: Duration, begun: Instant) -> Self {
        Self {
            wait,
            begun,
            first: None,
            last: None,
        }
    }

    /// How long to wait before the next look. Zero: no more.
    pub(super) fn time_left(&self, now: Instant) -> Duration {
        let waited = now.saturating_duration_since(self.begun);
        let left = self.wait.saturating_sub(waited);
        if !left.is_zero() || self.wait.is_zero() {
            return left;
        }
        let (Some(first), Some(last)) = (self.first, self.last) else {
            return Duration::ZERO;
        };
        let since_it_got_on = now.saturating_duration_since(last.0);
        let until_it_stands_still = self.wait.saturating_sub(since_it_got_on);
        match last.1 > first.1 {
            true => until_it_stands_still.min(WAIT_MAX.saturating_sub(waited)),
            false => Duration::ZERO,
        }
    }

    /// Takes a look. Whether there is a point in another one.
    pub(super) fn sees(&mut self, image: &Waiting, now: Instant) -> bool {
        let done = image.bytes_converted;
        let first = *self.first.get_or_insert((now, done));
        if self.last.is_none_or(|(_, before)| done > before) {
            self.last = Some((now, done));
        }
        if now.saturating_duration_since(self.begun) < self.wait {
            return true;
        }
        let (took, made) = (now.saturating_duration_since(first.0), done.saturating_sub(first.1));
        if made == 0 {
            return false;
        }
        let missing = image.bytes.saturating_sub(done);
        let to_go = took.as_secs_f64() * missing as f64 / made as f64;
        to_go <= image.bytes as f64 / UNPACKED_PER_SEC as f64
    }
}

#[cfg(test)]
mod tests {
    use headstart_layer_format::BlobDigest;

    use super::*;

    const WAIT: Duration = Duration::from_secs(20);
    const MB: u64 = 1_000_000;

    /// Seconds that are waited for an image of so many MB, of which `converted` MB are done after so many seconds.
    fn waited(mb: u64, converted: impl Fn(u64) -> u64) -> u64 {
        let begun = Instant::now();
        let mut outlook = Outlook::new(WAIT, begun);
        for secs in (2..).step_by(2) {
            let now = begun + Duration::from_secs(secs);
            let done = converted(secs).min(mb);
            let image = Waiting {
                manifest: BlobDigest::of(b"image"),
                waited_secs: secs,
                layers: 1,
                layers_ready: 0,
                bytes: mb * MB,
                bytes_converted: done * MB,
            };
            if done == mb || !outlook.sees(&image, now) || outlook.time_left(now).is_zero() {
                return secs;
            }
        }
        unreachable!()
    }

    #[test]
    fn what_is_done_in_time_is_waited_for_and_what_does_not_begin_is_not_longer() {
        assert_eq!(waited(100, |s| s * 10), 10);
        assert_eq!(waited(100, |_| 0), 20);
        assert_eq!(waited(100, |_| 40), 20, "what was done before the wait is no progress");
    }

    #[test]
    fn a_large_image_that_an_ordinary_pull_would_not_have_sooner_is_waited_for() {
        // 60 s of a link, or of converting; to unpack it takes 75.
        assert_eq!(waited(3000, |s| s * 50), 60);
    }

    #[test]
    fn a_conversion_slower_than_unpacking_is_not() {
        assert_eq!(waited(3000, |s| s * 5), 20);
        assert_eq!(waited(500, |s| s * 5), 20);
    }

    #[test]
    fn one_that_stands_still_is_given_up_as_it_would_have_been_at_the_start() {
        let stuck = waited(3000, |s| (s * 50).min(2900));
        // It was seen to get on at 58 s.
        assert_eq!(stuck, 58 + WAIT.as_secs());
        // One that slows down, as soon as unpacking would be sooner.
        assert_eq!(waited(3000, |s| s.min(24) * 50 + s.saturating_sub(24)), 50);
    }

    #[test]
    fn nobody_waits_for_ever() {
        assert_eq!(waited(1_000_000, |s| s * 50), WAIT_MAX.as_secs());
    }

    #[test]
    fn without_a_wait_there_is_none() {
        let begun = Instant::now();
        assert!(Outlook::new(Duration::ZERO, begun).time_left(begun).is_zero());
    }
}
