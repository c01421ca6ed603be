//! Why a playground could not be built or did not do what was asked.
//!
//! In: failures of tools, processes and files. Out: one line for a person, with where to look.
//! Invariant: every variant names the thing that failed.
//! Not here: recovery. A playground that fails is taken down.

use std::{io, path::PathBuf};

use crate::cri::CriError;

#[derive(Debug, thiserror::Error)]
pub enum PlaygroundError {
    #[error("find {}: run ./test.sh or ./demo.sh, which install what is missing", .0.join(", "))]
    ToolsMissing(Vec<String>),
    #[error("find the binary {}: build it with `cargo build --workspace --bins`", .0.display())]
    BinaryMissing(PathBuf),
    #[error("run the playground: it mounts and starts containers, which takes root")]
    NotRoot,
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("run {what}: {status}: {tail}")]
    Command { what: String, status: String, tail: String },
    #[error("start {name}: {why}; its log ends: {tail}")]
    NotReady { name: String, why: String, tail: String },
    #[error("find a Debian mirror in the machine's apt sources; set HEADSTART_DEBIAN_MIRROR to one")]
    NoDebianMirror,
    #[error("find a free port on loopback")]
    NoPort,
    #[error("start container {id}: it was not ready ({wanted}); its output ends: {tail}")]
    NeverReady { id: String, wanted: String, tail: String },
    #[error(transparent)]
    Cri(#[from] CriError),
    #[error("{what}: {why}")]
    Unexpected { what: String, why: String },
}

impl PlaygroundError {
    /// For `map_err`: an I/O error with what was being done.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> PlaygroundError {
        let what = what.into();
        move |source| PlaygroundError::Io { what, source }
    }

    pub fn unexpected(what: impl Into<String>, why: impl ToString) -> PlaygroundError {
        PlaygroundError::Unexpected {
            what: what.into(),
            why: why.to_string(),
        }
    }
}
