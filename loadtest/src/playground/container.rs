//! One container: created, watched until it is ready, removed.
//!
//! In: a node that has the image, a command, what ready means. Out: when it was ready, and everything it printed.
//! Invariant: dropping it kills the container and removes its task, its record and its snapshot, as long as its containerd
//! lives; what remains then is removed with the node.
//! Not here: pulls.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{PlaygroundError, Result, command, node, node::Node, process::Process};

/// Lines kept while nobody reads them.
const LINES_MAX: usize = 4096;
/// Each step of removing a container; what does not happen in time happens when the node is taken down.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(3);

/// What is run.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    pub reference: &'a str,
    /// Empty: what the image says.
    pub args: &'a [&'a str],
    /// `NAME=VALUE`
    pub env: &'a [String],
    /// Of a network namespace; without one, containerd makes one without interfaces.
    pub network: Option<&'a Path>,
}

#[derive(Debug)]
pub struct Container<'a> {
    node: &'a Node,
    id: String,
    process: Process,
    lines: mpsc::Receiver<(Instant, String)>,
    printed: String,
    started: Instant,
}

impl<'a> Container<'a> {
    /// The demo image; the time counts from here.
    pub fn start(node: &'a Node, id: &str, args: &[&str]) -> Result<Container<'a>> {
        let reference = node::image_reference();
        let run = Run {
            reference: &reference,
            args,
            env: &[],
            network: None,
        };
        Container::run(node, id, &run)
    }

    /// Creates and starts; the time counts from here.
    pub fn run(node: &'a Node, id: &str, run: &Run<'_>) -> Result<Container<'a>> {
        let id = format!("hs-{}-{id}", std::process::id());
        let mut ctr = node.containerd.ctr();
        ctr.args(["run", "--rm", "--snapshotter", node.snapshotter()]);
        // Both default to places of the system's containerd.
        ctr.arg("--fifo-dir").arg(node.containerd.dir.join("fifo"));
        ctr.arg("--runc-root").arg(node.containerd.dir.join("runc"));
        for variable in run.env {
            ctr.args(["--env", variable]);
        }
        if let Some(network) = run.network {
            ctr.arg("--with-ns").arg(format!("network:{}", network.display()));
        }
        ctr.arg(run.reference).arg(&id).args(run.args);
        let started = Instant::now();
        let mut process = Process::spawn(&format!("{}-run", node.name()), ctr, node.work(), true)?;
        let (sender, lines) = mpsc::channel(LINES_MAX);
        if let Some(stdout) = process.take_stdout() {
            // A thread of its own stamps each line when it arrives; it ends when the pipe closes.
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(std::result::Result::ok) {
                    if sender.blocking_send((Instant::now(), line)).is_err() {
                        return;
                    }
                }
            });
        }
        Ok(Container {
            node,
            id,
            process,
            lines,
            printed: String::new(),
            started,
        })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// When it was created.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.process.ended().is_some()
    }

    /// Waits until it has ended by itself, however.
    pub async fn ended(&mut self) {
        self.process.wait().await;
    }

    /// The error of a container that did not become ready.
    pub fn never_ready(&mut self, wanted: &str) -> PlaygroundError {
        while let Ok((_, line)) = self.lines.try_recv() {
            self.printed.push_str(&line);
            self.printed.push('\n');
        }
        let tail = format!("{} | {}", self.printed, super::process::tail(self.process.log()));
        PlaygroundError::NeverReady {
            id: self.id.clone(),
            wanted: wanted.to_owned(),
            tail,
        }
    }

    /// Waits for a line that contains `text`; how long it took from creation.
    pub async fn until_printed(&mut self, text: &str) -> Result<Duration> {
        while let Some((at, line)) = self.lines.recv().await {
            self.printed.push_str(&line);
            self.printed.push('\n');
            if line.contains(text) {
                return Ok(at - self.started);
            }
        }
        Err(self.never_ready(text))
    }

    /// Waits for a line that contains `text` and was printed after `since`; how long after.
    pub async fn until_printed_after(&mut self, text: &str, since: Instant) -> Result<Duration> {
        loop {
            let at = self.started + self.until_printed(text).await?;
            if at > since {
                return Ok(at - since);
            }
        }
    }

    /// Waits for the end and returns all it printed; an error when it ended with one.
    pub async fn output(mut self) -> Result<String> {
        while let Some((_, line)) = self.lines.recv().await {
            self.printed.push_str(&line);
            self.printed.push('\n');
        }
        let status = self.process.wait().await;
        if status.success() {
            return Ok(std::mem::take(&mut self.printed));
        }
        let tail = format!("{} | {}", self.printed, super::process::tail(self.process.log()));
        Err(PlaygroundError::Command {
            what: format!("container {}", self.id),
            status: status.to_string(),
            tail,
        })
    }

    /// Runs a command in the running container and returns its output.
    pub async fn exec(&self, exec_id: &str, args: &[&str]) -> Result<String> {
        let mut ctr = self.node.containerd.ctr();
        ctr.args(["tasks", "exec", "--exec-id", exec_id]);
        ctr.arg("--fifo-dir").arg(self.node.containerd.dir.join("fifo"));
        ctr.arg(&self.id).args(args);
        let output = command::run(&format!("{}-exec-{exec_id}", self.node.name()), ctr, self.node.work()).await?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    fn ctr(&self, args: &[&str]) -> Command {
        let mut ctr = self.node.containerd.ctr();
        ctr.args(args).arg(&self.id);
        ctr
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        // `ctr run --rm` has removed everything when it ended by itself.
        if self.process.ended().is_some() {
            return;
        }
        command::run_quietly(
            self.ctr(&["tasks", "kill", "--signal", "SIGKILL", "--all"]),
            REMOVE_TIMEOUT,
        );
        command::run_quietly(self.ctr(&["tasks", "delete", "--force"]), REMOVE_TIMEOUT);
        self.process.kill();
        command::run_quietly(self.ctr(&["containers", "delete"]), REMOVE_TIMEOUT);
        command::run_quietly(
            self.ctr(&["snapshots", "--snapshotter", self.node.snapshotter(), "delete"]),
            REMOVE_TIMEOUT,
        );
    }
}
