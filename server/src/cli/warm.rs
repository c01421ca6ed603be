//! `warm`, as a progress bar or as lines.
//!
//! In: the server's events, one JSON line each. Out: how far it is; an error when an image failed or the server went away.
//! Invariant: every image of the request is accounted for at the end. Ending this process cancels the warming.
//! Not here: the warming.

use std::{collections::HashMap, ops::ControlFlow};

use indicatif::ProgressBar;

use super::{CliError, bar, client::Client, show};
use crate::admin::api::{self, Event};

pub async fn run(client: &Client, what: &api::Warm, json: bool) -> Result<(), CliError> {
    let mut shown = Shown::new(json);
    let asked = client.lines(api::WARM, what, |line| {
        let event = serde_json::from_slice(line)?;
        if json {
            show::line(&String::from_utf8_lossy(line))?;
        }
        shown.event(event)?;
        Ok(ControlFlow::Continue(()))
    });
    asked.await?;
    shown.bar.finish_and_clear();
    let count = what.images.len();
    if shown.done != count {
        let failed = count - shown.done.min(count);
        return Err(CliError::NotWarm { failed, count });
    }
    Ok(())
}

struct Shown {
    bar: ProgressBar,
    /// The lines are the server's own: nothing else is printed.
    json: bool,
    /// Total and done, by image.
    bytes: HashMap<String, (u64, u64)>,
    done: usize,
}

impl Shown {
    fn new(json: bool) -> Self {
        Self {
            bar: bar::bytes(json),
            json,
            bytes: HashMap::new(),
            done: 0,
        }
    }

    fn event(&mut self, event: Event) -> Result<(), CliError> {
        match event {
            Event::Resolved { image, blobs, bytes } => {
                self.say(&format!("{image}: {blobs} blobs, layers of {}", show::size(bytes)))?;
                self.bytes.insert(image, (bytes, 0));
            }
            Event::Progress { image, bytes } => {
                let of = self.bytes.entry(image).or_default();
                // Configs are not in the sum that manifests give.
                *of = (of.0.max(bytes), bytes);
            }
            Event::Converting { image, left } => self.bar.set_message(format!("{image}: converting {left} layers")),
            Event::Done { image, bytes, refused } => {
                self.done += 1;
                let ordinary = match refused {
                    0 => String::new(),
                    n => format!("; {n} layers stay ordinary blobs"),
                };
                self.say(&format!("{image}: done, {}{ordinary}", show::size(bytes)))?;
            }
            Event::Failed { image, error } => {
                // What is missing of it does not come any more.
                self.bytes.remove(&image);
                if !self.json {
                    self.bar.suspend(|| eprintln!("{image}: failed to {error}"));
                }
            }
        }
        let (total, done) = self.bytes.values().fold((0, 0), |sum, of| (sum.0 + of.0, sum.1 + of.1));
        self.bar.set_length(total);
        self.bar.set_position(done);
        Ok(())
    }

    fn say(&self, text: &str) -> Result<(), CliError> {
        if self.json {
            Ok(())
        } else {
            self.bar.suspend(|| show::line(text))
        }
    }
}
