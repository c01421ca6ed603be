//! The real `headstart-server`, as a process.
//!
//! In: a configuration without `listen` and `data_dir`. Out: its address, its log, its end.
//! Invariant: everything is in a temporary directory, and the process ends with the test.
//! Not here: servers in the test's own process ([`super::Server`]).
#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    fs::{self, File},
    net::SocketAddr,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// A debug build on a busy machine may take its time.
const START_MAX: Duration = Duration::from_secs(60);

pub struct Binary {
    child: Child,
    dir: tempfile::TempDir,
    pub address: SocketAddr,
}

impl Binary {
    /// Starts with these environment variables, and waits until it listens. Logs are JSON unless `log` says
    /// otherwise.
    pub fn start(config: &str, log: &str, environment: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("server.toml");
        let format = if log.contains("format =") {
            ""
        } else {
            "format = \"json\""
        };
        let text = format!(
            "listen = \"127.0.0.1:0\"\ndata_dir = \"{}\"\n{config}\n[log]\n{format}\n{log}\n",
            dir.path().join("data").display()
        );
        fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_headstart-server"));
        command.arg("--config").arg(&file).env_remove("RUST_LOG");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.path().join("log")).unwrap())
            .envs(environment.iter().copied());
        let mut child = command.spawn().unwrap();
        let deadline = Instant::now() + START_MAX;
        let address = loop {
            let log = fs::read_to_string(dir.path().join("log")).unwrap();
            if let Some(address) = log.lines().find_map(ready) {
                break address;
            }
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "{ended:?}: {log}");
            std::thread::sleep(Duration::from_millis(20));
        };
        Self { child, dir, address }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// The lines of its log with this target.
    pub fn lines(&self, target: &str) -> Vec<serde_json::Value> {
        let log = self.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str(line).ok());
        lines
            .filter(|line: &serde_json::Value| line["target"] == target)
            .collect()
    }

    fn ask_for(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headstart-server"));
        let socket = self.dir.path().join("data/admin.sock");
        // It listens to clients before it does to its operator.
        let deadline = Instant::now() + START_MAX;
        while !socket.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        command.args(arguments).arg("--socket").arg(socket).output().unwrap()
    }

    /// What a subcommand, asked of this server, prints.
    pub fn ask(&self, arguments: &[&str]) -> String {
        let output = self.ask_for(arguments);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr)
    }

    /// Why one fails.
    pub fn ask_in_vain(&self, arguments: &[&str]) -> String {
        let output = self.ask_for(arguments);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + START_MAX;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

/// The address in the line that says that it listens.
fn ready(line: &str) -> Option<SocketAddr> {
    if let Some((_, listen)) = line.split_once(" ready listen=") {
        return listen.split(' ').next()?.parse().ok();
    }
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    let listen = line["fields"]["listen"].as_str()?;
    (line["fields"]["message"] == "ready").then(|| listen.parse().ok())?
}

impl Drop for Binary {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
