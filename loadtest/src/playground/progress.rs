//! What is going on, for a person: a spinner on a terminal, plain lines elsewhere.
//!
//! In: the names of steps. Out: standard error; standard output stays free for the report.
//! Invariant: a step that is announced is also ended, by the next one or by drop.
//! Not here: the report.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

#[derive(Debug)]
pub struct Progress {
    /// `None` when standard error is no terminal.
    bar: Option<ProgressBar>,
    quiet: bool,
    started: Instant,
}

impl Progress {
    pub fn new() -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} [{elapsed}] {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Progress {
            bar,
            quiet: false,
            started: Instant::now(),
        }
    }

    /// For tests: says nothing.
    pub fn silent() -> Progress {
        Progress {
            bar: None,
            quiet: true,
            started: Instant::now(),
        }
    }

    /// A new step begins, and with it the one before is over.
    pub fn step(&self, text: impl AsRef<str>) {
        match &self.bar {
            Some(bar) => bar.set_message(text.as_ref().to_owned()),
            None if self.quiet => {}
            None => eprintln!("[{:>5.1} s] {}", self.started.elapsed().as_secs_f64(), text.as_ref()),
        }
    }

    /// A line that stays.
    pub fn say(&self, text: impl AsRef<str>) {
        match &self.bar {
            Some(bar) => bar.println(text.as_ref()),
            None if self.quiet => {}
            None => eprintln!("{}", text.as_ref()),
        }
    }
}

impl Default for Progress {
    fn default() -> Progress {
        Progress::new()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
