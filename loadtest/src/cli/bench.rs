//! What the subcommands of benchmarks share.
//!
//! In: a benchmark that runs, its report. Out: the server that is measured when none was named; an end by Ctrl-C; the table
//! on standard output, and the samples in a file if one was asked for.
//! Not here: flags, and exit codes.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// The server that was built together with this program.
pub(super) fn server_beside() -> Result<PathBuf, String> {
    let me = std::env::current_exe().map_err(|e| format!("finding this program: {e}"))?;
    Ok(me.with_file_name("headstart-server"))
}

/// The report, unless Ctrl-C comes first.
pub(super) async fn finished<T, E: Display>(running: impl Future<Output = Result<T, E>>) -> Result<T, String> {
    tokio::select! {
        report = running => report.map_err(|e| format!("failed to {e}")),
        _ = tokio::signal::ctrl_c() => Err("interrupted".to_owned()),
    }
}

pub(super) fn show(table: &str, samples: &impl Serialize, json: Option<&Path>) -> Result<(), String> {
    print!("{table}");
    let Some(path) = json else { return Ok(()) };
    let text = serde_json::to_string_pretty(samples).map_err(|e| format!("writing JSON: {e}"))?;
    std::fs::write(path, text + "\n").map_err(|e| format!("writing {}: {e}", path.display()))
}
