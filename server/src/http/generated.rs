//! Answers that are made in memory and can be large: how many there are at once.
//!
//! In: a function that makes one. Out: its bytes, which hold a place until the last of them is sent or given up.
//! Invariant: there are never more than so many, however slowly clients take them.
//! Not here: how large one may be; see who makes them.

use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Places for one kind of answer.
#[derive(Debug)]
pub struct Generated(Semaphore);

/// Bytes with their place.
struct Held {
    bytes: Vec<u8>,
    _place: SemaphorePermit<'static>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Generated {
    pub const fn new(at_once: usize) -> Self {
        Self(Semaphore::const_new(at_once))
    }

    /// `None`: there is no place.
    pub fn hold<E>(&'static self, make: impl FnOnce() -> Result<Vec<u8>, E>) -> Option<Result<Bytes, E>> {
        let place = self.0.try_acquire().ok()?;
        let made = make();
        Some(made.map(|bytes| Bytes::from_owner(Held { bytes, _place: place })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_the_last_byte_is_gone() {
        static TWO: Generated = Generated::new(2);
        let hold = || TWO.hold(|| Ok::<_, ()>(b"text".to_vec())).map(Result::unwrap);
        let (first, second) = (hold().unwrap(), hold().unwrap());
        assert_eq!(first, "text");
        assert!(hold().is_none());
        let rest = first.slice(3..);
        drop(first);
        assert!(hold().is_none());
        drop(rest);
        assert!(hold().is_some());
        assert!(TWO.hold(|| Err::<Vec<u8>, _>(())).unwrap().is_err());
        assert!(hold().is_some());
        drop(second);
    }
}
