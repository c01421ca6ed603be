//! Which layers are decompressed at the moment.
//!
//! In: conversions by rank, each with a [`Seat`]. Out: leave to decompress, a few buffers a turn.
//! Invariant: no more decompress at once than there are places, which are half as many as cores: decompressing is less than
//! half of a conversion's work, so all cores are kept busy, and a conversion's other threads have no more work than comes
//! out here. So a machine that is busy with serving has some threads of conversions beside it however many layers are
//! converted at once (each would get its share of a core, low as its priority is), and of layers that came together the
//! first is ready first. Nobody waits with a place: not for an upstream, nor for room behind. Whoever may go next is the one
//! of the lowest rank; of [`FAIR_EVERY`] times one, it is who has waited longest, so nobody starves.
//! Not here: the threads that hash and compress ([`super::pool`]).

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::pool::Rank;

/// Buffers of one turn.
const TURN: u32 = 8;
/// One turn in so many goes by how long its layer waited, not by rank.
const FAIR_EVERY: u64 = 4;

#[derive(Clone, Debug)]
pub struct Places {
    shared: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// Turns that were given.
    given: u64,
    /// Counts seats, and beginnings of waiting.
    count: u64,
    waiting: BTreeMap<(Rank, u64), Waiting>,
    /// Seats with a place.
    taken: HashSet<u64>,
}

#[derive(Debug)]
struct Waiting {
    since: u64,
    called: Arc<Condvar>,
}

impl State {
    /// Calls those whose turn it is, while there are places.
    fn call(&mut self) {
        while self.free > 0 {
            let fair = self.given.is_multiple_of(FAIR_EVERY);
            let next = match fair {
                true => self.waiting.iter().min_by_key(|(_, waiting)| waiting.since),
                false => self.waiting.first_key_value(),
            };
            let Some(key) = next.map(|(key, _)| *key) else { return };
            self.given += 1;
            self.free -= 1;
            self.taken.insert(key.1);
            if let Some(waiting) = self.waiting.remove(&key) {
                waiting.called.notify_one();
            }
        }
    }

    fn give_back(&mut self, id: u64) -> bool {
        let had = self.taken.remove(&id);
        self.free += usize::from(had);
        had
    }
}

impl Places {
    pub fn new(count: usize) -> Self {
        Self {
            shared: Arc::new(Mutex::new(State {
                free: count.max(1),
                given: 0,
                count: 0,
                waiting: BTreeMap::new(),
                taken: HashSet::new(),
            })),
        }
    }

    /// For this machine's cores.
    pub fn of_this_machine() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self::new(cores.div_ceil(2))
    }

    /// For one conversion.
    pub fn seat(&self, rank: Rank) -> Seat {
        let mut state = state(&self.shared);
        state.count += 1;
        Seat {
            shared: Arc::clone(&self.shared),
            rank,
            id: state.count,
            called: Arc::default(),
        }
    }
}

/// Nothing that may panic runs while it is locked.
fn state(shared: &Mutex<State>) -> MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Of one conversion: one thread at a time takes a place with it.
#[derive(Debug)]
pub struct Seat {
    shared: Arc<Mutex<State>>,
    rank: Rank,
    id: u64,
    called: Arc<Condvar>,
}

/// A place that was taken; given back when it is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    seat: &'a Seat,
    left: u32,
}

impl Seat {
    /// Waits for a place.
    pub fn turn(&self) -> Turn<'_> {
        self.wait(state(&self.shared));
        Turn { seat: self, left: TURN }
    }

    fn wait(&self, mut state: MutexGuard<'_, State>) {
        state.count += 1;
        let waiting = Waiting {
            since: state.count,
            called: Arc::clone(&self.called),
        };
        state.waiting.insert((self.rank, self.id), waiting);
        state.call();
        while !state.taken.contains(&self.id) {
            state = self.called.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Without the place, if there is one, while `work` waits for something.
    fn aside<T>(&self, work: impl FnOnce() -> T) -> T {
        let had = {
            let mut state = state(&self.shared);
            let had = state.give_back(self.id);
            state.call();
            had
        };
        let done = work();
        if had {
            self.wait(state(&self.shared));
        }
        done
    }
}

impl Turn<'_> {
    /// A buffer is done. After some of them others may come first.
    pub fn next(&mut self) {
        self.left -= 1;
        if self.left == 0 {
            self.left = TURN;
            let mut state = state(&self.seat.shared);
            if !state.waiting.is_empty() {
                // Both at once: of the lowest rank, it goes on.
                state.free += usize::from(state.taken.remove(&self.seat.id));
                self.seat.wait(state);
            }
        }
    }

    /// Gives others the place while `work` waits for something.
    pub fn aside<T>(&mut self, work: impl FnOnce() -> T) -> T {
        self.seat.aside(work)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = state(&self.seat.shared);
        state.give_back(self.seat.id);
        state.call();
    }
}

/// An input that may make its reader wait, which then has no place meanwhile.
#[derive(Debug)]
pub struct Aside<R> {
    input: R,
    seat: Arc<Seat>,
}

impl<R> Aside<R> {
    pub fn new(input: R, seat: Arc<Seat>) -> Self {
        Self { input, seat }
    }
}

impl<R: Read> Read for Aside<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Self { input, seat } = self;
        seat.aside(|| input.read(buf))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::{Duration, Instant};

    use super::*;

    const WAIT: Duration = Duration::from_secs(60);

    fn seat(places: &Places, image: u64, size: u64) -> Arc<Seat> {
        Arc::new(places.seat(Rank { image, size }))
    }

    fn until(what: impl Fn() -> bool) {
        let give_up = Instant::now() + WAIT;
        while !what() {
            assert!(Instant::now() < give_up);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// On a thread of its own: says that its turn has come, then lets the others.
    fn comes(seat: &Arc<Seat>, name: &'static str, come: &Sender<&'static str>) {
        let (seat, come) = (Arc::clone(seat), come.clone());
        std::thread::spawn(move || {
            let _turn = seat.turn();
            let _ = come.send(name);
        });
    }

    fn order(come: &Receiver<&'static str>, count: usize) -> Vec<&'static str> {
        (0..count).map(|_| come.recv_timeout(WAIT).unwrap()).collect()
    }

    #[test]
    fn the_lowest_rank_goes_first_and_nobody_starves() {
        let places = Places::new(1);
        let (come, comers) = channel();
        let first = seat(&places, 9, 9);
        let turn = first.turn();
        for (waiting, (name, image, size)) in [
            ("late", 3, 1),
            ("later", 2, 1),
            ("large", 1, 9),
            ("middle", 1, 7),
            ("small", 1, 5),
        ]
        .into_iter()
        .enumerate()
        {
            comes(&seat(&places, image, size), name, &come);
            until(|| state(&places.shared).waiting.len() == waiting + 1);
        }
        assert!(comers.try_recv().is_err(), "the place is taken");
        drop(turn);
        // The fourth is who has waited longest.
        assert_eq!(order(&comers, 5), ["small", "middle", "large", "late", "later"]);
        until(|| state(&places.shared).free == 1);
    }

    #[test]
    fn a_turn_ends_after_some_buffers_if_somebody_waits() {
        let places = Places::new(1);
        let (come, comers) = channel();
        let mine = seat(&places, 2, 1);
        let mut turn = mine.turn();
        // Nobody waits.
        for _ in 0..3 * TURN {
            turn.next();
        }
        comes(&seat(&places, 1, 1), "earlier", &come);
        comes(&seat(&places, 3, 1), "later", &come);
        until(|| state(&places.shared).waiting.len() == 2);
        for _ in 1..TURN {
            turn.next();
        }
        assert!(comers.try_recv().is_err(), "the turn is not over");
        turn.next();
        assert_eq!(comers.recv_timeout(WAIT).unwrap(), "earlier");
        // Between the two, this one was called again.
        assert!(state(&places.shared).taken.contains(&mine.id));
        assert!(comers.try_recv().is_err());
        drop(turn);
        assert_eq!(comers.recv_timeout(WAIT).unwrap(), "later");
    }

    /// Its read returns only when somebody else has had a place.
    struct Upstream {
        other: Arc<Seat>,
    }

    impl Read for Upstream {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            let (come, comers) = channel();
            comes(&self.other, "other", &come);
            comers.recv_timeout(WAIT).map_err(io::Error::other)?;
            Ok(0)
        }
    }

    #[test]
    fn nobody_waits_for_something_else_with_a_place() {
        let places = Places::new(1);
        let (mine, other) = (seat(&places, 1, 1), seat(&places, 2, 1));
        let mut input = Aside::new(
            Upstream {
                other: Arc::clone(&other),
            },
            Arc::clone(&mine),
        );
        // Without a place it is not given one.
        assert_eq!(input.read(&mut []).unwrap(), 0);
        until(|| state(&places.shared).free == 1);
        let mut turn = mine.turn();
        assert_eq!(input.read(&mut []).unwrap(), 0);
        assert!(state(&places.shared).taken.contains(&mine.id), "it has its place again");
        let (come, comers) = channel();
        turn.aside(|| {
            comes(&other, "other", &come);
            assert_eq!(comers.recv_timeout(WAIT).unwrap(), "other");
        });
        assert!(state(&places.shared).taken.contains(&mine.id));
        drop(turn);
        until(|| state(&places.shared).free == 1);
    }

    #[test]
    fn no_more_have_a_place_than_there_are() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let places = Places::new(2);
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for image in 0..6 {
                let (seat, now, most) = (seat(&places, image, 1), &now, &most);
                scope.spawn(move || {
                    let mut turn = seat.turn();
                    for i in 0..200 {
                        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::yield_now();
                        now.fetch_sub(1, Ordering::SeqCst);
                        match i % 7 {
                            0 => turn.aside(std::thread::yield_now),
                            _ => turn.next(),
                        }
                    }
                });
            }
        });
        assert!(most.into_inner() <= 2);
        let state = state(&places.shared);
        assert_eq!((state.free, state.waiting.len(), state.taken.len()), (2, 0, 0));
    }
}
