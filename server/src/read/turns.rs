//! Turns to fetch: how many requests to upstreams run at once, and whose.
//!
//! In: who asks, and how long it can wait. Out: a [`FetchTurn`], or that there was none in time.
//! Invariant: no more turns are out than there are places. One asker never has, nor stands in line for, more than three
//! quarters of them: a fetch goes on when its client has left, so a client that asks for much and leaves could otherwise
//! keep everybody out. The table holds only askers with a turn or in line, and forgets the others when it has doubled.
//! Not here: requests of clients as such (`http/admission.rs`).

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// Askers in the table before it is first looked through.
const ASKERS_MIN: usize = 64;

tokio::task_local! {
    static ASKER: Asker;
}

/// For whom something is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Asker {
    /// A client, by what limits go by.
    Client(IpAddr),
    /// Conversions, and what an administrator has fetched.
    Server,
}

impl Asker {
    /// Of the request whose task this is.
    pub fn current() -> Self {
        ASKER.try_with(|asker| *asker).unwrap_or(Self::Server)
    }

    /// Runs the work of one request.
    pub async fn asks<F: Future>(self, work: F) -> F::Output {
        ASKER.scope(self, work).await
    }
}

/// See the file's comment.
#[derive(Debug)]
pub struct Turns {
    places: Arc<Semaphore>,
    all: usize,
    one_max: usize,
    askers: Mutex<Askers>,
}

#[derive(Debug)]
struct Askers {
    shares: HashMap<Asker, Weak<Semaphore>>,
    swept_at: usize,
}

/// The right to fetch; given back when it is dropped.
#[derive(Debug)]
pub struct FetchTurn {
    _place: OwnedSemaphorePermit,
    _share: OwnedSemaphorePermit,
    /// Of the asker: gone with its last turn.
    _asker: Arc<Semaphore>,
}

impl Turns {
    pub fn new(places: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(places)),
            all: places,
            one_max: places - places.div_ceil(4).min(places - 1),
            askers: Mutex::new(Askers {
                shares: HashMap::new(),
                swept_at: ASKERS_MIN,
            }),
        }
    }

    /// `None`: it did not come in time.
    pub async fn take(&self, asker: Asker, wait: Duration) -> Option<FetchTurn> {
        let share = self.share(asker);
        let both = async {
            // In this order: who has had its share stands in nobody's way. Neither is ever closed.
            let own = share.clone().acquire_owned().await.ok()?;
            let place = self.places.clone().acquire_owned().await.ok()?;
            Some(FetchTurn {
                _place: place,
                _share: own,
                _asker: share,
            })
        };
        timeout(wait, both).await.ok().flatten()
    }

    /// Whether more than half of them are out: who only wants to be early leaves the rest to others.
    pub fn is_crowded(&self) -> bool {
        self.places.available_permits() < self.all.div_ceil(2)
    }

    fn share(&self, asker: Asker) -> Arc<Semaphore> {
        let mut askers = self.askers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = askers.shares.get(&asker).and_then(Weak::upgrade) {
            return share;
        }
        if askers.shares.len() >= askers.swept_at {
            askers.shares.retain(|_, share| share.strong_count() > 0);
            askers.swept_at = (askers.shares.len() * 2).max(ASKERS_MIN);
        }
        let share = Arc::new(Semaphore::new(self.one_max));
        askers.shares.insert(asker, Arc::downgrade(&share));
        share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    fn client(n: u8) -> Asker {
        Asker::Client(IpAddr::from([10, 0, 0, n]))
    }

    #[tokio::test]
    async fn one_asker_leaves_a_quarter_to_the_others() {
        for (places, most) in [(1, 1), (2, 1), (4, 3), (64, 48)] {
            let turns = Turns::new(places);
            let mut taken = Vec::new();
            while let Some(turn) = turns.take(client(1), SOON).await {
                taken.push(turn);
            }
            assert_eq!(taken.len(), most, "of {places}");
            let other = turns.take(client(2), SOON).await;
            assert_eq!(other.is_some(), places > 1);
            drop(other);
            taken.pop();
            assert!(turns.take(client(1), SOON).await.is_some());
        }
    }

    #[tokio::test]
    async fn who_waits_for_its_own_share_stands_in_nobodys_way() {
        let turns = Arc::new(Turns::new(4));
        let mut taken = Vec::new();
        for _ in 0..3 {
            taken.push(turns.take(client(1), SOON).await.unwrap());
        }
        let line: Vec<_> = (0..20)
            .map(|_| {
                let turns = turns.clone();
                tokio::spawn(async move { turns.take(client(1), Duration::from_secs(60)).await })
            })
            .collect();
        tokio::task::yield_now().await;
        for _ in 0..5 {
            assert!(turns.take(client(2), SOON).await.is_some());
        }
        drop(taken);
        for one in line {
            assert!(one.await.unwrap().is_some());
        }
    }

    #[tokio::test]
    async fn askers_that_have_gone_are_forgotten() {
        let turns = Turns::new(2);
        for n in 0..=255 {
            for m in 0..4 {
                let asker = Asker::Client(IpAddr::from([10, 0, m, n]));
                assert!(turns.take(asker, SOON).await.is_some());
            }
        }
        assert!(turns.askers.lock().unwrap().shares.len() <= ASKERS_MIN);
        assert_eq!(Asker::current(), Asker::Server);
        assert_eq!(client(9).asks(async { Asker::current() }).await, client(9));
    }
}
