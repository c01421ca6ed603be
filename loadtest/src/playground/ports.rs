//! Free ports on loopback for programs that must be told their port.
//!
//! In: nothing. Out: an address nobody listens on now.
//! Invariant: taken from below Linux's ephemeral range, so that no outgoing connection takes it before the program does;
//! one process never gets the same port twice.
//! Not here: listeners of our own, which bind port 0.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::atomic::{AtomicU16, Ordering},
};

use super::{PlaygroundError, Result};

/// `ip_local_port_range` starts at 32768 unless an administrator changed it.
const FIRST: u16 = 21_000;
const COUNT: u16 = 11_000;

static NEXT: AtomicU16 = AtomicU16::new(0);

pub fn free() -> Result<SocketAddr> {
    // Two processes start at different places, or they would race for each port.
    let start = (std::process::id().wrapping_mul(97) % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (start.wrapping_add(step)) % COUNT;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    Err(PlaygroundError::NoPort)
}
