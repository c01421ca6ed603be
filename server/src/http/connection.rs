//! One connection's clock: what of it runs, and when its peer has had time enough.
//!
//! In: requests and answers of the connection as they begin and end, and samples of what the peer has taken.
//! Out: a [`Verdict`] when the connection is to be closed.
//! Invariant: only time in which the peer is to act counts: waiting for an upstream is never its fault. A peer is slow
//! only if neither the answer nor the connection moves: with HTTP/1.1 the kernel's word is final, and with HTTP/2, where
//! one answer may stand still behind a closed window while others move, it only buys time.
//! Not here: sockets ([`super::serve`], [`super::socket`]), bodies ([`super::answer`]).

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::socket::Taken;
use crate::{config::HttpConfig, metrics::label::cut};

/// Bytes that show that a connection moves. Less may be an HTTP/2 ping or the end of a handshake.
const MOVED_MIN: u64 = 4 << 10;

/// An answer over HTTP/2 may stand still this many times longer than any other while its connection moves.
const HTTP2_PATIENCE: u32 = 4;

/// How often a connection is looked at: an eighth of its shortest time-out, but within these.
const TICK_MIN: Duration = Duration::from_millis(10);
const TICK_MAX: Duration = Duration::from_secs(1);

/// The times of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    head: Duration,
    idle: Duration,
    stall: Duration,
    rate_min: u64,
    window: Duration,
}

impl Times {
    pub fn new(config: &HttpConfig) -> Self {
        Self {
            head: Duration::from_millis(config.header_timeout_ms),
            idle: Duration::from_millis(config.idle_timeout_ms),
            stall: Duration::from_millis(config.write_timeout_ms),
            rate_min: config.min_rate_bytes_per_sec,
            window: Duration::from_millis(config.min_rate_window_ms),
        }
    }

    pub fn tick(&self) -> Duration {
        let shortest = self.head.min(self.idle).min(self.stall).min(self.window);
        (shortest / 8).clamp(TICK_MIN, TICK_MAX)
    }
}

/// What to do with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Fine,
    /// Nothing is asked for: say goodbye.
    Idle,
    /// Close it, for a reason of `metrics::label::cut`.
    Cut(&'static str),
}

/// Shared by a connection's task and its requests.
#[derive(Debug)]
pub struct Connection {
    times: Times,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    http2: bool,
    asked: bool,
    running: usize,
    /// Since when nothing runs.
    idle_since: Instant,
    /// What the peer had taken and sent when that began, if it was looked at.
    idle_taken: Option<Taken>,
    /// When a head began to arrive.
    head_since: Option<Instant>,
    /// When it was told that nothing is expected of it any more.
    goodbye: Option<Instant>,
    answers: Vec<Answer>,
}

#[derive(Debug)]
struct Answer {
    progress: Arc<Progress>,
    /// Since the last change.
    still: Option<Mark>,
    /// Since the window began.
    window: Option<Mark>,
}

/// Time of the peer's since something, and what the connection had moved then.
#[derive(Clone, Copy, Debug)]
struct Mark {
    handed: u64,
    acked: u64,
    peer_time: Duration,
}

/// How far an answer is; fed by its body.
#[derive(Debug, Default)]
pub struct Progress {
    handed: AtomicU64,
    /// The body waits for us, and the peer for it.
    ours: AtomicBool,
}

impl Progress {
    pub fn hand(&self, bytes: u64) {
        self.handed.fetch_add(bytes, Relaxed);
        self.ours.store(false, Relaxed);
    }

    pub fn wait(&self) {
        self.ours.store(true, Relaxed);
    }
}

/// One request of a connection, until its answer is out.
#[derive(Debug)]
pub struct Running {
    connection: Arc<Connection>,
    answer: Option<Arc<Progress>>,
}

impl Connection {
    pub fn new(times: Times, now: Instant) -> Arc<Self> {
        Arc::new(Self {
            times,
            state: Mutex::new(State {
                http2: false,
                asked: false,
                running: 0,
                idle_since: now,
                idle_taken: None,
                head_since: Some(now),
                goodbye: None,
                answers: Vec::new(),
            }),
        })
    }

    /// A request head is here.
    pub fn ask(self: &Arc<Self>, http2: bool) -> Running {
        let mut state = self.state();
        state.http2 = http2;
        state.asked = true;
        state.running += 1;
        state.head_since = None;
        Running {
            connection: self.clone(),
            answer: None,
        }
    }

    /// One look, `tick` after the last.
    pub fn look(&self, now: Instant, tick: Duration, taken: Option<Taken>) -> Verdict {
        let mut state = self.state();
        if state.running > 0 {
            return state.look_at_answers(&self.times, tick, taken.unwrap_or_default().acked);
        }
        state.look_at_idleness(&self.times, now, taken)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is left half-written when one of the few lines under this lock panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn look_at_answers(&mut self, times: &Times, tick: Duration, acked: u64) -> Verdict {
        let http2 = self.http2;
        self.answers
            .iter_mut()
            .map(|answer| answer.look(times, http2, tick, acked))
            .find(|verdict| *verdict != Verdict::Fine)
            .unwrap_or(Verdict::Fine)
    }

    fn look_at_idleness(&mut self, times: &Times, now: Instant, taken: Option<Taken>) -> Verdict {
        self.answers.clear();
        let before = *self.idle_taken.get_or_insert(taken.unwrap_or_default());
        let taken = taken.unwrap_or(before);
        // HTTP/2 peers send signs of life; what they leave half-sent ends with the idle time.
        if taken.received > before.received && !self.http2 && self.asked {
            self.head_since.get_or_insert(now);
        }
        if let Some(since) = self.head_since.filter(|_| self.goodbye.is_none()) {
            return match now - since >= times.head {
                true => Verdict::Cut(cut::HEAD),
                false => Verdict::Fine,
            };
        }
        let idle = now - self.idle_since;
        let Some(goodbye) = self.goodbye else {
            if idle < times.idle {
                return Verdict::Fine;
            }
            self.goodbye = Some(now);
            return Verdict::Idle;
        };
        // A peer that only plays with pings moves, too.
        if self.http2 && now - goodbye >= times.stall * HTTP2_PATIENCE {
            return Verdict::Cut(cut::STALL);
        }
        // Still there after the goodbye: it may be taking what the kernel holds of its last answer.
        if idle < times.idle + times.stall {
            return Verdict::Fine;
        }
        if taken.acked - before.acked < MOVED_MIN {
            return Verdict::Cut(cut::STALL);
        }
        self.idle_since = now - times.idle;
        self.idle_taken = Some(taken);
        Verdict::Fine
    }
}

impl Answer {
    fn look(&mut self, times: &Times, http2: bool, tick: Duration, acked: u64) -> Verdict {
        let handed = self.progress.handed.load(Relaxed);
        let fresh = Mark {
            handed,
            acked,
            peer_time: Duration::ZERO,
        };
        let still = self.still.get_or_insert(fresh);
        let window = self.window.get_or_insert(fresh);
        if self.progress.ours.load(Relaxed) {
            *still = fresh;
            return Verdict::Fine;
        }
        if handed != still.handed {
            *still = fresh;
        }
        still.peer_time += tick;
        window.peer_time += tick;
        if still.peer_time >= times.stall {
            let moves = acked.saturating_sub(still.acked) >= MOVED_MIN;
            if !moves || (http2 && still.peer_time >= times.stall * HTTP2_PATIENCE) {
                return Verdict::Cut(cut::STALL);
            }
            if !http2 {
                *still = fresh;
            }
        }
        if window.peer_time >= times.window {
            let least = (times.rate_min as f64 * window.peer_time.as_secs_f64()) as u64;
            let own = handed - window.handed >= least;
            let all = acked.saturating_sub(window.acked) >= least;
            if own || (all && !http2) {
                *window = fresh;
            } else if !all || window.peer_time >= times.window * HTTP2_PATIENCE {
                return Verdict::Cut(cut::SLOW);
            }
        }
        Verdict::Fine
    }
}

impl Running {
    /// The answer has a body, whose progress is this.
    pub fn answer(&mut self) -> Arc<Progress> {
        let progress = Arc::new(Progress::default());
        self.answer = Some(progress.clone());
        self.connection.state().answers.push(Answer {
            progress: progress.clone(),
            still: None,
            window: None,
        });
        progress
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.connection.state();
        if let Some(own) = &self.answer {
            // At most `streams_max` of them.
            state.answers.retain(|a| !Arc::ptr_eq(&a.progress, own));
        }
        state.running = state.running.saturating_sub(1);
        if state.running == 0 {
            state.idle_since = Instant::now();
            state.idle_taken = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_secs(1);

    fn times() -> Times {
        Times::new(&HttpConfig {
            header_timeout_ms: 10_000,
            idle_timeout_ms: 20_000,
            write_timeout_ms: 8_000,
            min_rate_bytes_per_sec: 1000,
            min_rate_window_ms: 30_000,
            ..HttpConfig::default()
        })
    }

    fn taken(acked: u64, received: u64) -> Option<Taken> {
        Some(Taken { acked, received })
    }

    /// The first verdict that is not fine, and the second in which it comes.
    fn run(seconds: u64, mut look: impl FnMut(u64) -> Verdict) -> Option<(u64, Verdict)> {
        (1..=seconds).map(|s| (s, look(s))).find(|(_, v)| *v != Verdict::Fine)
    }

    #[test]
    fn a_head_has_its_time_and_so_has_silence() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let silent = Connection::new(times(), start);
        let verdict = run(60, |s| silent.look(at(s), TICK, taken(0, 0)));
        assert_eq!(verdict, Some((10, Verdict::Cut(cut::HEAD))));

        let connection = Connection::new(times(), start);
        drop(connection.ask(false));
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        // A byte of the next head in the third second, and nothing more.
        let verdict = run(60, |s| connection.look(at(s), TICK, taken(100, 50 + u64::from(s >= 3))));
        assert_eq!(verdict, Some((13, Verdict::Cut(cut::HEAD))));

        let connection = Connection::new(times(), start);
        drop(connection.ask(false));
        let at = |s: u64| Instant::now() + Duration::from_secs(s);
        let verdict = run(60, |s| connection.look(at(s), TICK, taken(100, 50)));
        assert_eq!(verdict, Some((20, Verdict::Idle)));
        let verdict = run(60, |s| connection.look(at(20 + s), TICK, taken(100, 50)));
        assert_eq!(verdict, Some((8, Verdict::Cut(cut::STALL))));
    }

    #[test]
    fn pings_do_not_keep_a_connection_for_ever() {
        let connection = Connection::new(times(), Instant::now());
        drop(connection.ask(true));
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let pings = |s: u64| taken(s * 9000, s * 9000);
        assert_eq!(
            run(60, |s| connection.look(at(s), TICK, pings(s))),
            Some((20, Verdict::Idle))
        );
        let verdict = run(300, |s| connection.look(at(20 + s), TICK, pings(20 + s)));
        assert_eq!(verdict, Some((32, Verdict::Cut(cut::STALL))));
    }

    #[test]
    fn a_peer_that_takes_its_time_is_told_apart_from_one_that_waits_for_us() {
        for (http2, handed, acked, ours, expected) in [
            // Takes 2,000 bytes a second, which only the kernel sees: 4 KiB and more between two looks at the stall.
            (false, 0, 2000, false, None),
            // The upstream is slow, not the peer.
            (false, 0, 0, true, None),
            // Takes nothing.
            (false, 0, 0, false, Some((8, cut::STALL))),
            (true, 0, 0, false, Some((8, cut::STALL))),
            // Takes 600 bytes a second: it moves, but below the rate.
            (false, 0, 600, false, Some((30, cut::SLOW))),
            (true, 600, 600, false, Some((30, cut::SLOW))),
            (true, 2000, 2000, false, None),
            // Another answer of the connection moves: this one has more patience, and an end.
            (true, 0, 9000, false, Some((32, cut::STALL))),
            (true, 100, 9000, false, Some((120, cut::SLOW))),
        ] {
            let start = Instant::now();
            let connection = Connection::new(times(), start);
            let mut running = connection.ask(http2);
            let progress = running.answer();
            let verdict = run(300, |s| {
                progress.hand(handed);
                if ours {
                    progress.wait();
                }
                connection.look(start + Duration::from_secs(s), TICK, taken(s * acked, 0))
            });
            // The first look only takes the marks.
            let expected = expected.map(|(s, why)| (s, Verdict::Cut(why)));
            assert_eq!(
                verdict, expected,
                "http2 {http2} handed {handed} acked {acked} ours {ours}"
            );
        }
    }
}
