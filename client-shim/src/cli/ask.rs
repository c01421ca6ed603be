//! A question to the running shim.
//!
//! In: its admin socket, a path. Out: the body of the answer. Invariant: bounded in time and size.
//! Not here: what the answer means.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Of each read and write.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A node with thousands of images.
const ANSWER_MAX: u64 = 64 << 20;

/// Each text completes "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("ask the running shim at {socket}: {source}")]
    Connect { socket: PathBuf, source: std::io::Error },
    #[error("understand the running shim: {0}")]
    Answer(String),
}

/// GET over the socket.
pub fn ask(socket: &Path, path: &str) -> Result<Vec<u8>, AskError> {
    let failed = |source| AskError::Connect {
        socket: socket.to_owned(),
        source,
    };
    let mut stream = UnixStream::connect(socket).map_err(failed)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(failed)?;
    stream.set_write_timeout(Some(TIMEOUT)).map_err(failed)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: shim\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer).map_err(failed)?;
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n");
    let end = end.ok_or_else(|| AskError::Answer("it sent no answer".into()))?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    match head.lines().next().map(|line| line.split(' ').nth(1)) {
        Some(Some("200")) => Ok(answer.split_off(end + 4)),
        status => Err(AskError::Answer(format!("it answered {status:?}"))),
    }
}
