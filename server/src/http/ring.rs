//! Who waits, and whose turn is next: first come, first served within a client, one after another among clients.
//!
//! In: clients that wait, each time for one `T`. Out: the next to be given one, of those that may have it now.
//! Invariant: after one of a client's was served, every other client that may be served comes first. Those that wait no
//! more are never served, and only clients with somebody in the line have an entry.
//! Not here: how many may run or wait ([`super::admission`], [`super::streams`]).

use std::collections::{HashMap, VecDeque};

use tokio::sync::oneshot;

use super::clients::ClientKey;

#[derive(Debug)]
pub struct Ring<T> {
    lines: HashMap<ClientKey, VecDeque<oneshot::Sender<T>>>,
    /// The clients of `lines`, whose turn it is first.
    order: VecDeque<ClientKey>,
    waiting: usize,
}

impl<T> Default for Ring<T> {
    fn default() -> Self {
        Self {
            lines: HashMap::new(),
            order: VecDeque::new(),
            waiting: 0,
        }
    }
}

impl<T> Ring<T> {
    /// To the end of its client's line.
    pub fn push(&mut self, key: ClientKey) -> oneshot::Receiver<T> {
        let (sender, receiver) = oneshot::channel();
        let order = &mut self.order;
        let line = self.lines.entry(key).or_insert_with(|| {
            order.push_back(key);
            VecDeque::new()
        });
        line.push_back(sender);
        self.waiting += 1;
        receiver
    }

    /// The next in turn whose client `may` be served.
    pub fn pop(&mut self, may: impl Fn(&ClientKey) -> bool) -> Option<(ClientKey, oneshot::Sender<T>)> {
        let mut passed = 0;
        while passed < self.order.len() {
            let key = self.order.pop_front()?;
            if !may(&key) {
                self.order.push_back(key);
                passed += 1;
                continue;
            }
            let Some(line) = self.lines.get_mut(&key) else { continue };
            let mut next = None;
            while next.is_none() && !line.is_empty() {
                next = line.pop_front().filter(|sender| !sender.is_closed());
                self.waiting -= 1;
            }
            if line.is_empty() {
                self.lines.remove(&key);
            } else {
                self.order.push_back(key);
            }
            if let Some(sender) = next {
                return Some((key, sender));
            }
        }
        None
    }

    /// Takes those of a client out that wait no more.
    pub fn sweep(&mut self, key: &ClientKey) {
        let Some(line) = self.lines.get_mut(key) else { return };
        let before = line.len();
        line.retain(|sender| !sender.is_closed());
        self.waiting -= before - line.len();
        if line.is_empty() {
            self.lines.remove(key);
            self.order.retain(|other| other != key);
        }
    }

    /// Over all clients.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    pub fn waiting_of(&self, key: &ClientKey) -> usize {
        self.lines.get(key).map_or(0, VecDeque::len)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn client(n: u8) -> ClientKey {
        ClientKey::new(IpAddr::from([10, 0, 0, n]))
    }

    #[test]
    fn clients_take_turns_and_who_left_is_passed_over() {
        let mut ring = Ring::default();
        let all = [1, 1, 1, 2, 2, 3].map(|n| (n, ring.push(client(n))));
        let (kept, left): (Vec<_>, Vec<_>) = all.into_iter().partition(|(n, _)| *n != 2);
        drop(left);
        let mut served = Vec::new();
        while let Some((key, sender)) = ring.pop(|_| true) {
            sender.send(key).unwrap();
            served.push(key);
        }
        assert_eq!(served, [1, 3, 1, 1].map(client));
        assert!(kept.into_iter().all(|(n, mut got)| got.try_recv() == Ok(client(n))));
        assert_eq!((ring.waiting(), ring.lines.len(), ring.order.len()), (0, 0, 0));
    }

    #[test]
    fn who_may_not_be_served_keeps_its_place() {
        let mut ring = Ring::<()>::default();
        let waiting = [1, 1, 2].map(|n| ring.push(client(n)));
        let not_one = |key: &ClientKey| *key != client(1);
        assert_eq!(ring.pop(not_one).map(|(key, _)| key), Some(client(2)));
        assert!(ring.pop(not_one).is_none());
        assert_eq!((ring.waiting(), ring.waiting_of(&client(1))), (2, 2));
        drop(waiting);
        ring.sweep(&client(1));
        assert_eq!((ring.waiting(), ring.lines.len(), ring.order.len()), (0, 0, 0));
    }
}
