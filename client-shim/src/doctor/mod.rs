//! `headstart-shim doctor`: is this node set up right, and if not, what is to be changed?
//!
//! In: the shim's configuration, this machine. Out: a [`Report`]: each check with what was found and, unless all is well,
//! one sentence that says what to do. Invariant: changes nothing (what it mounts to try the kernel is its own, and gone
//! afterwards); every wait is bounded; what cannot be found out is said, not guessed.
//! Not here: what the running shim has ([`crate::cli::status`]).

pub mod containerd;
pub mod hosts;
mod kernel;
mod node;
mod servers;

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::{AskError, ask};
use crate::config::Config;
use crate::observe::status::Status;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Ok,
    /// It works, but not as it could.
    Warn,
    /// Lazy pulls do not work, or the node is at risk.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Stable, for scripts: `kernel.erofs`.
    pub name: String,
    pub state: State,
    pub found: String,
    /// What to change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// All of them.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub checks: Vec<Check>,
}

impl Report {
    pub fn ok(&mut self, name: &str, found: impl Into<String>) {
        self.add(name, State::Ok, found.into(), None);
    }

    pub fn warn(&mut self, name: &str, found: impl Into<String>, advice: impl Into<String>) {
        self.add(name, State::Warn, found.into(), Some(advice.into()));
    }

    pub fn fail(&mut self, name: &str, found: impl Into<String>, advice: impl Into<String>) {
        self.add(name, State::Fail, found.into(), Some(advice.into()));
    }

    fn add(&mut self, name: &str, state: State, found: String, advice: Option<String>) {
        let name = name.to_owned();
        self.checks.push(Check {
            name,
            state,
            found,
            advice,
        });
    }

    pub fn worst(&self) -> State {
        self.checks.iter().map(|c| c.state).max().unwrap_or(State::Ok)
    }

    fn text(&self) -> String {
        let mut out = String::new();
        for check in &self.checks {
            let mark = match check.state {
                State::Ok => "ok  ",
                State::Warn => "WARN",
                State::Fail => "FAIL",
            };
            out.push_str(&format!("{mark}  {:<24} {}\n", check.name, check.found));
            if let Some(advice) = &check.advice {
                out.push_str(&format!("      {:<24} -> {advice}\n", ""));
            }
        }
        let count = |state| self.checks.iter().filter(|c| c.state == state).count();
        out.push_str(&match (count(State::Fail), count(State::Warn)) {
            (0, 0) => "\nThis node is set up right.\n".to_owned(),
            (0, warnings) => format!("\nThis node works; {warnings} things could be better.\n"),
            (fails, _) => format!("\n{fails} things must be changed.\n"),
        });
        out
    }
}

/// Where things are looked for; tests have others.
#[derive(Clone, Debug)]
pub struct Places {
    /// The first that exists is containerd's.
    pub containerd_configs: Vec<PathBuf>,
    /// Whose `--version` is asked, the first that runs.
    pub containerds: Vec<PathBuf>,
}

impl Places {
    /// `config`: instead of the usual files.
    pub fn of_this_machine(config: Option<PathBuf>) -> Self {
        let usual = [
            "/etc/containerd/config.toml",
            "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
            "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
        ];
        let programs = [
            "/usr/bin/containerd",
            "/usr/local/bin/containerd",
            "/var/lib/rancher/k3s/data/current/bin/containerd",
        ];
        Self {
            containerd_configs: config.map_or_else(|| usual.map(PathBuf::from).to_vec(), |c| vec![c]),
            containerds: programs.map(PathBuf::from).to_vec(),
        }
    }
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum DoctorError {
    #[error("start the runtime: {0}")]
    Runtime(std::io::Error),
}

/// Checks, prints; the exit status is 1 if something failed.
pub fn run(config: &Config, places: Places, json: bool) -> Result<ExitCode, AskError> {
    let report = match report(config, &places) {
        Ok(report) => report,
        Err(error) => return Err(AskError::Answer(error.to_string())),
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&report).unwrap_or_default());
    } else {
        print!("{}", report.text());
    }
    Ok(match report.worst() {
        State::Fail => ExitCode::FAILURE,
        State::Ok | State::Warn => ExitCode::SUCCESS,
    })
}

/// All checks.
pub fn report(config: &Config, places: &Places) -> Result<Report, DoctorError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(DoctorError::Runtime)?;
    let running = ask(&config.admin_socket(), "/status")
        .ok()
        .and_then(|body| serde_json::from_slice::<Status>(&body).ok());
    let mut report = Report::default();
    let runs_without = running.as_ref().and_then(|status| status.config_refused.as_ref());
    match (&config.refused, runs_without) {
        (Some(why), _) => report.fail(
            "config.file",
            format!("failed to {}", why.trim_end()),
            "mend it and restart the shim; what follows is about the last configuration that was good",
        ),
        (None, Some(why)) => report.warn(
            "config.file",
            format!(
                "the running shim was started without it: it had failed to {}",
                why.trim_end()
            ),
            "restart the shim",
        ),
        (None, None) => {}
    }
    node::check(&mut report, config, running.as_ref());
    let idmap = kernel::check(&mut report, config, running.as_ref(), runtime.handle());
    let found = containerd::check(&mut report, config, places, idmap);
    hosts::check(&mut report, config, found.as_ref());
    runtime.block_on(servers::check(&mut report, config));
    Ok(report)
}
