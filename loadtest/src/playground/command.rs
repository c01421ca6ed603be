//! Running a tool to its end.
//!
//! In: a command. Out: its standard output, or an error with the end of what it said.
//! Invariant: the tool is supervised like every process: dropping the future ends it with its whole group.
//! Not here: programs that stay up ([`super::process`]).

use std::{
    io::Read,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use super::{PlaygroundError, Result, process::Process, process::tail, workdir::WorkDir};

/// Output kept of one tool. Lists of images and file trees are far smaller; more is cut off, never waited for.
const OUTPUT_BYTES_MAX: u64 = 64 << 20;

/// Runs `command` and returns what it printed.
pub async fn run(name: &str, command: Command, work: &WorkDir) -> Result<Vec<u8>> {
    let what = format!("{command:?}");
    let mut process = Process::spawn(name, command, work, true)?;
    let stdout = process.take_stdout();
    // A thread, because a pipe must be read while the tool runs; it ends when the tool's end of the pipe closes.
    let reader = tokio::task::spawn_blocking(move || {
        let mut output = Vec::new();
        if let Some(mut stdout) = stdout {
            let _ = stdout.by_ref().take(OUTPUT_BYTES_MAX).read_to_end(&mut output);
            let _ = std::io::copy(&mut stdout, &mut std::io::sink());
        }
        output
    });
    let status = process.wait().await;
    if !status.success() {
        return Err(PlaygroundError::Command {
            what,
            status: status.to_string(),
            tail: tail(process.log()),
        });
    }
    reader
        .await
        .map_err(|e| PlaygroundError::unexpected(format!("read the output of {name}"), e))
}

/// The same command once more: program, arguments, environment.
pub fn again(command: &Command) -> Command {
    let mut copy = Command::new(command.get_program());
    copy.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => copy.env(name, value),
            None => copy.env_remove(name),
        };
    }
    copy
}

/// For `Drop`: runs `command` silently and waits at most `timeout`.
pub fn run_quietly(mut command: Command, timeout: Duration) -> bool {
    let Ok(mut child) = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
    else {
        return false;
    };
    let deadline = Instant::now() + timeout;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return false;
            }
        }
    }
}
