//! A network namespace of our own with nothing but loopback, whose link can be cut.
//!
//! In: nothing. Out: a place for a server and a shim that see each other while the link is up. Invariant: nothing outside is
//! reachable from it, and nothing outside notices a cut. Not here: who is in it (`node.rs`).

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub struct Network {
    namespace: File,
    /// A socket belongs to the namespace it was made in, and so do the links that it speaks of.
    socket: UdpSocket,
}

impl Network {
    pub fn new() -> Self {
        // A thread's namespace is its own.
        let made = std::thread::spawn(|| {
            // SAFETY: a network namespace is a property of the thread; no memory, no descriptor is concerned.
            assert_eq!(
                unsafe { libc::unshare(libc::CLONE_NEWNET) },
                0,
                "{}",
                io::Error::last_os_error()
            );
            Self {
                namespace: File::open("/proc/thread-self/ns/net").unwrap(),
                socket: UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap(),
            }
        });
        let network = made.join().unwrap();
        network.mend();
        network
    }

    /// Does `work` in it. What it makes there (sockets, processes) stays there.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                move_into_link_name_space(self.namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            });
            there.join().unwrap()
        })
    }

    /// What is sent is lost, and nobody is told.
    pub fn cut(&self) {
        self.flags(0);
    }

    pub fn mend(&self) {
        self.flags(libc::IFF_UP | libc::IFF_RUNNING);
    }

    fn flags(&self, flags: libc::c_int) {
        // SAFETY: all zeros is a valid `ifreq`: arrays and plain numbers.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: the descriptor is open, and the kernel only reads an `ifreq` for SIOCSIFFLAGS.
        let done = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
    }
}
