//! What kind of link a relay pretends to be.
//!
//! In: a round trip and a rate, or the name of a profile. Out: a [`LinkShape`], and a [`Wire`] on which any number of
//! relays share it.
//! Invariant: bytes leave a wire in the order in which they came onto it, none sooner than half a round trip after that,
//! and in each direction never more than the rate over all relays on it. A wire keeps two instants and no bytes.
//! Not here: loss, jitter, TCP's slow start (so times over an emulated link are a lower bound of a real one's), sockets.

use std::{
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A link between two machines. The default is loopback itself: no delay, no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct LinkShape {
    /// Half of it is waited in either direction; a new connection waits a whole one first, for its handshake.
    pub rtt: Duration,
    /// At most this many bytes a second in each direction, over all connections; `None` is unlimited.
    pub bytes_per_second_max: Option<u64>,
}

impl LinkShape {
    /// Two machines in one building.
    pub const LAN: LinkShape = LinkShape::of(500, 5_000);
    /// A registry somewhere else.
    pub const WAN: LinkShape = LinkShape::of(20_000, 400);

    const fn of(rtt_us: u64, megabits: u64) -> LinkShape {
        LinkShape {
            rtt: Duration::from_micros(rtt_us),
            bytes_per_second_max: Some(megabits * 125_000),
        }
    }

    /// Whether bytes may pass as they come.
    pub fn is_transparent(&self) -> bool {
        *self == LinkShape::default()
    }

    /// For people: `0.5 ms, 5000 Mbit/s`.
    pub fn title(&self) -> String {
        if self.is_transparent() {
            return "loopback".to_owned();
        }
        let rate = match self.bytes_per_second_max {
            Some(bytes) => format!("{} Mbit/s", bytes / 125_000),
            None => "unlimited".to_owned(),
        };
        format!("{} ms round trip, {rate}", self.rtt.as_secs_f64() * 1000.0)
    }
}

/// `lan`, `wan`, `none`, or `RTT_MS/MBIT` (`20/400`).
impl FromStr for LinkShape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "lan" => return Ok(LinkShape::LAN),
            "wan" => return Ok(LinkShape::WAN),
            "none" => return Ok(LinkShape::default()),
            _ => {}
        }
        let wrong = || format!("{text} is none of lan, wan, none and RTT_MS/MBIT");
        let (rtt_ms, megabits) = text.split_once('/').ok_or_else(wrong)?;
        let rtt_ms: f64 = rtt_ms.parse().map_err(|_| wrong())?;
        let megabits: u64 = megabits.parse().map_err(|_| wrong())?;
        // Ten seconds and a terabit: beyond, it is a mistake.
        if !(0.0..=10_000.0).contains(&rtt_ms) || !(1..=1_000_000).contains(&megabits) {
            return Err(wrong());
        }
        Ok(LinkShape::of((rtt_ms * 1000.0) as u64, megabits))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From clients to the target.
    Up,
    Down,
}

/// One link, shared by the relays on it.
#[derive(Clone, Debug)]
pub struct Wire {
    shape: LinkShape,
    /// Until when each direction is busy with what was given to it.
    busy_until: Arc<Mutex<[Instant; 2]>>,
}

impl Wire {
    pub fn new(shape: LinkShape) -> Wire {
        Wire {
            shape,
            busy_until: Arc::new(Mutex::new([Instant::now(); 2])),
        }
    }

    pub fn shape(&self) -> LinkShape {
        self.shape
    }

    /// Takes `bytes` that came now, on a connection that may carry none before `open_at`. Returns when they arrive.
    pub fn send(&self, direction: Direction, bytes: usize, open_at: Instant) -> Instant {
        let start = Instant::now().max(open_at);
        let Some(rate) = self.shape.bytes_per_second_max else {
            return start + self.shape.rtt / 2;
        };
        let taken = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        let mut busy_until = self.busy_until.lock().unwrap_or_else(PoisonError::into_inner);
        let busy_until = &mut busy_until[direction as usize];
        *busy_until = start.max(*busy_until) + taken;
        *busy_until + self.shape.rtt / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_have_names_and_others_are_numbers() {
        assert_eq!("lan".parse(), Ok(LinkShape::LAN));
        assert_eq!("wan".parse(), Ok("20/400".parse::<LinkShape>().unwrap()));
        assert!("none".parse::<LinkShape>().unwrap().is_transparent());
        for wrong in ["", "lam", "20", "20/0", "-1/400", "20/x", "1e9/1"] {
            assert!(wrong.parse::<LinkShape>().is_err(), "{wrong}");
        }
        assert_eq!(LinkShape::LAN.title(), "0.5 ms round trip, 5000 Mbit/s");
    }

    #[test]
    fn relays_on_one_wire_share_its_rate_and_directions_do_not() {
        let wire = Wire::new("100/8".parse().unwrap()); // 1 MB/s
        let now = Instant::now();
        let first = wire.send(Direction::Down, 1_000_000, now) - now;
        let second = wire.clone().send(Direction::Down, 1_000_000, now) - now;
        let up = wire.send(Direction::Up, 1_000_000, now) - now;
        let seconds = |d: Duration| d.as_secs_f64();
        assert!((1.05..1.5).contains(&seconds(first)), "{first:?}");
        assert!((2.05..2.5).contains(&seconds(second)), "{second:?}");
        assert!((1.05..1.5).contains(&seconds(up)), "{up:?}");
    }
}
