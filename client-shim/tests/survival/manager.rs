//! A service manager as far as a service sees it: sd_notify(3), and a store of descriptors that outlives the service.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};

use crate::message;

/// A tenth of a second, so that tests see it fed.
const WATCHDOG: Duration = Duration::from_millis(200);

#[derive(Default)]
struct State {
    lines: Vec<String>,
    store: Vec<OwnedFd>,
}

pub struct Manager {
    socket: PathBuf,
    state: Arc<Mutex<State>>,
}

impl Manager {
    pub fn start(dir: &Path) -> Self {
        let path = dir.join("notify");
        let _ = fs::remove_file(&path);
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).unwrap();
        bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let told = Arc::clone(&state);
        // It ends with the process of the tests.
        std::thread::spawn(move || {
            loop {
                listen(&socket, &told);
            }
        });
        Self { socket: path, state }
    }

    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("NOTIFY_SOCKET", self.socket.display().to_string()),
            ("FDSTORE", "8".to_owned()),
            ("WATCHDOG_USEC", WATCHDOG.as_micros().to_string()),
        ]
    }

    /// How often it was told this.
    pub fn said(&self, line: &str) -> usize {
        self.state.lock().unwrap().lines.iter().filter(|l| *l == line).count()
    }

    /// What is said now, after what was on its way has come.
    pub fn settle(&self, line: &str) -> usize {
        std::thread::sleep(Duration::from_millis(500));
        self.said(line)
    }

    /// Copies of what is stored, for the next start.
    pub fn stored(&self) -> Vec<OwnedFd> {
        let state = self.state.lock().unwrap();
        state.store.iter().map(|fd| fd.try_clone().unwrap()).collect()
    }
}

fn listen(socket: &OwnedFd, state: &Mutex<State>) {
    let Ok(Some((text, fds))) = message::receive(socket) else {
        return;
    };
    let lines: Vec<String> = String::from_utf8_lossy(&text).lines().map(str::to_owned).collect();
    let mut state = state.lock().unwrap();
    if lines.iter().any(|l| l == "FDNAME=headstart") {
        if lines.iter().any(|l| l == "FDSTOREREMOVE=1") {
            state.store.clear();
        }
        if lines.iter().any(|l| l == "FDSTORE=1") {
            // systemd's store is a stack: the last comes first.
            state.store.extend(fds.into_iter().rev());
        }
    }
    state.lines.extend(lines);
}
