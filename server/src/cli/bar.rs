//! Progress bars, on a terminal and nowhere else.
//!
//! In: whether only JSON is to be printed. Out: a bar on standard error, hidden where nobody looks at it.
//! Not here: what is counted.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressStyle};

/// Bytes, and what is said beside them.
pub fn bytes(json: bool) -> ProgressBar {
    let bar = match std::io::stderr().is_terminal() && !json {
        true => ProgressBar::new(0),
        false => ProgressBar::hidden(),
    };
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta} {wide_msg}") {
        bar.set_style(style);
    }
    bar
}
