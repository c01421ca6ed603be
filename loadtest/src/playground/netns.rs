//! A network namespace of our own with nothing but loopback, in which a container's ports are asked.
//!
//! In: nothing. Out: a path that `ctr run --with-ns` takes, and answers of probes sent from inside.
//! Invariant: nobody's ports are taken and nothing outside is reachable from it; it lives as long as its thread, which ends
//! with its owner, and the container's own processes.
//! Not here: bridges and addresses: a container under measurement talks to itself.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::mpsc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{PlaygroundError, Result, ready::Ready};

/// Between two tries: it adds to measured times.
const POLL: Duration = Duration::from_millis(1);
/// One try of a server that accepts and says nothing.
const TRY_TIMEOUT: Duration = Duration::from_millis(500);

struct Question {
    ready: Ready,
    deadline: Instant,
    /// When it was ready; `None` when it was not in time.
    answer: oneshot::Sender<Option<Instant>>,
}

#[derive(Debug)]
pub struct NetNs {
    path: PathBuf,
    questions: mpsc::Sender<Question>,
}

impl NetNs {
    pub fn new() -> Result<NetNs> {
        let (questions, asked) = mpsc::channel::<Question>();
        let (made, result) = mpsc::channel();
        let work = move || {
            // The namespace is this thread's alone.
            let entered = enter().map(|()| thread_path());
            let is_entered = entered.is_ok();
            let _ = made.send(entered);
            if is_entered {
                for question in asked {
                    let at = until_ready(&question);
                    let _ = question.answer.send(at);
                }
            }
        };
        std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn(work)
            .map_err(PlaygroundError::io("start a thread"))?;
        let path = result
            .recv()
            .unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
            .map_err(PlaygroundError::io("make a network namespace"))?;
        Ok(NetNs { path, questions })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Asks until it is ready, the deadline is over, or nobody waits for the answer.
    pub fn ask(&self, ready: &Ready, deadline: Instant) -> Result<oneshot::Receiver<Option<Instant>>> {
        let (answer, receiver) = oneshot::channel();
        let question = Question {
            ready: ready.clone(),
            deadline,
            answer,
        };
        self.questions
            .send(question)
            .map_err(|_| PlaygroundError::unexpected("ask in a network namespace", "its thread has ended"))?;
        Ok(receiver)
    }
}

/// Of this thread's namespace, for other processes.
fn thread_path() -> PathBuf {
    let (process, thread) = (std::process::id(), rustix::thread::gettid().as_raw_nonzero());
    format!("/proc/{process}/task/{thread}/ns/net").into()
}

/// Moves this thread into a new namespace whose loopback is up.
fn enter() -> io::Result<()> {
    // SAFETY: a network namespace is a property of the thread; no memory, no descriptor is concerned.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: all zeros is a valid `ifreq`: arrays and plain numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    use std::os::fd::AsRawFd as _;
    // SAFETY: the descriptor is open, and the kernel only reads an `ifreq` for SIOCSIFFLAGS.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn until_ready(question: &Question) -> Option<Instant> {
    while Instant::now() < question.deadline && !question.answer.is_closed() {
        if is_ready(&question.ready) {
            return Some(Instant::now());
        }
        std::thread::sleep(POLL);
    }
    None
}

fn is_ready(ready: &Ready) -> bool {
    let connect = |port: u16| {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        TcpStream::connect_timeout(&address, TRY_TIMEOUT)
    };
    match ready {
        Ready::Line(_) => false,
        Ready::Tcp(port) => connect(*port).is_ok(),
        Ready::Http(probe) => connect(probe.port)
            .and_then(|socket| http_status(socket, &probe.path))
            .is_ok_and(|status| (200..400).contains(&status)),
    }
}

/// A whole HTTP client would take longer to set up than the answer takes.
fn http_status(mut socket: TcpStream, path: &str) -> io::Result<u16> {
    socket.set_read_timeout(Some(TRY_TIMEOUT))?;
    socket.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())?;
    let mut line = Vec::new();
    while line.len() < 12 {
        let mut byte = [0];
        if socket.read(&mut byte)? == 0 {
            break;
        }
        line.push(byte[0]);
    }
    // "HTTP/1.1 200"
    let text = String::from_utf8_lossy(&line);
    let status = text.split(' ').nth(1).and_then(|s| s.parse().ok());
    status.ok_or_else(|| io::ErrorKind::InvalidData.into())
}
