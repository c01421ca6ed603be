//! A network namespace of our own with nothing but loopback, in which a container's ports are asked.
//!
//! In: nothing. Out: a path that `ctr run --with-ns` takes, and answers of probes sent from inside.
//! Invariant: nobody's ports are taken and nothing outside is reachable from it; it lives as long as its thread, which ends
//! with its owner, and the container's own processes.
//! What answers is therefore the container: not the machine, not another container, and not our own question.
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
    match ready {
        Ready::Line(_) => false,
        Ready::Tcp(port) => connect(*port).is_ok(),
        Ready::Http(probe) => connect(probe.port)
            .and_then(|socket| http_status(socket, &probe.path))
            .is_ok_and(|status| (200..400).contains(&status)),
    }
}

fn connect(port: u16) -> io::Result<TcpStream> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let socket = TcpStream::connect_timeout(&address, TRY_TIMEOUT)?;
    // Where nobody listens, and the kernel takes the same port for our end, TCP connects the socket with itself. Closed in
    // the ordinary way, it would keep the port from the container for a minute.
    if socket.local_addr()? == address {
        rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(socket)
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
    let words = text
        .split_once(' ')
        .filter(|(protocol, _)| protocol.starts_with("HTTP/"));
    let status = words.and_then(|(_, status)| status.parse().ok());
    status.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        net::TcpListener,
        os::fd::AsFd as _,
        sync::{Arc, Mutex},
        thread::JoinHandle,
    };

    use rustix::net::{AddressFamily, SocketType, bind, socket};
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;
    use crate::playground::{ports, ready::HttpProbe};

    const PORT: u16 = 8080;

    /// As a process of the container that runs in it.
    fn inside<T: Send + 'static>(network: &NetNs, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let namespace = fs::File::open(network.path()).unwrap();
        std::thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        })
    }

    fn listen(network: &NetNs, port: u16) -> TcpListener {
        let listening = inside(network, move || TcpListener::bind((Ipv4Addr::LOCALHOST, port)));
        listening.join().unwrap().unwrap()
    }

    fn ask(network: &NetNs, ready: &Ready, secs: u64) -> oneshot::Receiver<Option<Instant>> {
        network.ask(ready, Instant::now() + Duration::from_secs(secs)).unwrap()
    }

    fn http(path: &str) -> Ready {
        Ready::Http(HttpProbe {
            port: PORT,
            path: path.to_owned(),
        })
    }

    /// Accepts a connection for each of `answers`, and writes it, the last again and again; an empty one is silence until the
    /// other end goes. Returns the first lines of what was asked, so far.
    fn answers(network: &NetNs, answers: Vec<&'static str>) -> Arc<Mutex<Vec<String>>> {
        let listener = listen(network, PORT);
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let noted = asked.clone();
        std::thread::spawn(move || {
            let last = answers.last().copied().into_iter().cycle();
            // A busy machine may answer later than is waited for.
            for answer in answers.into_iter().chain(last.take(100)) {
                let (mut socket, _) = listener.accept().unwrap();
                let mut request = Vec::new();
                let mut byte = [0];
                while !request.ends_with(b"\r\n\r\n") && socket.read(&mut byte).is_ok_and(|n| n == 1) {
                    request.push(byte[0]);
                }
                let text = String::from_utf8(request).unwrap();
                noted.lock().unwrap().extend(text.lines().next().map(str::to_owned));
                let _ = match answer.is_empty() {
                    true => socket.read(&mut byte).map(drop),
                    false => socket.write_all(answer.as_bytes()),
                };
            }
        });
        asked
    }

    #[test]
    fn a_port_is_ready_when_the_container_listens_on_it_and_not_when_another_does() {
        let (network, other) = (NetNs::new().unwrap(), NetNs::new().unwrap());
        let port = ports::free().unwrap().port();
        let _machine = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        let _neighbour = listen(&other, port);
        let mut answer = ask(&network, &Ready::Tcp(port), 120);
        // Hundreds of tries.
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(answer.try_recv(), Err(TryRecvError::Empty));
        let listens = Instant::now();
        let _own = listen(&network, port);
        assert!(answer.blocking_recv().unwrap() > Some(listens));
        let of_the_neighbour = ask(&other, &Ready::Tcp(port), 120);
        assert!(of_the_neighbour.blocking_recv().unwrap().is_some());
    }

    #[test]
    fn http_is_ready_with_the_first_answer_that_is_a_success() {
        for success in ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.0 302 Found\r\n\r\n"] {
            let network = NetNs::new().unwrap();
            let said = vec![
                "HTTP/1.1 503 Service Unavailable\r\n\r\n",
                "HTTP/1.1 404 Not Found\r\n\r\n",
                "HTTP/1.1 100 Continue\r\n\r\n",
                "",
                "SMTP 220 ready\r\n",
                "HTTP/1.1 2",
                success,
            ];
            let asked = answers(&network, said);
            let answer = ask(&network, &http("/ready?now"), 120);
            assert!(answer.blocking_recv().unwrap().is_some(), "{success}");
            // Every one of them was asked for: none before the last was enough.
            let asked = asked.lock().unwrap();
            assert!(asked.len() >= 7, "{asked:?}");
            assert!(asked.iter().all(|line| line == "GET /ready?now HTTP/1.0"), "{asked:?}");
        }
    }

    #[test]
    fn what_is_never_ready_is_said_to_be_so_when_the_time_is_up() {
        let network = NetNs::new().unwrap();
        let begun = Instant::now();
        assert_eq!(ask(&network, &Ready::Tcp(PORT), 1).blocking_recv().unwrap(), None);
        assert!(begun.elapsed() >= Duration::from_secs(1));
        // It accepts, and says nothing: the kernel does so for whoever has a listener.
        let listener = listen(&network, PORT);
        assert_eq!(ask(&network, &http("/"), 1).blocking_recv().unwrap(), None);
        drop(listener);
        // Nobody waits any more: the next question does not wait for that one's time.
        drop(ask(&network, &Ready::Tcp(PORT), 3600));
        let _listener = listen(&network, PORT);
        assert!(ask(&network, &Ready::Tcp(PORT), 120).blocking_recv().unwrap().is_some());
    }

    #[test]
    fn a_question_that_meets_itself_is_no_answer() {
        let network = NetNs::new().unwrap();
        // Or the machine's own range would be changed.
        let of = |path: &Path| fs::read_link(path).unwrap();
        assert_ne!(of(network.path()), of(Path::new("/proc/thread-self/ns/net")));
        // Our end of a connection has one of two ports, the even one first; nobody listens on either.
        let few = inside(&network, || {
            fs::write("/proc/sys/net/ipv4/ip_local_port_range", "20000 20001")
        });
        few.join().unwrap().unwrap();
        let answer = ask(&network, &Ready::Tcp(20_000), 1);
        assert_eq!(answer.blocking_recv().unwrap(), None);
        // And the port is the container's when it comes, also if that does not ask for SO_REUSEADDR.
        let own = inside(&network, || {
            let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 20_000));
            bind(&socket, &address)
                .and_then(|()| rustix::net::listen(&socket, 1))
                .map(|()| socket)
        });
        let _own = own.join().unwrap().unwrap();
        assert!(
            ask(&network, &Ready::Tcp(20_000), 120)
                .blocking_recv()
                .unwrap()
                .is_some()
        );
    }
}
