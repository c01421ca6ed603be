//! Classes of IP addresses: where a registry's word may lead us.
//!
//! In: an address. Out: its [`Class`].
//! Invariant: an IPv6 address that carries an IPv4 address (mapped, compatible, translated, NAT64, 6to4) has the class of the inner
//! one, so no spelling of an address has another class than the address.
//! Not here: what is done about it ([`super::dial`], [`super::transport`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Who else could be behind an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Everybody's.
    Public,
    /// A site's: RFC 1918, shared (CGNAT), unique local.
    Private,
    /// This machine's.
    Loopback,
    /// This link's, where clouds keep their metadata.
    Link,
    /// Nobody's that a registry could be: unspecified, multicast, reserved.
    Never,
}

pub(super) fn class(ip: IpAddr) -> Class {
    match ip {
        IpAddr::V4(ip) => class_4(ip),
        IpAddr::V6(ip) => inner(ip).map_or_else(|| class_6(ip), class_4),
    }
}

fn class_4(ip: Ipv4Addr) -> Class {
    let [a, b, c, _] = ip.octets();
    match (a, b, c) {
        (127, ..) => Class::Loopback,
        (169, 254, _) => Class::Link,
        (10, ..) | (172, 16..=31, _) | (192, 168, _) | (100, 64..=127, _) => Class::Private,
        // "This network", protocol assignments, benchmarks, multicast, reserved, broadcast.
        (0, ..) | (192, 0, 0) | (198, 18 | 19, _) | (224.., ..) => Class::Never,
        _ => Class::Public,
    }
}

fn class_6(ip: Ipv6Addr) -> Class {
    match ip.segments()[0] {
        _ if ip.is_loopback() => Class::Loopback,
        _ if ip.is_unspecified() => Class::Never,
        0xfe80..=0xfebf => Class::Link,
        // Unique local, and the site-local ones before them.
        0xfc00..=0xfdff | 0xfec0..=0xfeff => Class::Private,
        0xff00.. => Class::Never,
        _ => Class::Public,
    }
}

/// The IPv4 address in an IPv6 one.
fn inner(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = ip.segments();
    let v4 = |high: u16, low: u16| Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    match s {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] => v4(high, low),
        // Translated (RFC 2765), which a translator on the way may unwrap.
        [0, 0, 0, 0, 0xffff, 0, high, low] => v4(high, low),
        [0x64, 0xff9b, 0 | 1, .., high, low] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_has_the_class_of_the_address() {
        for (text, expected) in [
            ("8.8.8.8", Class::Public),
            ("172.15.0.1", Class::Public),
            ("172.32.0.1", Class::Public),
            ("2606:4700::1", Class::Public),
            ("64:ff9b::8.8.8.8", Class::Public),
            ("10.0.0.1", Class::Private),
            ("172.16.0.1", Class::Private),
            ("192.168.1.1", Class::Private),
            ("100.64.0.1", Class::Private),
            ("fd00::1", Class::Private),
            ("::ffff:10.0.0.1", Class::Private),
            ("127.0.0.1", Class::Loopback),
            ("127.255.0.1", Class::Loopback),
            ("::1", Class::Loopback),
            ("::ffff:127.0.0.1", Class::Loopback),
            ("::127.0.0.1", Class::Loopback),
            ("::ffff:0:127.0.0.1", Class::Loopback),
            ("64:ff9b::127.0.0.1", Class::Loopback),
            ("2002:7f00:1::", Class::Loopback),
            ("169.254.169.254", Class::Link),
            ("::ffff:169.254.169.254", Class::Link),
            ("fe80::1", Class::Link),
            ("0.0.0.0", Class::Never),
            ("0.1.2.3", Class::Never),
            ("::", Class::Never),
            ("224.0.0.1", Class::Never),
            ("255.255.255.255", Class::Never),
            ("ff02::1", Class::Never),
        ] {
            assert_eq!(class(text.parse().unwrap()), expected, "{text}");
        }
    }
}
