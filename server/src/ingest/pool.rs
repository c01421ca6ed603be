//! The threads that all conversions share, and whose turn it is.
//!
//! In: pieces of work, each in the lane of one conversion. Out: what each made, in the order it was put in.
//! Invariant: a lane holds at most [`LANE_BYTES`] (or one piece), so memory is bounded by the lanes, and whoever fills one
//! waits. Threads serve the lane of the lowest rank that has work; every [`FAIR_EVERY`]th piece is from the one that was not
//! served for the longest time, so nobody starves. A piece that fails, or panics, ends its lane and no other.
//! Not here: what is done with a piece ([`super::chunks`]), how many conversions there are (`read/conversion.rs`).

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use headstart_layer_format::toc::ChunkEntry;

use super::config::IngestConfig;
use super::error::Failure;
use super::frame;

/// Buffers that wait in a lane: what keeps the threads busy while its conversion reads on.
const LANE_BYTES: usize = 4 << 20;
/// One piece in so many goes by turns, not by rank.
const FAIR_EVERY: u64 = 4;
/// Pieces' buffers that are kept for the next ones.
const SPARE_MAX: usize = 16;
/// More threads than this are not started by themselves.
const THREADS_MAX: usize = 16;

/// Which conversion goes first: images in the order they came, and of one image the smallest layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// Counts images up.
    pub image: u64,
    /// Compressed bytes of the layer, as far as known.
    pub size: u64,
}

/// What a lane's pieces are for.
pub trait Work: Send + Sync {
    /// Handles one piece.
    fn piece(&self, raw: &[u8], tools: &mut Tools) -> Result<ChunkEntry, Failure>;
}

/// What a thread keeps from piece to piece.
pub struct Tools {
    pub compressor: zstd::bulk::Compressor<'static>,
    /// For compressed bytes.
    pub out: Vec<u8>,
}

impl Tools {
    fn new(level: i32) -> Result<Self, Failure> {
        Ok(Self {
            compressor: frame::compressor(level).map_err(Failure::Compress)?,
            out: Vec::new(),
        })
    }
}

/// The threads end when this is dropped.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// There is work, or none will come.
    work: Condvar,
    /// A lane has room, or a piece is done.
    room: Condvar,
    level: i32,
}

#[derive(Debug, Default)]
struct State {
    lanes: HashMap<u64, Queue>,
    next_lane: u64,
    /// Counts pieces that were begun.
    served: u64,
    spare: Vec<Vec<u8>>,
    stopping: bool,
}

struct Queue {
    rank: Rank,
    work: Arc<dyn Work>,
    waiting: VecDeque<(usize, Vec<u8>)>,
    waiting_bytes: usize,
    running: usize,
    /// [`State::served`] when it was last served.
    served: u64,
    done: Vec<(usize, ChunkEntry)>,
    failed: Option<Failure>,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("rank", &self.rank)
            .field("waiting", &self.waiting.len())
            .field("running", &self.running)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Nothing that may panic runs while it is locked.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// Starts `config.compress_threads`; `prepare` runs first on each.
    pub fn start(config: &IngestConfig, prepare: fn(&IngestConfig)) -> std::io::Result<Self> {
        let count = match config.compress_threads {
            0 => std::thread::available_parallelism()
                .map_or(1, usize::from)
                .min(THREADS_MAX),
            n => n,
        };
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            room: Condvar::new(),
            level: config.zstd_level,
        });
        // Those that were started end with this one, should another not start.
        let mut pool = Self {
            shared,
            threads: Vec::new(),
        };
        for i in 0..count {
            let (shared, config) = (Arc::clone(&pool.shared), config.clone());
            let thread = std::thread::Builder::new().name(format!("chunks-{i}"));
            pool.threads.push(thread.spawn(move || {
                prepare(&config);
                shared.run();
            })?);
        }
        Ok(pool)
    }

    /// A lane for one conversion.
    pub fn lane(&self, rank: Rank, work: Arc<dyn Work>) -> Lane {
        let mut state = self.shared.state();
        let id = state.next_lane;
        state.next_lane += 1;
        let served = state.served;
        state.lanes.insert(
            id,
            Queue {
                rank,
                work,
                waiting: VecDeque::new(),
                waiting_bytes: 0,
                running: 0,
                served,
                done: Vec::new(),
                failed: None,
            },
        );
        drop(state);
        Lane {
            shared: Arc::clone(&self.shared),
            id,
            count: 0,
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state().stopping = true;
        self.shared.work.notify_all();
        self.shared.room.notify_all();
        for thread in self.threads.drain(..) {
            // It catches what its work panics with.
            let _ = thread.join();
        }
    }
}

/// A conversion's way to the threads. Dropped, it waits for the pieces that are being handled and forgets the others.
#[derive(Debug)]
pub struct Lane {
    shared: Arc<Shared>,
    id: u64,
    count: usize,
}

impl Lane {
    /// Hands over the next piece; waits while the lane is full. An error says that `finish` knows more.
    pub fn push(&mut self, raw: Vec<u8>) -> Result<(), Failure> {
        let mut state = self.shared.state();
        loop {
            let stopping = state.stopping;
            let Some(queue) = state.lanes.get_mut(&self.id) else {
                return Err(Failure::WorkerGone);
            };
            if stopping || queue.failed.is_some() {
                return Err(Failure::WorkerGone);
            }
            if queue.waiting.is_empty() || queue.waiting_bytes + raw.capacity() <= LANE_BYTES {
                queue.waiting_bytes += raw.capacity();
                queue.waiting.push_back((self.count, raw));
                self.count += 1;
                break;
            }
            state = self.shared.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        self.shared.work.notify_one();
        Ok(())
    }

    /// An empty buffer, perhaps of a piece that is done.
    pub fn buffer(&self) -> Vec<u8> {
        self.shared.state().spare.pop().unwrap_or_default()
    }

    /// Waits until all is done; what was made, in order.
    pub fn finish(self) -> Result<Vec<ChunkEntry>, Failure> {
        let mut state = self.shared.state();
        loop {
            let stopping = state.stopping;
            let Some(queue) = state.lanes.get_mut(&self.id) else {
                return Err(Failure::WorkerGone);
            };
            if queue.running == 0 {
                if let Some(failure) = queue.failed.take() {
                    return Err(failure);
                }
                if queue.waiting.is_empty() {
                    let mut done = std::mem::take(&mut queue.done);
                    drop(state);
                    done.sort_unstable_by_key(|(at, _)| *at);
                    if done.len() != self.count {
                        return Err(Failure::WorkerGone);
                    }
                    return Ok(done.into_iter().map(|(_, made)| made).collect());
                }
                if stopping {
                    return Err(Failure::WorkerGone);
                }
            }
            state = self.shared.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        if let Some(queue) = state.lanes.get_mut(&self.id) {
            queue.waiting.clear();
        }
        while state.lanes.get(&self.id).is_some_and(|queue| queue.running > 0) {
            state = self.shared.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let queue = state.lanes.remove(&self.id);
        drop(state);
        // Whatever the work holds goes without the lock.
        drop(queue);
    }
}

impl State {
    /// The lane whose turn it is.
    fn turn(&self) -> Option<u64> {
        let waiting = self.lanes.iter().filter(|(_, queue)| !queue.waiting.is_empty());
        match self.served % FAIR_EVERY {
            0 => waiting.min_by_key(|(id, queue)| (queue.served, **id)),
            _ => waiting.min_by_key(|(id, queue)| (queue.rank, **id)),
        }
        .map(|(id, _)| *id)
    }
}

impl Shared {
    fn run(&self) {
        let mut tools = Tools::new(self.level);
        let mut state = self.state();
        loop {
            let Some(id) = state.turn() else {
                if state.stopping {
                    return;
                }
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.served += 1;
            let served = state.served;
            let Some(queue) = state.lanes.get_mut(&id) else {
                continue;
            };
            let Some((at, raw)) = queue.waiting.pop_front() else {
                continue;
            };
            queue.waiting_bytes -= raw.capacity();
            queue.running += 1;
            queue.served = served;
            let work = Arc::clone(&queue.work);
            drop(state);
            // Its room is free before it is handled: the next one is made meanwhile.
            self.room.notify_all();

            let made = match &mut tools {
                Ok(tools) => catch_unwind(AssertUnwindSafe(|| work.piece(&raw, tools))),
                Err(_) => Ok(Err(Failure::WorkerGone)),
            };
            if !matches!(made, Ok(Ok(_))) {
                // Nobody knows what a panic left of them.
                tools = Tools::new(self.level);
            }
            let made = made.unwrap_or(Err(Failure::WorkerGone));
            drop(work);

            state = self.state();
            if state.spare.len() < SPARE_MAX {
                state.spare.push(cleared(raw));
            }
            if let Some(queue) = state.lanes.get_mut(&id) {
                queue.running -= 1;
                match made {
                    Ok(made) => queue.done.push((at, made)),
                    Err(failure) => {
                        queue.waiting.clear();
                        queue.waiting_bytes = 0;
                        queue.failed.get_or_insert(failure);
                    }
                }
            }
            self.room.notify_all();
        }
    }
}

fn cleared(mut buffer: Vec<u8>) -> Vec<u8> {
    buffer.clear();
    buffer
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    use headstart_layer_format::ChunkDigest;

    use super::*;

    const WAIT: Duration = Duration::from_secs(60);

    fn pool(compress_threads: usize) -> Pool {
        let config = IngestConfig {
            compress_threads,
            ..IngestConfig::default()
        };
        Pool::start(&config, |_| {}).unwrap()
    }

    fn made(raw: &[u8]) -> ChunkEntry {
        ChunkEntry {
            digest: ChunkDigest::of(raw),
            raw_len: raw.len() as u32,
            frame_len: 1,
        }
    }

    /// Says what it is at, and waits until it may go on.
    struct Gated {
        name: &'static str,
        begun: Sender<&'static str>,
        may: Mutex<Receiver<()>>,
    }

    impl Work for Gated {
        fn piece(&self, raw: &[u8], _: &mut Tools) -> Result<ChunkEntry, Failure> {
            let _ = self.begun.send(self.name);
            let may = self.may.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = may.recv_timeout(WAIT);
            Ok(made(raw))
        }
    }

    /// Fails at a piece that is `b"fail"`, panics at `b"panic"`.
    struct Touchy;

    impl Work for Touchy {
        fn piece(&self, raw: &[u8], _: &mut Tools) -> Result<ChunkEntry, Failure> {
            match raw {
                b"fail" => Err(Failure::TimedOut),
                b"panic" => panic!("a test's panic"),
                _ => Ok(made(raw)),
            }
        }
    }

    #[test]
    fn what_is_made_comes_in_the_order_it_was_put_in() {
        let pool = pool(4);
        let mut lane = pool.lane(Rank::default(), Arc::new(Touchy));
        let pieces: Vec<Vec<u8>> = (0..500u32).map(|i| i.to_le_bytes().to_vec()).collect();
        for piece in &pieces {
            lane.push(piece.clone()).unwrap();
        }
        let expected: Vec<_> = pieces.iter().map(|p| made(p)).collect();
        assert_eq!(lane.finish().unwrap(), expected);
    }

    #[test]
    fn a_piece_that_fails_or_panics_ends_its_lane_and_no_other() {
        let pool = pool(2);
        for (bad, reason) in [(&b"fail"[..], "time limit"), (b"panic", "worker thread")] {
            let mut lane = pool.lane(Rank::default(), Arc::new(Touchy));
            let mut other = pool.lane(Rank::default(), Arc::new(Touchy));
            lane.push(bad.to_vec()).unwrap();
            // At some time it is told; what it has put in meanwhile is dropped.
            while lane.push(vec![0; 1 << 20]).is_ok() {
                other.push(vec![1]).unwrap();
            }
            assert!(lane.finish().unwrap_err().to_string().contains(reason));
            assert!(other.finish().is_ok());
        }
        // Threads survive it.
        let mut lane = pool.lane(Rank::default(), Arc::new(Touchy));
        lane.push(vec![7]).unwrap();
        assert_eq!(lane.finish().unwrap(), [made(&[7])]);
    }

    #[test]
    fn the_lowest_rank_goes_first_and_nobody_starves() {
        let (begun, order) = channel();
        let pool = pool(1);
        let mut gates = Vec::new();
        let mut lane = |name, image, size| {
            let (gate, may) = channel();
            let (begun, may) = (begun.clone(), Mutex::new(may));
            gates.push(gate);
            pool.lane(Rank { image, size }, Arc::new(Gated { name, begun, may }))
        };
        let mut later = lane("later", 2, 1);
        let mut large = lane("large", 1, 9);
        let mut small = lane("small", 1, 5);
        // It is busy with the first; the others come meanwhile, in the wrong order.
        later.push(vec![0]).unwrap();
        assert_eq!(order.recv_timeout(WAIT).unwrap(), "later");
        for lane in [&mut later, &mut large, &mut small] {
            for i in 0..8 {
                lane.push(vec![i]).unwrap();
            }
        }
        for gate in gates.iter().cycle().take(3 * 9) {
            gate.send(()).unwrap();
        }
        for lane in [later, large, small] {
            lane.finish().unwrap();
        }
        let order: Vec<&str> = order.try_iter().collect();
        assert_eq!(order.len(), 24);
        // Of the next eight, six are the small one's, and each of the others has had its turn.
        let of = |name, n: usize| order.iter().take(n).filter(|o| **o == name).count();
        assert_eq!((of("small", 8), of("large", 8), of("later", 8)), (6, 1, 1), "{order:?}");
        assert!(of("large", 16) > of("later", 16), "{order:?}");
    }

    #[test]
    fn a_full_lane_makes_its_conversion_wait_and_a_dropped_one_is_forgotten() {
        let (begun, order) = channel();
        let pool = pool(1);
        let (gate, may) = channel();
        let may = Mutex::new(may);
        let name = "slow";
        let mut lane = pool.lane(Rank::default(), Arc::new(Gated { name, begun, may }));
        let (pushed, count) = channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for i in 0..20 {
                    lane.push(vec![0; 1 << 20]).unwrap();
                    pushed.send(i).unwrap();
                }
            });
            assert_eq!(order.recv_timeout(WAIT).unwrap(), name);
            // One is at work and four fill the lane.
            for i in 0..5 {
                assert_eq!(count.recv_timeout(WAIT).unwrap(), i);
            }
            assert!(count.recv_timeout(Duration::from_millis(50)).is_err());
            for _ in 0..20 {
                gate.send(()).unwrap();
            }
        });
        // The lane was dropped with some in it: the one at work was waited for, the others are gone.
        let done = 1 + order.try_iter().count();
        assert!((16..=20).contains(&done), "{done}");
        assert!(pool.shared.state().lanes.is_empty());
    }
}
