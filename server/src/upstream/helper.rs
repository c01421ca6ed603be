//! Docker's credential helpers: a program `docker-credential-NAME` that is asked `get`.
//!
//! In: the registry as docker names it, on the program's standard input. Out: `{"Username","Secret"}` from its output.
//! Invariant: the name is a name and never a path or a command line; no shell; time and output are bounded, and with
//! the time the program and all that it started ends. What it writes to its error output is dropped: it may be secret.
//! Not here: how long the answer is good ([`super::secret`]).

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
    time::timeout,
};

use super::secret::Secret;

/// Longest output that is read; a token of a cloud has some KiB.
const OUTPUT_SIZE_MAX: u64 = 64 << 10;

/// A name is not longer than this.
const NAME_LEN_MAX: usize = 64;

/// What helpers say (all of them use the same library) when they have nothing for a registry.
const NOT_FOUND: &str = "credentials not found";

#[derive(Debug)]
pub(super) struct Helper {
    name: String,
    program: PathBuf,
    time_max: Duration,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

impl Helper {
    /// Without `dir`, the program is looked for in `PATH`.
    pub(super) fn new(name: &str, dir: Option<&Path>, time_max: Duration) -> Result<Self, String> {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if !(1..=NAME_LEN_MAX).contains(&name.len()) || !name.bytes().all(good) {
            return Err("the name of a credential helper has 1 to 64 of a-z, 0-9 and '-'".into());
        }
        let program = format!("docker-credential-{name}");
        Ok(Self {
            name: name.to_owned(),
            program: dir.map_or_else(|| program.clone().into(), |dir| dir.join(&program)),
            time_max,
        })
    }

    /// What the helper has for `server`.
    pub(super) async fn get(&self, server: &str) -> Result<Option<Secret>, String> {
        let failed = |what: &str| format!("credential helper {}: {what}", self.name);
        let child = Command::new(&self.program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|e| failed(&e.to_string()))?;
        let mut run = Run { child: Some(child) };
        let (output, success) = timeout(self.time_max, run.finish(server))
            .await
            .map_err(|_| failed("it did not answer in time"))?
            .map_err(|e| failed(&e.to_string()))?;
        if output.len() as u64 > OUTPUT_SIZE_MAX {
            return Err(failed("its output is too long"));
        }
        if !success {
            let text = String::from_utf8_lossy(&output);
            return if text.contains(NOT_FOUND) {
                Ok(None)
            } else {
                Err(failed("it failed"))
            };
        }
        let answer: Answer =
            serde_json::from_slice(&output).map_err(|_| failed("its output is not what it should be"))?;
        Secret::new(answer.username, answer.secret)
            .map(Some)
            .map_err(|e| failed(&e))
    }
}

/// A running helper; ends with its process group when dropped before it has ended.
struct Run {
    child: Option<Child>,
}

impl Run {
    async fn finish(&mut self, server: &str) -> std::io::Result<(Vec<u8>, bool)> {
        let gone = || std::io::Error::other("it is gone");
        let child = self.child.as_mut().ok_or_else(gone)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let mut stdin = stdin.ok_or_else(gone)?;
        let stdout = stdout.ok_or_else(gone)?;
        // One that needs no input may have closed it.
        let _ = stdin.write_all(format!("{server}\n").as_bytes()).await;
        drop(stdin);
        let mut output = Vec::new();
        stdout.take(OUTPUT_SIZE_MAX + 1).read_to_end(&mut output).await?;
        if output.len() as u64 > OUTPUT_SIZE_MAX {
            // It may still be writing; dropping the run ends it.
            return Ok((output, false));
        }
        let status = child.wait().await?;
        self.child = None;
        Ok((output, status.success()))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let Some(child) = &self.child else { return };
        // Not waited for yet, so the id is still the helper's. Tokio reaps it.
        let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(group) = group {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn helper(dir: &Path, script: &str, time_max_ms: u64) -> Helper {
        let file = dir.join("docker-credential-test");
        std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        Helper::new("test", Some(dir), Duration::from_millis(time_max_ms)).unwrap()
    }

    #[tokio::test]
    async fn the_server_goes_in_and_a_secret_comes_out() {
        let dir = tempfile::tempdir().unwrap();
        let script = r#"read server; [ "$1" = get ] && echo "{\"ServerURL\":\"$server\",\"Username\":\"u\",\"Secret\":\"for $server\"}""#;
        let secret = helper(dir.path(), script, 20_000).get("r.test").await.unwrap();
        let expected = Secret::Basic {
            username: "u".into(),
            password: "for r.test".into(),
        };
        assert_eq!(secret, Some(expected));
        let nothing = helper(
            dir.path(),
            "echo credentials not found in native keychain; exit 1",
            20_000,
        );
        assert_eq!(nothing.get("r.test").await, Ok(None));
    }

    #[tokio::test]
    async fn one_that_fails_hangs_or_floods_is_an_error_without_its_words() {
        let dir = tempfile::tempdir().unwrap();
        for script in ["echo hunter2; exit 1", "echo hunter2", "yes hunter2", "exit 0"] {
            let error = helper(dir.path(), script, 20_000).get("r.test").await.unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
        let missing = Helper::new("no-such", Some(dir.path()), Duration::from_secs(1)).unwrap();
        assert!(missing.get("r.test").await.is_err());
    }

    #[tokio::test]
    async fn one_that_hangs_ends_with_all_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let script = format!("sleep 300 & echo $! > {}; wait", pid_file.display());
        let error = helper(dir.path(), &script, 1_500).get("r.test").await.unwrap_err();
        assert!(error.contains("in time"), "{error}");
        let pid = std::fs::read_to_string(&pid_file).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        // A process that ended may still be a zombie of whoever inherited it.
        let ended = || std::fs::read_to_string(&stat).map_or(true, |s| s.contains(") Z "));
        for _ in 0..200 {
            if ended() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the helper's child still runs");
    }
}
