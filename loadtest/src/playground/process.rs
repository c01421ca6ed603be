//! One supervised process: started in its own process group, its output in a log file, ended with its owner.
//!
//! In: a command. Out: a running process; its log's tail when it fails.
//! Invariant: whoever drops a [`Process`] has ended it: SIGTERM, a bounded wait, then SIGKILL to the whole group. A pid
//! file in the work directory says what runs, with the start time, for the run that finds a crashed one's leftovers.
//! Own process groups keep a terminal's Ctrl-C from reaching children before we take them down in order.
//! Not here: what a process is for.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::{PlaygroundError, Result, workdir::WorkDir};

/// How often a wait looks. Short, because it adds to measured times.
const POLL: Duration = Duration::from_millis(5);
/// How long a process may take to stop on SIGTERM when its clean stop matters: longer than the server drains.
const STOP_GRACE: Duration = Duration::from_secs(20);
/// The same on drop: what it would still save is thrown away with the work directory, and somebody pressed Ctrl-C.
const DROP_GRACE: Duration = Duration::from_secs(2);
/// How much of a log an error message shows.
const TAIL_BYTES: u64 = 1500;

#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    pid_file: PathBuf,
    log: PathBuf,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`; standard output and error go to `NAME.log` in the work directory unless `command` has piped
    /// its output already (`piped_stdout`).
    pub fn spawn(name: &str, mut command: Command, work: &WorkDir, piped_stdout: bool) -> Result<Process> {
        let log = work.log(name);
        let open = || File::options().create(true).append(true).open(&log);
        let out = open().map_err(PlaygroundError::io(format!("open {}", log.display())))?;
        let err = open().map_err(PlaygroundError::io(format!("open {}", log.display())))?;
        command.stdin(Stdio::null()).stderr(err).process_group(0);
        if piped_stdout {
            command.stdout(Stdio::piped());
        } else {
            command.stdout(out);
        }
        let child = command.spawn().map_err(PlaygroundError::io(format!("start {name}")))?;
        let pid_file = work.pid_file(name, child.id());
        let process = Process {
            name: name.to_owned(),
            child,
            pid_file,
            log,
            status: None,
        };
        let started = start_ticks(process.pid()).unwrap_or(0);
        fs::write(&process.pid_file, format!("{} {started}\n", process.pid()))
            .map_err(PlaygroundError::io(format!("write {}", process.pid_file.display())))?;
        Ok(process)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    pub fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// The status, once it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    /// Waits for the end, without a bound of its own.
    pub async fn wait(&mut self) -> ExitStatus {
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Asks `probe` until it says yes, the process ends, or the time is up.
    pub async fn until_ready<F>(&mut self, timeout: Duration, mut probe: impl FnMut() -> F) -> Result<()>
    where
        F: Future<Output = bool>,
    {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.ended() {
                return Err(self.not_ready(format!("it ended with {status}")));
            }
            if probe().await {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(self.not_ready(format!("not ready after {} s", timeout.as_secs())));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn not_ready(&self, why: String) -> PlaygroundError {
        PlaygroundError::NotReady {
            name: self.name.clone(),
            why,
            tail: tail(&self.log),
        }
    }

    /// A clean stop: SIGTERM, then SIGKILL when that is not enough. Returns the status.
    pub fn stop(&mut self) -> Option<ExitStatus> {
        self.end(Some(STOP_GRACE))
    }

    /// SIGKILL at once: a crash.
    pub fn kill(&mut self) -> Option<ExitStatus> {
        self.end(None)
    }

    /// SIGTERM and the grace, if any; then SIGKILL to the group.
    fn end(&mut self, grace: Option<Duration>) -> Option<ExitStatus> {
        if let Some(group) = Pid::from_raw(self.pid() as i32) {
            if self.ended().is_none()
                && let Some(grace) = grace
            {
                let _ = kill_process(group, Signal::TERM);
                let deadline = Instant::now() + grace;
                while self.ended().is_none() && Instant::now() < deadline {
                    std::thread::sleep(POLL);
                }
            }
            // Also after a polite end: helpers it left in its group go with it.
            let _ = kill_process_group(group, Signal::KILL);
        }
        if self.status.is_none() {
            self.status = self.child.wait().ok();
        }
        let _ = fs::remove_file(&self.pid_file);
        self.status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.end(Some(DROP_GRACE));
        }
        let _ = fs::remove_file(&self.pid_file);
    }
}

/// When a process was started, in clock ticks since boot: with the pid it names a process for good.
pub fn start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name is in parentheses and may hold anything; the start time is the 22nd field, 20th after it.
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

/// The end of a log, on one line, for an error message.
pub fn tail(log: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().replace('\n', " | "))
    };
    read().unwrap_or_else(|e| format!("(no log: {e})"))
}

/// Registry traffic is loopback: an HTTP proxy of the machine must not see it.
pub fn without_proxies(command: &mut Command) {
    for variable in [
        "http_proxy",
        "HTTP_PROXY",
        "https_proxy",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ] {
        command.env_remove(variable);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a snapshotter leaves the daemons that it started, so that images outlive it.
    #[test]
    fn helpers_that_a_process_leaves_end_with_it() {
        let work = WorkDir::create().unwrap();
        let told = work.path().join("helper");
        let script =
            r#"sleep 600 & echo $! >"$0.new"; mv "$0.new" "$0"; trap 'exit 0' TERM; while :; do sleep 0.02; done"#;
        let mut leader = Command::new("sh");
        leader.args(["-c", script]).arg(&told);
        let mut leader = Process::spawn("leader", leader, &work, false).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let helper: u32 = loop {
            if let Ok(pid) = fs::read_to_string(&told) {
                break pid.trim().parse().unwrap();
            }
            assert!(Instant::now() < deadline, "{}", tail(leader.log()));
            std::thread::sleep(POLL);
        };
        assert!(is_running(helper), "there is a helper");
        assert!(leader.stop().is_some_and(|status| status.success()), "a polite end");
        while is_running(helper) {
            assert!(Instant::now() < deadline, "{helper} runs on");
            std::thread::sleep(POLL);
        }
    }

    /// What has ended is a zombie until somebody asks for its status.
    fn is_running(pid: u32) -> bool {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    }
}
